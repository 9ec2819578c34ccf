"""The transcript in docs/slurm.md is that of scripts/slurm_transcript.py, and its commands exist.

It is not played here: that takes minutes. `tests/test_slurm_runs.py` tests what it shows.
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

from gpuspool.orchestrator.cli.verbs import cli

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "slurm.md"
# scripts is a folder of the checkout, and no installed package.
sys.path.append(str(ROOT / "scripts"))

import slurm_transcript  # noqa: E402
from slurm_transcript import END, LEFT_OUT, START, STEPS, shortened  # noqa: E402

COMMANDS = [command for step in STEPS for command in step.commands]


def transcript() -> str:
    text = PAGE.read_text()
    assert text.count(START) == 1
    assert text.count(END) == 1
    return text.partition(START)[2].partition(END)[0]


def test_the_page_has_all_commands_of_the_script_in_their_order() -> None:
    assert re.findall(r"^\$ (.*)$", transcript(), re.MULTILINE) == COMMANDS


def test_the_page_names_no_folder_of_whoever_ran_the_script() -> None:
    assert "/tmp" not in transcript()
    assert str(ROOT) not in transcript()
    assert slurm_transcript.HOME in PAGE.read_text()


def test_each_command_exists() -> None:
    for command in COMMANDS:
        program, *words = shlex.split(command)
        if program == "gpuspool":
            assert words[0] in cli.commands, command
        else:
            assert program in ("cat", "ls", "squeue", "tail"), command


def test_what_came_back_tells_of_a_crash_a_requeue_and_an_end() -> None:
    text = transcript()
    assert re.search(r"^ +\d+ +silent \d+ s +n2 ", text, re.MULTILINE)
    assert re.search(r"^1_1 +RUNNING +n4", text, re.MULTILINE)
    assert "400 complete, 0 failed" in text
    assert "0 problems" in text


def test_what_is_left_out_of_the_page_is_still_said_so() -> None:
    code = (ROOT / "orchestrator").rglob("*.py")
    assert any(LEFT_OUT in path.read_text() for path in code)


def test_the_middle_of_a_long_output_is_left_out() -> None:
    lines = [f"{number}" for number in range(30)]
    assert shortened("\n".join(lines)).splitlines() == [*lines[:9], "…", *lines[-9:]]
    assert shortened("a  \nb\n") == "a\nb\n"
