"""The exceptions behind an exception, and letting go of what they hold.

Called for everything that user code raised: `trouble`, `memory` and `results` look through the
causes, and whoever has made a record of an exception forgets its frames.
"""

from __future__ import annotations

import contextlib
import inspect
from collections import deque
from collections.abc import Iterator
from types import TracebackType

# So many exceptions are looked at: libraries wrap what the system said, and a group may hold one
# for each of its tasks. There must be an end, and what stands deeper is of no use to anybody.
MOST_CAUSES = 100
# Whose frames may be asleep rather than over. Clearing the frame of a generator that sleeps would
# end the generator.
_SLEEPERS = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR

# What the interpreter itself keeps of an exception. Its class may be the user's, and mean something
# else by these names.
_CAUSE = vars(BaseException)["__cause__"].__get__
_CONTEXT = vars(BaseException)["__context__"].__get__
_MEMBERS = vars(BaseExceptionGroup)["exceptions"].__get__
_TRACEBACK = vars(BaseException)["__traceback__"].__get__


def causes(raised: BaseException) -> Iterator[BaseException]:
    """The exception, and those behind it, the nearest first.

    Behind it are its explicit cause, the one that was being handled when it was raised, and the
    members of a group. Chains may contain themselves: each comes once.
    """
    seen: set[int] = set()
    waiting = deque([raised])
    while waiting and len(seen) < MOST_CAUSES:
        error = waiting.popleft()
        if id(error) in seen:
            continue
        seen.add(id(error))
        yield error
        for other in (_CAUSE(error), _CONTEXT(error)):
            if other is not None:
                waiting.append(other)
        waiting.extend(members(error))


def members(error: BaseException) -> tuple[BaseException, ...]:
    """The members of a group; none where it is none."""
    if not issubclass(type(error), BaseExceptionGroup):
        return ()
    found: tuple[BaseException, ...] = _MEMBERS(error)
    return found


# The frames in which an exception was raised hold what the call worked on: inputs and tensors,
# whose memory the next call needs. They would hold it for long: a frame knows its caller, and the
# caller of user code knows the exception, so that all of it is a cycle, which lives until the
# collector comes by. And whoever keeps the exception keeps all of it: a log's handler, a client of
# an error service, a debugger. So two things are done. The exception loses its traceback, which
# breaks the cycle. And the frames lose their variables, for those who keep the traceback itself;
# the lines that it names stay.
def forget_frames(raised: BaseException) -> None:
    """Let go of the frames in which an exception, and those behind it, were raised.

    To be called once a record was made of it, outside of the code that raised.
    """
    for error in causes(raised):
        _clear(_TRACEBACK(error))
        # Not by an assignment, nor by the exception's own method: a frozen dataclass refuses the
        # one, and a class of the user's may have another meaning for the other.
        BaseException.with_traceback(error, None)


def _clear(step: TracebackType | None) -> None:
    while step is not None:
        if not step.tb_frame.f_code.co_flags & _SLEEPERS:
            # It cannot be cleared while it runs: it is ours, or that of another thread.
            with contextlib.suppress(RuntimeError):
                step.tb_frame.clear()
        step = step.tb_next
