"""How wide text is on a terminal, and how it is cut to fit.

A terminal has cells. A letter takes one, a character of Chinese, Japanese or Korean and an emoji
take two, and an accent that is put on the letter before it takes none. What is told here is never
less than what a terminal takes: of a sequence that some terminals draw as one emoji each part
counts.

The text must be safe for a terminal already, as `printable.one_line` makes it.
"""

from __future__ import annotations

import re
import unicodedata

# What stands for all that was cut out.
CUT = "…"

# What a line begins with that goes on with the one before.
HANGING = "  "

# The classes of Unicode's East Asian Width that take two cells.
_WIDE = ("W", "F")
# The categories of characters that take none, since they are drawn onto the one before.
_NO_CELL = ("Mn", "Me")
# It asks for the emoji of the character before it, which then takes two cells.
_AS_EMOJI = "\ufe0f"

# A count, a time, or another number with what is written within it.
_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")


def width(text: str) -> int:
    """How many cells a text takes."""
    if text.isascii():
        return len(text)
    return sum(map(_width_of, text))


def _width_of(character: str) -> int:
    if character.isascii() or character == _AS_EMOJI:
        return 1
    if unicodedata.east_asian_width(character) in _WIDE:
        return 2
    return 0 if unicodedata.category(character) in _NO_CELL else 1


def cut_end(text: str, most: int) -> str:
    """The text in at most so many cells, without its end if it is too long."""
    if width(text) <= most:
        return text
    return f"{_beginning(text, most - 1)}{CUT}" if most > 0 else ""


def cut_words(text: str, most: int) -> str:
    """As `cut_end`, for a text with numbers in it: one is whole or left out, since its first digits
    would be another number.
    """
    if width(text) <= most:
        return text
    if most <= 0:
        return ""
    kept = len(_beginning(text, most - 1))
    for number in _NUMBER.finditer(text):
        if number.start() < kept < number.end():
            kept = number.start()
    return f"{text[:kept]}{CUT}"


def cut_front(text: str, most: int) -> str:
    """The text in at most so many cells, without its beginning if it is too long."""
    if width(text) <= most:
        return text
    return f"{CUT}{_end(text, most - 1)}" if most > 0 else ""


def cut_middle(text: str, most: int) -> str:
    """The text in at most so many cells, without its middle if it is too long."""
    if width(text) <= most:
        return text
    if most <= 0:
        return ""
    end = _end(text, (most - 1) // 2)
    return f"{_beginning(text, most - 1 - width(end))}{CUT}{end}"


def cut_name(text: str, most: int) -> str:
    """A name in at most so many cells: a path by its end, anything else without its middle."""
    return cut_front(text, most) if "/" in text else cut_middle(text, most)


def left(text: str, cells: int) -> str:
    """The text at the left of so many cells."""
    return text + " " * (cells - width(text))


def right(text: str, cells: int) -> str:
    """The text at the right of so many cells."""
    return " " * (cells - width(text)) + text


def wrap(words: str, columns: int) -> list[str]:
    """A sentence in lines of at most so many cells. Words that are longer are cut in the middle."""
    lines: list[str] = []
    line = ""
    for word in words.split(" "):
        if line and width(line) + 1 + width(word) > columns:
            lines.append(line)
            line = ""
        line = f"{line} {word}" if line else cut_middle(word, columns)
    return [*lines, line]


def fold(text: str, columns: int) -> list[str]:
    """A line of text as lines of at most so many cells, with nothing left out but spaces.

    It is broken at spaces, a word that is longer than a line where the line ends. What goes on is
    indented, unless the window is so narrow that this would cost a lot of it.
    """
    indent = " " * (len(text) - len(text.lstrip(" "))) + HANGING
    if len(indent) * 4 > columns:
        indent = ""
    lines: list[str] = []
    start = 0
    while True:
        begins = indent if lines else ""
        end = _end_of(text, start, columns - len(begins))
        if end == len(text):
            break
        # A character that is wider than the window stands alone all the same.
        end = max(end, start + 1)
        space = text.rfind(" ", start, end + 1)
        if space >= 0 and text[start:space].strip(" "):
            end = space
        lines.append(f"{begins}{text[start:end].rstrip(' ')}")
        start = end
        while text.startswith(" ", start):
            start += 1
    if start < len(text) or not lines:
        lines.append(f"{begins}{text[start:]}")
    return lines


def _beginning(text: str, most: int) -> str:
    return text[: _end_of(text, 0, most)]


def _end_of(text: str, start: int, most: int) -> int:
    """Up to where the text from `start` on fits into so many cells."""
    taken = 0
    for at in range(start, len(text)):
        taken += _width_of(text[at])
        if taken > most:
            return at
    return len(text)


def _end(text: str, most: int) -> str:
    taken = 0
    for at in range(len(text) - 1, -1, -1):
        taken += _width_of(text[at])
        if taken > most:
            return text[at + 1 :]
    return text
