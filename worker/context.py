"""What a job sees of gpuspool: `Task` and `Context`. Users import both for annotations."""

from __future__ import annotations

import hashlib
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec


class Task(msgspec.Struct, frozen=True, weakref=True):
    """One unit of work.

    index: its place in the input order, 0..N-1. key: its name, unique in the run. payload: any JSON
    value; for file inputs `{"path": …}`. cost: what it was said to cost, in any unit (bytes for
    file inputs). loaded: what the job's `load` returned for it, where the job has one.
    """

    index: int
    key: str
    payload: Any
    cost: float
    run_seed: int = 0
    loaded: Any = None

    def __repr__(self) -> str:
        return (
            f"Task(index={self.index}, key={self.key!r}, payload={self.payload!r}, "
            f"cost={self.cost})"
        )

    @property
    def path(self) -> Path:
        """The input file. Raises AttributeError for a task that has none."""
        if isinstance(self.payload, dict):
            path = self.payload.get("path")
            if isinstance(path, str):
                return Path(path)
        raise AttributeError(f"task {self.key} has no path: its payload is {self.payload!r:.100}")

    @property
    def seed(self) -> int:
        """A seed for random numbers, from 0 to 2**32 - 1.

        numpy and transformers take no larger one. It depends on the run's seed and on the index
        alone, not on who runs the task or when.
        """
        digest = hashlib.sha256(f"{self.run_seed}:{self.index}".encode()).digest()
        return int.from_bytes(digest[:4], "big")


class NotDone(Exception):
    """Raised by a job: this task is not finished, and needs another call.

    It gets no verdict, and nobody is blamed. It goes back to the queue; while the run drains, to
    the next start. Keep what was done so far in `ctx.scratch(task)`. A command says the same by
    exit status 75.
    """


class Restart(Exception):
    """Raised by a job: this process is of no use any more, and a fresh one shall go on.

    The tasks of the call get no verdict and go back to the queue, as with `NotDone`, and nobody is
    blamed. In a process that has finished nothing it is a failure like any other exception, and so
    it is when the same task asks for the fourth time.
    """


class Context(msgspec.Struct, frozen=True, weakref=True):
    """The worker that a job runs in.

    rank: a number that no other live worker of the run has. world_size: how many workers the
    process runs that started this one; where several hosts work on one run, `rank` may be larger.
    local_rank: 0..world_size-1, the number of this worker among those. attempt: the name of this
    process in the spool, `rank-0003.a01`. device: "cuda:0", or "cpu" for a CPU rank. args: what
    `--arg` gave.
    """

    rank: int
    world_size: int
    attempt: str
    device: str
    args: Mapping[str, Any]
    _output: Callable[[Task, str], Path]
    _is_draining: Callable[[], bool]
    _scratch: Callable[[Task], Path]
    local_rank: int = 0

    def __repr__(self) -> str:
        return (
            f"Context(rank={self.rank}, local_rank={self.local_rank}, "
            f"world_size={self.world_size}, attempt={self.attempt!r}, "
            f"device={self.device!r}, args={self.args!r})"
        )

    def output(self, task: Task, suffix: str = "") -> Path:
        """A path to write one output of this task to; it ends in `suffix` and its folder exists.

        Write a file or make a folder there. When the task completes, it becomes OUT/<key><suffix>.
        A path that was asked for and not written fails the task. To be asked for in the call that
        got the task, and written before that call returns. Raises ValueError for a suffix with a
        slash, TypeError where the first argument is not a task, and OutputError where the task is
        not in hand or its output cannot be made.
        """
        if not isinstance(task, Task):
            raise TypeError(
                f"ctx.output takes a task, and a suffix after it, as in ctx.output(task, '.npy'); "
                f"its first argument is {reprlib.repr(task)}"
            )
        return self._output(task, suffix)

    def scratch(self, task: Task) -> Path:
        """A folder of this task's own, which stays from attempt to attempt until it completes.

        For a task that takes longer than a run may last: it saves there what it has, raises
        `NotDone` when the worker drains, and goes on from there in its next call, in whatever
        process that is. Raises TypeError where the argument is not a task, and OSError.
        """
        if not isinstance(task, Task):
            raise TypeError(f"ctx.scratch takes a task; this is {reprlib.repr(task)}")
        return self._scratch(task)

    def is_draining(self) -> bool:
        """Whether this worker was told to stop soon.

        Whatever a task returns makes it complete: one that is not finished raises `NotDone`.
        """
        return self._is_draining()
