"""Draining: who asks for it, and what exactly is asked.

A drain is a value, `Drain`, or there is none. A signal and the time limit ask this parent alone for
one, and others go on: whoever started it may start it again. An order in the spool's control/
folder is for all parents: `gpuspool drain` gives it, or the gatherer, for --max-failed or since
nothing completes any more. What was stopped by order stays stopped, and so it ends with another
exit code. `DrainWatch` hears of all but the gatherer's own decisions, which the loop begins. A
drain never ends before the epoch does. All it can become is harder: a second Ctrl-C ends the grace
at once.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from enum import Enum, auto
from types import FrameType

import msgspec

from gpuspool.spool.codec import encode
from gpuspool.spool.layout import Layout
from gpuspool.spool.publish import publish, read_record
from gpuspool.spool.records import DrainOrder
from gpuspool.spool.signals import STOP_SIGNALS
from gpuspool.spool.states import Ending
from gpuspool.spool.view import Control

# A signal that comes again so soon is the same one: a terminal sends it to all in the foreground,
# and timeout(1), srun and shells pass it on to the process that has it already. Nobody presses a
# key twice as fast.
SAME_SIGNAL_S = 0.05

# Why a run drains that a person told so, and as an order says it.
ASKED = "asked"
# A later start brought new code.
NEW_CODE = "new-code"


class Cause(Enum):
    """What a drain began for, as far as it matters for what is said and done next."""

    # Somebody at a terminal asked for it, and may ask harder.
    TERMINAL = auto()
    # The time of this start is up, so the job may be started again. Nobody wants the run to end.
    TIME = auto()
    OTHER = auto()


# What the signals mean that are not OTHER. Batch schedulers send SIGUSR2 some time before the end
# of a job, where they are told so.
CAUSES = {signal.SIGINT: Cause.TERMINAL, signal.SIGUSR2: Cause.TIME}


class Drain(msgspec.Struct, frozen=True):
    """Workers finish the tasks in hand and claim no more, and the epoch ends.

    `why` is for people. `kill_at`, on the monotonic clock, is when the grace is over and whoever is
    left is killed. `ending` is how the epoch ends unless every task gets its verdict meanwhile.
    """

    why: str
    kill_at: float
    ending: Ending = Ending.DRAINED
    cause: Cause = Cause.OTHER

    @property
    def is_interrupted(self) -> bool:
        """Whether somebody did not want to wait for the grace."""
        return self.ending is Ending.INTERRUPTED

    @property
    def is_own(self) -> bool:
        """Whether this parent alone drains, and others go on."""
        return self.ending in (Ending.DRAINED, Ending.INTERRUPTED)


class DrainWatch:
    """Hears when somebody asks this epoch to drain. drain: what was asked, None for nothing."""

    def __init__(
        self,
        layout: Layout,
        epoch: int,
        grace_s: float,
        received: Sequence[int],
        deadline: float = math.inf,
    ) -> None:
        """received: the numbers of the signals that came so far, to which a signal handler appends.
        deadline: the end of the time limit on the monotonic clock, infinite where there is none.
        """
        self.drain: Drain | None = None
        # The drain that workers and people were told of; an older one while a harder one is not
        # told yet.
        self._told: Drain | None = None
        self._layout = layout
        self._epoch = epoch
        self._grace_s = grace_s
        self._received = received
        self.deadline = deadline

    def hear(self, control: Control, now: float) -> Drain | None:
        """The drain that is still to be told, since it began or became harder; None if none is.

        control: what control/ says now. The same drain is returned again until `note_told`: whoever
        tells it may fail on the way, because a file system is in trouble. Raises OSError where an
        order cannot be read.
        """
        if self._received.count(signal.SIGINT) > 1:
            self._interrupt(now)
        elif self.drain is None:
            self._begin_if_asked(control, now)
        elif self.drain.ending is Ending.DRAINED and control.drain >= self._epoch:
            # What was ordered stays stopped, also where a signal came first. The grace goes on.
            kill_at = self.drain.kill_at
            self._obey(control, now)
            self.drain = msgspec.structs.replace(self.drain, kill_at=kill_at)
        if self.drain == self._told:
            return None
        return self.drain

    def hear_before(self, control: Control, drained: int, now: float) -> None:
        """Obey an order that came while this start had no epoch by which it could be named.

        control: what control/ says once it has one. drained: the newest epoch that was drained when
        it began; there may be several orders since. One to make way for new code names whom it
        means: not this start, which may be one of several that bring it. Raises OSError where an
        order cannot be read.
        """
        for epoch in sorted(control.drains):
            if epoch <= drained:
                continue
            order = read_record(self._layout.drain(epoch), DrainOrder)
            if order is None or order.why != NEW_CODE:
                self.begin(describe_order(order), now, Ending.STOPPED)
                return

    def begin(
        self, why: str, now: float, ending: Ending = Ending.DRAINED, cause: Cause = Cause.OTHER
    ) -> None:
        """Drain from now on; the grace begins."""
        self.drain = Drain(why, now + self._grace_s, ending, cause)

    def is_asked(self, control: Control) -> bool:
        """Whether a signal or an order came that was not heard yet, or time is up."""
        if self._received or control.drain >= self._epoch:
            return True
        return time.monotonic() > self.deadline

    def _begin_if_asked(self, control: Control, now: float) -> None:
        """Begin to drain for a signal, for the end of the time limit, or for an order."""
        if self._received:
            number = signal.Signals(self._received[0])
            self.begin(f"{number.name} received", now, cause=CAUSES.get(number, Cause.OTHER))
        elif now > self.deadline:
            self.begin("the time limit is reached", now, cause=Cause.TIME)
        elif control.drain >= self._epoch:
            self._obey(control, now)

    def _obey(self, control: Control, now: float) -> None:
        """Drain as the newest order says. Raises OSError where that cannot be read."""
        order = read_record(self._layout.drain(control.drain), DrainOrder)
        self.begin(describe_order(order), now, Ending.STOPPED)

    def note_told(self, drain: Drain) -> None:
        """Workers and people were told of this drain."""
        self._told = drain

    def _interrupt(self, now: float) -> None:
        if self.drain is None or not self.drain.is_interrupted:
            self.drain = Drain("SIGINT received twice", now, Ending.INTERRUPTED)


def order_drain(layout: Layout, epoch: int, why: str, message: str = "") -> bool:
    """Order all parents of the epochs up to this one to drain, by link(2).

    why, message: as in a `DrainOrder`. Returns False where such an order was given before. Raises
    OSError.
    """
    by = f"{os.uname().nodename} {os.getpid()}"
    order = DrainOrder(why=why, message=message, by=by, at=time.time())
    return publish(layout.drain(epoch), encode(order))


def describe_order(order: DrainOrder | None) -> str:
    """An order in words. None: it cannot be read, and holds all the same."""
    if order is None or order.why == ASKED:
        return "`gpuspool drain` asked for it"
    if order.why == NEW_CODE:
        return f"{order.by} goes on with changed code"
    return f"{order.by} ordered it: {order.message or order.why}"


@contextlib.contextmanager
def signals_to(received: list[int]) -> Iterator[None]:
    """Append the number of each signal that ends a run to `received`, as long as the block lasts.

    One that is passed on to this process beside the way in which it came is appended once.
    The handlers that were there before are restored. Off the main thread, where Python allows no
    handlers, nothing is changed and nothing is received.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    came_at: dict[int, float] = {}

    def receive(number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if now - came_at.get(number, -math.inf) >= SAME_SIGNAL_S:
            came_at[number] = now
            received.append(number)

    old = {number: signal.signal(number, receive) for number in _signals_to_take()}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _signals_to_take() -> list[signal.Signals]:
    """The signals that drain, but for two kinds: a SIGHUP that nohup(1) had ignored stays so, and
    what is handled by other code than Python's could not be restored.
    """
    found: list[signal.Signals] = []
    for number in STOP_SIGNALS:
        handler = signal.getsignal(number)
        is_nohup = number == signal.SIGHUP and handler == signal.SIG_IGN
        if handler is not None and not is_nohup:
            found.append(number)
    return found


def most_failed(text: str | None, tasks: int) -> int | None:
    """How many failed tasks end a run of `tasks` tasks, from the text of --max-failed: N or P%.

    A percentage is rounded up, and is at least one task. None: however many.
    """
    if text is None:
        return None
    if not text.endswith("%"):
        return int(text)
    return max(1, math.ceil(float(text.removesuffix("%")) / 100 * tasks))
