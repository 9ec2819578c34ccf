"""Writes docs/first-hour.md: what a new user types in the first hour, and what really comes back.

    python scripts/first_hour.py docs/first-hour.md

Each step is prose and commands. The commands are run in order by bash in an empty folder, and what
they print, on stdout and stderr, is written below each. Only the folder's name is replaced.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

# The columns of a line of prose.
WIDTH = 120
# What the page calls the folder in which the commands run.
HOME = "/home/ada/project"

JOB = """\
import time


class Measure:
    def __init__(self, ctx):
        self.unit = ctx.args.get("unit", 1)

    def __call__(self, task, ctx):
        values = [float(line) for line in task.path.read_text().split()]
        time.sleep(0.05)
        mean = sum(values) / len(values) / self.unit
        ctx.output(task, ".mean").write_text(f"{mean}\\n")
        print("measured", task.key)
        return {"mean": mean, "values": len(values)}
"""

NEW_LINES = r"        if not values:\n            return None\n"
FIX = f"sed -i 's/        mean = sum/{NEW_LINES}        mean = sum/' measure.py"

RUN = "gpuspool run measure.py:Measure 'probes/*.txt' --ranks 2 --arg unit=10 -q"

SECOND = RUN.replace("-q", "-q --spool spool-again")

# What the tests are told of commands whose output is not the same everywhere; see tests/pages.py.
OTHER_DISKS = "other file systems are told by other names"
OTHER_RANKS = "which rank gets which task differs from run to run"
OTHER_MOMENTS = "it depends on how far the run is when it is killed"
# What is said before some commands, these commands, and why a test may see something else.
STEPS: list[tuple[str, list[str], str]] = [
    (
        "120 files of our own, two of which are empty, and a class of our own. It is written as if "
        "for one file.",
        [
            "mkdir probes; for i in $(seq 101 220); do seq $i > probes/$i.txt; done",
            "> probes/130.txt; > probes/200.txt",
            f"cat > measure.py <<'END'\n{JOB}END",
        ],
        "",
    ),
    ("Is this a good place for a run?", ["gpuspool doctor"], OTHER_DISKS),
    (
        "The name of the class is not quite right. Then: what would happen?",
        [RUN.replace(":Measure", ":measures"), f"{RUN} --dry-run"],
        "",
    ),
    (
        "Now really. `-q` leaves out the table of progress, which a page cannot show.",
        [f'{RUN}; echo "exit code $?"'],
        "",
    ),
    (
        "Two files failed, each in two processes. What is wrong, and where? An empty file has no "
        "mean.",
        ["gpuspool failed"],
        "",
    ),
    (
        "What was printed meanwhile is there too.",
        ["gpuspool logs -n 2", "gpuspool logs --task 101.txt"],
        OTHER_RANKS,
    ),
    (
        "The class is fixed: an empty file gives no result. The same command notices that the code "
        "changed. It refuses to mix results of two codes, and names the ways on. With "
        "`--keep-done` what is done stays done.",
        [FIX, RUN, "gpuspool retry --keep-done -q"],
        "",
    ),
    (
        "118 outputs, 120 results: for an empty file the class returns before it asks for one.",
        [
            "ls spool-Measure/outputs | wc -l",
            "gpuspool results | head -2",
            'gpuspool results | grep -c \'"state":"complete"\'',
        ],
        "",
    ),
    (
        "Ten more files came in. The same command sees that they are new, and `--add` takes them.",
        ["for i in $(seq 301 310); do seq $i > probes/$i.txt; done", RUN, f"{RUN} --add"],
        "",
    ),
    (
        "An output was deleted by mistake.",
        [
            "rm spool-Measure/outputs/150.txt.mean",
            "gpuspool verify",
            "gpuspool redo spool-Measure --missing-outputs -q",
        ],
        "",
    ),
    (
        "A second run is stopped after two seconds, as by Ctrl-C. Then the command alone is killed "
        "with SIGKILL, and its workers finish the run without it. The same command finds it "
        "complete.",
        [
            f"timeout --foreground -s INT 2 {SECOND}",
            f"timeout -s KILL 1 {SECOND}",
            "gpuspool status spool-again | head -4",
            "gpuspool wait spool-again | head -1",
            SECOND,
        ],
        OTHER_MOMENTS,
    ),
    (
        "And with a script of one's own instead of a class:",
        [
            "gpuspool run 'probes/*.txt' --ranks 2 -q -- cp {input} {output}.copy",
            "ls spool-cp/outputs | head -2",
        ],
        "",
    ),
]

TAIL = """\
Next: [watching a run](status.md), [retry and redo](guides/retry-and-redo.md), or a
[guide](index.md#guides) for your case. If you have not done them yet: [ten minutes](start.md) with
a model of your own.
"""

HEAD = """\
# A new user's first hour

What was typed into an empty folder, and what came back. A script typed it all and wrote down the
answers, so this is what you will see.

"""


def main() -> int:
    """Run all steps and write the page to the path that is given."""
    page = [HEAD]
    with tempfile.TemporaryDirectory(prefix="first-hour-") as folder:
        for prose, commands, why in STEPS:
            remark = f"<!-- not compared: {why} -->\n" if why else ""
            page.append(f"{textwrap.fill(prose, WIDTH)}\n\n{remark}```console\n")
            page += [_shown(command, folder) for command in commands]
            page.append("```\n\n")
    page.append(TAIL)
    Path(sys.argv[1]).write_text("".join(page))
    return 0


def _shown(command: str, folder: str) -> str:
    """A command and what it printed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GPUSPOOL_")}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**kept, "PATH": path, "NO_COLOR": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    told = done.stdout.replace(os.path.realpath(folder), HOME).replace(folder, HOME)
    return f"$ {command}\n{told}"


if __name__ == "__main__":
    sys.exit(main())
