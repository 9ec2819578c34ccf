"""GNU parallel: `true` for throughput, `python -c pass` for start-up, else task.sh. --joblog with
--resume goes on.
"""

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main():
    bench, _, workers, folder = sys.argv[1:]
    command = {
        "startup": [sys.executable, "-c", "pass"],
        "startup_torch": [sys.executable, "-c", "'import torch'"],
        "throughput": ["true"],
        "scan": ["true"],
    }.get(bench, [f"{HERE}/task.sh"])
    argv = [
        "parallel",
        "--will-cite",
        "-j",
        workers,
        "--joblog",
        f"{folder}/joblog",
        "--resume",
        "-a",
        f"{folder}/lines",
    ]
    print(json.dumps({"argv": [*argv, *command], "lines": f"{folder}/joblog", "less": 1}))


main()
