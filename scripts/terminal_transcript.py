"""Writes parts of two pages: how `status --watch` and `run` look in a terminal.

    python scripts/terminal_transcript.py docs/status.md docs/status-states.md

Everything is drawn by the real command in a real terminal, tmux, at two sizes, and what the window
shows is written between two marks of each page. The runs are spools made by hand
(`tests/stages.py`) of 2, 8 and 64 ranks in every state, and one real run. The second page gets all
of these states, the first one the real run and a few states, and beside it lies `status.svg`, one
of them as a picture with its colours. It takes a minute or two.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
# The tests are a folder of the checkout, and no installed package.
sys.path.append(str(ROOT / "tests"))

from helpers import GPUSPOOL, JOBS, Box, wait_until  # noqa: E402
from stages import STAGES, stage  # noqa: E402

START, END = "<!-- transcript -->", "<!-- end of transcript -->"
# Of one table: the state of the run, its ranks, the size of the window.
Case = tuple[str, int, tuple[int, int]]
SIZES = ((80, 24), (200, 50))
RANKS = (2, 8, 64)
# What the first page shows: so many ranks in this state, in the smaller window.
FEW = (
    *(("running", 2), ("running", 64), ("trouble", 8)),
    *(("drained", 2), ("killed", 2), ("finished", 2)),
)

# What is said of each state of a run.
PROSE = {
    "running": "All is well.",
    "trouble": "The process of rank 1 is gone, and tasks of rank 0 have failed.",
    "drained": "Somebody pressed Ctrl-C, and the workers finished what they had in hand.",
    "killed": "The whole run was killed, and nothing of it lives.",
    "finished": "Every task is complete.",
}


def why_not() -> str:
    """Why nothing can be drawn here, "" if it can."""
    return "" if shutil.which("tmux") else "tmux is not installed; scripts/test_packages.sh does it"


# A server of tmux takes a moment to end. Each window has one of its own.
_numbers = itertools.count()


class Window:
    """A window of tmux, in which a shell waits for a command."""

    def __init__(self, box: Box, columns: int, lines: int) -> None:
        self._socket = f"gpuspool-{os.getpid()}-{next(_numbers)}"
        path = f"PATH={Path(GPUSPOOL).parent}:{os.environ['PATH']}"
        self._run(
            *("-f", "/dev/null", "new-session", "-d", "-c", str(box.home)),
            *("-x", str(columns), "-y", str(lines)),
            *("env", "-u", "NO_COLOR", path, "PS1=$ ", "bash", "--norc", "--noprofile"),
        )
        # The line of status takes one of the window's.
        self._run("set", "-g", "status", "off")
        self._run("resize-window", "-x", str(columns), "-y", str(lines))
        wait_until(lambda: "$" in self.text())

    def _run(self, *words: str) -> str:
        done = subprocess.run(
            ["tmux", "-L", self._socket, *words],
            check=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        return done.stdout

    def type(self, command: str) -> None:
        self._run("send-keys", "-l", command)
        self._run("send-keys", "Enter")

    def press(self, key: str) -> None:
        self._run("send-keys", key)

    def text(self, *, coloured: bool = False) -> str:
        """What it shows, without the empty lines at its end; coloured: with escape sequences."""
        return self._run("capture-pane", "-p", *(["-e"] if coloured else [])).rstrip("\n")

    def scrolled_off(self) -> str:
        """What is above the window."""
        return self._run("capture-pane", "-p", "-S", "-", "-E", "-1")

    def close(self) -> None:
        self._run("kill-server")


@contextlib.contextmanager
def window(box: Box, columns: int, lines: int) -> Iterator[Window]:
    one = Window(box, columns, lines)
    try:
        yield one
    finally:
        one.close()


def drawn(
    box: Box, ranks: int, how: str, columns: int, lines: int, *, coloured: bool = False
) -> str:
    """What a window shows in which `status --watch` looks at such a run."""
    spool = f"spool-{how}-{ranks}"
    if not (box / spool).exists():
        stage(box / spool, ranks, how)
    with window(box, columns, lines) as one:
        one.type(f"clear; gpuspool status --watch {spool}")
        wait_until(lambda: re.search(r"^ *rank ", one.text(), re.MULTILINE))
        text = one.text(coloured=coloured)
        if how in ("running", "trouble"):
            one.press("C-c")
        wait_until(lambda: one.text().endswith("$"))
    # The prompt of a watch that has ended is none of the table.
    return text.removesuffix("\n$")


# A picture that asks nobody for a font. What rich fills in is its own.
SVG = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" role="img">
<title>What gpuspool status --watch shows</title>
<style>
.{unique_id}-matrix {{ font: {char_height}px monospace; white-space: pre; }}
{styles}
</style>
<defs>{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})">
{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g>
</g>
</svg>
"""


def picture(text: str, columns: int) -> str:
    """What a window shows, with its escape sequences, as an SVG."""
    console = Console(record=True, width=columns, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(text), no_wrap=True)
    return console.export_svg(title="gpuspool status --watch", code_format=SVG, unique_id="status")


JOB = """\
import os, signal, sys
sys.path.append({jobs!r})
import gates


def embed(task, ctx):
    if task.payload == "die" and not os.path.exists("died"):
        open("died", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return gates.gated(task, ctx)
"""


def real_run(box: Box, columns: int, lines: int) -> str:
    """What a window shows in the middle of a run of which a worker was killed."""
    box.tasks([*range(20), "die", *["wait"] * 3])
    box.write("embed.py", JOB.format(jobs=str(JOBS)))
    gate = box / "gate"
    with window(box, columns, lines) as one:
        command = "gpuspool run embed.py:embed --tasks tasks.jsonl --ranks 4"
        one.type(f"clear; {command} --arg gate={gate}")
        wait_until(lambda: all(word in one.text() for word in ("21 of 24", "rank ", "ended: ")))
        text = one.text()
        gate.touch()
        wait_until(lambda: "tasks complete, in" in one.text())
    return f"$ {command}\n{text}"


def tables_of(box: Box) -> dict[Case, str]:
    """What a window shows of each state, with each number of ranks, at each size."""
    cases = itertools.product(STAGES, SIZES, RANKS)
    return {(how, ranks, size): drawn(box, ranks, how, *size) for how, size, ranks in cases}


def few_of(tables: dict[Case, str]) -> dict[Case, str]:
    """Those of them that the first page shows."""
    return {(how, ranks, SIZES[0]): tables[how, ranks, SIZES[0]] for how, ranks in FEW}


def sections(tables: dict[Case, str], mark: str) -> str:
    """Tables as Markdown, with a heading for each state. mark: what a heading begins with."""
    told: list[str] = []
    for how in STAGES:
        told.append(f"{mark} {how.capitalize()}\n\n{PROSE[how]}\n\n")
        for (stage_, ranks, (columns, lines)), text in tables.items():
            if stage_ == how:
                told.append(f"{ranks} ranks, {columns}×{lines}:\n\n```text\n{text}\n```\n\n")
    return "".join(told)


def put(page: Path, text: str) -> None:
    """Write a text between the two marks of a page. Raises ValueError where it has none."""
    before, start, rest = page.read_text().partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"{page} has no {START} and {END}")
    page.write_text(f"{before}{START}\n{text}{END}{after}")


def main() -> int:
    """Draw everything and write it into the two pages that are given."""
    why = why_not()
    if why:
        print(why, file=sys.stderr)
        return 1
    few, every = map(Path, sys.argv[1:])
    with tempfile.TemporaryDirectory(prefix="terminal-") as folder:
        box = Box(Path(folder).resolve() / "data")
        box.home.mkdir()
        told = (
            "### A run whose worker was killed\n\nWhat happens is told above the table.\n\n"
            f"```console\n{real_run(box, *SIZES[0])}\n```\n\n"
        )
        tables = tables_of(box)
        in_colours = drawn(box, 8, "trouble", *SIZES[0], coloured=True)
    few.with_name("status.svg").write_text(picture(in_colours, SIZES[0][0]))
    put(few, told + sections(few_of(tables), "###"))
    put(every, sections(tables, "##"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
