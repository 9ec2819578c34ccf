"""Small parts of sentences."""

from __future__ import annotations

import os

from gpuspool.orchestrator.text.printable import shell_word


def count_of(count: int, one: str, many: str | None = None) -> str:
    """How many there are of something: "1 task", "2 tasks", "0 tasks".

    many: the words for all numbers but 1, if they are not just `one` with an s.
    """
    if count == 1:
        return f"1 {one}"
    return f"{count} {many or one + 's'}"


def short_path(path: str | os.PathLike[str]) -> str:
    """A path as seen from the current folder, while there is one, if that is shorter."""
    whole = os.fspath(path)
    try:
        seen = os.path.relpath(whole)
    except OSError:
        return whole
    return seen if len(seen) <= len(whole) or not os.path.isabs(whole) else whole


def quoted_path(path: str | os.PathLike[str]) -> str:
    """A path as short as `short_path` gives it, as a word of a command in a shell."""
    shown = short_path(path)
    # A word that begins with a dash would be taken for an option.
    return shell_word(f"./{shown}" if shown.startswith("-") else shown)


def to_type(verb: str, spool: str | os.PathLike[str], *words: str) -> str:
    """A command that people are told to type, in backquotes: `gpuspool resume 'my runs/S'`.

    words: what stands behind the spool, as a shell takes it.
    """
    return f"`{' '.join(['gpuspool', verb, quoted_path(spool), *words])}`"
