"""Tables as JSON lines: one object for each row, with every column in every line.

A value that is not there is null. The result is text, as in every other format: its type would
change from line to line otherwise, and readers that look at the first lines to learn what comes
would stop at the first other one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, BinaryIO

import msgspec

from gpuspool.orchestrator.export.columns import Chunk, Field, Type
from gpuspool.orchestrator.text.printable import plain_json

# What ends a line for some who read text, besides a newline, which JSON has as an escape.
_LINE_ENDS = [end.encode() for end in ("\x85", "\u2028", "\u2029")]

_encode_lines = msgspec.json.Encoder().encode_lines


class JsonWriter:
    """Writes a table into an open file."""

    def __init__(self, file: BinaryIO, fields: Sequence[Field]) -> None:
        self._file = file
        self._types = [field.type for field in fields]
        self._make = _maker([field.name for field in fields])

    def write(self, chunk: Chunk) -> None:
        """Write some rows. Raises OSError."""
        columns = [
            _as_texts(column) if type_ is Type.JSON else column
            for type_, column in zip(self._types, chunk.columns, strict=True)
        ]
        data = _encode_lines(list(self._make(columns)))
        if any(end in data for end in _LINE_ENDS):
            data = plain_json(data)
        self._file.write(data)

    def close(self) -> None:
        """Nothing is left to write."""


def _maker(names: list[str]) -> Callable[[Sequence[Sequence[Any]]], Iterable[Any]]:
    """What makes an object of each row of some columns, with these names.

    A struct is made and encoded in half of the time that a dict takes, but cannot have all names.
    """
    attributes = [f"f{number}" for number in range(len(names))]
    try:
        row = msgspec.defstruct(
            "Row", attributes, rename=dict(zip(attributes, names, strict=True)), gc=False
        )
    except ValueError:
        return lambda columns: [
            dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)
        ]
    return lambda columns: map(row, *columns)


def _as_texts(column: Sequence[Any]) -> list[str | None]:
    return [None if one is None else str(one, "utf-8", "replace") for one in column]
