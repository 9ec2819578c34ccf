"""Which tasks `redo` names: by their keys, by patterns, or since their outputs are gone.

Called by `redo`, under the spool's lock.
"""

from __future__ import annotations

import difflib
import fnmatch
import glob
from collections.abc import Callable, Sequence

from gpuspool.orchestrator.report.keys import read_keys
from gpuspool.orchestrator.report.results import Results
from gpuspool.orchestrator.report.verify import output_problem
from gpuspool.spool.errors import UsageError
from gpuspool.spool.open_folder import out_of
from gpuspool.spool.view import View

# So many keys are suggested for one that the run does not have.
SUGGESTIONS = 3


def selection(words: Sequence[str], has_missing_outputs: bool) -> Callable[[View], set[int]]:
    """Asked with a view, the tasks that are finished and that the user means.

    words: keys, and patterns with `*`, `?` and `[…]`. has_missing_outputs: also those of which an
    output is not there, or not as it was published. Raises UsageError where nothing was named.
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
    """The tasks that have these keys. Raises UsageError for one that no task has."""
    keys = read_keys(view)
    tasks = {key: task for task, key in enumerate(keys) if key is not None}
    chosen: set[int] = set()
    for word in words:
        found = {tasks[word]} if word in tasks else _matching(tasks, word)
        if not found:
            near = difflib.get_close_matches(word, tasks, SUGGESTIONS)
            hint = f" Did you mean {', '.join(near)}?" if near else ""
            raise UsageError(f"no task has the key {word!r}.{hint} Nothing was redone.")
        chosen |= found
    return chosen


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
