"""The workers of a run as their parent sees them: which are its own, which live, which take too
long, how each ended.

What it says of a dead attempt it says by closing it, once, with what it saw: a crash that it
witnessed, a time-out, an order of its own, or nothing at all. A process that was sent SIGKILL and
is not gone after a while (it hangs in the kernel) runs no user code any more, so it counts as dead:
nobody waits for it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time

from gpuspool.orchestrator.supervise.bell import Bell
from gpuspool.orchestrator.supervise.decide import FAREWELL_S
from gpuspool.orchestrator.supervise.launch import Child, kill_group, launch, open_log
from gpuspool.spool.closing import close_attempts
from gpuspool.spool.death import Evidence, Lost, classify
from gpuspool.spool.errors import EXIT_CANNOT_CLOSE
from gpuspool.spool.exits import describe_exit
from gpuspool.spool.identity import is_here, liveness, myself
from gpuspool.spool.layout import rank_of
from gpuspool.spool.liveness import FailureDetector
from gpuspool.spool.oom import OomWatch
from gpuspool.spool.processes import kill_marked, run_mark
from gpuspool.spool.records import Closing, Job, Options
from gpuspool.spool.states import Life
from gpuspool.spool.timeouts import is_limited, limit_s, parent_limit_s, read_stacks
from gpuspool.spool.view import View

UNREAPED_S = (
    3.0  # from SIGKILL until a process that is not gone counts as dead: it hangs in the kernel
)
FAST_S = 60.0  # an attempt that dies earlier and finished nothing may owe it to its device
OTHERS_S = 3.0  # for a worker that closed itself under an earlier parent to be gone
# three beats: how long a worker with nothing in hand may be silent on top of its stall time-out
SILENCE_S = 30.0


class Workers:
    """All attempts of one run, for one epoch. Raises OSError where the spool cannot be read or
    written.
    """

    def __init__(self, view: View, epoch: int, options: Options) -> None:
        self.view, self.epoch, self.options = view, epoch, options
        self._mark = run_mark(view.layout.root, view.run.id)
        self.detector = FailureDetector(view, options.lease_s)
        self._oom = OomWatch()
        self._children: dict[str, Child] = {}
        self._began_at: dict[str, float] = {}
        self._told: set[str] = set()
        self._overdue: set[str] = set()
        self._killed_at: dict[str, float] = {}
        self._progress: dict[str, tuple[object, float]] = {}
        self._fast_deaths: list[tuple[str, int]] = []  # (device, rank)

    def launch(self, rank: int, slots: list[str], job: Job) -> Child:
        """Start a rank's next attempt. On failure an intent may be left behind, which counts as
        dead.
        """
        child = launch(self.view, rank, self.epoch, slots[rank], job, self.options, len(slots))
        self._children[child.attempt] = child
        self._began_at[child.attempt] = time.monotonic()
        return child

    def life(self, attempt: str) -> str:
        """Life.ALIVE, DEAD or ELSEWHERE."""
        child = self._children.get(attempt)
        if child is not None:
            found = Life.ALIVE if child.exit_code() is None else Life.DEAD
        elif self._is_stillborn(attempt):
            return Life.DEAD
        else:
            found = self.detector.life(attempt)
        return Life.DEAD if found is Life.ALIVE and self._is_beyond_help(attempt) else found

    def _is_stillborn(self, attempt: str) -> bool:
        """This very orchestrator wrote its intent and then could not start it."""
        intent = self.view.intents.get(attempt)
        mine = intent is not None and intent.epoch == self.epoch and intent.parent == myself()
        return mine and attempt not in self._children and self.view.identity(attempt) is None

    def _is_beyond_help(self, attempt: str) -> bool:
        return time.monotonic() > self._killed_at.get(attempt, float("inf")) + UNREAPED_S

    @property
    def adopted(self) -> list[str]:
        """The open attempts that this process did not start."""
        return [name for name in self.view.open_attempts if name not in self._children]

    def pids(self) -> list[int]:
        """Of all workers that are proved alive on this host."""
        alive = [attempt for attempt in self.adopted if self.life(attempt) is Life.ALIVE]
        adopted = [who.pid for attempt in alive if (who := self.view.identity(attempt)) is not None]
        return [
            child.pid for child in self._children.values() if child.exit_code() is None
        ] + adopted

    def tell_to_stop(self) -> None:
        """SIGTERM to every worker of this host, its own first; what becomes of it from now on
        blames nobody.
        """
        self._told.update(
            self._children,
            (name for name in self.view.open_attempts if self.life(name) is not Life.DEAD),
        )
        for child in self._children.values():
            _signal(child.pid)
        for pid in self.pids():
            _signal(pid)

    def kill(self, attempt: str) -> None:
        """End a worker of this host and its process group; its parent said so, so nobody is blamed."""
        self._told.add(attempt)
        self._kill(attempt)

    def _kill(self, attempt: str) -> None:
        child, who = self._children.get(attempt), self.view.identity(attempt)
        if child is not None:
            kill_group(child.pid)
        elif who is not None and is_here(who) and self.life(attempt) is Life.ALIVE:
            kill_group(who.pid)
        else:
            return
        self._killed_at.setdefault(attempt, time.monotonic())

    def kill_overdue(self) -> list[str]:
        """Kill who is in a call beyond its limit, or silent; returns whom.

        The worker's own timer goes off first and leaves its stacks, unless the whole process stands
        still.
        """
        now = time.monotonic()
        self._oom.look(now)
        late = [attempt for attempt in self.view.open_attempts if self._is_late(attempt, now)]
        for attempt in late:
            self._overdue.add(attempt)
            self._kill(attempt)
        return late

    def _is_late(self, attempt: str, now: float) -> bool:
        options = self.view.options_of(attempt)
        if (
            not is_limited(options)
            or attempt in self._killed_at
            or self.life(attempt) is not Life.ALIVE
        ):
            return False
        call, beat = self.view.started.get(attempt), self.view.heartbeat(attempt)
        journal = self.view.journals.get(attempt)
        offset = 0 if journal is None else journal.offset
        token: object = (offset, "call")
        if call is not None:
            limit = limit_s(options, len(call.tasks))
        elif beat is None or beat.state == "loading":
            limit = options.stall_timeout_s
        else:
            limit = None if options.stall_timeout_s is None else options.stall_timeout_s + SILENCE_S
            token = (offset, beat.beat)
        seen = self._progress.get(attempt)
        if seen is None or seen[0] != token:
            self._progress[attempt] = (token, now)
            return False
        return limit is not None and now - seen[1] > parent_limit_s(limit)

    def close(self, attempt: str) -> Closing | None:
        """Close an attempt that is dead, in the way that what is known of its death asks for.

        None where there is nothing to tell: it began, or closed itself, since it was judged.
        """
        child = self._children.get(attempt)
        code = None if child is None else child.exit_code()
        kill_marked(self._mark, (attempt,))
        death = classify(self._evidence(attempt, code))
        by = "resume" if isinstance(death, Lost) else "parent"
        closing = close_attempts(self.view, {attempt: death}, by).get(attempt)
        if closing is None or closing.by == attempt:
            return None
        if closing.error is not None and closing.error.traceback:
            self._append_to_log(attempt, closing.error.traceback)
        return closing

    def _evidence(self, attempt: str, code: int | None) -> Evidence:
        was_told = attempt in self._told
        never_started = code is None and self._is_stillborn(attempt)
        is_plain = code is not None and code != EXIT_CANNOT_CLOSE and not was_told
        is_plain = is_plain and attempt not in self._overdue
        is_device_fault = is_plain and self._is_devices_fault(attempt)
        is_oom = is_plain and not is_device_fault and self._oom.explains(code, time.monotonic())  # type: ignore[arg-type]
        return Evidence(
            stacks=read_stacks(self.view.layout, attempt),
            is_overdue=attempt in self._overdue,
            was_told=was_told,
            never_started=never_started,
            exit_code=code,
            is_device_fault=is_device_fault,
            is_oom=is_oom,
            max_crashes=self.options.max_crashes,
        )

    def _append_to_log(self, attempt: str, text: str) -> None:
        """Where every thread stood when the worker's timer ended it; for people, so an error is
        nobody's trouble.
        """
        with (
            contextlib.suppress(OSError),
            open(self.view.layout.log(attempt), "a", opener=open_log) as log,
        ):
            log.write(text)

    def describe_end(self, closing: Closing) -> str:
        """How an attempt that `close` closed had ended."""
        attempt = closing.attempt
        child = self._children.get(attempt)
        code = None if child is None else child.exit_code()
        if closing.reason == "timeout":
            return "it took too long" + (
                "" if closing.error and closing.error.traceback else " and was killed"
            )
        if code is not None:
            return describe_exit(code)
        if self._is_stillborn(attempt):
            return "it could not be started"
        return (
            "it hangs in the kernel"
            if child is not None
            else "its orchestrator and then it itself died"
        )

    def _is_devices_fault(self, attempt: str) -> bool:
        """Whether two ranks died fast on its device while another device works: then no task is to
        blame.
        """
        device = self._device(attempt)
        lived = time.monotonic() - self._began_at.get(attempt, 0.0)
        if device == "cpu" or self.view.finished_by.get(attempt) or lived > FAST_S:
            return False
        self._fast_deaths.append((device, rank_of(attempt)))
        ranks = {rank for where, rank in self._fast_deaths if where == device}
        others = [
            a
            for a in self.view.open_attempts
            if self._device(a) != device and self.life(a) is Life.ALIVE
        ]
        return len(ranks) > 1 and bool(others)

    def _device(self, attempt: str) -> str:
        intent = self.view.intents.get(attempt)
        return "cpu" if intent is None else intent.device

    def reap(self, ended_at: dict[str, float]) -> list[Closing]:
        """Forget children that closed themselves and are gone, end those that linger; returns the
        ends of the first.
        """
        gone = []
        for attempt, child in list(self._children.items()):
            closing = self.view.closed.get(attempt)
            if closing is None:
                continue
            seen = ended_at.setdefault(attempt, time.monotonic())
            if child.exit_code() is not None:
                del self._children[attempt]
                gone.append(closing)
            elif time.monotonic() > seen + FAREWELL_S:
                self._kill(attempt)
        return gone

    def see_off(self, bell: Bell, patience_s: float = FAREWELL_S) -> None:
        """Wait for every worker of this host to exit, kill who lingers, and whatever they left; no
        process remains.
        """
        began = time.monotonic()
        while lingering := self._lingering():
            bell.wait(
                min(max(began + patience_s - time.monotonic(), 0.05), 1.0), lingering.values()
            )
            waited_s = time.monotonic() - began
            for attempt in lingering:
                if waited_s > (
                    patience_s if attempt in self._children else min(patience_s, OTHERS_S)
                ):
                    self._kill(attempt)
        kill_marked(self._mark, self.view.closed)

    def _lingering(self) -> dict[str, int]:
        """attempt -> pid of own children that run, and of others that have closed and not yet gone."""
        own = {
            attempt: child.pid
            for attempt, child in self._children.items()
            if child.exit_code() is None
        }
        heads = {
            attempt: journal.head
            for attempt, journal in self.view.journals.items()
            if attempt in self.view.closed
        }
        others = {
            attempt: head.pid
            for attempt, head in heads.items()
            if head is not None and attempt not in self._children and liveness(head) is Life.ALIVE
        }
        return {
            attempt: pid
            for attempt, pid in (own | others).items()
            if not self._is_beyond_help(attempt)
        }


def _signal(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGTERM)
