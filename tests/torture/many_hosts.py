"""Row "many hosts": several hosts work on one run, and anything happens to them.

Three or four machines (`machines.py`) share a spool. On each of them somebody types `run`, `resume`
or `join`, again and again, and they cooperate. A seed draws what happens to them meanwhile:

- `crash`: a machine loses its power. It may boot again, with the next start on it.
- `freeze`: a machine stands still for more than two leases, is taken for dead, and wakes.
- `pause`: a machine stands still for less than a lease, and nobody may take it for dead.
- `start`: somebody types a command, on a machine that was off or beside the commands there.
- `worker`, `parent`: a SIGKILL to one process.
- `stop`: one parent alone stands still for more than two leases, as by Ctrl-Z, and goes on.
- `term`: a SIGTERM to one parent, which leaves while the others go on.
- `drain`: an order to all, given from a machine that takes no part; then others go on.

Some tasks hold the interpreter's lock for more than a lease, so that their workers do not beat, and
only their parents tell that they live. Every other seed plays with wall clocks that are up to an
hour apart, and every third with locks that each host has for itself. In the end more commands are
typed, until the run is finished.

Counted are, beside what `checker.py` counts: F, false takeovers, attempts that somebody else closed
although nobody had harmed them, and tasks that were blamed, which are failures. The cause of each
closing is looked up in what was done to the machines. An attempt may be closed by others if its
process was killed, if its machine had crashed, or stood still for a lease by then, or if it had
lost its parent and did not beat itself; by its own parent if it was told to stop. Likewise a parent
may find itself taken for dead only if it, or its machine, had stood still for a lease.

How long anything takes is reckoned in leases, and a lease is longer on a busy machine. So a run
lasts longer there, and the same things happen in it.

`python -m torture.many_hosts SEED [small]` plays one.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers import Box, count_lines, kill, names, slowness, wait_until

from torture import machines
from torture.checker import Counts, Look, check, look, sealed_lines
from torture.faults import NoCompiler, library
from torture.job import payloads
from torture.machines import Boot, Command, Machine
from torture.rows import Row

NAME = "many hosts"
JOB = Path(__file__).with_name("job.py")
RUNS = {"small": 1, "full": 100}
# A run mostly waits, so some are played side by side.
AT_ONCE = {"small": 1, "full": 4}
TASKS = {"small": 60, "full": 240}
# In every other pair of seeds so many tasks are bad: they raise wherever they are tried.
BAD = 3
# So many tasks hold the interpreter's lock, and for so many leases.
HOLDING, HOLD_LEASES = 4, 1.5
# The lease of a run on a quiet machine, and how many times longer it may be on a busy one: all
# that beats needs little of a core, and a run shall not take minutes.
LEASE_S = 3.0
MOST_SLOWNESS = 3.0
# How long a task takes: so a run is not over before leases are.
TASK_LEASES = (0.02, 0.12)
# For how many leases a machine stands still that is to be taken for dead, and one that is not. The
# beats of the dead were seen some time before, and a look costs time.
FREEZE_LEASES = (2.0, 2.6)
PAUSE_LEASES = (0.1, 0.5)
# From this part of a lease on that a machine has stood still, a closing may be for that: its last
# beat had come before.
EXCUSED_FROM = 0.8
# What was decided while a machine stood still may be published so many leases later.
EXCUSED_FOR = 0.7
# Of these deeds a run draws some, in any order.
DEEDS = {
    "small": {"freeze": 1, "worker": 1, "crash": 1, "start": 2, "term": 1},
    "full": {
        **{"freeze": 4, "pause": 2, "crash": 3, "start": 7},
        **{"worker": 3, "parent": 2, "stop": 2, "term": 2, "drain": 1},
    },
}
MOST_DEEDS = {"small": 6, "full": 13}
# How many leases to wait before the next deed, at most; progress may end the wait.
SOON_LEASES = (0.0, 0.1)
LATE_LEASES = (0.1, 0.8)
# How many commands may run on one machine.
MOST_COMMANDS = 3
# How far wall clocks and uptimes are apart.
SKEW_S = 3600
UPTIME_S = 10_000_000
# So many commands see a run to its end: with few left that would take long.
AT_THE_END = 3
# A run whose end does not come is given up after so many more starts.
MOST_STARTS = 6
# How long one command may take on a busy machine.
PATIENCE_S = 300.0


@dataclass
class Outcome:
    """What became of one run.

    has_own_clocks: the wall clocks of its machines were apart. takeovers: attempts that others than
    their own parents closed. false: those, and parents, that nobody had harmed. woken: attempts
    that went on after they were taken over.
    """

    seed: int
    tasks: int = 0
    has_own_clocks: bool = False
    deeds: dict[str, int] = field(default_factory=dict)
    starts: int = 0
    takeovers: int = 0
    false: int = 0
    woken: int = 0
    blamed: list[int] = field(default_factory=list)
    # What was done to whom, and after how many seconds.
    history: list[str] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    failures: list[str] = field(default_factory=list)


@dataclass
class Silence:
    """From when to when a parent did not beat, as it was stopped or killed."""

    command: Command
    began: float
    ended: float = math.inf


class Trial:
    """One run, what happens to its machines, and its end."""

    def __init__(self, seed: int, home: Path, amount: str = "full") -> None:
        self.outcome = Outcome(seed, TASKS[amount])
        self._rng = rng = random.Random(f"many hosts {seed}")
        home.mkdir(parents=True)
        # It stands for a machine that takes no part, such as a login node.
        self._box = Box(home)
        self._spool, self._executions = home / "S", home / "executions"
        self._executions.mkdir()
        self._lease_s = LEASE_S * min(slowness(), MOST_SLOWNESS)
        self._looks: list[Look] = []
        deeds = DEEDS[amount]
        self._deeds = rng.sample(list(deeds), MOST_DEEDS[amount], counts=deeds.values())
        tasks = payloads(TASKS[amount])
        for task in tasks:
            task["ms"] = int(1000 * rng.uniform(*TASK_LEASES) * self._lease_s)
        self._bad = set(rng.sample(range(len(tasks)), BAD) if seed % 4 > 1 else ())
        for bad in self._bad:
            tasks[bad]["fail"] = True
        self._holding = set(rng.sample(range(len(tasks)), HOLDING))
        for holding in self._holding:
            tasks[holding]["hold"] = int(1000 * HOLD_LEASES * self._lease_s)
        self._run: list[str | Path] = ["run", f"{JOB}:work", "--tasks", self._box.tasks(tasks)]
        self._run += ["--spool", "S", "--arg", f"executions={self._executions}", "--grace", "5s"]
        self._run += ["--lease", f"{self._lease_s:.1f}s", "-q"]
        self._has_own_clocks = self.outcome.has_own_clocks = bool(seed % 2)
        self._has_own_locks = seed % 3 == 2
        self._machines = [self._make(number) for number in range(rng.choice((3, 4)))]
        # When the frozen machines wake.
        self._wakes: list[tuple[float, Machine]] = []
        # When the parents that were stopped go on, and their processes.
        self._continues: list[tuple[float, Silence, int]] = []
        self._silences: list[Silence] = []
        # The attempts whose processes were killed.
        self._killed: set[str] = set()
        # The commands that were killed, those that were told to stop and when, and when orders to
        # drain were given.
        self._shot: list[Command] = []
        self._told: dict[Command, float] = {}
        self._drains: list[float] = []
        self._began = time.monotonic()

    def _make(self, number: int) -> Machine:
        rng, name = self._rng, f"h{number}"
        return Machine(
            name,
            self._box.home / name,
            self._box.environment,
            uptime_s=rng.randrange(UPTIME_S),
            skew_s=rng.randint(-SKEW_S, SKEW_S) if self._has_own_clocks else 0,
            private_lock_of=self._spool if self._has_own_locks else None,
        )

    def play(self) -> Outcome:
        """Play the whole run. It leaves no process, and files only if something is wrong."""
        try:
            self._begin()
            for deed in self._deeds:
                self._pause()
                self._do(deed)
            self._to_the_end()
            self._judge()
        except (AssertionError, subprocess.TimeoutExpired) as error:
            self._fail(f"{error!r}")
        finally:
            for machine in self._machines:
                machine.stop()
            self._box.kill_all()
        if not self.outcome.failures:
            shutil.rmtree(self._box.home)
            shutil.rmtree(f"{self._box.home}-cli", ignore_errors=True)
        return self.outcome

    def _note(self, what: str) -> None:
        self.outcome.history.append(f"{time.monotonic() - self._began:.1f} {what}")

    def _fail(self, text: str) -> None:
        seed, home = self.outcome.seed, self._box.home
        again = f"again: python -m torture.many_hosts {seed}; all of it is in {home}"
        self.outcome.failures.append(f"seed {seed}: {text}; {again}")

    # What happens.

    def _begin(self) -> None:
        """All but one of the machines boot, and the same command is typed on each of them."""
        if self._has_own_locks:
            # Their locks can be put in place only where there is a spool.
            self._box.run(*self._run, "--time-limit", "0s", "--ranks", "1", code=75)
        for machine in self._machines[:-1]:
            machine.start()
        for machine in self._machines[:-1]:
            self._start_on(machine)
        wait_until(lambda: count_lines(self._spool) > 0, PATIENCE_S)

    def _start_on(self, machine: Machine) -> Command:
        """Somebody types a command on a machine."""
        self.outcome.starts += 1
        verb = self._rng.choice(("run", "run", "resume", "join"))
        words: list[str | Path] = [verb, "S", "-q"]
        if verb == "run" or not (self._spool / "run.json").exists():
            words = list(self._run)
        self._note(f"{words[0]} on {machine.name}")
        return machine.run(*words, "--ranks", str(self._rng.choice((1, 2, 2))))

    def _pause(self) -> None:
        """Wait for the next deed, by the clock or by progress."""
        leases = self._rng.uniform(*self._rng.choice((SOON_LEASES, LATE_LEASES, LATE_LEASES)))
        until = time.monotonic() + leases * self._lease_s
        goal = count_lines(self._spool) + self._rng.randint(5, self.outcome.tasks // 4)
        wait_until(
            lambda: time.monotonic() > until or count_lines(self._spool) >= goal,
            PATIENCE_S,
            poll=0.01,
        )
        self._wake_due()
        self._looks.append(look(self._spool / "outputs"))

    def _wake_due(self, everybody: bool = False) -> None:
        """Let all go on whose time has come. everybody: wait for all."""
        for wake_at, machine in list(self._wakes):
            if everybody:
                wait_until(lambda at=wake_at: time.monotonic() > at, PATIENCE_S)
            if time.monotonic() > wake_at:
                self._note(f"{machine.name} wakes")
                machine.thaw()
                self._wakes.remove((wake_at, machine))
        for continued in list(self._continues):
            at, silence, pid = continued
            if everybody:
                wait_until(lambda at=at: time.monotonic() > at, PATIENCE_S)
            if time.monotonic() > at:
                self._continues.remove(continued)
                silence.ended = time.time()
                if silence.command.code is None:
                    self._note(f"the parent {silence.command.name} goes on")
                    kill(pid, signal.SIGCONT)

    def _are_over(self, commands: list[Command]) -> bool:
        """Whether all these have ended. Some may have to go on first."""
        self._wake_due()
        return all(command.code is not None for command in commands)

    def _awake(self) -> list[Machine]:
        return [machine for machine in self._machines if machine.is_up and not machine.is_frozen]

    def _busy(self) -> list[Machine]:
        """The machines on which a command runs, and which do not stand still."""
        return [machine for machine in self._awake() if machine.running]

    def _do(self, deed: str) -> None:
        """Do one thing to somebody, if there is anybody to whom it can be done."""
        deeds: dict[str, Callable[[], bool]] = {
            "crash": self._crash, "freeze": self._freeze, "pause": self._stop_shortly,
            "start": self._start_somewhere, "worker": self._kill_worker,
            "parent": self._kill_parent, "stop": self._stop_parent, "term": self._terminate,
            "drain": self._drain,
        }  # fmt: skip
        if deeds[deed]():
            self.outcome.deeds[deed] = self.outcome.deeds.get(deed, 0) + 1

    def _crash(self) -> bool:
        up = [machine for machine in self._machines if machine.is_up]
        if not up:
            return False
        machine = self._rng.choice(up)
        self._wakes = [(at, one) for at, one in self._wakes if one is not machine]
        self._note(f"{machine.name} crashes")
        machine.crash()
        return True

    def _freeze(self) -> bool:
        busy = self._busy()
        if not busy:
            return False
        machine = self._rng.choice(busy)
        self._note(f"{machine.name} freezes")
        machine.freeze()
        leases = self._rng.uniform(*FREEZE_LEASES)
        self._wakes.append((time.monotonic() + leases * self._lease_s, machine))
        return True

    def _stop_shortly(self) -> bool:
        busy = self._busy()
        if not busy:
            return False
        machine = self._rng.choice(busy)
        until = time.monotonic() + self._rng.uniform(*PAUSE_LEASES) * self._lease_s
        self._note(f"{machine.name} stands still for a moment")
        machine.freeze()
        wait_until(lambda: time.monotonic() > until, PATIENCE_S)
        machine.thaw()
        return True

    def _start_somewhere(self) -> bool:
        able = [
            machine
            for machine in self._machines
            if not machine.is_frozen and (not machine.is_up or len(machine.running) < MOST_COMMANDS)
        ]
        if not able:
            return False
        machine = self._rng.choice(able)
        if not machine.is_up:
            machine.start()
        self._start_on(machine)
        return True

    def _kill_worker(self) -> bool:
        found = [worker for machine in self._awake() for worker in machine.workers()]
        if not found:
            return False
        attempt, pid = self._rng.choice(found)
        self._note(f"{attempt} is killed")
        self._killed.add(attempt)
        kill(pid)
        return True

    def _kill_parent(self) -> bool:
        command = self._signal_one(signal.SIGKILL)
        if command is not None:
            self._silences.append(Silence(command, time.time()))
            self._shot.append(command)
        return command is not None

    def _stop_parent(self) -> bool:
        command = self._signal_one(signal.SIGSTOP)
        if command is not None:
            silence = Silence(command, time.time())
            self._silences.append(silence)
            at = time.monotonic() + self._rng.uniform(*FREEZE_LEASES) * self._lease_s
            self._continues.append((at, silence, command.pid))
        return command is not None

    def _terminate(self) -> bool:
        # Before the signal: a worker that has no handler yet is closed in a moment.
        now = time.time()
        command = self._signal_one(signal.SIGTERM)
        if command is not None:
            self._told[command] = now
        return command is not None

    def _signal_one(self, number: int) -> Command | None:
        """Signal the process of a command that runs; returns it, None if there is none."""
        stopped = [silence.command for _, silence, _ in self._continues]
        running = [command for machine in self._awake() for command in machine.running]
        able = [command for command in running if command not in stopped]
        if not able:
            return None
        command = self._rng.choice(able)
        pid = command.pid
        if pid == 0:
            return None
        self._note(f"signal {number} to the parent {command.name}")
        kill(pid, number)
        return command

    def _drain(self) -> bool:
        """Order all to stop, see that they do, and let somebody go on."""
        if not self._busy():
            return False
        self._note("drain")
        # Before the order: those who obey may be closed before the command that gave it has ended.
        self._drains.append(time.time())
        self._box.run("drain", "S")
        ordered = [command for machine in self._awake() for command in machine.running]
        wait_until(lambda: self._are_over(ordered), PATIENCE_S)
        for _ in range(self._rng.choice((1, 2))):
            self._start_somewhere()
        return True

    def _to_the_end(self) -> None:
        """Wake all, and type commands until the run is finished and nobody is left."""
        self._wake_due(everybody=True)
        for _ in range(AT_THE_END - sum(len(machine.running) for machine in self._machines)):
            if not self._is_finished():
                self._start_somewhere()
        for _ in range(MOST_STARTS):
            commands = [command for machine in self._machines for command in machine.commands]
            wait_until(lambda commands=commands: self._are_over(commands), PATIENCE_S)
            if self._is_finished():
                break
            self._start_somewhere()
        assert self._is_finished(), f"not at its end after {MOST_STARTS} more starts"
        wait_until(lambda: not self._left(), PATIENCE_S)

    def _is_finished(self) -> bool:
        counts = self._box.status("S")["tasks"]
        return bool(counts["complete"] + counts["failed"] == counts["total"])

    @property
    def _good_code(self) -> int:
        """The exit code of a command that sees the run to its end."""
        return 3 if self._bad else 0

    def _left(self) -> list[int]:
        """The processes that still run, beside the first ones of the machines."""
        return [
            pid for machine in self._machines if machine.is_up for pid in machine.boot.processes()
        ]

    # Judging.

    def _judge(self) -> None:
        """Everything must be there, once, and nobody was taken over or blamed who was in order."""
        self._judge_ends()
        closings = self._closings()
        self._judge_takeovers(closings)
        self._judge_lost_parents()
        self._remove_what_the_lost_left(closings)
        told = "".join(json.dumps(result) + "\n" for result in self._box.results("S"))
        counts = self.outcome.counts = check(
            self._spool,
            self.outcome.tasks,
            claimed_ok=not self._bad,
            executions=self._executions,
            looks=self._looks,
            told=told,
            has_one_clock=not self._has_own_clocks,
        )
        # Whoever wakes finishes the task in hand, although another may have done it meanwhile.
        for what, number in (("run again", counts.R), ("told twice", counts.duplicates)):
            if number > self.outcome.woken:
                self._fail(f"{number} tasks {what}, and {self.outcome.woken} attempts woke")
        notes = [note for note in counts.notes if not note.startswith("R:")]
        for text in [*notes, *self._box.problems("S")]:
            self._fail(text)
        self.outcome.blamed = sorted(set(counts.failed) - self._bad)
        for task in self.outcome.blamed:
            self._fail(f"X: task {task} was blamed for nothing")
        for task in self._bad - set(counts.failed):
            self._fail(f"task {task} is bad and did not fail")

    def _judge_ends(self) -> None:
        """Each command ended as what was done to it says, and none for another reason."""
        is_any_ok = False
        for machine in self._machines:
            for command in machine.commands:
                code = command.code
                fine = {self._good_code}
                if command in self._shot or command.boot.crashed_at is not None:
                    fine.add(-signal.SIGKILL)
                if command in self._told:
                    fine |= {75, -signal.SIGTERM}
                if any(at >= command.started_at for at in self._drains):
                    fine.add(4)
                if code not in fine:
                    text = f"{machine.name}: exit code {code} of {command.words[1:]}"
                    self._fail(f"{text}, expected one of {fine}\n{command.err[-1000:]}")
                is_any_ok |= code == self._good_code
        if not is_any_ok:
            self._fail("no command said that the run is finished")
        self._judge_end_records()

    def _judge_end_records(self) -> None:
        """What parents wrote of their ends is what their commands came to."""
        for path in (self._spool / "parents").glob("*.json"):
            record = json.loads(path.read_bytes())
            command = self._command_of(record) if ".end" not in path.name else None
            if command is None or (command.code or 0) < 0:
                # It is an end, or one that was killed and could not say so.
                continue
            end = path.with_name(f"{path.stem}.end.json")
            told = json.loads(end.read_bytes())["exit_code"] if end.exists() else None
            if told != command.code:
                self._fail(f"{command.name} ended with {command.code}, {end.name} says {told}")

    def _closings(self) -> dict[str, tuple[float, dict[str, Any]]]:
        """Of each closed attempt when it was closed, by this machine's clock, and the closing."""
        found = {}
        for path in (self._spool / "manifests").glob("*.orphans.jsonl"):
            for offset, record in sealed_lines(path):
                if offset == 0:
                    found[record["attempt"]] = path.stat().st_mtime, record
        return found

    def _judge_takeovers(self, closings: dict[str, tuple[float, dict[str, Any]]]) -> None:
        for attempt, (at, closing) in sorted(closings.items()):
            if closing["by"] == attempt:
                if closing["state"] == "failed" and not self._may_fail(closing):
                    self._fail(f"{attempt} failed: {closing.get('error')}")
                continue
            journal = self._spool / "journal" / f"{attempt}.jsonl"
            has_begun = journal.exists() and any(sealed_lines(journal))
            self.outcome.takeovers += has_begun and closing["by"] != "parent"
            command = self._parent_of(attempt)
            if attempt in self._killed or command is None:
                # Without a command it was started before there were machines.
                continue
            boot = command.boot
            if boot.crashed_at is not None and at >= boot.crashed_at:
                continue
            if closing["state"] == "stopped" and self._was_told(boot, at):
                continue
            # One that has not begun does not beat either.
            does_beat = has_begun and not self._has_held(attempt)
            is_silent = not does_beat and self._stood_still(self._silences_of(command), at)
            if is_silent or self._stood_still(boot.stops, at):
                self.outcome.woken += has_begun
                continue
            self._count_false(f"{attempt} was closed by {closing['by']}")

    def _judge_lost_parents(self) -> None:
        """No parent found itself taken for dead unless it had stood still."""
        for path in sorted((self._spool / "events").iterdir()):
            events = [json.loads(line) for line in path.read_bytes().splitlines()]
            if all(event["event"] != "taken_for_dead" for event in events):
                continue
            parent = json.loads((self._spool / "parents" / f"{path.stem}.json").read_bytes())
            command = self._command_of(parent)
            stops = [] if command is None else [*command.boot.stops, *self._silences_of(command)]
            least_s = EXCUSED_FROM * self._lease_s
            if all(ended - began < least_s for began, ended in stops):
                self._count_false(f"the parent of epoch {parent['epoch']} was taken for dead")

    def _count_false(self, what: str) -> None:
        self.outcome.false += 1
        self._fail(f"F: {what}, and nobody had harmed it")

    def _may_fail(self, closing: dict[str, Any]) -> bool:
        """Whether an attempt ended since it met bad tasks alone."""
        return bool(self._bad) and closing["reason"] == "failures"

    def _was_told(self, boot: Boot, at: float) -> bool:
        """Whether somebody on this machine, or everybody, had been told to stop by then."""
        told = [when for command, when in self._told.items() if command.boot is boot]
        return any(when <= at for when in [*told, *self._drains])

    def _silences_of(self, command: Command) -> list[tuple[float, float]]:
        """From when to when the process of a command did not beat."""
        return [(one.began, one.ended) for one in self._silences if one.command is command]

    def _parent_of(self, attempt: str) -> Command | None:
        """The command that started an attempt."""
        intent = json.loads((self._spool / "attempts" / f"{attempt}.json").read_bytes())
        return self._command_of(intent["parent"])

    def _command_of(self, who: dict[str, Any]) -> Command | None:
        """The command whose process this is, by its identity in a record."""
        for machine in self._machines:
            for command in machine.commands:
                if command.boot.id == who["boot_id"] and command.inner_pid == who["pid"]:
                    return command
        return None

    def _has_held(self, attempt: str) -> bool:
        """Whether an attempt has begun a task that keeps its process from beating."""
        for path in self._executions.glob(f"{attempt}.*"):
            tasks = {json.loads(line)["task"] for line in path.read_text().splitlines()}
            if tasks & self._holding:
                return True
        return False

    def _stood_still(self, stops: list[tuple[float, float]], at: float) -> bool:
        """Whether somebody stood still for so long that he could be taken for dead then."""
        for began, ended in stops:
            is_late_enough = at >= began + EXCUSED_FROM * self._lease_s
            if is_late_enough and at <= ended + EXCUSED_FOR * self._lease_s:
                return True
        return False

    def _remove_what_the_lost_left(self, closings: dict[str, tuple[float, dict[str, Any]]]) -> None:
        """Remove the unfinished outputs of attempts that nobody had to close for the run to end.

        As long as an attempt is not proved dead it may be about to publish them.
        """
        intents = {name.removesuffix(".json") for name in names(self._spool / "attempts")}
        for attempt in intents - closings.keys():
            for path in (self._spool / "outputs").rglob(f".gpuspool-*-{attempt}-*"):
                path.unlink()


def has_clocks() -> str:
    """Why machines have no wall clocks of their own here; "" if they have."""
    try:
        library("clock")
    except NoCompiler as reason:
        return str(reason)
    return ""


def row(amount: str, home: Path) -> Row:
    """Play the row: as many runs as the amount asks for."""
    reason = machines.why_not() or has_clocks()
    if reason:
        return Row(NAME, 0, f"skipped: {reason}", notes=[reason])
    began = time.monotonic()
    found = Row(NAME, 0, "")
    outcomes: list[Outcome] = []

    def play(seed: int) -> Outcome:
        # It is made when it is played: how long a lease must be depends on who else works then.
        return Trial(seed, home / f"{seed}", amount).play()

    with ThreadPoolExecutor(AT_ONCE[amount]) as pool:
        for outcome in pool.map(play, range(RUNS[amount])):
            found.cases += 1
            found.add(outcome.counts)
            found.X += len(outcome.blamed)
            found.failures += outcome.failures
            outcomes.append(outcome)
    tell(found, outcomes)
    found.seconds = time.monotonic() - began
    return found


def tell(found: Row, outcomes: list[Outcome]) -> None:
    """Sum up in the row what happened in all runs."""

    def total(name: str, of: list[Outcome] = outcomes) -> int:
        return sum(getattr(outcome, name) for outcome in of)

    apart = total("takeovers", [outcome for outcome in outcomes if outcome.has_own_clocks])
    found.counts = (
        f"{found.cases} runs of {total('tasks')} tasks, {total('starts')} starts, "
        f"{total('takeovers')} takeovers ({apart} where clocks were apart), {total('false')} false"
    )
    deeds = sum((Counter(outcome.deeds) for outcome in outcomes), Counter())
    told = ", ".join(f"{deed} {count}" for deed, count in sorted(deeds.items()))
    again = sum(outcome.counts.again for outcome in outcomes)
    found.notes.append(
        f"{told}; {total('woken')} attempts woke after others had taken over; {again} executions "
        "beyond the first of a task"
    )


def main() -> int:
    """Play the run of one seed, and tell of it."""
    reason = machines.why_not() or has_clocks()
    if reason:
        print(f"skipped: {reason}")
        return 0
    home = Path(tempfile.mkdtemp(prefix="many-hosts-"))
    amount = sys.argv[2] if len(sys.argv) > 2 else "full"
    began = time.monotonic()
    outcome = Trial(int(sys.argv[1]), home / "home", amount).play()
    spent = os.times()
    cpu_s = spent.user + spent.system + spent.children_user + spent.children_system
    found = Row(NAME, 1, "", failures=outcome.failures, seconds=time.monotonic() - began)
    found.add(outcome.counts)
    tell(found, [outcome])
    print(*outcome.history, found.line(), *found.notes, *outcome.failures, sep="\n")
    print(f"{cpu_s:.1f} s of CPU")
    if outcome.failures:
        return 1
    home.rmdir()
    return 0


if __name__ == "__main__":
    sys.exit(main())
