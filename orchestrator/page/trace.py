"""A run as a trace that Perfetto and chrome://tracing open: JSON of Chrome's trace events.

A host is a process there and a rank a thread. On its track lie the attempts of the rank, and on
these the calls; counters tell what each rank used. Times are microseconds since the first process
of the run began, by the clock: unlike on the page, nothing is cut out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from gpuspool.orchestrator.page.calls import CallOutcome
from gpuspool.orchestrator.page.lives import Attempt
from gpuspool.orchestrator.page.reading import Reading
from gpuspool.orchestrator.page.shown import told
from gpuspool.orchestrator.page.timeline import why_of
from gpuspool.orchestrator.report.keys import read_keys
from gpuspool.spool.layout import rank_of

# So many events are written at once.
EVENTS_AT_ONCE = 4096

# The numbers of tracks that belong to no rank; no run has so many ranks.
OWN_TRACKS = 1_000_000_000

_encoder = msgspec.json.Encoder()


def trace_pieces(reading: Reading) -> Iterator[bytes]:
    """The trace, piece by piece. Raises OSError."""
    keys = read_keys(reading.view)
    yield b'{"displayTimeUnit":"ms","traceEvents":[\n'
    pending: list[bytes] = []
    is_first = True
    for event in _events(reading, keys):
        pending.append(_encoder.encode(event))
        if len(pending) == EVENTS_AT_ONCE:
            yield (b"" if is_first else b",\n") + b",\n".join(pending)
            pending.clear()
            is_first = False
    if pending:
        yield (b"" if is_first else b",\n") + b",\n".join(pending)
    yield b"\n]}\n"


def _events(reading: Reading, keys: list[str | None]) -> Iterator[dict[str, Any]]:
    hosts: dict[str, int] = {}
    # By process and thread: when what lies on its track has ended.
    tracks: dict[tuple[int, int], float] = {}
    for attempt in reading.attempts:
        host = reading.view.host_of(attempt.name)
        if host not in hosts:
            hosts[host] = len(hosts) + 1
            yield _name("process_name", hosts[host], 0, told(host) or "a host")
        process = hosts[host]
        thread = rank_of(attempt.name)
        label = f"rank {thread}"
        # Of an attempt that was found dead late, the next one may have begun before. Two that
        # overlap have tracks of their own, since events of one track must lie within each other.
        if attempt.began < tracks.get((process, thread), 0.0):
            thread = OWN_TRACKS + len(tracks)
            label = attempt.name
        if (process, thread) not in tracks:
            yield _name("thread_name", process, thread, label)
        ended = tracks.get((process, thread), 0.0)
        tracks[process, thread] = max(ended, attempt.ended)
        yield from _of_attempt(reading, attempt, process, thread, keys)


def _name(what: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": process, "tid": thread, "args": {"name": name}}


def _of_attempt(
    reading: Reading, attempt: Attempt, process: int, thread: int, keys: list[str | None]
) -> Iterator[dict[str, Any]]:
    origin = reading.axis.origin
    began = _micro(attempt.began - origin)
    ended = max(began, _micro(attempt.ended - origin))
    yield {
        "ph": "X",
        "name": attempt.name,
        "cat": "attempt",
        "ts": began,
        "dur": round(ended - began, 3),
        "pid": process,
        "tid": thread,
        "args": {"ended": told(why_of(attempt))},
    }
    words = [outcome.name.lower().replace("_", " ") for outcome in CallOutcome]
    last = began
    for task, begin, duration, outcome in attempt.calls.rows():
        # What is rounded must neither reach over the call before nor over the attempt.
        start = min(ended, max(last, _micro(begin - origin)))
        last = min(ended, max(start, _micro(begin - origin + duration)))
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
    for told_at, line in attempt.usage.lines():
        at = _micro(max(0.0, told_at - origin))
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
