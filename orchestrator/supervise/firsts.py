"""What is told when it happens the first time: a failure of each group, and a batch that is split.

The first bad input of a run is news within seconds; the thousandth is not. So the view says of each
failure where its line stands, and here the first of each group is picked out. However many fail,
one failure costs a look at three words of its line, and few lines are read whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import msgspec

from gpuspool.orchestrator.supervise.rulings import read_line
from gpuspool.orchestrator.text.groups import How, describe, how_of
from gpuspool.spool.layout import rank_of
from gpuspool.spool.records import ErrorBrief, JournalLine
from gpuspool.spool.states import ErrorKind, LineState
from gpuspool.spool.view import View

# So many groups are told. Where each failure differs from all others, more tell nobody more.
MOST_TOLD = 10
# So many of the tasks that an attempt claimed are searched for the key of one.
MOST_SEARCHED = 10_000


class Firsts:
    """Picks out what is new among the failures of one start of a run."""

    def __init__(self) -> None:
        self._known: set[How] = set()
        # What was not told yet: (attempt, where its line stands in the journal).
        self._failures: list[tuple[str, int]] = []
        self._split: tuple[str, int] | None = None
        self._was_split = False

    def failed(self, attempt: str, at: int, error: msgspec.Raw) -> None:
        """A task failed, as `Listener.failed` has it."""
        if len(self._known) >= MOST_TOLD:
            return
        try:
            brief = msgspec.json.decode(error, type=ErrorBrief)
        except msgspec.DecodeError:
            return
        how = how_of(brief)
        # What a file system in trouble keeps from running has not failed, and is told elsewhere.
        if brief.kind != ErrorKind.IO and how not in self._known:
            self._known.add(how)
            self._failures.append((attempt, at))

    def split(self, attempt: str, at: int) -> None:
        """A batch was split, as `Listener.split` has it."""
        if not self._was_split:
            self._was_split = True
            self._split = attempt, at

    def news(self, view: View) -> Iterator[str]:
        """What is to be told now, one text each; it will not be told again.

        Raises OSError where a line cannot be read; it is told by the next call then.
        """
        if self._split is not None:
            attempt, at = self._split
            line = read_line(view, attempt, at)
            self._split = None
            if line is not None:
                yield _about_split(attempt, line)
        while self._failures:
            attempt, at = self._failures[0]
            line = read_line(view, attempt, at)
            del self._failures[0]
            if line is not None:
                yield _about_failure(view, attempt, line)
            if not self._failures and len(self._known) >= MOST_TOLD:
                yield "other kinds of failures are not told here any more"


def _about_split(attempt: str, line: JournalLine) -> str:
    why = "" if line.error is None else f" ({describe(line.error)})"
    return (
        f"a batch of {1 + len(line.batch)} tasks raised on rank {rank_of(attempt)}{why}: its tasks "
        "run again in halves, down to one alone, so that only those fail that are to blame (later "
        "splits are not told here)"
    )


def _about_failure(view: View, attempt: str, line: JournalLine) -> str:
    assert line.error is not None
    key = _key_of(view, attempt, line)
    text = f"task {key} failed on rank {rank_of(attempt)}: {describe(line.error)}"
    if line.state is LineState.HELD:
        text += "; it is tried again elsewhere"
    return f"{text} (more failures like this one are not told here)"


def _key_of(view: View, attempt: str, line: JournalLine) -> str:
    """The key of a task, which stands in its line or in what the attempt claimed lately."""
    if line.line is not None:
        return line.line.key
    tasks = itertools.chain.from_iterable(
        view.manifests[claimed.manifest].tasks(claimed.start, claimed.stop)
        for claimed in reversed(view.claims_by.get(attempt, []))
    )
    for task in itertools.islice(tasks, MOST_SEARCHED):
        if task.task == line.task:
            return task.key
    return f"number {line.task}"
