"""Frames of Python code: in tracebacks, and in the stacks of threads that faulthandler writes.

A traceback ends with the frame that raised, and shows the source of each. A stack begins with the
innermost frame and shows no source. faulthandler writes the main thread, in which the job is
called, last; the thread that crashed, or that asked for the stacks, it calls the current one.

All functions are pure. Called by whatever shows failures, so that all verbs agree on which code is
the user's own and which thread tells most.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpuspool import spool

# A frame as a traceback has it (`…, line 3, in f`), and as a stack has it (`…, line 3 in f`).
FRAME = re.compile(r'\s*File "(?P<file>.+)", line (?P<line>\d+),? in (?P<function>.*)')

# What stands above the frames of a thread; since Python 3.14 with the thread's name.
_THREAD = re.compile(r"(Current thread|Thread) 0x\w+ .*\(most recent call first\):$")
_CURRENT = "Current thread "
# What faulthandler writes before the stacks of a process that crashes.
_FATAL = "Fatal Python error: "
# What it writes behind them: a single line, which is long and says nothing of the crash.
_EXTENSIONS = "Extension modules: "

# In a checkout our packages lie beside each other, and no folder is named after all of them.
_CHECKOUT = Path(spool.__file__).resolve().parent.parent
# Whose code the user did not write: installed packages, the standard library (in lib64 where Red
# Hat and SUSE put it), what has no file, and ours.
_LIBRARY = re.compile(
    r"/(site|dist)-packages/|/lib(64)?/(python|pypy)\d[^/]*/|^<(frozen |__array_function__ )"
    rf"|(/gpuspool|^{re.escape(str(_CHECKOUT))})/(worker|spool|orchestrator)/"
)


def is_frame(line: str) -> bool:
    """Whether a line of a traceback, or of stacks, says where a frame stands."""
    return FRAME.match(line) is not None


def has_own_frame(lines: Iterable[str]) -> bool:
    """Whether any of the lines is a frame of code that the user wrote."""
    return any(is_own(frame) for frame in map(FRAME.match, lines) if frame is not None)


def is_own(frame: re.Match[str]) -> bool:
    """Whether the user wrote the code of a frame."""
    return _LIBRARY.search(frame["file"]) is None


def name_of(frame: re.Match[str]) -> str:
    """Where a frame stands, as `Error.where` has it: `job.py:12`."""
    return f"{frame['file'].rpartition('/')[2]}:{frame['line']}"


def source_at(traceback: str, where: str) -> str:
    """The text of the innermost line of source at a place, as far as a traceback has it; else "".

    where: `file:line`, as `Error.where` has it.
    """
    found = ""
    for line, after in itertools.pairwise(traceback.split("\n")):
        frame = FRAME.match(line)
        if frame is not None and where == name_of(frame):
            # A frame without its source is followed by the next frame, or by the error.
            found = after.strip() if after.startswith(("    ", "\t")) else ""
    return found


@dataclass(frozen=True)
class Stacks:
    """A text in which faulthandler has written where threads stood.

    before: the lines before that. threads: the lines of each thread, its header first; the thread
    that tells most comes first. after: what was written behind the stacks.
    """

    before: list[str]
    threads: list[list[str]]
    after: list[str]


def stacks_in(lines: Sequence[str]) -> Stacks | None:
    """The stacks in a text: those of a crash if it tells of one, else all; None if it has none.

    The thread that crashed comes first, then the main thread. Threads without a frame of the user's
    own are left out where another one has some, unless it is the one that crashed.
    """
    fatal = [at for at, line in enumerate(lines) if line.startswith(_FATAL)]
    heads = [at for at, line in enumerate(lines) if _THREAD.match(line)]
    if fatal and any(at > fatal[-1] for at in heads):
        heads = [at for at in heads if at > fatal[-1]]
    else:
        fatal = []
    if not heads:
        return None
    threads, after = _part(lines[heads[0] :])
    # The main thread stands last.
    threads.reverse()
    crashed = [one for one in threads if fatal and one[0].startswith(_CURRENT)]
    others = [one for one in threads if one not in crashed]
    if any(map(has_own_frame, threads)):
        others = list(filter(has_own_frame, others))
    return Stacks(list(lines[: heads[0]]), [*crashed, *others], after)


def _part(lines: Sequence[str]) -> tuple[list[list[str]], list[str]]:
    """(the lines of each thread, other lines) of a text that begins with the header of a thread."""
    threads: list[list[str]] = []
    after: list[str] = []
    is_in_thread = False
    for line in lines:
        if _THREAD.match(line):
            threads.append([line])
            is_in_thread = True
        elif is_in_thread and line.startswith("  "):
            threads[-1].append(line)
        else:
            is_in_thread = False
            if line.strip() and not line.startswith(_EXTENSIONS):
                after.append(line)
    return threads, after
