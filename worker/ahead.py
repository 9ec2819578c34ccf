"""Inputs that are loaded ahead: the job's `load(task)` runs in threads while the main thread is in
the job's call.

What is loaded ahead is what was asked for and not taken yet; who asks keeps that few. The main
thread takes what it needs next, waits for it, and loads itself what no thread has begun: so nothing
waits in a line, and without threads everything is loaded right before its call. The threads are
daemons, so that one that hangs keeps no process.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from typing import Any

import msgspec

from gpuspool.spool.records import TaskLine
from gpuspool.worker.context import Task
from gpuspool.worker.results import call_user_code

MIN_THREADS = 2  # loads wait for disks more often than for a core
UNBATCHED_THREADS = 4
END_S = 2.0  # how long `close` waits for loads that are under way


class _Load:
    """The input of one task, on its way or there."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.error: BaseException | None = None
        self.done = threading.Event()
        self._begun = threading.Lock()

    def run(self, load: Callable[[Task], Any]) -> None:
        """Load it, unless somebody else has begun to."""
        if self._begun.acquire(blocking=False):
            value, self.error = call_user_code(load, self.task)
            self.task = msgspec.structs.replace(self.task, loaded=value)
            self.done.set()


class Inputs:
    """The inputs of one attempt's tasks; `load` is the job's. All but the loading happens in the
    main thread.
    """

    def __init__(
        self, load: Callable[[Task], Any], task_of: Callable[[TaskLine], Task], threads: int
    ) -> None:
        self._load, self._task_of = load, task_of
        self._loads: dict[int, _Load] = {}
        self._queue: queue.SimpleQueue[_Load | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._serve, name=f"gpuspool-load-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def _serve(self) -> None:
        while (load := self._queue.get()) is not None:
            load.run(self._load)
            del load  # or it would be kept until the next one comes

    def ask(self, line: TaskLine) -> None:
        """Have the input of a task loaded, unless it was asked for before."""
        if line.task not in self._loads:
            load = self._loads[line.task] = _Load(self._task_of(line))
            self._queue.put(load)

    def on_their_way(self) -> list[int]:
        """The tasks that were asked for and whose load is not over."""
        return [task for task, load in self._loads.items() if not load.done.is_set()]

    def take(self, line: TaskLine) -> tuple[Task, BaseException | None]:
        """The task with its input, or with what its load raised."""
        load = self._loads.pop(line.task, None) or _Load(self._task_of(line))
        load.run(self._load)
        load.done.wait()
        return load.task, load.error

    def close(self) -> None:
        """Load nothing more. Loads that are under way are waited for a little: the interpreter ends
        better without.
        """
        self._load = lambda _: None
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(END_S / len(self._threads))


def threads_for(batch_size: int | None, prefetch: int) -> int:
    """One for each task of a batch, no more than this process has cores, and none where nothing is
    loaded ahead.
    """
    if not prefetch:
        return 0
    return max(MIN_THREADS, min(batch_size or UNBATCHED_THREADS, len(os.sched_getaffinity(0))))
