"""What a table of results consists of: fields with types, and chunks of columns.

A table is made chunk by chunk, so that of a million tasks little is held at a time, and column by
column, so that what is done with a value is done with thousands of them by one call. Readers (see
`rows.py` and `flatten.py`) make chunks, writers (`csv_text.py`, `jsonl.py`, `arrow.py`,
`frame.py`) take them.

A value that is not there is None, in a column of any type.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import Any

import msgspec


class Type(Enum):
    """What the values of a column are.

    INT: Python integers that 64 bits hold. FLOAT: floats, none of them NaN or infinite. TEXT: str.
    JSON: JSON text as bytes-like objects, without any newline. NAMES: lists of str.
    """

    BOOL = auto()
    INT = auto()
    FLOAT = auto()
    TEXT = auto()
    JSON = auto()
    NAMES = auto()


class Field(msgspec.Struct, frozen=True):
    """The name and the type of a column."""

    name: str
    type: Type


class Chunk(msgspec.Struct, frozen=True):
    """Some rows: for each field a column of `rows` values.

    Whoever passes chunks on holds one at a time, and lets go of it before it asks for the next.
    While two are held, the values of the next one are put between those of the last, all over
    memory: then each of them is slower to reach, and a table takes a third longer.
    """

    rows: int
    columns: Sequence[Sequence[Any]]
