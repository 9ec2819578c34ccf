"""Running tasks: one call of user code, and what becomes of each task in it.

A batch that raises is split until the bad task is alone. An out-of-memory error of the device halves the batch size for
the rest of the attempt and tries again; a task that does not fit alone fails as gpu_oom. Outputs are published
before anything is said about a task.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from spool.records import NO_JSON, Error, JournalLine, TaskLine
from worker.context import Context, Task
from worker.devices import is_device_oom, release_memory
from worker.job import LoadedJob
from worker.outputs import OutputMissing, Outputs
from worker.results import ResultError, to_error, to_json
from worker.say import say
from worker.trouble import Unusable, raise_trouble

LOG_FROM_S = 0.01  # shorter tasks that complete get no `log` range: their lines stay short


def call_user_code(function: Callable[..., Any], *args: Any) -> tuple[Any, BaseException | None]:
    """The one place where anything may be raised: (value, None) or (None, what was raised)."""
    try:
        return function(*args), None
    except BaseException as error:  # noqa: BLE001 - user code may raise anything; it is published
        return None, error


def _log_size() -> int:
    return os.fstat(1).st_size


class Executor:
    """Runs batches of one attempt's job."""

    def __init__(
        self,
        job: LoadedJob,
        context: Context,
        outputs: Outputs,
        run_seed: int,
        before_call: Callable[[list[TaskLine]], None] = lambda _: None,
    ) -> None:
        self.job = job
        self._before_call = before_call
        self.batch_size = job.batch_size or 1
        self.oom_halvings = 0
        self._context = context
        self.outputs = outputs
        self._seed = run_seed

    def run(self, lines: list[TaskLine]) -> Iterator[tuple[TaskLine, JournalLine]]:
        """Every task of a batch with the journal line that it earned, as soon as it did.

        Raises OSError and Unusable where no task is to blame; what was not yielded is not finished.
        """
        tasks = [self._task(line) for line in lines]
        self._before_call(lines)
        start, clock, log_from = time.time(), time.perf_counter(), _log_size()
        results, raised = self._call(tasks)
        seconds = (time.perf_counter() - clock) / len(lines)
        if self.outputs.trouble is not None:
            self.outputs.discard(task.index for task in tasks)
            raise self.outputs.trouble
        for error in results if raised is None else (raised,):
            if isinstance(error, BaseException):
                self._refuse_trouble(error, tasks)
        if raised is not None:
            self.outputs.discard(task.index for task in tasks)
            is_oom, first = is_device_oom(raised), to_error(raised)
            del raised, error  # their frames hold the batch's tensors
            if len(lines) > 1:
                yield from self._run_smaller(lines, is_oom)
                return
            outcomes: list[msgspec.Raw | Error] = [first]
        else:
            outcomes = [self._outcome(result) for result in results]
        log = (log_from, _log_size())
        yield from self._settle(lines, outcomes, start, seconds, log)

    def _refuse_trouble(self, raised: BaseException, tasks: list[Task]) -> None:
        """Raise where no task is to blame; what was written so far goes, which on a full disk makes room to say so."""
        try:
            raise_trouble(raised, self.outputs.folders(task.index for task in tasks))
        except (OSError, Unusable):
            self.outputs.discard(task.index for task in tasks)
            raise

    def _task(self, line: TaskLine) -> Task:
        payload = msgspec.json.decode(line.payload)
        return Task(index=line.task, key=line.key, payload=payload, cost=line.cost, run_seed=self._seed)

    def _call(self, tasks: list[Task]) -> tuple[list[Any], BaseException | None]:
        if self.job.batch_size is None:
            result, raised = call_user_code(self.job.call, tasks[0], self._context)
            return [result], raised
        results, raised = call_user_code(lambda: list(self.job.call(tasks, self._context)))
        if raised is None and len(results) != len(tasks):
            raised = ResultError(
                f"the job returned {len(results)} results for {len(tasks)} tasks; it must be one each, in order"
            )
        return results, raised

    def _run_smaller(self, lines: list[TaskLine], is_oom: bool) -> Iterator[tuple[TaskLine, JournalLine]]:
        half = (len(lines) + 1) // 2
        if is_oom:
            self.batch_size = min(self.batch_size, half)
            self.oom_halvings += 1
            release_memory()
            say(f"gpuspool: out of device memory with {len(lines)} tasks; from now on at most {half} at once")
        for part in (lines[:half], lines[half:]):
            yield from self.run(part)

    def _outcome(self, result: Any) -> msgspec.Raw | Error:
        if isinstance(result, BaseException):
            return to_error(result)
        encoded, raised = call_user_code(to_json, result)
        return encoded if raised is None else to_error(raised)

    def _settle(
        self,
        lines: list[TaskLine],
        outcomes: list[msgspec.Raw | Error],
        start: float,
        seconds: float,
        log: tuple[int, int],
    ) -> Iterator[tuple[TaskLine, JournalLine]]:
        """Publish the outputs of what went well, drop the others, and word the lines."""
        failed = [line.task for line, outcome in zip(lines, outcomes, strict=True) if isinstance(outcome, Error)]
        self.outputs.discard(failed)
        published = self.outputs.publish(line.task for line in lines)
        for line, outcome in zip(lines, outcomes, strict=True):
            written = published.get(line.task, [])
            if isinstance(written, OutputMissing):
                outcome, written = to_error(written), []
            error = outcome if isinstance(outcome, Error) else None
            yield (
                line,
                JournalLine(
                    task=line.task,
                    round=line.round,
                    state="complete" if error is None else "failed",
                    start=start,
                    seconds=round(seconds, 6),
                    result=NO_JSON if isinstance(outcome, Error) else outcome,
                    error=error,
                    outputs=written,
                    log=log if error is not None or seconds >= LOG_FROM_S else None,
                ),
            )
