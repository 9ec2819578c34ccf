#!/usr/bin/env python3
"""Kill a run over 200,000 records twice, resume it with other world sizes, compare every row.

Two ranks begin. At a third of the tasks everything is killed at once (SIGKILL to the parent and all
workers). Three ranks go on; at two thirds everything is killed again. One rank finishes. Then each
merged row and id is compared, bit for bit, with the row of that record computed alone, by a reader
that does not use the index.

The ranks are CPU ranks, since the rows to compare with are computed on the CPU too.
"""

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
from embed import Network, encode
from fasta import FastaError
from make_big import write_big

HERE = Path(__file__).resolve().parent
DATA = HERE.parent / "contigs" / "data" / "huge_fasta"
GPUSPOOL = str(Path(sys.executable).with_name("gpuspool"))
RESIDUES = 50_000
RANKS = (2, 3, 1)
# A variable in the environment of every process that this walk starts: so they are found and
# killed.
MARK = "HUGE_FASTA_WALK"
# How many records a process compares at once: little memory, and all cores have something to do.
PART = 20_000
# How often a condition is looked at, and after how long the walk gives up.
POLL_S = 0.01
PATIENCE_S = 900.0


class WalkError(Exception):
    """Something did not go as it should; the message says what."""


def say(start: float, text: str) -> None:
    """Print a line with the seconds since the walk began."""
    print(f"[{time.monotonic() - start:6.1f} s] {text}", flush=True)


def call(*command: str | Path) -> None:
    """Show a command and run it to its end. Raises WalkError when it fails."""
    words = [str(word) for word in command]
    print(f"$ {shlex.join([Path(words[0]).name, *words[1:]])}", flush=True)
    status = subprocess.run(words).returncode
    if status != 0:
        raise WalkError(f"{shlex.join(words)} ended with status {status}")


def done(spool: Path) -> int:
    """How many lines of finished tasks the journals hold."""
    return sum(
        journal.read_bytes().count(b'"state":"complete"')
        for journal in spool.glob("journal/*.jsonl")
    )


def marked(mark: str) -> list[int]:
    """The pids of all living processes that this walk started, parents first."""
    found = []
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        if f"{MARK}={mark}\0".encode() in environment:
            found.append(pid)
    return found


def kill_all(mark: str) -> int:
    """SIGKILL everything that the walk started, until nothing of it lives.

    Returns how many processes it killed.
    """
    killed = set()
    while pids := marked(mark):
        for pid in pids:
            killed.add(pid)
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
    return len(killed)


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for a condition. Raises WalkError if it does not come true in PATIENCE_S."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise WalkError(f"nothing came of it in {PATIENCE_S:.0f} s")
        time.sleep(POLL_S)


def run_and_kill(command: list[str], spool: Path, tasks: int) -> str:
    """Start a run, and kill it all when its journals hold so many tasks. Returns what was seen."""
    mark = str(spool)
    print(f"$ {shlex.join(['gpuspool', *command])}", flush=True)
    process = subprocess.Popen([GPUSPOOL, *command, "-q"], env={**os.environ, MARK: mark})
    wait_until(lambda: done(spool) >= tasks or process.poll() is not None)
    killed = kill_all(mark)
    if process.wait() != -signal.SIGKILL:
        raise WalkError(f"the run ended with status {process.returncode} before it was killed")
    return f"killed {killed} processes with {done(spool)} tasks done"


def read_plainly(fasta: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (id, sequence) of the records of a file of make_big.py."""
    with open(fasta) as file:
        for record in file.read().split(">")[1:]:
            name, *lines = record.split("\n")
            yield name, "".join(lines).encode()


def count_different(fasta: Path, out: Path, start: int, stop: int) -> tuple[int, int]:
    """(ids, rows) of the records start..stop that differ from those of the record alone."""
    network = Network("cpu")
    rows: npt.NDArray[np.float32] = np.load(out, mmap_mode="r")
    ids = out.with_suffix(".ids.txt").read_text().split("\n")[:-1]
    wrong_ids = wrong_rows = 0
    for number, (name, sequence) in enumerate(islice(read_plainly(fasta), start, stop), start):
        wrong_ids += ids[number] != name
        wrong_rows += rows[number].tobytes() != network.rows([encode(sequence)])[0].tobytes()
    return wrong_ids, wrong_rows


def compare(fasta: Path, out: Path, records: int) -> None:
    """Compare all rows and ids, with a process for each core. Raises WalkError if any differs."""
    cores = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:
        parts = [
            pool.submit(count_different, fasta, out, at, min(at + PART, records))
            for at in range(0, records, PART)
        ]
        counts = [part.result() for part in parts]
    shape = np.load(out, mmap_mode="r").shape
    lines = out.with_suffix(".ids.txt").read_bytes().count(b"\n")
    ids, rows = (sum(numbers) for numbers in zip(*counts, strict=True))
    print(f"merged rows {list(shape)}, ids {lines}, records {records}")
    print(f"{records - ids} of {records} ids are those of the record")
    print(
        f"{records - rows} of {records} rows are, bit for bit, those of the record alone",
        flush=True,
    )
    if ids or rows or shape[0] != records or lines != records:
        raise WalkError("ids and rows are not aligned")


def walk(folder: Path, records: int) -> None:
    """The whole walk, in a new folder. Raises WalkError."""
    start = time.monotonic()
    fasta, tasks, spool, out = (
        folder / name for name in ("big.fasta", "tasks.jsonl", "spool", "big.npy")
    )
    if folder == DATA:
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.exists():
        raise WalkError(f"{folder} exists; name a new folder")
    write_big(fasta, records)
    say(start, f"{fasta.name}: {records} records, {fasta.stat().st_size} bytes")
    call(sys.executable, HERE / "index.py", fasta, tasks, "--residues", str(RESIDUES))
    total = tasks.read_bytes().count(b"\n")
    devices = ["--devices", "cpu", "--ranks"]
    command = [
        "run",
        "--spool",
        str(spool),
        "--tasks",
        str(tasks),
        *devices,
        str(RANKS[0]),
        f"{HERE / 'embed.py'}:Embed",
    ]
    say(start, run_and_kill(command, spool, total // 3))
    say(start, run_and_kill(["resume", str(spool), *devices, str(RANKS[1])], spool, total * 2 // 3))
    call(GPUSPOOL, "resume", spool, *devices, str(RANKS[2]), "-q")
    say(start, f"finished: {done(spool)} lines of complete tasks for {total} tasks")
    call(sys.executable, HERE / "merge.py", spool, out)
    say(start, "merged")
    compare(fasta, out, records)
    say(start, "compared")


def main() -> int:
    """Walk; return the exit status."""
    parser = argparse.ArgumentParser(
        description="Kill, resume, merge and compare over many records."
    )
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?",
        default=DATA,
        help="a new folder; the default one is made anew",
    )
    parser.add_argument("--records", type=int, default=200_000, metavar="N")
    args = parser.parse_args()
    try:
        walk(args.folder, args.records)
    except (WalkError, FastaError, OSError) as error:
        print(f"walk.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
