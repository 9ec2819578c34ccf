"""Writes a part of docs/slurm.md: what is seen of a run while a node crashes and its job is queued
again.

    python scripts/slurm_transcript.py docs/slurm.md

The commands are really run, on the Slurm of the tests (`tests/slurm`), which needs root and the
packages of `scripts/test_packages.sh`. It takes some three minutes, most of them for the lease of
the node that is gone. What they print is written below each, between two marks of the page. Only
the folder's name is replaced, what is said of the disk, which is that of one machine, is left out,
and long outputs are cut in their middle.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# The tests are a folder of the checkout, and no installed package.
sys.path.append(str(ROOT / "tests"))

from helpers import GPUSPOOL, Box, wait_until  # noqa: E402
from slurm.cluster import Cluster, why_not  # noqa: E402

START, END = "<!-- transcript -->", "<!-- end of transcript -->"
# The columns of a line of prose.
WIDTH = 120
# What the page calls the folder in which the commands run.
HOME = "/data"
# What is so only because all nodes are this machine, and would mislead a reader.
LEFT_OUT = ", a disk of this "
SPOOL = "spool-Count"
# Of an output that is longer than twice this, the lines in the middle are left out.
SHOWN_LINES = 9
# The lease of the node that is gone is two minutes.
PATIENCE_S = 400.0

JOB = """\
import time


class Count:
    def __init__(self, ctx):
        pass

    def __call__(self, task, ctx):
        time.sleep(1)
        lines = task.path.read_text().splitlines()
        ctx.output(task, ".sum").write_text(f"{sum(map(int, lines))}\\n")
        return {"lines": len(lines)}
"""
TEXTS = "mkdir texts; for i in $(seq 400); do seq $i > texts/$i.txt; done"
SQUEUE = "squeue --me -r -o '%6i %10T %4N'"
STATUS = f"gpuspool status {SPOOL}"
# Where ls writes to a terminal it fills the line.
LS, WIDE_LS = "ls ", "ls -C -T 0 -w 110 "


@dataclass(frozen=True)
class Step:
    """What is said, what happens that no command does, and what is typed then."""

    prose: str
    commands: tuple[str, ...]
    happens: Callable[[Cluster, Box], None] = lambda _slurm, _box: None


def wait_for_work(_slurm: Cluster, box: Box) -> None:
    """Until three elements are at work."""
    wait_until(lambda: len(done_by(box)) >= 3, PATIENCE_S)


def crash(slurm: Cluster, box: Box) -> None:
    """Until somebody who looks is told that nothing is heard of the node."""
    slurm.crash("n2")
    wait_until(lambda: "silent" in {one["state"] for one in box.status(SPOOL)["ranks"]})


def notice(slurm: Cluster, box: Box) -> None:
    """Until the element of the node that is gone runs elsewhere, and something was done there."""
    slurm.declare_down("n2")
    wait_until(lambda: len(done_by(box)) >= 4, PATIENCE_S)


def end(_slurm: Cluster, box: Box) -> None:
    """Until nobody is at work any more."""
    wait_until(lambda: not {"live", "silent"} & {one["state"] for one in parents_of(box)})


def parents_of(box: Box) -> list[dict[str, Any]]:
    parents: list[dict[str, Any]] = box.status(SPOOL)["parents"]
    return parents


def done_by(box: Box) -> set[str]:
    """The journals of the attempts that have finished some tasks."""
    journals = (box / SPOOL / "journal").glob("*.jsonl")
    return {path.name for path in journals if path.read_bytes().count(b'"state":"complete"') > 5}


STEPS = (
    Step(
        "A job that takes a second for each of 400 texts; three elements with a GPU each, on a "
        "cluster of four nodes. (Here these are one machine with one disk. What gpuspool says of "
        "that is left out.)",
        (
            "gpuspool submit count.py:Count 'texts/*.txt' --elements 3 --time 1h --requeue 20",
            SQUEUE,
            STATUS,
        ),
    ),
    Step("While it runs, on the login node:", (SQUEUE, STATUS), wait_for_work),
    Step(
        "Now the power of n2 fails. Slurm takes minutes to notice (SlurmdTimeout), and nobody "
        "waits for that: the two other elements go on. What n2 may have in hand is left to it "
        "until its beat has stood still for its lease, two minutes. Until then it is neither "
        "alive nor dead.",
        (SQUEUE, STATUS),
        crash,
    ),
    Step(
        "Slurm has noticed, queued the element of n2 again, and started it on n4. There it is a "
        "new parent, the fourth, with a rank that nobody has, and began at once with tasks that "
        "nobody has.",
        (
            SQUEUE,
            STATUS,
            f"cat {SPOOL}/slurm/1_1.out",
            f"ls {SPOOL}/parents {SPOOL}/beats {SPOOL}/journal {SPOOL}/slurm",
        ),
        notice,
    ),
    Step(
        "Then the lease of n2 is over. The oldest parent that lives closes what ran there and "
        "gives out again what it had in hand.",
        (f"gpuspool wait {SPOOL} | head -n 1",),
    ),
    Step(
        "The elements hear of that within seconds, and end.",
        (
            f"tail -n 2 {SPOOL}/slurm/*.out",
            f"ls {SPOOL} {SPOOL}/parents {SPOOL}/complete {SPOOL}/failed",
            f"gpuspool verify {SPOOL}",
            f"ls {SPOOL}/outputs | wc -l",
        ),
        end,
    ),
)


def main() -> int:
    """Play all steps and write them into the page that is given."""
    why = why_not()
    if why:
        print(f"no Slurm here: {why}", file=sys.stderr)
        return 1
    page = Path(sys.argv[1])
    text = play()
    before, start, rest = page.read_text().partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        print(f"{page} has no {START} and {END}", file=sys.stderr)
        return 1
    page.write_text(f"{before}{START}\n{text}{END}{after}")
    return 0


def play() -> str:
    """The steps as Markdown."""
    told: list[str] = []
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        home = Path(folder).resolve() / "data"
        home.mkdir()
        box = Box(home)
        box.environment["PATH"] = f"{Path(GPUSPOOL).parent}:{box.environment['PATH']}"
        box.write("count.py", JOB)
        with Cluster(box, nodes=4, gpus=1) as slurm:
            slurm.run("bash", "-c", TEXTS)
            for step in STEPS:
                step.happens(slurm, box)
                told.append(f"{textwrap.fill(step.prose, WIDTH)}\n\n```console\n")
                told += [shown(box, command) for command in step.commands]
                told.append("```\n\n")
    return "".join(told)


def shown(box: Box, command: str) -> str:
    """A command and what it printed."""
    typed = command
    if command.startswith(LS) and "|" not in command:
        typed = command.replace(LS, WIDE_LS, 1)
    done = subprocess.run(
        ["bash", "-c", typed],
        cwd=box.home,
        env=box.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    text = done.stdout.replace(str(ROOT), HOME).replace(str(box.home), HOME)
    return f"$ {command}\n{shortened(text)}"


def shortened(text: str) -> str:
    """Without the middle, where that is long, and without the spaces at the ends of lines."""
    lines = [line.rstrip() for line in text.splitlines() if LEFT_OUT not in line]
    if len(lines) > 2 * SHOWN_LINES:
        lines = [*lines[:SHOWN_LINES], "…", *lines[-SHOWN_LINES:]]
    return "".join(f"{line}\n" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
