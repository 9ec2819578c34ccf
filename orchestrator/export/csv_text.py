"""Tables as CSV, as RFC 4180 describes it.

The first line has the names, lines end with CRLF, fields are parted by commas. Text is always in
double quotes, with a double quote inside doubled; numbers, true and false are bare. So a reader can
tell text that looks like a number from a number, and a value that is not there, which is nothing at
all, from empty text. The encoding is UTF-8 without a mark.

Python's csv writer asks of each value what it is. Here a column becomes text as a whole, which
takes half of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import msgspec

from gpuspool.orchestrator.export.columns import Chunk, Field, Type

_encode = msgspec.json.Encoder().encode

# Where a column has so few different values, each of them is quoted once.
FEW = 64


class CsvWriter:
    """Writes a table into an open file."""

    def __init__(self, file: BinaryIO, fields: Sequence[Field]) -> None:
        self._file = file
        self._texts = [_TEXTS[field.type] for field in fields]
        file.write(",".join(_quoted(field.name) for field in fields).encode() + b"\r\n")

    def write(self, chunk: Chunk) -> None:
        """Write some rows. Raises OSError."""
        if not chunk.rows:
            return
        columns = [texts(column) for texts, column in zip(self._texts, chunk.columns, strict=True)]
        lines = "\r\n".join(map(",".join, zip(*columns, strict=True)))
        # UTF-8 has no surrogates. No name or result of a run holds any, but a file is not lost for
        # one that does.
        self._file.write(lines.encode(errors="backslashreplace") + b"\r\n")

    def close(self) -> None:
        """Nothing is left to write."""


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def _texts(column: Sequence[Any]) -> list[str]:
    different = set(column)
    if len(different) == 1:
        return ["" if column[0] is None else _quoted(column[0])] * len(column)
    if len(different) <= FEW:
        known = {value: "" if value is None else _quoted(value) for value in different}
        return [known[value] for value in column]
    if None in different:
        return ["" if value is None else _quoted(value) for value in column]
    joined = "\n".join(column)
    if '"' in joined or joined.count("\n") != len(column) - 1:
        return [_quoted(value) for value in column]
    return ('"' + joined.replace("\n", '"\n"') + '"').split("\n")


# JSON text has no newlines, so all texts are made as one.
def _json_texts(column: Sequence[Any]) -> list[str]:
    whole = column if None not in column else [b"" if one is None else one for one in column]
    joined = b"\n".join(whole).decode(errors="replace").replace('"', '""')
    texts = ('"' + joined.replace("\n", '"\n"') + '"').split("\n")
    if whole is not column:
        return ["" if one is None else text for one, text in zip(column, texts, strict=True)]
    return texts


def _numbers(column: Sequence[Any]) -> list[str]:
    # The encoder of JSON writes numbers several times as fast as `repr` does.
    text: str = _encode(list(column))[1:-1].decode()
    if None in column:
        text = text.replace("null", "")
    return text.split(",")


def _names(column: Sequence[Any]) -> list[str]:
    return ['"[]"' if not names else _quoted(_encode(names).decode()) for names in column]


_TEXTS: dict[Type, Callable[[Sequence[Any]], list[str]]] = {
    Type.BOOL: _numbers,
    Type.INT: _numbers,
    Type.FLOAT: _numbers,
    Type.TEXT: _texts,
    Type.JSON: _json_texts,
    Type.NAMES: _names,
}
