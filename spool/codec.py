"""Records as bytes: JSON, and the checksums that seal it. Bytes that do not parse raise `Damaged`.

Nothing here reads or writes a file.
"""

from __future__ import annotations

import contextlib
import itertools
import operator
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import msgspec

_SEAL, _END = ',"crc":"', '"}\n'
_BETWEEN = _END + _SEAL
_SEAL_BYTES = len(_SEAL + "00000000" + _END)
SEALED_AT_ONCE = 1024  # lines
NO_SEAL = "the line does not end with its checksum"


class Damaged(ValueError):
    """These bytes are not the record they should be; the message says why."""


R = TypeVar("R", bound=msgspec.Struct)
NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
# reading recurses, from frames of the reader's own: what was just written might be too deep for
# others
MAX_DEPTH = 100
SHALLOW_BYTES = 2 * MAX_DEPTH  # no shorter text nests deeper
_NO_BRACKETS = re.compile(rb'[^][{}"]+|"[^"\\]*(?:\\.[^"\\]*)*"')
_decoders: dict[type[msgspec.Struct], msgspec.json.Decoder[Any]] = {}
_encoder = msgspec.json.Encoder()
_open = operator.itemgetter(slice(None, -1))  # without the closing brace


def refuse_depth(text: bytes) -> None:
    """Raises RecursionError for JSON that nests deeper than MAX_DEPTH."""
    if len(text) <= SHALLOW_BYTES or text.count(b"[") + text.count(b"{") <= MAX_DEPTH:
        return
    left = _NO_BRACKETS.sub(b"", text).translate(bytes.maketrans(b"{}", b"[]"))
    for _ in range(MAX_DEPTH):
        left = left.replace(b"[]", b"")
    if left:
        raise RecursionError(f"it nests deeper than {MAX_DEPTH} lists and objects")


def encode(record: msgspec.Struct) -> bytes:
    """The record as one line of JSON."""
    return _encoder.encode(record) + b"\n"


def pretty(record: msgspec.Struct) -> bytes:
    """The record as indented JSON, for files that people open."""
    return msgspec.json.format(_encoder.encode(record), indent=2) + b"\n"


def decoder_of(kind: type[R]) -> msgspec.json.Decoder[R]:
    """What decodes records of this kind; it raises NOT_JSON where the bytes are none."""
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.json.Decoder(kind)
    return decoder


_PRETTY_TAIL = b',\n  "crc": "%08x"\n}\n'


def seal_pretty(record: msgspec.Struct) -> bytes:
    """Indented JSON with its checksum as the last field: the crc32 of all bytes before the comma
    ahead of it.
    """
    body = pretty(record).removesuffix(b"\n}\n")
    return body + _PRETTY_TAIL % zlib.crc32(body)


def unseal_pretty(data: bytes, kind: type[R]) -> R:
    """Raises Damaged unless these are the bytes that were sealed."""
    body = data[: -len(_PRETTY_TAIL % 0)]
    if data != body + _PRETTY_TAIL % zlib.crc32(body):
        raise Damaged("it does not end with its checksum")
    return decode(data, kind)


def decode(data: bytes, kind: type[R]) -> R:
    """Raises Damaged where the bytes are not such a record."""
    try:
        return decoder_of(kind).decode(data)
    except NOT_JSON as error:
        raise Damaged(str(error)) from None


def decode_lines(data: bytes, kind: type[R]) -> list[R]:
    """The records of lines whose checksums need not be looked at. Raises Damaged where one is no
    such record.
    """
    try:
        return decoder_of(kind).decode_lines(data)
    except NOT_JSON as error:
        raise Damaged(str(error)) from None


def _seals(bodies: list[bytes]) -> bytes:
    """The ends of sealed lines, one behind the other: for many at once that costs a fifth of one by
    one.
    """
    sums = struct.pack(f">{len(bodies)}I", *map(zlib.crc32, bodies)).hex("\n", 4)
    return (_SEAL + sums.replace("\n", _BETWEEN) + _END).encode() if bodies else b""


def seal_bodies(bodies: Iterable[bytes]) -> list[bytes]:
    """The sealed lines of records that are encoded already, up to their closing brace."""
    lines: list[bytes] = []
    rest = iter(bodies)
    while some := list(itertools.islice(rest, SEALED_AT_ONCE)):
        lines += map(operator.add, some, _seals(some).splitlines(keepends=True))
    return lines


def seal_lines(records: Iterable[msgspec.Struct]) -> list[bytes]:
    """One line each with its checksum as the last field: the crc32 of all bytes before `,"crc"`."""
    return seal_bodies(map(_open, map(_encoder.encode, records)))


def seal(record: msgspec.Struct) -> bytes:
    """The sealed line of one record."""
    return seal_lines([record])[0]


def check_seal(line: bytes) -> None:
    """Raises Damaged unless the line (without its newline) carries the right checksum."""
    body = line[: 1 - _SEAL_BYTES]
    if line + b"\n" != body + _seals([body]):
        raise Damaged(NO_SEAL)


def unseal(line: bytes, kind: type[R]) -> R:
    """The record of one sealed line (without its newline). Raises Damaged."""
    check_seal(line)
    return decode(line, kind)


def unseal_lines(
    data: bytes, at: int, kind: type[R], refuse: Callable[[int, str], None]
) -> Iterator[tuple[int, R]]:
    """(offset, record) of each sealed line that is one, of data that begin at offset `at`; the last
    newline may lack.

    What is no such record goes to `refuse`. All lines of a spool go through here, a million and
    more a second: they are checked all at once, and one by one only where that finds anything
    wrong.
    """
    lines = data.splitlines(keepends=True)
    if b"".join([line[-_SEAL_BYTES:] for line in lines]) == _seals(
        [line[:-_SEAL_BYTES] for line in lines]
    ):
        with contextlib.suppress(Damaged):
            records = decode_lines(data, kind)
            if len(records) == len(lines):
                return zip(itertools.accumulate(map(len, lines), initial=at), records, strict=False)
    return _unseal_each(data.removesuffix(b"\n").split(b"\n"), at, kind, refuse)


def _unseal_each(
    lines: list[bytes], at: int, kind: type[R], refuse: Callable[[int, str], None]
) -> Iterator[tuple[int, R]]:
    for line in lines:
        start, at = at, at + len(line) + 1
        try:
            yield start, unseal(line, kind)
        except Damaged as error:
            refuse(start, str(error))
