"""Row "error sweep": each errno on each n-th call of a parent, a worker, a thief and an heir.

A thief is a worker that steals; an heir is the parent of a resume. A call fails once; or it and all
calls after it fail until the process ends; or it is done and reported as failed; or a write is cut
short. Whatever it is:

- The command ends within 30 s, either with exit code 0 or loudly: with an errno and a path on
  stderr or in a worker's log.
- No traceback is shown, neither on stderr nor in a log.
- Once the cause is gone, the same command ends with exit code 0, and nothing is lost, doubled or
  wrong. If the job itself could not write, and its task failed for that, `retry` ends so.
- `verify` has nothing to complain about, and no process is left.

`cd tests && python -m torture.error_sweep "worker link 3 fail EIO 1"` plays one case and tells all.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers import journal_lines

from torture.checker import Counts
from torture.faults import Fault, NoCompiler, Scene, chosen, play_one, played
from torture.forked import Ended
from torture.rows import Row

# How long a run or its resume may take on a machine that is busy with others.
PATIENCE_S = 200.0
# a parent whose disk fails for good waits some 10 s before it gives up: most of these lanes sleep
AT_ONCE = 12
# How many cases the small amount has.
SMALL = 12
ERRNOS = ("ENOSPC", "EDQUOT", "EROFS", "EIO", "ESTALE", "EMFILE", "EINTR", "ETIMEDOUT")
# How many cases each call gets, by its class (0.5: every second call one); errnos and ways take
# turns over the calls.
SHARE = {
    "create": 4.0,
    "open": 1.5,
    "write": 4.0,
    "sync": 3.0,
    "link": 5.0,
    "rename": 8.0,
    "mkdir": 4.0,
    "list": 1.0,
}
SHARE |= {"unlink": 1.0, "stat": 0.5, "read": 0.5, "lock": 4.0, "watch": 2.0}
# of EINTR, which the interpreter answers by calling again: without end it would be no error but a
# hang
IN_A_ROW = 3
TRACEBACK = "Traceback (most recent call last)"


@dataclass(frozen=True)
class Verdict:
    """How a case ended. hit: the first call that was spoiled; None if there was no such call."""

    hit: str | None
    code: int
    counts: Counts
    problems: list[str]
    seconds: float


def ways(call: str) -> list[tuple[str, str, int]]:
    """Each (action, errno, how many) that may spoil a call of this class, well mixed."""
    found = [("fail", error, 1) for error in ERRNOS]
    found += [("fail", error, IN_A_ROW if error == "EINTR" else 0) for error in ERRNOS]
    if call in ("link", "rename", "mkdir", "unlink"):
        found += [("did", error, 1) for error in ERRNOS]
    if call == "write":
        found += [("half", error, many) for error in ("ENOSPC", "EDQUOT", "EIO") for many in (2, 0)]
    step = next(s for s in (7, 5, 3) if len(found) % s)
    return [found[place * step % len(found)] for place in range(len(found))]


def all_faults(calls_of: Mapping[str, Counter[str]]) -> Iterator[Fault]:
    """Every call of every role, each with its share of the ways."""
    turn: Counter[str] = Counter()
    for role, calls in calls_of.items():
        for call, share in SHARE.items():
            for n in range(1, calls[call] + 1):
                for _ in range(int(n * share) - int((n - 1) * share)):
                    action, error, many = ways(call)[turn[call] % len(ways(call))]
                    turn[call] += 1
                    yield Fault(role, call, n, action, error, many)


def play(scene: Scene, fault: Fault) -> Verdict:
    """Spoil a call, remove the cause, run again, and judge."""
    first = scene.play(fault, patience_s=PATIENCE_S)
    hit = scene.hit()
    if hit is None and first.code == 0:
        return Verdict(None, 0, Counts(), [], first.seconds)
    problems = ["ended badly without a fault"] if hit is None else []
    problems += [f"hung: {first.err[-500:]}"] if first.hung else []
    problems += (
        [f"ended silently, exit code {first.code}: {first.err}"]
        if not is_loud(scene, fault, first)
        else []
    )
    problems += [f"processes are left: {first.left}"] if first.left and not first.code else []
    again = scene.again(PATIENCE_S)
    traces = [record["error"].get("traceback", "") for record in failures(scene)]
    if again.code == 3 and traces and all(map(is_jobs_own, traces)):
        again = scene.retry()
    problems += (
        [f"again: exit code {again.code}{' (hung)' * again.hung}: {again.err[-1000:]}"]
        if again.code
        else []
    )
    problems += [f"again: processes are left: {again.left}"] if again.left else []
    problems += tracebacks(scene, first, again)
    scene.server.kill_left()
    if not again.code:
        verified = scene.verify()
        problems += [f"verify: {verified.out}"] if verified.code else []
    return Verdict(
        hit, first.code, scene.judge(claimed_ok=again.code == 0), problems, first.seconds
    )


def is_loud(scene: Scene, fault: Fault, ended: Ended) -> bool:
    """Whether a command that failed said why: an errno (or its name or text) and a path."""
    if ended.code == 0 or ended.hung:
        return True
    number = getattr(errno, fault.error)
    said = (
        ended.err + scene.logs() + "".join(record["error"]["message"] for record in failures(scene))
    )
    is_named = any(word in said for word in (fault.error, os.strerror(number), f"rrno {number}"))
    return is_named and (
        str(scene.place) in said or f"{scene.place.name}/{scene.spool.name}" in said
    )


def failures(scene: Scene) -> list[Any]:
    """The journal lines of tasks that failed."""
    return [line for line in journal_lines(scene.spool) if line["state"] == "failed"]


def is_jobs_own(trace: str) -> bool:
    """Whether the job itself could not write: the last frames of a traceback are its own."""
    _, _, below = trace.rpartition("job.py")
    return "Error: [Errno" in below and "outputs.py" not in below


def tracebacks(scene: Scene, *several: Ended) -> list[str]:
    """Where tracebacks begin that were shown. What the job itself raised may stand in a log."""
    said = {"on stderr": "".join(ended.err for ended in several), "in a log": scene.logs()}
    found = []
    for where, text in said.items():
        for trace in text.split(TRACEBACK)[1:]:
            if where == "on stderr" or not is_jobs_own(trace):
                found.append(f"a traceback {where}: {trace[:2000]}")
    return found


def row(amount: str, home: Path) -> Row:
    began = time.monotonic()
    found = Row("error sweep", 0, "")
    try:
        # The long cases come first.
        faults = sorted(chosen(amount, all_faults, SMALL, home), key=lambda fault: fault.many)
    except NoCompiler as reason:
        found.counts = f"not run: {reason}"
        return found
    ends: Counter[int] = Counter()
    slowest = (0.0, "")
    for fault, verdict in played(faults, play, home, AT_ONCE):
        if verdict.hit is None and not verdict.problems:
            continue
        found.cases += 1
        ends[verdict.code] += 1
        slowest = max(slowest, (verdict.seconds, str(fault)))
        for letter in "LDCXR":
            setattr(found, letter, getattr(found, letter) + getattr(verdict.counts, letter))
        problems = [*verdict.problems, *([] if verdict.counts.is_clean else verdict.counts.notes)]
        found.failures += [
            f'python -m torture.error_sweep "{fault}", at {verdict.hit}: {text}'
            for text in problems
        ]
    went_on = ends.pop(0, 0)
    codes = ", ".join(f"{count} with exit code {code}" for code, count in sorted(ends.items()))
    found.counts = f"{found.cases} errors, {went_on} survived, {codes}"
    found.notes.append(f"the slowest run ended after {slowest[0]:.1f} s ({slowest[1]})")
    found.seconds = time.monotonic() - began
    return found


if __name__ == "__main__":
    play_one(sys.argv[1], play)
