"""How an attempt died, as a value.

Whoever closes a dead attempt gathers what it knows as `Evidence`; `classify` makes a `Death` of it,
and nobody else judges. The first row that applies is the death; what follows from it for the tasks
is decided in `blame`.

evidence                                           death           state    reason
its parent told it to stop, or killed it           Told            stopped  killed
its own timer left stacks, or its parent killed
    it for taking too long                         TimedOut        failed   timeout
its parent published the intent and could not
    start the process                              NeverStarted    failed   io
nobody saw its exit code                           Lost            failed   lost
it exited since it could not write its own end     CannotClose     failed   io
any other exit code                                Crashed         failed   crash
"""

from __future__ import annotations

import signal
from typing import assert_never

import msgspec

from gpuspool.spool.errors import EXIT_CANNOT_CLOSE
from gpuspool.spool.states import AttemptState, Reason

# A SIGKILL comes from outside far more often than from a task, so it is met with more patience than
# a crash.
MAX_KILLS = 5


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What a closer knows of an attempt that is proved dead.

    stacks: where every thread stood when the worker's own timer ended it; "" if it did not.
    exit_code: as its own parent saw it, -N for signal N; None where nobody saw it. is_oom: the
    kernel's counters explain the SIGKILL. max_crashes, max_kills: how often a task may be in hand
    when its worker crashes or is killed.
    """

    stacks: str = ""
    is_overdue: bool = False
    was_told: bool = False
    never_started: bool = False
    exit_code: int | None = None
    is_oom: bool = False
    max_crashes: int = 1
    max_kills: int = MAX_KILLS


class Witness(msgspec.Struct, frozen=True):
    """What an attempt's own parent saw: how a worker ended that nobody had told to stop.

    exit_code: -N for signal N. is_oom: the kernel's counters explain the SIGKILL, which is then a
    crash like any other.
    """

    exit_code: int
    max_crashes: int
    max_kills: int = MAX_KILLS
    is_oom: bool = False

    @property
    def is_kill(self) -> bool:
        """Whether it may well have come from outside, or from a limit on all tasks together."""
        if self.exit_code == -signal.SIGXCPU:
            return True
        return self.exit_code == -signal.SIGKILL and not self.is_oom

    @property
    def most(self) -> int:
        """How often this may happen to one task."""
        if self.is_kill:
            return max(self.max_crashes, self.max_kills)
        return self.max_crashes


class TimedOut(msgspec.Struct, frozen=True):
    """It took too long.

    stacks: where every thread stood, "" where that is not known. exit_code: of a worker that its
    own timer ended, where its parent saw it; None where the parent killed it.
    """

    stacks: str = ""
    exit_code: int | None = None


class Told(msgspec.Struct, frozen=True):
    """Its parent told it to stop, so nobody is to blame.

    stacks: where every thread stood when its own timer ended it all the same; "" if it did not.
    """

    stacks: str = ""


class NeverStarted(msgspec.Struct, frozen=True):
    """Its parent published the intent and could not start the process."""


class Lost(msgspec.Struct, frozen=True):
    """Nobody saw how it ended: its parent died too, or it ran on another host."""


class CannotClose(msgspec.Struct, frozen=True):
    """It ended itself and could not write so: a file system is in trouble."""


class Crashed(msgspec.Struct, frozen=True):
    """It died, and its parent saw how."""

    witness: Witness


Death = TimedOut | Told | NeverStarted | Lost | CannotClose | Crashed


def classify(evidence: Evidence) -> Death:
    """How an attempt died, by the table above."""
    # First: a call that a stop has cut off from its processes may hang until its time is over.
    if evidence.was_told:
        return Told(evidence.stacks)
    if evidence.is_overdue:
        return TimedOut(evidence.stacks)
    if evidence.stacks:
        return TimedOut(evidence.stacks, evidence.exit_code)
    if evidence.never_started:
        return NeverStarted()
    code = evidence.exit_code
    if code is None:
        return Lost()
    if code == EXIT_CANNOT_CLOSE:
        return CannotClose()
    return Crashed(Witness(code, evidence.max_crashes, evidence.max_kills, evidence.is_oom))


def ending_of(death: Death) -> tuple[AttemptState, Reason]:
    """The state and the reason that the closing of a dead attempt tells."""
    match death:
        case TimedOut():
            return AttemptState.FAILED, Reason.TIMEOUT
        case Told():
            return AttemptState.STOPPED, Reason.KILLED
        case NeverStarted() | CannotClose():
            return AttemptState.FAILED, Reason.IO
        case Lost():
            return AttemptState.FAILED, Reason.LOST
        case Crashed():
            return AttemptState.FAILED, Reason.CRASH
        case _:
            assert_never(death)


def exit_code_of(death: Death) -> int | None:
    """The exit code that the closing of a dead attempt tells, where it was seen and matters."""
    match death:
        case TimedOut(_, exit_code):
            return exit_code
        case Crashed(witness):
            return witness.exit_code
        case _:
            return None
