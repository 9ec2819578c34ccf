"""Records as bytes: JSON, and the checksums that seal it.

Nothing here reads or writes a file. Bytes that are not the record that they should be raise
`Damaged`, so that no reader ever gets a record that nobody wrote. Called by every module that
publishes or reads a file.

A sealed line is the JSON of one record with its checksum as the last field:

    {"task":17,"round":0,"state":"complete","crc":"718f1e62"}

The checksum is the crc32 of all bytes before `,"crc"`, as eight hexadecimal digits. It is checked
on the bytes, before they are parsed. Manifests and journals are sealed lines; run.json and intents
are indented JSON that is sealed as a whole.
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

from gpuspool.spool.errors import Damaged

# A sealed line is the JSON of its record without the closing brace, then a seal: this, eight
# digits, and this.
_SEAL_START = ',"crc":"'
_SEAL_END = '"}\n'
_SEAL_BYTES = len(_SEAL_START + "00000000" + _SEAL_END)

# The end of an indented record that is sealed as a whole.
_PRETTY_SEAL = b',\n  "crc": "%08x"\n}\n'
_PRETTY_SEAL_BYTES = len(_PRETTY_SEAL % 0)

# So many lines are sealed together. A line costs 1.4 us where one is sealed at a time, 0.31 us with
# 64 and 0.28 us with 256 or more, so a larger number would only take more memory.
SEALED_AT_ONCE = 1024

# Why a line is damaged whose checksum is wrong or missing.
NO_SEAL = "the line does not end with its checksum"

# What msgspec raises for bytes that are not such a record.
NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

# No value of a user's may nest deeper than this. Reading JSON recurses, and Python limits the depth
# together with the frames that the reader has open already, so a value that one process managed to
# write might be too deep for the next one to read.
MAX_DEPTH = 100

# JSON of at most so many bytes cannot nest deeper than MAX_DEPTH: each level takes two brackets.
SHALLOW_BYTES = 2 * MAX_DEPTH

# Whatever stands between the brackets of JSON: other characters, and whole strings, which may hold
# brackets of their own.
_NO_BRACKETS = re.compile(rb'[^][{}"]+|"[^"\\]*(?:\\.[^"\\]*)*"')

R = TypeVar("R", bound=msgspec.Struct)

_encoder = msgspec.json.Encoder()
_decoders: dict[type[msgspec.Struct], msgspec.json.Decoder[Any]] = {}
_without_brace = operator.itemgetter(slice(None, -1))


# Plain JSON.


def encode(record: msgspec.Struct) -> bytes:
    """The record as one line of JSON, without a checksum."""
    return _encoder.encode(record) + b"\n"


def pretty(record: msgspec.Struct) -> bytes:
    """The record as indented JSON, for files that people open."""
    return msgspec.json.format(_encoder.encode(record), indent=2) + b"\n"


def decoder_of(kind: type[R]) -> msgspec.json.Decoder[R]:
    """What decodes records of this kind. It raises NOT_JSON for bytes that are none."""
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = msgspec.json.Decoder(kind)
        _decoders[kind] = decoder
    return decoder


def decode(data: bytes, kind: type[R]) -> R:
    """The record that these bytes are. Raises Damaged where they are no such record."""
    try:
        return decoder_of(kind).decode(data)
    except NOT_JSON as error:
        raise Damaged(str(error)) from None


def decode_lines(data: bytes, kind: type[R]) -> list[R]:
    """The records of many lines, whose checksums are not looked at.

    Raises Damaged where any line is no such record. Empty lines are passed over.
    """
    try:
        return decoder_of(kind).decode_lines(data)
    except NOT_JSON as error:
        raise Damaged(str(error)) from None


def refuse_depth(text: bytes) -> None:
    """Raises RecursionError for JSON that nests deeper than MAX_DEPTH.

    Most values are too short, or have too few brackets, to nest so deep. Of any other one the
    brackets alone are kept, and the innermost pairs are removed once for each level that is
    allowed: `[[][[]]]`, `[[]]`, `[]`, nothing. If some are left after that, it is too deep. This
    does not recurse itself.
    """
    if len(text) <= SHALLOW_BYTES:
        return
    if text.count(b"[") + text.count(b"{") <= MAX_DEPTH:
        return
    left = _NO_BRACKETS.sub(b"", text).translate(bytes.maketrans(b"{}", b"[]"))
    for _ in range(MAX_DEPTH):
        left = left.replace(b"[]", b"")
    if left:
        raise RecursionError(f"it nests deeper than {MAX_DEPTH} lists and objects")


# Indented records that are sealed as a whole.


def seal_pretty(record: msgspec.Struct) -> bytes:
    """Indented JSON with its checksum as the last field.

    The checksum is the crc32 of all bytes before the comma in front of `"crc"`.
    """
    body = pretty(record).removesuffix(b"\n}\n")
    return body + _PRETTY_SEAL % zlib.crc32(body)


def unseal_pretty(data: bytes, kind: type[R]) -> R:
    """The record that `seal_pretty` made these bytes of. Raises Damaged where they are others."""
    body = data[:-_PRETTY_SEAL_BYTES]
    if data != body + _PRETTY_SEAL % zlib.crc32(body):
        raise Damaged("it does not end with its checksum")
    return decode(data, kind)


# Sealed lines.


# Sealing many lines together. A body is what is sealed: a line's JSON without its closing brace.
# For the two bodies
#
#     {"task":17,"round":0,"state":"complete"
#     {"task":18,"round":0,"state":"complete"
#
# the checksums are 0x718f1e62 and 0xfcdba95b, and the seals, one behind the other, are
#
#     ,"crc":"718f1e62"}\n,"crc":"fcdba95b"}\n
#
# Three calls into C format all of them, however many there are. `struct.pack` makes four bytes of
# each checksum, the most significant first: 71 8f 1e 62 fc db a9 5b. `hex` writes these with a
# newline after every fourth byte: 718f1e62\nfcdba95b. `replace` makes of each newline the end of
# one seal and the start of the next.
#
# In this way a seal costs 25 ns on top of the 180 ns of its crc32; formatted by itself, with
# `b"%08x" % crc`, it would cost 135 ns. A body becomes a line in 290 ns instead of 345. (Lines of a
# journal, 95 bytes each, 1,024 at once, Python 3.11, the best of 400 measurements.) A task is
# sealed at least twice, in a manifest and in a journal, and each of these seals is formatted once
# more when it is checked.
#
# test_lines_sealed_together_are_those_sealed_one_by_one guards this, and
# test_the_seal_is_what_the_format_says holds it against docs/spool-format.md; both are in
# tests/test_records.py.
def _seals(bodies: list[bytes]) -> bytes:
    """The seals of some lines, one behind the other."""
    if not bodies:
        return b""
    checksums = struct.pack(f">{len(bodies)}I", *map(zlib.crc32, bodies))
    digits = checksums.hex("\n", 4)
    return (_SEAL_START + digits.replace("\n", _SEAL_END + _SEAL_START) + _SEAL_END).encode()


def seal_bodies(bodies: Iterable[bytes]) -> list[bytes]:
    """The sealed lines of records that are encoded already, each without its closing brace."""
    lines: list[bytes] = []
    rest = iter(bodies)
    while some := list(itertools.islice(rest, SEALED_AT_ONCE)):
        lines += map(operator.add, some, _seals(some).splitlines(keepends=True))
    return lines


def seal_lines(records: Iterable[msgspec.Struct]) -> list[bytes]:
    """The sealed lines of some records."""
    return seal_bodies(map(_without_brace, map(_encoder.encode, records)))


def seal(record: msgspec.Struct) -> bytes:
    """The sealed line of one record, with its newline."""
    return seal_lines([record])[0]


def check_seal(line: bytes) -> None:
    """Raises Damaged unless the line, given without its newline, ends with its checksum."""
    body = line[: 1 - _SEAL_BYTES]
    if line + b"\n" != body + _seals([body]):
        raise Damaged(NO_SEAL)


def unseal(line: bytes, kind: type[R]) -> R:
    """The record of one sealed line, given without its newline.

    Raises Damaged where its checksum is wrong, or where it is no such record.
    """
    check_seal(line)
    return decode(line, kind)


# Checking many lines together. Every line of a spool passes through here, and nearly all are whole,
# so the usual case is one comparison and one call of the decoder for all lines. Of the two lines
#
#     {"task":17,"round":0,"state":"complete","crc":"718f1e62"}
#     {"task":18,"round":0,"state":"complete","crc":"fcdba95b"}
#
# the last 19 bytes each are put together, newlines included,
#
#     ,"crc":"718f1e62"}\n,"crc":"fcdba95b"}\n
#
# and compared with the seals that `_seals` makes of what stands in front of them. Where these are
# equal, every checksum is right. The decoder splits the data by itself, and would take two records
# in one line, so it must also find as many records as there are lines.
#
# Where anything is wrong with any line, nothing is concluded from that: the lines are taken one by
# one, which tells which of them are damaged and loses no other. A damaged line costs its chunk
# (1 MiB of a journal, 4,096 lines of a manifest) a second and slower pass, but no other record.
#
# A line takes 0.60 us, of which decoding takes 0.14. The plainest loop over the lines takes 0.75 us
# for each, and `_unseal_each` 1.65 us. (Measured as above.)
#
# test_of_lines_checked_together_each_damaged_one_is_told_and_no_other_is_lost in
# tests/test_records.py guards this. So do test_a_manifest_cut_at_any_byte_keeps_its_whole_lines and
# test_a_flipped_bit_costs_the_line_it_lies_in in tests/test_manifest.py, on every byte and bit.
def unseal_lines(
    data: bytes, at: int, kind: type[R], refuse: Callable[[int, str], None]
) -> Iterator[tuple[int, R]]:
    """The records of sealed lines, each with the offset of its line in the file.

    data: whole lines; the newline of the last one may be missing. at: the offset of `data` in the
    file. refuse: called with the offset of each line that is damaged, and with the reason.
    """
    lines = data.splitlines(keepends=True)
    found = b"".join([line[-_SEAL_BYTES:] for line in lines])
    if found == _seals([line[:-_SEAL_BYTES] for line in lines]):
        with contextlib.suppress(Damaged):
            records = decode_lines(data, kind)
            if len(records) == len(lines):
                offsets = itertools.accumulate(map(len, lines), initial=at)
                # There is one offset more than lines: the end of the last one.
                return zip(offsets, records, strict=False)
    return _unseal_each(data.removesuffix(b"\n").split(b"\n"), at, kind, refuse)


def reread_lines(
    data: bytes, at: int, kind: type[R], refuse: Callable[[int, str], None]
) -> Iterator[tuple[int, R]]:
    """As `unseal_lines`, of lines whose checksums this process has found right a moment ago.

    They are looked at again only where the data does not have one record in each line.
    """
    lines = data.splitlines(keepends=True)
    with contextlib.suppress(Damaged):
        records = decode_lines(data, kind)
        if len(records) == len(lines):
            offsets = itertools.accumulate(map(len, lines), initial=at)
            return zip(offsets, records, strict=False)
    return unseal_lines(data, at, kind, refuse)


def _unseal_each(
    lines: list[bytes], at: int, kind: type[R], refuse: Callable[[int, str], None]
) -> Iterator[tuple[int, R]]:
    """The records of lines without their newlines, of which some are damaged."""
    for line in lines:
        start = at
        at += len(line) + 1
        try:
            yield start, unseal(line, kind)
        except Damaged as error:
            refuse(start, str(error))
