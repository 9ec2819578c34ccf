"""What `gpuspool explain` is asked about, by the words behind it.

The spool comes first, as behind every verb, and may be left out where it is the only one here. So
the last word says what is meant, or the last two: `rank 3`. A word that looks like a rank or an
attempt means that, `--task` takes it for a task.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import NamedTuple

from gpuspool.orchestrator.plan.locate import at_home
from gpuspool.orchestrator.report.finding import is_attempt, parse_rank
from gpuspool.orchestrator.text.printable import shell_word
from gpuspool.orchestrator.text.words import to_type
from gpuspool.spool.errors import UsageError
from gpuspool.spool.layout import Layout

_EXAMPLE = "Example: `gpuspool explain spool-Embed t7`, or `rank 3` in the place of t7."


class Subject(NamedTuple):
    """One of the three, and in which spool; None for the only one here."""

    spool: str | None
    key: str | None = None
    rank: int | None = None
    attempt: str | None = None


def subject_of(words: Sequence[str], rank: int | None, key: str | None) -> Subject:
    """What is asked about. rank, key: by the options. Raises UsageError."""
    if rank is not None and key is not None:
        raise UsageError("--rank and --task name two things: name one.")
    if rank is not None or key is not None:
        return Subject(_spool_of(words, []), key, rank)
    rest, about = _cut(list(words))
    if not about:
        raise UsageError(f"name a task, a rank or an attempt. {_EXAMPLE}")
    spool = _spool_of(rest, about)
    word = " ".join(about)
    if spool is None and _is_spool(word):
        raise UsageError(
            f"{word} is a spool. Name a task, a rank or an attempt of it too: `gpuspool explain "
            f"{shlex.quote(word)} rank 0`; `--task` takes the word for a task."
        )
    asked = parse_rank(word)
    if asked is not None:
        return Subject(spool, rank=asked)
    if is_attempt(word):
        return Subject(spool, attempt=word)
    return Subject(spool, word)


def _cut(words: list[str]) -> tuple[list[str], list[str]]:
    """(the words before it, the word or the two that say what is asked about)."""
    is_rank = len(words) > 1 and words[-2] == "rank" and words[-1].isdecimal()
    # A spool may be called so, and a task by a number.
    if is_rank and not (len(words) == 2 and _is_spool(words[0])):
        return words[:-2], words[-2:]
    return words[:-1], words[-1:]


def _spool_of(words: Sequence[str], about: Sequence[str]) -> str | None:
    """The spool that these words name, which stand before the others; None where there is none."""
    if not words:
        return None
    if len(words) > 1:
        raise UsageError(
            f"one task or rank at a time: {shlex.join([*words, *about])!r} names more. {_EXAMPLE}"
        )
    if not _is_spool(words[0]) and about and _is_spool(about[-1]):
        swapped = to_type("explain", about[-1], shell_word(words[0]))
        raise UsageError(f"SPOOL comes first: {swapped}")
    return words[0]


def _is_spool(word: str) -> bool:
    return Layout(at_home(word)).format.exists()
