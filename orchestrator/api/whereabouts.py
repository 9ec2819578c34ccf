"""Where OUT is when a run starts again: there, as its mark tells; gone; or moved.

OUT is made and marked once, when the run is made. After that a folder without the mark is not the
one that holds what was published: a file system is not mounted, or somebody moved OUT. To make OUT
anew there would end in "40 of 40 complete" with most outputs elsewhere. So the start is refused,
unless nothing was published yet. What writes is called under the spool's lock; the questions are
asked by a dry run too.
"""

from __future__ import annotations

import enum
import os
from pathlib import Path

import msgspec

from gpuspool.orchestrator.api.occupants import Occupants, in_words
from gpuspool.orchestrator.plan.differences import is_out_of
from gpuspool.orchestrator.plan.holds import refuse_in_spool
from gpuspool.orchestrator.plan.locate import at_home
from gpuspool.orchestrator.plan.matching import beside_spool
from gpuspool.orchestrator.plan.out import holds_anything, make_out, mark_out
from gpuspool.orchestrator.text.words import to_type
from gpuspool.spool.codec import seal_pretty
from gpuspool.spool.errors import OrchestratorLive, UsageError
from gpuspool.spool.layout import OUT_MARK
from gpuspool.spool.open_folder import out_of, read_mark
from gpuspool.spool.publish import replace
from gpuspool.spool.records import Run
from gpuspool.spool.view import View


class Lack(enum.Enum):
    """What a start must do before OUT is this run's."""

    NOTHING = "nothing"
    WHOLE_MARK = "whole mark"
    FOLDER = "folder"


def claim_out(view: View, lack: Lack) -> None:
    """See to it that OUT is there and bears this run's mark. lack: as `refuse_out` found it.

    Raises UsageError where it bears another run's by now.
    """
    out = out_of(view.layout, view.run)
    match lack:
        case Lack.NOTHING:
            return
        case Lack.WHOLE_MARK:
            replace(out / OUT_MARK, f"{view.run.id}\n".encode(), durable=True)
        case Lack.FOLDER:
            make_out(out, view.run.id)


def refuse_out(view: View, remakes: bool = False) -> Lack:
    """What `claim_out` must do about OUT. Changes nothing.

    remakes: one that is gone is made anew, though something was published there. A mark that was
    damaged is made again where all published outputs are there. Raises UsageError where it bears
    none and some output was published, and where it is another run's.
    """
    out = out_of(view.layout, view.run)
    mark = read_mark(out)
    if mark == view.run.id:
        return Lack.NOTHING
    if mark is not None and _is_damaged(mark) and not _missing(view, out):
        return Lack.WHOLE_MARK
    if mark is not None:
        raise UsageError(
            f"--out {out} belongs to another run. Move that away and this run's folder back, or "
            "say with --out-moved-to DIR where this run's outputs are."
        )
    published = _published(view)
    if published and not remakes:
        what = "does not exist"
        if out.is_dir():
            what = "does not hold them: it has no mark of this run"
        raise UsageError(
            f"{len(published)} outputs of finished tasks were published in {out}, which {what}. "
            "Mount its file system or move it back, then run the same command again. If it was "
            "moved for good, add --out-moved-to DIR. If it was deleted, "
            f"{to_type('redo', view.layout.root, '--missing-outputs')} computes them again."
        )
    # Whoever made the run may have died before it made OUT.
    if holds_anything(out) and view.run.out is not None and not published:
        raise UsageError(
            f"--out {out} is not empty and has no mark of this run. Mount its file system, empty "
            "it, or say with --out-moved-to DIR where this run's outputs are."
        )
    return Lack.FOLDER


def out_now(
    view: View, asked: str | None, moved_to: str | os.PathLike[str] | None
) -> str | os.PathLike[str] | None:
    """Where OUT is now, if a command says so; None if it has nothing new to say.

    asked: the absolute path of its --out, if it has one. A folder that bears the run's mark is OUT,
    so that is as good as to name it in --out-moved-to, which is `moved_to`.
    """
    if moved_to is None and asked not in (None, view.run.out) and is_out_of(view, asked or ""):
        return asked
    return moved_to


def record_move(view: View, moved_to: Path, occupants: Occupants | None = None) -> None:
    """Record, in both copies of run.json, that OUT is at another place now.

    The names of outputs in the journals are relative to OUT, so nothing else changes. occupants:
    who was waited for already. Raises UsageError where that folder cannot be this run's OUT, and
    OrchestratorLive while somebody may still write to the old one.
    """
    out = _where(moved_to)
    if out == out_of(view.layout, view.run):
        return
    refuse_move(view, out, occupants)
    mark_out(out, view.run.id)
    _record(view, msgspec.structs.replace(view.run, out=str(out)))


def wait_for_writers(view: View, moved_to: Path) -> Occupants | None:
    """Where OUT has moved, wait until it is sure whether anybody may still write to the old one.

    It may take a lease, for which nobody else should have to wait: so call it without the lock.
    Returns what `record_move` needs under the lock. Raises UsageError for a folder that cannot be
    OUT.
    """
    out = _where(moved_to)
    if out == out_of(view.layout, view.run):
        return None
    _refuse_other_folders(view, out)
    occupants = Occupants(view)
    occupants.wait()
    return occupants


def _where(moved_to: Path) -> Path:
    return Path(os.path.abspath(at_home(moved_to)))


def refuse_move(view: View, out: Path, occupants: Occupants | None = None) -> None:
    """Refuse an absolute path as that of OUT, as `record_move` tells. Changes nothing."""
    if out == out_of(view.layout, view.run):
        return
    _refuse_other_folders(view, out)
    found = (occupants or Occupants(view)).look()
    if found:
        raise OrchestratorLive(
            f"{in_words(found)} may still write to {out_of(view.layout, view.run)}. "
            "Stop them first with `gpuspool drain`, then say again where the outputs are."
        )


def record_root(view: View, root: str) -> None:
    """Record that the input files are in another folder now, or reached by another path."""
    if root != view.run.root:
        _record(view, msgspec.structs.replace(view.run, root=root))


def root_moved_along(view: View) -> str:
    """Where the input files are if they were moved together with the spool; "" if they were not."""
    if os.path.isdir(view.run.root):
        return ""
    candidate = beside_spool(view)
    return candidate if os.path.isdir(candidate) else ""


def _record(view: View, run: Run) -> None:
    """Replace both copies of run.json."""
    record = seal_pretty(run)
    # The one that is read first comes last: until then nothing has happened.
    replace(view.layout.run_copy, record, durable=True)
    replace(view.layout.run, record, durable=True)
    view.use_run(run)


def _refuse_other_folders(view: View, out: Path) -> None:
    """Raise UsageError unless `out` is this run's OUT: by its mark, or since all outputs are there.

    A mark is a hidden file, which `mv OUT/* DIR` leaves behind.
    """
    mark = read_mark(out) if out.is_dir() else None
    if mark == view.run.id:
        return
    if not out.is_dir():
        raise UsageError(f"--out-moved-to {out}: there is no such folder. Name the one it is now.")
    if mark is not None:
        raise UsageError(
            f"--out-moved-to {out}: it holds the outputs of another run. Name this run's."
        )
    refuse_in_spool(out, view.layout.root)
    published = _published(view)
    if not published:
        raise UsageError(
            f"--out-moved-to {out}: nothing was published yet, and this folder has no mark of this "
            "run. Put the one that has it back, or make a new run with --out."
        )
    missing = _missing(view, out)
    if missing:
        raise UsageError(
            f"--out-moved-to {out}: {len(missing)} of {len(published)} outputs are not there, the "
            f"first is {missing[0]}. Name the folder that holds them all."
        )


def _is_damaged(mark: str) -> bool:
    """Whether a mark is no run's: ids are letters and digits."""
    return not (mark.isascii() and mark.isalnum())


def _missing(view: View, out: Path) -> list[str]:
    """The published outputs that are not in this folder."""
    return [name for name in _published(view) if not os.path.lexists(out / name)]


def _published(view: View) -> list[str]:
    """The names, below OUT, of all outputs of tasks that are complete."""
    if view.ledger.n_complete == 0:
        return []
    # Imported here, since every start of a run imports this module and few come to this line.
    from gpuspool.orchestrator.report.results import Results

    return [name for result in Results(view) for name in result.outputs]
