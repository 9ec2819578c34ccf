"""The orchestrator: wake, read, decide, act, until the run has ended one way or another.

It starts and restarts ranks, adopts workers that outlived an earlier orchestrator, closes the dead, sweeps, and
tells. It keeps nothing that is not on disk except which children are its own: killed at any moment, the next
orchestrator goes on from the spool.
"""

from __future__ import annotations

import array
import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from orchestrator import decide as d
from orchestrator.bell import Bell
from orchestrator.finish import Outcome, finish
from orchestrator.launch import Child, kill_group, launch
from orchestrator.lock import announce
from orchestrator.progress import Progress
from spool.closing import Witness, close_dead, describe_exit, sweep
from spool.death import Coroner
from spool.errors import EXIT_CANNOT_CLOSE
from spool.identity import ALIVE, DEAD, is_here, myself
from spool.layout import STATES, rank_of
from spool.publish import FILE_MODE, publish, read_bytes, replace, write_all
from spool.records import Closing, Job, Options, ParentBeat, encode
from spool.view import View, drain_epoch

DRAIN_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
BEAT_S = 10.0


@contextlib.contextmanager
def signals_to(received: list[int]) -> Iterator[None]:
    """Note the signals that end a run; the handlers are restored afterwards, and not installed off the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {}
    for number in DRAIN_SIGNALS:
        if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
            continue  # under nohup
        old[number] = signal.signal(number, lambda signum, _: received.append(signum))
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


class Orchestrator:
    """Sees one run through one epoch. `run` returns the outcome; errors of the file system are raised."""

    def __init__(
        self, view: View, slots: list[str], job: Job, options: Options, progress: Progress, received: list[int]
    ) -> None:
        self.view, self.slots, self.job, self.options = view, slots, job, options
        self.progress = progress
        self.epoch = view.next_epoch()
        self._received = received
        self._coroner = Coroner(view, options.lease_s)
        self._children: dict[str, Child] = {}
        self._told: set[str] = set()
        self._ended_at: dict[str, float] = {}
        self._began = time.monotonic()
        self._deadline = None if options.time_limit_s is None else self._began + options.time_limit_s
        self._kill_at: float | None = None
        self._finished_at: float | None = None
        self._was_swept = False
        self._beat, self._beat_at = 0, -BEAT_S
        self._damage_seen = 0

    def run(self) -> Outcome:
        layout = self.view.layout
        announce(layout, self.epoch)
        self._tell("run_started", f"epoch {self.epoch}", epoch=self.epoch, ranks=len(self.slots))
        self._load_costs()
        self._adopt()
        watched = [layout.manifests, layout.control, *map(layout.subdir, STATES)]
        with contextlib.closing(Bell(watched, self.options.poll_s)) as bell:
            while (end := self._step()) is None:
                waiting = any(d.failures_in_a_row(past) for past in self._past())
                bell.wait(0.2 if waiting else bell.quiet_s, self._pids())
            self._see_off(bell)
        how = "interrupted" if self._kill_at == 0.0 and end.how == "drained" else end.how
        outcome = finish(self.view, how, self.epoch, time.monotonic() - self._began)
        self._record("run_ended", how=outcome.how, exit_code=outcome.exit_code)
        return outcome

    def _see_off(self, bell: Bell) -> None:
        """Wait for the children, which have all closed themselves, to exit; no process is left behind."""
        deadline = time.monotonic() + d.FAREWELL_S
        while pids := [child.pid for child in self._children.values() if child.exit_code() is None]:
            bell.wait(deadline - time.monotonic(), pids)
            if time.monotonic() > deadline:
                for pid in pids:
                    kill_group(pid)

    def _step(self) -> d.End | None:
        """Read, decide and act until there is nothing to do but wait."""
        while True:
            self._keep_beating()
            self.view.refresh()
            self._keep_damaged()
            self._hear()
            self._reap_closed()
            actions = d.decide(self._snapshot(), d.Policy(self.options.max_restarts), time.monotonic())
            self._show()
            for action in actions:
                if isinstance(action, d.End):
                    return action
                self._act(action)
            if not any(isinstance(action, (d.Close, d.Sweep)) for action in actions):
                return None

    def _act(self, action: d.Action) -> None:
        match action:
            case d.Close(attempt):
                self._close(attempt)
            case d.Launch(rank):
                self._launch(rank)
            case d.Kill(attempt):
                self._kill(attempt)
            case d.Sweep():
                self._was_swept = True
                count = sweep(self.view)
                if count:
                    self._tell("swept", f"{count} tasks whose claims were lost are given out again", tasks=count)

    def _snapshot(self) -> d.Snapshot:
        ledger = self.view.ledger
        left = ledger.tasks - ledger.n_complete - ledger.n_failed
        if left == 0 and self._finished_at is None:
            self._finished_at = time.monotonic()
        claimers = {claim.attempt for chain in self.view.chains.values() for claim in chain.claims}
        attempts = [
            d.OpenAttempt(name, rank_of(name), self._life(name), name not in claimers)
            for name in self.view.open_attempts
        ]
        return d.Snapshot(
            tasks_left=left,
            unclaimed=self.view.unclaimed,
            open=attempts,
            past=self._past(),
            is_draining=self._kill_at is not None,
            was_swept=self._was_swept,
            finished_at=self._finished_at,
            kill_at=self._kill_at,
        )

    def _past(self) -> list[d.RankPast]:
        """Of this epoch only: what an earlier orchestrator saw burns no restart."""
        past: dict[int, list[Closing]] = {rank: [] for rank in range(len(self.slots))}
        for name in self.view.attempts:
            intent, closing = self.view.intents.get(name), self.view.closed.get(name)
            rank = rank_of(name)
            if intent is not None and closing is not None and intent.epoch == self.epoch and rank in past:
                past[rank].append(closing)
                self._ended_at.setdefault(name, time.monotonic())
        return [
            d.RankPast(
                rank,
                tuple(closings),
                tuple(self.view.finished_by.get(closing.attempt, 0) for closing in closings),
                self._ended_at[closings[-1].attempt] if closings else 0.0,
            )
            for rank, closings in past.items()
        ]

    def _life(self, attempt: str) -> str:
        child = self._children.get(attempt)
        if child is not None:
            return ALIVE if child.exit_code() is None else DEAD
        return self._coroner.verdict(attempt)

    def _launch(self, rank: int) -> None:
        child = launch(self.view, rank, self.epoch, self.slots[rank], self.job, self.options, len(self.slots))
        self._children[child.attempt] = child
        self._was_swept = False
        self._record("attempt_started", attempt=child.attempt, pid=child.pid, device=self.slots[rank] or "cpu")

    def _close(self, attempt: str) -> None:
        """Close an attempt that is proved dead, in the way that what we know of its death asks for."""
        child = self._children.get(attempt)
        code = None if child is None else child.exit_code()
        if attempt in self._told:
            closing = close_dead(self.view, attempt, by="parent", state="stopped", reason="killed")
        elif code is None:
            closing = close_dead(self.view, attempt, by="resume")
        elif code == EXIT_CANNOT_CLOSE:
            closing = close_dead(self.view, attempt, by="parent", reason="io")
        else:
            witness = Witness(code, self.options.max_crashes)
            closing = close_dead(self.view, attempt, by="parent", reason="crash", witness=witness)
        if closing is None or closing.by == attempt:
            return  # it had begun, or ended, by itself since it was judged
        how = describe_exit(code) if code is not None else "its orchestrator and then it itself died"
        culprits = "".join(f"; task {lost.key} fails: {lost.error.message}" for lost in closing.lost)
        self._tell(
            "attempt_closed",
            f"{attempt} ended: {how}; what it had not finished is given out again{culprits}",
            attempt=attempt,
        )

    def _reap_closed(self) -> None:
        """Forget children that closed themselves and are gone; end those that linger."""
        for attempt, child in list(self._children.items()):
            if attempt not in self.view.closed:
                continue
            seen = self._ended_at.setdefault(attempt, time.monotonic())
            if child.exit_code() is not None:
                del self._children[attempt]
                closing = self.view.closed[attempt]
                if closing.state == "failed" and closing.by == attempt:
                    why = closing.error.message if closing.error else ""
                    self._tell("attempt_failed", f"{attempt} failed ({closing.reason}): {why}", attempt=attempt)
            elif time.monotonic() > seen + d.FAREWELL_S:
                kill_group(child.pid)

    def _pids(self) -> list[int]:
        """Of all workers that are proved alive on this host."""
        alive = [a for a in self._adopted() if self._life(a) == ALIVE]
        adopted = [who.pid for a in alive if (who := self.view.identity(a)) is not None]
        return [child.pid for child in self._children.values() if child.exit_code() is None] + adopted

    def _adopted(self) -> list[str]:
        return [name for name in self.view.open_attempts if name not in self._children]

    def _adopt(self) -> None:
        for attempt in self._adopted():
            life = self._coroner.verdict(attempt)
            if life == ALIVE:
                self._tell("adopted", f"{attempt} outlived an earlier orchestrator and goes on", attempt=attempt)
            elif life != DEAD:
                self._tell(
                    "waiting",
                    f"{attempt} ran elsewhere; it counts as alive until its heartbeat has stood still for "
                    f"{self.options.lease_s:.0f} s",
                    attempt=attempt,
                )

    def _hear(self) -> None:
        """Signals, the time limit and control/ ask for a drain; a second Ctrl-C ends the grace."""
        if self._received.count(signal.SIGINT) > 1:
            self._kill_at = 0.0
        if self._kill_at is not None:
            return
        why = None
        if self._received:
            why = f"{signal.Signals(self._received[0]).name} received"
        elif self._deadline is not None and time.monotonic() > self._deadline:
            why = "the time limit is reached"
        elif drain_epoch(self.view.layout) >= self.epoch:
            why = "`gpuspool drain` asked for it"
        if why is not None:
            self._drain(why)

    def _drain(self, why: str) -> None:
        self._kill_at = time.monotonic() + self.options.grace_s
        for attempt in self.view.open_attempts:
            self._told.add(attempt)
        for pid in self._pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        self._tell(
            "draining", f"{why}: workers finish the tasks in hand, at most {self.options.grace_s:.0f} s", why=why
        )

    def _kill(self, attempt: str) -> None:
        self._told.add(attempt)
        child, who = self._children.get(attempt), self.view.identity(attempt)
        if child is not None:
            kill_group(child.pid)
        elif who is not None and is_here(who) and self._life(attempt) == ALIVE:
            kill_group(who.pid)

    def _keep_beating(self) -> None:
        if time.monotonic() - self._beat_at < min(BEAT_S, self.options.lease_s / 12):
            return
        self._beat, self._beat_at = self._beat + 1, time.monotonic()
        me = myself()
        path = self.view.layout.parent_heartbeat(self.epoch, me.host, me.pid)
        replace(path, encode(ParentBeat(beat=self._beat, at=time.time())))

    def _keep_damaged(self) -> None:
        """Copy each damaged file to corrupt/, once, and say so."""
        new, self._damage_seen = self.view.damage[self._damage_seen :], len(self.view.damage)
        for damage in new:
            path = Path(damage.path)
            copy = self.view.layout.corrupt / f"{path.parent.name}-{path.name}"
            if not copy.exists():
                publish(copy, read_bytes(path) or b"")
            self._tell("damage", f"damaged: {damage}; what it held is looked up elsewhere or run again")

    def _load_costs(self) -> None:
        """Only where costs differ: then progress is weighted by them."""
        run, ledger = self.view.run, self.view.ledger
        if run.cost in (0, run.tasks):
            return
        costs = array.array("d", bytes(8 * run.tasks))
        for manifest in self.view.manifests.values():
            for task in manifest.tasks():
                if 0 <= task.task < run.tasks:
                    costs[task.task] = task.cost
        ledger.costs = costs
        ledger.cost_done = sum(cost for cost, done in zip(costs, ledger.complete, strict=True) if done)

    def _show(self) -> None:
        ledger = self.view.ledger
        alive = len(self.view.open_attempts)
        self.progress.update(ledger.n_complete, ledger.n_failed, ledger.cost_done, f"{alive} ranks")

    def _record(self, event: str, **fields: object) -> None:
        """events.jsonl is for people: advisory, never read to decide."""
        line = msgspec.json.encode({"at": time.time(), "event": event, "epoch": self.epoch, **fields}) + b"\n"
        with contextlib.suppress(OSError):
            fd = os.open(self.view.layout.events, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, FILE_MODE)
            try:
                write_all(fd, line)
            finally:
                os.close(fd)

    def _tell(self, event: str, text: str, **fields: object) -> None:
        self._record(event, text=text, **fields)
        if event not in ("run_started",):
            self.progress.say(text)
