"""Finding the attempts that take too long: in a call beyond its limit, or silent.

A worker's own timer goes off first and leaves its stacks. It cannot where a call in C keeps the
interpreter's lock, or where the process hangs in the kernel. So the parent watches too, with some
seconds more. It needs no clock of the worker's: what it measures is for how long nothing has moved,
in the journal or in the heartbeat.

**Who stood still is not late.** Between two looks only some time counts, because this process may
have been suspended together with its workers (a laptop that sleeps, a container that is paused).
And a worker that somebody stopped (SIGSTOP) is not measured at all while it is stopped. If nobody
lets it go on for as long as a lease, it is killed, as anybody might have done: no task of it is
said to have taken too long.
"""

from __future__ import annotations

from enum import Enum, auto

import msgspec

from gpuspool.spool.file_system import heartbeat_s
from gpuspool.spool.records import Options
from gpuspool.spool.states import Phase
from gpuspool.spool.timeouts import is_limited, limit_s, parent_limit_s, parent_patience_s
from gpuspool.spool.view import View

# A worker with nothing in hand may be silent for so many heartbeats on top of its stall time-out,
# since beats are late on a busy machine.
SILENT_BEATS = 3

# Between two looks at most this part of the parent's patience counts. One standstill of both then
# never uses the patience up, and the worker's own timer still comes first.
MOST_COUNTED = 0.5


class Lateness(Enum):
    """What the parent finds about a worker's time."""

    # It gets on, or may take longer.
    NONE = auto()
    # Its call or the loading of its job takes too long, or it is silent with nothing in hand.
    TOO_LONG = auto()
    # It is stopped as a whole, or publishes for ever: nothing in it took long.
    STANDS_STILL = auto()


class _Sign(msgspec.Struct, frozen=True):
    """What moves while a worker gets on, and how long it may stand still; None: for ever.

    `beat` counts where no call is in hand. During a call it does not: the thread that beats goes on
    beside a call that hangs. `is_publishing`: a call is over, and its outputs are being published.
    """

    offset: int
    beat: int | None
    limit_s: float | None
    is_publishing: bool = False


class _Seen(msgspec.Struct):
    """The last sign of an attempt; for how long it has not moved while the process could run, and
    for how long that was stopped; and when it was looked at, on the monotonic clock.
    """

    sign: _Sign
    looked_at: float
    still_s: float = 0.0
    stopped_s: float = 0.0


class OverdueWatch:
    """Remembers for how long each attempt has shown no sign of getting on."""

    def __init__(self, view: View) -> None:
        self._view = view
        options = view.run.options
        beat_s = heartbeat_s(view.layout.root, options.lease_s, options.poll_s)
        self._silence_s = SILENT_BEATS * beat_s
        self._seen: dict[str, _Seen] = {}

    def is_limited(self, attempt: str) -> bool:
        """Whether the attempt was given any limit of time. Costs nothing."""
        return is_limited(self._view.options_of(attempt))

    def look(self, attempt: str, is_stopped: bool, now: float) -> Lateness:
        """What is found about a live attempt of this host, at `now` on the monotonic clock.

        is_stopped: whether its process is stopped now. Its heartbeat is read. To be asked at each
        look.
        """
        sign = self._sign_of(attempt)
        seen = self._seen.get(attempt)
        if seen is None or _is_moved(seen.sign, sign):
            self._seen[attempt] = _Seen(sign, now)
            return Lateness.NONE
        options = self._view.options_of(attempt)
        limit = sign.limit_s
        patience_s = parent_patience_s(options.lease_s if limit is None else limit)
        counted_s = min(now - seen.looked_at, MOST_COUNTED * patience_s)
        seen.looked_at = now
        if is_stopped:
            seen.stopped_s += counted_s
            most_s = options.stall_timeout_s or options.lease_s
            if seen.stopped_s <= most_s:
                return Lateness.NONE
            return Lateness.STANDS_STILL
        seen.stopped_s = 0.0
        seen.still_s += counted_s
        if limit is None or seen.still_s <= parent_limit_s(limit):
            return Lateness.NONE
        return Lateness.STANDS_STILL if sign.is_publishing else Lateness.TOO_LONG

    def _sign_of(self, attempt: str) -> _Sign:
        options = self._view.options_of(attempt)
        journal = self._view.journals.get(attempt)
        offset = 0
        if journal is not None:
            offset = journal.offset
        call = self._view.started.get(attempt)
        beat = self._view.heartbeat(attempt)
        if call is not None:
            # Publishing is not part of the call. The worker tells of it in its heartbeat, in time.
            if beat is not None and beat.state is Phase.PUBLISHING and beat.task in call.tasks:
                silence_s = self._silence_limit_s(options)
                return _Sign(offset, beat.beat, silence_s, is_publishing=True)
            call_limit_s = limit_s(options, len(call.tasks))
            return _Sign(offset, None, call_limit_s)
        if beat is None or beat.state in (Phase.LOADING, Phase.MAKING):
            return _Sign(offset, None, options.stall_timeout_s)
        return _Sign(offset, beat.beat, self._silence_limit_s(options))

    def _silence_limit_s(self, options: Options) -> float | None:
        """How long a worker with nothing in hand may be silent."""
        if options.stall_timeout_s is None:
            return None
        return options.stall_timeout_s + self._silence_s


def _is_moved(old: _Sign, new: _Sign) -> bool:
    return old.offset != new.offset or old.beat != new.beat
