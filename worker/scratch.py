"""The folders in which long tasks keep what they have, from one attempt to the next.

A task that takes longer than a run may last saves its state there, and goes on from it in its next
call. The folder goes when the task completes: by its worker at once, or by the orchestrator at the
end of an epoch, if the worker died in that moment.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gpuspool.spool.layout import Layout
from gpuspool.spool.publish import make_folder, remove_tree_quietly
from gpuspool.worker.context import Task


class Scratch:
    """The scratch folders of the tasks of one attempt."""

    def __init__(self, layout: Layout, check_folders: Callable[[], None]) -> None:
        """check_folders: raises where the spool is not the folder that it was."""
        self._layout = layout
        self._check_folders = check_folders
        # The tasks that asked for theirs here, and are not complete.
        self.asked: set[int] = set()

    def of(self, task: Task) -> Path:
        """The folder of a task, which is made if need be. Raises OSError."""
        folder = self._layout.scratch(task.index)
        # A job that begins anew may have removed it.
        if task.index not in self.asked or not folder.is_dir():
            self._check_folders()
            make_folder(folder)
            self.asked.add(task.index)
        return folder

    def remove(self, task: int) -> None:
        """A task that asked is complete: nobody needs its folder any more."""
        self.asked.discard(task)
        remove_tree_quietly(self._layout.scratch(task))
