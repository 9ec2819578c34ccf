"""The two folders of an attempt, the spool and OUT, and whether they are still where they were.

Everything that a worker does in its spool goes through the descriptor that it holds (`spool.held`):
its claims, heartbeats and its closing can land in no other folder, whatever is at the path. So a
check is no guard before each write. It tells when to end: after a claim, before a task is blamed,
and before and after outputs are published, since the job writes these by their paths.
"""

from __future__ import annotations

from pathlib import Path

from gpuspool.spool.open_folder import OpenFolder, open_out


class Folders:
    """The spool and OUT of one attempt. `check` may be called from any thread."""

    def __init__(self, spool: OpenFolder) -> None:
        self.spool = spool
        self._out: OpenFolder | None = None

    def open_out(self, path: Path, run_id: str) -> Path:
        """From now on OUT is checked too; returns a path that leads to it wherever it is.

        Raises FolderGone where it is not this run's.
        """
        self._out = open_out(path, run_id)
        return self._out.held

    def check(self) -> None:
        """Return if both folders are where they were; raises FolderGone, and OSError."""
        self.spool.check()
        if self._out is not None:
            self._out.check()
