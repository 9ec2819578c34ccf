"""The headers of NumPy's .npy files, and rows out of them, without NumPy.

A .npy file is a short header, which says type, shape and order, and the plain bytes of all elements
behind it. So to put rows of many files into one is to copy bytes, and neither NumPy nor memory for
an array is needed. What is pickled (objects) or has fields is refused.
"""

from __future__ import annotations

import ast
import math
import re
import struct
from collections.abc import Iterator
from typing import BinaryIO, Literal

import msgspec

MAGIC = b"\x93NUMPY"

# Where the header's text begins, by the version of the format: how its length is written.
_LENGTHS = {1: "<H", 2: "<I", 3: "<I"}

# No header of an array of plain numbers is longer.
MOST_HEADER_BYTES = 64 * 1024

# The byte behind the header lies at a multiple of this, as NumPy has it, for memory maps.
ALIGNMENT = 64

# `<f4`, `|b1`, `<U12`, `<M8[ns]`: order, kind, size, unit.
_DTYPE = re.compile(r"[<>|=]([biufcmMSUV])(\d+)(?:\[\w+\])?")

# A character of a text takes so many bytes.
_CHARACTER_BYTES = 4

# Formats of memoryviews whose elements have so many bytes.
_FORMATS: dict[int, Literal["B", "H", "I", "Q"]] = {1: "B", 2: "H", 4: "I", 8: "Q"}

# So much is read at once.
READ_BYTES = 1024 * 1024


class NpyError(ValueError):
    """A file is not a .npy file of plain elements; the message says why."""


class Header(msgspec.Struct, frozen=True):
    """dtype: as NumPy writes it, `<f4`. at: where the elements begin."""

    dtype: str
    shape: tuple[int, ...]
    is_fortran: bool
    at: int

    @property
    def item_bytes(self) -> int:
        match = _DTYPE.fullmatch(self.dtype)
        assert match is not None, self.dtype
        size = int(match[2])
        return size * _CHARACTER_BYTES if match[1] == "U" else size

    @property
    def row(self) -> tuple[int, ...]:
        """The shape of one row: of an array with one axis or none that is all of it."""
        return self.shape[1:] if len(self.shape) > 1 else self.shape

    @property
    def rows(self) -> int:
        """How many rows there are: the first of several axes counts them."""
        return self.shape[0] if len(self.shape) > 1 else 1

    @property
    def row_bytes(self) -> int:
        return self.item_bytes * math.prod(self.row)


def read_header(file: BinaryIO) -> Header:
    """The header of an open file, which is left behind it. Raises NpyError and OSError."""
    start = file.read(8)
    if start[:6] != MAGIC or len(start) < 8:
        raise NpyError("it does not begin as a .npy file does")
    length_format = _LENGTHS.get(start[6])
    if length_format is None:
        raise NpyError(f"it is of version {start[6]} of the format, which is not known")
    size = struct.calcsize(length_format)
    length_text = file.read(size)
    if len(length_text) < size:
        raise NpyError("it ends in its header")
    (length,) = struct.unpack(length_format, length_text)
    text = file.read(min(length, MOST_HEADER_BYTES))
    if len(text) < length:
        raise NpyError("it ends in its header, or that is too long")
    return _parsed(text, 8 + size + length)


def _parsed(text: bytes, at: int) -> Header:
    try:
        found = ast.literal_eval(text.decode("latin-1").strip())
        dtype, shape, is_fortran = found["descr"], found["shape"], found["fortran_order"]
    except (ValueError, SyntaxError, LookupError, TypeError, RecursionError, MemoryError):
        raise NpyError("its header cannot be read") from None
    if not isinstance(dtype, str) or _DTYPE.fullmatch(dtype) is None:
        raise NpyError(f"its elements are {dtype!r:.80}, which is no plain type")
    is_shape = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
    if not is_shape or not isinstance(is_fortran, bool):
        raise NpyError("its header cannot be read")
    return Header(dtype, shape, is_fortran, at)


def make_header(dtype: str, shape: tuple[int, ...], least_bytes: int = 0) -> bytes:
    """The header of a file of such an array, in C order, of at least so many bytes."""
    text = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode("latin-1")
    # Versions of the format differ in how long the header may be, and this one is short.
    before = len(MAGIC) + 2 + 2
    size = max(before + len(text) + 1, least_bytes)
    size += -size % ALIGNMENT
    text = text.ljust(size - before - 1) + b"\n"
    return MAGIC + bytes([1, 0]) + struct.pack("<H", len(text)) + text


def check_size(header: Header, n_bytes: int) -> None:
    """Raise NpyError unless a file of so many bytes can be what its header says, with rows that
    have any elements. To be asked before anything is made that is as large as a header says.
    """
    if header.row_bytes == 0:
        raise NpyError(f"its rows have no elements: its shape is {header.shape}")
    end = header.at + header.row_bytes * header.rows
    if n_bytes < end:
        raise NpyError("it is cut short")
    if n_bytes > end:
        raise NpyError("there is more in it than its header says")


def read_elements(file: BinaryIO, header: Header) -> Iterator[bytes]:
    """The elements of an open file behind its header, row by row in C order, as pieces of bytes.

    Raises NpyError where there are fewer, or more, than the header says, and OSError.
    """
    left = header.row_bytes * header.rows
    if header.is_fortran and len(header.shape) > 1:
        data = file.read(left)
        if len(data) < left:
            raise NpyError("it is cut short")
        yield from _c_rows(data, header)
        left = 0
    while left:
        data = file.read(min(left, READ_BYTES))
        if not data:
            raise NpyError("it is cut short")
        left -= len(data)
        yield data
    if file.read(1):
        raise NpyError("there is more in it than its header says")


def _c_rows(data: bytes, header: Header) -> Iterator[bytes]:
    """The rows, in C order, of an array that is in Fortran's."""
    code = _FORMATS.get(header.item_bytes)
    if code is None:
        raise NpyError(
            f"it is in Fortran order, with elements of {header.item_bytes} bytes; save "
            "numpy.ascontiguousarray(…) of it"
        )
    elements = memoryview(data).cast(code)
    for row in range(header.rows):
        yield _in_c_order(elements[row :: header.rows], header.row)


def _in_c_order(elements: memoryview, shape: tuple[int, ...]) -> bytes:
    """The bytes in C order of an array of this shape that is in Fortran's."""
    if len(shape) < 2:
        return elements.tobytes()
    return b"".join(_in_c_order(elements[one :: shape[0]], shape[1:]) for one in range(shape[0]))
