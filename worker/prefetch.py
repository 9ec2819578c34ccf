"""Inputs loaded ahead: the job's `load(task)` runs in threads while the main thread is in a call.

The executor asks for the inputs of the tasks that it will call next (`ask`), and takes each right
before its call (`take`). So what is loaded ahead is what was asked for and not yet taken, and
whoever asks keeps that few.

`take` loads the input itself where no thread has begun to. So no input waits behind others in the
queue, and without threads everything is loaded right before its call.

All but the loading happens in the main thread. Threads, not processes: what is loaded reaches the
call without a copy, and the libraries that read files and decode images let go of the interpreter's
lock. The threads are daemons, so that a load that hangs keeps no process alive. Decision 13 tells
what that means for the blame of a crash.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

import msgspec

from gpuspool.spool.cores import usable_cores
from gpuspool.spool.records import TaskLine
from gpuspool.worker.context import Task
from gpuspool.worker.results import call_user_code

# At least so many threads load, even on one core: loads wait for disks more often than for a core.
MIN_THREADS = 2
# So many threads load for a job without batches; with batches, one for each task of a batch.
UNBATCHED_THREADS = 4
# `close` waits so long in all for loads that are under way. The interpreter ends more cleanly if no
# thread is inside a library, but a load that hangs must not keep the process.
END_S = 2.0


class _Load:
    """The input of one task, on its way or there."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.error: BaseException | None = None
        self.is_over = threading.Event()
        # Held, for good, by the thread that loads.
        self._begun = threading.Lock()

    def run(self, load: Callable[[Task], Any]) -> None:
        """Load it, unless another thread has begun to."""
        if self._begun.acquire(blocking=False):
            value, self.error = call_user_code(load, self.task)
            self.task = msgspec.structs.replace(self.task, loaded=value)
            self.is_over.set()

    def take(self) -> tuple[Task, BaseException | None]:
        """The task with its input, and what its load raised, once that is over.

        Neither is kept here: the queue may know this object for as long as all threads are busy.
        """
        self.is_over.wait()
        taken = (self.task, self.error)
        self.task = msgspec.structs.replace(self.task, loaded=None)
        self.error = None
        return taken

    def drop(self) -> None:
        """See to it that it is not being loaded, nor will be."""
        if not self._begun.acquire(blocking=False):
            self.is_over.wait()


class Prefetcher:
    """The inputs of one attempt's tasks."""

    def __init__(
        self, load: Callable[[Task], Any], task_of: Callable[[TaskLine], Task], threads: int
    ) -> None:
        """load: the job's. threads: how many load ahead; with 0 nothing is."""
        self._load = load
        self._task_of = task_of
        # task -> its input, for each that was asked for and not taken
        self._loads: dict[int, _Load] = {}
        # None tells the thread that gets it to end.
        self._queue: queue.SimpleQueue[_Load | None] = queue.SimpleQueue()
        self._threads = []
        for number in range(threads):
            name = f"gpuspool-load-{number}"
            thread = threading.Thread(target=self._serve, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self) -> None:
        while True:
            load = self._queue.get()
            if load is None:
                return
            load.run(self._load)
            # Else this input would be kept until the next one comes.
            del load

    def ask(self, line: TaskLine) -> None:
        """Have the input of a task loaded, unless it was asked for before."""
        if line.task not in self._loads:
            load = _Load(self._task_of(line))
            self._loads[line.task] = load
            self._queue.put(load)

    def on_their_way(self) -> list[int]:
        """The tasks that were asked for and whose load is not over."""
        return [task for task, load in self._loads.items() if not load.is_over.is_set()]

    def take(self, line: TaskLine) -> tuple[Task, BaseException | None]:
        """Wait for the input of a task: (the task with its input, what its load raised or None)."""
        load = self._loads.pop(line.task, None)
        if load is None:
            load = _Load(self._task_of(line))
        load.run(self._load)
        return load.take()

    def drop(self) -> None:
        """Forget all that was asked for, once nothing is being loaded any more.

        For a call that needs all memory. What is forgotten is loaded when it is taken, or asked for
        again.
        """
        loads = list(self._loads.values())
        self._loads.clear()
        for load in loads:
            load.drop()

    def close(self) -> None:
        """Load nothing more, and wait a little for loads that are under way."""
        self._load = lambda _: None
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(END_S / len(self._threads))


def threads_for(batch_size: int | None, prefetch: int) -> int:
    """How many threads load ahead: one for each task of a batch, but no more than there are cores.

    Cores are those that this process may use. 0 where the job wants nothing loaded ahead.
    """
    if not prefetch:
        return 0
    wanted = min(batch_size or UNBATCHED_THREADS, usable_cores())
    return max(MIN_THREADS, wanted)
