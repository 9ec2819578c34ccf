"""Before the first task: the job is imported, warmed up, and made.

While that lasts the timer counts (`--stall-timeout`), but not while this process waits for another
one to warm the host up. Called by `attempt`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from gpuspool.spool.errors import DeviceError
from gpuspool.spool.layout import Layout
from gpuspool.spool.records import Error, Intent
from gpuspool.spool.signals import ENDING_NAMES, moment_after
from gpuspool.spool.states import ErrorKind, Phase
from gpuspool.worker.beat import Beat
from gpuspool.worker.causes import forget_frames
from gpuspool.worker.context import Context
from gpuspool.worker.devices import Device, check_devices
from gpuspool.worker.drain import Drain
from gpuspool.worker.job import CopyUnreadable, LoadedJob, load_job
from gpuspool.worker.pinning import Pinning
from gpuspool.worker.results import call_user_code, signal_behind, to_error
from gpuspool.worker.say import say
from gpuspool.worker.timer import Timer
from gpuspool.worker.trouble import raise_trouble_at
from gpuspool.worker.warmup import Drained, wait_until, warm_up


class Preparation:
    """Makes the job of one attempt."""

    def __init__(
        self, layout: Layout, intent: Intent, beat: Beat, timer: Timer, drain: Drain
    ) -> None:
        # What the worker sees as its first device, once that was looked at.
        self.device = Device()
        self._pinning = Pinning(intent.environment)
        self._layout = layout
        self._intent = intent
        self._beat = beat
        self._timer = timer
        self._drain = drain

    def load(self, context: Context) -> LoadedJob | Error:
        """The job, or why it cannot be made: an error of kind "load" or "device", which is logged.

        Raises Drained where a drain was asked for meanwhile, and OSError where the spool cannot be
        used.
        """
        self._timer.begin(0)
        self._pinning.watch()
        job, raised = call_user_code(
            load_job, self._layout, self._intent.job, context, self._look, self._warm_up
        )
        if raised is not None:
            if isinstance(raised, (Drained, CopyUnreadable)):
                raise raised
            self._refuse_trouble_of_spool(raised)
            looks_like_stop = signal_behind(raised) in ENDING_NAMES or self._drain.is_deaf()
            if self._drain.is_told_within(moment_after(looks_like_stop)):
                raise Drained
            return judge_load(raised)
        assert isinstance(job, LoadedJob)
        self._beat.doing.device = self.device
        self._tell(Phase.RUNNING)
        return job

    def _refuse_trouble_of_spool(self, raised: BaseException) -> None:
        """Raise OSError where the spool is in trouble, rather than a file of the job's.

        The path of the error tells where to look, and the look tells whose fault it is: the job may
        well miss a file of its own in the spool, or beside it.
        """
        if isinstance(raised, OSError) and raised.errno is not None:
            raise_trouble_at(raised, self._layout.root)

    def _look(self) -> None:
        """Look at what the job has done so far: imported its modules, then made its object.

        Raises AttemptError.
        """
        self._beat.notice_modules()
        self.check_devices()
        if self._beat.doing.phase is Phase.LOADING:
            # The parent may wait for the end of the imports before it starts others.
            self._tell(Phase.MAKING)

    def check_devices(self) -> None:
        """Look whether the job uses the devices that it was given. Raises AttemptError."""
        self._pinning.check()
        tokens = self._intent.environment.get("CUDA_VISIBLE_DEVICES", "")
        self.device = check_devices(tokens, self._intent.device_uuids)

    def check_first_call(self) -> None:
        """Look once more: a job may import its libraries, or choose its device, in a call.

        Raises AttemptError.
        """
        self._pinning.unwatch()
        self.check_devices()
        self._beat.doing.device = self.device

    def _warm_up(self, warmup: Callable[[], Any]) -> None:
        intent = self._intent
        warm_up(self._layout, intent.epoch, intent.attempt, warmup, self._wait_for_warmth)

    def _wait_for_warmth(self, is_over: Callable[[], bool]) -> None:
        """Wait for another process to warm this host up. No limit on time holds meanwhile."""
        self._timer.end()
        self._tell(Phase.WAITING)
        wait_until(is_over, self._drain)
        self._tell(Phase.MAKING)
        self._timer.begin(0)

    def _tell(self, phase: Phase) -> None:
        """Tell of a new phase at once."""
        self._beat.doing.phase = phase
        self._beat.beat()


def judge_load(raised: BaseException) -> Error:
    """The error of a job that cannot be made or used, of kind "load" or "device". It is logged."""
    error = to_error(raised)
    forget_frames(raised)
    say(error.traceback or error.message)
    kind = ErrorKind.LOAD
    if isinstance(raised, DeviceError):
        kind = ErrorKind.DEVICE
    return msgspec.structs.replace(error, kind=kind)
