"""Running tasks: how many go into a call, and what is done with a call that raised.

A batch that raises is split until the task that is to blame is alone: the other tasks complete, and
exactly the bad ones fail. A batch that does not fit into memory is split too, and later ones are
smaller for a while (see `batch_size`). A single task for which memory ran out is run once more,
alone: nothing is being loaded or kept for other tasks, no other process of ours runs calls on its
device (see `turns`), and all memory that nobody uses was given back. If it does not fit then it
fails, as `gpu_oom` or `host_oom`.

A job without batches is called with one task after the other, in stretches: many calls, if they are
short, before the work loop looks around again. Called by the work loop.
"""

from __future__ import annotations

from collections.abc import Iterable
from time import perf_counter
from typing import assert_never

from gpuspool.spool.records import TaskLine
from gpuspool.worker.batch_size import BatchSize
from gpuspool.worker.call import Call, CallEnd, OutOfMemory
from gpuspool.worker.clocks import Span
from gpuspool.worker.devices import release_memory
from gpuspool.worker.drain import Drain
from gpuspool.worker.job import LoadedJob
from gpuspool.worker.say import say
from gpuspool.worker.turns import Turns

# A stretch is over after so many calls, which bounds how many lines of the journal may wait, and
# how much of a claim is in hand.
MOST_CALLS = 256
# A stretch is over after so many seconds: so often the work loop looks for a drain and the like,
# and so much work is lost at most if the process is killed.
STRETCH_S = 0.01


class Executor:
    """Runs the tasks of one attempt."""

    def __init__(
        self, job: LoadedJob, call: Call, drain: Drain, turns: Turns | None = None
    ) -> None:
        """turns: this process's place on its devices, None where it has none."""
        self.batch_cost = job.batch_cost
        self.recycle = job.recycle
        self._size = BatchSize(job.batch_size or 1)
        self.call = call
        self._drain = drain
        self._turns = turns
        self._prefetcher = call.prefetcher
        # How many batches ahead inputs are loaded.
        self._ahead = 0 if self._prefetcher is None else job.prefetch
        # Whether this job is called in stretches. Where inputs are loaded each call is planned for.
        self.is_stretching = job.batch_size is None and self._prefetcher is None
        # How many calls the next stretch may well come to.
        self._calls = 1
        # How many calls with several tasks raised, and were split.
        self.splits = 0

    @property
    def batch_size(self) -> int:
        """How many tasks a batch may have now."""
        return self._size.current

    @property
    def oom_halvings(self) -> int:
        """How often tasks did not fit into memory together."""
        return self._size.refusals

    @property
    def wanted(self) -> int:
        """How many tasks `run` takes at most: a batch, or those of a stretch."""
        if self.is_stretching:
            return self._calls
        return self.batch_size

    @property
    def window(self) -> int:
        """How many tasks behind those in hand may have their inputs loaded."""
        return self._ahead * self.batch_size

    def look_ahead(self, lines: Iterable[TaskLine]) -> None:
        """Begin to load the inputs of these tasks, which will be run in this order."""
        if self._prefetcher is not None:
            for line in lines:
                self._prefetcher.ask(line)

    def run(self, lines: list[TaskLine]) -> int:
        """Run these tasks, and settle each as soon as something is known about it.

        Returns how many were run, from the front: all of them, but perhaps not those at the end of
        a stretch. Where this process is at its end no further call is made. Raises OSError and
        Unusable where no task is to blame; what was not settled by then is not finished.
        """
        if self._turns is not None and not self._turns.enter(self._is_draining):
            return 0
        if self.is_stretching:
            return self._run_stretch(lines)
        self._run_batch(lines)
        return len(lines)

    def _is_draining(self) -> bool:
        return self._drain.is_requested

    def rest(self) -> None:
        """There is nothing to run for a while: keep nothing from others on the device."""
        if self._turns is not None:
            self._turns.leave()

    def _run_stretch(self, lines: list[TaskLine]) -> int:
        began = perf_counter()
        until = began + STRETCH_S
        ran = 0
        for line in lines:
            try:
                ended = self.call.make_single(line)
            except OutOfMemory:
                self._run_alone(line, self.call.span)
                ended = perf_counter()
            ran += 1
            if ended >= until or self._drain.is_requested:
                break
        self._calls = min(MOST_CALLS, 1 + int(ran * STRETCH_S / (perf_counter() - began)))
        return ran

    def _tell_of_split(self, lines: list[TaskLine]) -> None:
        """Count a batch that raised and is split; tell of the first, here and in the journal."""
        if not self.splits:
            error = self.call.last_error
            assert error is not None
            say(
                f"gpuspool: a batch of {len(lines)} tasks raised, and is split until the task that "
                f"raises is alone: {error.type}: {error.message}"
            )
            self.call.note_split(lines, error)
        self.splits += 1

    # The parts of a batch come in order, each half right after the first one. So verdicts come as
    # soon as they can, and what `BatchSize` learns of one part is of use for the next.
    def _run_batch(self, lines: list[TaskLine]) -> None:
        size_before = self._size.current
        self._size.begin()
        parts = [lines]
        while parts and not self.call.is_over:
            part = parts.pop()
            if len(part) > self._size.part:
                parts.extend(reversed(_cut(part, self._size.part)))
                continue
            end, left = self.call.make(part)
            match end:
                case CallEnd.SETTLED:
                    self._size.ran(len(part))
                case CallEnd.RAISED if self._drain.is_requested:
                    # It may have raised for the stop. What is in hand still is given back.
                    break
                case CallEnd.RAISED:
                    self._tell_of_split(part)
                    # Not of `part`: a task whose load raised is settled already.
                    parts.extend(reversed(_halves(left)))
                case CallEnd.OUT_OF_MEMORY:
                    parts.extend(reversed(self._make_room(part, left)))
                case _:
                    assert_never(end)
        self._size.end(len(lines))
        if self._size.current < size_before:
            say(f"gpuspool: from now on at most {self._size.current} tasks at once")

    def _make_room(self, part: list[TaskLine], left: list[TaskLine]) -> list[list[TaskLine]]:
        """Memory ran out for some tasks of a call: give back what can be. Returns what to run next.

        A single task is run here, alone. So are some of several tasks, where the others have their
        verdicts: their own loads or results said that they did not fit.
        """
        if len(left) == 1 or len(left) < len(part):
            self._size.refused(1)
            span = self.call.span
            for line in left:
                self._run_alone(line, span)
            return []
        say(f"gpuspool: out of memory with {len(left)} tasks at once; they are run in parts")
        self._size.refused(len(left))
        release_memory()
        return _halves(left)

    def _run_alone(self, line: TaskLine, span: Span) -> None:
        """Run a task for which memory ran out once more, with nothing beside it.

        span: of the call in which it ran out.
        """
        say(f"gpuspool: out of memory with task {line.key}; it is run once more, alone")
        if self._prefetcher is not None:
            self._prefetcher.drop()
        release_memory()
        if self._turns is None:
            self.call.make([line], is_alone=True)
            return
        self.call.pause(line, span)
        try:
            # Where a drain is asked for meanwhile the task stays without a verdict.
            if self._turns.begin(self._is_draining):
                self.call.make([line], is_alone=True)
        finally:
            self._turns.end()
        self._turns.enter(self._is_draining)

    def stop_loading(self) -> None:
        """Load nothing more."""
        if self._prefetcher is not None:
            self._prefetcher.close()

    def close(self) -> None:
        """Run and load nothing more."""
        self.stop_loading()
        if self._turns is not None:
            self._turns.close()


def _halves(lines: list[TaskLine]) -> list[list[TaskLine]]:
    return _cut(lines, (len(lines) + 1) // 2)


def _cut(lines: list[TaskLine], size: int) -> list[list[TaskLine]]:
    """The tasks in parts of so many, in order."""
    return [lines[start : start + size] for start in range(0, len(lines), size)]
