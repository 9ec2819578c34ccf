"""All that a page shows of a run: one JSON object, and behind it the numbers of each call.

Guarantees: every text in it is safe to show, wherever it came from; see `shown`. How large the
object is depends on the number of calls only up to `MOST_CALLS`, and on the number of tasks not at
all; above that, each rank is drawn in a fixed number of bins.

The page's script, `page.js`, is the one reader of the object; what it does not need is not in it.
"""

from __future__ import annotations

import math
import struct
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from gpuspool.orchestrator.page.calls import CallOutcome
from gpuspool.orchestrator.page.how import how_it_was_run
from gpuspool.orchestrator.page.lives import Attempt, Cause
from gpuspool.orchestrator.page.named_tasks import (
    failures,
    keys_of_calls,
    name_tasks,
    slowest_calls,
)
from gpuspool.orchestrator.page.notes import notes_on
from gpuspool.orchestrator.page.reading import Reading
from gpuspool.orchestrator.page.shown import MESSAGE_LETTERS, job_text, told
from gpuspool.orchestrator.page.sums import POINTS, Times, completions, times_of
from gpuspool.orchestrator.page.timeline import Timeline
from gpuspool.orchestrator.page.used import Used, used_by
from gpuspool.orchestrator.text.printable import printable
from gpuspool.spool import __version__
from gpuspool.spool.layout import rank_of
from gpuspool.spool.states import AttemptState

# Up to so many calls each is drawn, and each has its name. Above it a page would take a browser
# seconds to open, and mail programs would refuse it.
MOST_CALLS = 200_000


def facts_of(reading: Reading) -> bytes:
    """How long the JSON is, in four bytes, the least significant first; the JSON; and the columns
    of `Timeline`, where each call is drawn. Raises OSError.
    """
    hosts = [told(reading.view.host_of(attempt.name)) for attempt in reading.attempts]
    times = _times(reading)
    timeline = Timeline(reading, hosts, None if times is None else times.median)
    used = used_by(reading.attempts, reading.axis)
    draws_each = reading.n_calls <= MOST_CALLS
    slowest = slowest_calls(reading, hosts)
    failed = failures(reading)
    name_tasks(reading, [*slowest, *failed["named"]])
    attempts, causes = timeline.attempts()
    facts = {
        "meta": _meta(reading, timeline.unit),
        "tiles": _tiles(reading, used, hosts),
        "hours": _hours(reading.attempts),
        "causes": causes,
        "attempts": attempts,
        "calls": timeline.each_call() if draws_each else None,
        "bins": None if draws_each else timeline.bins(),
        "keys": keys_of_calls(reading) if draws_each else None,
        "rate": {
            "counts": completions(reading.attempts, reading.axis),
            "total": reading.view.ledger.tasks,
        },
        "times": None if times is None else msgspec.to_builtins(times),
        "used": _used(used),
        "slowest": slowest,
        "failures": failed,
        "how": how_it_was_run(reading, hosts),
        "notes": notes_on(reading, hosts, draws_each=draws_each),
    }
    text = msgspec.json.encode(facts)
    return b"".join([struct.pack("<I", len(text)), text, *timeline.columns])


def _times(reading: Reading) -> Times | None:
    """How long the calls of complete tasks took."""
    seconds: list[float] = []
    for attempt in reading.attempts:
        seconds += attempt.calls.durations_of(CallOutcome.COMPLETE)
    return times_of(seconds)


def _meta(reading: Reading, unit: float) -> dict[str, Any]:
    now, axis = reading.now, reading.axis
    return {
        "job": told(job_text(reading.view.latest_job())),
        "spool": told(str(reading.view.layout.root), 4096),
        "state": str(now["state"]),
        "says": told(now["says"]),
        "next": told(now["next"], 4096),
        "message": printable(now["message"] or "")[:MESSAGE_LETTERS],
        "made_at": reading.made_at,
        "version": __version__,
        "origin": axis.origin,
        "length": axis.length,
        "unit": unit,
        "cuts": [[where, seconds] for where, seconds in axis.cuts],
    }


def _tiles(reading: Reading, used: Used, hosts: Sequence[str]) -> dict[str, Any]:
    ledger, attempts, axis = reading.view.ledger, reading.attempts, reading.axis
    ended = max((attempt.ended for attempt in attempts), default=axis.origin)
    return {
        "total": ledger.tasks,
        "complete": ledger.n_complete,
        "failed": ledger.n_failed,
        "in_hand": reading.now["tasks"]["running"],
        "lived_s": axis.lived_s,
        "wall_s": ended - axis.origin,
        "starts": len(reading.now["parents"]) or min(1, len(attempts)),
        "ranks": len({rank_of(attempt.name) for attempt in attempts}),
        "hosts": len(set(filter(None, hosts))),
        "attempts": len(attempts),
        "rank_s": math.fsum(attempt.seconds for attempt in attempts),
        "busy_s": math.fsum(attempt.busy_s for attempt in attempts),
        "restarts": _restarts(attempts),
        "gpu_mean": used.gpu_mean,
        "gpu_mem_most": used.gpu_mem_most,
        "rss_most": used.rss_most,
    }


def _hours(attempts: Iterable[Attempt]) -> list[list[Any]]:
    """[cause, seconds] of all ranks together, in the order of causes."""
    spent: dict[Cause, float] = defaultdict(float)
    for attempt in attempts:
        for cause, seconds in attempt.spent.items():
            spent[cause] += seconds
    return [[cause.value, spent[cause]] for cause in Cause if spent[cause] > 0.0]


def _used(used: Used) -> dict[str, Any]:
    return {
        "points": POINTS,
        "gpu": used.gpu,
        "gpu_mem": used.gpu_mem,
        "gpu_mem_total": float(used.gpu_mem_total),
        "rss": used.rss,
        "cpu": used.cpu,
    }


def _restarts(attempts: Iterable[Attempt]) -> int:
    """How many processes died or gave up, and were followed by another one of their rank."""
    newest: dict[int, str] = {}
    for attempt in attempts:
        newest[rank_of(attempt.name)] = attempt.name
    return sum(
        attempt.closing is not None
        and attempt.closing.state is AttemptState.FAILED
        and newest[rank_of(attempt.name)] != attempt.name
        for attempt in attempts
    )
