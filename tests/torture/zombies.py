"""Row "zombies": workers that are neither alive nor gone, and others that take over their tasks.

There are five plays:

- `stalls`: workers are stopped (SIGSTOP) for longer than `--stall-timeout`, and their parent ends
  them.
- `stuck`: workers sleep inside a read that no signal ends, on a file system of our own; they are
  killed and stay.
- `unreaped`: workers were killed and nobody reaps them.
- `frozen`: a whole other host stands still for longer than the lease. An orchestrator here takes
  over, and the host wakes in the middle of that or afterwards.
- `vouched`: one worker over there stands still, but its parent beats, so nobody may take over.

Takeovers are counted: attempts that somebody else closed. A false one closed a worker that nobody
had harmed; a missed one is a harmed worker that nobody closed. Both must be 0, a parent that is
asked to stop must have ended within 30 s, and the checker must find every spool in order. A worker
that wakes finishes the one task in hand, so R is at most that.

`python -m torture.zombies PLAY SEED` plays one.
"""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers import Box, Started, count_lines, identities, kill, newest_parent, slowness, wait_until

from torture import checker, fuse, mounts
from torture.checker import Counts
from torture.fuse import Hanging
from torture.hosts import REAPER, OtherHost, freeze, state_of
from torture.job import payloads
from torture.rows import Row

NAME = "zombies"
JOB = Path(__file__).with_name("zombie_job.py")
# A parent that is asked to stop must have ended within this time.
STOP_S = 30.0
# Of the workers that stand still for longer than this their tasks are taken, on a quiet machine.
STALL_S = 3.0
LEASE_S = 2.0
# How many workers the other host has.
THERE = 6
# For how many leases a worker stands still for which its parent vouches.
VOUCHED_LEASES = 2.5
# The seed of "stuck" that leaves the grace as it is.
DEFAULT_GRACE = 4
PLAYS = {
    "small": ("stalls 0", "stuck 0", "frozen 0"),
    "full": (
        *(f"stalls {seed}" for seed in range(6)),
        *(f"stuck {seed}" for seed in range(8)),
        *(f"unreaped {seed}" for seed in range(4)),
        *(f"frozen {seed}" for seed in range(6)),
        "vouched 0",
    ),
}
# How many plays are played at once. They spend most of their time waiting.
AT_ONCE = 3


@dataclass
class Tally:
    """What became of one play."""

    takeovers: int = 0
    false: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    problems: list[str] = field(default_factory=list)
    # The longest time that a parent took to end.
    stopped_s: float = 0.0

    @property
    def failures(self) -> list[str]:
        false = [f"{attempt} was closed, and nobody had harmed it" for attempt in self.false]
        missed = [f"{attempt} was harmed and never closed" for attempt in self.missed]
        excused = "R:" if self.takeovers >= self.counts.R else "none"
        notes = [note for note in self.counts.notes if not note.startswith(excused)]
        return [*false, *missed, *self.problems, *notes]


class Play:
    """One spool and what is done to its workers."""

    def __init__(self, home: Path, seed: int) -> None:
        self.seed = seed
        self.rng = random.Random(f"zombies {seed}")
        # Workers that want a core and do not get one are silent too. Nobody may take them over.
        self.slowness = slowness()
        self.lease_s = LEASE_S * self.slowness
        home.mkdir(parents=True)
        self.box = Box(home)
        self.spool = home / "S"
        self.tally = Tally()
        self.harmed: set[str] = set()
        self.others: list[Box] = []
        for folder in ("executions", "marks"):
            (home / folder).mkdir()

    def command(self, tasks: int, ms: int, *options: str) -> list[str | Path]:
        self.tasks = tasks
        file = self.box.tasks([{"payload": payload} for payload in payloads(tasks, ms)])
        command: list[str | Path] = ["run", f"{JOB}:work", "--tasks", file, "--spool", "S"]
        for name in ("executions", "marks"):
            command += ["--arg", f"{name}={self.box / name}"]
        return [*command, *options]

    def wait_for_lines(self, count: int, parent: Started) -> None:
        """Wait until the journals hold so many lines. The parent must not have ended before."""
        wait_until(lambda: count_lines(self.spool) >= count or parent.is_over())
        assert not parent.is_over(), (
            f"the run had ended before {count} lines: {parent.err[-500:]!r}"
        )

    def closings(self) -> dict[str, dict[str, Any]]:
        """The closing of each closed attempt."""
        found = {}
        for path in (self.spool / "manifests").glob("*.orphans.jsonl"):
            found.update(
                {line["attempt"]: line for at, line in checker.sealed_lines(path) if at == 0}
            )
        return found

    def healthy(self) -> dict[str, int]:
        """The pid of each attempt that began, is not closed, and was not harmed."""
        closed = self.closings()
        found = identities(self.spool)
        return {
            name: pid
            for name, pid in found.items()
            if name not in closed and name not in self.harmed
        }

    def wait_for_takeovers(self) -> None:
        """Wait until every harmed attempt was closed by somebody else."""
        with contextlib.suppress(AssertionError):
            wait_until(lambda: self.harmed <= self.closings().keys())

    def is_out(self, parent: Started, codes: set[int], why: str) -> None:
        """Wait for the end of a parent that was asked to stop, or has nothing to do any more."""
        began = time.monotonic()
        code = parent.wait().code
        self.tally.stopped_s = max(self.tally.stopped_s, time.monotonic() - began)
        if time.monotonic() - began > STOP_S * max(self.slowness, slowness()):
            self.tally.problems.append(f"{why}: out only after {time.monotonic() - began:.0f} s")
        if code not in codes:
            self.tally.problems.append(
                f"{why}: exit code {code}, expected {codes}: {parent.err[-500:]!r}"
            )

    def finish(self) -> None:
        """Give failed tasks another round, and judge the whole."""
        self.expect_failures_of_the_harmed()
        code = self.box.run("retry", "S", code=None).code
        if code != 0:
            self.tally.problems.append(f"in the end: exit code {code}")
        closings = self.closings()
        taken = {
            attempt for attempt, closing in closings.items() if self._is_takeover(attempt, closing)
        }
        self.tally.takeovers = len(taken & self.harmed)
        self.tally.false += sorted(taken - self.harmed)
        self.tally.missed = sorted(self.harmed - closings.keys())
        self.tally.counts = checker.check(
            self.spool, self.tasks, claimed_ok=code == 0, executions=self.box / "executions"
        )

    def _is_takeover(self, attempt: str, closing: dict[str, Any]) -> bool:
        """Whether somebody took over.

        A worker that was asked to stop while it still started just dies, and its parent says so.
        """
        is_begun = attempt in self.harmed or _has_begun_a_task(self.spool, attempt)
        return closing["by"] != attempt and (is_begun or closing["state"] != "stopped")

    def expect_failures_of_the_harmed(self) -> None:
        """Only tasks in the hands of harmed workers may fail, and only as time-outs."""
        for result in self.box.results("S"):
            error = result.get("error")
            if error is not None and (
                error["kind"] != "timeout" or not set(error["attempts"]) <= self.harmed
            ):
                self.tally.problems.append(f"task {result['index']} failed: {error}")


def stalls(play: Play) -> None:
    """Stop seven workers of eight ranks, each at a moment of its own.

    The seed decides whether their parent is then asked to stop.
    """
    stall = f"{STALL_S * play.slowness:.1f}s"
    command = play.command(600, 20, "--ranks", "8", "--stall-timeout", stall, "--grace", "5s")
    parent = play.box.start(*command)
    while len(play.harmed) < 7:
        play.wait_for_lines(count_lines(play.spool) + play.rng.randint(1, 10), parent)
        healthy = {
            name: pid for name, pid in play.healthy().items() if _has_begun_a_task(play.spool, name)
        }
        if len(healthy) > 1:
            attempt = play.rng.choice(sorted(healthy))
            freeze([healthy[attempt]])
            play.harmed.add(attempt)
    if play.seed % 3 == 2:
        parent.signal(signal.SIGTERM)
        play.is_out(parent, {75}, "drained with workers that stand still")
        parent = play.box.start(*command)
    play.wait_for_takeovers()
    play.is_out(parent, {0, 3}, "after the stalls")
    play.finish()


def _has_begun_a_task(spool: Path, attempt: str) -> bool:
    """Whether an attempt has begun a task. Before, it may be silent past the stall time-out."""
    return (spool / "journal" / f"{attempt}.jsonl").read_bytes().count(b'"task":') > 0


def stuck(play: Play) -> None:
    """Two of four workers read what never comes. The seed chooses a way on: see `_go_on`."""
    with fuse.hanging(play.box / "fuse") as system:
        options = [
            [],
            ["--task-timeout", "1s"],
            ["--stall-timeout", "1s"],
            ["--task-timeout", "2s"],
        ][play.seed % 4]
        options += [] if play.seed == DEFAULT_GRACE else ["--grace", "5s"]
        options += ["--ranks", "4", "--arg", "stuck=[5,25]", "--arg", f"hang={system.file}"]
        command = play.command(60, 5, *options)
        parent = play.box.start(*command)
        play.wait_for_lines(20, parent)
        play.harmed = wait_until(
            lambda: found if len(found := set(_stuck_attempts(play))) == 2 else set()
        )
        _go_on(play, parent, command, system)
    play.finish()


def _stuck_attempts(play: Play) -> Iterator[str]:
    """The attempts whose process is in a read of the hanging file."""
    for attempt, pid in identities(play.spool).items():
        with contextlib.suppress(OSError):
            if b"fuse" in Path(f"/proc/{pid}/stack").read_bytes():
                yield attempt


def _go_on(play: Play, parent: Started, command: list[str | Path], system: Hanging) -> None:
    way = play.seed % 4
    if way == 0:
        # Nothing limits the time. The parent is asked to stop, and its workers cannot be killed.
        parent.signal(signal.SIGTERM)
        play.is_out(parent, {75}, "drained with workers that cannot die")
        play.is_out(play.box.start(*command), {0}, "resumed beside them")
    elif way in (1, 2):
        # The tasks are tried again in other processes, and there they do not hang.
        play.is_out(parent, {0}, "timed out with workers that cannot die")
    else:
        # The parent dies; the next one adopts its workers and is asked to stop.
        parent.signal(signal.SIGKILL)
        parent.wait(-signal.SIGKILL)
        again = play.box.start(*command)
        wait_until(lambda: "outlived" in again.err)
        again.signal(signal.SIGTERM)
        play.is_out(again, {3, 75}, "drained after adopting workers that cannot die")
    play.wait_for_takeovers()
    if not any(state_of(pid) == "D" for pid in play.box.processes()):
        play.tally.problems.append("no worker was unkillable: the play shows nothing")
    system.release()


def unreaped(play: Play) -> None:
    """Orphans are killed and stay zombies; the next orchestrator must not wait for them."""
    command = play.command(200, 20, "--ranks", "4")
    parent = play.box.start(*command, program=REAPER)
    play.wait_for_lines(20 + play.rng.randint(0, 40), parent)
    kill(newest_parent(play.spool)["pid"])
    for attempt, pid in identities(play.spool).items():
        kill(pid)
        wait_until(lambda pid=pid: state_of(pid) == "Z")
        play.harmed.add(attempt)
    play.is_out(play.box.start(*command), {0}, "after the deaths")
    play.finish()


def start_host(play: Play) -> tuple[OtherHost, Started, Started]:
    """Start six workers with their orchestrator on another host, and others with theirs here.

    Returns (host, the orchestrator there, the one here).
    """
    # Long enough that some are left once the second orchestrator has started, however long that
    # takes.
    ms = int(40 * play.slowness)
    command = play.command(400, ms, "--lease", f"{play.lease_s:.1f}s", "--time-limit", "0s")
    play.box.run(*command, code=75)
    home = play.box.home.with_name(f"{play.box.home.name}-host")
    home.mkdir()
    host = OtherHost(Box(home))
    play.others.append(host.box)
    there = host.start(play.spool, "resume", str(play.spool), "--ranks", str(THERE))
    wait_until(lambda: len(identities(play.spool)) == THERE)
    here = play.box.start("resume", "S", "--ranks", str(2 * THERE))
    wait_until(lambda: len(identities(play.spool)) > THERE)
    play.wait_for_lines(count_lines(play.spool) + play.rng.randint(1, 40), here)
    return host, there, here


def frozen(play: Play) -> None:
    """Let the whole other host stand still; this one takes over, and the other wakes."""
    host, there, here = start_host(play)
    host.freeze()
    play.harmed |= {attempt for attempt in play.healthy() if rank_number(attempt) < THERE}
    if play.seed % 2:
        play.wait_for_takeovers()
    else:
        play.is_out(here, {0}, "taking over from a frozen host")
    host.thaw()
    play.is_out(there, {0, 1, 4}, "the host that woke")
    play.is_out(here, {0}, "taking over from a frozen host")
    play.finish()


def vouched(play: Play) -> None:
    """Stop one worker there for longer than the lease. Its parent lives, so nobody takes over."""
    host, there, here = start_host(play)
    attempt, pid = next(item for item in host.workers() if item[0] in play.healthy())
    freeze([pid])
    until = time.monotonic() + VOUCHED_LEASES * play.lease_s
    wait_until(lambda: time.monotonic() > until)
    if attempt in play.closings():
        play.tally.false.append(attempt)
    kill(pid, signal.SIGCONT)
    for parent in (there, here):
        play.is_out(parent, {0}, "after one worker stood still")
    play.finish()


def rank_number(attempt: str) -> int:
    return int(attempt.removeprefix("rank-").partition(".")[0])


def play(name: str, home: Path) -> Tally:
    """Play one, named like "stalls 3"; nothing of it is left."""
    kind, seed = name.split()
    one = Play(home / name.replace(" ", "-"), int(seed))
    kinds: dict[str, Callable[[Play], None]] = {
        "stalls": stalls, "stuck": stuck, "unreaped": unreaped, "frozen": frozen, "vouched": vouched
    }  # fmt: skip
    try:
        kinds[kind](one)
    except (AssertionError, subprocess.TimeoutExpired) as error:
        one.tally.problems.append(str(error))
    finally:
        for box in (*one.others, one.box):
            box.kill_all()
    return one.tally


def row(amount: str, home: Path) -> Row:
    """Play the row: all plays of an amount."""
    reason = mounts.why_not() or fuse.why_not()
    if reason:
        return Row(NAME, 0, f"skipped: {reason}", notes=[reason])
    began, names = time.monotonic(), PLAYS[amount]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        tallies = list(pool.map(lambda name: play(name, home), names))
    takeovers, false, missed = (
        sum(counts)
        for counts in zip(
            *((t.takeovers, len(t.false), len(t.missed)) for t in tallies), strict=True
        )
    )  # fmt: skip
    slowest = max(tally.stopped_s for tally in tallies)
    row = Row(
        NAME,
        len(names),
        f"{takeovers} takeovers, {false} false, {missed} missed, out within {slowest:.1f} s",
    )
    for name, tally in zip(names, tallies, strict=True):
        for letter in "LDCXR":
            setattr(row, letter, getattr(row, letter) + getattr(tally.counts, letter))
        row.failures += [f"python -m torture.zombies {name}: {text}" for text in tally.failures]
    row.seconds = time.monotonic() - began
    return row


def main(words: list[str]) -> int:
    """Play one and tell all of it."""
    reason = mounts.why_not() or fuse.why_not()
    if reason:
        print(f"skipped: {reason}")
        return 0
    with tempfile.TemporaryDirectory() as home:
        tally = play(" ".join(words), Path(home))
    print(
        f"{tally.takeovers} takeovers, out within {tally.stopped_s:.1f} s",
        *tally.failures,
        sep="\n",
    )
    return int(bool(tally.failures))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
