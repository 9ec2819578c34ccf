"""Finding the attempts that take too long: in a call beyond its limit, or silent.

A worker's own timer goes off first and leaves its stacks. It cannot where the whole process stands
still, so the parent watches too, with some seconds more. It needs no clock of the worker's: what it
measures is for how long nothing has moved, in the journal or in the heartbeat.
"""

from __future__ import annotations

import msgspec

from gpuspool.spool.records import Options
from gpuspool.spool.states import Phase
from gpuspool.spool.timeouts import is_limited, limit_s, parent_limit_s
from gpuspool.spool.view import View

# A worker with nothing in hand beats every ten seconds. It may be silent for three beats on top of
# its stall time-out, since beats are late on a busy machine.
SILENCE_S = 30.0


class _Sign(msgspec.Struct, frozen=True):
    """What moves while a worker gets on, and how long it may stand still; None: for ever.

    `beat` counts where nothing is in hand. During a call it does not: the thread that beats goes on
    beside a call that hangs.
    """

    offset: int
    beat: int | None
    limit_s: float | None


class _Seen(msgspec.Struct, frozen=True):
    """The last sign of an attempt, and when it was first seen, on the monotonic clock."""

    sign: _Sign
    since: float


class OverdueWatch:
    """Remembers since when each attempt has shown no sign of getting on."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._seen: dict[str, _Seen] = {}

    def is_limited(self, attempt: str) -> bool:
        """Whether the attempt was given any limit of time. Costs nothing."""
        return is_limited(self._view.options_of(attempt))

    def is_overdue(self, attempt: str, now: float) -> bool:
        """Whether a live attempt of this host has stood still beyond its limit, at `now` on the
        monotonic clock. Its heartbeat is read. To be asked at each look.
        """
        sign = self._sign_of(attempt)
        seen = self._seen.get(attempt)
        if seen is None or _is_moved(seen.sign, sign):
            self._seen[attempt] = _Seen(sign, now)
            return False
        if sign.limit_s is None:
            return False
        still_s = now - seen.since
        return still_s > parent_limit_s(sign.limit_s)

    def _sign_of(self, attempt: str) -> _Sign:
        options = self._view.options_of(attempt)
        journal = self._view.journals.get(attempt)
        offset = 0
        if journal is not None:
            offset = journal.offset
        call = self._view.started.get(attempt)
        if call is not None:
            call_limit_s = limit_s(options, len(call.tasks))
            return _Sign(offset, None, call_limit_s)
        beat = self._view.heartbeat(attempt)
        if beat is None or beat.state is Phase.LOADING:
            return _Sign(offset, None, options.stall_timeout_s)
        return _Sign(offset, beat.beat, _silence_s(options))


def _is_moved(old: _Sign, new: _Sign) -> bool:
    return old.offset != new.offset or old.beat != new.beat


def _silence_s(options: Options) -> float | None:
    """How long a worker with nothing in hand may be silent."""
    if options.stall_timeout_s is None:
        return None
    return options.stall_timeout_s + SILENCE_S
