"""What a person wants to see of a long text: the end of a traceback, the user's own frames of it.

All functions are pure and return lines that are safe for a terminal. The text is what stands in an
`Error`: a traceback of Python, the stacks of all threads as faulthandler writes them, or the end of
what a command wrote.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from gpuspool.orchestrator.text.cells import cut_end
from gpuspool.orchestrator.text.frames import Stacks, has_own_frame, is_frame, source_at, stacks_in
from gpuspool.orchestrator.text.printable import printable

# So many lines of a traceback are shown. Where there are more, the first few lead to the user's
# code, and the end names the culprit.
MOST_LINES = 24
FIRST_LINES = 6

# A line is cut here: some libraries put a whole array into a message.
LINE_SHOWN = 300

# Of what stands before stacks so many lines are shown: what a crash is called, and what was printed
# last before it.
BEFORE_STACKS = 3

# Before the frames of an exception.
_HEADER = re.compile(r"(  \+ Exception Group )?Traceback .*\(most recent call last\):$")
# Under a frame stand its source, marks below that, and how often it is repeated.
_UNDER_A_FRAME = re.compile(r" {3}|\t|  \[Previous line repeated ")


def source_line(traceback: str, where: str) -> str:
    """The text of the line that raised, as far as a traceback has it; else "".

    where: `file:line` of that line, as `Error.where` has it.
    """
    return _safe(source_at(traceback, where))


def excerpt(text: str) -> list[str]:
    """What is shown of a traceback, of stacks or of a command's last words: at most `MOST_LINES`.

    Frames of libraries are counted where frames of the user's own code tell more. Of stacks the
    thread comes first that tells most, below what is said of all of them.
    """
    if not text.strip():
        return []
    lines = text.rstrip().split("\n")
    # The message of an exception may hold the stacks of another process that crashed.
    stacks = None if _HEADER.match(lines[0]) else stacks_in(lines)
    if stacks is not None:
        return _bounded(_stack_lines(stacks), MOST_LINES, MOST_LINES - 1)
    told = list(_traceback_lines(lines))
    n_first = FIRST_LINES if any(map(_HEADER.match, told)) else 0
    return _bounded(told, MOST_LINES, n_first)


def log_end(text: str, most: int) -> list[str]:
    """What is shown of the end of a log: so many of its last lines.

    Where a crash has left stacks there, that is the beginning of them, which says where it was.
    """
    if not text.strip():
        return []
    lines = text.rstrip().split("\n")
    stacks = stacks_in(lines)
    if stacks is not None:
        return _bounded(_stack_lines(stacks), most, most - 1)
    return list(map(_safe, list(_traceback_lines(lines))[-most:]))


def _stack_lines(stacks: Stacks) -> list[str]:
    lines = list(filter(str.strip, stacks.before))[-BEFORE_STACKS:]
    for thread in stacks.threads:
        lines += _own_frames(thread, is_thread=True)
    return lines + stacks.after


def _traceback_lines(lines: Sequence[str]) -> Iterator[str]:
    for section in _sections(lines):
        yield from _own_frames(section, is_thread=False)


def _sections(lines: Sequence[str]) -> Iterator[list[str]]:
    """The lines of a text, parted before each header."""
    section: list[str] = []
    for line in lines:
        if _HEADER.match(line) and section:
            yield section
            section = []
        section.append(line)
    if section:
        yield section


def _own_frames(section: Sequence[str], is_thread: bool) -> Iterator[str]:
    """The lines of a section, with a count in place of frames of libraries.

    Where it has no other frames, that in which it happened stays: the last one of an exception, the
    first one of a thread.
    """
    blocks = list(_blocks(section))
    places = [place for place, block in enumerate(blocks) if is_frame(block[0])]
    kept = {place for place in places if has_own_frame(blocks[place])}
    if places and not kept:
        kept = {places[0] if is_thread else places[-1]}
    n_left_out = 0
    for place, block in enumerate(blocks):
        if place in places and place not in kept:
            n_left_out += 1
            continue
        if n_left_out:
            yield _frames_left_out(n_left_out)
            n_left_out = 0
        yield from block
    if n_left_out:
        yield _frames_left_out(n_left_out)


def _blocks(section: Sequence[str]) -> Iterator[list[str]]:
    """Each frame with the lines under it; any other line by itself."""
    block: list[str] = []
    in_frame = False
    for line in section:
        if in_frame and _UNDER_A_FRAME.match(line) and not is_frame(line):
            block.append(line)
            continue
        if block:
            yield block
        block = [line]
        in_frame = is_frame(line)
    if block:
        yield block


def _frames_left_out(count: int) -> str:
    frames = "1 frame" if count == 1 else f"{count} frames"
    return f"  … {frames} of libraries"


def _bounded(lines: Sequence[str], most: int, n_first: int) -> list[str]:
    """At most so many of the lines, each safe and not too long.

    n_first: where there are more lines, so many of the first are among them; the others are the
    last ones.
    """
    n_left_out = len(lines) - most + 1
    if n_left_out <= 1:
        return list(map(_safe, lines))
    shown = list(map(_safe, lines[:n_first]))
    shown.append(f"… {n_left_out} lines left out")
    shown += map(_safe, lines[n_first + n_left_out :])
    return shown


def _safe(line: str) -> str:
    return cut_end(printable(line.expandtabs(4)), LINE_SHOWN)
