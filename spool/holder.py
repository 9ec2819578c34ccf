"""Who holds a spool: the orchestrator that announced itself last in `orchestrator.json`."""

from __future__ import annotations

from typing import TypeGuard

from gpuspool.spool.identity import is_here, liveness
from gpuspool.spool.layout import Layout
from gpuspool.spool.open_folder import folder_id, is_same_folder
from gpuspool.spool.publish import read_record
from gpuspool.spool.records import Holder
from gpuspool.spool.states import Life


def read_holder(layout: Layout) -> Holder | None:
    """The last announcement; None where there is none, or it cannot be read."""
    return read_record(layout.holder, Holder)


def is_holder_alive(layout: Layout) -> bool:
    """Whether the orchestrator that announced itself last is proved alive on this host.

    In a copy of a spool the announcement speaks of the original, which is another's.
    """
    holder = read_holder(layout)
    return _is_of_this_folder(holder, layout) and liveness(holder) is Life.ALIVE


def is_holder_there(layout: Layout) -> bool:
    """Whether the orchestrator that announced itself last may still run, here or elsewhere."""
    holder = read_holder(layout)
    return _is_of_this_folder(holder, layout) and liveness(holder) is not Life.DEAD


def _is_of_this_folder(holder: Holder | None, layout: Layout) -> TypeGuard[Holder]:
    """Whether an announcement that stands speaks of this folder, and not of one that it copies."""
    if holder is None or holder.until is not None:
        return False
    if not holder.folder:
        return True
    return is_same_folder(holder.folder, folder_id(layout.root), is_here(holder))
