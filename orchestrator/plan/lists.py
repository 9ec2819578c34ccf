"""Files that list tasks: what stands in them, as pieces of text or as tasks with payload and key.

A list is text in UTF-8. Windows puts a mark in front of such a file and a carriage return at the
end of each line; both are taken away, since neither is meant. What a user wrote is left as it is:
nothing else is trimmed off a line that is a payload, and a quoted field of CSV keeps its newlines.

Whatever cannot be read is refused with a UsageError that names the file and the line. Called by
plan/inputs.py alone.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from gpuspool.orchestrator.plan.locate import at_home
from gpuspool.orchestrator.text.words import count_of
from gpuspool.spool.codec import refuse_depth
from gpuspool.spool.errors import UsageError
from gpuspool.spool.records import TaskLine

# A cost must be less than this. The costs of all tasks are added up, and even a million of the
# largest must not become infinite.
COST_LIMIT = 1e200

# Files of these names hold one JSON value a line, even if there is a single line, and an array.
LINE_SUFFIXES = (".jsonl", ".ndjson")

# Tables of these names have tabs between their columns; all others have commas.
TAB_SUFFIXES = (".tsv", ".tab")

T = TypeVar("T")

# Other encodings are known by their first bytes. UTF-32 comes first: in one byte order its mark
# begins with that of UTF-16.
_OTHER_ENCODINGS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)

# What is compressed is known by its first bytes.
_COMPRESSED = ((b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"\xfd7zXZ\0", "xz"))

# The fields that are told of an object which has not the one that was asked for.
SHOWN_FIELDS = 10


class Listed(msgspec.Struct, Generic[T], frozen=True):
    """What a list has, each with its number there.

    unit: what the numbers count, for messages: "inputs.csv, line".
    """

    unit: str
    entries: Iterable[tuple[int, T]]


class TaskSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A value of --tasks that says more than its payload."""

    payload: msgspec.Raw
    key: str | None = None
    cost: float | None = None


def read_lines(source: str) -> list[str]:
    """The lines of a text file or of standard input, without their ends. Raises UsageError."""
    text = _read_text(source)
    if not text:
        return []
    # Not str.splitlines: a payload may hold any of the other characters that it splits at.
    found = text.removesuffix("\n").split("\n")
    if "\r" not in text:
        return found
    return [line.removesuffix("\r") for line in found]


def read_paths(source: str, is_null: bool) -> Listed[str]:
    """The paths that a file lists. Raises UsageError.

    is_null: a zero byte ends each path, as `find -print0` prints them, and all that stands between
    is the path. Else they are lines, of which empty ones are left out.
    """
    if is_null:
        unit = f"{source}, entry"
        found = [os.fsdecode(name) for name in _read(source).split(b"\0")]
    else:
        unit = f"{source}, line"
        found = read_lines(source)
    return Listed(unit, [(number, path) for number, path in enumerate(found, 1) if path])


def read_tasks(source: str, key_field: str | None) -> Listed[TaskLine]:
    """The tasks of --tasks: one JSON array, or one JSON value a line. Raises UsageError.

    key_field: each value is an object, which is the payload as a whole, and this field of it is the
    key.
    """
    text = _read_text(source)
    items = _array_items(source, text)
    if items is None:
        unit = f"{source}, line"
        lines = text.split("\n")
        return Listed(unit, _tasks_of(_taken_off(lines), unit, key_field))
    unit = f"{source}, item"
    return Listed(unit, _tasks_of(enumerate(items, 1), unit, key_field))


def _array_items(source: str, text: str) -> Iterator[bytes] | None:
    """The items of a file that is one JSON array; None where it is not.

    A file of lines may be a single line that is an array, which is a payload. The name tells.
    """
    if not text.lstrip().startswith("[") or source.lower().endswith(LINE_SUFFIXES):
        return None
    try:
        items = msgspec.json.decode(text, type=list[msgspec.Raw])
    except (msgspec.DecodeError, RecursionError) as error:
        if _is_json(text.lstrip().partition("\n")[0]):
            return None
        raise UsageError(
            f"{source} begins as a JSON array: {error}. A file of tasks is one JSON array, or has "
            "one JSON value a line; nothing was run."
        ) from None
    # Items may be spread over lines, and a task is one line.
    return (msgspec.json.format(bytes(item), indent=-1) for item in items)


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def _taken_off(lines: list[str]) -> Iterator[tuple[int, bytes]]:
    """(number, value) of each line that is not blank.

    The lines are taken off their list one by one, because a million of them are large, and the
    sealed lines that they become are as large again.
    """
    lines.reverse()
    count = len(lines)
    while lines:
        line = lines.pop().strip()
        if line:
            yield count - len(lines), line.encode()


def _tasks_of(
    values: Iterable[tuple[int, bytes]], unit: str, key_field: str | None
) -> Iterator[tuple[int, TaskLine]]:
    for index, (number, value) in enumerate(values):
        where = f"{unit} {number}"
        yield number, _task(index, _parse_spec(value, key_field, where), where)


def _parse_spec(data: bytes, key_field: str | None, where: str) -> TaskSpec:
    """The payload alone, or an object with a payload and what else it says. Raises UsageError."""
    try:
        value = msgspec.json.decode(data)
        refuse_depth(data)
        if key_field is not None:
            return TaskSpec(msgspec.Raw(data), key_in(value, key_field, where))
        if isinstance(value, dict) and "payload" in value:
            return msgspec.json.decode(data, type=TaskSpec)
        return TaskSpec(msgspec.Raw(data))
    except (msgspec.DecodeError, RecursionError) as error:
        raise UsageError(
            f"{where}: {error}. Each line, or each item of one array, is a JSON value; nothing was "
            "run."
        ) from None


def key_in(value: Any, field: str, where: str) -> str:
    """The key that a field of an object holds: a text, or a whole number as its digits.

    Raises UsageError for whatever could be written in several ways (1.0 and 1, true and True) or
    names nothing.
    """
    if not isinstance(value, dict):
        raise UsageError(
            f"{where}: --key-field {field} needs an object, and this is {value!r:.80}. Nothing was "
            "run."
        )
    if field not in value:
        raise UsageError(f"{where}: {_no_field(field, list(value), 'field')} Nothing was run.")
    key = value[field]
    if isinstance(key, int) and not isinstance(key, bool):
        return str(key)
    if not isinstance(key, str):
        raise UsageError(
            f"{where}: the field {field} is {key!r:.80}; a key is a text or a whole number. "
            "Nothing was run."
        )
    return key


def _no_field(field: str, fields: list[Any], what: str) -> str:
    """That there is no such field, or column; which there are, and which may be meant."""
    names = list(map(str, fields))
    shown = ", ".join(map(repr, names[:SHOWN_FIELDS]))
    if len(names) > SHOWN_FIELDS:
        shown += ", …"
    text = f"there is no {what} {field!r}. There are: {shown or 'none'}."
    import difflib

    near = difflib.get_close_matches(field, names, 1)
    if near:
        text += f" Is {near[0]!r} meant?"
    return text


def _task(index: int, spec: TaskSpec, where: str) -> TaskLine:
    cost = spec.cost
    if cost is None:
        cost = 1.0
    if not 0 <= cost < COST_LIMIT:
        raise UsageError(
            f"{where}: cost {cost} is not a number from 0 to {COST_LIMIT:g}. It says how much work "
            "the task is, in any unit, or leave it out; nothing was run."
        )
    key = spec.key
    if key is None:
        key = f"t{index}"
    return TaskLine(task=index, key=key, payload=spec.payload, cost=cost)


def read_table(source: str, key_field: str | None) -> Listed[TaskLine]:
    """The tasks of a CSV file: one for each row below the header, by column. Raises UsageError.

    The payload is an object of texts. key_field: the column that holds the keys.
    """
    return Listed(f"{source}, line", _rows(source, key_field))


def _rows(source: str, key_field: str | None) -> Iterator[tuple[int, TaskLine]]:
    delimiter = "\t" if source.lower().endswith(TAB_SUFFIXES) else ","
    # Not as lines: a quoted field may hold the ends of lines, which are data there.
    text = io.StringIO(_read_text(source), newline="")
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    columns: list[str] = []
    index = 0
    first = 1
    with _any_length(), _naming_line(source, reader):
        for row in reader:
            where = f"{source}, line {first}"
            if not row:
                # An empty line, as many programs leave at the end.
                pass
            elif not columns:
                columns = row
                _check_header(columns, key_field, where)
            else:
                yield first, _row_task(index, columns, row, key_field, where)
                index += 1
            first = reader.line_num + 1
    if not columns:
        raise UsageError(
            f"{source} is empty; the first line of a table names its columns. Nothing was run."
        )


@contextlib.contextmanager
def _any_length() -> Iterator[None]:
    """Fields of any length are read: by default the module refuses those of more than 128 KiB."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


@contextlib.contextmanager
def _naming_line(source: str, reader: Any) -> Iterator[None]:
    """What the parser refuses becomes a UsageError with the line that it came to."""
    try:
        yield
    except csv.Error as error:
        raise UsageError(
            f"{source}, line {reader.line_num}: {error}. In a quoted field a quote is written "
            "twice. Nothing was run."
        ) from None


def _check_header(columns: list[str], key_field: str | None, where: str) -> None:
    """Raise UsageError unless each column has a name of its own, and one is that of the keys."""
    for number, column in enumerate(columns, 1):
        if not column.strip():
            raise UsageError(
                f"{where}: column {number} has no name. The first line of a table names its "
                "columns; nothing was run."
            )
        if column in columns[: number - 1]:
            raise UsageError(
                f"{where}: two columns are called {column!r}. Rename one; nothing was run."
            )
    other = next((mark for mark in ";\t" if mark in columns[0]), None)
    if len(columns) == 1 and other is not None:
        raise UsageError(
            f"{where}: the columns seem to be separated by {other!r}. Use commas, or tabs in a "
            "file that is called .tsv; nothing was run."
        )
    if key_field is not None and key_field not in columns:
        raise UsageError(f"{where}: {_no_field(key_field, columns, 'column')} Nothing was run.")


def _row_task(
    index: int, columns: list[str], row: list[str], key_field: str | None, where: str
) -> TaskLine:
    if len(row) != len(columns):
        raise UsageError(
            f"{where}: {count_of(len(row), 'field')}, but the header has "
            f"{count_of(len(columns), 'column')}. A field that holds the separator is written in "
            "quotes; nothing was run."
        )
    payload = dict(zip(columns, row, strict=True))
    key = f"t{index}" if key_field is None else payload[key_field]
    return TaskLine(
        task=index, key=key, payload=msgspec.Raw(msgspec.json.encode(payload)), cost=1.0
    )


def _read_text(source: str) -> str:
    """A text file without the mark that Windows puts in front. Raises UsageError."""
    data = _read(source)
    for mark, encoding in _OTHER_ENCODINGS:
        if data.startswith(mark):
            raise UsageError(
                f"{source} is {encoding}, and only UTF-8 is read. Convert it: "
                f"`iconv -f {encoding} -t UTF-8`."
            )
    for mark, program in _COMPRESSED:
        if data.startswith(mark):
            raise UsageError(
                f"{source} is compressed. Name - instead of it, and give what is in it: "
                f"`{program} -dc {source} | gpuspool …`."
            )
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{source}, line {_line_of(data, error.start)}, byte {error.start}: not UTF-8. "
            "Convert it, e.g. with iconv."
        ) from None
    at = data.find(b"\0")
    if at >= 0:
        raise UsageError(
            f"{source}, line {_line_of(data, at)}: a zero byte. Paths that end with one, as `find "
            "-print0` prints them, need `--files-from FILE --null`; a file in UTF-16 must be "
            "converted: `iconv -f UTF-16 -t UTF-8`."
        )
    return text


def _line_of(data: bytes, at: int) -> int:
    return data.count(b"\n", 0, at) + 1


def _read(source: str) -> bytes:
    """A file, or standard input. Raises UsageError."""
    if source == "-" and sys.stdin is None:
        raise UsageError("there is no stdin. Name a file.")
    try:
        if source == "-":
            return sys.stdin.buffer.read()
        return Path(at_home(source)).read_bytes()
    except OSError as error:
        raise UsageError(
            f"{source} cannot be read: {error.strerror}. Name a readable file, or - for stdin."
        ) from None
