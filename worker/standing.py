"""Whether this attempt is still open, or was closed by somebody else.

Whoever proves a worker dead closes its attempt. The proof of another host is silence for a lease,
so a worker that was suspended, or whose mount stood still, may live on after its attempt was
closed. Such a worker does no harm with a call that it has begun, since outputs and verdicts are
published once. But it must begin nothing more, and blame no task for what it meets: whoever closed
it may have removed the files that it was writing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from gpuspool.spool.layout import Layout
from gpuspool.spool.publish import listdir

# While there is doubt, the listing is looked at so often at most: tasks may take microseconds.
LOOK_S = 0.1


class Standing:
    """What an attempt knows of its own closing. Of another thread only `doubt` may be called."""

    def __init__(
        self,
        layout: Layout,
        attempt: str,
        lease_s: float,
        check_folders: Callable[[], None] = lambda: None,
    ) -> None:
        """check_folders: raises where the spool or OUT is not the folder that it was. Whoever
        cannot know whether it was closed cannot know that either, so all looks begin with it.
        """
        self._check_folders = check_folders
        self._manifests = layout.manifests
        self._orphans = layout.orphans(attempt).name
        self._lease_s = lease_s
        # Whether there is a new reason to look.
        self._is_in_doubt = False
        self._asked_at = time.monotonic()
        # Until when each step looks, and when one did last.
        self._looks_until = -math.inf
        self._looked_at = -math.inf

    def doubt(self) -> None:
        """There is a reason to look: the next `was_closed_meanwhile` does, whatever the time."""
        self._is_in_doubt = True

    def is_closed(self) -> bool:
        """Look, by a listing.

        Network file systems keep a listing fresher than a look-up that found nothing once. Raises
        FolderGone, and OSError.
        """
        self._check_folders()
        return self._orphans in listdir(self._manifests)

    def is_still_open(self) -> bool:
        """Look. If the attempt was closed, the next `was_closed_meanwhile` looks again and says so.

        For callers deep in the work: they leave what they were at, and the loop ends the attempt.
        """
        if not self.is_closed():
            return True
        self.doubt()
        return False

    def was_closed_meanwhile(self) -> bool:
        """Look if there is doubt, or if a lease has passed since the last call. Else False.

        Between two calls shorter than a lease apart nobody can have taken the silence for death, so
        the loop may ask at each step. What was decided in a longer silence may be published after
        this process woke, since a busy disk takes seconds for that. So for another lease it looks
        again and again.
        """
        now = time.monotonic()
        silence_s = now - self._asked_at
        self._asked_at = now
        if self._is_in_doubt or silence_s >= self._lease_s:
            self._is_in_doubt = False
            self._looks_until = now + self._lease_s
        elif now >= self._looks_until or now - self._looked_at < LOOK_S:
            return False
        self._looked_at = now
        return self.is_closed()
