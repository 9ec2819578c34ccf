#!/usr/bin/env python3
"""Compare the output of `gpuspool results`, read on stdin, with the authors' labels.

Prints how many contigs each class has and how many agree. The exit status is 1 unless each
expected contig was classified exactly once, as the authors' program classified it.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from fetch_data import SETS, TIARA

# How many problems are printed. If nothing was classified there is one for each contig.
SHOWN = 10


def read_truth(folder: Path) -> dict[str, str]:
    """Return the authors' label of each contig, in the order of make_tasks.py.

    Their files `*_out.txt` have a heading and then three columns parted by tabs: the FASTA
    header, the class of the first stage, and that of the second or "n/a". The contig's name is
    the header's first word; a label is "archaea", or with a second stage "organelle/plastid".
    """
    truth = {}
    for name in SETS:
        lines = (folder / f"{name}_out.txt").read_text().splitlines()
        for header, first, second in (line.split("\t") for line in lines[1:]):
            truth[header.split()[0]] = first if second == "n/a" else f"{first}/{second}"
    return truth


def read_results(lines: Iterable[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the (contig, label) pairs in lines of `gpuspool results`, and what is wrong."""
    pairs: list[tuple[str, str]] = []
    problems = []
    for record in (json.loads(line) for line in lines):
        if record["state"] == "complete":
            pairs.extend((contig, label) for contig, label in record["result"]["contigs"])
        else:
            problems.append(f"task {record['key']} is {record['state']}")
    return pairs, problems


def find_problems(pairs: list[tuple[str, str]], truth: dict[str, str]) -> list[str]:
    """Return a line for each contig that is missing, duplicated, unexpected or different."""
    times = Counter(contig for contig, _ in pairs)
    problems = [f"{contig} has no label" for contig in truth if contig not in times]
    problems += [f"{contig} was classified {n} times" for contig, n in times.items() if n > 1]
    problems += [f"{contig} was not expected" for contig in times if contig not in truth]
    problems += [
        f"{contig} is {label}, the authors have {truth[contig]}"
        for contig, label in pairs
        if contig in truth and label != truth[contig]
    ]
    return problems


def print_table(labels: dict[str, str], truth: dict[str, str]) -> None:
    """Print for each class how many contigs the authors, the results and both put in it."""
    theirs, ours = Counter(truth.values()), Counter(labels.values())
    both = Counter(label for contig, label in labels.items() if truth.get(contig) == label)
    print(f"{'class':<24}{'authors':>8}{'here':>8}{'agree':>8}")
    for label in sorted(theirs | ours):
        print(f"{label:<24}{theirs[label]:>8}{ours[label]:>8}{both[label]:>8}")
    print(f"{both.total()} of {len(truth)} contigs agree with the authors' labels")


def main() -> int:
    """Compare, print, and return the exit status."""
    parser = argparse.ArgumentParser(description="Compare `gpuspool results` (stdin) with truth.")
    parser.add_argument("--limit", type=int, metavar="N", help="as given to make_tasks.py")
    args = parser.parse_args()
    if not TIARA.is_dir():
        print(f"compare.py: {TIARA} is missing; run fetch_data.py first", file=sys.stderr)
        return 1
    truth = dict(islice(read_truth(TIARA / "test/test_data").items(), args.limit))
    pairs, problems = read_results(sys.stdin)
    problems += find_problems(pairs, truth)
    for problem in problems[:SHOWN]:
        print(f"compare.py: {problem}", file=sys.stderr)
    if len(problems) > SHOWN:
        print(f"compare.py: … and {len(problems) - SHOWN} more", file=sys.stderr)
    print_table(dict(pairs), truth)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
