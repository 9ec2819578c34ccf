"""How a task is named in a command that people are told to type, so that it means this task.

`finding` is the other way round. `status` and `failed` call this.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from gpuspool.orchestrator.report.keys import TaskKey
from gpuspool.orchestrator.text.cells import width
from gpuspool.orchestrator.text.printable import one_line, shell_word
from gpuspool.orchestrator.text.words import quoted_path
from gpuspool.spool.layout import is_original
from gpuspool.spool.manifest import Manifest
from gpuspool.spool.view import View

# A longer key is not typed.
LONGEST_TYPED = 40


class Name(NamedTuple):
    """A word that means one task to `find_task`, as a shell takes it.

    is_plain: it means that also where a word may name something else. Else it must stand behind
    `--task=`.
    """

    word: str
    is_plain: bool = True


# Also a key may look like the number of a task, and keys come first. So where a number is another
# task's key, the key of the task itself is named, however long that is.
class Namer:
    """Tells how to name tasks of a view that has read its manifests."""

    def __init__(self, view: View) -> None:
        self._view = view

    def name_of(self, task: int, key: str | None = None) -> Name:
        """By its key where that is short and plain, else by its number, as `'#7'`.

        key: of the task; None where it is not known.
        """
        if key is not None and _is_typed(key):
            return Name(shell_word(key))
        number = f"#{task}"
        if not self._is_any_key_a_number or by_key(self._view, number) in (None, task):
            return Name(f"'{number}'")
        if key is None:
            lines = (manifest.find(task, TaskKey) for manifest in manifests_of(self._view))
            key = next((line.key for line in lines if line is not None), number)
        return Name(shell_word(key), is_plain=False)

    @functools.cached_property
    def _is_any_key_a_number(self) -> bool:
        """Whether a key may look like the number of a task, by one search for all of them."""
        manifests = manifests_of(self._view)
        found = (next(one.lines_with(b'"key":"#', TaskKey), None) for one in manifests)
        return any(line is not None for line in found)


def explain_command(spool: str, name: Name) -> str:
    """The command that tells the story of one task, to be copied into a shell."""
    word = name.word if name.is_plain else f"--task={name.word}"
    return f"gpuspool explain {quoted_path(spool)} {word}"


def _is_typed(key: str) -> bool:
    """Whether people type this key: it is short, and looks like nothing else, such as an option,
    the number of a task or a rank.
    """
    if one_line(key) != key or width(key) > LONGEST_TYPED:
        return False
    return bool(key) and not (key.isdigit() or key.startswith(("-", "#", "rank")))


def by_key(view: View, word: str) -> int | None:
    """The task that has this key; None where none has."""
    text = as_json(word)
    if text is None:
        return None
    for manifest in manifests_of(view):
        for line in manifest.lines_with(b'"key":%b' % text, TaskKey):
            if line.key == word and 0 <= line.task < view.ledger.tasks:
                return line.task
    return None


def manifests_of(view: View) -> Iterator[Manifest]:
    """All manifests, those first in which nearly every task has its line."""
    first = [name for name in view.manifests if is_original(name)]
    for name in sorted(first):
        yield view.manifests[name]
    for name in sorted(view.manifests.keys() - set(first)):
        yield view.manifests[name]


def as_json(word: str) -> bytes | None:
    """The word as it stands in JSON; None where no JSON holds it, since it is not UTF-8."""
    try:
        return msgspec.json.encode(word)
    except UnicodeEncodeError:
        return None
