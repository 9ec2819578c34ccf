#!/usr/bin/env python3
"""Merge the outputs of a finished spool into OUT.npy and OUT.ids.txt.

Row i and line i are those of record i of the FASTA file. This is guaranteed so:

- The ranges are taken in the order of the tasks. They must begin at record 0, leave no gap, and end
  where the file ends.
- Each output must hold as many rows and ids as its range has records, and all rows must be float32
  and of one width. If something does not fit, it is named and nothing is written.
- Both files are written under hidden names and then renamed, the ids first. So an OUT.npy that
  exists is whole, and so are its ids. An OUT.npy is never replaced.

Only one range is in memory at a time. This is a program of its own, on gpuspool's Python API, so
that gpuspool itself does not need NumPy.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
from fasta import FastaError, read_range
from index import whole

from gpuspool.orchestrator.report.results import Result, Results
from gpuspool.spool.errors import GpuspoolError
from gpuspool.spool.view import View, open_view

# How many missing ranges a message lists one by one.
SHOWN = 20
FIELDS = {"fasta", "offset", "first", "records", "crc", "last"}

Floats = npt.NDArray[np.float32]


class MergeError(Exception):
    """Nothing was merged; the message says why. The exit status is 2, or that of the class."""

    exit_code = 2


class RangesMissing(MergeError):
    """Ranges failed or are not finished yet."""

    exit_code = 3


class Mismatch(MergeError):
    """The plan or an output is not what it should be."""

    exit_code = 5


@dataclass(frozen=True)
class Range:
    """A task: its payload as index.py wrote it, and what became of it."""

    payload: dict[str, Any]
    result: Result

    @property
    def records(self) -> int:
        count: int = self.payload["records"]
        return count

    def __str__(self) -> str:
        first = self.payload["first"]
        return f"{self.result.key} (records {first} to {first + self.records - 1})"


def read_plan(view: View) -> list[dict[str, Any]]:
    """Return the payloads of all tasks, in order.

    Raises Mismatch unless they are the whole of one FASTA file.
    """
    found = {
        task.task: task.payload for manifest in view.manifests.values() for task in manifest.tasks()
    }
    plan: list[dict[str, Any]] = []
    following = 0
    for index in range(view.run.tasks):
        payload = json.loads(bytes(found[index])) if index in found else None
        if (
            not isinstance(payload, dict)
            or payload.keys() != FIELDS
            or payload["first"] != following
        ):
            raise Mismatch(
                f"task {index}: its payload {payload} is not the range from record {following} on."
            )
        if payload["last"] != (index == view.run.tasks - 1):
            raise Mismatch(
                f"task {index}: its range {payload} ends the file, or the last one does not: "
                "tasks are missing."
            )
        plan.append(payload)
        following += payload["records"]
    return plan


class Outputs:
    """The outputs of a spool, range by range. Raises MergeError, GpuspoolError."""

    def __init__(self, spool: Path) -> None:
        view = open_view(spool)
        self._folder = Path(view.run.out or view.layout.outputs)
        self._plan = read_plan(view)
        self._results = Results(view)
        self.records = sum(payload["records"] for payload in self._plan)
        self.missing = [one for one in self if one.result.state != "complete"]
        self.width = next(
            (self._read(one)[0].shape[1] for one in self if one.result.state == "complete"), 0
        )

    def __iter__(self) -> Iterator[Range]:
        for payload, result in zip(self._plan, self._results, strict=True):
            yield Range(payload, result)

    def read(self, one: Range) -> tuple[Floats, bytes]:
        """Return a range's rows, float32 [records, width], and its ids, each with a line feed.

        Rows of a missing range are NaN; its ids come from the FASTA file.
        """
        if one.result.state == "complete":
            rows, ids = self._read(one)
        else:
            rows = np.full((one.records, self.width), np.nan, np.float32)
            ids = b"".join(record.id + b"\n" for record in read_range(**one.payload))
        named = ids.count(b"\n")
        expected = (one.records, self.width)
        if rows.shape != expected or named != one.records:
            raise Mismatch(f"{one}: rows {list(rows.shape)} and {named} ids, not {list(expected)}.")
        return rows, ids

    def _read(self, one: Range) -> tuple[Floats, bytes]:
        path = self._folder / f"{one.result.key}.npz"
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as data:
                rows, ids = data["rows"], data["ids"]
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise Mismatch(
                f"{one}: {path} has no rows and ids that can be read ({error})."
            ) from None
        if rows.dtype != np.float32 or ids.dtype != np.uint8 or rows.ndim != 2:
            raise Mismatch(
                f"{one}: rows are {rows.dtype} of {rows.ndim} dimensions, expected float32 of 2."
            )
        return rows, ids.tobytes()


def name_missing(missing: list[Range]) -> str:
    """Return a line for each missing range: its key, its records, its state and its error."""
    lines = []
    for one in missing[:SHOWN]:
        error = one.result.error
        lines.append(
            f"  {one}: {one.result.state}" + (f", {error.type}: {error.message}" if error else "")
        )
    more = [f"  and {len(missing) - SHOWN} more"] if len(missing) > SHOWN else []
    return "\n".join([f"{len(missing)} ranges are not complete:", *lines, *more])


def write(outputs: Outputs, rows_file: BinaryIO, ids_file: BinaryIO) -> None:
    """Write all rows behind the header of an .npy file, and all ids.

    These are plain writes and no memory map, so that a full disk is an error and not a SIGBUS.
    """
    header = {"descr": "<f4", "fortran_order": False, "shape": (outputs.records, outputs.width)}
    np.lib.format.write_array_header_1_0(rows_file, header)
    for one in outputs:
        rows, ids = outputs.read(one)
        rows_file.write(rows.astype("<f4", copy=False).tobytes())
        ids_file.write(ids)


def merge(spool: Path, out: Path, allow_missing: bool = False) -> Outputs:
    """Merge a spool's outputs into `out`, float32 [records, width], and its ids beside it.

    allow_missing: rows of ranges that failed or are not finished are NaN; their ids are there all
    the same. Raises MergeError, GpuspoolError, FastaError (the ids of a missing range cannot be
    read), OSError.
    """
    if out.suffix != ".npy" or out.exists():
        raise MergeError(
            f"{out} exists, or does not end in .npy. Name another file; nothing is replaced."
        )
    outputs = Outputs(spool)
    if outputs.missing and not (allow_missing and outputs.width):
        raise RangesMissing(
            f"{name_missing(outputs.missing)}\n"
            "Nothing was merged. `gpuspool resume` finishes them, `gpuspool retry` tries failed "
            "ones again; with --allow-missing their rows are NaN."
        )
    with whole(out) as rows_file, whole(out.with_suffix(".ids.txt")) as ids_file:
        write(outputs, rows_file, ids_file)
    return outputs


def main() -> int:
    """Merge. Return the exit status: 0, 2 refused, 3 ranges missing, 5 an output does not fit."""
    parser = argparse.ArgumentParser(
        description="Merge a finished spool of embed.py into one array and its ids."
    )
    parser.add_argument("spool", type=Path)
    parser.add_argument("out", type=Path, help="the array, OUT.npy; the ids go to OUT.ids.txt")
    parser.add_argument(
        "--allow-missing", action="store_true", help="rows of missing ranges are NaN"
    )
    args = parser.parse_args()
    try:
        outputs = merge(args.spool, args.out, args.allow_missing)
    except (MergeError, GpuspoolError, FastaError, OSError) as error:
        print(f"merge.py: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 2)
    if outputs.missing:
        print(f"merge.py: {name_missing(outputs.missing)}\nTheir rows are NaN.", file=sys.stderr)
    ids = args.out.with_suffix(".ids.txt")
    print(f"{args.out}: float32 [{outputs.records}, {outputs.width}]; ids: {ids}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
