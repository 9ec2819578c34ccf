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
from gpuspool.orchestrator.text.cells import cut_end, cut_name, width
from gpuspool.orchestrator.text.excerpts import excerpt, is_frame, source_line
from gpuspool.orchestrator.text.groups import MESSAGE_SHOWN
from gpuspool.orchestrator.text.printable import one_line, shell_word
from gpuspool.orchestrator.text.words import count_of, quoted_path

# The width of the narrowest terminal that people use.
COLUMNS = 80

# So many groups are shown with their tasks and a traceback, and of each other one line. Nobody
# reads more at once, and those who fix the first ones will look again.
MOST_WITH_TASKS = 20

# What a task was given has at least so many cells where its key is long.
INPUT_CELLS = 24

# So many of the last lines of a log are shown where there is no traceback.
LOG_LINES = 8

# A key that is longer is not typed: the number of its task means the same.
LONGEST_TYPED = 40

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
        yield from _group_lines(group, found.inputs, spool)
        yield ""
    others = found.groups[MOST_WITH_TASKS:]
    yield from map(_headline, others)
    if found.n_left_out:
        tasks = count_of(found.n_left_out, "task")
        yield f"{tasks} in yet other groups; `--json` lists all"
    if others:
        yield ""
    yield from _next_lines(found, spool)


def explain_command(spool: str, task: int, key: str | None = None) -> str:
    """The command that tells the story of one task, to be copied into a shell.

    key: None where it is not known.
    """
    return f"gpuspool explain {quoted_path(spool)} {typed_task(task, key)}"


def _next_lines(found: Groups, spool: str) -> Iterator[str]:
    """What may be typed about all of it."""
    first = found.groups[0].shown[0].task
    word = typed_task(first, _key_of(found.inputs.get(first)))
    printed = f"gpuspool logs {quoted_path(spool)} --task {word}"
    again = f"gpuspool retry {quoted_path(spool)}"
    them = "it" if found.n_tasks == 1 else "all of them"
    columns = max(map(len, (printed, again)))
    yield f"next: {printed:{columns}}  # what it printed"
    yield f"      {again:{columns}}  # {them} again"


def typed_task(task: int, key: str | None) -> str:
    """How a task is named in a shell: by its key where that is short and plain.

    What could be taken for an option, for the number of a task or for a rank is none.
    """
    if key is None or one_line(key) != key or width(key) > LONGEST_TYPED:
        return f"'#{task}'"
    if key.isdigit() or key.startswith(("-", "#", "rank")):
        return f"'#{task}'"
    return shell_word(key)


def _headline(group: Group) -> str:
    error = group.first
    text = f"{count_of(group.count, 'task')}: {error.kind}, {error.type}"
    if error.where:
        text += f" at {error.where}"
    return one_line(text)


def _group_lines(group: Group, inputs: Mapping[int, TaskInput], spool: str) -> Iterator[str]:
    yield _headline(group)
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
        told = excerpt(error.log_tail)[-LOG_LINES:]
        yield f"  the end of the log of {one_line(error.attempts[-1])}:"
    yield from (f"  | {line}" for line in told)
    for shown in group.shown:
        yield _task_line(shown.task, inputs.get(shown.task))
        if not label:
            yield cut_end(f"      {one_line(shown.message)}", COLUMNS)
    n_more = group.count - len(group.shown)
    if n_more > 0:
        yield f"    … and {n_more} more; `--json` lists all"
    first = group.shown[0].task
    yield f"  next: {explain_command(spool, first, _key_of(inputs.get(first)))}"


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
