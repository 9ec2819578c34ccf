"""The clocks of one attempt: where its time went so far, at any moment.

The main thread owns them, it alone starts and stops them. The beat's thread reads them too, and may
do so in a call that has lasted for hours. There is no lock, since a whole empty task costs less
than two µs. Instead a `Stopwatch` is changed in such an order that whoever reads between any two of
the steps reads a true time.
"""

from __future__ import annotations

from time import perf_counter

import msgspec

from gpuspool.spool.identity import own_age_s


class Span(msgspec.Struct, frozen=True):
    """When a call began, in Unix seconds, and each of its tasks' share of the seconds it took."""

    start: float
    seconds: float


class Stopwatch:
    """Adds up spans of time on one clock, in seconds.

    total_s: that of all spans that are over. zero: while a span lasts, the clock less the total, as
    if all spans were one that began then; else None.

    `call` does by itself what `start` and `stop` do, where a function call would cost too much.
    """

    __slots__ = ("total_s", "zero")

    def __init__(self) -> None:
        self.total_s = 0.0
        self.zero: float | None = None

    def start(self, now: float) -> None:
        """A span begins."""
        self.zero = now - self.total_s

    def stop(self, now: float) -> None:
        """The span is over; nothing happens where none lasts."""
        if self.zero is None:
            return
        # In this order: up to the second step a reader goes by `zero`, which is true throughout.
        self.total_s = now - self.zero
        self.zero = None

    def read(self, now: float) -> float:
        """How long all spans took, that which lasts up to now. From any thread."""
        zero = self.zero
        if zero is None:
            return self.total_s
        return now - zero


class Spent(msgspec.Struct, frozen=True):
    """The seconds since the process began: in calls of the job, and all others by cause."""

    seconds: float
    busy_s: float
    idle_s: dict[str, float]


class Clocks:
    """Where the time of this process goes.

    runs: in running tasks, with their inputs and outputs. calls: in calls of the job. inputs: in
    waiting for inputs.
    """

    def __init__(self) -> None:
        self.runs = Stopwatch()
        self.calls = Stopwatch()
        self.inputs = Stopwatch()
        self._began = perf_counter() - own_age_s()
        # When the job began to be loaded, when it was, and when its `close` was called; None before
        # that.
        self._loads_at: float | None = None
        self._loaded_at: float | None = None
        self._closes_at: float | None = None

    def begin_load(self) -> None:
        """The job is loaded from now on."""
        self._loads_at = perf_counter()

    def end_load(self) -> None:
        """The job is loaded, or has failed to."""
        self._loaded_at = perf_counter()

    def begin_close(self) -> None:
        """The job's `close` is called now, and the attempt ends after it."""
        self._closes_at = perf_counter()

    def spent(self) -> Spent:
        """Where the time went up to now. From any thread."""
        now = perf_counter()
        loads_at = _at(self._loads_at, now)
        loaded_at = _at(self._loaded_at, now)
        closes_at = _at(self._closes_at, now)
        runs_s = self.runs.read(now)
        busy_s = self.calls.read(now)
        inputs_s = self.inputs.read(now)
        idle_s = {
            "start": loads_at - self._began,
            "load": loaded_at - loads_at,
            "inputs": inputs_s,
            "publish": runs_s - busy_s - inputs_s,
        }
        if self._closes_at is not None:
            idle_s["close"] = now - closes_at
        seconds = now - self._began
        # What is left: claiming, waiting for others and for retries.
        idle_s["work"] = seconds - busy_s - sum(idle_s.values())
        # The main thread goes on while this one reads, so what is the rest may be a µs below 0.
        rounded = {cause: max(0.0, round(spent_s, 3)) for cause, spent_s in idle_s.items()}
        return Spent(round(seconds, 3), round(busy_s, 3), rounded)


def _at(moment: float | None, now: float) -> float:
    """When something happened; now, where it has not yet."""
    return now if moment is None else moment
