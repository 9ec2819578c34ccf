"""Small parts of sentences."""

from __future__ import annotations


def count_of(count: int, one: str, many: str | None = None) -> str:
    """How many there are of something: "1 task", "2 tasks", "0 tasks".

    many: the words for all numbers but 1, if they are not just `one` with an s.
    """
    if count == 1:
        return f"1 {one}"
    return f"{count} {many or one + 's'}"
