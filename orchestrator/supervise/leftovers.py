"""Removing what processes left behind that died between writing a file and linking it.

Such files have hidden names, so no reader looks at them, and they cost nothing but room. They are
removed at the end of an epoch, and only while no attempt is open: the hidden file of a process that
lives is about to get its name. Files that somebody else hid stay.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from gpuspool.spool.layout import OUT_MARK, PROBE_NAME, SUBDIRS, parse_hidden, parse_hidden_output
from gpuspool.spool.publish import remove_quietly, remove_tree_quietly
from gpuspool.spool.records import Closing
from gpuspool.spool.states import AttemptState
from gpuspool.spool.view import View


def remove_leftovers(view: View) -> None:
    """Remove hidden files of ours from the spool, and hidden outputs from OUT.

    To be called while no attempt is open. Raises OSError where a folder of the spool cannot be
    listed; what cannot be removed stays.
    """
    for folder in _folders(view):
        for entry in os.scandir(folder):
            _remove_if_ours(entry)
    # OUT belongs to the user and may hold millions of files, so it is walked only if some attempt
    # may have left something there, and only what bears the name of such an attempt is removed.
    # Most runs end without looking into OUT at all.
    dirty = {name for name, closing in view.closed.items() if _is_dirty(closing)}
    if dirty:
        out = Path(view.run.out or view.layout.outputs)
        _remove_hidden_outputs(out, dirty)


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


def _remove_hidden_outputs(out: Path, attempts: set[str]) -> None:
    """Remove what these attempts were writing, wherever it lies below OUT."""
    for folder, folders, files in os.walk(out):
        for name in [*folders, *files]:
            if parse_hidden_output(name) in attempts:
                _remove_quietly(Path(folder, name))
        # os.walk goes down into what is left in this list, so it is changed in place.
        folders[:] = [name for name in folders if not name.startswith(OUT_MARK)]


def _remove_quietly(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir():
            remove_tree_quietly(path)
        else:
            path.unlink()
