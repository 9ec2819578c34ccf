"""What a shell completes behind `gpuspool`, and what `run --help` shows."""

import functools
import os
import shlex
import subprocess
from pathlib import Path

import pytest
from helpers import GPUSPOOL, JOBS, Box

COMPLETE = """
eval "$SCRIPT"
compopt() { echo "compopt $*"; }
COMP_WORDS=(%s) COMP_CWORD=%d
_gpuspool_completion gpuspool
printf '%%s\\n' "${COMPREPLY[@]}"
"""


@functools.cache
def script() -> str:
    """What a line of a bashrc evaluates."""
    command = [GPUSPOOL, "completion", "bash"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def complete(box: Box, *words: str, cwd: Path | None = None) -> list[str]:
    """What bash offers for the last of these words."""
    asked = COMPLETE % (shlex.join(["gpuspool", *words]), len(words))
    path = f"{Path(GPUSPOOL).parent}:{os.environ['PATH']}"
    env = {"PATH": path, "SCRIPT": script()}
    done = box.run("-c", asked, program=("bash",), env=env, cwd=cwd)
    assert done.err == ""
    return done.out.split()


def test_verbs_and_options(box: Box) -> None:
    assert complete(box, "res") == ["results", "resume"]
    assert complete(box, "run", "--task") == ["--tasks", "--task-timeout"]
    assert complete(box, "completion", "z") == ["zsh"]


def test_spools_ranks_and_keys(box: Box) -> None:
    box.write("in/a.txt", "1")
    box.write("in/b.txt", "1")
    box.run("run", f"{JOBS}/plain.py:describe", "in/*", "--ranks", "2", "--spool", "spool-one")
    box.run("run", f"{JOBS}/plain.py:double", "--lines", box.lines(2), "--spool", "deep/two")
    assert complete(box, "status", "sp") == ["compopt", "-o", "dirnames", "spool-one"]
    assert "deep/two" in complete(box, "status", "deep/")
    assert "./spool-one" in complete(box, "status", "./")
    assert complete(box, "logs", "spool-one", "--rank", "") == ["0", "1"]
    assert complete(box, "logs", "--rank", "1") == ["1"]
    assert complete(box, "logs", "deep/two", "--task", "t") == ["t0", "t1"]
    assert complete(box, "redo", "spool-one", "a") == ["a.txt"]
    assert complete(box, "explain", "a") == ["compopt", "-o", "dirnames", "a.txt"]
    assert "spool-one" in complete(box, "explain", "s")
    assert complete(box, "explain", "deep/two", "t") == ["t0", "t1"]
    assert complete(box, "explain", "--rank", "") == ["0", "1"]
    assert complete(box, "redo", "nowhere", "a") == []
    too_long = "n" * 300
    assert complete(box, "status", f"{too_long}/") == ["compopt", "-o", "dirnames"]


@pytest.mark.parametrize(
    "words", [["run", ""], ["run", "job.py:J", "in"], ["run", "--lines", ""], ["add", "S", ""]]
)
def test_files_still_complete(box: Box, words: list[str]) -> None:
    assert complete(box, *words) == ["compopt", "-o", "default"]


def test_folders_are_completed_where_folders_are_meant(box: Box) -> None:
    for words in (["doctor", ""], ["run", "--out", ""], ["run", "--spool", ""]):
        assert complete(box, *words) == ["compopt", "-o", "dirnames"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_there_is_a_script_for_each_shell(box: Box, shell: str) -> None:
    assert "_GPUSPOOL_COMPLETE" in box.run("completion", shell).out


def test_the_help_of_run_has_groups_placeholders_examples_and_exit_codes(box: Box) -> None:
    told = box.run("run", "--help").out
    for group in ("Inputs:", "Folders:", "Workers and devices:", "When tasks fail:"):
        assert f"\n{group}\n" in told
    for words in ("{output}", "gpuspool run 'images/*.jpg' -- python", "75 drained"):
        assert words in told
    assert "75 drained" in box.run("resume", "--help").out
