"""Row "sick_worlds": real runs in which devices, processes or a file system fail, and tasks too.

A seed draws a world: how many tasks there are and which are bad (in front, at random or in a
block), how many devices (made-up tokens on CPUs), which of them are sick, from when on and how,
whether processes spoil, and whether what all tasks need is away for some seconds, or the file
system on which the inputs of half of them lie. The command runs once, undisturbed. Then every good
task must be complete, exactly the bad ones must have failed, and no healthy device may be named. F
counts the good tasks that failed. It is told what that cost: the executions beyond one a task, and
how long runs took beside what the healthy devices need for the work and the time that nothing could
be done.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from helpers import Box, Started, wait_until

from gpuspool import UsageError
from torture import mounts
from torture.checker import Counts, check
from torture.rows import Row

JOB = Path(__file__).with_name("sick_job.py")
HALF = "half of the inputs away"
KINDS = ("bad inputs", "sick", "sick and bad", "spoils", "outage", "outage and bad", HALF, "all")
# By their seeds. The few are those kinds in which most can go wrong.
CASES = {"small": (3, 6), "full": range(50)}
MADE_UP_TOKENS = {"CUDA_VISIBLE_DEVICES": None, "GPUSPOOL_DEVICE_CHECK": "off"}
# How long one command may take on a busy machine.
PATIENCE_S = 400.0


@dataclass
class Outcome:
    """What became of one case. F: good tasks that failed; named: healthy devices that were."""

    seed: int
    kind: str
    tasks: int = 0
    F: int = 0
    named: int = 0
    seconds: float = 0.0
    bound_s: float = 0.0
    counts: Counts = field(default_factory=Counts)
    failures: list[str] = field(default_factory=list)


class Case:
    """One run in one world."""

    def __init__(self, seed: int, home: Path) -> None:
        self.outcome = Outcome(seed, KINDS[seed % len(KINDS)])
        self._rng = random.Random(f"sick worlds {seed}")
        home.mkdir(parents=True)
        self._box = Box(home)
        self._spool, self._executions = home / "S", home / "executions"
        self._mount = home / "mount"
        self._executions.mkdir()
        self._mount.touch()
        self._draw_devices()
        self._draw_tasks()
        self._half = home / "half"
        if self.outcome.kind == HALF:
            self._spread_inputs()
        self._outage_s = 0.0
        if self._is_about("outage") or self.outcome.kind == HALF:
            self._outage_s = self._rng.choice((2.0, 4.0, 8.0))
        self._run: list[str | Path] = ["run", f"{JOB}:Sick"]
        self._run += ["--tasks", self._box.tasks(self._payloads), "--spool", "S", "-q"]
        self._run += ["--devices", ",".join(self._devices)]
        self._run += ["--arg", f"world={home}", "--arg", f"executions={self._executions}"]

    def _is_about(self, word: str) -> bool:
        return word in self.outcome.kind or self.outcome.kind == "all"

    def _draw_devices(self) -> None:
        rng = self._rng
        may_be_one = not self._is_about("sick")
        self._devices = [f"GPU-{n}" for n in range(rng.choice((1, 2, 4) if may_be_one else (2, 4)))]
        self._sick: dict[str, dict[str, int | str]] = {}
        if self._is_about("sick"):
            count = rng.randint(1, len(self._devices) - 1)
            for device in rng.sample(self._devices, count):
                how = rng.choice(("raises", "raises", "exits", "does not load"))
                self._sick[device] = {"after": rng.choice((0, 0, 5, 20)), "how": how}
        self._load_s = rng.choice((0.0, 0.3))
        world = {
            "load_s": self._load_s,
            "sick": self._sick,
            "spoils": rng.choice(((3, 10), (10, 40))) if self._is_about("spoils") else (0, 0),
            "exits": rng.random() < 0.5,
        }
        (self._box.home / "world.json").write_text(json.dumps(world))

    def _draw_tasks(self) -> None:
        rng = self._rng
        self.outcome.tasks = count = rng.choice((60, 120, 240))
        usual_ms = rng.choice((5, 20, 60))
        self._payloads: list[dict[str, object]] = [
            {"n": n, "ms": rng.randint(usual_ms // 2, 2 * usual_ms)} for n in range(count)
        ]
        self._bad: set[int] = set()
        if not self._is_about("bad"):
            return
        n_bad = rng.choice((1, count // 20, count // 8, count // 4))
        where = rng.choice(("front", "random", "block"))
        start = rng.randint(0, count - n_bad) if where == "block" else 0
        bad = rng.sample(range(count), n_bad) if where == "random" else range(start, start + n_bad)
        self._bad = set(bad)
        how = rng.choice(("fail", "fail", "exit"))
        for n in self._bad:
            self._payloads[n][how] = True

    def _spread_inputs(self) -> None:
        """Give half of the tasks an input file on a file system of its own."""
        data = self._box.home / "data"
        for folder in (data, self._half):
            folder.mkdir()
        for n in self._rng.sample(range(self.outcome.tasks), self.outcome.tasks // 2):
            (data / f"{n}").touch()
            self._payloads[n]["path"] = str(self._half / f"{n}")
        mounts.call("mount", "--bind", data, self._half)

    def play(self) -> Outcome:
        """Play the whole case. It leaves no process, and files only if something is wrong."""
        try:
            began = time.monotonic()
            started = self._box.start(*self._run, env=MADE_UP_TOKENS)
            if self._outage_s:
                self._play_outage(started)
            code = started.process.wait(PATIENCE_S)
            self.outcome.seconds = time.monotonic() - began
            self._judge(code, started.err)
        except (AssertionError, subprocess.TimeoutExpired, UsageError) as error:
            self._fail(f"{error!r}")
        finally:
            self._box.kill_all()
            if self.outcome.kind == HALF:
                mounts.call("umount", "--lazy", self._half)
        if not self.outcome.failures:
            shutil.rmtree(self._box.home)
            shutil.rmtree(f"{self._box.home}-cli")
        return self.outcome

    def _fail(self, text: str) -> None:
        seed, kind = self.outcome.seed, self.outcome.kind
        again = f"again: python -m torture.sick_worlds {seed}"
        self.outcome.failures.append(f"seed {seed} ({kind}): {text}; {again}")

    def _play_outage(self, started: Started) -> None:
        """Take away what tasks need, once some tasks are complete, for some seconds."""
        goal = self._rng.randint(1, self.outcome.tasks // 4)
        out = self._spool / "outputs"
        wait_until(lambda: started.is_over() or len(list(out.glob("t*"))) >= goal, PATIENCE_S)
        until = time.monotonic() + self._outage_s
        if self.outcome.kind == HALF:
            mounts.call("umount", "--lazy", self._half)
            wait_until(lambda: time.monotonic() > until, PATIENCE_S)
            mounts.call("mount", "--bind", self._box.home / "data", self._half)
            return
        away = self._mount.rename(self._mount.with_name("away"))
        wait_until(lambda: time.monotonic() > until, PATIENCE_S)
        away.rename(self._mount)

    def _judge(self, code: int, err: str) -> None:
        outcome = self.outcome
        expected = 3 if self._bad else 0
        if code != expected:
            self._fail(f"exit code {code}, not {expected}\n{err}")
        wait_until(lambda: not self._box.processes(), PATIENCE_S)
        told = "".join(json.dumps(result) + "\n" for result in self._box.results("S"))
        counts = outcome.counts = check(
            self._spool, outcome.tasks, claimed_ok=code == 0, executions=self._executions, told=told
        )
        for text in [*counts.notes, *self._box.problems("S")]:
            self._fail(text)
        failed = set(counts.failed)
        outcome.F = len(failed - self._bad)
        for task in failed - self._bad:
            self._fail(f"F: task {task} failed for nothing")
        for task in self._bad - failed:
            self._fail(f"task {task} is bad and did not fail")
        summary = json.loads((self._spool / "summary.json").read_text())
        healthy = summary["sick_devices"].keys() - self._sick.keys()
        outcome.named = len(healthy)
        for device in healthy:
            self._fail(f"device {device} was named as one to look at, and it is healthy")
        outcome.bound_s = self._bound_s()

    def _bound_s(self) -> float:
        """What the healthy devices need at least: the work, one load and the time of the outage."""
        work_ms = sum(int(str(payload["ms"])) for payload in self._payloads)
        healthy = len(self._devices) - len(self._sick)
        return work_ms / 1000 / healthy + self._load_s + self._outage_s


def row(amount: str, home: Path) -> Row:
    """Play the row, a few cases side by side: a case mostly waits."""
    began = time.monotonic()
    found = Row("sick_worlds", 0, "")
    tasks = failed = named = again = 0
    ratios: list[float] = []
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        seeds = CASES[amount]
        if mounts.why_not():
            seeds = [seed for seed in seeds if KINDS[seed % len(KINDS)] != HALF]
            found.notes.append(f"no world in which half of the inputs are away: {mounts.why_not()}")
        cases = [Case(seed, home / f"{seed}") for seed in seeds]
        for outcome in pool.map(Case.play, cases):
            counts = outcome.counts
            found.cases += 1
            found.add(counts)
            found.failures += outcome.failures
            tasks, again = tasks + outcome.tasks, again + counts.again
            failed, named = failed + outcome.F, named + outcome.named
            if outcome.bound_s:
                ratios.append(outcome.seconds / outcome.bound_s)
    found.counts = (
        f"{found.cases} runs of {tasks} tasks, {failed} failed for nothing, "
        f"{named} healthy devices named"
    )
    found.notes.append(
        f"{again} executions beyond the first of a task; runs took {statistics.median(ratios):.1f} "
        f"times what their healthy devices need in the median, {max(ratios):.1f} at most"
    )
    found.seconds = time.monotonic() - began
    return found


if __name__ == "__main__":
    mounts.why_not()  # It makes a mount namespace of our own.
    print(Case(int(sys.argv[1]), Path(tempfile.mkdtemp(prefix="sick-"), "home")).play())
