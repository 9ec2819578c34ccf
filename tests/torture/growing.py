"""Row "growing": runs that get more tasks, whose tasks are redone, and whose processes do not last.

A seed draws a run. Some tasks need several calls (NotDone), some ask for a fresh process (Restart),
the job is recycled after some tasks, and its `close` may raise, hang or die. While the run goes on,
tasks are added to it, also by several commands at once; it is drained by signals and time limits;
and any of its processes are killed, also those that add. What is complete is redone, by a command
that may be killed as well. In the end nothing may be lost, doubled or wrong, no task may have
failed, and no scratch folder may be left.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from helpers import Box, Started, count_lines, kill, names, wait_until

from gpuspool import UsageError
from torture.checker import Counts, Look, check, look
from torture.rows import Row

JOB = Path(__file__).with_name("growing_job.py")
CASES = {"small": range(1), "full": range(200)}
# How many tasks a run begins with, and how many come with each addition.
FIRST, ADDED = 40, (15, 1, 30)
RANKS = 3
# What is done to a run, in a random order.
DEEDS = ("add", "add", "add", "redo", "redo", "kill", "kill", "kill", "kill", "drain", "drain")
# How long to wait before the next deed, at most; progress may end the wait.
WAIT_S = (0.05, 1.0)
# A run whose tasks never end is given up after so many starts.
MOST_STARTS = 60
# How long one command may take on a busy machine.
PATIENCE_S = 200.0


@dataclass
class Outcome:
    """What became of one case."""

    seed: int
    tasks: int = 0
    starts: int = 0
    kills: int = 0
    adds: int = 0
    redos: int = 0
    recycled: int = 0
    counts: Counts = field(default_factory=Counts)
    failures: list[str] = field(default_factory=list)


class Case:
    """One run, what is done to it, and its end."""

    def __init__(self, seed: int, home: Path) -> None:
        self.outcome = Outcome(seed)
        self._rng = rng = random.Random(f"growing {seed}")
        home.mkdir(parents=True)
        self._box = Box(home)
        self._spool, self._executions = home / "S", home / "executions"
        self._executions.mkdir()
        self._payloads = [self._draw(n) for n in range(FIRST + sum(ADDED))]
        self._sizes = list(ADDED)
        rng.shuffle(self._sizes)
        # How many tasks the run was asked to have so far.
        self._asked = FIRST
        # What is told of earlier executions of these does not hold any more.
        self._redone: set[str] = set()
        self._looks: list[Look] = []
        self._options = ["--max-crashes", "1000000", "--max-restarts", "1000000", "-q"]
        self._options += ["--ranks", str(RANKS), "--grace", "1s"]
        self._job = f"{JOB}:{rng.choice(('Growing', 'Batched'))}"
        recycle = rng.choice((0, 1, 3, 10))
        close = rng.choice(("", "", "raises", "hangs", "dies"))
        if close == "hangs" and recycle:
            # Each fresh process would wait for the grace of the one before.
            recycle = 20
        self._args = ["--arg", f"executions={self._executions}"]
        self._args += ["--arg", f"recycle={recycle}", "--arg", f"close={close}"]

    def _draw(self, n: int) -> dict[str, object]:
        rng = self._rng
        payload: dict[str, object] = {"n": n, "ms": rng.randint(1, 30)}
        if rng.random() < 0.2:
            payload["steps"] = rng.randint(2, 5)
        if rng.random() < 0.05:
            payload["fresh"] = True
        return payload

    def play(self) -> Outcome:
        """Play the whole case. It leaves no process, and files only if something is wrong."""
        try:
            self._judge(self._to_the_end())
        except (AssertionError, subprocess.TimeoutExpired, UsageError) as error:
            self._fail(f"{error!r}")
        finally:
            self._box.kill_all()
        if not self.outcome.failures:
            shutil.rmtree(self._box.home)
            shutil.rmtree(f"{self._box.home}-cli")
        return self.outcome

    def _fail(self, text: str) -> None:
        seed = self.outcome.seed
        again = f"again: python -m torture.growing {seed}"
        self.outcome.failures.append(f"seed {seed}: {text}; {again}")

    def _to_the_end(self) -> int:
        """Do all that is to be done to the run; returns the exit code of the last command."""
        deeds = list(DEEDS)
        self._rng.shuffle(deeds)
        started = self._start()
        for deed in deeds:
            self._pause(started)
            if started.is_over():
                started = self._start()
            match deed:
                case "add":
                    self._add()
                case "redo":
                    started = self._redo(started)
                case "kill":
                    self._strike(started)
                case "drain":
                    started.signal(self._rng.choice((signal.SIGTERM, signal.SIGINT)))
        record = self._spool / "run.json"
        while not record.exists():
            wait_until(lambda started=started: started.is_over() or record.exists(), PATIENCE_S)
            if not record.exists():
                started = self._start()
        self._asked = len(self._payloads)
        self._add_all(1)
        while True:
            code = started.process.wait(PATIENCE_S)
            self._note_look()
            if code == 0 and self._is_complete():
                return code
            # It may have been killed, or stopped before it could hear the signal.
            if code not in (0, 75, 130, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT):
                self._fail(f"exit code {code}\n{started.err}")
                return code
            if self.outcome.starts > MOST_STARTS:
                self._fail(f"not at its end after {MOST_STARTS} starts")
                return code
            started = self._start()

    def _is_complete(self) -> bool:
        counts = self._box.status("S")["tasks"]
        return bool(counts["complete"] == counts["total"] == len(self._payloads))

    def _tasks(self) -> str:
        """The file of all tasks that the run was asked to have."""
        return self._box.tasks(self._payloads[: self._asked], f"tasks-{self._asked}.jsonl")

    def _start(self) -> Started:
        """Go on with the run, or make it."""
        self.outcome.starts += 1
        more = list(self._options)
        if self._rng.random() < 0.3:
            more += ["--time-limit", self._rng.choice(("0.3s", "1s", "3s"))]
        if (self._spool / "run.json").exists() and self._rng.random() < 0.5:
            return self._box.start("resume", "S", *more)
        command = ["run", self._job, "--tasks", self._tasks(), "--spool", "S", "--add"]
        return self._box.start(*command, *self._args, *more)

    def _pause(self, started: Started) -> None:
        """Wait for the next deed, by the clock or by progress, or for the end of the command."""
        until = time.monotonic() + self._rng.uniform(*WAIT_S)
        goal = count_lines(self._spool) + self._rng.randint(5, 60)
        wait_until(
            lambda: (
                started.is_over() or time.monotonic() > until or count_lines(self._spool) >= goal
            ),
            PATIENCE_S,
            poll=0.005,
        )

    def _add(self) -> None:
        """Add the next tasks, by one command or by two at once, each of which may be killed."""
        if not (self._spool / "run.json").exists() or not self._sizes:
            return
        self._asked += self._sizes.pop()
        self._add_all(self._rng.choice((1, 1, 2)))

    def _add_all(self, adders: int) -> None:
        self.outcome.adds += 1
        tasks = self._tasks()
        while True:
            adding = [self._box.start("add", "S", "--tasks", tasks) for _ in range(adders)]
            if self._rng.random() < 0.3:
                until = time.monotonic() + self._rng.uniform(0.05, 0.6)
                wait_until(lambda until=until: time.monotonic() > until, PATIENCE_S)
                kill(self._rng.choice(adding).pid)
            codes = [one.process.wait(PATIENCE_S) for one in adding]
            for code, one in zip(codes, adding, strict=True):
                assert code in (0, -signal.SIGKILL), f"add ended with {code}\n{one.err}"
            if 0 in codes:
                return

    def _redo(self, started: Started) -> Started:
        """Stop the run, and have some of what is complete done again."""
        kill(started.pid)
        started.process.wait(PATIENCE_S)
        self._note_look()
        done = [name.removesuffix(".txt") for name in names(self._spool / "outputs")]
        if not done:
            return self._start()
        keys = self._rng.sample(done, min(len(done), self._rng.randint(1, 10)))
        self._redone.update(f"{key}.txt" for key in keys)
        self.outcome.redos += 1
        return self._box.start("redo", "S", *keys, *self._options)

    def _strike(self, started: Started) -> None:
        """Kill any one of the processes of this run."""
        pids = self._box.processes()
        if started.is_over() or not pids:
            return
        kill(self._rng.choice(pids))
        self.outcome.kills += 1

    def _note_look(self) -> None:
        self._looks.append(look(self._spool / "outputs"))

    def _judge(self, code: int) -> None:
        """Once the run has ended by itself, everything must be there, once, and nothing alive."""
        outcome = self.outcome
        outcome.tasks = len(self._payloads)
        wait_until(lambda: not self._box.processes(), PATIENCE_S)
        lasting = [
            {name: output for name, output in one.items() if name not in self._redone}
            for one in self._looks
        ]
        told = "".join(json.dumps(result) + "\n" for result in self._box.results("S"))
        counts = outcome.counts = check(
            self._spool,
            outcome.tasks,
            claimed_ok=code == 0,
            executions=self._executions,
            looks=lasting,
            told=told,
        )
        for text in [*counts.notes, *self._box.problems("S")]:
            self._fail(text)
        if counts.failed:
            self._fail(f"tasks {counts.failed} failed for nothing")
        if names(self._spool / "scratch"):
            self._fail(f"scratch of {names(self._spool / 'scratch')} was left behind")
        for name in names(self._spool / "stopped"):
            closing = json.loads((self._spool / "stopped" / name).read_text())
            outcome.recycled += closing["reason"] == "recycled"


def row(amount: str, home: Path) -> Row:
    """Play the row, a few cases side by side: a case mostly waits."""
    began = time.monotonic()
    found = Row("growing", 0, "")
    tasks = kills = starts = adds = redos = recycled = again = 0
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        cases = [Case(seed, home / f"{seed}") for seed in CASES[amount]]
        for outcome in pool.map(Case.play, cases):
            found.cases += 1
            found.add(outcome.counts)
            found.failures += outcome.failures
            tasks, again = tasks + outcome.tasks, again + outcome.counts.again
            kills, starts = kills + outcome.kills, starts + outcome.starts
            adds, redos = adds + outcome.adds, redos + outcome.redos
            recycled += outcome.recycled
    found.counts = f"{found.cases} runs of {tasks} tasks, {kills} kills"
    found.notes.append(
        f"{starts} starts, {adds} times tasks were added and {redos} times some were redone, "
        f"{recycled} processes recycled; {again} executions beyond the first of a task"
    )
    found.seconds = time.monotonic() - began
    return found


if __name__ == "__main__":
    print(Case(int(sys.argv[1]), Path(tempfile.mkdtemp(prefix="growing-"), "home")).play())
