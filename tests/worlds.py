"""Simulated worlds for the theory of blame: tasks, devices, processes, and what ails them.

A `World` is drawn from a seed: how many tasks there are, how long each takes and which are bad;
how many devices, and which are sick from when on; processes that spoil; an outage in which every
task fails. `play` runs it in virtual time, event by event. What is decided (which task has failed,
who is launched when and with how much patience, whether the job is broken) is decided by the
orchestrator's own functions, `decide` and `rule`. Workers and the spool are played here, in a few
lines: claims, orphans, doubtful tasks that wait for a second opinion.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from gpuspool.orchestrator.plan.create import plan
from gpuspool.orchestrator.plan.slots import Slot
from gpuspool.orchestrator.supervise.decide import (
    Break,
    End,
    Launch,
    OpenAttempt,
    Policy,
    RankPast,
    Snapshot,
    decide,
    next_restart_at,
    ranks_without_news,
    sick_devices,
    trusted_devices,
    working_devices,
)
from gpuspool.orchestrator.supervise.opinions import PATIENCE, Finding, Ground, Opinion, Trial, rule
from gpuspool.spool.states import Life
from gpuspool.worker.supply import FRESH_FROM, FRESH_FROM_ON_CPU, LEFT_TO_OTHERS_S, MOST_TIMES_LEFT

POLICY = Policy(max_restarts=3)
# How often the orchestrator looks at least while a task waits to be ruled.
LOOK_S = 5.0
# A run that takes more events than this goes round in circles.
MOST_EVENTS = 300_000


class World:
    """What is true of one world, drawn from its seed; nobody in it knows."""

    def __init__(self, seed: int) -> None:
        draw = random.Random(seed)
        self.seed = seed
        self.n_tasks = draw.choice([12, 40, 100, 400, 1000])
        self.n_devices = draw.choice([1, 1, 2, 2, 3, 4, 8])
        self.is_cpu = draw.random() < 0.2
        self.load_s = draw.choice([0.2, 2.0, 20.0])
        n_bad = draw.choice([0, 0, 1, 2, self.n_tasks // 20, self.n_tasks // 8, self.n_tasks // 4])
        self.n_bad = min(n_bad, self.n_tasks // 4)
        self.where = draw.choice(["front", "random", "block"])
        self.bad = self._draw_bad(draw)
        self.bad_crashes = draw.random() < 0.3
        # When in its time a bad task fails.
        self.bad_after = draw.choice([0.001, 0.5, 1.0])
        usual_s = draw.choice([0.01, 0.1, 1.0, 10.0, 60.0])
        self.seconds = [
            usual_s * draw.choice([1.0, 1.0, draw.lognormvariate(0, 1)])
            for _ in range(self.n_tasks)
        ]
        span_s = sum(self.seconds) / self.n_devices
        kind = draw.choice(
            ["fine", "sick", "sick", "spoils", "outage", "outage", "sick and outage"]
        )
        self.kind = kind
        # device -> from when on every task fails there
        self.sick: dict[int, float] = {}
        if "sick" in kind and self.n_devices > 1 and not self.is_cpu:
            count = draw.randint(1, self.n_devices - 1)
            for device in draw.sample(range(self.n_devices), count):
                is_from_the_start = draw.random() < 0.5
                later_s = draw.uniform(0, span_s) + self.load_s
                self.sick[device] = 0.0 if is_from_the_start else later_s
        self.sick_crashes = draw.random() < 0.3
        # How likely a task spoils its process, in which every later task fails then.
        self.spoils = draw.choice([0.002, 0.01]) if kind == "spoils" else 0.0
        self.outage: tuple[float, float] | None = None
        if "outage" in kind:
            begin = draw.uniform(0, span_s) + self.load_s
            self.outage = (begin, begin + draw.choice([2.0, 20.0, 60.0, 200.0]))
        # When in its time a task fails for what its world does.
        self.fails_after = draw.choice([0.001, 0.3])
        # After how many tasks a process is spoiled, instead of with some likelihood; and whether
        # the next task ends it then.
        self.spoils_at: tuple[int, int] | None = None
        self.spoiled_crashes = False
        if kind == "spoils":
            self.spoils_at = draw.choice([None, (3, 10), (10, 40)])
            self.spoiled_crashes = draw.random() < 0.5

    def _draw_bad(self, draw: random.Random) -> set[int]:
        tasks = range(self.n_tasks)
        if self.where == "front":
            return set(tasks[: self.n_bad])
        if self.where == "random":
            return set(draw.sample(tasks, self.n_bad))
        start = draw.randrange(self.n_tasks - self.n_bad + 1)
        return set(tasks[start : start + self.n_bad])

    def is_outage(self, at: float) -> bool:
        return self.outage is not None and self.outage[0] <= at < self.outage[1]

    def begins_outage(self, at: float, seconds: float) -> bool:
        """Whether the outage comes upon a task that runs from then on."""
        return self.outage is not None and at < self.outage[0] < at + seconds

    def bound_s(self) -> float:
        """What the healthy devices need at least: their share of all work, starts, the outage."""
        n_healthy = self.n_devices - len(self.sick)
        work_s = 0.0
        for task, seconds in enumerate(self.seconds):
            work_s += seconds * (self.bad_after if task in self.bad else 1.0)
        loads = 1.0
        if self.bad_crashes:
            # Each bad task takes two processes along.
            loads += 2 * self.n_bad / n_healthy
        if self.spoils:
            # Each process lasts for so many tasks in the mean.
            lasts = 1 / self.spoils if self.spoils_at is None else sum(self.spoils_at) / 2
            loads += self.n_tasks / lasts / n_healthy
        outage_s = 0.0
        if self.outage is not None:
            outage_s = self.outage[1] - self.outage[0]
        return max(work_s / n_healthy, max(self.seconds)) + loads * self.load_s + outage_s


@dataclass
class Outcome:
    """How a world ended. fresh_at_outage: how many tasks nobody had tried when it began."""

    how: str
    seconds: float
    executions: int
    failed: set[int]
    complete: set[int]
    given_up: set[int]
    launches: int
    fresh_at_outage: int | None


@dataclass(eq=False)
class Process:
    """One attempt of a rank, as the play knows it."""

    name: str
    rank: int
    patience: int
    is_doubted: bool
    completed: int = 0
    row: int = 0
    failed_at: float = 0.0
    pending: deque[int] = field(default_factory=deque)
    failed: list[int] = field(default_factory=list)
    is_open: bool = True
    is_starting: bool = True
    is_spoiled: bool = False
    # After so many completed tasks it is spoiled.
    lasts: int | None = None
    idle_since: float | None = None
    known: int = 0

    @property
    def is_fresh(self) -> bool:
        return not self.completed and not self.failed

    @property
    def is_proven(self) -> bool:
        if self.is_fresh:
            return not self.is_doubted
        return self.completed > 0 and self.row == 0


class Ruling(deque[int]):
    """The tasks that one ruling gave out again and nobody took so far, claimed in order."""

    def __init__(self, tasks: list[int]) -> None:
        super().__init__(tasks)
        # process -> (the task in front when it left that to others, since when it does)
        self.passed_over: dict[str, tuple[int, float]] = {}


@dataclass
class Failure:
    """One failure of one task. ended_before: how many processes of its rank had ended by then."""

    process: Process
    completed: int
    died: bool
    since: float
    ended_before: int
    opinion: Opinion | None = None


class Play:
    """One world in virtual time."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.now = 0.0
        self._draw = random.Random(world.seed + 1)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self._names = itertools.count()
        n = world.n_devices
        self._slots = [Slot(rank, "" if world.is_cpu else f"GPU-{rank}") for rank in range(n)]
        planned = plan([1.0] * world.n_tasks, n)
        self._fresh = [deque(tasks) for tasks in planned]
        self._rulings: list[Ruling] = []
        self._complete: set[int] = set()
        self._failed: set[int] = set()
        # The tasks without a verdict, and those of them that failed somewhere.
        self._left = set(range(world.n_tasks))
        self._doubted: set[int] = set()
        self._failures: dict[int, list[Failure]] = {}
        # The ranks that each task failed on.
        self._failed_on: dict[int, set[int]] = {}
        self._unruled: set[int] = set()
        self._ended: list[list[Process]] = [[] for _ in range(n)]
        self._ended_at = [0.0] * n
        self._open: list[Process | None] = [None] * n
        self._working: set[int] = set()
        self._finished_last = 0.0
        self._barren = 0
        self._last_phase_since: float | None = None
        self._quiet_since: float | None = None
        self._fresh_at_outage: int | None = None
        # The next look that was asked for.
        self._looks_at = 0.0
        self._do_processes_break = False
        self._executions = 0
        self._launches = 0
        self._how = ""

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._count), what))

    def run(self) -> Outcome:
        n_events = 0
        self._look()
        while self._events and not self._how:
            self.now, _, what = heapq.heappop(self._events)
            what()
            if not self._how:
                self._look()
            n_events += 1
            if n_events > MOST_EVENTS:
                self._how = "endless"
        given_up = {int(token[4:]) for token in sick_devices(self._past(), POLICY.max_restarts)}
        return Outcome(
            how=self._how or "stuck",
            seconds=self.now,
            executions=self._executions,
            failed=self._failed,
            complete=self._complete,
            given_up=given_up,
            launches=self._launches,
            fresh_at_outage=self._fresh_at_outage,
        )

    # Workers.

    def _launch(self, action: Launch) -> None:
        rank = action.slot.number
        process = Process(f"a{next(self._names)}", rank, action.patience, action.is_doubted)
        process.known = self._acquitted(self._row(rank))
        self._open[rank] = process
        self._launches += 1
        self.at(self.now + self.world.load_s, lambda: self._step(process))

    def _close(self, process: Process) -> None:
        process.is_open = False
        self._open[process.rank] = None
        if process.pending:
            self._fresh.append(process.pending)
        self._ended[process.rank].append(process)
        self._ended_at[process.rank] = self.now
        self._barren += 1

    def _step(self, process: Process) -> None:
        """A worker takes its next task, or waits for one."""
        if not process.is_open:
            return
        process.is_starting = False
        task = self._take(process)
        if task is None:
            self._idle(process)
            return
        process.idle_since = None
        self._executions += 1
        seconds = self.world.seconds[task]
        cause, after_s, dies = self._fate(process, task, seconds)
        self.at(self.now + after_s, lambda: self._end(process, task, cause, dies))

    def _fate(self, process: Process, task: int, seconds: float) -> tuple[str, float, bool]:
        """(what a task fails of, "" for nothing; after how long; whether its process dies)."""
        world = self.world
        early_s = seconds * world.fails_after
        since = world.sick.get(process.rank)
        if since is not None and self.now >= since:
            return "sick", early_s, world.sick_crashes
        if self._is_spoiled(process):
            return "spoiled", early_s, world.spoiled_crashes
        if world.is_outage(self.now):
            return "outage", early_s, False
        # Half of the tasks that an outage comes upon need what is gone.
        if world.begins_outage(self.now, seconds) and self._draw.random() < 0.5:
            return "outage", world.outage[0] - self.now, False
        if task in world.bad:
            return "bad", seconds * world.bad_after, world.bad_crashes
        return "", seconds, False

    def _is_spoiled(self, process: Process) -> bool:
        """Whether a process fails every task by now."""
        if self.world.spoils_at is not None:
            if process.lasts is None:
                process.lasts = self._draw.randint(*self.world.spoils_at)
            return process.completed >= process.lasts
        process.is_spoiled |= self._draw.random() < self.world.spoils
        return process.is_spoiled

    def _end(self, process: Process, task: int, cause: str, dies: bool) -> None:
        if not cause:
            if not all(map(self._is_sure, self._failures.get(task, []))):
                self._do_processes_break = True
            self._complete.add(task)
            if self._quiet_since is not None:
                self._quiet_since = self.now
            self._left.discard(task)
            self._doubted.discard(task)
            self._unruled.discard(task)
            process.completed += 1
            process.row = 0
            self._working.add(process.rank)
            self._finish_one()
            self._step(process)
            return
        process.failed.append(task)
        process.row += 1
        process.failed_at = self.now
        ended_before = len(self._ended[process.rank])
        failure = Failure(process, process.completed, dies, self.now, ended_before)
        self._failures.setdefault(task, []).append(failure)
        self._failed_on.setdefault(task, set()).add(process.rank)
        self._unruled.add(task)
        self._doubted.add(task)
        if dies or process.row >= process.patience:
            self._close(process)
        else:
            self._step(process)

    def _finish_one(self) -> None:
        self._finished_last = self.now
        self._barren = 0

    def _take(self, process: Process) -> int | None:
        has_fresh = bool(process.pending) or any(self._fresh)
        if process.is_proven or not has_fresh:
            rulings = list(filter(None, self._rulings))
            if not (process.is_fresh and process.is_proven):
                rulings.sort(key=lambda ruling: self._wants_fresh(ruling[0]))
            for ruling in rulings:
                if process.is_fresh and has_fresh and not self._wants_fresh(ruling[0]):
                    continue
                if self._may_try(process, ruling[0], self._times_left(process, ruling)):
                    return ruling.popleft()
        if not process.pending and has_fresh:
            source = self._fresh[process.rank] or max(self._fresh, key=len)
            size = max(1, min(len(source) // (4 * self.world.n_devices), 50))
            process.pending.extend(source.popleft() for _ in range(size))
        if process.pending:
            return process.pending.popleft()
        return None

    def _may_try(self, process: Process, task: int, times_left: float) -> bool:
        failed_in = [failure.process for failure in self._failures[task]]
        if process in failed_in:
            return False
        if self._wants_fresh(task) and not process.is_fresh:
            return False
        ranks = [other.rank for other in failed_in]
        if self.world.is_cpu or self.world.n_devices == 1 or process.rank not in ranks:
            return True
        wanted = ranks.count(process.rank)
        if self._wants_fresh(task) and len(set(ranks)) > 1 and wanted < MOST_TIMES_LEFT:
            return True
        if ranks[-1] == process.rank:
            wanted = max(wanted, 2)
        return times_left >= min(wanted, MOST_TIMES_LEFT)

    def _times_left(self, process: Process, ruling: Ruling) -> float:
        """How many times LEFT_TO_OTHERS_S a process has left a ruling's next task to others."""
        task, since = ruling.passed_over.get(process.name, (ruling[0], self.now))
        if task != ruling[0]:
            since = self.now
        ruling.passed_over[process.name] = ruling[0], since
        if process.idle_since is not None:
            since = min(since, process.idle_since)
        return (self.now - since) // LEFT_TO_OTHERS_S

    def _wants_fresh(self, task: int) -> bool:
        failures = self._failures[task]
        least = FRESH_FROM_ON_CPU if self.world.is_cpu else FRESH_FROM
        return len(failures) >= least and self._has_crashed(task)

    def _has_crashed(self, task: int) -> bool:
        return any(failure.died for failure in self._failures[task])

    def _idle(self, process: Process) -> None:
        if process.idle_since is None:
            process.idle_since = self.now
        waited_s = self.now - process.idle_since
        next_ = [ruling[0] for ruling in self._rulings if ruling]
        # All of it was passed over, for now or for good.
        if next_ and not any(
            self._may_try(process, task, times_left=MOST_TIMES_LEFT) for task in next_
        ):
            is_alone = self.world.n_devices == 1
            is_barred = not process.is_fresh and all(map(self._wants_fresh, next_))
            if is_alone or is_barred or waited_s >= (MOST_TIMES_LEFT + 1) * LEFT_TO_OTHERS_S:
                self._close(process)
                return
        self.at(self.now + (0.25 if waited_s < 5 else 1.0), lambda: self._step(process))

    # The orchestrator.

    def _look(self) -> None:
        world = self.world
        n_untried = len(self._left) - len(self._doubted)
        began = world.outage is not None and self.now >= world.outage[0]
        if began and self._fresh_at_outage is None:
            self._fresh_at_outage = n_untried
        if n_untried:
            self._last_phase_since = self._quiet_since = None
        elif self._last_phase_since is None:
            self._last_phase_since = self._quiet_since = self.now
        self._rule()
        snapshot = self._snapshot()
        if snapshot.tasks_left == 0:
            self._how = "finished"
            return
        for action in decide(snapshot, POLICY, self.now):
            match action:
                case Launch():
                    self._launch(action)
                case Break(ending) | End(ending):
                    self._how = ending
        if self._last_phase_since is not None and self._unruled:
            # What is waited for may be only that time passes, as `Judge.is_waiting` says.
            self._look_again(self.now + LOOK_S)
        restart_at = next_restart_at(snapshot, POLICY, self.now)
        if restart_at is not None:
            self._look_again(restart_at)

    def _look_again(self, when: float) -> None:
        """Look at that time at the latest, though nothing else happens.

        A look that is due before then asks again itself. Were each look to ask for its own next
        one, there would be as many looks every few seconds as things that have happened.
        """
        if not self.now < self._looks_at <= when:
            self._looks_at = when
            self.at(when, lambda: None)

    def _rule(self) -> None:
        ground = self._ground()
        without_news = ranks_without_news(self._past(), self._open_attempts())
        again: list[int] = []
        self._rulings = list(filter(None, self._rulings))
        for task in [*self._unruled, *itertools.chain.from_iterable(self._rulings)]:
            opinions = self._opinions(task)
            finding = rule(opinions, ground)
            is_waiting = task in self._unruled
            if finding is Finding.FAIL:
                self._failed.add(task)
                self._left.discard(task)
                self._doubted.discard(task)
                self._unruled.discard(task)
                for ruling in self._rulings:
                    if task in ruling:
                        ruling.remove(task)
                self._finish_one()
            elif (
                finding is Finding.AGAIN
                and is_waiting
                and self._is_ready(task, opinions, ground, without_news)
            ):
                self._unruled.discard(task)
                again.append(task)
        # As `Judge.publish` has it: what needs a fresh process stands last.
        again.sort(key=lambda task: len(self._failures[task]) if self._has_crashed(task) else 0)
        self._rulings.append(Ruling(again))

    def _is_ready(
        self, task: int, opinions: list[Opinion], ground: Ground, without_news: frozenset[int]
    ) -> bool:
        """Whether the place of a task's last failure cannot confirm it any more, or need not."""
        last = self._failures[task][-1]
        if self._last_phase_since is not None or self._is_confirmed(last):
            return True
        if last.process.rank in without_news:
            # It waits for what others make of this very task.
            may_be_confirmed = False
        elif last.died:
            may_be_confirmed = len(self._ended[last.process.rank]) <= last.ended_before + 1
        else:
            may_be_confirmed = last.process.is_open and last.process.idle_since is None
        if not may_be_confirmed:
            return True
        if len(opinions) == 1:
            return False
        confirmed = [msgspec.structs.replace(one, is_confirmed=True) for one in opinions]
        return rule(confirmed, ground) is not Finding.FAIL

    def _ground(self) -> Ground:
        unproven = 0
        if self._last_phase_since is not None:
            for task in self._doubted:
                unproven += not any(map(self._is_proof, self._failures[task]))
        past = self._past()
        devices = trusted_devices(past, POLICY.max_restarts)
        return Ground(
            devices,
            working_devices(past),
            self._quiet_since,
            unproven,
            self.now,
            self.now,
            self.world.n_tasks,
            self._do_processes_break,
        )

    def _opinions(self, task: int) -> list[Opinion]:
        found: list[Opinion] = []
        for one in self._failures[task]:
            found.append(one.opinion or self._opinion(one))
        return found

    def _opinion(self, failure: Failure) -> Opinion:
        process = failure.process
        opinion = Opinion(
            process.name,
            self._slots[process.rank].device_name,
            self._is_confirmed(failure),
            failure.since,
            self._is_sure(failure),
            failure.died,
        )
        if opinion.is_confirmed or (not failure.died and not process.is_open):
            # Nothing changes it any more.
            failure.opinion = opinion
        return opinion

    def _is_confirmed(self, failure: Failure) -> bool:
        if not failure.died:
            return failure.process.completed > failure.completed
        later: list[Process | None] = [*self._ended[failure.process.rank]]
        later = [*later[failure.ended_before + 1 :], self._open[failure.process.rank]]
        return any(process.completed for process in later if process is not None)

    def _is_proof(self, failure: Failure) -> bool:
        if self._do_processes_break and not self._is_sure(failure):
            return False
        return self._is_confirmed(failure)

    def _is_sure(self, failure: Failure) -> bool:
        if failure.completed == 0:
            return True
        return not failure.died and self._is_confirmed(failure)

    def _trials(self, rank: int) -> tuple[Trial, ...]:
        trials: list[Trial] = []
        for process in reversed(self._ended[rank]):
            trial = Trial(
                completed=process.completed,
                failed=len(set(process.failed)),
                acquitted=self._acquitted([process]),
                convicted=len(set(process.failed) & self._failed),
                known=process.known,
                is_silent=not process.completed and not process.failed,
            )
            trials.append(trial)
            if process.completed:
                break
        trials.reverse()
        return tuple(trials)

    def _row(self, rank: int) -> list[Process]:
        row: list[Process] = []
        for process in reversed(self._ended[rank]):
            if process.completed:
                break
            row.append(process)
        return row

    def _acquitted(self, processes: list[Process]) -> int:
        tasks: set[int] = set()
        for process in processes:
            tasks.update(process.failed)
        return len(tasks & self._complete)

    def _past(self) -> list[RankPast]:
        past: list[RankPast] = []
        for slot in self._slots:
            trials = self._trials(slot.number)
            row = self._row(slot.number)
            failed_elsewhere = 0
            if row:
                for task in row[0].failed:
                    failed_elsewhere += len(self._failed_on[task]) > 1
            process = self._open[slot.number]
            past.append(
                RankPast(
                    slot,
                    trials=trials,
                    device_trials=trials,
                    ended_at=self._ended_at[slot.number],
                    acquitted=self._acquitted(row),
                    failed_elsewhere=failed_elsewhere,
                    failed_at=process.failed_at if process is not None and process.row else None,
                    gets_on=process is not None and process.completed > 0 and not process.row,
                    has_completed=slot.number in self._working,
                    has_begun=bool(self._ended[slot.number]) or _has_begun(process),
                )
            )
        return past

    def _open_attempts(self) -> list[OpenAttempt]:
        return [
            OpenAttempt(process.name, process.rank, Life.ALIVE, process.is_starting)
            for process in self._open
            if process is not None
        ]

    def _snapshot(self) -> Snapshot:
        doubting: set[str] = set()
        if not self._complete:
            for task in self._doubted:
                doubting.update(failure.process.name for failure in self._failures[task])
        open_ = self._open_attempts()
        last_phase_since = self._last_phase_since
        past = self._past()
        return Snapshot(
            tasks_left=len(self._left),
            unclaimed=sum(map(len, self._rulings)) + sum(map(len, self._fresh)),
            open=open_,
            past=past,
            was_swept=True,
            without_news=ranks_without_news(past, open_),
            is_ruling_awaited=self._last_phase_since is not None and bool(self._unruled),
            is_settling=last_phase_since is not None and self._finished_last >= last_phase_since,
            tasks=self.world.n_tasks,
            do_processes_break=self._do_processes_break,
            complete=len(self._complete),
            doubtful=len(self._doubted),
            doubting=len(doubting),
            barren=self._barren,
            finished_last_at=self._finished_last,
        )


def _has_begun(process: Process | None) -> bool:
    return process is not None and not process.is_starting


def play(seed: int) -> tuple[World, Outcome]:
    """One world, and how it ended."""
    world = World(seed)
    return world, Play(world).run()


def is_over_when_it_begins(world: World, outcome: Outcome) -> bool:
    """Whether an outage began in the very last moments.

    It uses up what nobody has tried yet: as many tasks of each process as it has patience for, and
    then some more at each try. When nothing is left, and not so much failed that it can hardly be
    the tasks, nothing can show any more that it was one.
    """
    if world.outage is None or outcome.fresh_at_outage is None:
        return False
    return outcome.fresh_at_outage <= PATIENCE * world.n_devices + 12
