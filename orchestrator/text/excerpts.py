"""What a person wants to see of a long text: the end of a traceback, the user's own frames of it.

All functions are pure and return lines that are safe for a terminal. The text is what stands in an
`Error`: a traceback of Python, the stacks of all threads as faulthandler writes them, or the end of
what a command wrote.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence

from gpuspool.orchestrator.text.cells import cut_end
from gpuspool.orchestrator.text.printable import printable

# So many lines of a traceback are shown. Where there are more, the first few lead to the user's
# code, and the end names the culprit.
MOST_LINES = 24
FIRST_LINES = 6

# A line is cut here: some libraries put a whole array into a message.
LINE_SHOWN = 300

# A frame as a traceback has it (`…, line 3, in f`), and as the stacks of a time-out have it.
_FRAME = re.compile(r'\s*File "(.+)", line (\d+),? in ')
# Before the frames of an exception, and of a thread.
_HEADER = re.compile(r"(Traceback|Thread 0x\w+|Current thread 0x\w+) .*\(most recent call .*\):$")
_OF_A_THREAD = "(most recent call first):"
# Under a frame stand its source, marks below that, and how often it is repeated.
_UNDER_A_FRAME = re.compile(r" {3}|\t|  \[Previous line repeated ")
# Whose code the user did not write: installed packages, the standard library, and ours.
_LIBRARY = re.compile(
    r"/(site|dist)-packages/|/lib/python3[.\d]*t?/|^<frozen |/gpuspool/(worker|spool|orchestrator)/"
)


def is_frame(line: str) -> bool:
    """Whether a line of a traceback, or of stacks, says where a frame stands."""
    return _FRAME.match(line) is not None


def source_line(traceback: str, where: str) -> str:
    """The text of the line that raised, as far as a traceback has it; else "".

    where: `file:line` of that line, as `Error.where` has it.
    """
    lines = traceback.split("\n")
    found = ""
    for line, after in itertools.pairwise(lines):
        frame = _FRAME.match(line)
        if frame is not None and where == f"{frame[1].rpartition('/')[2]}:{frame[2]}":
            found = after.strip() if _UNDER_A_FRAME.match(after) else ""
    return _safe(found)


def excerpt(text: str) -> list[str]:
    """What is shown of a traceback, of stacks or of a command's last words: at most `MOST_LINES`.

    Frames of libraries are counted where frames of the user's own code tell more. Threads in which
    there is no such frame are left out where another one has some. faulthandler writes the main
    thread, in which the job is called, last; here it comes first.
    """
    if not text.strip():
        return []
    sections = list(_sections(text.rstrip().split("\n")))
    has_own = any(map(_has_own_frame, sections))
    if any(section[0].endswith(_OF_A_THREAD) for section in sections):
        sections.reverse()
    lines: list[str] = []
    for section in sections:
        is_thread = section[0].endswith(_OF_A_THREAD)
        if has_own and is_thread and not _has_own_frame(section):
            continue
        lines += _own_frames(section, is_thread)
    return _bounded(lines, is_stacks=any(line.endswith(_OF_A_THREAD) for line in lines))


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


def _has_own_frame(section: Sequence[str]) -> bool:
    frames = filter(None, map(_FRAME.match, section))
    return any(not _LIBRARY.search(frame[1]) for frame in frames)


def _own_frames(section: Sequence[str], is_thread: bool) -> Iterator[str]:
    """The lines of a section, with a count in place of frames of libraries.

    Where it has no other frames, that in which it happened stays: the last one of an exception, the
    first one of a thread.
    """
    blocks = list(_blocks(section))
    places = [place for place, block in enumerate(blocks) if _FRAME.match(block[0])]
    kept = {place for place in places if _has_own_frame(blocks[place])}
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
        if in_frame and _UNDER_A_FRAME.match(line) and not _FRAME.match(line):
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


def _bounded(lines: Sequence[str], is_stacks: bool) -> list[str]:
    """At most `MOST_LINES` of the lines, each safe and not too long.

    Of a traceback both ends are kept, of stacks the beginning, of other text the end.
    """
    n_left_out = len(lines) - MOST_LINES + 1
    shown = list(map(_safe, lines if n_left_out <= 1 else []))
    if n_left_out > 1:
        n_first = FIRST_LINES if any(map(_HEADER.match, lines)) else 0
        if is_stacks:
            n_first = MOST_LINES - 1
        shown = list(map(_safe, lines[:n_first]))
        shown.append(f"… {n_left_out} lines left out")
        shown += map(_safe, lines[n_first + n_left_out :])
    return shown


def _safe(line: str) -> str:
    return cut_end(printable(line.expandtabs(4)), LINE_SHOWN)
