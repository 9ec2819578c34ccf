"""Row "kill storm": SIGKILL a random process of a run again and again, until the run is finished.

The run is started again each time. Four workers and their parent, started by the real command line,
work on 500 tasks of 1-4 ms in batches of 4. A parent that dies leaves workers behind, which its
successor adopts. A worker that dies is seen by its parent, if that lives. Afterwards nothing may be
lost, doubled or wrong. No task may have been executed after its line stood in a journal, and each
kill may have cost at most the batch in hand. Kills come by progress or by time, whichever is first,
so that a fast run gets as many kills as a slow one. A seed decides who is killed when; a busy
machine shifts that a little.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from helpers import Box, Started, count_lines, kill, wait_until

from torture.checker import Counts, Look, check, look
from torture.rows import Row

JOB = Path(__file__).with_name("job.py")
TASKS, BATCH, RANKS = 500, 4, 4
# How many kills are planned for each run. One that ends early gets fewer.
KILLS = 12
# How long to wait before a kill, at most: while processes start, and when they work.
SOON_S = (0.02, 0.5)
LATE_S = (0.5, 2.0)
RUNS = {"small": 2, "full": 200}
KILLED = {"small": 10, "full": 2000}
# If there were too few kills, at most so many times the planned number of runs are played.
MOST_RUNS = 2
# How long one command may take on a busy machine.
PATIENCE_S = 60.0


@dataclass
class Outcome:
    """What became of one run."""

    seed: int
    kills: int = 0
    worker_kills: int = 0
    starts: int = 0
    counts: Counts = field(default_factory=Counts)
    failures: list[str] = field(default_factory=list)


class Storm:
    """One run, its kills and its end."""

    def __init__(self, seed: int, home: Path) -> None:
        self.outcome = Outcome(seed)
        self._rng = random.Random(f"kill storm {seed}")
        home.mkdir(parents=True)
        self._box = Box(home)
        self._spool, self._executions = home / "S", home / "executions"
        self._executions.mkdir()
        self._looks: list[Look] = []
        payloads = [{"n": n, "ms": self._rng.randint(1, 4)} for n in range(TASKS)]
        self._options = ["--max-crashes", "1000000", "--max-restarts", "1000000", "-q"]
        self._run: list[str | Path] = [
            "run",
            f"{JOB}:Batched",
            "--tasks",
            self._box.tasks(payloads),
            "--spool",
            "S",
        ]
        self._run += [
            "--ranks",
            str(RANKS),
            "--arg",
            f"executions={self._executions}",
            *self._options,
        ]

    def play(self) -> Outcome:
        """Play the whole run. It leaves no process, and files only if something is wrong."""
        try:
            code = self._to_the_end()
            if code is not None:
                self._judge(code)
        except AssertionError as error:
            self._fail(f"{error}")
        finally:
            self._box.kill_all()
        if not self.outcome.failures:
            shutil.rmtree(self._box.home)
            shutil.rmtree(f"{self._box.home}-cli")
        return self.outcome

    def _fail(self, text: str) -> None:
        seed = self.outcome.seed
        self.outcome.failures.append(
            f"seed {seed}: {text}; again: python -m torture.kill_storm {seed}"
        )

    def _to_the_end(self) -> int | None:
        """Start, kill, and start again.

        Returns the exit code of the command that was left alive; None if one failed.
        """
        started = self._start()
        while True:
            if self.outcome.kills < KILLS:
                self._pause(started)
                self._strike(started)
            else:
                started.process.wait(PATIENCE_S)
            if not started.is_over():
                continue
            code = started.wait().code
            if code != -signal.SIGKILL:
                return code
            self._looks.append(look(self._spool / "outputs"))
            started = self._start()

    def _start(self) -> Started:
        """Start the same command again, or `resume` if there is something to resume."""
        self.outcome.starts += 1
        is_there = (self._spool / "run.json").exists()
        if is_there and self._rng.random() < 0.5:
            return self._box.start("resume", "S", *self._options)
        return self._box.start(*self._run)

    def _pause(self, started: Started) -> None:
        """Wait for the next kill, by the clock or by progress, or for the end of the run."""
        until = time.monotonic() + self._rng.uniform(*self._rng.choice([SOON_S, LATE_S, LATE_S]))
        goal = count_lines(self._spool) + self._rng.uniform(0, 2 * TASKS / KILLS)
        wait_until(
            lambda: (
                started.is_over() or time.monotonic() > until or count_lines(self._spool) >= goal
            ),
            PATIENCE_S,
            poll=0.005,
        )

    def _strike(self, started: Started) -> None:
        """Kill any one of the processes of this run."""
        pids = self._box.processes()
        if started.is_over() or not pids:
            return
        victim = self._rng.choice(pids)
        kill(victim)
        self.outcome.kills += 1
        self.outcome.worker_kills += victim != started.pid
        if victim == started.pid:
            started.process.wait(PATIENCE_S)

    def _judge(self, code: int) -> None:
        """Once the run has ended by itself, everything must be there, once, and nothing alive."""
        if code != 0:
            self._fail(f"exit code {code}")
        wait_until(lambda: not self._box.processes(), PATIENCE_S)
        told = "".join(json.dumps(result) + "\n" for result in self._box.results("S"))
        counts = self.outcome.counts = check(
            self._spool,
            TASKS,
            claimed_ok=code == 0,
            executions=self._executions,
            looks=self._looks,
            told=told,
        )
        for text in [*counts.notes, *self._box.problems("S")]:
            self._fail(text)
        if counts.again > BATCH * self.outcome.worker_kills:
            self._fail(
                f"{counts.again} executions in vain for {self.outcome.worker_kills} killed workers"
            )
        hidden = [str(path) for path in self._spool.rglob(".*") if path.name != ".gpuspool"]
        if hidden:
            self._fail(f"{hidden[0]} was left behind")


def outcomes(amount: str, home: Path) -> Iterator[Outcome]:
    """Play runs, a few side by side, until there were enough runs and enough kills."""
    runs = kills = 0
    pending: set[Future[Outcome]] = set()
    with ThreadPoolExecutor(width()) as pool:
        for seed in range(RUNS[amount] * MOST_RUNS):
            if runs + len(pending) >= RUNS[amount] and kills >= KILLED[amount]:
                break
            pending.add(pool.submit(Storm(seed, home / f"{seed}").play))
            while len(pending) >= width() or (pending and runs + len(pending) >= RUNS[amount]):
                ended, pending = wait(pending, return_when=FIRST_COMPLETED)
                for outcome in (future.result() for future in ended):
                    runs, kills = runs + 1, kills + outcome.kills
                    yield outcome
        for future in pending:
            yield future.result()


def width() -> int:
    """How many runs are played side by side. A run mostly waits for its processes to start."""
    return len(os.sched_getaffinity(0))


def row(amount: str, home: Path) -> Row:
    """Play the row: at least as many runs and kills as the amount asks for."""
    began = time.monotonic()
    found = Row("kill storm", 0, "")
    kills = parents = starts = again = duplicates = 0
    for outcome in outcomes(amount, home):
        counts = outcome.counts
        found.cases += 1
        found.add(counts)
        found.failures += outcome.failures
        kills, starts = kills + outcome.kills, starts + outcome.starts
        parents += outcome.kills - outcome.worker_kills
        again, duplicates = again + counts.again, duplicates + counts.duplicates
    found.counts = f"{found.cases} runs, {kills} kills"
    found.notes.append(
        f"{parents} parents and {kills - parents} workers killed, {starts} starts; "
        f"{again} executions in vain (at most {BATCH} a worker allowed), "
        f"{duplicates} lines of tasks that had one"
    )
    if kills < KILLED[amount]:
        found.failures.append(f"only {kills} kills, {KILLED[amount]} were asked for")
    found.seconds = time.monotonic() - began
    return found


if __name__ == "__main__":
    print(Storm(int(sys.argv[1]), Path(tempfile.mkdtemp(prefix="kill-storm-"), "home")).play())
