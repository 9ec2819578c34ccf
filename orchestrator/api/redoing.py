"""Which tasks `redo` names: as `explain` does, by patterns, or since their outputs are gone.

Called by `redo`, under the spool's lock.
"""

from __future__ import annotations

import fnmatch
import glob
from collections.abc import Callable, Sequence

from gpuspool.orchestrator.report.finding import find_task
from gpuspool.orchestrator.report.keys import read_keys
from gpuspool.orchestrator.report.results import Results
from gpuspool.orchestrator.report.verify import output_problem
from gpuspool.spool.errors import UsageError
from gpuspool.spool.open_folder import out_of
from gpuspool.spool.view import View


def selection(words: Sequence[str], has_missing_outputs: bool) -> Callable[[View], set[int]]:
    """Asked with a view, the tasks that are finished and that the user means.

    words: keys, `#INDEX`, paths of inputs, and patterns of keys with `*`, `?` and `[…]`.
    has_missing_outputs: also those of which an output is not there, or not as it was published.
    Raises UsageError where nothing was named.
    """
    if not words and not has_missing_outputs:
        raise UsageError("name the tasks by their keys or by patterns, or say --missing-outputs.")

    def choose(view: View) -> set[int]:
        chosen = _named(view, words) if words else set()
        if has_missing_outputs:
            chosen |= _without_outputs(view)
        return {task for task in chosen if view.ledger.verdict(task) is not None}

    return choose


def _named(view: View, words: Sequence[str]) -> set[int]:
    """The tasks that are meant by these words. Raises UsageError for one that means none."""
    keys = read_keys(view)
    tasks = {key: task for task, key in enumerate(keys) if key is not None}
    chosen: set[int] = set()
    for word in words:
        found = {tasks[word]} if word in tasks else _matching(tasks, word)
        chosen |= found or {_meant(view, word)}
    return chosen


def _meant(view: View, word: str) -> int:
    """The task that a word means which is no key. Raises UsageError where it means none.

    `explain` takes a bare number for an index, where no task has that key. What costs hours is not
    guessed.
    """
    if word.isdecimal():
        raise UsageError(
            f"no task has the key {word!r}. The one with this number is '#{word}'. Nothing was "
            "redone."
        )
    try:
        return find_task(view, word)
    except UsageError as error:
        raise UsageError(f"{error} Nothing was redone.") from None


def _matching(tasks: dict[str, int], pattern: str) -> set[int]:
    if not glob.has_magic(pattern):
        return set()
    return {tasks[key] for key in fnmatch.filter(tasks, pattern)}


def _without_outputs(view: View) -> set[int]:
    """The complete tasks of which an output is not there, or not as it was published.

    Raises OSError where that cannot be found out.
    """
    folder = out_of(view.layout, view.run)
    lacking: set[int] = set()
    for published in Results(view).outputs():
        if any(output_problem(folder / name, size) for name, size in published.outputs):
            lacking.add(published.index)
    return lacking
