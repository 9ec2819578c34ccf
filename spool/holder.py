"""Who holds a spool: the orchestrator that announced itself last in `orchestrator.json`."""

from __future__ import annotations

from gpuspool.spool.identity import liveness
from gpuspool.spool.layout import Layout
from gpuspool.spool.publish import read_record
from gpuspool.spool.records import Holder
from gpuspool.spool.states import Life


def read_holder(layout: Layout) -> Holder | None:
    """The last announcement; None where there is none, or it cannot be read."""
    return read_record(layout.holder, Holder)


def is_holder_alive(layout: Layout) -> bool:
    """Whether the orchestrator that announced itself last is proved alive on this host."""
    holder = read_holder(layout)
    return holder is not None and holder.until is None and liveness(holder) is Life.ALIVE


def is_holder_there(layout: Layout) -> bool:
    """Whether the orchestrator that announced itself last may still run, here or elsewhere."""
    holder = read_holder(layout)
    return holder is not None and holder.until is None and liveness(holder) is not Life.DEAD
