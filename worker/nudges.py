"""Nudges: the parent's word, through a pipe, that there is news in the spool.

A worker would have to look again and again whether somebody asks for a drain, and one with nothing
to do whether there is a new manifest. On a network file system eight such workers keep a server
busy with nothing. Their parent looks anyway, once for all of them, and writes a byte into the pipe
that is the worker's stdin when it finds something new. A nudge is a hint and no more: whoever gets
one looks for himself, and whoever gets none looks too, only seldom. If the parent dies the pipe
ends, which is a nudge as well.
"""

from __future__ import annotations

import contextlib
import os
import select
import stat
import threading

from gpuspool.spool.publish import out_of_the_way

# So much is read at once; how many nudges there were is no matter.
PIPE_BYTES = 4096

# Whoever is promised nudges looks by itself as seldom as this. It is of use only where the parent
# lives and yet tells nothing, since it was stopped.
UNNUDGED_LOOK_S = 300.0

# News is told within this time, unless the parent was told to look more seldom (`--poll`).
PROMPT_S = 10.0


class Nudges:
    """The reading end of the pipe. The main thread waits; the beat's thread only asks."""

    def __init__(self, fd: int | None) -> None:
        """fd: None where there is no pipe, so that nobody will nudge."""
        self._fd = fd
        self._has_ended = fd is None
        self._lock = threading.Lock()
        # How often something was in the pipe, and how often when a wait was last over.
        self._heard = 0
        self._waited_for = 0

    @property
    def are_promised(self) -> bool:
        """Whether there is a parent that nudges."""
        return not self._has_ended

    def heard(self) -> int:
        """How often there was a nudge so far. Safe from any thread, and never waits."""
        with self._lock:
            if self._fd is None or self._has_ended:
                return self._heard
            with contextlib.suppress(BlockingIOError):
                # At the end of the pipe, which comes with that of the parent, nothing is read. The
                # descriptor stays open: the other thread may be waiting on it.
                self._has_ended = not os.read(self._fd, PIPE_BYTES)
                self._heard += 1
            return self._heard

    def wait(self, seconds: float) -> bool:
        """Wait for a nudge, at most so long; whether there was one since the last wait.

        To be asked if promised. Where the other thread reads a nudge first, the wait may last for
        its whole time, and says so then.
        """
        assert self._fd is not None
        if self.heard() == self._waited_for:
            select.select([self._fd], [], [], seconds)
        known = self._waited_for
        self._waited_for = self.heard()
        return self._waited_for != known


def nudges_of_stdin() -> Nudges:
    """Take the pipe that the parent gave as stdin, and leave /dev/null there for the job.

    To be called before any code of the job runs.
    """
    try:
        is_pipe = stat.S_ISFIFO(os.fstat(0).st_mode)
    except OSError:
        return Nudges(None)
    if not is_pipe:
        return Nudges(None)
    fd = out_of_the_way(os.dup(0))
    os.set_blocking(fd, False)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return Nudges(fd)
