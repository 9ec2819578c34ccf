"""Tables as Parquet, and embeddings as an Arrow file. The one module that imports pyarrow.

pyarrow is no dependency of gpuspool: 150 MB that few need. Whoever asks for one of these formats
without it is told what to install. It is imported here, when a file of such a format is asked for,
and never by a verb that only looks.
"""

from __future__ import annotations

import array
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

from gpuspool.orchestrator.export.columns import Chunk, Field, Type
from gpuspool.spool.errors import UsageError

# A row group has at least so many rows, or so many bytes. Readers skip and share work by row
# groups, so they should not be small; but all of one is in memory until it is written.
GROUP_ROWS = 64 * 1024
GROUP_BYTES = 32 * 1024 * 1024

# How Arrow calls the types of NumPy that both have.
_ARROW_TYPES = {
    "<f2": "float16", "<f4": "float32", "<f8": "float64",
    "|i1": "int8", "<i2": "int16", "<i4": "int32", "<i8": "int64",
    "|u1": "uint8", "<u2": "uint16", "<u4": "uint32", "<u8": "uint64",
}  # fmt: skip

# So many bytes of vectors are one batch of an Arrow file.
BATCH_BYTES = 4 * 1024 * 1024


def pyarrow_for(what: str) -> Any:
    """pyarrow, imported. what: what it is wanted for. Raises UsageError where it is missing."""
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise UsageError(
            f"{what} needs pyarrow, which cannot be imported here ({error}). Install it beside "
            "gpuspool: pip install 'gpuspool[arrow]', or pip install pyarrow. csv, jsonl and npy "
            "need nothing."
        ) from None
    return pyarrow


class ParquetWriter:
    """Writes a table into an open file."""

    def __init__(self, file: BinaryIO, fields: Sequence[Field]) -> None:
        """Raises UsageError where there is no pyarrow."""
        self._pa = pyarrow_for("--format parquet")
        make = _Arrays(self._pa)
        self._makers = [make.of(field.type) for field in fields]
        self._schema = self._pa.schema(
            [self._pa.field(field.name, make.type_of(field.type)) for field in fields]
        )
        # What the usual pool has given back it keeps, which doubles what the process holds.
        self._writer = self._pa.parquet.ParquetWriter(
            file, self._schema, compression="zstd", memory_pool=self._pa.system_memory_pool()
        )
        self._waiting: list[Any] = []
        self._rows = 0
        self._bytes = 0

    def write(self, chunk: Chunk) -> None:
        """Take some rows, and write a row group where there are enough. Raises OSError."""
        columns = [make(column) for make, column in zip(self._makers, chunk.columns, strict=True)]
        batch = self._pa.RecordBatch.from_arrays(columns, schema=self._schema)
        self._waiting.append(batch)
        self._rows += chunk.rows
        self._bytes += batch.nbytes
        if self._rows >= GROUP_ROWS or self._bytes >= GROUP_BYTES:
            self._write_group()

    def _write_group(self) -> None:
        table = self._pa.Table.from_batches(self._waiting, self._schema)
        self._waiting = []
        self._rows = self._bytes = 0
        self._writer.write_table(table, max(1, table.num_rows))

    def close(self) -> None:
        """Write what waits, and the end of the file. Raises OSError."""
        if self._rows:
            self._write_group()
        self._writer.close()


class VectorWriter:
    """Writes rows of one shape into an open Arrow file (IPC), each with what it belongs to.

    Columns: `index` and `key` of the task, `id`, and `vector`, a list of a fixed size, nested where
    rows have several axes.
    """

    def __init__(self, file: BinaryIO, dtype: str, row: tuple[int, ...]) -> None:
        """dtype, row: of what type and shape rows are. Raises UsageError
        for a type that Arrow does not have, and where there is no pyarrow.
        """
        self._pa = pa = pyarrow_for("--stack with .arrow")
        name = _ARROW_TYPES.get(dtype)
        if name is None:
            raise UsageError(
                f"--stack with .arrow takes numbers of the usual types in little-endian order; "
                f"these are {dtype}. Stack them into a .npy file."
            )
        self._row = row
        self._element = getattr(pa, name)()
        vector = self._element
        for size in reversed(row):
            vector = pa.list_(vector, size)
        fields = [("index", pa.int64()), ("key", pa.string()), ("id", pa.string())]
        self._schema = pa.schema([*fields, ("vector", vector)])
        self._writer = pa.ipc.new_file(file, self._schema)
        self._row_bytes = self._element.bit_width // 8 * math.prod(row)
        self._pieces: list[bytes] = []
        self._bytes = 0
        # Of the rows that are not written yet: task, its key, id.
        self._owners: list[tuple[int, str, str]] = []

    def name(self, index: int, key: str, ids: Sequence[str]) -> None:
        """Say whose the next rows are."""
        self._owners += [(index, key, one) for one in ids]

    def put(self, piece: bytes) -> None:
        """Take the next elements. Raises OSError."""
        self._pieces.append(piece)
        self._bytes += len(piece)
        if self._bytes >= BATCH_BYTES and self._bytes >= self._row_bytes > 0:
            self._write_batch(self._bytes // self._row_bytes)

    def _write_batch(self, rows: int) -> None:
        pa = self._pa
        whole = b"".join(self._pieces)
        end = rows * self._row_bytes
        vectors = pa.Array.from_buffers(
            self._element, rows * math.prod(self._row), [None, pa.py_buffer(whole[:end])]
        )
        for size in reversed(self._row):
            vectors = pa.FixedSizeListArray.from_arrays(vectors, size)
        indices, keys, ids = zip(*self._owners[:rows], strict=True)
        columns = [pa.array(indices, pa.int64()), pa.array(keys, pa.string())]
        columns += [pa.array(ids, pa.string()), vectors]
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self._schema))
        self._pieces = [whole[end:]]
        self._bytes = len(whole) - end
        self._owners = self._owners[rows:]

    def close(self) -> None:
        """Write what waits, and the end of the file. Raises OSError."""
        if self._owners:
            self._write_batch(len(self._owners))
        self._writer.close()


class _Arrays:
    """Makes Arrow arrays of columns."""

    def __init__(self, pa: Any) -> None:
        self._pa = pa
        self._pool = pa.system_memory_pool()
        self._types = {
            Type.BOOL: pa.bool_(),
            Type.INT: pa.int64(),
            Type.FLOAT: pa.float64(),
            Type.TEXT: pa.string(),
            Type.JSON: pa.string(),
            Type.NAMES: pa.list_(pa.string()),
        }

    def type_of(self, type_: Type) -> Any:
        """What Arrow calls a type of a column."""
        return self._types[type_]

    def of(self, type_: Type) -> Callable[[Sequence[Any]], Any]:
        """What makes an array of a column of this type."""
        arrow_type = self._types[type_]
        if type_ is Type.TEXT:
            return self._text
        if type_ is Type.JSON:
            return self._json
        return lambda column: self._pa.array(column, type=arrow_type, memory_pool=self._pool)

    def _text(self, column: Sequence[Any]) -> Any:
        # As that of states and hosts mostly is.
        is_one_text = column and column[0] is not None and column.count(column[0]) == len(column)
        if is_one_text:
            return self._pa.repeat(column[0], len(column), memory_pool=self._pool)
        return self._pa.array(column, type=self._pa.string(), memory_pool=self._pool)

    # The texts of a chunk are put together and handed over as one, with the offset of each: no
    # Python string is made of any of them.
    def _json(self, column: Sequence[Any]) -> Any:
        pa = self._pa
        texts = column
        validity = None
        if None in column:
            texts = [b"" if one is None else one for one in column]
            present = [one is not None for one in column]
            validity = pa.array(present, type=pa.bool_()).buffers()[1]
        data = pa.py_buffer(b"".join(texts))
        offsets = pa.py_buffer(array.array("i", itertools.accumulate(map(len, texts), initial=0)))
        return pa.StringArray.from_buffers(len(column), offsets, data, validity)
