"""Finding ranks that have done nothing yet for unusually long, to say so once, with where to look.

A first import over a network, a download behind `load`, a lock of some library: whoever looks at a
bar that stands at 0 wants to know whether it is the job, and which log tells. Each kind of wait is
told once in a start, however many ranks wait, and a rank that has done something is not looked at
again: a task may take as long as it takes.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from gpuspool.orchestrator.text.words import count_of
from gpuspool.spool.states import Phase
from gpuspool.spool.view import View

# Longer than a rank usually takes to start, to load a job, or to load a task's input.
UNUSUAL_S = 60.0
# How often a rank that waits for longer is looked at again: it may have come to another wait.
LOOK_S = 30.0


class Wait(StrEnum):
    """What a rank waits for that has done nothing yet."""

    START = "starting: its process has not come to its first line"
    LOAD = "importing and making the job"
    WARMUP = "waiting for another process to warm this host up (`warmup` of the job)"
    INPUT = "waiting for the input of its first task (`load` of the job)"


class _Seen(msgspec.Struct):
    """A rank that has done nothing yet: since when, and when to look at it next."""

    since: float
    look_at: float


class Waits:
    """What the ranks of one start wait for."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}
        # The attempts that have done something.
        self._busy: set[str] = set()
        self._told: set[Wait] = set()

    def news(self, view: View, epoch: int, now: float) -> list[str]:
        """What is to be told now of the attempts of an epoch. now: on the monotonic clock.

        Reads the heartbeats of those that have waited for long. Raises OSError.
        """
        found: dict[Wait, list[str]] = {}
        for attempt in view.open_attempts:
            if attempt in self._busy or not _is_of(view, attempt, epoch):
                continue
            if _has_begun(view, attempt):
                self._busy.add(attempt)
                continue
            seen = self._seen.setdefault(attempt, _Seen(now, now + UNUSUAL_S))
            if now < seen.look_at:
                continue
            seen.look_at = now + LOOK_S
            wait = _what_for(view, attempt)
            if wait is None:
                self._busy.add(attempt)
            elif wait not in self._told:
                found.setdefault(wait, []).append(attempt)
        self._told.update(found)
        return [self._about(view, wait, attempts, now) for wait, attempts in found.items()]

    def _about(self, view: View, wait: Wait, attempts: list[str], now: float) -> str:
        first = attempts[0]
        verb = "has" if len(attempts) == 1 else "have"
        waited_s = now - self._seen[first].since
        return (
            f"{count_of(len(attempts), 'rank')} {verb} done nothing for {waited_s:.0f} s, "
            f"{wait}; see {view.layout.log(first)}"
        )


def _is_of(view: View, attempt: str, epoch: int) -> bool:
    intent = view.intents.get(attempt)
    return intent is not None and intent.epoch == epoch


def _has_begun(view: View, attempt: str) -> bool:
    """Whether a journal tells of any call of an attempt."""
    return attempt in view.finished_by or attempt in view.failed_in or attempt in view.started


def _what_for(view: View, attempt: str) -> Wait | None:
    """What an attempt waits for; None where it is at work, as its heartbeat tells."""
    if attempt not in view.journals:
        return Wait.START
    beat = view.heartbeat(attempt)
    if beat is None or beat.state in (Phase.LOADING, Phase.MAKING):
        return Wait.LOAD
    if beat.state is Phase.WAITING:
        return Wait.WARMUP
    if beat.state is Phase.RUNNING and beat.task is None and not beat.done and not beat.failed:
        return Wait.INPUT
    return None
