#!/usr/bin/env python3
"""Write a FASTA file of many short records, cut from the real contigs of the other example.

The records have 50 to 400 residues, always in the same order of lengths. An id is that of the
contig with the place that was cut out: `plastid_NC_026299.1_0_15000:0-50`. The contigs are gone
through as often as it takes, each time from another place.
"""

import argparse
import sys
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

from fasta import FastaError, scan
from index import whole

CONTIGS = (
    Path(__file__).resolve().parent.parent
    / "contigs"
    / "data"
    / "tiara-1.0.2"
    / "test"
    / "test_data"
)
# Records have SHORTEST to SHORTEST + LENGTHS - 1 residues. The lengths go round in steps of STEP,
# which is prime, so each of them comes in turn.
SHORTEST = 50
LENGTHS = 351
STEP = 7919
# How many residues stand on a line.
LINE = 60


def cut() -> Iterator[tuple[str, bytes]]:
    """Yield (id, sequence) without end. Raises FastaError when the contigs are missing."""
    number, files = 0, sorted(CONTIGS.glob("*_fr.fasta"))
    if not files:
        raise FastaError(
            f"{CONTIGS} has no contigs. Fetch them: python examples/contigs/fetch_data.py"
        )
    for turn in count():
        for fasta in files:
            for contig in scan(str(fasta)):
                start = 17 * turn
                while start < contig.residues:
                    end = min(start + SHORTEST + number * STEP % LENGTHS, contig.residues)
                    yield f"{contig.id.decode()}:{start}-{end}", contig.sequence[start:end]
                    number, start = number + 1, end


def wrap(name: str, sequence: bytes) -> bytes:
    """Return a record as it stands in a file."""
    lines = [sequence[i : i + LINE] for i in range(0, len(sequence), LINE)]
    return b"\n".join([b">" + name.encode(), *lines, b""])


def write_big(output: Path, records: int) -> None:
    """Write so many records, in a folder that is made if need be. Raises OSError, FastaError."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with whole(output) as file:
        file.writelines(wrap(name, sequence) for name, sequence in islice(cut(), records))


def main() -> int:
    """Write the file; return the exit status."""
    parser = argparse.ArgumentParser(description="Write a FASTA file of many short records.")
    parser.add_argument("output", type=Path)
    parser.add_argument("--records", type=int, default=200_000, metavar="N")
    args = parser.parse_args()
    try:
        write_big(args.output, args.records)
    except (FastaError, OSError) as error:
        print(f"make_big.py: {error}", file=sys.stderr)
        return 1
    print(f"{args.output}: {args.records} records, {args.output.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
