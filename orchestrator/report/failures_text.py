"""What `gpuspool failed` prints for people: each kind of failure once, and what to type next.

Each line is safe for a terminal, whatever keys, messages and payloads hold. Lines of a traceback
begin with a bar, so that none of them looks like one of ours. No line is wider than `COLUMNS` but
those of a traceback, a message that stands nowhere else, and commands, which must be whole. What is
cut to fit can be had otherwise: a task by its number, a message and a payload by `--json`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping

import msgspec

from gpuspool.orchestrator.report.failures import Group, Groups, ShownTask
from gpuspool.orchestrator.report.keys import TaskInput
from gpuspool.orchestrator.report.naming import explain_command
from gpuspool.orchestrator.text.cells import cut_end, cut_name, width
from gpuspool.orchestrator.text.excerpts import excerpt, log_end, source_line
from gpuspool.orchestrator.text.frames import is_frame
from gpuspool.orchestrator.text.groups import MESSAGE_SHOWN
from gpuspool.orchestrator.text.printable import one_line
from gpuspool.orchestrator.text.words import quoted_path

# The width of the narrowest terminal that people use.
COLUMNS = 80

# So many groups are shown with their tasks and a traceback, and of each other one line. Nobody
# reads more at once, and those who fix the first ones will look again.
MOST_WITH_TASKS = 20

# What a task was given has at least so many cells where its key is long.
INPUT_CELLS = 24

# So many lines of the end of a log are shown where there is no traceback.
LOG_LINES = 8

# So much of a payload is looked at in order to show the beginning of it.
PAYLOAD_BYTES = 1024

# What differs between messages that say the same of different tasks: numbers and paths, in the
# first so many characters.
_VARYING = re.compile(r"0x[0-9a-fA-F]+|[\w.+~-]*/[^\s'\":,;)\]}]*|\d[\d.]*")
COMPARED = 500


def failures_text(found: Groups, spool: str) -> Iterator[str]:
    """The lines that tell of all groups, without their newlines; none if nothing failed.

    spool: as it was typed, for the commands.
    """
    if not found.groups:
        return
    for group in found.groups[:MOST_WITH_TASKS]:
        yield from _group_lines(group, found, spool)
        yield ""
    others = found.groups[MOST_WITH_TASKS:]
    yield from map(_headline, others)
    if found.n_left_out:
        yield f"{_tasks(found.n_left_out)} in yet other groups; `--json` lists all"
    if others:
        yield ""
    yield from _next_lines(found, spool)


def _next_lines(found: Groups, spool: str) -> Iterator[str]:
    """What may be typed about all of it."""
    them = "it" if found.n_tasks == 1 else "all of them"
    yield f"next: gpuspool retry {quoted_path(spool)}  # {them} again"


def _tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{count:,} tasks"


def _headline(group: Group) -> str:
    error = group.first
    text = f"{_tasks(group.count)}: {error.kind}, {error.type}"
    if error.where:
        text += f" at {error.where}"
    return one_line(text)


def _group_lines(group: Group, found: Groups, spool: str) -> Iterator[str]:
    yield _headline(group)
    inputs = found.inputs
    error = group.first
    told = excerpt(error.traceback)
    source = source_line(error.traceback, error.where)
    # A traceback with a single frame shows little else.
    if source and sum(map(is_frame, told)) != 1:
        yield cut_end(f"      {source}", COLUMNS)
    label = _label_of_message(group, inputs)
    if label and error.message:
        message = f"  {label}: {one_line(error.message)}"
        # What a traceback shows as well need not be whole here.
        is_shown = any(error.message in line for line in told)
        yield cut_end(message, COLUMNS if is_shown else MESSAGE_SHOWN)
    if not told and error.log_tail:
        told = log_end(error.log_tail, LOG_LINES)
        yield f"  the end of the log of {one_line(error.told_attempt)}:"
    yield from (f"  | {line}" for line in told)
    for shown in group.shown:
        yield _task_line(shown.task, inputs.get(shown.task))
        if not label:
            yield cut_end(f"      {one_line(shown.message)}", COLUMNS)
    n_more = group.count - len(group.shown)
    if n_more > 0:
        yield f"    … and {n_more:,} more; `--json` lists all"
    yield f"  next: {explain_command(spool, found.names[group.shown[0].task])}"


def _label_of_message(group: Group, inputs: Mapping[int, TaskInput]) -> str:
    """What stands before the message of the first task; "" where each task has one of its own.

    Those that differ by no more than a number, a path or the key of their task say the same.
    """
    if group.has_one_message:
        return "message"
    if len({_sense(shown, inputs.get(shown.task)) for shown in group.shown}) == 1:
        return "such as"
    return ""


def _sense(shown: ShownTask, known: TaskInput | None) -> str:
    """A message without what differs from task to task."""
    message = shown.message[:COMPARED]
    key = _key_of(known)
    if key:
        message = message.replace(key, "#")
    return _VARYING.sub("#", message)


def _key_of(known: TaskInput | None) -> str | None:
    return None if known is None else known.key


def _task_line(task: int, known: TaskInput | None) -> str:
    """A task on one line: its key, its number, and what it was given."""
    number = f"  #{task}"
    if known is None:
        return f"    (no readable line has its key){number}"
    key = one_line(known.key)
    given = _given(known)
    if given == key:
        given = ""
    room = COLUMNS - len(f"    {number}  ")
    if width(key) + width(given) > room:
        if given.endswith(f"/{key}"):
            given = f"in {given.removesuffix(key)}"
        given = cut_name(given, max(INPUT_CELLS, room - width(key)))
        key = cut_name(key, room - width(given))
    return f"    {key}{number}  {given}".rstrip()


def _given(known: TaskInput) -> str:
    """What a task was given: the path of a file, as seen from here, a text, or JSON."""
    data = bytes(known.payload)
    if data == b"null":
        return ""
    if len(data) > PAYLOAD_BYTES:
        return one_line(data[:PAYLOAD_BYTES].decode(errors="replace"))
    try:
        payload = msgspec.json.decode(data)
    except msgspec.DecodeError:
        payload = None
    match payload:
        case str():
            return one_line(payload)
        case {"path": str() as path, **rest} if not rest:
            return one_line(_from_here(path))
        case _:
            return one_line(data.decode(errors="replace"))


def _from_here(path: str) -> str:
    """A path, relative where it lies below the current folder."""
    try:
        here = os.path.join(os.getcwd(), "")
    except OSError:
        return path
    return path.removeprefix(here)
