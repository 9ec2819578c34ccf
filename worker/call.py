"""One call of the job, from its announcement to the verdicts on its tasks.

The steps of every call, in this order:

1. Announce it in the journal, where calls are announced (see `settle`).
2. Take the inputs of its tasks, where the job has a `load`. A task whose load raised is settled now
   and is not part of the call.
3. Call the job.
4. Judge what it raised (see `trouble`): a task is to blame; or a file system that only it needs is,
   and the failure is excused; or no task can be done now. In the last case an OSError, `Unusable`
   or `NotNow` is raised, and the tasks stay as they were.
5. Publish the outputs of the tasks that went well, and delete those of the others.
6. Settle the tasks. So no journal says that a task is complete before its outputs are published.

Limits on time, and the line that says what is in hand, hold from step 1 on: waiting for an input is
part of the call.

A call with several tasks that raises settles none of them: the executor splits it, until the task
that is to blame is alone. But what speaks of the call as a whole is said of each of its tasks: that
they are not done, that a fresh process shall go on, that the number of results is wrong. Nor is a
task settled for which memory ran out, unless the call was made for it alone, with all memory that
could be had.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Sequence
from enum import Enum, auto
from time import perf_counter, time
from typing import Any, Protocol

import msgspec

from gpuspool.spool.errors import AttemptError, OutputError, ResultError
from gpuspool.spool.records import NO_JSON, Error, JournalLine, TaskLine
from gpuspool.spool.states import ErrorKind, LineState
from gpuspool.worker.causes import forget_frames, members
from gpuspool.worker.clocks import Span
from gpuspool.worker.context import Context, NotDone, Restart, Task
from gpuspool.worker.doing import Doing
from gpuspool.worker.job import LoadedJob
from gpuspool.worker.outputs import Outputs
from gpuspool.worker.prefetch import Prefetcher, threads_for
from gpuspool.worker.results import call_user_code, to_error, to_json
from gpuspool.worker.say import for_people
from gpuspool.worker.starting import NotNow
from gpuspool.worker.trouble import find_excuse, raise_trouble

# Complete tasks that took less than this get no range of the log in their lines, and the size of
# the log is looked at no more often: a look costs as much as a tiny task.
LOG_FROM_S = 0.01
_decode = msgspec.json.Decoder().decode
# Looked up once: in Python 3.11 each look-up of an enum's member takes 0.1 µs or more, some percent
# of what a tiny task costs.
_COMPLETE = LineState.COMPLETE
_FAILED = LineState.FAILED
# An input that is missing and there again, so often, is not missing for its mount: a script without
# its interpreter is told in the same words.
MOST_RETURNS = 3
# So many characters no path has.
PATH_MAX = 4096
# Errors that say that memory ran out.
_OUT_OF_MEMORY = (ErrorKind.GPU_OOM, ErrorKind.HOST_OOM)


class CallEnd(Enum):
    """How a call ended."""

    # Every task of it is settled, or will be tried again.
    SETTLED = auto()
    # It raised, and any of its tasks may be to blame. None is settled.
    RAISED = auto()
    # There was not enough memory for all of its tasks, or for some. Those are not settled.
    OUT_OF_MEMORY = auto()


class OutOfMemory(Exception):
    """There was not enough memory for the one task of a call, which is not settled."""


class Settles(Protocol):
    """Who is told of calls and of verdicts. See `settle.Settler`."""

    is_announcing: bool
    is_believing: bool

    @property
    def is_at_end(self) -> bool: ...

    def may_restart(self, lines: Sequence[TaskLine]) -> bool: ...

    def announce(self, lines: list[TaskLine], loading: list[int]) -> None: ...

    def publishing(self) -> None: ...

    def note_split(self, lines: list[TaskLine], error: Error, span: Span) -> None: ...

    def pause(self, line: TaskLine, span: Span) -> None: ...

    def settle(self, line: TaskLine, verdict: JournalLine) -> None: ...

    def settle_call(self, ends: Sequence[tuple[TaskLine, JournalLine]]) -> None: ...


class WrongLength(ResultError):
    """A job returned another number of results than it got tasks.

    It does so for every batch, so to try the tasks one by one would hide it.
    """


class Call:
    """Makes the calls of one attempt, one after the other."""

    def __init__(
        self,
        job: LoadedJob,
        context: Context,
        outputs: Outputs,
        run_seed: int,
        doing: Doing,
        settler: Settles,
        mounts: Sequence[str] = (),
        moved: tuple[str, str] = ("", ""),
    ) -> None:
        """mounts: where file systems were mounted when the run was made, or this attempt began.

        moved: the folder in which the run's input files were when it was made, and where it is now.
        """
        self.outputs = outputs
        outputs.on_progress = settler.publishing
        self._job = job
        self._context = context
        self._run_seed = run_seed
        self._doing = doing
        self._clock = doing.clocks.calls
        self._settler = settler
        self._mounts = mounts
        self._moved = moved
        # Calls the job with some tasks; returns one result for each.
        self._invoke = self._invoke_batch
        if job.batch_size is None:
            self._invoke = self._invoke_single
        # How long the log was when it was last looked at, and when that was.
        self._log_end = 0
        self._looked_at = -LOG_FROM_S
        # What the last call that raised raised.
        self.last_error: Error | None = None
        # When the last call was that has left tasks unsettled.
        self.span = Span(0.0, 0.0)
        # How many batches came back with another number of results than they had tasks.
        self.wrong_lengths = 0
        self.prefetcher: Prefetcher | None = None
        if job.load is not None:
            threads = threads_for(job.batch_size, job.prefetch)
            self.prefetcher = Prefetcher(job.load, self._task, threads)

    def check_first(self, check: Callable[[], None]) -> None:
        """Have something looked at once, after the first call of the job; `check` may raise.

        What it raises counts as raised by the call, so the tasks of the call are not settled.
        """
        # The job is put back as it was after that, so that no later call pays for this.
        job = self._job

        def first(*args: Any) -> Any:
            try:
                return job.call(*args)
            finally:
                self._job = job
                check()

        self._job = msgspec.structs.replace(job, call=first)

    @property
    def is_over(self) -> bool:
        """Whether no further call shall be made in this process."""
        return self._settler.is_at_end

    def make(self, lines: list[TaskLine], is_alone: bool = False) -> tuple[CallEnd, list[TaskLine]]:
        """Call the job with these tasks: one, or as many as a batch may have.

        is_alone: it is one task, and nothing else takes memory, so that it is to blame if there is
        not enough. Returns how the call ended, and the tasks that it left unsettled. A task
        whose load raised is settled. Raises OSError, Unusable and NotNow where no task can be done.
        """
        if self._settler.is_announcing or lines[0].careful:
            self._settler.announce(lines, self._loading_beside(lines))
        lines, tasks, too_large = self._take_inputs(lines, is_alone)
        if not lines or self.is_over:
            return _end_of(too_large), too_large
        self._doing.n_tasks = len(lines)
        start, clock = self._begin(lines[0])
        self.outputs.in_hand = {line.task for line in lines}
        self.outputs.redone = {line.task for line in lines if line.redo}
        results, raised = call_user_code(self._invoke, tasks)
        self.outputs.in_hand = ()
        ended = perf_counter()
        self._clock.stop(ended)
        seconds = ended - clock
        self.span = Span(start, _rounded(seconds / len(lines)))
        if raised is None and self.outputs.trouble is None:
            outcomes = [
                self._outcome(line, result) for line, result in zip(lines, results, strict=True)
            ]
        else:
            failure = self._judge(raised, lines)
            if failure.kind in _OUT_OF_MEMORY and not is_alone:
                return CallEnd.OUT_OF_MEMORY, [*lines, *too_large]
            is_of_all = failure.kind is ErrorKind.NOT_DONE or isinstance(raised, WrongLength)
            is_of_all = is_of_all or self._is_restart(failure, lines)
            if len(lines) > 1 and not is_of_all:
                return CallEnd.RAISED, [*lines, *too_large]
            outcomes = [failure] * len(lines)
        if not is_alone:
            lines, outcomes, others = _set_aside_too_large(lines, outcomes)
            too_large.extend(others)
            self.outputs.discard(line.task for line in others)
        self._finish(lines, outcomes, start, seconds / max(1, len(lines)))
        return _end_of(too_large), too_large

    def _is_restart(self, failure: Error, lines: Sequence[TaskLine]) -> bool:
        """Whether the job asks for a fresh process, and gets it."""
        return failure.kind is ErrorKind.RESTART and self._settler.may_restart(lines)

    def note_split(self, lines: list[TaskLine], error: Error) -> None:
        """The last call, with several tasks, raised this, and they are run again in parts."""
        self._settler.note_split(lines, error, self.span)

    def pause(self, line: TaskLine, span: Span) -> None:
        """The call of a task that has no verdict is over, and its next one has to wait."""
        self._doing.let_go()
        self._settler.pause(line, span)

    # This is `make` for one task, written for speed. An empty task costs 1.5 µs from here to its
    # verdict, and through `make` it would cost twice that, a quarter more in the whole run. What is
    # saved is of no use for one task: lists of tasks, results and outcomes, and looking for outputs
    # and at the log where nothing can have been written. Whatever is not plain (an error, an
    # output, a call that took long enough for the log to matter) goes the common way, `_finish`.
    #
    # For example, a task that returns 3 in 2 µs ends in the last statement; one that also wrote an
    # output ends in `_finish`, which publishes the output first.
    #
    # tests/test_execute.py checks that both ways come to the same verdicts, and that nothing of one
    # call is kept while the next one runs.
    def make_single(self, line: TaskLine) -> float:
        """Call a job that has neither batches nor `load` with one task.

        Returns the clock at the end of the call, infinity where no further call shall be made.
        Raises OutOfMemory; and OSError, Unusable and NotNow where no task can be done now.
        """
        if self._settler.is_announcing or line.careful:
            self._settler.announce([line], [])
        task = self._task(line)
        start, clock = self._begin(line)
        self.outputs.in_hand = (line.task,)
        self.outputs.redone = (line.task,) if line.redo else ()
        result, raised = call_user_code(self._job.call, task, self._context)
        self.outputs.in_hand = ()
        ended = perf_counter()
        seconds = ended - clock
        # As `Stopwatch.stop` does it, in the same order.
        watch = self._clock
        watch.total_s += seconds
        watch.zero = None
        if raised is None and self.outputs.trouble is None:
            outcome = self._outcome(line, result)
        else:
            outcome = self._judge(raised, [line])
        if isinstance(outcome, Error) or self.outputs.asked or seconds >= LOG_FROM_S:
            if isinstance(outcome, Error) and outcome.kind in _OUT_OF_MEMORY:
                self.outputs.discard()
                self.span = Span(start, _rounded(seconds))
                raise OutOfMemory
            self._finish([line], [outcome], start, seconds)
            return math.inf if self.is_over else ended
        self._settler.settle(
            line,
            JournalLine(
                task=line.task,
                round=line.round,
                state=_COMPLETE,
                start=start,
                seconds=_rounded(seconds),
                result=outcome,
            ),
        )
        return ended

    def _loading_beside(self, lines: list[TaskLine]) -> list[int]:
        """The tasks, other than these, whose inputs are being loaded now."""
        if self.prefetcher is None:
            return []
        ours = {line.task for line in lines}
        return [task for task in self.prefetcher.on_their_way() if task not in ours]

    def _take_inputs(
        self, lines: list[TaskLine], is_alone: bool
    ) -> tuple[list[TaskLine], list[Task], list[TaskLine]]:
        """The lines of the tasks whose inputs are there, these tasks, and the lines of others.

        The others are those for whose inputs memory ran out. Where a load raised for another
        reason, or for this one although the task was alone, the task is settled here.
        """
        if self.prefetcher is None:
            return lines, [self._task(line) for line in lines], []
        start = time()
        clock = perf_counter()
        self._doing.clocks.inputs.start(clock)
        taken = [(line, *self.prefetcher.take(line)) for line in lines]
        ended = perf_counter()
        self._doing.clocks.inputs.stop(ended)
        wait_s = ended - clock
        self.span = Span(start, _rounded(wait_s / len(lines)))
        good: list[TaskLine] = []
        tasks: list[Task] = []
        too_large: list[TaskLine] = []
        failed: list[TaskLine] = []
        errors: list[msgspec.Raw | Error] = []
        for line, task, raised in taken:
            if raised is None:
                good.append(line)
                tasks.append(task)
                continue
            error = self._error_of(raised, [line])
            if error.kind in _OUT_OF_MEMORY and not is_alone:
                too_large.append(line)
                continue
            failed.append(line)
            errors.append(error)
        self._finish(failed, errors, start, wait_s / len(lines))
        return good, tasks, too_large

    def _task(self, line: TaskLine) -> Task:
        return Task(line.task, line.key, self._payload(line), line.cost, self._run_seed)

    def _payload(self, line: TaskLine) -> Any:
        """A task's payload, with the path where its input file is now."""
        payload = _decode(line.payload)
        was, now = self._moved
        if was != now and isinstance(payload, dict):
            path = payload.get("path")
            if isinstance(path, str) and path.startswith(f"{was.rstrip('/')}/"):
                return {**payload, "path": os.path.join(now, os.path.relpath(path, was))}
        return payload

    def _begin(self, first: TaskLine) -> tuple[float, float]:
        """Note that a call begins; returns (time of day, clock)."""
        start = time()
        clock = perf_counter()
        self._doing.line = first
        self._doing.since = start
        # As `Stopwatch.start` does it.
        watch = self._clock
        watch.zero = clock - watch.total_s
        if clock - self._looked_at >= LOG_FROM_S:
            self._look_at_log()
        return start, clock

    def _look_at_log(self) -> int:
        """How long the log is now, in bytes."""
        self._looked_at = perf_counter()
        # It fails where the job has closed its stdout.
        with contextlib.suppress(OSError):
            self._log_end = os.fstat(1).st_size
        return self._log_end

    def _invoke_single(self, tasks: list[Task]) -> list[Any]:
        """Call a job without batches; returns its one result."""
        return [self._job.call(tasks[0], self._context)]

    def _invoke_batch(self, tasks: list[Task]) -> list[Any]:
        """Call a job with a batch; returns one result for each task. Raises ResultError."""
        results = _in_order(self._job.call(tasks, self._context))
        if len(results) != len(tasks):
            self.wrong_lengths += 1
            raise WrongLength(
                f"the job returned {len(results)} results for {len(tasks)} tasks; it must be one "
                "each, in order"
            )
        return results

    def _judge(self, raised: BaseException | None, lines: list[TaskLine]) -> Error:
        """The error of a call with these tasks that raised, whose outputs are deleted.

        Raises OSError or Unusable where no task is to blame for it.
        """
        if self.outputs.trouble is not None:
            self.outputs.discard()
            raise self.outputs.trouble
        assert raised is not None
        error = self._error_of(raised, lines)
        self.last_error = error
        self.outputs.discard()
        return error

    def _error_of(self, raised: BaseException, lines: Sequence[TaskLine]) -> Error:
        """The record of what user code raised. Its frames, and what they hold, are forgotten.

        lines: the tasks of the call. Raises OSError, AttemptError or NotNow where this process can
        do no task now. What was written so far is deleted then, which makes room on a full disk to
        say what happened.
        """
        asked = _asked_by(raised)
        if asked is not None:
            # No failure, so there is nothing to look for.
            return _record(asked)
        error: Error
        error, trouble = call_user_code(self._look_into, raised, lines)
        if isinstance(trouble, (OSError, AttemptError, NotNow)):
            self.outputs.discard()
            raise trouble
        if trouble is not None:
            # The exception cannot be asked what it says of the world.
            error = to_error(raised)
        forget_frames(raised)
        return error

    def _look_into(self, raised: BaseException, lines: Sequence[TaskLine]) -> Error:
        """The record of what user code raised. Raises what `_error_of` does, and whatever else an
        exception of a user's class raises when it is asked.
        """
        self.outputs.check()
        outputs = self.outputs
        raise_trouble(raised, outputs.folders(), outputs.root, outputs.probe)
        return self._excused(to_error(raised), raised, lines)

    def _excused(self, error: Error, raised: BaseException, lines: Sequence[TaskLine]) -> Error:
        """The error of these tasks, of the kind "io" where a file system in trouble explains it.

        Raises OSError instead where each failure is a verdict: there is no other way to leave the
        tasks without one.
        """
        inputs = filter(None, (_input_of(self._payload(line)) for line in lines))
        may_be_back = all(_times_excused(line) < MOST_RETURNS for line in lines)
        excuse = find_excuse(raised, inputs, self._mounts, may_be_back, self._moved[1])
        if excuse is None:
            return error
        if self._settler.is_believing:
            raise excuse
        message = f"{error.message} (no task is to blame: {for_people(str(excuse))})"
        return msgspec.structs.replace(error, kind=ErrorKind.IO, message=message)

    def _outcome(self, line: TaskLine, result: Any) -> msgspec.Raw | Error:
        """What a task's line will hold: its result as JSON, or an error."""
        if result is None:
            return NO_JSON
        if isinstance(result, BaseException):
            return self._error_of(result, [line])
        encoded: msgspec.Raw
        encoded, raised = call_user_code(to_json, result)
        if raised is not None:
            if isinstance(result, type) and issubclass(result, (NotDone, Restart)):
                # As in `raise NotDone`.
                return self._error_of(result(), [line])
            return _record(raised)
        return encoded

    def _finish(
        self,
        lines: list[TaskLine],
        outcomes: list[msgspec.Raw | Error],
        start: float,
        seconds: float,
    ) -> None:
        """Publish the outputs of what went well, drop the others, and settle the tasks.

        start: Unix seconds. seconds: of each task.
        """
        published: dict[int, list[tuple[str, int]]] = {}
        if self.outputs.asked:
            published = self._publish(lines, outcomes)
        is_long = seconds >= LOG_FROM_S
        log: tuple[int, int] | None = None
        if is_long or any(isinstance(outcome, Error) for outcome in outcomes):
            log = (self._log_end, self._look_at_log())
        seconds = _rounded(seconds)
        ends: list[tuple[TaskLine, JournalLine]] = []
        for line, outcome in zip(lines, outcomes, strict=True):
            state = _COMPLETE
            result = NO_JSON
            error: Error | None = None
            if isinstance(outcome, Error):
                state = _FAILED
                error = outcome
            else:
                result = outcome
            verdict = JournalLine(
                task=line.task,
                round=line.round,
                state=state,
                start=start,
                seconds=seconds,
                result=result,
                error=error,
                outputs=published.get(line.task, []),
                log=log if is_long or error is not None else None,
            )
            ends.append((line, verdict))
        self._settler.settle_call(ends)

    def _publish(
        self, lines: Sequence[TaskLine], outcomes: list[msgspec.Raw | Error]
    ) -> dict[int, list[tuple[str, int]]]:
        """Publish what the tasks that went well wrote; returns it by task.

        A task that wrote nothing where it said that it would has failed: its entry in `outcomes`
        says so afterwards.
        """
        failed = [
            line.task
            for line, outcome in zip(lines, outcomes, strict=True)
            if isinstance(outcome, Error)
        ]
        self.outputs.discard(failed)
        self._settler.publishing()
        written = self.outputs.publish(line.task for line in lines)
        published: dict[int, list[tuple[str, int]]] = {}
        for number, line in enumerate(lines):
            found = written.get(line.task, [])
            if isinstance(found, OutputError):
                # A command may well end with 0 though its input was gone.
                outcomes[number] = self._excused(to_error(found), found, [line])
            else:
                published[line.task] = found
        return published


def _input_of(payload: Any) -> str:
    """The path of a task's input: the `path` of its payload, or a payload that is a text with a
    slash; else "".
    """
    if isinstance(payload, dict):
        payload = payload.get("path")
    elif isinstance(payload, str) and "/" not in payload:
        return ""
    # No path is longer, and to look for one that is would take long.
    if isinstance(payload, str) and len(payload) < PATH_MAX:
        return payload
    return ""


def _asked_by(raised: BaseException) -> BaseException | None:
    """The NotDone or Restart that was raised; None where anything else was.

    Of a group, as asyncio.TaskGroup raises, the first, if it consists of nothing else.
    """
    # By its true class: an exception of the user's may have a `__class__` that raises.
    if issubclass(type(raised), BaseExceptionGroup):
        asked = [_asked_by(one) for one in members(raised)]
        return None if None in asked else asked[0]
    return raised if issubclass(type(raised), (NotDone, Restart)) else None


def _record(raised: BaseException) -> Error:
    """The record of what user code raised. Its frames, and what they hold, are forgotten."""
    error = to_error(raised)
    forget_frames(raised)
    return error


def _times_excused(line: TaskLine) -> int:
    """How often a file system in trouble kept a task from running, as far as its line tells."""
    return sum(not device for _, device in line.failed_in)


def _end_of(too_large: list[TaskLine]) -> CallEnd:
    """The end of a call that returned, but for these tasks."""
    if too_large:
        return CallEnd.OUT_OF_MEMORY
    return CallEnd.SETTLED


def _set_aside_too_large(
    lines: list[TaskLine], outcomes: list[msgspec.Raw | Error]
) -> tuple[list[TaskLine], list[msgspec.Raw | Error], list[TaskLine]]:
    """The tasks that have an outcome, their outcomes, and those for which memory ran out."""
    too_large = [
        line
        for line, outcome in zip(lines, outcomes, strict=True)
        if isinstance(outcome, Error) and outcome.kind in _OUT_OF_MEMORY
    ]
    if not too_large:
        return lines, outcomes, []
    left = [
        (line, outcome)
        for line, outcome in zip(lines, outcomes, strict=True)
        if line not in too_large
    ]
    return [line for line, _ in left], [outcome for _, outcome in left], too_large


def _rounded(seconds: float) -> float:
    """To a microsecond, at a fifth of what round() costs."""
    return int(seconds * 1e6) / 1e6


def _in_order(results: Any) -> list[Any]:
    """What a batch returned, as a list.

    Raises ResultError for what has no order, or is one value.
    """
    if isinstance(results, (dict, set, frozenset, str, bytes)):
        raise ResultError(
            f"the job returned a {type(results).__name__} for a batch; return a list, one result "
            "a task"
        )
    return list(results)
