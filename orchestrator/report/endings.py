"""How an attempt ended, and how a task failed, in words."""

from __future__ import annotations

from typing import assert_never

import msgspec

from gpuspool.orchestrator.text.frames import FRAME, is_own, name_of, source_at, stacks_in
from gpuspool.orchestrator.text.groups import describe
from gpuspool.spool.exits import describe_exit
from gpuspool.spool.records import Closing, Error
from gpuspool.spool.states import BY_PARENT, BY_RESUME, ErrorKind, Reason

# Of the threads of a process that took too long so many frames are shown.
MOST_FRAMES = 8


def ending(closing: Closing) -> str:
    """How an attempt ended: `ended: crash, killed by SIGSEGV`."""
    text = _reason(closing)
    if closing.by == BY_RESUME:
        return f"{text}; another parent found that"
    if closing.by not in (BY_PARENT, closing.attempt):
        return f"{text}; {closing.by} found that"
    return text


def _reason(closing: Closing) -> str:
    match closing.reason:
        case Reason.FINISHED:
            return "ended: every task had a verdict"
        case Reason.DRAINED:
            return "ended: it was drained"
        case Reason.KILLED:
            return "was killed: it had been told to stop"
        case Reason.LOAD:
            return f"ended: its job could not be loaded{_why(closing)}"
        case Reason.DEVICE:
            return f"ended: it did not see its device{_why(closing)}"
        case Reason.IO:
            return f"ended: a file system was in trouble{_why(closing)}"
        case Reason.FAILURES:
            return "ended: too many tasks had failed in a row, which a fresh process may do better"
        case Reason.HANDOVER:
            return "ended: only doubtful tasks were left, which another process has to try"
        case Reason.RECYCLED:
            return f"ended: its job asked for a fresh process{_why(closing)}"
        case Reason.TIMEOUT:
            return "ended: it took too long"
        case Reason.CRASH:
            code = closing.exit_code
            how = "" if code is None else f", {describe_exit(code)}"
            return f"ended: crash{how}"
        case Reason.LOST:
            return "died, and nobody saw how"
        case unknown:
            assert_never(unknown)


def _why(closing: Closing) -> str:
    error = closing.error
    if error is None:
        return ""
    # The job that asked for a fresh process is no error; what it says is all that matters.
    if error.kind is ErrorKind.RESTART:
        return f": {error.message}" if error.message else ""
    return f": {in_words(error)}"


def in_words(error: Error) -> str:
    """An error on one line, as `describe`, without the place, which a story tells anyway."""
    if error.rank is not None:
        error = msgspec.structs.replace(error, message=error.message.partition("; rank ")[0])
    return describe(error)


def frames_of(error: Error) -> tuple[str, ...]:
    """The lines of the user's code that an error points to, as lines for people; perhaps none.

    Of a time-out, and of a crash that has left them in the log: where the threads stood, those
    first that were in the user's code, the innermost frame first. Of an exception: the line that
    raised, as it stands in the source.
    """
    if error.kind is ErrorKind.TIMEOUT:
        return _stacks(error.traceback)
    if not error.traceback:
        return _stacks(error.log_tail)
    source = source_at(error.traceback, error.where)
    return (f"{error.where}  {source}",) if source else ()


def _stacks(text: str) -> tuple[str, ...]:
    """Frames of stacks that faulthandler wrote: the user's own, else those of the first thread."""
    found = stacks_in(text.splitlines())
    if found is None:
        return ()
    stacks = [[frame for frame in map(FRAME.match, lines) if frame] for lines in found.threads]
    own = [frame for stack in stacks for frame in stack if is_own(frame)]
    shown = own or stacks[0]
    return tuple(f"{name_of(frame)} in {frame['function']}" for frame in shown[:MOST_FRAMES])
