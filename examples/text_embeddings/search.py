#!/usr/bin/env python3
"""search.py SPOOL TEXTS QUESTION: the lines of a finished run that are nearest to a question."""

import sys
from pathlib import Path

import numpy as np
from embed import Encoder, read_lines
from fetch import WHEEL

import gpuspool

MODEL = WHEEL.folder
SHOWN = 3


def main() -> None:
    """Print them, each with the cosine and its file."""
    spool, folder, question = sys.argv[1:]
    places, rows = [], []
    for result in gpuspool.results(spool):
        # A task that failed has no rows. Of one with an error, what it wrote cannot be read.
        if result.state != "complete" or result.error is not None:
            print(f"not searched: {result.key}", file=sys.stderr)
            continue
        # The key is the file's path below the folder of all inputs; `outputs` are names below OUT.
        lines = read_lines(Path(folder, result.key))
        [output] = result.outputs
        rows.append(np.load(Path(spool, "outputs", output)))
        if len(rows[-1]) != len(lines):
            sys.exit(f"{result.key} has changed since it was embedded")
        places += [(result.key, line) for line in lines]
    if not places:
        sys.exit("there is nothing to search")
    encoder = Encoder(MODEL)
    [wanted] = encoder.rows(encoder.tokens([question]))
    cosines = np.concatenate(rows) @ wanted
    for i in np.argsort(-cosines)[:SHOWN]:
        name, line = places[i]
        print(f"{cosines[i]:.2f}  {name}: {line}")


if __name__ == "__main__":
    main()
