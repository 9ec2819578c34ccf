"""Watching a run: how it stands, again and again, until it has ended.

A watch outlasts what happens to a spool meanwhile. It waits for one that is not there yet; a spool
that is moved away or made anew (`--fresh`) is told, and what comes to its path is watched next; a
file system in trouble is given time. Called by `status --watch`.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import msgspec

from gpuspool.orchestrator.api.in_queue import SlurmQueue
from gpuspool.orchestrator.plan.locate import at_home, find_spool, is_none_here
from gpuspool.orchestrator.report.outlook import Prospect
from gpuspool.orchestrator.report.queued import is_queued
from gpuspool.orchestrator.report.status import status
from gpuspool.spool.errors import FolderGone, GpuspoolError
from gpuspool.spool.layout import Layout
from gpuspool.spool.liveness import FailureDetector
from gpuspool.spool.open_folder import folder_id
from gpuspool.spool.states import UNDER_WAY, RunState
from gpuspool.spool.view import View, load_run, open_view

# Seconds between two looks.
LOOK_S = 2.0

# Where looks are costly, they are so rare that they take at most this part of a core; but so often
# that a lease is proved to have run out not much later than it has.
MOST_OF_A_CORE = 0.03
LONGEST_LOOK_S = 10.0

# For so long a spool that is not there any more may come back. `--fresh` puts the new one in the
# place of the old one within moments; on a network these may be seen some seconds apart.
GONE_S = 30.0

# For so long a file system may be in trouble. A file server that is started anew takes a few
# minutes at most, and whoever watches a night's run wants to see it in the morning.
TROUBLE_S = 600.0


class News(msgspec.Struct, frozen=True):
    """Something that a watch tells beside how the run stands."""

    text: str


Sight = dict[str, Any] | News


def watch(spool: str | None) -> Iterator[Sight]:
    """How a run stands, as `status` returns it, every LOOK_S seconds; the last is of its end.

    spool: None for the only ./spool-*, or the one that will be made. Raises UsageError for what is
    there and is no spool, or where several may be meant; FolderGone where the spool went away and
    nothing came in its place; GpuspoolError and OSError as `status` does.
    """
    root = yield from _root_of(spool)
    while True:
        yield from _wait_until_there(root)
        watched = _Watched(root)
        yield from watched.sights()
        if watched.has_ended:
            return
        yield from _wait_until_back(root)


def _root_of(spool: str | None) -> Generator[Sight, None, Path]:
    """Returns the folder that is meant. Raises UsageError where that cannot be said."""
    if spool is None and is_none_here():
        yield News("there is no ./spool-* here yet; waiting for one. Ctrl-C ends the wait")
        while is_none_here():
            time.sleep(LOOK_S / 2)
    if spool is not None:
        return Path(at_home(spool))
    found = find_spool(None)
    yield News(f"{found}, the only spool here")
    return found


def _wait_until_there(root: Path) -> Iterator[Sight]:
    """Wait for a path that does not exist yet: a spool appears whole, by one rename(2)."""
    if root.exists():
        return
    text = f"{root} is not there yet; waiting for it. Ctrl-C ends the wait"
    if not root.parent.is_dir():
        text += f". (There is no folder {root.parent} either.)"
    yield News(text)
    while not root.exists():
        time.sleep(LOOK_S / 2)


def _wait_until_back(root: Path) -> Iterator[Sight]:
    """Wait for a while for a spool that went away. Raises FolderGone."""
    if _is_spool(root):
        return
    yield News(
        f"{root} is not there any more: it was moved, removed or unmounted. Waiting "
        f"{GONE_S:.0f} s for what comes in its place"
    )
    until = time.monotonic() + GONE_S
    while not _is_spool(root):
        if time.monotonic() > until:
            raise FolderGone(
                f"{root} was moved, removed or unmounted while it was watched. Name the place "
                "where it is now."
            )
        time.sleep(LOOK_S / 4)


def _is_spool(root: Path) -> bool:
    """Whether a spool is there: an empty folder may be a mount point of which the mount is gone."""
    layout = Layout(root)
    return layout.format.exists() or layout.run.exists()


class _Gone(Exception):
    """The run is not at its path any more."""


class _Watched:
    """One run at a path, watched until it has ended or is not the one at that path any more.

    has_ended: it has; else its folder is gone, or another run's is there.
    """

    def __init__(self, root: Path) -> None:
        self.has_ended = False
        self._root = root
        self._view: View | None = None
        self._detector: FailureDetector | None = None
        self._prospect: Prospect | None = None
        self._queue: SlurmQueue | None = None
        self._folder = ""
        # Since when every look failed; None: the last one did not.
        self._troubled_since: float | None = None

    def sights(self) -> Iterator[Sight]:
        while True:
            began = time.thread_time()
            try:
                found = self._look()
            except _Gone:
                if _is_spool(self._root):
                    yield News(f"another run is at {self._root} now: it was made anew, or replaced")
                return
            cost_s = time.thread_time() - began
            if found is not None:
                yield found
            if isinstance(found, dict) and not _is_under_way(found):
                self.has_ended = True
                return
            time.sleep(max(LOOK_S, min(cost_s / MOST_OF_A_CORE, LONGEST_LOOK_S)))

    def _look(self) -> Sight | None:
        """How the run stands; None where that cannot be said at the moment, as was told.

        What was read counts only if the path led to this run before and after. Else it may be a
        mixture of two runs, and so may be the reason for an error. Raises _Gone then.
        """
        try:
            now = self._read()
        except (GpuspoolError, OSError) as error:
            if self._view is None or not self._is_there():
                raise self._of(error) from error
            if not isinstance(error, OSError):
                raise
            return self._bear(error)
        if not self._is_there():
            raise _Gone
        self._troubled_since = None
        return now

    def _of(self, error: Exception) -> Exception:
        """What an error means where the run is not at its path, or was never seen there."""
        is_first_look = self._view is None
        if is_first_look and (isinstance(error, GpuspoolError) or self._root.exists()):
            return error
        return _Gone()

    def _read(self) -> dict[str, Any]:
        """Raises GpuspoolError and OSError."""
        if self._view is None:
            self._folder = folder_id(self._root)
            self._view = open_view(self._root, reads_claims=False, prepare=self._listen)
            self._detector = FailureDetector(self._view)
            self._queue = SlurmQueue(self._view, self._root)
        else:
            self._view.refresh()
        assert self._prospect is not None
        assert self._queue is not None
        outlook = self._prospect.outlook
        now = status(self._view, self._detector, named=self._root, outlook=outlook)
        return self._queue.with_look(now)

    def _listen(self, view: View) -> None:
        self._prospect = Prospect(view)

    def _is_there(self) -> bool:
        """Whether the path leads to the folder of this run; True where nobody can say."""
        assert self._view is not None
        try:
            folder = folder_id(self._root)
            if folder == self._folder:
                return True
            # A mount that came back, or a copy in the place of the original, is the same run.
            if load_run(self._view.layout).id != self._view.run.id:
                return False
            self._folder = folder
        except (FileNotFoundError, NotADirectoryError, GpuspoolError):
            return False
        except OSError:
            return True
        return True

    def _bear(self, error: OSError) -> News | None:
        """What is told, once, of trouble that may pass. Raises it if it has lasted for too long."""
        now = time.monotonic()
        if self._troubled_since is None:
            self._troubled_since = now
            return News(f"{error}; looking again for {TROUBLE_S / 60:.0f} minutes at most")
        if now - self._troubled_since > TROUBLE_S:
            raise error
        return None


def _is_under_way(now: dict[str, Any]) -> bool:
    """Whether how the run stands may yet change without anybody's doing.

    A run that was planned and that nobody has started yet counts: `run` is about to, or the jobs
    of `submit` are pending.
    """
    if now["state"] in UNDER_WAY or is_queued(now):
        return True
    return bool(now["state"] == RunState.STOPPED and now["epoch"] < 0)
