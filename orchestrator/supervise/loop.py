"""The orchestrator: wake, read, decide, act, until the run has ended one way or another.

It starts and restarts ranks, adopts workers that outlived an earlier orchestrator, closes the dead,
sweeps, and tells. It keeps nothing that is not on disk except which children are its own: killed at
any moment, the next orchestrator goes on from the spool.
"""

from __future__ import annotations

import array
import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from gpuspool.orchestrator.supervise import decide as d
from gpuspool.orchestrator.supervise.bell import Bell
from gpuspool.orchestrator.supervise.finish import Outcome, finish
from gpuspool.orchestrator.supervise.lock import announce
from gpuspool.orchestrator.supervise.repair import keep_copy
from gpuspool.orchestrator.supervise.workers import Workers
from gpuspool.orchestrator.text.progress import Progress
from gpuspool.spool.codec import encode
from gpuspool.spool.identity import myself
from gpuspool.spool.layout import STATES, rank_of
from gpuspool.spool.liveness import BEAT_S
from gpuspool.spool.mending import mend_claims
from gpuspool.spool.publish import FILE_MODE, SyncError, probe_folder, publish, replace, write_all
from gpuspool.spool.records import Closing, Job, Options, ParentBeat
from gpuspool.spool.states import Life
from gpuspool.spool.sweep import sweep
from gpuspool.spool.timeouts import is_limited
from gpuspool.spool.view import View, drain_epoch

DRAIN_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
LOOK_FILES, FILES_PER_S = (
    10,
    4.0,
)  # opened by a look, besides two for each rank; and how many in a second on average
BACKOFF_LOOK_S = 0.2  # while a rank waits for its restart
NEWS_LOOK_S, NEWS = (
    0.1,
    1000,
)  # after a look that brought so many verdicts for each file it opened; doubled from there
TROUBLE_S = 0.2  # between two tries
PATIENCE_S = 8.0  # with a file system in trouble, before the run stops
ABANDON_S = 15.0  # for workers to end themselves then: with the patience, less than half a minute


@contextlib.contextmanager
def signals_to(received: list[int]) -> Iterator[None]:
    """Note the signals that end a run; the handlers are restored afterwards, and not installed off
    the main thread.
    """
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


def most_failed(text: str | None, tasks: int) -> int | None:
    """How many failed tasks end a run, of --max-failed N or P%."""
    if text is None or not text.endswith("%"):
        return None if text is None else int(text)
    return max(1, math.ceil(float(text[:-1]) / 100 * tasks))


class Orchestrator:
    """Sees one run through one epoch. `run` returns the outcome; errors of the file system are
    raised.
    """

    def __init__(
        self,
        view: View,
        slots: list[str],
        job: Job,
        options: Options,
        progress: Progress,
        received: list[int],
    ) -> None:
        self.view, self.slots, self.job, self.options = view, slots, job, options
        self.progress = progress
        self.epoch = view.next_epoch()
        self._received = received
        self.workers = Workers(view, self.epoch, options)
        self._policy = d.Policy(
            options.max_restarts, most_failed(options.max_failed, view.run.tasks)
        )
        self._ended_at: dict[str, float] = {}
        self._began = time.monotonic()
        self._deadline = (
            None if options.time_limit_s is None else self._began + options.time_limit_s
        )
        self._kill_at: float | None = None
        self._how = "drained"
        self._finished_at: float | None = None
        self._was_swept = False
        self._was_mended = False
        self._had_trouble = False
        self._beat, self._beat_at = 0, -BEAT_S
        self._damage_seen = 0
        self._nap, self._known = NEWS_LOOK_S, view.ledger.n_complete
        self._troubled_since: float | None = None

    def run(self) -> Outcome:
        layout = self.view.layout
        announce(layout, self.epoch)
        self._tell("run_started", f"epoch {self.epoch}", epoch=self.epoch, ranks=len(self.slots))
        self._load_costs()
        self._adopt()
        watched = [layout.manifests, layout.control, *map(layout.subdir, STATES)]
        watched += [layout.failed_tasks] * (self.options.max_failed is not None)
        with contextlib.closing(Bell(layout.root, self.options.poll_s)) as bell:
            try:
                bell.watch_soon(watched)
                while (end := self._try_step()) is None:
                    bell.wait(self._nap_s(bell), self.workers.pids())
            except OSError as trouble:
                self._abandon(trouble, bell)
                raise
            self.workers.see_off(bell)
        how = self._how if end.how == "drained" else end.how
        outcome = finish(self.view, how, self.epoch, time.monotonic() - self._began, self._sick())
        self._record("run_ended", how=outcome.how, exit_code=outcome.exit_code)
        return outcome

    def _nap_s(self, bell: Bell) -> float:
        """How long to wait for the bell. Where it tells all that matters, the more files a look
        opens the longer.
        """
        if any(d.failures_in_a_row(past) for past in self._past()):
            return BACKOFF_LOOK_S
        is_timed = (
            self._deadline is not None or self._kill_at is not None or is_limited(self.options)
        )
        if is_timed or not bell.has_observer:
            return bell.quiet_s
        files = LOOK_FILES + 2 * len(self.view.open_attempts)
        most_s = max(bell.quiet_s, min(files / FILES_PER_S, self.progress.every_s, self._beat_s))
        known, self._known = self._known, self.view.ledger.n_complete
        self._nap = (
            NEWS_LOOK_S if self._known - known > NEWS * files else min(2 * self._nap, most_s)
        )
        return self._nap

    @property
    def _beat_s(self) -> float:
        return min(BEAT_S, self.options.lease_s / 12)

    def _try_step(self) -> d.End | None:
        """One step; trouble with the file system is waited out for a while. Raises OSError after
        that.
        """
        try:
            end = self._step()
        except SyncError:
            raise
        except OSError as trouble:
            now = time.monotonic()
            if self._troubled_since is None:
                self._troubled_since = now
                self._tell("trouble", f"{trouble}; trying again for {PATIENCE_S:.0f} s")
            if now > self._troubled_since + PATIENCE_S:
                raise
            time.sleep(TROUBLE_S)  # and no bell: what was tried in vain may itself ring it
            return None
        self._troubled_since = None
        return end

    def _abandon(self, trouble: OSError, bell: Bell) -> None:
        """The spool cannot be used any more: end the workers, whom nobody could account for; leave
        the rest.
        """
        self._tell("abandoned", f"{trouble}; workers are stopped, at most {ABANDON_S:.0f} s")
        self.workers.tell_to_stop()
        self.workers.see_off(bell, ABANDON_S)

    def _step(self) -> d.End | None:
        """Read, decide and act until there is nothing to do but wait."""
        while True:
            self._hear()
            self._keep_beating()
            self.view.refresh()
            self._keep_damaged()
            self._reap_closed()
            for attempt in self.workers.kill_overdue():
                self._tell("overdue", f"{attempt} took too long and is killed", attempt=attempt)
            actions = d.decide(self._snapshot(), self._policy, time.monotonic())
            if not self._was_mended and not any(isinstance(action, d.Close) for action in actions):
                self._was_mended = True
                if self.epoch and mend_claims(self.view):
                    sweep(self.view)
                    continue
            self._show()
            for action in actions:
                if isinstance(action, d.End):
                    return action
                self._act(action)
            if not any(isinstance(action, (d.Close, d.Sweep, d.Stop)) for action in actions):
                return None

    def _act(self, action: d.Action) -> None:
        match action:
            case d.Close(attempt):
                self._close(attempt)
            case d.Launch(rank):
                self._launch(rank)
            case d.Kill(attempt):
                self.workers.kill(attempt)
            case d.Stop():
                self._drain(
                    f"{self.view.ledger.n_failed} tasks failed, --max-failed {self.options.max_failed}"
                )
                self._how = "too many failed"
            case d.Sweep():
                self._was_swept = True
                count = sweep(self.view)
                if count:
                    self._tell(
                        "swept",
                        f"{count} tasks whose claims were lost are given out again",
                        tasks=count,
                    )

    def _snapshot(self) -> d.Snapshot:
        ledger = self.view.ledger
        left = ledger.tasks - ledger.n_finished
        if self.view.open_attempts:
            # An open attempt may have read the lines of an unreadable task before they were damaged.
            left += len(ledger.unreadable)
        if left == 0 and self._finished_at is None:
            self._finished_at = time.monotonic()
            if self.view.open_attempts:
                publish(
                    self.view.layout.finished(self.epoch), b"", durable=False
                )  # for those that wait
        claimers = self.view.claims_by
        attempts = [
            d.OpenAttempt(name, rank_of(name), self.workers.life(name), name not in claimers)
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
            failed=ledger.n_failed,
        )

    def _past(self) -> list[d.RankPast]:
        """Of this epoch only: what an earlier orchestrator saw burns no restart."""
        past: dict[int, list[Closing]] = {rank: [] for rank in range(len(self.slots))}
        for name in self.view.attempts:
            intent, closing = self.view.intents.get(name), self.view.closed.get(name)
            rank = rank_of(name)
            if (
                intent is not None
                and closing is not None
                and intent.epoch == self.epoch
                and rank in past
            ):
                past[rank].append(closing)
                self._ended_at.setdefault(name, time.monotonic())
        done = [0] * len(self.slots)
        for name, count in self.view.finished_by.items():
            intent = self.view.intents.get(name)
            if intent is not None and intent.epoch == self.epoch and rank_of(name) in past:
                done[rank_of(name)] += count
        return [
            d.RankPast(
                rank,
                tuple(closings),
                tuple(self.view.finished_by.get(closing.attempt, 0) for closing in closings),
                self._ended_at[closings[-1].attempt] if closings else 0.0,
                self.slots[rank],
                done[rank],
            )
            for rank, closings in past.items()
        ]

    def _sick(self) -> dict[str, list[int]]:
        """The devices on which the last that ended came to nothing, given up or not, with their
        ranks.
        """
        sick = d.sick_devices(self._past(), d.Policy(max_restarts=0))
        return {
            device: [rank for rank, token in enumerate(self.slots) if token == device]
            for device in sorted(sick)
        }

    def _launch(self, rank: int) -> None:
        self._look_at_disks()
        child = self.workers.launch(rank, self.slots, self.job)
        self._was_swept = False
        self._record(
            "attempt_started",
            attempt=child.attempt,
            pid=child.pid,
            device=self.slots[rank] or "cpu",
        )

    def _look_at_disks(self) -> None:
        """Once an attempt ended for a file system in trouble, nobody is started until it takes data
        again.

        Raises OSError while it does not.
        """
        if not self._had_trouble:
            return
        layout = self.view.layout
        for folder in (
            Path(self.view.run.out or layout.outputs),
            layout.root,
            layout.subdir("logs"),
        ):
            probe_folder(folder)
        self._had_trouble = False

    def _close(self, attempt: str) -> None:
        closing = self.workers.close(attempt)
        if closing is None:
            return
        self._had_trouble |= closing.reason == "io"
        self._was_mended &= (
            closing.by != "resume"
        )  # it may have died with the power, which gives claims back
        text = f"{attempt} ended: {self.workers.describe_end(closing)}; what it had not finished is given out again"
        text += "".join(
            f"; task {lost.key} fails: {lost.error.message}" for lost in closing.failures
        )
        self._tell("attempt_closed", text, attempt=attempt)

    def _reap_closed(self) -> None:
        for closing in self.workers.reap(self._ended_at):
            self._had_trouble |= closing.reason == "io"
            if closing.state == "failed" and closing.by == closing.attempt:
                why = closing.error.message if closing.error else ""
                text = f"{closing.attempt} failed ({closing.reason}): {why}"
                self._tell("attempt_failed", text, attempt=closing.attempt)

    def _adopt(self) -> None:
        living = [
            attempt
            for attempt in self.workers.adopted
            if self.workers.life(attempt) is not Life.DEAD
        ]
        intents = [self.view.intents.get(attempt) for attempt in living]
        is_changed = any(
            intent is not None and intent.job.sha256 != self.job.sha256 for intent in intents
        )
        if is_changed:  # --keep-done: what is not in hand is for the new code, on whatever host
            publish(self.view.layout.drain(self.epoch - 1), b"")
            self.workers.tell_to_stop()
        how = "stops for the new code once its tasks in hand are done" if is_changed else "goes on"
        for attempt in self.workers.adopted:
            life = self.workers.life(attempt)
            if life is Life.ALIVE:
                self._tell(
                    "adopted",
                    f"{attempt} outlived an earlier orchestrator and {how}",
                    attempt=attempt,
                )
            elif life is not Life.DEAD:
                self._tell(
                    "waiting",
                    f"{attempt} ran elsewhere; it counts as alive until its heartbeat has stood still for "
                    f"{self.workers.detector.lease_s(attempt):.0f} s",
                    attempt=attempt,
                )

    def _hear(self) -> None:
        """Signals, the time limit and control/ ask for a drain; a second Ctrl-C ends the grace."""
        if self._received.count(signal.SIGINT) > 1 and self._kill_at != 0.0:
            self._kill_at, self._how = 0.0, "interrupted"
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
        """Tell the workers first, then anybody else."""
        self.workers.tell_to_stop()
        self._kill_at = time.monotonic() + self.options.grace_s
        self._tell(
            "draining",
            f"{why}: workers finish the tasks in hand, at most {self.options.grace_s:.0f} s",
            why=why,
        )

    def _keep_beating(self) -> None:
        if time.monotonic() - self._beat_at < self._beat_s:
            return
        self._beat, self._beat_at = self._beat + 1, time.monotonic()
        me = myself()
        path = self.view.layout.parent_heartbeat(self.epoch, me.host, me.pid)
        replace(path, encode(ParentBeat(beat=self._beat, at=time.time())))

    def _keep_damaged(self) -> None:
        """Copy each damaged file to corrupt/, once, and say so."""
        for damage in self.view.damage[self._damage_seen :]:
            keep_copy(self.view.layout, damage.path)
            self._damage_seen += 1
            self._tell(
                "damage", f"damaged: {damage}; what it held is looked up elsewhere or run again"
            )

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
        ledger.weigh(costs)

    def _show(self) -> None:
        ledger = self.view.ledger
        alive = len(self.view.open_attempts)
        self.progress.update(
            ledger.n_complete, ledger.n_failed, ledger.cost_complete, f"{alive} ranks"
        )

    def _record(self, event: str, **fields: object) -> None:
        """events.jsonl is for people: advisory, never read to decide."""
        line = (
            msgspec.json.encode({"at": time.time(), "event": event, "epoch": self.epoch, **fields})
            + b"\n"
        )
        with contextlib.suppress(OSError):
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            fd = os.open(self.view.layout.events, flags, FILE_MODE)
            try:
                write_all(fd, line)
            finally:
                os.close(fd)

    def _tell(self, event: str, text: str, **fields: object) -> None:
        self._record(event, text=text, **fields)
        if event not in ("run_started",):
            self.progress.say(text)
