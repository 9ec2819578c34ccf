"""FASTA by offset: plain text, or bgzip through its virtual offsets. Standard library only.

One parser serves the index, the job and the merge, so the job reads exactly what the index counted.
It takes the file as bytes. An id is the text between `>` and the first space or tab, in any
encoding. It may be empty or occur twice, since a record is identified by its position and never by
its id. Blank lines, CRLF, a last line without its end and records without residues are fine.
Residues are all bytes of a record's lines except white space, in upper or lower case as they stand.

These are refused, with file and offset: text before the first header, NUL bytes, a carriage return
inside a header (line ends of an old Mac), headers over 1 MiB, damaged or cut bgzip, and gzip that
is not bgzip, since no place in it can be reached without unpacking everything before it.
"""

import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import BinaryIO

# How many bytes of a line are read at once, so that a chromosome on one line needs no more memory.
PIECE = 64 * 1024
# How many bytes a header may have. The longest real ones, of merged proteins in nr, have some 100
# KB.
HEADER = 1024 * 1024
BLANKS = b" \t\r\n\v\f"
GZIP = b"\x1f\x8b"
BGZIP = b"\x1f\x8b\x08\x04"
# The only extra field that bgzip writes. The size of the block, less 1, follows it.
BGZIP_EXTRA = b"\x06\x00BC\x02\x00"
# How many bytes the head of a block has.
BGZIP_HEAD = 18
# More bytes than the text of a block ever has: a virtual offset is (offset of the block) * this +
# (offset in its text).
BGZIP_BLOCK = 1 << 16


class FastaError(Exception):
    """The file is not what it should be; the message says where, and what to do."""


@dataclass(frozen=True)
class Record:
    """One record. offset: of its header; residues: how many; crc: the crc32 of its lines.

    is_last: no record follows. id and sequence are bytes as they stand in the file, and empty if
    scan() was told not to keep them.
    """

    offset: int
    id: bytes
    sequence: bytes
    residues: int
    crc: int
    is_last: bool


def scan(fasta: str, offset: int = 0, *, keep: bool = True) -> Iterator[Record]:
    """Yield the records of a FASTA file from a header's offset on.

    offset: in bytes; in bgzip a virtual offset, (offset of the block) << 16 | (offset in its text).
    keep: whether records hold their ids and sequences. If not, these are only checked, and no more
    than a header is ever in memory. Raises FastaError, OSError.
    """
    parts: list[bytes] = []
    at, head, residues, crc = -1, b"", 0, 0
    for position, is_header, text in _lines(fasta, offset):
        if is_header:
            if at >= 0:
                yield Record(at, head, b"".join(parts), residues, crc, is_last=False)
            at, head, parts, residues, crc = position, _id(fasta, position, text), [], 0, 0
            head = head if keep else b""
        else:
            part = text.translate(None, BLANKS)
            residues += len(part)
            parts += [part] if keep else []
        crc = zlib.crc32(text, crc)
    if at >= 0:
        yield Record(at, head, b"".join(parts), residues, crc, is_last=True)


def chain(checksum: int, crc: int) -> int:
    """Return the checksum of some records, from that of all but the last and the last one's crc.

    The checksum of no records is 0.
    """
    return zlib.crc32(crc.to_bytes(4, "big"), checksum)


def read_range(
    fasta: str, offset: int, first: int, records: int, crc: int, last: bool
) -> list[Record]:
    """Return the records of one task of index.py; the arguments are its payload.

    Raises FastaError unless they are, byte for byte, those that were indexed, and OSError if the
    file cannot be read.
    """
    found = list(islice(scan(fasta, offset), records))
    checksum = 0
    for record in found:
        checksum = chain(checksum, record.crc)
    if len(found) != records or checksum != crc or found[-1].is_last != last:
        last_record = first + records - 1
        raise FastaError(
            f"{fasta} changed since it was indexed: from offset {offset} on, "
            f"records {first} to {last_record} are no longer what index.py saw. "
            "Restore the file, or index it again and use a new spool."
        )
    return found


def _id(fasta: str, offset: int, header: bytes) -> bytes:
    line = header[1:].rstrip(b"\r\n")
    if b"\r" in line:
        raise FastaError(
            f"{fasta}, offset {offset}: a carriage return inside a header. "
            "Are its line ends those of an old Mac? Convert it: tr '\\r' '\\n'."
        )
    return line.replace(b"\t", b" ").partition(b" ")[0]


def _lines(fasta: str, offset: int) -> Iterator[tuple[int, bool, bytes]]:
    """Yield (offset, is it a header, text). Headers are whole, other lines may come in pieces."""
    header, at, starts = b"", -1, True
    for position, piece in _pieces(fasta, offset):
        if b"\0" in piece:
            raise FastaError(f"{fasta}, offset {position}: NUL bytes; this is no text file.")
        begins = starts and piece.startswith(b">")
        starts = piece.endswith(b"\n")
        if begins:
            at = position
        elif at < 0 and piece.strip():
            raise FastaError(
                f"{fasta}, offset {position}: {piece[:40]!r} where a header (>) should be."
            )
        if not begins and not header:
            yield position, False, piece
            continue
        header += piece
        if len(header) > HEADER:
            raise FastaError(
                f"{fasta}, offset {at}: a header of more than {HEADER} bytes. Is this FASTA?"
            )
        if starts:
            yield at, True, header
            header = b""
    if header:
        yield at, True, header


def _pieces(fasta: str, offset: int) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, bytes): each line, or a part of at most 64 KiB of one."""
    with open(fasta, "rb") as file:
        if _is_bgzip(fasta, file):
            yield from _bgzip_pieces(fasta, file, offset)
            return
        file.seek(offset)
        while piece := file.readline(PIECE):
            yield offset, piece
            offset += len(piece)


def _bgzip_pieces(fasta: str, file: BinaryIO, offset: int) -> Iterator[tuple[int, bytes]]:
    inside = offset % BGZIP_BLOCK
    for at, text in _blocks(fasta, file, offset // BGZIP_BLOCK):
        stream = io.BytesIO(text)
        stream.seek(inside)
        for piece in stream:
            yield at * BGZIP_BLOCK + inside, piece
            inside += len(piece)
        inside = 0


def _is_bgzip(fasta: str, file: BinaryIO) -> bool:
    head = file.read(BGZIP_HEAD)
    if head.startswith(GZIP) and _block_size(head) == 0:
        raise FastaError(
            f"{fasta} is plain gzip, in which no record can be reached without unpacking "
            "all before it. Recompress it: gzip -dc FILE.gz | bgzip > FILE.bgz, or unpack it."
        )
    return head.startswith(GZIP)


def _block_size(head: bytes) -> int:
    """Return how many bytes a bgzip block has, by its head; 0 if this is not the head of one."""
    if len(head) < BGZIP_HEAD or not head.startswith(BGZIP) or head[10:16] != BGZIP_EXTRA:
        return 0
    return int.from_bytes(head[16:18], "little") + 1


def _blocks(fasta: str, file: BinaryIO, at: int) -> Iterator[tuple[int, bytes]]:
    """Yield (offset in the file, text) of each bgzip block.

    Raises FastaError unless the last block is empty: bgzip ends every file so, and this one was
    cut.
    """
    file.seek(at)
    text = b"cut"
    while head := file.read(BGZIP_HEAD):
        size = _block_size(head)
        if size == 0:
            raise FastaError(
                f"{fasta}, byte {at}: no bgzip block begins here. Recompress all of it with bgzip."
            )
        try:
            text = zlib.decompress(head + file.read(size - BGZIP_HEAD), wbits=31)
        except zlib.error as error:
            raise FastaError(
                f"{fasta}, byte {at}: damaged bgzip block ({error}). Make the file again."
            ) from None
        yield at, text
        at += size
    if text:
        raise FastaError(
            f"{fasta} was cut: bgzip's empty last block is missing. Make the file again."
        )
