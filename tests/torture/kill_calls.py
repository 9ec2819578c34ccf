"""Row "kill at every file-system call": SIGKILL just before and just after each changing call.

Killed are the parent, a worker, a thief, and the parent of a resume that inherits dead workers:
each at its n-th create, write, link, rename, unlink or mkdir below the spool's folder, for n = 1,
2, … until a run makes fewer calls than n. Then `resume` (the same `run` if there is no spool yet)
must end with exit code 0 within 10 s of its start. Nothing may be lost, doubled or wrong, `verify`
must have nothing to complain about, and no process may be left.

This is what `strace -f -e inject=link:signal=KILL:when=N` does. Here a library does it (faults.c),
which counts only the calls on the spool's own paths, and can kill before and after a call. A case
takes a tenth of a second. A handful of cases with the real strace, on processes that were really
executed, shows that both ways agree.

`cd tests && python -m torture.kill_calls "worker link 3 after - 1"` plays one case and tells all.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from helpers import GPUSPOOL, Box, slowness

from torture.checker import Counts, check
from torture.faults import (
    JOB,
    MUTATING,
    ROLES,
    TASKS,
    Fault,
    NoCompiler,
    Scene,
    chosen,
    play_one,
    played,
)
from torture.job import payloads
from torture.rows import Row

# Every resume must end within this time, on a quiet machine.
RESUME_S = 10.0
AT_ONCE = 2
# How many kills the small amount has.
SMALL = 12
# So many numbers beyond those that were counted are tried: processes race, and on a busy machine a
# thief may claim all tasks.
MORE = 12
# (system call, n) for strace, which counts for each process by itself: fdatasync kills the workers,
# the others the parent, at several stages of making a spool.
STRACED = {
    "small": [("fdatasync", 1)],
    "full": [("fdatasync", 1), ("link", 3), ("link", 8), ("rename", 1), ("fsync", 9), ("mkdir", 5)],
}


@dataclass(frozen=True)
class Verdict:
    """How a case ended. hit: the call at which the process was killed; None if it made none."""

    hit: str | None
    counts: Counts
    problems: list[str]
    seconds: float


def play(scene: Scene, fault: Fault) -> Verdict:
    """Kill, resume, and judge."""
    first = scene.play(fault, patience_s=RESUME_S * slowness())
    hit = scene.hit()
    if hit is None:
        scene.server.kill_left()
        return Verdict(None, Counts(), [], 0.0)
    problems = [f"the run hung: {first.err[-500:]}"] if first.hung else []
    again = scene.again(patience_s=RESUME_S * slowness())
    problems += [f"{RESUME_S:.0f} s after its start the resume had not ended"] if again.hung else []
    problems += (
        [f"the resume ended with exit code {again.code}: {again.err[-1000:]}"] if again.code else []
    )
    problems += [f"a traceback: {e.err[-1000:]}" for e in (first, again) if "Traceback" in e.err]
    problems += [f"processes are left: {again.left}"] if again.left else []
    scene.server.kill_left()
    if not problems:
        verified = scene.verify()
        problems += [f"verify: {verified.out}"] if verified.code else []
    return Verdict(hit, scene.judge(), problems, again.seconds)


def all_faults(calls_of: Mapping[str, Counter[str]], more: int = MORE) -> Iterator[Fault]:
    """Both sides of every call that changes something, and some numbers beyond."""
    for role, calls in calls_of.items():
        for call in MUTATING:
            for n in range(1, calls[call] + more + 1) if calls[call] else ():
                for action in ("before", "after"):
                    yield Fault(role, call, n, action)


def row(amount: str, home: Path) -> Row:
    began = time.monotonic()
    found = Row("kill at every file-system call", 0, "")
    try:
        every = partial(all_faults)
        if amount != "full":
            # A sample should hit, so it tries no numbers beyond those that were counted.
            every = partial(all_faults, more=0)
        faults = chosen(amount, every, SMALL, home)
    except NoCompiler as reason:
        found.counts = f"not run: {reason}"
        return found
    kills = dict.fromkeys(ROLES, 0)
    # Whether the highest number that was tried for a role and class was still reached.
    last: dict[tuple[str, str], bool] = {}
    slowest = 0.0
    for fault, verdict in played(faults, play, home, AT_ONCE):
        last[fault.role, fault.call] = verdict.hit is not None
        if verdict.hit is None:
            continue
        kills[fault.role] += 1
        slowest = max(slowest, verdict.seconds)
        _add(
            found,
            verdict.counts,
            verdict.problems,
            f'python -m torture.kill_calls "{fault}", at {verdict.hit}',
        )
    if amount == "full":
        found.failures += [
            f"{role} makes more calls of the class {call}"
            for (role, call), more in last.items()
            if more
        ]
    straced = strace(amount, home, found)
    told = ", ".join(f"{role} {count}" for role, count in kills.items())
    found.counts = f"{found.cases} kills ({told}, by strace {straced})"
    found.notes.append(f"slowest resume {slowest:.1f} s")
    found.seconds = time.monotonic() - began
    return found


def _add(found: Row, counts: Counts, problems: list[str], how: str) -> None:
    found.cases += 1
    for letter in "LDCXR":
        setattr(found, letter, getattr(found, letter) + getattr(counts, letter))
    found.failures += [
        f"{how}: {text}" for text in [*problems, *([] if counts.is_clean else counts.notes)]
    ]


def strace(amount: str, home: Path, found: Row) -> int:
    """Kill with the real strace, processes that were really executed; returns how many cases."""
    if shutil.which("strace") is None:
        found.notes.append("no strace here")
        return 0
    for call, n in STRACED[amount]:
        counts, problems = strace_one(call, n, home / f"strace-{call}-{n}")
        _add(found, counts, problems, f"strace -f -e inject={call}:signal=KILL:when={n}")
    return len(STRACED[amount])


def strace_one(call: str, n: int, home: Path) -> tuple[Counts, list[str]]:
    """Every process of a run dies at its n-th call; then resume."""
    home.mkdir(parents=True)
    box = Box(home)
    command = [
        "run",
        f"{JOB}:work",
        "--tasks",
        box.tasks(payloads(TASKS)),
        "--ranks",
        "2",
        "--spool",
        "S",
    ]
    command += [
        "--arg",
        f"executions={home / 'executions'}",
        "--time-limit",
        f"{RESUME_S * slowness():.0f}s",
    ]
    (home / "executions").mkdir()
    inject = (
        "strace",
        "-f",
        "-qq",
        "-o",
        "trace",
        "-e",
        f"trace={call}",
        "-e",
        f"inject={call}:signal=KILL:when={n}",
    )
    box.run(*command, program=(*inject, GPUSPOOL), code=None)
    problems = (
        []
        if "+++ killed by SIGKILL +++" in (home / "trace").read_text()
        else ["strace killed nothing"]
    )
    again = ["resume", "S"] if (home / "S" / "run.json").exists() else command
    done = box.run(*again, code=None)
    problems += (
        [f"the resume ended with exit code {done.code}: {done.err[-1000:]}"] if done.code else []
    )
    problems += [f"processes are left: {left}"] if (left := box.processes()) else []
    box.kill_all()
    return check(home / "S", TASKS, claimed_ok=True, executions=home / "executions"), problems


if __name__ == "__main__":
    play_one(sys.argv[1], play)
