"""Running tasks: how many go into a call, and what is done with a call that raised.

A batch that raises is split until the task that is to blame is alone: the other tasks complete, and
exactly the bad ones fail. A batch that does not fit into the memory of its device is split too, and
the batch size stays halved for the rest of the attempt; a task that does not fit alone fails as
`gpu_oom`.

A job without batches is called with one task after the other, in stretches: many calls, if they are
short, before the work loop looks around again. Called by the work loop.
"""

from __future__ import annotations

from collections.abc import Iterable
from time import perf_counter
from typing import assert_never

from gpuspool.spool.records import TaskLine
from gpuspool.worker.call import Call, CallEnd
from gpuspool.worker.devices import release_memory
from gpuspool.worker.drain import Drain
from gpuspool.worker.job import LoadedJob
from gpuspool.worker.say import say

# A stretch is over after so many calls, which bounds how many lines of the journal may wait, and
# how much of a claim is in hand.
MOST_CALLS = 256
# A stretch is over after so many seconds: so often the work loop looks for a drain and the like,
# and so much work is lost at most if the process is killed.
STRETCH_S = 0.01


class Executor:
    """Runs the tasks of one attempt."""

    def __init__(self, job: LoadedJob, call: Call, drain: Drain) -> None:
        self.batch_size = job.batch_size or 1
        self.batch_cost = job.batch_cost
        self.oom_halvings = 0
        self.call = call
        self._drain = drain
        self._prefetcher = call.prefetcher
        # How many batches ahead inputs are loaded.
        self._ahead = 0 if self._prefetcher is None else job.prefetch
        # Whether this job is called in stretches. Where inputs are loaded each call is planned for.
        self.is_stretching = job.batch_size is None and self._prefetcher is None
        # How many calls the next stretch may well come to.
        self._calls = 1

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
        a stretch. Raises OSError and Unusable where no task is to blame; what was not settled by
        then is not finished.
        """
        if self.is_stretching:
            return self._run_stretch(lines)
        self._run_batch(lines)
        return len(lines)

    def _run_stretch(self, lines: list[TaskLine]) -> int:
        began = perf_counter()
        until = began + STRETCH_S
        ran = 0
        for line in lines:
            ended = self.call.make_single(line)
            ran += 1
            if ended >= until or self._drain.is_requested:
                break
        self._calls = min(MOST_CALLS, 1 + int(ran * STRETCH_S / (perf_counter() - began)))
        return ran

    def _run_batch(self, lines: list[TaskLine]) -> None:
        end, left = self.call.make(lines)
        # Not of `lines`: a task whose load raised has its verdict already.
        half = (len(left) + 1) // 2
        match end:
            case CallEnd.SETTLED:
                return
            case CallEnd.RAISED:
                pass
            case CallEnd.OUT_OF_MEMORY:
                self._shrink(len(left), half)
            case _:
                assert_never(end)
        self._run_batch(left[:half])
        self._run_batch(left[half:])

    def _shrink(self, tasks: int, half: int) -> None:
        """A batch of so many tasks did not fit: from now on no batch is larger than half of it."""
        self.batch_size = min(self.batch_size, half)
        self.oom_halvings += 1
        release_memory()
        say(
            f"gpuspool: out of device memory with {tasks} tasks; from now on at most {half} at once"
        )

    def close(self) -> None:
        """Load nothing more."""
        if self._prefetcher is not None:
            self._prefetcher.close()
