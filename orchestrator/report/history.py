"""All that the files of a spool say of one task.

It is read without decoding anything else: manifests and journals are searched for the task's
number, and of the claims of a manifest the one is read that holds the task's position, which the
names of the files tell. So what it costs hardly grows with the number of tasks.

It is read in the order of `View.refresh`: manifests, intents, claims, journals. The verdict is that
of a `Ledger`, which is fed with the lines of this task alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from gpuspool.spool.claims import claim_of
from gpuspool.spool.layout import is_retry, parse_orphans
from gpuspool.spool.ledger import Ledger
from gpuspool.spool.records import Claim, Closing, JournalLine, Ruling, TaskFailure, TaskLine
from gpuspool.spool.states import LineState, Verdict
from gpuspool.spool.view import View


class Given(msgspec.Struct, frozen=True, kw_only=True):
    """That a manifest gives a task out.

    position: of its line, of `size` in the manifest. claim: on this position; None where nobody has
    claimed it, and then the positions from `next` on are unclaimed too.
    """

    manifest: str
    position: int
    size: int
    line: TaskLine
    claim: Claim | None
    next: int


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a journal that names the task: as its own, or in its batch."""

    attempt: str
    at: int
    line: JournalLine


class History(msgspec.Struct, kw_only=True):
    """What stands in the files of one task.

    key: None where no readable line has it. given: by the manifests, those of earlier rounds first.
    told: by the journals, in the order of attempts. opinions: by the closings that speak against
    the task, with their attempts. round: the newest. failures: of the newest round without a
    verdict, of which `ruled` are known to a ruling. completed: the line that is the task's result.
    """

    task: int
    key: str | None
    given: list[Given]
    told: list[Told]
    opinions: list[tuple[str, TaskFailure]]
    verdicts: list[TaskFailure]
    ledger: Ledger
    round: int
    n_failures: int
    n_ruled: int

    @property
    def verdict(self) -> Verdict | None:
        return self.ledger.verdict(self.task)

    @property
    def is_unreadable(self) -> bool:
        """Whether no readable line describes the task any more, so that it has failed."""
        return self.verdict is Verdict.FAILED and self.task in self.ledger.unreadable

    @property
    def is_held_back(self) -> bool:
        """Whether it failed without a verdict, and no ruling knows of that yet."""
        return self.verdict is None and self.n_failures > self.n_ruled

    @property
    def completed(self) -> Told | None:
        """The line whose result is the task's: of several the first one, by attempt and offset."""
        redone = self.ledger.redone.get(self.task, 0)
        for told in self.told:
            if told.line.state is LineState.COMPLETE and told.line.round >= redone:
                return told
        return None

    @property
    def current(self) -> list[Given]:
        """Where it is given out in its newest round."""
        return [given for given in self.given if given.line.round == self.round]

    def has_let_go(self, attempt: str, line: TaskLine) -> bool:
        """As `View.has_let_go`, of this task."""
        n_failed = sum(
            told.attempt == attempt
            and told.line.state is LineState.HELD
            and told.line.round == line.round
            for told in self.told
        )
        return n_failed > sum(name == attempt for name, _ in line.failed_in)

    def attempts(self) -> set[str]:
        """All that claimed it, told of it, or were closed with it."""
        found = {given.claim.attempt for given in self.given if given.claim is not None}
        found |= {told.attempt for told in self.told}
        found |= {attempt for attempt, _ in self.opinions}
        found |= {parse_orphans(given.manifest) or "" for given in self.given}
        return found - {""}


def read_history(view: View, task: int) -> History:
    """Read all about a task of a view that has read its manifests. Raises OSError.

    The intents of the attempts that had the task are read too, and the whole journals of those that
    have claimed it and are open: `view` knows then what they are at.
    """
    given = sorted(_given(view, task), key=lambda one: one.line.round)
    claimers = {one.claim.attempt for one in given if one.claim is not None}
    view.read_intents(claimers)
    view.follow(claimers - view.closed.keys())
    told = [Told(attempt=attempt, at=at, line=line) for attempt, at, line in view.lines_of(task)]
    opinions = [
        (attempt, failure)
        for attempt, closing in view.closed.items()
        for failure in closing.held
        if failure.task == task
    ]
    verdicts = list(_verdicts(view, task))
    ledger = _judge(view, task, given, told, verdicts)
    round_ = ledger.round_of(task)
    keys = [one.line.key for one in given]
    keys += [failure.key for _, failure in opinions if failure.key]
    history = History(
        task=task,
        key=next(iter(keys), None),
        given=given,
        told=told,
        opinions=opinions,
        verdicts=verdicts,
        ledger=ledger,
        round=round_,
        n_failures=_count_failures(told, opinions, round_),
        n_ruled=_count_ruled(view, given, round_),
    )
    view.read_intents(history.attempts())
    return history


def _given(view: View, task: int) -> Iterator[Given]:
    for name, manifest in view.manifests.items():
        size = len(manifest)
        for position, line in manifest.lines_of(task, TaskLine):
            claim, stop = claim_of(view.layout, name, position, size)
            yield Given(
                manifest=name, position=position, size=size, line=line, claim=claim, next=stop
            )


def _verdicts(view: View, task: int) -> Iterator[TaskFailure]:
    """The failures for good that closings and rulings tell of a task."""
    heads: list[Closing | Ruling] = [*view.closed.values(), *view.rulings.values()]
    for head in heads:
        yield from (failure for failure in head.failures if failure.task == task)


def _judge(
    view: View, task: int, given: list[Given], told: list[Told], verdicts: list[TaskFailure]
) -> Ledger:
    """A ledger that knows of this task all that the view's own would know after a refresh."""
    ledger = Ledger(view.ledger.tasks)
    for one in given:
        if is_retry(one.manifest):
            if one.line.redo:
                ledger.redo(task, one.line.round)
            else:
                ledger.raise_round(task, one.line.round)
    for failure in verdicts:
        ledger.feed(task, failure.round, LineState.FAILED)
    for line in (one.line for one in told if one.line.task == task):
        ledger.feed(task, line.round, line.state)
    if task in view.ledger.unreadable:
        ledger.unreadable = frozenset({task})
    return ledger


def _count_failures(told: list[Told], opinions: list[tuple[str, TaskFailure]], round_: int) -> int:
    n_held = sum(one.line.state is LineState.HELD and one.line.round == round_ for one in told)
    return n_held + sum(failure.round == round_ for _, failure in opinions)


def _count_ruled(view: View, given: list[Given], round_: int) -> int:
    ruled = (one for one in given if one.manifest in view.rulings and one.line.round == round_)
    return max((len(one.line.failed_in) for one in ruled), default=0)
