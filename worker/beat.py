"""The one thread beside the work: it makes the journal durable, beats, and looks for a drain.

Every second it makes the journal durable. Several times in a lease it beats in beats/, which proves
to other hosts that this worker lives. Now and then it replaces the heartbeat file, which tells
people what it is at. It looks whether somebody called `gpuspool drain` when its parent says that
there is news, and without such a parent every few seconds.

With each heartbeat it looks whether the job has imported more modules, which are part of the code
that this run consists of (see `modules`).

With the heartbeats that are its own it tells what the attempt uses, in usage/ (see `usage`).

It shares with the main thread only what is made for that: the journal, `Drain`, `Standing`, and
`Doing`, which the main thread alone writes. What goes wrong with the journal is kept there, and
ends the attempt at the main thread's next step. A heartbeat, a line in usage/ or a record of
modules that cannot be written is only logged, once: the work is worth more than the word of it.
"""

from __future__ import annotations

import math
import os
import threading
import time

from msgspec.structs import asdict

from gpuspool.spool import beats
from gpuspool.spool.codec import encode
from gpuspool.spool.file_system import heartbeat_s
from gpuspool.spool.journal import JournalWriter
from gpuspool.spool.layout import Layout
from gpuspool.spool.liveness import ATTEMPT_BEATS
from gpuspool.spool.publish import replace
from gpuspool.spool.records import Heartbeat, Identity, Intent
from gpuspool.spool.states import Phase
from gpuspool.worker.doing import Doing
from gpuspool.worker.drain import Drain
from gpuspool.worker.modules import Modules
from gpuspool.worker.nudges import PROMPT_S, UNNUDGED_LOOK_S, Nudges
from gpuspool.worker.parent import Parent
from gpuspool.worker.say import say
from gpuspool.worker.standing import Standing
from gpuspool.worker.usage import UsageLog

# The journal is made durable so often: a power cut takes back so many seconds of verdicts at most.
SYNC_S = 1.0
# Without a parent that says when there is news, the thread looks for a drain so often, which is
# well within the grace of 25 s that a drain has; with a shorter grace it looks so many times in it.
# Most workers hear of a drain by a signal. One whose job takes such signals for itself has only
# this.
DRAIN_S = 5.0
LOOKS_A_GRACE = 5
# With a short lease everything is done more often: so many times in a lease.
LOOKS_A_LEASE = 12


class Beat(threading.Thread):
    """Beats from `start` to `finish`. With `beat` the main thread tells of a new phase at once."""

    def __init__(
        self,
        layout: Layout,
        intent: Intent,
        who: Identity,
        journal: JournalWriter,
        drain: Drain,
        standing: Standing,
        modules: Modules,
        nudges: Nudges,
    ) -> None:
        super().__init__(name="gpuspool-beat", daemon=True)
        self.doing = Doing()
        self._layout = layout
        self._intent = intent
        self._who = who
        self._journal = journal
        self._drain = drain
        self._standing = standing
        self._modules = modules
        self._parent = Parent(intent, drain)
        self._lease_s = intent.options.lease_s
        self._proof = beats.Beat(layout, intent.attempt)
        self._proof_s = self._lease_s / ATTEMPT_BEATS
        self._last_proof = -math.inf
        self._heartbeat_s = heartbeat_s(layout.root, self._lease_s, intent.options.poll_s)
        self._drain_s = min(DRAIN_S, intent.options.grace_s / LOOKS_A_GRACE)
        self._nudges = nudges
        self._is_told_promptly = intent.options.poll_s <= PROMPT_S
        # How many nudges there had been at the last look for a drain.
        self._heard = 0
        # Held while a heartbeat is written, since both threads do so.
        self._lock = threading.Lock()
        self._number = 0
        # Whether the last heartbeat said that there is nothing to do.
        self._is_told_idle = False
        self._usage = UsageLog(layout, intent)
        # What was said to be impossible.
        self._said: set[str] = set()
        self._end = threading.Event()
        # The pause before the next beat. It doubles, so that `status` shows the first task soon
        # after the start.
        self._pause_s = SYNC_S
        self._last_beat = time.monotonic()
        self._last_look = self._last_tick = self._last_beat

    def run(self) -> None:
        """The thread's own; call `start`."""
        self._prove(time.monotonic())
        self.beat()
        self._tell_usage()
        while not self._end.wait(self._at_most(SYNC_S)):
            self._tick(time.monotonic())

    def finish(self) -> None:
        """End the thread, make the journal durable, and beat once more.

        Raises the OSError that broke the journal, or SyncError.
        """
        self._end.set()
        self.join()
        self._journal.check()
        self._journal.sync_if_dirty()
        self.beat()

    def end_proof(self) -> None:
        """Beat no more in beats/: the attempt is closed."""
        self._proof.end()

    def _at_most(self, seconds: float) -> float:
        """So many seconds, or less where the lease is short."""
        return min(seconds, self._lease_s / LOOKS_A_LEASE)

    def _tick(self, now: float) -> None:
        try:
            self._journal.sync_if_dirty()
        except OSError:
            # The journal is broken from now on; the main thread finds out at its next step.
            return
        if now - self._last_tick > self._lease_s:
            # This process stood still, and may have been taken for dead.
            self._standing.doubt()
        self._last_tick = now
        self._parent.heed()
        if now - self._last_proof >= self._proof_s:
            self._prove(now)
        is_news = (self.doing.phase is Phase.IDLE) != self._is_told_idle
        if is_news or now - self._last_beat >= min(self._pause_s, self._heartbeat_s):
            self._pause_s *= 2
            self.beat()
            self._tell_usage()
        if self._is_look_due(now):
            self._last_look = now
            self._drain.look()

    def _is_look_due(self, now: float) -> bool:
        """Whether to look for a drain: the parent said that there is news, or it is time."""
        heard = self._nudges.heard()
        if heard != self._heard:
            self._heard = heard
            return True
        every_s = self._at_most(self._drain_s)
        is_told = self._nudges.are_promised and self._parent.is_there()
        if is_told and self._is_told_promptly:
            every_s = UNNUDGED_LOOK_S
        return now - self._last_look >= every_s

    def _prove(self, now: float) -> None:
        """Prove to other hosts that this process lives. What fails is tried again in a moment."""
        try:
            self._proof.move()
        except OSError as error:
            self._say_once("beat", error)
            return
        self._last_proof = now

    def beat(self) -> None:
        """Replace the heartbeat file by rename(2).

        From both threads, but one after the other, so that the newest state stays.
        """
        with self._lock:
            self._number += 1
            self._last_beat = time.monotonic()
            self._is_told_idle = self.doing.phase is Phase.IDLE
            self._look_at_modules()
            try:
                replace(self._layout.heartbeat(self._intent.attempt), encode(self._record()))
            except OSError as error:
                self._say_once("write the heartbeat", error)

    def _tell_usage(self) -> None:
        """From this thread alone: the main one has better things to do."""
        try:
            self._usage.add(self.doing, time.monotonic())
        except OSError as error:
            self._say_once("write down what this process uses", error)

    def notice_modules(self) -> None:
        """Look whether the job has imported more modules. From both threads, as `beat`."""
        with self._lock:
            self._look_at_modules()

    def _look_at_modules(self) -> None:
        try:
            # Until the job is made nothing is told: half of what it imports would be a record too.
            if self.doing.phase in (Phase.LOADING, Phase.MAKING, Phase.WAITING):
                self._modules.notice()
            else:
                self._modules.tell()
        except OSError as error:
            self._say_once("write down which modules the job has imported", error)

    def _say_once(self, what: str, error: OSError) -> None:
        if what not in self._said:
            self._said.add(what)
            say(f"gpuspool: cannot {what} ({error}); the work goes on")

    def _record(self) -> Heartbeat:
        doing = self.doing
        # Read once: the main thread goes on meanwhile.
        line = doing.line
        return Heartbeat(
            **asdict(self._who),
            attempt=self._intent.attempt,
            beat=self._number,
            parent=str(os.getppid()),
            device=os.environ.get("CUDA_VISIBLE_DEVICES", ""),
            state=doing.phase,
            at=time.time(),
            device_name=doing.device.name,
            device_uuid=doing.device.uuid,
            job_sha256=self._intent.job.sha256,
            task=None if line is None else line.task,
            key="" if line is None else line.key,
            task_since=doing.since,
            in_hand=0 if line is None else doing.n_tasks,
            done=doing.complete,
            failed=doing.failed,
            code=self._modules.code,
        )
