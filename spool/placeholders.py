"""Placeholders: what stands in braces in the words of a command, and is another text for each task.

The orchestrator looks at them before a run is made, and workers fill them in. What is no
placeholder stays as it was typed:

- braces that hold anything but one name: `{print $1}`, `{"a": 1}`, `{}`, `{1..9}`;
- braces behind `$` and `%`, which are the shell's and curl's: `${HOME}`, `${name}`, `%{http_code}`.

A name alone in braces that is none of ours is most likely one of ours mistyped, so it is refused.
Where such a text is meant, the braces are doubled, as in Python's own format strings: `{{print}}`
becomes `{print}`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable

import msgspec

# Those that are the same for all tasks of a worker.
OF_THE_WORKER = ("rank", "device")

# All placeholders, in the order in which people are told of them.
PLACEHOLDERS = (
    "input", "name", "stem", "suffix", "parent", "output", "key", "index", "scratch",
    *OF_THE_WORKER,
)  # fmt: skip

# The alternatives are tried in this order: what belongs to others, doubled braces, a placeholder.
_BRACES = re.compile(
    r"(?P<others>[$%]\{+\w+\}+)|\{\{(?P<doubled>[A-Za-z_]\w*)\}\}|\{(?P<name>[A-Za-z_]\w*)\}",
    re.ASCII,
)


class Piece(msgspec.Struct, frozen=True):
    """A part of a word: a text, and the placeholder that follows it; "" at the end of the word."""

    text: str
    name: str


def parse(word: str) -> list[Piece]:
    """A word of a command as its pieces, whatever names its placeholders have."""
    pieces: list[Piece] = []
    text = ""
    end = 0
    for match in _BRACES.finditer(word):
        text += word[end : match.start()]
        end = match.end()
        if match["name"]:
            pieces.append(Piece(text, match["name"]))
            text = ""
        elif match["doubled"]:
            text += "{" + match["doubled"] + "}"
        else:
            text += match[0]
    return [*pieces, Piece(text + word[end:], "")]


def fill(pieces: list[Piece], value_of: Callable[[str], str]) -> str:
    """The word of these pieces, with a value in the place of each placeholder.

    What a value holds is never taken for a placeholder.
    """
    return "".join(piece.text + (value_of(piece.name) if piece.name else "") for piece in pieces)


def of_input(name: str, text: str) -> str:
    """What `{input}`, `{name}`, `{stem}`, `{suffix}` or `{parent}` stands for.

    text: that of the input: a path, a line, or a payload as JSON.
    """
    folder, leaf = os.path.split(text)
    match name:
        case "name":
            return leaf
        case "stem":
            return os.path.splitext(leaf)[0]
        case "suffix":
            return os.path.splitext(leaf)[1]
        case "parent":
            return folder or "."
        case _:
            return text
