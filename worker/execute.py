"""Running tasks: one call of user code, and what becomes of each task in it.

A batch that raises is split until the bad task is alone. An out-of-memory error of the device halves the batch size for
the rest of the attempt and tries again; a task that does not fit alone fails as gpu_oom. Outputs are published
before anything is said about a task. Where the job has a `load`, each call begins with waiting for its inputs; the
limit of its time and the line that says what is in hand count from there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from spool.records import NO_JSON, Error, JournalLine, TaskLine
from worker.ahead import Inputs, threads_for
from worker.context import Context, Task
from worker.devices import is_device_oom, release_memory
from worker.job import LoadedJob
from worker.outputs import OutputMissing, Outputs
from worker.results import ResultError, call_user_code, to_error, to_json
from worker.say import say
from worker.trouble import Unusable, raise_trouble

LOG_FROM_S = 0.01  # shorter tasks that complete get no `log` range, and the log is looked at no more often than this


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
        self.call_s = self.inputs_s = 0.0  # in the job's calls; waiting for its inputs
        self._context = context
        self.outputs = outputs
        self._seed = run_seed
        self._inputs: Inputs | None = None
        if job.load is not None:
            self._inputs = Inputs(job.load, self._task, threads_for(job.batch_size, job.prefetch))
        self._log_end, self._looked_at = 0, -LOG_FROM_S

    def run(self, lines: list[TaskLine]) -> Iterator[tuple[TaskLine, JournalLine]]:
        """Every task of a batch with the journal line that it earned, as soon as it did.

        Raises OSError and Unusable where no task is to blame; what was not yielded is not finished.
        """
        self._before_call(lines)
        if time.perf_counter() - self._looked_at >= LOG_FROM_S:
            self._look_at_log()
        if self._inputs is None:
            tasks = [self._task(line) for line in lines]
        else:
            lines, tasks, refused = self._take_inputs(self._inputs, lines)
            yield from refused
            if not lines:
                return
        start, clock = time.time(), time.perf_counter()
        results, raised = self._call(tasks)
        call_s = time.perf_counter() - clock
        self.call_s += call_s
        if self.outputs.trouble is not None:
            self.outputs.discard(task.index for task in tasks)
            raise self.outputs.trouble
        for error in results if raised is None else (raised,):
            if isinstance(error, BaseException):
                self._refuse_trouble(error, tasks)
        if raised is not None:
            self.outputs.discard(task.index for task in tasks)
            is_oom, first = is_device_oom(raised), to_error(raised)
            del raised, error, tasks  # their frames hold the batch's tensors
            if len(lines) > 1:
                yield from self._run_smaller(lines, is_oom)
                return
            outcomes: list[msgspec.Raw | Error] = [first]
        else:
            outcomes = [self._outcome(result) for result in results]
        yield from self._settle(lines, outcomes, start, call_s / len(lines))

    def _look_at_log(self) -> int:
        self._log_end, self._looked_at = os.fstat(1).st_size, time.perf_counter()
        return self._log_end

    @property
    def window(self) -> int:
        """How many tasks behind the batch in hand may have their inputs loaded."""
        return 0 if self._inputs is None else self.job.prefetch * self.batch_size

    def look_ahead(self, lines: Iterable[TaskLine]) -> None:
        """Begin to load the inputs of these tasks, which will be run in this order."""
        if self._inputs is not None:
            for line in lines:
                self._inputs.ask(line)

    def loading(self, lines: list[TaskLine]) -> list[int]:
        """The tasks, but for these, whose inputs are being loaded."""
        tasks = [] if self._inputs is None else self._inputs.on_their_way()
        return [task for task in tasks if task not in {line.task for line in lines}]

    def close(self) -> None:
        if self._inputs is not None:
            self._inputs.close()

    def _take_inputs(
        self, inputs: Inputs, lines: list[TaskLine]
    ) -> tuple[list[TaskLine], list[Task], Iterator[tuple[TaskLine, JournalLine]]]:
        """(lines to run, their tasks with inputs, the verdicts of those whose load raised)."""
        start, clock = time.time(), time.perf_counter()
        taken = [(line, *inputs.take(line)) for line in lines]
        wait_s = time.perf_counter() - clock
        self.inputs_s += wait_s
        failed: list[TaskLine] = []
        errors: list[msgspec.Raw | Error] = []
        for line, task, raised in taken:
            if raised is not None:
                self._refuse_trouble(raised, [task])
                failed.append(line)
                errors.append(to_error(raised))
        good = [(line, task) for line, task, raised in taken if raised is None]
        verdicts = self._settle(failed, errors, start, wait_s / len(lines))
        return [line for line, _ in good], [task for _, task in good], verdicts

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
        self, lines: list[TaskLine], outcomes: list[msgspec.Raw | Error], start: float, seconds: float
    ) -> Iterator[tuple[TaskLine, JournalLine]]:
        """Publish the outputs of what went well, drop the others, and word the lines."""
        published = self._publish(lines, outcomes) if self.outputs.are_asked else {}
        log = None
        if seconds >= LOG_FROM_S or Error in map(type, outcomes):
            log = (self._log_end, self._look_at_log())
        took = int(seconds * 1e6) / 1e6  # a fifth of what round() costs
        for line, outcome in zip(lines, outcomes, strict=True):
            error = outcome if isinstance(outcome, Error) else None
            yield (
                line,
                JournalLine(
                    task=line.task,
                    round=line.round,
                    state="complete" if error is None else "failed",
                    start=start,
                    seconds=took,
                    result=NO_JSON if isinstance(outcome, Error) else outcome,
                    error=error,
                    outputs=published.get(line.task, []),
                    log=log if error is not None or seconds >= LOG_FROM_S else None,
                ),
            )

    def _publish(self, lines: list[TaskLine], outcomes: list[msgspec.Raw | Error]) -> dict[int, list[tuple[str, int]]]:
        """What each task wrote; a task that wrote nothing where it said that it would has failed, in `outcomes`."""
        self.outputs.discard(
            line.task for line, outcome in zip(lines, outcomes, strict=True) if isinstance(outcome, Error)
        )
        published: dict[int, list[tuple[str, int]]] = {}
        written = self.outputs.publish(line.task for line in lines)
        for place, line in enumerate(lines):
            found = written.get(line.task, [])
            if isinstance(found, OutputMissing):
                outcomes[place] = to_error(found)
            else:
                published[line.task] = found
        return published
