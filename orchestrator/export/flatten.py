"""--flatten: a column for each scalar that stands at the top of the results.

Of `{"label": "cat", "score": 0.9}` that is `label` and `score`. A result that is a scalar itself
has the column `value`. Lists and objects inside of a result stay in the column `result`.

The type of a column is found over all rows before the first is written, since readers that find
another type late stop: integers and floats are floats together, all other mixtures are text, and
null fits everywhere. What is no text then stands as its JSON. Integers of which 64 bits do not hold
some are text, so that no digit is lost; and so are integers and floats where an integer is beyond
all floats. A value that is a list or an object counts like any other
where the same name has scalars elsewhere; else it gets no column.

A million results are decoded twice, to find the types and to make the columns. So both try the
fields that are known so far as a struct, which takes a third of the time that dicts take; only what
does not fit, and is something new therefore, is looked at value by value.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Sequence
from enum import Enum, auto
from typing import Annotated, Any

import msgspec

from gpuspool.orchestrator.export.columns import Field, Type
from gpuspool.spool.errors import UsageError

# More columns than these are a mistake: results with a key for each input.
MOST_COLUMNS = 2000

# The column of results that are scalars themselves.
VALUE = "value"

# What comes before a name that is taken.
PREFIX = "result_"

_LEAST, _MOST = -(2**63), 2**63 - 1
Int64 = Annotated[int, msgspec.Meta(ge=_LEAST, le=_MOST)]


class Kind(Enum):
    """What the values of a name are, as far as they were seen.

    NOTHING: null alone. INT: integers that 64 bits hold. BIG: integers that a float holds, if not
    to the last digit. HUGE: integers. FLOAT: numbers that a float holds. NESTED: lists and objects
    alone.
    """

    NOTHING = auto()
    BOOL = auto()
    INT = auto()
    BIG = auto()
    HUGE = auto()
    FLOAT = auto()
    TEXT = auto()
    NESTED = auto()
    MIXED = auto()


# How a value of each kind is decoded, where null may stand for it.
_HINTS: dict[Kind, Any] = {
    Kind.NOTHING: None,
    Kind.BOOL: bool | None,
    Kind.INT: Int64 | None,
    Kind.BIG: int | None,
    Kind.HUGE: int | None,
    Kind.FLOAT: float | None,
    Kind.TEXT: str | None,
    Kind.NESTED: list[Any] | dict[str, Any] | None,
    Kind.MIXED: Any,
}
_TYPES = {Kind.BOOL: Type.BOOL, Kind.INT: Type.INT, Kind.FLOAT: Type.FLOAT}

# Each of these holds all that those before it hold.
_INTEGERS = [Kind.INT, Kind.BIG, Kind.HUGE]

# What a column of floats holds.
_FLOATS = (Kind.INT, Kind.BIG, Kind.FLOAT)

# These become text as they are written.
_AS_TEXT = (Kind.MIXED, Kind.BIG, Kind.HUGE)


class Flattener:
    """Learns of all results which columns there are, and then makes these."""

    def __init__(self, taken: Iterable[str]) -> None:
        """taken: the names of the other columns."""
        self._taken = [name.casefold() for name in taken]
        # In the order in which they were met. VALUE of scalars is apart from a name "value".
        self._kinds: dict[str, Kind] = {}
        self._of_scalars = Kind.NOTHING
        self._has_scalars = False
        self._decoder: msgspec.json.Decoder[list[Any]] | None = None

    def learn(self, results: list[msgspec.Raw]) -> None:
        """Take the results of some tasks. Raises UsageError for too many names."""
        # A struct does not tell BIG from HUGE.
        if self._decoder is not None and Kind.BIG not in self._kinds.values():
            try:
                self._decoder.decode(_as_list(results))
            except (msgspec.DecodeError, UnicodeDecodeError):
                self._decoder = None
            else:
                return
        for result in results:
            self._learn_one(_decoded(result))
        self._decoder = self._struct_decoder()

    def _learn_one(self, value: Any) -> None:
        if not isinstance(value, dict):
            if not isinstance(value, list) and value is not None:
                self._has_scalars = True
                self._of_scalars = _widened(self._of_scalars, value)
            return
        for name, one in value.items():
            self._kinds[name] = _widened(self._kinds.get(name, Kind.NOTHING), one)
        if len(self._kinds) > MOST_COLUMNS:
            raise UsageError(
                f"--flatten would make more than {MOST_COLUMNS} columns: the results have other "
                "keys in each task. Leave it out; the column `result` has all as JSON."
            )

    def _struct_decoder(self) -> msgspec.json.Decoder[list[Any]] | None:
        """What decodes a list of results that hold nothing new; None where no struct can."""
        fields = [(f"f{at}", _HINTS[kind], None) for at, kind in enumerate(self._kinds.values())]
        names = {f"f{at}": name for at, name in enumerate(self._kinds)}
        if not fields or self._has_scalars:
            return None
        try:
            kind = msgspec.defstruct(
                "Scalars", fields, rename=names, forbid_unknown_fields=True, gc=False
            )
        except ValueError:
            # Not every text can be the name of a field.
            return None
        return msgspec.json.Decoder(list[kind | None])  # type: ignore[valid-type]

    def fields(self) -> list[Field]:
        """The columns, once all was learned."""
        taken = set(self._taken)
        found: list[Field] = []
        for name, kind in self._columns():
            while not name or name.casefold() in taken:
                # Many readers do not tell upper case from lower.
                name = PREFIX + name
            taken.add(name.casefold())
            found.append(Field(name, _TYPES.get(kind, Type.TEXT)))
        return found

    def _columns(self) -> list[tuple[str, Kind]]:
        """The name that each column wants, and what it holds."""
        found = [(VALUE, self._of_scalars)] if self._has_scalars else []
        return found + [pair for pair in self._kinds.items() if pair[1] is not Kind.NESTED]

    def columns(self, results: Sequence[Any]) -> list[list[Any]]:
        """The columns of some rows, of which each has the JSON of a result, or None."""
        if self._decoder is not None:
            try:
                rows = self._decoder.decode(_as_list(results))
            except (msgspec.DecodeError, UnicodeDecodeError):
                # A line has become unreadable since, or another was added.
                return self._slowly(results)
            return self._from_structs(rows)
        return self._slowly(results)

    def _from_structs(self, rows: list[Any]) -> list[list[Any]]:
        columns: list[list[Any]] = []
        has_none = None in rows
        for at, kind in enumerate(self._kinds.values()):
            if kind is not Kind.NESTED:
                take = operator.attrgetter(f"f{at}")
                if has_none:
                    column = [None if row is None else take(row) for row in rows]
                else:
                    column = list(map(take, rows))
                # The others are what they should be, since they were decoded as that.
                columns.append(_fitted(kind, column) if kind in _AS_TEXT else column)
        return columns

    def _slowly(self, results: Sequence[Any]) -> list[list[Any]]:
        values = [None if result is None else _decoded(result) for result in results]
        columns: list[list[Any]] = []
        if self._has_scalars:
            scalars = [None if isinstance(one, (dict, list)) else one for one in values]
            columns.append(_fitted(self._of_scalars, scalars))
        for name, kind in self._kinds.items():
            if kind is not Kind.NESTED:
                column = [one.get(name) if isinstance(one, dict) else None for one in values]
                columns.append(_fitted(kind, column))
        return columns


def _as_list(results: Sequence[Any]) -> bytes:
    """The JSON of a list of these results."""
    if None in results:
        results = [b"null" if one is None else one for one in results]
    return b"[" + b",".join(results) + b"]"


def _decoded(result: msgspec.Raw) -> Any:
    """A result as Python values. Of JSON that msgspec refuses, half a surrogate, what Python's own
    reader makes of it; None where that refuses it too.
    """
    try:
        return msgspec.json.decode(result)
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    try:
        return json.loads(bytes(result))
    except (ValueError, RecursionError):
        return None


def _kind_of(value: Any) -> Kind:
    match value:
        case None:
            return Kind.NOTHING
        case bool():
            return Kind.BOOL
        case int():
            return Kind.INT if _LEAST <= value <= _MOST else _kind_of_big(value)
        case float():
            return Kind.FLOAT
        case str():
            return Kind.TEXT
        case _:
            return Kind.NESTED


def _kind_of_big(value: int) -> Kind:
    try:
        float(value)
    except OverflowError:
        return Kind.HUGE
    return Kind.BIG


def _widened(kind: Kind, value: Any) -> Kind:
    """What holds values of this kind and this value."""
    other = _kind_of(value)
    if kind is other or other is Kind.NOTHING:
        return kind
    if kind is Kind.NOTHING:
        return other
    if kind in _INTEGERS and other in _INTEGERS:
        return max(kind, other, key=_INTEGERS.index)
    if kind in _FLOATS and other in _FLOATS:
        return Kind.FLOAT
    return Kind.MIXED


def _fitted(kind: Kind, column: list[Any]) -> list[Any]:
    """The values as the type of their column has them."""
    match kind:
        case Kind.FLOAT:
            return [float(one) if _kind_of(one) in _FLOATS else None for one in column]
        case Kind.MIXED | Kind.BIG | Kind.HUGE:
            return [_text(one) for one in column]
        case Kind.TEXT:
            return [_clean(one) if isinstance(one, str) else None for one in column]
        case _:
            return [one if _kind_of(one) is kind else None for one in column]


def _text(value: Any) -> str | None:
    """A value of a column of mixed ones: text as it is, all else as JSON."""
    if value is None:
        return None
    if isinstance(value, str):
        return _clean(value)
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _clean(text: str) -> str:
    """Text that UTF-8 can say."""
    return text if text.isascii() else text.encode(errors="replace").decode()
