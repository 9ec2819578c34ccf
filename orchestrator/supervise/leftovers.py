"""Removing what processes left behind that died between writing a file and linking it.

Such files have hidden names, so no reader looks at them, and they cost nothing but room. They are
removed at the end of an epoch: hidden outputs of attempts that are closed, and hidden files in the
spool, which tell no attempt, only while none is open. The hidden file of a process that lives is
about to get its name. Files that somebody else hid stay. The scratch folders of tasks that are
complete go too: their workers died before they removed them.

A parent beside which others may be alive removes only hidden outputs, and only those of attempts
that it has closed or started. The others see to theirs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from pathlib import Path

from gpuspool.spool.beats import remove_beats
from gpuspool.spool.identity import is_here, liveness
from gpuspool.spool.layout import (
    OUT_MARK,
    PROBE_NAME,
    SUBDIRS,
    epoch_name,
    parse_hidden,
    parse_hidden_output,
)
from gpuspool.spool.open_folder import folder_id, is_same_folder, out_of
from gpuspool.spool.parents import Parents
from gpuspool.spool.publish import listdir, remove_quietly, remove_tree_quietly
from gpuspool.spool.records import Closing, Intent
from gpuspool.spool.states import AttemptState, Life
from gpuspool.spool.view import View


def remove_from_spool(view: View, epoch: int) -> None:
    """Remove hidden files of ours from the spool, scratch folders of complete tasks, and beats of
    the dead.

    The view was just refreshed. epoch: of this parent, beside which there is no other, nor may one
    be admitted meanwhile: its hidden files would go too. Raises OSError where a folder of the spool
    cannot be listed; what cannot be removed stays.
    """
    if not view.open_attempts:
        for folder in _folders(view):
            for entry in os.scandir(folder):
                _remove_if_ours(entry)
        remove_scratch(view)
    parents = Parents(view.layout).refresh().known
    remove_beats(view.layout, {*view.closed, *map(epoch_name, parents.keys() - {epoch})})


def remove_all_from_out(view: View) -> None:
    """Remove what attempts that are closed were writing when they ended."""
    _remove_outputs_of(view, view.closed)


def remove_own_from_out(view: View, epoch: int, closed: Collection[str]) -> None:
    """Remove what the attempts were writing that a parent has started, or that were closed by it or
    by its workers. closed: those that it has closed itself.
    """
    own: set[str] = set(closed)
    for attempt, closing in view.closed.items():
        if _is_of(view, attempt, epoch) or _is_of(view, closing.by, epoch):
            own.add(attempt)
    _remove_outputs_of(view, own)


def _is_of(view: View, attempt: str, epoch: int) -> bool:
    intent = view.intents.get(attempt)
    return intent is not None and intent.epoch == epoch


def _remove_outputs_of(view: View, attempts: Collection[str]) -> None:
    """Remove the hidden outputs of closed attempts."""
    # OUT belongs to the user and may hold millions of files, so it is walked only if some attempt
    # may have left something there, and only what bears the name of such an attempt is removed.
    # Most runs end without looking into OUT at all.
    dirty = [name for name in attempts if _is_dirty(view.closed[name])]
    if dirty:
        out = out_of(view.layout, view.run)
        writers = {_writer(view, name) for name in dirty}
        # Where an attempt with a damaged intent ran is not known. If OUT lies in the spool, nobody
        # but the spool's own attempts ever wrote there, so the attempt's name alone will do.
        nameless: tuple[str, ...] = ()
        if view.run.out is None:
            nameless = tuple(f"-{name}" for name in dirty if view.intents.get(name) is None)
        _remove_hidden_outputs(out, writers, nameless)


def remove_scratch(view: View) -> None:
    """Remove the scratch folders of complete tasks. Raises OSError where they cannot be listed."""
    layout, ledger = view.layout, view.ledger
    for name in listdir(layout.scratches):
        if name.isdecimal() and int(name) < ledger.tasks and ledger.complete[int(name)]:
            remove_tree_quietly(layout.scratch(int(name)))


def _folders(view: View) -> list[Path]:
    """Every folder of the spool in which files are published."""
    folders = [view.layout.root, *map(view.layout.subdir, SUBDIRS)]
    for entry in os.scandir(view.layout.subdir("claims")):
        if entry.is_dir():
            folders.append(Path(entry.path))
    return folders


def _remove_if_ours(entry: os.DirEntry[str]) -> None:
    hidden = parse_hidden(entry.name)
    if hidden is None:
        return
    name, _ = hidden
    if entry.is_file(follow_symlinks=False):
        remove_quietly(Path(entry.path))
    elif name == PROBE_NAME:
        remove_tree_quietly(Path(entry.path))


def _is_dirty(closing: Closing) -> bool:
    """Whether hidden outputs of this attempt may be left.

    One that closed itself in peace has removed its own, or has counted those that it could not.
    """
    if closing.by != closing.attempt or closing.state is AttemptState.FAILED:
        return True
    return closing.stats is not None and closing.stats.left_behind > 0


def _writer(view: View, attempt: str) -> str | None:
    """Who a hidden output of this attempt says that it was written by.

    None where the attempt may still be writing it: it ran in a folder of which this spool is a
    copy, is closed in the copy alone, its process is not proved dead, and it wrote to this very
    OUT, and not to one that was copied too. Earlier versions named the attempt alone.
    """
    intent = view.intents.get(attempt)
    if intent is None or not intent.folder:
        return view.writer(attempt)
    if _is_copied(view, intent) and _wrote_here(view, intent):
        who = view.identity(attempt)
        if who is None or liveness(who) is not Life.DEAD:
            return None
    return view.writer(attempt)


def _is_copied(view: View, intent: Intent) -> bool:
    """Whether an attempt ran in a folder of which this spool is a copy.

    Of an attempt elsewhere too, by the inodes alone, unlike where it is judged who is dead
    (`is_of_another_folder`): there a wrong yes would close what lives. Here it leaves some hidden
    files where they are, while a wrong no would remove what a worker of the original, on a host of
    which nothing can be known, is writing.
    """
    here = folder_id(view.layout.root)
    return not is_same_folder(intent.folder, here, is_here(intent.parent))


def _wrote_here(view: View, intent: Intent) -> bool:
    """Whether an attempt wrote its outputs to the folder that is OUT now."""
    here = folder_id(out_of(view.layout, view.run))
    return is_same_folder(intent.out_folder, here, is_here(intent.parent))


def _remove_hidden_outputs(out: Path, writers: set[str | None], endings: tuple[str, ...]) -> None:
    """Remove what these attempts were writing, wherever it lies below OUT.

    endings: what is removed too, if its writer's name ends so.
    """
    for folder, folders, files in os.walk(out):
        for name in [*folders, *files]:
            writer = parse_hidden_output(name)
            if writer is not None and (writer in writers or writer.endswith(endings)):
                _remove_quietly(Path(folder, name))
        # os.walk goes down into what is left in this list, so it is changed in place.
        folders[:] = [name for name in folders if not name.startswith(OUT_MARK)]


def _remove_quietly(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir():
            remove_tree_quietly(path)
        else:
            path.unlink()
