"""What happened to a task or a rank, in order, and how it stands: as values, and in words.

`task_story` and `rank_story` tell, this module puts it on paper. Times are those of the clocks of
the hosts that wrote them down. They are shown in the time zone of whoever reads, with the date
unless all of it is of today.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterable
from typing import Any

import msgspec

from gpuspool.orchestrator.text.printable import one_line

# Of the object that `gpuspool explain --json` prints. A field that is added leaves it as it is.
SCHEMA_VERSION = 1

# Of a longer story people are shown so many of the first steps and of the last ones. A task that is
# called once in each start of a run of days may have thousands.
SHOWN_FIRST = 20
SHOWN_LAST = 30

_TIME = "%H:%M:%S"
_DATE = "%Y-%m-%d %H:%M:%S"


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened.

    at: in Unix seconds; None where that was not written down. what: one word for programs. text,
    details: for people; the details are lines that say more. makes: names of what there is by this
    step, and not before. needs: what it came after. Nobody is told these two.
    """

    at: float | None
    what: str
    text: str
    attempt: str | None = None
    details: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


class Story(msgspec.Struct, kw_only=True):
    """What happened to a task or a rank, and how it stands.

    name: what it is about. state: in a word or two. facts: what programs are told besides. steps:
    in order. now: how it stands. next: what happens next, or what to type; "" where nothing does.
    """

    name: str
    state: str
    facts: dict[str, Any]
    steps: list[Step]
    now: str
    next: str = ""


# Clocks of hosts differ, and are set back. So what must have come before something does, whatever
# the times say, and only what is known of neither way goes by its time.
def in_order(steps: Iterable[Step]) -> list[Step]:
    """The steps by their times, but none before what it needs, nor before its attempt's step before
    it. One without a time stays behind that.
    """
    told = list(steps)
    followers: list[list[int]] = [[] for _ in told]
    n_awaited = [0] * len(told)
    times: list[float] = []
    makers: dict[str, list[int]] = {}
    for at, step in enumerate(told):
        for token in step.makes:
            makers.setdefault(token, []).append(at)
    newest: dict[str | None, int] = {}
    for at, step in enumerate(told):
        before = newest.get(step.attempt)
        newest[step.attempt] = at
        needed = {maker for token in step.needs for maker in makers.get(token, ())}
        if before is not None and step.attempt is not None:
            needed.add(before)
        for other in needed - {at}:
            followers[other].append(at)
            n_awaited[at] += 1
        known = 0.0 if before is None else times[before]
        times.append(known if step.at is None else step.at)
    ready = [(times[at], at) for at in range(len(told)) if not n_awaited[at]]
    heapq.heapify(ready)
    found: list[Step] = []
    left = dict.fromkeys(range(len(told)))
    while left:
        # Damaged files may say that two steps need each other.
        _, at = heapq.heappop(ready) if ready else (0.0, next(iter(left)))
        if at not in left:
            continue
        del left[at]
        found.append(told[at])
        for follower in followers[at]:
            n_awaited[follower] -= 1
            if not n_awaited[follower]:
                heapq.heappush(ready, (times[follower], follower))
    return found


def story_json(story: Story, spool: str) -> dict[str, Any]:
    """What `gpuspool explain --json` prints."""
    return {
        "schema_version": SCHEMA_VERSION,
        "spool": spool,
        **story.facts,
        "state": story.state,
        "steps": [_step_json(step) for step in story.steps],
        "now": story.now,
        "next": story.next or None,
    }


def _step_json(step: Step) -> dict[str, Any]:
    told: dict[str, Any] = msgspec.to_builtins(step)
    del told["makes"], told["needs"]
    return told


def story_text(story: Story) -> str:
    """What `gpuspool explain` prints for people. Each line is safe for a terminal."""
    form = _form_of(story.steps)
    rows = [(_clock(step.at, form), step) for step in story.steps]
    width = max([len("now"), *(len(label) for label, _ in rows)])
    lines = [f"{one_line(story.name)}  {story.state}"]
    for label, step in _shown(rows):
        lines.append(_line(label, width, step.text))
        lines += [_line("", width, detail) for detail in step.details]
    lines.append(_line("now", width, story.now))
    if story.next:
        lines.append(_line("next", width, story.next))
    return "\n".join(lines)


def _shown(rows: list[tuple[str, Step]]) -> list[tuple[str, Step]]:
    n_more = len(rows) - SHOWN_FIRST - SHOWN_LAST
    if n_more <= 1:
        return rows
    gap = Step(at=None, what="", text=f"… and {n_more} more steps; `--json` has them")
    return [*rows[:SHOWN_FIRST], ("", gap), *rows[-SHOWN_LAST:]]


def _line(label: str, width: int, text: str) -> str:
    return f"  {label:{width}} {one_line(text)}".rstrip()


def _form_of(steps: list[Step]) -> str:
    """How times are shown: with the date unless all of them are of today."""
    today = time.localtime()[:3]
    times = [step.at for step in steps if step.at is not None]
    return _TIME if all(time.localtime(at)[:3] == today for at in times) else _DATE


def _clock(at: float | None, form: str) -> str:
    return "" if at is None else time.strftime(form, time.localtime(at))


def clock(at: float) -> str:
    """A moment in local time, with the date unless it is today."""
    form = _form_of([Step(at=at, what="", text="")])
    return _clock(at, form)
