"""What the worker itself says in its log. A log that takes no more words must cost no task."""

from __future__ import annotations

import contextlib

# A path that only this process can follow, and what people are told instead.
_alias = ("", "")


def tell_instead(alias: str, path: str) -> None:
    """From now on say `path` where a text names the alias."""
    global _alias
    _alias = (alias, path)


def for_people(text: str) -> str:
    """A text with paths that people can follow."""
    alias, path = _alias
    if not alias:
        return text
    return text.replace(alias, path)


def cut(text: str, most: int) -> str:
    """A text of at most so many characters. One that was cut ends so that it shows."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def say(text: str) -> None:
    """Print one line or several, at once. Where the log cannot be written, say nothing."""
    # A job may put anything in the place of stdout, so anything may be raised here.
    with contextlib.suppress(Exception):
        print(for_people(text), flush=True)
