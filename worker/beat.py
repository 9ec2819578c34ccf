"""The one thread beside the work: once a second it makes the journal durable, every few seconds it
beats and looks for a drain.

It shares nothing with the main thread but plain attributes that one of the two writes. What goes
wrong with the journal is kept there and ends the attempt at the main thread's next step; a beat
that cannot be written is only logged, once.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable

import msgspec
from msgspec.structs import asdict

from gpuspool.spool.codec import encode
from gpuspool.spool.journal import JournalWriter
from gpuspool.spool.layout import Layout
from gpuspool.spool.liveness import BEAT_S
from gpuspool.spool.publish import replace
from gpuspool.spool.records import Heartbeat, Identity, Intent
from gpuspool.spool.states import Phase
from gpuspool.spool.view import drain_epoch
from gpuspool.worker.devices import Device
from gpuspool.worker.say import say

SYNC_S = 1.0  # what a power cut may take back
DRAIN_S = 5.0  # a drain must be seen well within the grace of 25 s


class Doing(msgspec.Struct):
    """What the main thread is at; it writes, the beat reads."""

    state: Phase = Phase.LOADING
    task: int | None = None
    task_since: float | None = None
    done: int = 0
    failed: int = 0
    device: Device = msgspec.field(default_factory=Device)


class Beat(threading.Thread):
    """Starts beating when started; `finish` writes the last beat."""

    def __init__(
        self,
        layout: Layout,
        intent: Intent,
        who: Identity,
        journal: JournalWriter,
        drain: Callable[[], None],
    ) -> None:
        super().__init__(name="gpuspool-beat", daemon=True)
        self.doing = Doing()
        self.is_late = False
        self._layout, self._intent, self._who, self._journal, self._drain = (
            layout,
            intent,
            who,
            journal,
            drain,
        )
        self._lease_s = intent.options.lease_s
        self._lock = threading.Lock()
        self._wait = SYNC_S
        self._beat = 0
        self._last = self._last_drain = time.monotonic()
        self._end = threading.Event()
        self._logged = False

    def run(self) -> None:
        self.beat()
        while not self._end.wait(min(SYNC_S, self._lease_s / 12)):
            self._tick(time.monotonic())

    def finish(self) -> None:
        """End the thread, make the journal durable and beat once more. Raises the OSError of a
        failed fsync.
        """
        self._end.set()
        self.join()
        self._journal.check()
        self._journal.sync_if_dirty()
        self.beat()

    def _tick(self, now: float) -> None:
        try:
            self._journal.sync_if_dirty()
        except OSError:
            return  # the writer is broken from now on; the main thread finds out at its next step
        if now - self._last > self._lease_s:
            self.is_late = True
        self.heed_parent()
        if now - self._last >= min(self._wait, BEAT_S, self._lease_s / 12):
            self._wait *= (
                2  # soon after the start, so that `status` shows the first task; then seldom
            )
            self.beat()
        if now - self._last_drain >= min(DRAIN_S, self._lease_s / 12):
            self._last_drain = now
            with contextlib.suppress(
                OSError
            ):  # looked at again in a while; without this thread nothing is synced
                if drain_epoch(self._layout) >= self._intent.epoch:
                    self._drain()

    def heed_parent(self) -> None:
        """With --on-parent-exit stop: drain once the parent is gone. Cheap, from either thread."""
        if (
            self._intent.options.on_parent_exit == "stop"
            and os.getppid() != self._intent.parent.pid
        ):
            self._drain()

    def beat(self) -> None:
        """Replace the heartbeat file. From both threads, one after the other, so that the newest
        state stays.
        """
        with self._lock:
            self._replace()

    def _replace(self) -> None:
        self._beat += 1
        self._last = time.monotonic()
        doing = self.doing
        record = Heartbeat(
            **asdict(self._who),
            attempt=self._intent.attempt,
            beat=self._beat,
            parent=str(os.getppid()),
            device=os.environ.get("CUDA_VISIBLE_DEVICES", ""),
            state=doing.state,
            at=time.time(),
            device_name=doing.device.name,
            device_uuid=doing.device.uuid,
            job_sha256=self._intent.job.sha256,
            task=doing.task,
            task_since=doing.task_since,
            done=doing.done,
            failed=doing.failed,
        )
        try:
            replace(self._layout.heartbeat(self._intent.attempt), encode(record))
        except OSError as error:
            if not self._logged:
                self._logged = True
                say(f"gpuspool: cannot beat ({error}); the work goes on")
