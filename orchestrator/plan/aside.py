"""Moving a folder that is in the way to a name beside it. Nothing is ever deleted."""

from __future__ import annotations

import os
from pathlib import Path

from gpuspool.spool.publish import fsync_dir


def aside_of(path: Path) -> Path:
    """The first free name of PATH.old-1, PATH.old-2, …"""
    number = 1
    while (aside := path.with_name(f"{path.name}.old-{number}")).exists():
        number += 1
    return aside


def move_aside(path: Path) -> Path:
    """Rename a folder to the first free name beside it, durably, and return that name.

    Raises OSError.
    """
    aside = aside_of(path)
    os.rename(path, aside)
    fsync_dir(path.parent)
    return aside
