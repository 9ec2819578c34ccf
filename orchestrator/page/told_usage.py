"""What an attempt told in usage/, with the moments put right, read again by whoever needs it.

An attempt that ran for a month has told forty thousand lines. They are passed over and not held, so
that what a page needs of memory does not grow with the time that a run took.

Nothing proves what stands in usage/, which has no checksums. A line with a figure that nobody can
have is passed over as a whole.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from gpuspool.orchestrator.page.calls import LATEST, LONGEST_PAUSE_S, LONGEST_S, ROUNDING_S, Calls
from gpuspool.spool.layout import Layout
from gpuspool.spool.records import Usage
from gpuspool.spool.usage import each_usage

# No process holds so many bytes or keeps so many cores busy.
MOST_BYTES = 2**63
MOST_CORES = 1e6


class ToldUsage:
    """The usage of one attempt. first, last: lines with the moments at which they were told."""

    def __init__(self, layout: Layout, calls: Calls) -> None:
        """Reads all lines once. Raises OSError."""
        self._layout = layout
        self._attempt = calls.attempt
        self._n_lines = 0
        # Where the clock was set between two lines, the first line after that, and its number.
        self._set: Usage | None = None
        self._set_number = 0
        first = last = None
        for line in self._possible():
            if last is not None and not -ROUNDING_S <= line.at - last.at <= LONGEST_PAUSE_S:
                self._set, self._set_number = line, self._n_lines
            first = first or line
            last = line
            self._n_lines += 1
        # And it may have been set after the last line, between two calls.
        self._moved_s = 0.0 if last is None else calls.moved_s(sane(last.busy_s))
        self.first = None if first is None else (self._moment(0, first), first)
        self.last = None if last is None else (self._moment(self._n_lines - 1, last), last)

    def lines(self) -> Iterator[tuple[float, Usage]]:
        """Each line with the moment at which it was told, in Unix seconds. Raises OSError."""
        for number, line in enumerate(itertools.islice(self._possible(), self._n_lines)):
            yield self._moment(number, line), line

    # What was told before a clock was set is told by how old the process was, which is by a clock
    # that nobody sets.
    def _moment(self, number: int, line: Usage) -> float:
        at = line.at
        if self._set is not None and number < self._set_number:
            at = self._set.at - max(0.0, age_s(self._set) - age_s(line))
        return at + self._moved_s

    def _possible(self) -> Iterator[Usage]:
        return filter(_is_possible, each_usage(self._layout, self._attempt))


def age_s(line: Usage) -> float:
    """How old a process was when it told this."""
    return sane(line.busy_s) + sum(map(sane, line.idle_s.values()))


def sane(seconds: float) -> float:
    """A duration that somebody told, 0 where nothing can take so long."""
    return seconds if 0.0 <= seconds < LONGEST_S else 0.0


def _is_possible(line: Usage) -> bool:
    """Whether a process can have used what a line says, at such a moment."""
    within = (
        (line.at, math.ulp(0.0), LATEST),
        (line.gpu, 0.0, 100.0),
        (line.gpu_mem, 0, MOST_BYTES),
        (line.gpu_mem_total, 0, MOST_BYTES),
        (line.rss, 0, MOST_BYTES),
        (line.cpu, 0.0, MOST_CORES),
    )
    return all(value is None or least <= value <= most for value, least, most in within)
