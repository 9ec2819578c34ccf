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


def describe(error: Error) -> str:
    """An error on one line: its type, the line that raised, its message. Safe for a terminal."""
    text = error.type
    if error.where:
        text += f" at {error.where}"
    text = one_line(text)
    message = one_line(error.message)
    if len(message) > MESSAGE_SHOWN:
        message = f"{message[: MESSAGE_SHOWN - 1]}…"
    # A bare `assert` has none.
    return f"{text}: {message}" if message else text


class Groups:
    """Counts failures by group, and keeps one error of each."""

    def __init__(self) -> None:
        self._counts: dict[How, int] = {}
        self._first: dict[How, Error] = {}

    def add(self, error: Error) -> None:
        """Count a failure."""
        how = how_of(error)
        if how not in self._counts:
            if len(self._counts) >= MOST_GROUPS:
                return
            self._first[how] = error
        self._counts[how] = self._counts.get(how, 0) + 1

    def largest(self) -> tuple[int, Error] | None:
        """(how many, the first of them) of the largest group; None where nothing was counted."""
        if not self._counts:
            return None
        how = max(self._counts, key=lambda how: self._counts[how])
        return self._counts[how], self._first[how]
