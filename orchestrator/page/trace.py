"""A run as a trace that Perfetto and chrome://tracing open: JSON of Chrome's trace events.

A host is a process there and a rank a thread. On its track lie the attempts of the rank, and on
these the calls; counters tell what each rank used. Times are microseconds since the first process
of the run began, by the clock: unlike on the page, nothing is cut out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from gpuspool.orchestrator.page.calls import Outcome
from gpuspool.orchestrator.page.facts import Run, told, why_of
from gpuspool.orchestrator.page.lives import Attempt
from gpuspool.orchestrator.report.keys import read_keys
from gpuspool.spool.layout import rank_of

# So many events are written at once.
EVENTS_AT_ONCE = 4096

_encoder = msgspec.json.Encoder()


def trace_pieces(run: Run) -> Iterator[bytes]:
    """The trace, piece by piece. Raises OSError."""
    keys = read_keys(run.view)
    yield b'{"displayTimeUnit":"ms","traceEvents":[\n'
    pending: list[bytes] = []
    is_first = True
    for event in _events(run, keys):
        pending.append(_encoder.encode(event))
        if len(pending) == EVENTS_AT_ONCE:
            yield (b"" if is_first else b",\n") + b",\n".join(pending)
            pending.clear()
            is_first = False
    if pending:
        yield (b"" if is_first else b",\n") + b",\n".join(pending)
    yield b"\n]}\n"


def _events(run: Run, keys: list[str | None]) -> Iterator[dict[str, Any]]:
    hosts: dict[str, int] = {}
    tracks: dict[int, float] = {}
    for attempt in run.attempts:
        host = run.host_of(attempt)
        if host not in hosts:
            hosts[host] = len(hosts) + 1
            yield _name("process_name", hosts[host], 0, told(host) or "a host")
        rank = rank_of(attempt.name)
        # Of an attempt that was found dead late, the next one may have begun before. Two that
        # overlap have tracks of their own, since events of one track must lie within each other.
        track, label = rank, f"rank {rank}"
        if attempt.began < tracks.get(rank, 0.0):
            track = 1_000_000_000 + len(tracks)
            label = attempt.name
        if track not in tracks:
            yield _name("thread_name", hosts[host], track, label)
            tracks[track] = 0.0
        tracks[track] = max(tracks[track], attempt.ended)
        yield from _of_attempt(run, attempt, hosts[host], track, keys)


def _name(what: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": process, "tid": thread, "args": {"name": name}}


def _of_attempt(
    run: Run, attempt: Attempt, process: int, thread: int, keys: list[str | None]
) -> Iterator[dict[str, Any]]:
    origin = run.axis.origin
    began = _micro(attempt.began - origin)
    yield {
        "ph": "X",
        "name": attempt.name,
        "cat": "attempt",
        "ts": began,
        "dur": _micro(attempt.ended - origin) - began,
        "pid": process,
        "tid": thread,
        "args": {"ended": told(why_of(attempt))},
    }
    calls = attempt.calls
    words = [outcome.name.lower().replace("_", " ") for outcome in Outcome]
    last = began
    for task, begin, duration, outcome in calls.rows():
        start = max(last, _micro(begin - origin))
        last = max(start, _micro(begin - origin + duration))
        key = keys[task]
        yield {
            "ph": "X",
            "name": f"#{task}" if key is None else told(key),
            "cat": words[outcome],
            "ts": start,
            "dur": round(last - start, 3),
            "pid": process,
            "tid": thread,
            "args": {"task": task, "attempt": attempt.name, "outcome": words[outcome]},
        }
    yield from _counters(attempt, process, origin)


def _counters(attempt: Attempt, process: int, origin: float) -> Iterable[dict[str, Any]]:
    rank = rank_of(attempt.name)
    for line in attempt.usage:
        at = _micro(max(0.0, line.at - origin))
        values: dict[str, float | None] = {
            "GPU use, percent": line.gpu,
            "GPU memory, bytes": line.gpu_mem,
            "memory, bytes": line.rss,
            "cores": line.cpu,
        }
        for name, value in values.items():
            if value is not None:
                label = f"rank {rank}: {name}"
                yield {"ph": "C", "name": label, "ts": at, "pid": process, "args": {"now": value}}


def _micro(seconds: float) -> float:
    """Microseconds, to the nanosecond."""
    return round(seconds * 1e6, 3)
