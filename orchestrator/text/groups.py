"""Failures that are one failure to people: of one kind and type, at one line of the user's code."""

from __future__ import annotations

from gpuspool.orchestrator.text.printable import one_line
from gpuspool.spool.records import Error, ErrorBrief

# How failures of one group failed: kind, type, and where.
How = tuple[str, str, str]
# So many groups are told apart. A job whose errors all differ must not take the memory for a
# million of them; what comes later is counted with nobody.
MOST_GROUPS = 1000
# So much of a message is shown where there is one line for it.
MESSAGE_SHOWN = 300


def how_of(error: Error | ErrorBrief) -> How:
    """The group that an error belongs to."""
    return error.kind, error.type, error.where


def describe(error: Error, *, is_example: bool = False) -> str:
    """An error on one line: its type, the line that raised, its message. Safe for a terminal.

    is_example: others of the same group say something else.
    """
    text = error.type
    if error.where:
        text += f" at {error.where}"
    text = one_line(text)
    message = one_line(error.message)
    if len(message) > MESSAGE_SHOWN:
        message = f"{message[: MESSAGE_SHOWN - 1]}…"
    # A bare `assert` has none.
    if not message:
        return text
    return f"{text}, such as: {message}" if is_example else f"{text}: {message}"


class Groups:
    """Counts failures by group, and keeps one error of each."""

    def __init__(self) -> None:
        self._counts: dict[How, int] = {}
        self._first: dict[How, Error] = {}
        # The groups in which messages differ.
        self._mixed: set[How] = set()

    def add(self, error: Error) -> None:
        """Count a failure."""
        how = how_of(error)
        if how not in self._counts:
            if len(self._counts) >= MOST_GROUPS:
                return
            self._first[how] = error
        elif error.message != self._first[how].message:
            self._mixed.add(how)
        self._counts[how] = self._counts.get(how, 0) + 1

    def by_size(self) -> list[tuple[int, Error]]:
        """(how many, the first of them) of each group, the largest first."""
        hows = sorted(self._counts, key=lambda how: -self._counts[how])
        return [(self._counts[how], self._first[how]) for how in hows]

    def is_mixed(self, error: Error) -> bool:
        """Whether others of the group of an error have other messages."""
        return how_of(error) in self._mixed
