"""Row "soak": one orchestrator and thousands of tasks, some of which misbehave in every known way.

They eat memory until the kernel kills their worker (in a memory cgroup, as a scheduler gives each
job), leak descriptors until there are none, crash, hang in Python and in C, raise, and leave
children behind, even in sessions of their own. Some do it once and are fine the next time; some are
poison.

The exit code must be 3. The tasks that failed must be exactly the poison ones, each with the kind
that it deserves. Between a warm-up (at least until it watches its folders) and the end, the
parent's descriptors and memory (RSS) may grow by at most 5 %. Nothing may be left in the cgroup,
whatever its session, no task whose line stood may have been run again, and the checker must find
nothing.

`python -m torture.soak [small|full]` plays it.
"""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers import GPUSPOOL, Box, Started, names, wait_until

from torture import checker
from torture.cgroups import Group, memory_group, why_not
from torture.job import payloads
from torture.rows import Row

NAME = "soak"
JOB = Path(__file__).with_name("soak_job.py")
TASKS = {"small": 400, "full": 10_000}
RANKS = 4
# How much memory the whole run has. The parent and each worker need some 40 MB; the rest is for the
# tasks that eat it.
MEMORY = 512 << 20
TASK_TIMEOUT_S = 3.0
PATIENCE_S = {"small": 60.0, "full": 600.0}
GROWTH = 1.05
# The samples to compare are taken while the share of finished tasks lies between these.
WARM = (0.15, 0.4)
LATE = (0.75, 1.0)
SAMPLE_S = {"small": 0.02, "full": 0.2}
# How long a killed process may take to be gone.
GONE_S = 2.0
# How many of 10,000 tasks do each of these deeds; there is at least one of each.
HARMLESS = {
    "oom-once": 20, "descriptors-once": 20, "descriptors-late-once": 10, "crash-once": 15,
    "quit-once": 5, "child": 100, "session": 100, "daemon": 50,
}  # fmt: skip
POISON = {
    "oom": (4, "host_oom"), "descriptors": (2, "lost"), "crash": (3, "lost"), "quit": (2, "lost"),
    "raise": (100, "exception"), "hang": (4, "timeout"), "hang-in-c": (2, "timeout"),
}  # fmt: skip


@dataclass
class Sample:
    """The parent at one moment."""

    # The share of the tasks that were finished.
    done: float
    descriptors: int
    rss: int
    uss: int


@dataclass
class Outcome:
    """How it went."""

    deaths: int = 0
    samples: list[Sample] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    counts: checker.Counts = field(default_factory=checker.Counts)

    def growth(self, what: str) -> tuple[float, float]:
        """The medians after the warm-up and at the end.

        In a quick run this may be the nearest single sample.
        """
        medians = []
        for low, high in (WARM, LATE):
            inside = [sample for sample in self.samples if low <= sample.done <= high]
            near = inside or [
                min(self.samples, key=lambda sample: abs(2 * sample.done - low - high))
            ]
            medians.append(statistics.median(getattr(sample, what) for sample in near))
        return medians[0], medians[1]


def plan(tasks: int) -> list[dict[str, Any]]:
    """The payloads. Deeds are dealt out at random, but the same each time."""
    deeds = HARMLESS | {deed: count for deed, (count, _) in POISON.items()}
    wanted = [deed for deed, count in deeds.items() for _ in range(max(1, count * tasks // 10_000))]
    chosen = random.Random("soak").sample(range(tasks), len(wanted))
    planned = payloads(tasks, 1)
    for index, deed in zip(chosen, wanted, strict=True):
        planned[index]["do"] = deed
    return planned


def play(amount: str, home: Path, group: Group) -> Outcome:
    """The whole run, in the group."""
    planned, outcome = plan(TASKS[amount]), Outcome()
    (home / "box").mkdir(parents=True)
    box = Box(home / "box")
    command: list[str | Path] = ["run", f"{JOB}:work", "--ranks", str(RANKS), "--spool", "S"]
    command += ["--tasks", box.tasks([{"payload": payload} for payload in planned])]
    command += ["--task-timeout", f"{TASK_TIMEOUT_S}s"]
    for name in ("executions", "marks"):
        (box / name).mkdir()
        command += ["--arg", f"{name}={box / name}"]
    try:
        parent = box.start(*command, program=(*group.program, GPUSPOOL))
        _watch(parent, box / "S", len(planned), outcome, amount)
        _judge(parent, box, planned, outcome, group)
    finally:
        box.kill_all()
    return outcome


def _watch(parent: Started, spool: Path, tasks: int, outcome: Outcome, amount: str) -> None:
    """Take samples until the end, or until the patience is over.

    The first sample is taken once the parent watches its folders. It begins that only after a
    while; a quick run has finished half of its tasks by then.
    """
    deadline = time.monotonic() + PATIENCE_S[amount]
    while not parent.is_over() and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if outcome.samples or _watches(parent.pid):
                outcome.samples.append(_sample(parent.pid, _verdicts(spool) / tasks))
        time.sleep(SAMPLE_S[amount])


def _verdicts(spool: Path) -> int:
    """How many lines about finished tasks the journals hold."""
    data = [(spool / "journal" / name).read_bytes() for name in names(spool / "journal")]
    return sum(text.count(b'"state":"complete"') + text.count(b'"state":"failed"') for text in data)


def _watches(pid: int) -> bool:
    return any(os.readlink(fd) == "anon_inode:inotify" for fd in Path(f"/proc/{pid}/fd").iterdir())


def _sample(pid: int, done: float) -> Sample:
    rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kilobytes = {row.split(":")[0]: int(row.split()[1]) for row in rows}
    private = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
    return Sample(done, len(list(Path(f"/proc/{pid}/fd").iterdir())), kilobytes["Rss"], private)


def _judge(
    parent: Started, box: Box, planned: list[dict[str, Any]], outcome: Outcome, group: Group
) -> None:
    """Note whatever does not hold once the parent has ended."""
    fail = outcome.failures.append
    if not parent.is_over():
        fail(
            f"had not ended after {PATIENCE_S} s; "
            f"{_verdicts(box / 'S')} verdicts: {parent.err[-500:]!r}"
        )
        return
    code = parent.wait().code
    if code != 3:
        fail(f"exit code {code}, expected 3: {parent.err[-500:]!r}")
    with contextlib.suppress(AssertionError):
        wait_until(lambda: not group.processes(), GONE_S)
    for pid in group.processes():
        with contextlib.suppress(OSError):
            fail(f"left running: {Path(f'/proc/{pid}/cmdline').read_bytes()!r}")
    expected = {n: POISON[p["do"]][1] for n, p in enumerate(planned) if p.get("do") in POISON}
    told = {r["index"]: r["error"]["kind"] for r in box.results("S") if r["state"] == "failed"}
    for index in sorted({index for index, _ in expected.items() ^ told.items()}):
        deed = planned[index].get("do", "nothing")
        fail(f"task {index} ({deed}): told {told.get(index)}, should be {expected.get(index)}")
    outcome.counts = checker.check(box / "S", len(planned), executions=box / "executions")
    outcome.deaths = sum(record["by"] != record["attempt"] for record in _closings(box / "S"))
    if not outcome.samples:
        fail(
            "the parent never watched its folders: on a network file system it polls, "
            "so this row needs a local one"
        )
        return
    for what in ("descriptors", "rss"):
        before, after = outcome.growth(what)
        if not 0 < after <= before * GROWTH:
            fail(f"the parent's {what} went from {before:.0f} to {after:.0f}")


def _closings(spool: Path) -> list[dict[str, Any]]:
    lines = (checker.sealed_lines(path) for path in (spool / "manifests").glob("*.orphans.jsonl"))
    return [record for of_one in lines for at, record in of_one if at == 0]


def row(amount: str, home: Path) -> Row:
    """Play the row: one long run."""
    reason = why_not()
    if reason:
        return Row(NAME, 0, f"skipped: {reason}", notes=[reason])
    began = time.monotonic()
    with memory_group(MEMORY) as group:
        outcome = play(amount, home, group)
    row = Row(
        NAME, TASKS[amount], f"{TASKS[amount]} tasks, {outcome.deaths} workers died or were killed"
    )
    for letter in "LDCXR":
        setattr(row, letter, getattr(outcome.counts, letter))
    for what in ("descriptors", "rss", "uss") if outcome.samples else ():
        before, after = outcome.growth(what)
        row.notes.append(
            f"{what} of the parent: {before:.0f} after the warm-up, {after:.0f} at the end"
        )
    texts = [*outcome.failures, *outcome.counts.notes]
    row.failures = [f"python -m torture.soak {amount}: {text}" for text in texts]
    row.seconds = time.monotonic() - began
    return row


def main(words: list[str]) -> int:
    """Play the row and tell all of it."""
    with tempfile.TemporaryDirectory() as home:
        done = row(words[0] if words else "small", Path(home))
    print(done.line(), *done.notes, *done.failures, sep="\n")
    return int(not done.is_clean)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
