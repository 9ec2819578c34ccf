"""128 parents of 8 ranks each, on as many hosts, some of which crash: in virtual time.

    python -m benchmarks.takeovers

What decides is what a run uses, and works on the files of a real spool in a temporary folder: the
parents' `Company`, `Scope`, `Pace` and `ParentBeat`, the `FailureDetector` by which leases run out,
the gatherer's `View`, the closing of attempts, the beats and heartbeats of ranks, and the worker's
`Supply` and `Rate`, as in `simulate`. Every host is another one to all others, so that nothing but
a lease proves a death, as with a network file system that is never late.

Simulated are the clock, the tasks (lognormal, 20 s on average, as many that a rank runs for some 40
minutes), the claims, which are kept in memory, and with them journals: the files in journal/ hold
their first lines only. So what the gatherer reads of them is a call for each, and no lines. No rank
is started again, since its host is gone. Left out are what a start reads, and what idle ranks look
for by themselves.

A crash takes a host's parent and its ranks at once. The bound is the time that the ranks which are
left at each moment need for all tasks, and for the parts of tasks that were lost. The calls are
those that touch names, as in `calls`: a listing counts for three, a claim as in `simulate`.
"""

from __future__ import annotations

import argparse
import bisect
import heapq
import itertools
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import msgspec
import numpy as np

from benchmarks.simulate import CLAIM_S, SEED, Calls, Planned, VirtualSupply, lognormal
from gpuspool.orchestrator.plan.create import plan
from gpuspool.orchestrator.supervise import scope as scope_module
from gpuspool.orchestrator.supervise.company import Company
from gpuspool.orchestrator.supervise.pace import Moment, Pace
from gpuspool.orchestrator.supervise.parent_beat import ParentBeat
from gpuspool.orchestrator.supervise.scope import Scope
from gpuspool.spool import liveness as liveness_module
from gpuspool.spool import view as view_module
from gpuspool.spool.beats import Beat
from gpuspool.spool.closing import close_attempts
from gpuspool.spool.codec import encode, seal, seal_pretty
from gpuspool.spool.death import Evidence, classify
from gpuspool.spool.layout import Layout, attempt_name, orphans_name, rank_name
from gpuspool.spool.liveness import ATTEMPT_BEATS, FailureDetector
from gpuspool.spool.publish import listdir, publish, replace
from gpuspool.spool.records import Heartbeat, Identity, Intent, JournalHead, Parent, Place
from gpuspool.spool.states import Phase
from gpuspool.spool.view import View, load_run, read_control
from gpuspool.worker.supply import Rate

LEASE_S = 120.0
QUIET_S = 2.0
MEAN_S = 20.0
SIGMA = 0.5
TASKS_A_RANK = 120
# A heartbeat on a network file system, and the calls of each: create and rename.
HEARTBEAT_S = 60.0
HEARTBEAT_CALLS = 2
# A listing opens a folder and asks it twice for names.
LISTING_CALLS = 3
COUNTED = ("open", "stat", "lstat", "rename", "link", "unlink", "mkdir", "fsync")


class Case(NamedTuple):
    """crashes: after which part of the time without crashes each host goes down, by number."""

    name: str
    hosts: int
    ranks: int
    crashes: dict[int, float]


class Outcome(NamedTuple):
    """All times are virtual, in seconds; calls are those of the time up to the last task's end.

    longest_s: from a crash until what its host had in hand was given out again.
    """

    makespan_s: float
    bound_s: float
    parents_calls: float
    gatherer_calls: float
    ranks_calls: float
    claims_calls: float
    takeovers: int
    false_takeovers: int
    longest_s: float


class Counter:
    """Counts calls that touch names, each for who makes it."""

    def __init__(self) -> None:
        self.who = "nobody"
        self.calls: dict[str, int] = {}

    def add(self, n_calls: int) -> None:
        self.calls[self.who] = self.calls.get(self.who, 0) + n_calls

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what is called in `os`."""
        real = {name: getattr(os, name) for name in (*COUNTED, "listdir")}

        def counted(name: str, n_calls: int) -> Callable[..., Any]:
            def call(*args: Any, **options: Any) -> Any:
                self.add(n_calls)
                return real[name](*args, **options)

            return call

        for name in COUNTED:
            setattr(os, name, counted(name, 1))
        os.listdir = counted("listdir", LISTING_CALLS)
        try:
            yield
        finally:
            for name, call in real.items():
                setattr(os, name, call)


class Rank:
    """A worker: what it has in hand, and whether it waits."""

    def __init__(self, world: World, number: int) -> None:
        # The one task that the spool was made with was run by attempt 0.
        self.attempt = attempt_name(number, 1)
        self.supply = VirtualSupply(number, world.planned, world.claims)
        self.rate = Rate()
        self.beat = Beat(world.layout, self.attempt)
        self.is_idle = False
        # The manifest and the positions in hand, and since when.
        self.hand: tuple[Planned, int, int, float] | None = None


class Host:
    """A parent and its ranks."""

    def __init__(self, world: World, number: int) -> None:
        # Epoch 0 made the spool.
        self.epoch = number + 1
        host, boot = f"host-{number}", f"boot-{number}"
        self.who = Identity(host=host, boot_id=boot, pid_ns="", pid=7, pid_start=7)
        self.is_down = False
        numbers = range(number * world.case.ranks, (number + 1) * world.case.ranks)
        self.ranks = [Rank(world, one) for one in numbers]
        self.view = View(world.layout, world.run)
        self.detector = FailureDetector(self.view, LEASE_S)
        self.company = Company(world.layout, self.detector, self.epoch)
        attempts = [rank.attempt for rank in self.ranks]
        self.scope = Scope(
            self.view, self.company, lambda: attempts, is_watched=False, is_timed=False,
            lease_s=LEASE_S,
        )  # fmt: skip
        self.beat = ParentBeat(world.layout, self.epoch, LEASE_S)
        self.pace = Pace(QUIET_S, self.beat.every_s, 0)
        self.n_manifests = 0


class World:
    """All hosts, the spool, and the clock."""

    def __init__(self, case: Case, root: Path, counter: Counter) -> None:
        self.case = case
        self.now = 0.0
        self.counter = counter
        self.claims = Calls()
        self.layout = Layout(root)
        self.run = load_run(self.layout)
        n_ranks = case.hosts * case.ranks
        self.seconds = lognormal(n_ranks * TASKS_A_RANK, MEAN_S, SIGMA)
        self.planned: dict[str, Planned] = {}
        for rank, tasks in enumerate(plan([1.0] * len(self.seconds), n_ranks)):
            mine = np.fromiter(tasks, dtype=np.int64, count=len(tasks))
            self.planned[rank_name(rank)] = _planned(self.seconds[mine])
        self.done = 0
        self.ended_at = 0.0
        self.lost_s = 0.0
        self.takeovers = 0
        self.false_takeovers = 0
        self.longest_s = 0.0
        self.down_at: dict[str, float] = {}
        # What a crash left in hand, by attempt; given out again once that is closed.
        self.left: dict[str, np.ndarray] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.hosts = [Host(self, number) for number in range(case.hosts)]

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), what))

    def play(self, downs: dict[int, float]) -> None:
        """Everything, until the last task has ended. downs: when each host goes down."""
        for host in self.hosts:
            self._admit(host)
            self.at(random.uniform(0, 10), lambda host=host: self._look(host))  # type: ignore[misc]
            for rank in host.ranks:
                self.at(0.0, lambda host=host, rank=rank: self._next(host, rank))  # type: ignore[misc]
                first = random.uniform(0, LEASE_S / ATTEMPT_BEATS)
                self.at(first, lambda host=host, rank=rank: self._prove(host, rank))  # type: ignore[misc]
        for number, when in downs.items():
            self.at(when, lambda host=self.hosts[number]: self._crash(host))  # type: ignore[misc]
        while self.done < len(self.seconds):
            self.now, _, event = heapq.heappop(self._events)
            event()

    def _admit(self, host: Host) -> None:
        """The records of a parent and its attempts, as a start leaves them."""
        who = msgspec.structs.asdict(host.who)
        record = Parent(
            **who, epoch=host.epoch, at=1.0, slots=[Place()] * len(host.ranks), argv=["gpuspool"],
            command="join", lease_s=LEASE_S,
        )  # fmt: skip
        publish(self.layout.parent(host.epoch), seal_pretty(record), durable=False)
        for rank in host.ranks:
            intent = Intent(
                attempt=rank.attempt, epoch=host.epoch, device="cpu", world_size=len(host.ranks),
                argv=[], parent=host.who, job=self.run.job, options=self.run.options,
                environment={}, at=1.0,
            )  # fmt: skip
            publish(self.layout.intent(rank.attempt), seal_pretty(intent), durable=False)
            head = seal(JournalHead(**who, attempt=rank.attempt))
            publish(self.layout.journal(rank.attempt), head, durable=False)
            self._tell(host, rank)
        # What it read when it started is left out.
        host.scope.note_full_look(read_control(self.layout), False, None)

    # Ranks.

    def _next(self, host: Host, rank: Rank) -> None:
        """A rank has nothing in hand: claim, or wait for a nudge."""
        if host.is_down:
            return
        if rank.hand is not None:
            planned, start, stop, _ = rank.hand
            rank.rate.add(self.now - rank.hand[3], float(stop - start))
            rank.hand = None
            self.done += stop - start
            self.ended_at = self.now
            self.counter.who = "ranks"
            # The lines of each task are synced once.
            self.counter.add(stop - start)
        taken = rank.supply.take(1, rank.rate.learn())
        if taken is None:
            rank.is_idle = True
            self._tell(host, rank)
            return
        planned, start, stop = taken  # type: ignore[misc, assignment]
        if rank.is_idle:
            rank.is_idle = False
            self._tell(host, rank)
        took_s = float(planned.before[stop] - planned.before[start])
        rank.hand = planned, start, stop, self.now + CLAIM_S
        self.at(self.now + CLAIM_S + took_s, lambda: self._next(host, rank))

    def _prove(self, host: Host, rank: Rank) -> None:
        if not host.is_down:
            self.counter.who = "ranks"
            rank.beat.move()
            self.counter.add(round(HEARTBEAT_CALLS * LEASE_S / ATTEMPT_BEATS / HEARTBEAT_S))
            self.at(self.now + LEASE_S / ATTEMPT_BEATS, lambda: self._prove(host, rank))

    def _tell(self, host: Host, rank: Rank) -> None:
        """Replace the heartbeat file of a rank."""
        self.counter.who = "ranks"
        record = Heartbeat(
            **msgspec.structs.asdict(host.who), attempt=rank.attempt, beat=0, parent="7", device="",
            state=Phase.IDLE if rank.is_idle else Phase.RUNNING, at=self.now, job_sha256="",
        )  # fmt: skip
        replace(self.layout.heartbeat(rank.attempt), encode(record))

    def _crash(self, host: Host) -> None:
        host.is_down = True
        for rank in host.ranks:
            self.down_at[rank.attempt] = self.now
            if rank.hand is None:
                continue
            planned, start, stop, since = rank.hand
            spent_s = max(0.0, self.now - since)
            reached = planned.before[start] + spent_s
            whole = bisect.bisect_right(planned.before, reached, start, stop + 1) - 1
            whole = max(start, min(whole, stop - 1))
            self.done += whole - start
            self.lost_s += float(reached - planned.before[whole])
            self.left[rank.attempt] = np.diff(planned.before)[whole:stop]

    # Parents.

    def _look(self, host: Host) -> None:
        """One look of a parent, in the order of `Orchestrator._step_and_wait`."""
        if host.is_down:
            return
        self.counter.who = "gatherer" if host.company.is_gatherer else "parents"
        has_listed = host.company.glance()
        control = read_control(self.layout)
        host.beat.beat_if_due(self.now)
        # `RunFolders.check`.
        os.stat(self.layout.root)
        if not host.scope.is_full_look_due(control, False, False):
            if has_listed:
                self._nudge_if_news(host, len(listdir(self.layout.manifests)))
            nap_s = min(host.scope.light_nap_s(), host.beat.every_s)
        else:
            host.view.refresh()
            while self._take_over(host):
                host.view.refresh()
            host.scope.note_full_look(control, False, None)
            self._nudge_if_news(host, len(host.view.manifests))
            moment = Moment(len(host.view.open_attempts), self.done, False, False)
            nap_s = host.pace.nap_s(moment)
        self.at(self.now + nap_s, lambda: self._look(host))

    def _nudge_if_news(self, host: Host, n_manifests: int) -> None:
        if n_manifests != host.n_manifests:
            host.n_manifests = n_manifests
            for rank in host.ranks:
                if rank.is_idle:
                    self.at(self.now, lambda rank=rank: self._next(host, rank))  # type: ignore[misc]

    def _take_over(self, host: Host) -> bool:
        """Close what is proved dead, as `Others.life` does; whether there was any."""
        orphans = [name for name in host.view.open_attempts if host.detector.is_dead_orphan(name)]
        if not orphans:
            return False
        close_attempts(host.view, dict.fromkeys(orphans, classify(Evidence())), "resume")
        for name in orphans:
            self.takeovers += 1
            down_at = self.down_at.get(name)
            if down_at is None:
                self.false_takeovers += 1
            elif name in self.left:
                self.longest_s = max(self.longest_s, self.now - down_at)
                self.planned[orphans_name(name)] = _planned(self.left.pop(name))
        return True


def _planned(seconds: np.ndarray) -> Planned:
    return Planned(np.ones(len(seconds)), np.concatenate(([0.0], np.cumsum(seconds))))


def make_spool(folder: Path) -> Path:
    """A spool as `gpuspool run` makes it, whose only start has ended."""
    words = [sys.executable, "-P", "-m", "gpuspool", "run", "--lines", "one", "--spool", "S", "-q"]
    (folder / "one").write_text("1\n")
    words += ["--ranks", "1", "--", "true", "{key}"]
    subprocess.run(words, cwd=folder, check=True, stderr=subprocess.DEVNULL)
    return folder / "S"


def simulate(case: Case) -> Outcome:
    """Play one case. Raises OSError and CalledProcessError."""
    random.seed(SEED)
    counter = Counter()
    with tempfile.TemporaryDirectory() as folder:
        world = World(case, make_spool(Path(folder)), counter)
        clock = SimpleNamespace(monotonic=lambda: world.now, time=lambda: world.now)
        modules = [liveness_module, scope_module, view_module]
        whole_s = float(world.seconds.sum()) / len(world.hosts) / case.ranks
        downs = {number: part * whole_s for number, part in case.crashes.items()}
        real = [module.time for module in modules]
        for module in modules:
            module.time = clock  # type: ignore[assignment]
        try:
            with counter.counting():
                world.play(downs)
        finally:
            for module, time in zip(modules, real, strict=True):
                module.time = time
    bound_s = _bound(float(world.seconds.sum()) + world.lost_s, case, sorted(downs.values()))
    per_s = {who: calls / world.ended_at for who, calls in counter.calls.items()}
    return Outcome(
        world.ended_at,
        bound_s,
        per_s["parents"],
        per_s["gatherer"],
        per_s["ranks"],
        world.claims.names / world.ended_at,
        world.takeovers,
        world.false_takeovers,
        world.longest_s,
    )


def _bound(work_s: float, case: Case, downs: Sequence[float]) -> float:
    """When so much work can be done at the earliest, with a host less from each of these times."""
    now, hosts = 0.0, case.hosts
    for down in downs:
        could_s = (down - now) * hosts * case.ranks
        if could_s >= work_s:
            break
        work_s -= could_s
        now = down
        hosts -= 1
    return now + work_s / (hosts * case.ranks)


def cases() -> list[Case]:
    # The first two are the gatherer and the one that follows it.
    middle = {0: 0.2, 1: 0.35, 17: 0.4, 30: 0.5, 31: 0.5, 64: 0.6, 90: 0.7, 127: 0.8}
    return [
        Case("128 parents of 8, no crash", 128, 8, {}),
        Case("the same, 8 hosts crash, the gatherer and its successor among them", 128, 8, middle),
        Case("the same, the gatherer's host crashes at 98 %", 128, 8, {0: 0.98}),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name holds this")
    only = parser.parse_args().only
    heads = ["case", "makespan, s", "/ bound", "calls a second: light parents, all", "gatherer"]
    heads += ["beats and journals of ranks", "claims"]
    heads += ["attempts taken over", "wrongly", "slowest takeover, s"]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for case in cases():
        if only in case.name:
            out = simulate(case)
            times = f"{out.makespan_s:.0f} | {out.makespan_s / out.bound_s:.3f}"
            calls = f"{out.parents_calls:.0f} | {out.gatherer_calls:.0f}"
            calls += f" | {out.ranks_calls:.0f} | {out.claims_calls:.0f}"
            takeovers = f"{out.takeovers} | {out.false_takeovers} | {out.longest_s:.0f}"
            print(f"| {case.name} | {times} | {calls} | {takeovers} |", flush=True)


if __name__ == "__main__":
    main()
