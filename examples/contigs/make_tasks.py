#!/usr/bin/env python3
"""Write tasks.jsonl: each task is a run of consecutive contigs of one FASTA file.

The runs differ in length on purpose (1 to 34 contigs), so that ranks with equally many tasks do not
have equally much work. The same data always gives the same tasks.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any

from fetch_data import SETS, TIARA

# How many contigs each task holds, in turn, over and over.
RUNS = (1, 2, 3, 5, 8, 13, 21, 34)


def scan(fasta: Path) -> Iterator[tuple[Path, int, int]]:
    """Yield (file, offset of the header in bytes, length in bases) of each contig, in order."""
    start, position, bases = -1, 0, 0
    with open(fasta, "rb") as file:
        for line in file:
            if line.startswith(b">"):
                if start >= 0:
                    yield fasta, start, bases
                start, bases = position, 0
            else:
                bases += len(line.strip())
            position += len(line)
    if start >= 0:
        yield fasta, start, bases


def make_tasks(contigs: Iterable[tuple[Path, int, int]]) -> Iterator[dict[str, Any]]:
    """Yield tasks of gpuspool for contigs as scan() gives them.

    payload: fasta (absolute path), offset (bytes), contigs (how many); cost: bases.
    """
    runs = cycle(RUNS)
    run: list[tuple[Path, int, int]] = []
    size, number = next(runs), 0
    for contig in contigs:
        if run and (len(run) == size or contig[0] != run[0][0]):
            yield as_task(run, number)
            number = number + 1 if contig[0] == run[0][0] else 0
            run, size = [], next(runs)
        run.append(contig)
    if run:
        yield as_task(run, number)


def as_task(run: list[tuple[Path, int, int]], number: int) -> dict[str, Any]:
    """Return the task for a run of contigs of one file; number is its place in that file."""
    fasta, offset, _ = run[0]
    return {
        "key": f"{fasta.stem}/{number:04d}",
        "payload": {"fasta": str(fasta), "offset": offset, "contigs": len(run)},
        "cost": sum(bases for _, _, bases in run),
    }


def main() -> int:
    """Write the tasks; return the exit status."""
    parser = argparse.ArgumentParser(description="Write the contigs demo's tasks.jsonl.")
    parser.add_argument("output", nargs="?", help="file to write (default: standard output)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N contigs in all")
    args = parser.parse_args()
    if not TIARA.is_dir():
        print(f"make_tasks.py: {TIARA} is missing; run fetch_data.py first", file=sys.stderr)
        return 1
    contigs = chain.from_iterable(scan(TIARA / f"test/test_data/{name}_fr.fasta") for name in SETS)
    lines = [json.dumps(task) + "\n" for task in make_tasks(islice(contigs, args.limit))]
    if args.output is None:
        sys.stdout.writelines(lines)
    else:
        Path(args.output).write_text("".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
