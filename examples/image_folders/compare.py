#!/usr/bin/env python3
"""Compare the output of `gpuspool results`, read on stdin, with the folders that the images lie in.

Prints a table, a row for each folder and a column for each prediction, and how many agree.
"""

import json
import sys
from collections import Counter


def main() -> int:
    """Print; the exit status is 1 if an image has no prediction."""
    counts: Counter[tuple[str, str]] = Counter()
    for result in map(json.loads, sys.stdin):
        # The key is the path below the folder of all images, so its first part is the class.
        truth = result["key"].partition("/")[0]
        # A complete task has an error if its result cannot be read any more.
        is_known = result["state"] == "complete" and result["error"] is None
        counts[truth, result["result"]["label"] if is_known else "-"] += 1
    names = sorted({name for pair in counts for name in pair})
    print(" ".join(f"{name:>5}" for name in ["", *names]))
    for truth in sorted({truth for truth, _ in counts}):
        print(" ".join(f"{cell:>5}" for cell in [truth, *(counts[truth, n] or "" for n in names)]))
    agree = sum(counts[name, name] for name in names)
    print(f"{agree} of {counts.total()} images are predicted as the class of their folder")
    return int(any(label == "-" for _, label in counts))


if __name__ == "__main__":
    sys.exit(main())
