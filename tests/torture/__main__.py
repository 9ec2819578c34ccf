"""`python -m torture`: play every row of the suite.

Each row is told in one line as it ends; then comes the table that stands in the docs. The exit code
is 1 if anything was lost, doubled, wrong or claimed falsely, or if a row says that it failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torture.rows import Row, machine, table

NAMES = (
    "kill_storm",
    "kill_calls",
    "stops",
    "sick_worlds",
    "growing",
    "crash_states",
    "error_sweep",
    "damage",
    "full_disk",
    "zombies",
    "many_hosts",
    "walltime",
    "moved_folders",
    "soak",
)
# How many failures of one row are printed; --json has them all.
SHOWN = 20


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m torture", description="Prove that gpuspool survives anything."
    )
    parser.add_argument(
        "--row", action="append", choices=NAMES, help="only this row; may be given several times"
    )
    parser.add_argument(
        "--amount", choices=("small", "full"), default="full", help="seconds, or half an hour"
    )
    parser.add_argument(
        "--lanes", type=int, default=1, metavar="N", help="play so many rows side by side"
    )
    parser.add_argument(
        "--home", type=Path, help="where spools are made; default a temporary folder"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="all that was found, as JSON")
    return parser.parse_args()


def play(name: str, amount: str, home: Path) -> Row:
    """Play one row, in a folder of its own that is removed if the row was clean."""
    folder = home / name
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    row: Row = importlib.import_module(f"torture.{name}").row(amount, folder)
    row.seconds = time.monotonic() - began
    if row.is_clean:
        shutil.rmtree(folder, ignore_errors=True)
    return row


def play_apart(name: str, amount: str, home: Path) -> Row:
    """Play one row in a process of its own, so that rows can be played side by side."""
    found = home / f"{name}.json"
    command = [
        sys.executable,
        "-m",
        "torture",
        "--row",
        name,
        "--amount",
        amount,
        "--home",
        home,
        "--json",
        found,
    ]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    return Row(**json.loads(found.read_text())["rows"][0])


def show(row: Row) -> None:
    """Print a row in one line, and below it what is wrong and which figures are worth a word."""
    print(row.line(), flush=True)
    for text in [*row.notes, *row.failures[:SHOWN]]:
        print(f"    {text}", flush=True)
    if len(row.failures) > SHOWN:
        print(f"    … and {len(row.failures) - SHOWN} more", flush=True)


def main() -> int:
    asked = arguments()
    home = (asked.home or Path(tempfile.mkdtemp(prefix="torture-"))).absolute()
    where = f"{datetime.date.today().isoformat()}, {machine(home)}"
    print(where, flush=True)
    began = time.monotonic()
    rows = []
    with ThreadPoolExecutor(asked.lanes) as lanes:
        played = (
            (play(name, asked.amount, home) for name in asked.row or NAMES)
            if asked.lanes == 1
            else lanes.map(lambda name: play_apart(name, asked.amount, home), asked.row or NAMES)
        )
        for row in played:
            rows.append(row)
            show(row)
    print(
        f"\n{table(rows)}\n\n{where}, amount {asked.amount}, "
        f"{time.monotonic() - began:.0f} s in all"
    )
    if asked.json is not None:
        record = {
            "where": where,
            "amount": asked.amount,
            "rows": [dataclasses.asdict(row) for row in rows],
        }
        asked.json.write_text(json.dumps(record, indent=2) + "\n")
    is_clean = all(row.is_clean for row in rows)
    if asked.home is None and is_clean:
        shutil.rmtree(home, ignore_errors=True)
    return 0 if is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
