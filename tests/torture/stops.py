"""Row "stops": every process of a run gets a stop signal, in any order, again and again.

So Slurm, systemd and people with `pkill` end a job: the parent, its workers, commands and the
helpers of jobs are signalled within a fraction of a second, and in what order they die or hear of
it is chance. The same command goes on each time, at the end undisturbed. Then every good task must
be complete, and exactly the bad ones failed: those that raise, and those whose helper ends itself
by SIGTERM. F counts the good tasks that failed. A seed decides what is run, who is signalled when,
and by what; a busy machine shifts that a little.
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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from helpers import GPUSPOOL, Box, Started, count_lines, kill, wait_until

from torture.checker import Counts, Look, check, look
from torture.rows import Row

JOB = Path(__file__).with_name("stop_job.py")
JOBS = ("command", "forked", "Batched", "Loading", "Raising", "Dying", "Deaf")
SIGNALS = (signal.SIGTERM,) * 4 + (
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGXCPU,
)
TASKS = 48
# So many tasks are bad in each way.
BAD = 2
STOPS = 2
CASES = {"small": 2, "full": 100}
# The processes of a run are signalled within so many seconds.
SPREAD_S = (0.0, 0.02, 0.3)
# How long one command may take on a busy machine.
PATIENCE_S = 120.0
# As a terminal would start it: the row itself may run under nohup(1), or in the background.
PROGRAM = ("env", "--default-signal=HUP,INT", GPUSPOOL)


@dataclass
class Outcome:
    """What became of one case. F: good tasks that failed."""

    seed: int
    job: str
    stops: int = 0
    starts: int = 0
    F: int = 0
    counts: Counts = field(default_factory=Counts)
    failures: list[str] = field(default_factory=list)


class Case:
    """One run, its stops and its end."""

    def __init__(self, seed: int, home: Path) -> None:
        self.outcome = Outcome(seed, JOBS[seed % len(JOBS)])
        self._rng = random.Random(f"stops {seed}")
        home.mkdir(parents=True)
        self._box = Box(home)
        self._spool, self._executions = home / "S", home / "executions"
        self._executions.mkdir()
        self._looks: list[Look] = []
        bad = self._rng.sample(range(TASKS), 2 * BAD)
        self._bad = set(bad)
        payloads = [{"n": n, "ms": self._rng.randint(10, 120)} for n in range(TASKS)]
        for n in bad[:BAD]:
            payloads[n]["fail"] = True
        for n in bad[BAD:]:
            payloads[n]["term"] = True
        self._run: list[str | Path] = ["run", "--tasks", self._box.tasks(payloads), "-q"]
        self._ranks = self._rng.randint(1, 3)
        self._run += ["--spool", "S", "--ranks", str(self._ranks), "--grace", "20s"]
        if self.outcome.job == "command":
            self._run += ["--", sys.executable, JOB, "{key}", "{output}.txt", "{input}"]
        else:
            self._run[1:1] = [f"{JOB}:{self.outcome.job}"]
            self._run += ["--arg", f"executions={self._executions}"]

    def play(self) -> Outcome:
        """Play the whole case. It leaves no process, and files only if something is wrong."""
        try:
            self._judge(self._to_the_end())
        except AssertionError as error:
            self._fail(f"{error}")
        finally:
            self._box.kill_all()
        if not self.outcome.failures:
            shutil.rmtree(self._box.home)
            shutil.rmtree(f"{self._box.home}-cli")
        return self.outcome

    def _fail(self, text: str) -> None:
        seed, job = self.outcome.seed, self.outcome.job
        self.outcome.failures.append(f"seed {seed} ({job}): {text}; again: torture.stops {seed}")

    def _to_the_end(self) -> int:
        """Start, stop everybody, start again; returns the exit code of the last command."""
        for _ in range(STOPS):
            started = self._start()
            self._wait_for_progress(started)
            number = self._stop_everybody(started)
            code = started.process.wait(PATIENCE_S)
            # 3: the run had ended just before. -N and, by Ctrl-C, 130: it had only begun.
            if code not in (75, 3, -number) and (code, number) != (130, signal.SIGINT):
                self._fail(f"exit code {code} after {number.name}\n{started.err}")
            self._looks.append(look(self._spool / "outputs"))
        return self._start().process.wait(PATIENCE_S)

    def _start(self) -> Started:
        self.outcome.starts += 1
        return self._box.start(*self._run, program=PROGRAM)

    def _wait_for_progress(self, started: Started) -> None:
        """Wait until the run is over, or some tasks have their lines and a helper is at work.

        Some stops come sooner: while processes start.
        """
        goal = count_lines(self._spool) + self._rng.randint(0, TASKS // 2)
        until = time.monotonic() + self._rng.choice((0.3, 1.0, 10.0, 10.0, 10.0, 10.0))
        wait_until(
            lambda: (
                started.is_over()
                or time.monotonic() > until
                or (count_lines(self._spool) >= goal and self._is_helper_at_work())
            ),
            PATIENCE_S,
        )

    def _is_helper_at_work(self) -> bool:
        """Whether there are more processes than the parent and its workers."""
        return len(self._box.processes()) > 1 + self._ranks

    def _stop_everybody(self, started: Started) -> signal.Signals:
        """Signal every process of this run, once, in some order."""
        number = self._rng.choice(SIGNALS)
        spread_s = self._rng.choice(SPREAD_S)
        pids = self._box.processes()
        order = self._rng.choice(("down", "up", "any"))
        if order == "any":
            self._rng.shuffle(pids)
        elif order == "up":
            pids.reverse()
        self.outcome.stops += 1
        for pid in pids:
            if pid != started.pid or not started.is_over():
                kill(pid, number)
            time.sleep(spread_s / len(pids))
        return number

    def _judge(self, code: int) -> None:
        """Once the run has ended: all that is good is there, once; the bad have failed."""
        outcome = self.outcome
        if code != 3:
            self._fail(f"exit code {code} at the end, and some tasks are bad")
        wait_until(lambda: not self._box.processes(), PATIENCE_S)
        told = "".join(json.dumps(result) + "\n" for result in self._box.results("S"))
        is_command = outcome.job == "command"
        counts = outcome.counts = check(
            self._spool,
            TASKS,
            claimed_ok=code == 0,
            executions=None if is_command else self._executions,
            looks=self._looks,
            told=told,
            has_results=not is_command,
        )
        for text in [*counts.notes, *self._box.problems("S")]:
            self._fail(text)
        good = [task for task in counts.failed if task not in self._bad]
        outcome.F = len(good)
        for task in good:
            self._fail(f"F: task {task} failed for nothing")
        for task in self._bad - set(counts.failed):
            self._fail(f"task {task} is bad and did not fail")


def row(amount: str, home: Path) -> Row:
    """Play the row, a few cases side by side: a case mostly waits."""
    began = time.monotonic()
    found = Row("stops", 0, "")
    stops = starts = failed = again = 0
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        cases = [Case(seed, home / f"{seed}") for seed in range(CASES[amount])]
        for outcome in pool.map(Case.play, cases):
            counts = outcome.counts
            found.cases += 1
            found.add(counts)
            found.failures += outcome.failures
            stops, starts = stops + outcome.stops, starts + outcome.starts
            failed, again = failed + outcome.F, again + counts.again
    found.counts = f"{found.cases} runs, {stops} stops of everybody, {failed} failed for nothing"
    found.notes.append(f"{starts} starts; {again} executions beyond the first of a task")
    found.seconds = time.monotonic() - began
    return found


if __name__ == "__main__":
    print(Case(int(sys.argv[1]), Path(tempfile.mkdtemp(prefix="stops-"), "home")).play())
