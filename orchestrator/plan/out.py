"""The output folder that --out names: whether it may be used, and whose it is.

A folder is refused while it holds anything, unless the user allows that it is moved aside. It then
bears a hidden file with the id of its run, so that two runs never mix their outputs. The folder
inside of a spool needs none of this: it is made, and marked, with the spool.
"""

from __future__ import annotations

from pathlib import Path

from gpuspool.orchestrator.plan.aside import aside_of, move_aside
from gpuspool.orchestrator.plan.holds import refuse_in_spool, refuse_to_rename
from gpuspool.orchestrator.plan.request import Request
from gpuspool.spool.errors import UsageError
from gpuspool.spool.layout import OUT_MARK, parse_hidden
from gpuspool.spool.open_folder import read_mark
from gpuspool.spool.publish import make_folder, publish


def check_out(out: Path, overwrite: bool, request: Request, spool: Path) -> None:
    """Refuse an OUT that is not a folder, that lies in a spool, or that holds anything.

    overwrite: one that holds anything may be moved aside, unless something in there is needed where
    it is. Changes nothing; raises UsageError.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is not a folder.")
    refuse_in_spool(out, spool)
    if not holds_anything(out):
        return
    if not overwrite:
        raise UsageError(
            f"--out {out} is not empty: {_first_of(out)}. Name another folder, or move all of it "
            f"to {aside_of(out)} with --overwrite."
        )
    refuse_to_rename(out, "--overwrite", request, spool)


def clear_out(out: Path) -> None:
    """Move an OUT that holds anything aside. Called once nothing can be refused any more."""
    if holds_anything(out):
        move_aside(out)


def make_out(out: Path, run_id: str) -> None:
    """Make the OUT of a run, and let it bear the run's mark: once, when the run is made.

    The mark is linked into place, so that of two runs one finds the other's. Raises UsageError
    where OUT bears the mark of another run.
    """
    make_folder(out)
    mark_out(out, run_id)


def mark_out(out: Path, run_id: str) -> None:
    """Let a folder bear the mark of a run, by link(2). Raises UsageError where it bears another."""
    if not publish(out / OUT_MARK, f"{run_id}\n".encode()) and read_mark(out) != run_id:
        raise UsageError(
            f"--out {out} belongs to another run. Name another folder with another --spool."
        )


def holds_anything(out: Path) -> bool:
    """Whether a folder is there that is not empty.

    The beginning of a mark is nothing: whoever wrote it died before the folder bore it.
    """
    return out.is_dir() and any(not _is_begun_mark(path) for path in out.iterdir())


def _first_of(out: Path) -> str:
    """What a folder holds, of which one name is enough: the mark of a run is hidden from `ls`."""
    names = sorted(path.name for path in out.iterdir() if not _is_begun_mark(path))
    shown = [name for name in names if name != OUT_MARK]
    if shown:
        return f"it holds {shown[0]}"
    return f"it has the mark of another run, the hidden file {OUT_MARK}"


def _is_begun_mark(path: Path) -> bool:
    hidden = parse_hidden(path.name)
    return hidden is not None and hidden[0] == OUT_MARK
