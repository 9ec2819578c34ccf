"""What happened to a task or a rank, in order, and how it stands: as values, and in words.

`task_story` and `rank_story` tell, this module puts it on paper. Times are those of the clocks of
the hosts that wrote them down. They are shown in the time zone of whoever reads, with the date
unless all of it is of today.
"""

from __future__ import annotations

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
    details: for people; the details are lines that say more.
    """

    at: float | None
    what: str
    text: str
    attempt: str | None = None
    details: tuple[str, ...] = ()


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


def in_order(steps: Iterable[Step]) -> list[Step]:
    """The steps by their times; one without a time stays behind its attempt's step before it."""
    last: dict[str | None, float] = {}
    keyed: list[tuple[float, Step]] = []
    for step in steps:
        at = last.get(step.attempt, 0.0) if step.at is None else step.at
        last[step.attempt] = at
        keyed.append((at, step))
    return [step for _, step in sorted(keyed, key=lambda pair: pair[0])]


def story_json(story: Story, spool: str) -> dict[str, Any]:
    """What `gpuspool explain --json` prints."""
    return {
        "schema_version": SCHEMA_VERSION,
        "spool": spool,
        **story.facts,
        "state": story.state,
        "steps": [msgspec.to_builtins(step) for step in story.steps],
        "now": story.now,
        "next": story.next or None,
    }


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
