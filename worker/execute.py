"""Running tasks: one call of user code, and what becomes of each task in it.

A batch that raises is split until the bad task is alone. An out-of-memory error of the device
halves the batch size for the rest of the attempt and tries again; a task that does not fit alone
fails as gpu_oom. Outputs are published before anything is said about a task. Where the job has a
`load`, each call begins with waiting for its inputs; the limit of its time and the line that says
what is in hand count from there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from time import perf_counter, time
from typing import Any

import msgspec

from gpuspool.spool.records import NO_JSON, Error, JournalLine, TaskLine
from gpuspool.spool.states import LineState
from gpuspool.worker.ahead import Inputs, threads_for
from gpuspool.worker.beat import Doing
from gpuspool.worker.context import Context, Task
from gpuspool.worker.devices import is_device_oom, release_memory
from gpuspool.worker.job import LoadedJob
from gpuspool.worker.outputs import OutputError, Outputs
from gpuspool.worker.results import ResultError, call_user_code, to_error, to_json
from gpuspool.worker.say import say
from gpuspool.worker.trouble import Unusable, raise_trouble

EACH = 256  # tasks that are called one after the other before this process looks around again,
LOOK_S = 0.01  # or for so long
_decode = msgspec.json.Decoder().decode
# shorter tasks that complete get no `log` range, and the log is looked at no more often than this
LOG_FROM_S = 0.01


class Executor:
    """Runs batches of one attempt's job."""

    def __init__(
        self,
        job: LoadedJob,
        context: Context,
        outputs: Outputs,
        run_seed: int,
        doing: Doing,
        announce: Callable[[list[TaskLine]], None],
        settle: Callable[[TaskLine, JournalLine], None],
    ) -> None:
        """`announce` gets the tasks of a call before it, where that is asked for; `settle` each
        task and its line.
        """
        self.job = job
        self._doing, self._announce, self._settle = doing, announce, settle
        self.is_announcing = False  # whether before every call, or only of careful tasks
        self.is_stopped = False  # no further call shall begin; set in signal handlers
        self.batch_size = job.batch_size or 1
        self.oom_halvings = 0
        self.call_s = self.inputs_s = 0.0  # in the job's calls; waiting for its inputs
        self._context = context
        self.outputs = outputs
        self._seed = run_seed
        self._inputs: Inputs | None = None
        if job.load is not None:
            self._inputs = Inputs(job.load, self._task, threads_for(job.batch_size, job.prefetch))
        self.is_each = job.batch_size is None and self._inputs is None
        self._each = 1  # tasks that are called one after the other next
        self._log_end, self._looked_at = 0, -LOG_FROM_S

    @property
    def most(self) -> int:
        """How many tasks `run` takes at once: a batch, or as many single ones as it may well come
        to.
        """
        return self._each if self.is_each else self.batch_size

    def run(self, lines: list[TaskLine]) -> int:
        """Run a batch, and settle each of its tasks as soon as something is known about it; of a
        job without batches each task in a call of its own, until LOOK_S have passed. Returns how
        many were run.

        Raises OSError and Unusable where no task is to blame; what was not settled is not finished.
        """
        if self.is_each:
            return self._run_each(lines)
        self._run_batch(lines)
        return len(lines)

    def _run_each(self, lines: list[TaskLine]) -> int:
        call, outputs, ran, began = self.job.call, self.outputs, 0, perf_counter()
        until = began + LOOK_S
        for line in lines:
            if self.is_announcing or line.careful:
                self._announce([line])
            task = self._task(line)
            start, clock = self._begin(line)
            result, raised = call_user_code(call, task, self._context)
            ended = perf_counter()
            seconds = ended - clock
            self.call_s += seconds
            if raised is not None or outputs.trouble is not None:
                outcome: msgspec.Raw | Error = self._failure(raised)
            else:
                outcome = NO_JSON if result is None else self._outcome(result)
            del task, result, raised  # they may hold tensors, which the next call needs room for
            if isinstance(outcome, Error) or outputs.asked or seconds >= LOG_FROM_S:
                self._finish([line], [outcome], start, seconds)
            else:
                self._conclude(line, outcome, start, seconds)
            ran += 1
            if ended >= until or self.is_stopped:
                break
        self._each = min(EACH, 1 + int(ran * LOOK_S / (perf_counter() - began)))
        return ran

    def _run_batch(self, lines: list[TaskLine]) -> None:
        if self.is_announcing or lines[0].careful:
            self._announce(lines)
        if self._inputs is None:
            tasks = list(map(self._task, lines))
        else:
            lines, tasks = self._take_inputs(self._inputs, lines)
            if not lines:
                return
        start, clock = self._begin(lines[0])
        results, raised = self._call(tasks)
        call_s = perf_counter() - clock
        self.call_s += call_s
        if raised is not None or self.outputs.trouble is not None:
            is_oom, failure = raised is not None and is_device_oom(raised), self._failure(raised)
            del raised, tasks  # their frames hold the batch's tensors
            if len(lines) > 1:
                return self._run_smaller(lines, is_oom)
            outcomes: list[msgspec.Raw | Error] = [failure]
        else:
            outcomes = list(map(self._outcome, results))
        return self._finish(lines, outcomes, start, call_s / len(lines))

    def _begin(self, first: TaskLine) -> tuple[float, float]:
        """Note that a call begins; returns (time of day, clock)."""
        start, clock = time(), perf_counter()
        self._doing.task, self._doing.task_since = first.task, start
        if clock - self._looked_at >= LOG_FROM_S:
            self._look_at_log()
        return start, clock

    def _failure(self, raised: BaseException | None) -> Error:
        """What a call raised, unless no task is to blame for it: then OSError or Unusable is
        raised.
        """
        if self.outputs.trouble is not None:
            self.outputs.discard()
            raise self.outputs.trouble
        assert raised is not None
        self._refuse_trouble(raised)
        self.outputs.discard()
        return to_error(raised)

    def _look_at_log(self) -> int:
        self._looked_at = perf_counter()
        with contextlib.suppress(OSError):  # the job closed its stdout
            self._log_end = os.fstat(1).st_size
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
    ) -> tuple[list[TaskLine], list[Task]]:
        """(lines to run, their tasks with inputs); those whose load raised are settled."""
        start, clock = time(), perf_counter()
        taken = [(line, *inputs.take(line)) for line in lines]
        wait_s = perf_counter() - clock
        self.inputs_s += wait_s
        failed: list[TaskLine] = []
        errors: list[msgspec.Raw | Error] = []
        for line, _, raised in taken:
            if raised is not None:
                self._refuse_trouble(raised)
                failed.append(line)
                errors.append(to_error(raised))
        good = [(line, task) for line, task, raised in taken if raised is None]
        self._finish(failed, errors, start, wait_s / len(lines))
        return [line for line, _ in good], [task for _, task in good]

    def _refuse_trouble(self, raised: BaseException) -> None:
        """Raise where no task is to blame; what was written so far goes, which on a full disk makes
        room to say so.
        """
        try:
            raise_trouble(raised, self.outputs.folders())
        except (OSError, Unusable):
            self.outputs.discard()
            raise

    def _task(self, line: TaskLine) -> Task:
        return Task(line.task, line.key, _decode(line.payload), line.cost, self._seed)

    def _call(self, tasks: list[Task]) -> tuple[list[Any], BaseException | None]:
        if self.job.batch_size is None:
            result, raised = call_user_code(self.job.call, tasks[0], self._context)
            return [result], raised
        results, raised = call_user_code(lambda: _in_order(self.job.call(tasks, self._context)))
        if raised is None and len(results) != len(tasks):
            raised = ResultError(
                f"the job returned {len(results)} results for {len(tasks)} tasks; it must be one each, in order"
            )
        return results, raised

    def _run_smaller(self, lines: list[TaskLine], is_oom: bool) -> None:
        half = (len(lines) + 1) // 2
        if is_oom:
            self.batch_size = min(self.batch_size, half)
            self.oom_halvings += 1
            release_memory()
            say(
                f"gpuspool: out of device memory with {len(lines)} tasks; from now on at most {half} at once"
            )
        for part in (lines[:half], lines[half:]):
            self._run_batch(part)

    def _outcome(self, result: Any) -> msgspec.Raw | Error:
        if result is None:
            return NO_JSON
        if isinstance(result, BaseException):
            self._refuse_trouble(result)
            return to_error(result)
        encoded, raised = call_user_code(to_json, result)
        return encoded if raised is None else to_error(raised)

    def _finish(
        self,
        lines: list[TaskLine],
        outcomes: list[msgspec.Raw | Error],
        start: float,
        seconds: float,
    ) -> None:
        """Publish the outputs of what went well, drop the others, and settle the tasks."""
        published = self._publish(lines, outcomes) if self.outputs.asked else {}
        log: tuple[int, int] | None = None
        if seconds >= LOG_FROM_S or any(isinstance(outcome, Error) for outcome in outcomes):
            log = (self._log_end, self._look_at_log())
        for line, outcome in zip(lines, outcomes, strict=True):
            is_told = seconds >= LOG_FROM_S or isinstance(outcome, Error)
            self._conclude(
                line,
                outcome,
                start,
                seconds,
                published.get(line.task, []),
                log if is_told else None,
            )

    def _conclude(
        self,
        line: TaskLine,
        outcome: msgspec.Raw | Error,
        start: float,
        seconds: float,
        outputs: list[tuple[str, int]] | None = None,
        log: tuple[int, int] | None = None,
    ) -> None:
        """Word the line of a task, and settle it."""
        error, result = (outcome, NO_JSON) if isinstance(outcome, Error) else (None, outcome)
        verdict = JournalLine(
            task=line.task,
            round=line.round,
            state=LineState.COMPLETE if error is None else LineState.FAILED,
            start=start,
            seconds=int(seconds * 1e6) / 1e6,  # a fifth of what round() costs
            result=result,
            error=error,
            outputs=outputs or [],
            log=log,
        )
        self._settle(line, verdict)

    def _publish(
        self, lines: list[TaskLine], outcomes: list[msgspec.Raw | Error]
    ) -> dict[int, list[tuple[str, int]]]:
        """What each task wrote; a task that wrote nothing where it said that it would has failed,
        in `outcomes`.
        """
        self.outputs.discard(
            line.task
            for line, outcome in zip(lines, outcomes, strict=True)
            if isinstance(outcome, Error)
        )
        published: dict[int, list[tuple[str, int]]] = {}
        written = self.outputs.publish(line.task for line in lines)
        for place, line in enumerate(lines):
            found = written.get(line.task, [])
            if isinstance(found, OutputError):
                outcomes[place] = to_error(found)
            else:
                published[line.task] = found
        return published


def _in_order(results: Any) -> list[Any]:
    """What a batch returned, as a list. Raises ResultError for what has no order, or is one value."""
    if isinstance(results, (dict, set, frozenset, str, bytes)):
        raise ResultError(
            f"the job returned a {type(results).__name__} for a batch; return a list, one result a task"
        )
    return list(results)
