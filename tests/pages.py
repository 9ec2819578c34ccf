"""What a page of the docs has its reader type, as the tests type it.

A page is read from top to bottom. Its console blocks (what follows `$`), and its Python blocks,
become *steps*, which bash runs in order in one empty folder. Comments of HTML, which no reader
sees, say what else there is to do:

`<!-- file: NAME -->`
    The Python block below is written to this file, and not run by itself.
`<!-- run` COMMANDS `-->`
    Run this too, in this place: data, or a stand-in for what a reader would have.
`<!-- not run: WHY -->`
    The block below is not run.
`<!-- not run from here on: WHY -->`, `<!-- run from here on -->`
    Nor are those up to the second comment, or the end of the page.
`<!-- ends with: STATUS, STATUS, … -->`
    The commands of the block below end with these statuses. Without it all end with 0.
`<!-- not compared: WHY -->`
    The block below is run, and may print something else or end with another status.

Where a page shows what a command printed, all of these lines have to come, in this order; numbers
and names that change from run to run may differ, and `…` stands for anything.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

MARK = re.compile(
    r"<!-- (?P<what>file|not run from here on|run from here on|not run|not compared|ends with|run)"
    r"\b:?"
    r"(?P<rest>.*?)-->\n",
    re.DOTALL,
)
BLOCK = re.compile(r"```(?P<language>[^\n`]*)\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE)
# Who reads a page that says why, reads a sentence.
FEWEST_LETTERS = 12


@dataclass
class Step:
    """One command, and what the page shows of what it prints.

    line: where it stands in the page, from 1. is_compared: whether what is shown must come, and the
    status be this one.
    """

    line: int
    command: str
    shown: list[str] = field(default_factory=list)
    is_compared: bool = True
    status: int = 0


@dataclass
class Skipped:
    """A block that is not run."""

    line: int
    why: str


def read_page(text: str) -> tuple[list[Step], list[Skipped]]:
    """What is to be typed, and what is not; ValueError where a comment makes no sense."""
    steps: list[Step] = []
    skipped: list[Skipped] = []
    here = there = ""
    name, is_compared, statuses = "", True, ""
    for line, what, rest in _pieces(text):
        if what.startswith("not ") and len(rest) < FEWEST_LETTERS:
            raise ValueError(f"line {line}: {what}, and why?")
        match what:
            case "file":
                name = rest
            case "run":
                steps.append(Step(line, rest))
            case "not run":
                here = rest
            case "not run from here on":
                there = rest
            case "run from here on":
                there = ""
            case "not compared":
                is_compared = False
            case "ends with":
                statuses = rest
            case _ if here or there:
                skipped.append(Skipped(line, here or there))
                here = ""
            case "console":
                typed = _typed(line, rest, is_compared)
                if statuses:
                    for step, status in zip(typed, statuses.split(","), strict=True):
                        step.status = int(status)
                steps += typed
                is_compared, statuses = True, ""
            case "python" if name:
                steps.append(Step(line, f"cat > {shlex.quote(name)} <<'EOF-EOF'\n{rest}EOF-EOF"))
                name = ""
            case "python":
                steps.append(Step(line, f"python - <<'EOF-EOF'\n{rest}EOF-EOF"))
    return steps, skipped


def _pieces(text: str) -> Iterator[tuple[int, str, str]]:
    """Each comment of ours and each block to type: its line, what it is, what it holds."""
    at = 0
    while True:
        found = [match for match in (MARK.search(text, at), BLOCK.search(text, at)) if match]
        if not found:
            return
        first = min(found, key=lambda match: match.start())
        at = first.end()
        line = text.count("\n", 0, first.start()) + 1
        if first.re is MARK:
            yield line, first["what"], first["rest"].strip()
        elif first["language"] in ("console", "python"):
            yield line, first["language"], first["body"]


def _typed(line: int, body: str, is_compared: bool) -> list[Step]:
    """The commands of a console block. One goes on after a backslash, and up to its `END`."""
    steps: list[Step] = []
    end = ""
    goes_on = False
    for number, text in enumerate(body.splitlines(), line + 1):
        if goes_on or end:
            steps[-1].command += f"\n{text}"
            end = "" if text == end else end
        elif text.startswith("$ "):
            steps.append(Step(number, text[2:], [], is_compared))
        elif not steps:
            raise ValueError(f"line {number}: a block begins with a command")
        else:
            steps[-1].shown.append(text)
            continue
        goes_on = text.endswith("\\") and not end
        here = re.search(r"<<'?(\w+)'?", text)
        end = end or (here[1] if here and not goes_on else "")
        if end and text == end:
            end = ""
    return steps


def script_for(steps: list[Step], folder: Path) -> str:
    """Bash that runs all steps, each with its own output and status, as files of a folder."""
    lines = []
    for number, step in enumerate(steps):
        (folder / f"{number}.sh").write_text(f"{step.command}\n")
        stem = shlex.quote(str(folder / str(number)))
        lines.append(f". {stem}.sh > {stem}.out 2>&1 < /dev/null; echo $? > {stem}.status")
    return "\n".join(lines)


def missing(shown: list[str], printed: str) -> str | None:
    """The first line that is shown and was not printed, or not behind those before it."""
    rest = iter([_plain(line) for line in printed.splitlines()])
    for line in shown:
        pattern = ".*".join(map(re.escape, _plain(line).split("…")))
        if line.strip() and not any(re.fullmatch(pattern, other) for other in rest):
            return line
    return None


def _plain(line: str) -> str:
    """A line without what changes from run to run: numbers, times, hashes, widths, folders."""
    line = re.sub(r"(?<![\w.-])/[\w/.-]+/", "", line)
    line = re.sub(r"\b(?=[0-9]*[a-f])(?=[a-f]*[0-9])[0-9a-f]{12,}\b", "#", line)
    line = re.sub(r"\d+(?:[.,:]\d+)*", "#", line)
    return " ".join(line.replace("in # s", "in #").split())
