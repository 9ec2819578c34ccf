#!/usr/bin/env python3
"""Write tasks.jsonl for one huge FASTA file: each task is a range of consecutive records.

The file is read once, as a stream: memory grows neither with the file nor with its longest record.
It may be plain text or bgzip. Plain gzip is refused, and the message says what to do (see
fasta.py). Standard library only.
"""

import argparse
import contextlib
import json
import os
import secrets
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from fasta import FastaError, Record, chain, scan

# About how many residues a task holds: some seconds of work.
RESIDUES = 100_000
# How many records a task holds at most, so that short or empty records make no huge task either.
RECORDS = 10_000


def group(records: Iterable[Record], residues: int) -> Iterator[list[Record]]:
    """Yield runs of consecutive records, of at most so many residues and RECORDS records.

    A record with more residues than that is alone.
    """
    run: list[Record] = []
    size = 0
    for record in records:
        if run and (size + record.residues > residues or len(run) == RECORDS):
            yield run
            run, size = [], 0
        run.append(record)
        size += record.residues
    if run:
        yield run


def make_tasks(fasta: str, residues: int = RESIDUES) -> Iterator[dict[str, Any]]:
    """Yield tasks of gpuspool for all records of a FASTA file, in order and without a gap.

    payload: fasta (path), offset (of the first record, see fasta.scan), first (its number in the
    file, from 0), records (how many), crc (their checksum, see fasta.chain), last (whether they end
    the file). cost: residues. Raises FastaError, OSError.
    """
    first = 0
    for number, run in enumerate(group(scan(fasta, keep=False), residues)):
        crc = 0
        for record in run:
            crc = chain(crc, record.crc)
        payload = {
            "fasta": fasta,
            "offset": run[0].offset,
            "first": first,
            "records": len(run),
            "crc": crc,
        }
        payload["last"] = run[-1].is_last
        yield {
            "key": f"{number:08d}",
            "payload": payload,
            "cost": sum(record.residues for record in run),
        }
        first += len(run)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write that appears under its name, by rename(2), only when all of it is on disk."""
    hidden = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(hidden, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.rename(hidden, path)
    finally:
        hidden.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def write_index(fasta: Path, output: Path, residues: int = RESIDUES) -> tuple[int, int]:
    """Write the tasks of a FASTA file as JSON lines; returns (how many, records in all of them).

    Raises OSError, and FastaError, also if there is no record. Then `output` is as it was before.
    """
    count = records = 0
    with whole(output) as file:
        for task in make_tasks(str(fasta.absolute()), residues):
            file.write(json.dumps(task).encode() + b"\n")
            count, records = count + 1, records + task["payload"]["records"]
        if not count:
            raise FastaError(f"{fasta} has no record.")
    return count, records


def main() -> int:
    """Write the index; return the exit status: 2 if the file is refused."""
    parser = argparse.ArgumentParser(
        description="Write gpuspool's tasks.jsonl for one huge FASTA file."
    )
    parser.add_argument("fasta", type=Path, help="plain text or bgzip")
    parser.add_argument(
        "output", type=Path, help="file to write; it appears when all of it is written"
    )
    parser.add_argument(
        "--residues", type=int, default=RESIDUES, metavar="N", help=f"of a task, about ({RESIDUES})"
    )
    args = parser.parse_args()
    try:
        count, records = write_index(args.fasta, args.output, args.residues)
    except (FastaError, OSError) as error:
        print(f"index.py: {error}", file=sys.stderr)
        return 2
    print(f"{args.output}: {count} tasks, {records} records")
    return 0


if __name__ == "__main__":
    sys.exit(main())
