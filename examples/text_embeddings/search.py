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
        # The key is the file's path below the folder of all inputs; `outputs` are names below OUT.
        places += [(result.key, line) for line in read_lines(Path(folder, result.key))]
        rows += [np.load(Path(spool, "outputs", name)) for name in result.outputs]
    encoder = Encoder(MODEL)
    [wanted] = encoder.rows(encoder.tokens([question]))
    cosines = np.concatenate(rows) @ wanted
    for i in np.argsort(-cosines)[:SHOWN]:
        name, line = places[i]
        print(f"{cosines[i]:.2f}  {name}: {line}")


if __name__ == "__main__":
    main()
