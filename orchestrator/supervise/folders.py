"""The two folders of a run, the spool and OUT, as its orchestrator knows them.

It takes hold of both when it starts, under the lock, and looks again at each step and at the end:
see `spool/open_folder.py`. Where one of them is another folder than before, or none, nothing is
done in its place: the loop waits as it does for any file system in trouble, and then ends.
"""

from __future__ import annotations

from pathlib import Path

from gpuspool.spool.open_folder import SPOOL, OpenFolder, check_mark, open_out, out_of
from gpuspool.spool.view import View


class RunFolders:
    """The spool and OUT of one start. Raises FolderGone where one of them is gone, and OSError."""

    def __init__(self, view: View) -> None:
        self._run_id = view.run.id
        self.spool = OpenFolder(view.layout.root, SPOOL)
        try:
            self._out = open_out(out_of(view.layout, view.run), view.run.id)
        except OSError:
            self.spool.close()
            raise

    def check(self) -> None:
        """Return if both folders are where they were, and OUT bears its mark.

        Raises FolderGone, and OSError.
        """
        self.spool.check()
        self._out.check()
        check_mark(self._out, self._run_id)

    @property
    def out_held(self) -> Path:
        """A path that leads to OUT also if it was moved."""
        return self._out.held

    def close(self) -> None:
        """Hold the folders no longer: a program that called the Python API lives on."""
        self.spool.close()
        self._out.close()
