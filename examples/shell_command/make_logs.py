#!/usr/bin/env python3
"""Write logs of a web server to try the example on: 60 files, logs/MONTH/DAY.log.gz."""

import gzip
import random
import sys
from pathlib import Path

PAGES = ("/", "/search", "/cart", "/checkout", "/img/logo.png")
STATUSES = (200, 200, 200, 200, 200, 200, 304, 404, 500, 503)
LINES = 2000


def line(chance: random.Random, day: str) -> str:
    """One request in the common log format: the 7th field is the page, the 9th the status."""
    host = f"10.0.{chance.randrange(8)}.{chance.randrange(256)}"
    page, status = chance.choice(PAGES), chance.choice(STATUSES)
    size = chance.randrange(50_000)
    return f'{host} - - [{day}/2026:12:00:00 +0000] "GET {page} HTTP/1.1" {status} {size}\n'


def main() -> None:
    """Write them below the folder that is named, default `logs`."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "logs")
    for month in ("Jan", "Feb", "Mar"):
        for day in range(1, 21):
            chance = random.Random(f"{month}{day}")
            path = folder / month / f"{day:02}.log.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            text = "".join(line(chance, f"{day:02}/{month}") for _ in range(LINES))
            path.write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    main()
