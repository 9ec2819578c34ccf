"""What became of each task, in input order.

Guarantees: the answers are those of the view that was asked, so all of them agree with its ledger
and with each other, whatever a live run does meanwhile. Results come one after the other while
lines are read for some thousand tasks at a time: however many tasks there are and however large
their results, little is held in memory, and one file is open at a time.

The command line, `Report.results` and the other modules of `report` call this. It reads no claims,
so a view without them will do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Any, assert_never

import msgspec

from gpuspool.orchestrator.report.keys import read_keys
from gpuspool.orchestrator.report.places import NULL, Places
from gpuspool.spool.layout import rank_of, refuse_output
from gpuspool.spool.manifest import Damage
from gpuspool.spool.records import Error, Record, TaskFailure
from gpuspool.spool.states import ErrorKind, Verdict
from gpuspool.spool.view import View

_encoder = msgspec.json.Encoder()

# So much of a result is shown where a Result is shown.
REPR_BYTES = 200


class ResultState(StrEnum):
    """What became of a task. MISSING: it has no verdict (yet)."""

    COMPLETE = "complete"
    FAILED = "failed"
    MISSING = "missing"


class Result(msgspec.Struct, kw_only=True, gc=False):
    """What became of one task: a line of `gpuspool results`.

    index: the task's place among the inputs, from 0. key: None where no manifest can tell it.
    result: JSON text, `null` where there is none; `value()` decodes it. error: why the task failed;
    of a complete task, that its line cannot be read any more, so that its result is unknown.
    seconds: how long the job took over it. rank, attempt: whose line tells this. code: the name of
    the record of the code that this attempt ran, `SPOOL/job/code-<name>.json`; None where it told
    none. outputs: names of files, relative to the folder for outputs.

    `gc=False`: results hold no cycles, and the collector would look at a million of them in vain.
    """

    index: int
    key: str | None
    state: ResultState
    result: msgspec.Raw = NULL
    error: Error | None = None
    seconds: float | None = None
    rank: int | None = None
    attempt: str | None = None
    code: str | None = None
    outputs: list[str] = []

    def value(self) -> Any:
        """The result as Python values."""
        return msgspec.json.decode(self.result)

    def __repr__(self) -> str:
        """What people look at: the result as JSON, cut where it is long."""
        text = bytes(self.result[: REPR_BYTES + 1]).decode(errors="replace")
        if len(text) > REPR_BYTES:
            text = f"{text[:REPR_BYTES]}…"
        told = f"index={self.index}, key={self.key!r}, state={str(self.state)!r}, result={text}"
        if self.error is not None:
            told += f", error={self.error.type!r}"
        return f"Result({told}, outputs={self.outputs})"


def encode_result(result: Result) -> bytes:
    """One line of `gpuspool results`, without its newline."""
    return _encoder.encode(result)


class Outcome(Record, frozen=True, kw_only=True):
    """What a result takes from the line that tells a verdict; the rest is skipped, not decoded.

    start: when the call began, in Unix seconds, 0 where that is not told.
    """

    state: ResultState
    start: float = 0.0
    seconds: float = 0.0
    result: msgspec.Raw = NULL
    error: Error | None = None
    outputs: tuple[tuple[str, int], ...] = ()


class _Outputs(Record, frozen=True, kw_only=True):
    """What a journal line says of outputs; the rest is skipped, not decoded."""

    outputs: tuple[tuple[str, int], ...] = ()


class _Begun(Record, frozen=True, kw_only=True):
    """What a journal line says of when its call began; the rest is skipped, not decoded."""

    start: float = 0.0


class Published(msgspec.Struct, frozen=True):
    """The outputs of one task: of each its name below OUT and its size in bytes."""

    index: int
    key: str | None
    outputs: tuple[tuple[str, int], ...]


class Loss(msgspec.Struct, frozen=True):
    """A task that a closing or a ruling failed.

    attempt: the one of whose failure it tells; "" where it does not say.
    """

    attempt: str
    failure: TaskFailure


class Results:
    """The results of all tasks of a view, as it was refreshed last; it can be iterated again."""

    def __init__(
        self,
        view: View,
        *,
        only_failed: bool = False,
        hear: Callable[[list[msgspec.Raw]], None] | None = None,
    ) -> None:
        """Finds where each task's line stands, in one pass over the journals. Raises OSError.

        only_failed: no more than `failed` will be asked for. Journals that tell of no failure are
        not read then. hear: as for `Places`.
        """
        self._view = view
        self._keys = read_keys(view)
        self._places = Places(view, only_failed=only_failed, hear=hear)
        self._losses = losses(view)
        self._codes: dict[str, str | None] = {}

    def __iter__(self) -> Iterator[Result]:
        """One result for each task, in input order."""
        return self.of(range(self._view.ledger.tasks))

    def failed(self) -> Iterator[Result]:
        """The results of the failed tasks, in input order. Lines of other tasks are not read."""
        return self.of(sorted(self._view.ledger.failed()))

    def outputs(self) -> Iterator[Published]:
        """What each task published that published anything, in input order."""
        for window in self._places.windows(range(self._view.ledger.tasks)):
            lines = self._places.read(window, _Outputs)
            for task in window:
                line = lines.get(task)
                if line is not None and line.outputs:
                    yield Published(task, self._keys[task], line.outputs)

    def begun_before(self, moments: Mapping[str, float]) -> list[int]:
        """The complete tasks whose result began before a moment that is given for their key."""
        verdict = self._view.ledger.verdict
        asked: dict[int, float] = {}
        for task, key in enumerate(self._keys):
            if key is not None and key in moments and verdict(task) is Verdict.COMPLETE:
                asked[task] = moments[key]
        found: list[int] = []
        for window in self._places.windows(asked):
            for task, line in self._places.read(window, _Begun).items():
                if line.start < asked[task]:
                    found.append(task)
        return sorted(found)

    def of(self, tasks: Iterable[int]) -> Iterator[Result]:
        """The results of some tasks, in the order given."""
        # The state is always the one that the ledger has, so that all verbs agree. A line may count
        # there and not be readable here: it may have been damaged since its place was found, or it
        # may say more than this version understands. Such a task is answered from what else is
        # known, so that each task asked for gives one result, and one bad sector does not end the
        # listing of a million.
        for window in self._places.windows(tasks):
            outcomes = self._places.read(window, Outcome)
            writers = self._places.writers(window)
            for task, attempt in zip(window, writers, strict=True):
                outcome = outcomes.get(task)
                if outcome is None:
                    yield self.without_line(task, attempt)
                    continue
                assert attempt is not None, task
                yield Result(
                    index=task,
                    key=self._keys[task],
                    state=outcome.state,
                    # The copy lets go of the window: who keeps one result keeps no more than that.
                    result=outcome.result.copy(),
                    error=outcome.error,
                    seconds=outcome.seconds,
                    rank=rank_of(attempt),
                    attempt=attempt,
                    code=self._code(attempt),
                    outputs=self.outputs_of(task, outcome),
                )

    def windows(
        self, tasks: Iterable[int]
    ) -> Iterator[tuple[list[int], list[str | None], list[Outcome | None]]]:
        """(tasks, whose line each has, these lines) of some tasks at a time, in the order given.

        A task without a line, and one whose line cannot be read any more, has None. What is known
        of it `without_line` tells. For whoever makes columns of a million of them.
        """
        return map(self._read_window, self._places.windows(tasks))

    # A function of its own, so that nothing holds these lines while the next ones are read.
    def _read_window(
        self, window: list[int]
    ) -> tuple[list[int], list[str | None], list[Outcome | None]]:
        outcomes = self._places.read(window, Outcome)
        return window, self._places.writers(window), list(map(outcomes.get, window))

    def unreadable(self) -> int:
        """Of how many complete tasks the line cannot be read any more. Reads all lines."""
        verdict = self._view.ledger.verdict
        count = 0
        for tasks, _, lines in self.windows(range(self._view.ledger.tasks)):
            if None in lines:
                lost = [task for task, line in zip(tasks, lines, strict=True) if line is None]
                count += sum(verdict(task) is Verdict.COMPLETE for task in lost)
        return count

    def keys_of(self, tasks: Iterable[int]) -> list[str | None]:
        """The keys of some tasks, None where no readable line has one."""
        keys = self._keys
        return [keys[task] for task in tasks]

    def failed_start(self, task: int) -> float:
        """When the call began in which a task failed that a closing or a ruling failed, in Unix
        seconds; 0 where that is not known, or the task did not fail in that way.
        """
        loss = self._losses.get(task)
        return 0.0 if loss is None else loss.failure.start

    def _code(self, attempt: str) -> str | None:
        """The name of the record of what an attempt ran, by its last heartbeat, else its intent."""
        if attempt not in self._codes:
            intent = self._view.intents.get(attempt)
            beat = self._view.heartbeat(attempt)
            told = beat.code if beat is not None else ""
            if not told and intent is not None:
                told = intent.job.code
            self._codes[attempt] = told or None
        return self._codes[attempt]

    def outputs_of(self, task: int, outcome: Outcome) -> list[str]:
        """The names of a task's outputs. One that does not lie below OUT is reported, not told.

        Whoever joins these names to OUT would read another file, or write to one.
        """
        names: list[str] = []
        for name, _ in outcome.outputs:
            reason = refuse_output(name)
            if reason is None:
                names.append(name)
                continue
            text = f"task {task}: the output {name!r:.120} {reason}"
            self._view.report(Damage(str(self._view.layout.journals), 0, text))
        return names

    def without_line(self, task: int, attempt: str | None) -> Result:
        """The result of a task that no journal tells of, or none that can still be read.

        attempt: whose line it was that cannot be read any more, None where there was none.
        """
        result = Result(index=task, key=self._keys[task], state=ResultState.MISSING)
        if attempt is not None:
            self._add_attempt(result, attempt)
        ledger = self._view.ledger
        match ledger.verdict(task):
            case None:
                pass
            case Verdict.COMPLETE:
                # Its result is not null but unknown, which must not pass for a result.
                result.state = ResultState.COMPLETE
                result.error = line_unreadable()
            case Verdict.FAILED:
                result.state = ResultState.FAILED
                loss = self._losses.get(task)
                if loss is not None:
                    if loss.attempt:
                        self._add_attempt(result, loss.attempt)
                    result.error = loss.failure.error
                elif task in ledger.unreadable:
                    result.error = task_unreadable()
                else:
                    result.error = line_unreadable()
            case unknown:
                assert_never(unknown)
        return result

    def _add_attempt(self, result: Result, attempt: str) -> None:
        result.rank = rank_of(attempt)
        result.attempt = attempt
        result.code = self._code(attempt)


def losses(view: View) -> dict[int, Loss]:
    """By task: the closing or the ruling that failed it in the newest round."""
    found: dict[int, Loss] = {}
    for attempt, failure in _failures(view):
        known = found.get(failure.task)
        if known is None or failure.round >= known.failure.round:
            found[failure.task] = Loss(attempt, failure)
    return found


def _failures(view: View) -> Iterator[tuple[str, TaskFailure]]:
    """(attempt of which it tells, failure) of each that a closing or a ruling tells."""
    for attempt, closing in view.closed.items():
        for failure in closing.failures:
            yield attempt, failure
    for ruling in view.rulings.values():
        for failure in ruling.failures:
            yield failure.error.told_attempt, failure


def task_unreadable() -> Error:
    """Why a task has failed that no readable manifest line describes."""
    message = "no readable manifest line describes this task any more; see corrupt/"
    return Error(kind=ErrorKind.UNREADABLE, type="TaskUnreadable", message=message)


def line_unreadable() -> Error:
    """What stands in place of an error, or of a result, whose line cannot be read any more."""
    message = "the journal line that tells more of this task cannot be read; see `gpuspool verify`"
    return Error(kind=ErrorKind.UNREADABLE, type="LineUnreadable", message=message)
