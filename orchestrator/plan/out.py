"""The output folder that --out names: whether it may be used, and whose it is.

A folder is refused while it holds anything, unless the user allows that it is moved aside. It then
bears a hidden file with the id of its run, so that two runs never mix their outputs. The folder
inside of a spool needs none of this: it is made, and marked, with the spool.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from gpuspool.orchestrator.plan.aside import aside_of, move_aside
from gpuspool.orchestrator.plan.inputs import TaskList
from gpuspool.spool.errors import UsageError
from gpuspool.spool.layout import OUT_MARK
from gpuspool.spool.publish import make_folder, publish, read_bytes
from gpuspool.spool.records import Run


def check_out(out: Path, overwrite: bool, tasks: TaskList) -> None:
    """Refuse an OUT that is not a folder, or that holds anything and may not be moved aside.

    overwrite: whether it may be moved aside. Even then it is refused if one of the inputs is in
    there, because the run would not find this input any more. Changes nothing; raises UsageError.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is not a folder.")
    if not _holds_anything(out):
        return
    if not overwrite:
        raise UsageError(
            f"--out {out} is not empty. Name another folder, or move all of it to {aside_of(out)} "
            "with --overwrite."
        )
    _refuse_inputs_inside(out, tasks)


def _refuse_inputs_inside(out: Path, tasks: TaskList) -> None:
    """Raise UsageError if an input is a file in OUT, also by way of a symbolic link."""
    # A folder of inputs that is named as OUT by mistake, or by way of a link, would be renamed
    # before the first task is read: every task would fail, and the user would look for data that
    # is gone from its place. So paths are compared as the kernel resolves them, not as written.
    whole = out.resolve()
    for path in _input_paths(tasks):
        real_path = Path(os.path.realpath(path))
        if real_path.is_relative_to(whole) and os.path.lexists(path):
            raise UsageError(
                f"--out {out} holds the input {path}, so it is not moved aside. Name another "
                "folder."
            )


def clear_out(out: Path) -> None:
    """Move an OUT that holds anything aside. Called once nothing can be refused any more."""
    if _holds_anything(out):
        move_aside(out)


def mark_out(run: Run) -> None:
    """Make the OUT of a run, if it is not inside of the spool, and let it bear the run's mark.

    The mark is linked into place, so that of two runs one finds the other's. Raises UsageError
    where OUT bears the mark of another run.
    """
    if run.out is None:
        return
    mark = Path(run.out, OUT_MARK)
    text = f"{run.id}\n".encode()
    make_folder(mark.parent)
    if not publish(mark, text) and read_bytes(mark) != text:
        raise UsageError(
            f"--out {run.out} belongs to another run. Name another folder with another --spool."
        )


def _holds_anything(out: Path) -> bool:
    return out.is_dir() and any(out.iterdir())


def _input_paths(tasks: TaskList) -> Iterator[str]:
    """The paths of those tasks that are files."""
    for task in tasks:
        payload = msgspec.json.decode(task.payload)
        if isinstance(payload, dict) and isinstance(payload.get("path"), str):
            yield payload["path"]
