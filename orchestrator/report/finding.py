"""Which task, rank or attempt a word means that somebody typed.

A task is found by its key, by its number as `#7`, by the path of its input file, however that is
written, and by the text that is its input. Nothing is decoded but the lines in which the word
stands, so of a million tasks one is found in hundredths of a second. A word that means no task is
answered with the keys that are most like it.

The command line and the Python API call this, for `explain` and `logs`.
"""

from __future__ import annotations

import difflib
import itertools
import os
import re
from collections.abc import Iterable, Iterator

import msgspec

from gpuspool.orchestrator.plan.locate import at_home
from gpuspool.orchestrator.report.keys import TaskInput, TaskKey
from gpuspool.orchestrator.report.naming import as_json, by_key, manifests_of
from gpuspool.orchestrator.text.words import to_type
from gpuspool.spool.errors import UsageError
from gpuspool.spool.layout import ATTEMPT_PATTERN, is_original, rank_name
from gpuspool.spool.view import View

# So many keys that are like a word are offered.
MOST_NEAR = 3
# At most so many keys are looked at for that, which takes some tenths of a second,
MOST_LOOKED_AT = 200_000
# and of those that have something in common with the word so many are compared letter by letter.
MOST_COMPARED = 1000
# Keys are like a word if so much of them agrees, as difflib measures it.
LIKENESS = 0.6
# So many tasks with one input are named.
MOST_NAMED = 5

_INDEX = re.compile(r"#?(\d{1,9})", re.ASCII)
_RANK = re.compile(r"rank[- ]0*(\d{1,9})", re.ASCII)
# What is no name of a rank, since it may be a key, but may be meant for one.
_ALMOST_RANK = re.compile(r"rank[_:#/ ]*(\d{1,9})", re.ASCII | re.IGNORECASE)
_ATTEMPT = re.compile(ATTEMPT_PATTERN, re.ASCII)


def find_task(view: View, word: str) -> int:
    """The task that a word means: its key, else `#INDEX`, else the path or text that is its input.

    A bare number that is none of these is taken for an index. view: has read the manifests.
    Raises UsageError where no task is meant, with the keys that are most like the word, and where
    several are.
    """
    found = by_key(view, word)
    if found is not None:
        return found
    index = _INDEX.fullmatch(word)
    is_index = index is not None and int(index[1]) < view.ledger.tasks
    if index is not None and is_index and word.startswith("#"):
        return int(index[1])
    tasks = _by_input(view, word)
    if len(tasks) > 1:
        keys = ", ".join(itertools.islice(tasks.values(), MOST_NAMED))
        raise UsageError(
            f"{len(tasks)} tasks of {view.layout.root} have the input {word!r:.120}: {keys}"
            f"{', …' if len(tasks) > MOST_NAMED else ''}. Name one by its key."
        )
    if tasks:
        return next(iter(tasks))
    if index is not None and is_index:
        return int(index[1])
    raise UsageError(_unknown(view, word))


def parse_rank(word: str) -> int | None:
    """The rank that `rank 3`, `rank-3` or `rank-0003` means; None where it means none."""
    match = _RANK.fullmatch(word)
    return None if match is None else int(match[1])


def is_attempt(word: str) -> bool:
    """Whether a word is the name of an attempt: `rank-0003.a01`."""
    return _ATTEMPT.fullmatch(word) is not None


def _by_input(view: View, word: str) -> dict[int, str]:
    """The tasks with this input, and their keys."""
    found: dict[int, str] = {}
    paths = _paths(view, word)
    for text in filter(None, map(as_json, paths)):
        for manifest in manifests_of(view):
            for line in manifest.lines_with(text, TaskInput):
                if _input(line.payload) in paths and 0 <= line.task < view.ledger.tasks:
                    found[line.task] = line.key
    return found


def _input(payload: msgspec.Raw) -> str | None:
    """The path or the text that a payload is; None where it is something else."""
    value = msgspec.json.decode(payload)
    if isinstance(value, dict):
        value = value.get("path")
    return value if isinstance(value, str) else None


def _paths(view: View, word: str) -> list[str]:
    """How a file may stand in a payload that somebody names by this word, here and now.

    A path is relative to the folder here, or to that in which the run was made. Payloads keep the
    folder in which the inputs were then, whereas the word names it as it is now.
    """
    typed = os.path.abspath(at_home(word))
    whole = [typed, os.path.realpath(typed), os.path.join(view.run.submit_dir, word)]
    paths = dict.fromkeys([word, *map(os.path.normpath, whole)])
    root, first_root = view.run.root, view.run.fingerprint.root
    if root and root != first_root:
        for path in list(paths):
            if path.startswith(f"{root}/"):
                paths[first_root + path.removeprefix(root)] = None
    return list(paths)


def _unknown(view: View, word: str) -> str:
    """What is said of a word that means no task."""
    text = f"{view.layout.root} has no task {word!r:.120}."
    if not view.ledger.tasks:
        return f"{text} It has no tasks."
    if word.startswith("#"):
        return f"{text} Its tasks are #0 to #{view.ledger.tasks - 1}."
    near = nearest(_keys(view), word)
    rank = _ALMOST_RANK.fullmatch(word)
    if rank is not None and rank_name(int(rank[1])) in view.manifests:
        near.append(f"rank {int(rank[1])}")
    if near:
        return f"{text} Did you mean {' or '.join(near)}?"
    return f"{text} {to_type('results', view.layout.root)} lists the keys."


def _keys(view: View) -> Iterator[str]:
    for manifest in manifests_of(view):
        if is_original(manifest.name):
            for line in manifest.records(TaskKey):
                yield line.key


# A comparison letter by letter takes some 20 µs. So only those keys are compared that begin or end
# as the word does, whatever its letters' case, or whose file does: who makes one mistake leaves one
# half of the word as it is. A file that is named without its folder is the end of a key.
def nearest(keys: Iterable[str], word: str) -> list[str]:
    """Of these keys the few that are most like a word, the most like first; perhaps none."""
    wanted = word.casefold()
    half = (len(wanted) + 1) // 2
    head, tail = wanted[:half], wanted[-half:]
    below = f"/{head}"
    name = f"/{wanted.rpartition('/')[2]}"
    named: list[str] = []
    alike: dict[str, str] = {}
    for key in itertools.islice(keys, MOST_LOOKED_AT):
        plain = key.casefold()
        if plain == wanted or plain.endswith(name):
            named.append(key)
        elif plain.startswith(head) or plain.endswith(tail) or below in plain:
            alike[plain] = key
    by_length = sorted(alike, key=lambda plain: abs(len(plain) - len(wanted)))[:MOST_COMPARED]
    close = difflib.get_close_matches(wanted, by_length, MOST_NEAR, LIKENESS)
    return [*named, *(alike[plain] for plain in close)][:MOST_NEAR]
