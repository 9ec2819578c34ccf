"""Commands that messages tell people to type: a shell takes them as they stand there."""

import os
import re
import shlex
from pathlib import Path

import pytest
from helpers import GPUSPOOL, Box

from gpuspool.orchestrator.text.words import quoted_path, short_path, to_type

SOURCES = Path(__file__).resolve().parent.parent
# A command in backquotes, or an option that names a folder, with a path that was put in as it is.
BARE = re.compile(
    r"`(gpuspool|sbatch)\b[^`]*\{(?!quoted_path|shlex\.|to_type|verb\})"
    r"|say --key-root \{now|--spool \{(root|view)\b"
)


def suggested(text: str) -> list[str]:
    """The commands of gpuspool's in backquotes, in order."""
    return re.findall(r"`(gpuspool [^`]*)`", text)


def test_no_message_has_a_command_with_a_path_that_is_not_quoted() -> None:
    found = []
    for folder in ("orchestrator", "spool", "worker"):
        for path in (SOURCES / folder).rglob("*.py"):
            name = path.relative_to(SOURCES)
            found += [f"{name}: {match[0]}" for match in BARE.finditer(path.read_text())]
    assert found == []


def test_a_path_is_one_word_and_no_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert to_type("resume", tmp_path / "S", "--slurm") == "`gpuspool resume S --slurm`"
    assert to_type("wait", tmp_path / "it's $x") == """`gpuspool wait 'it'"'"'s $x'`"""
    assert quoted_path("-S") == "./-S"
    assert short_path("/S") == "/S", "a way over many folders is longer"
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert short_path("/data/S") == "/data/S"


def test_what_is_suggested_can_be_typed_where_paths_hold_blanks(box: Box) -> None:
    """A drained run, one with failed tasks, and an input that became larger."""
    box.write("my data/a b.txt", "1")
    box.write("job.py", "def f(task, ctx):\n    raise ValueError(task.key)\n")
    command = ["run", "job.py:f", "my data/*.txt", "--spool", "my runs/S", "--keep-going"]
    failed = suggested(box.run(*command, code=3).err)
    assert failed == ["gpuspool failed 'my runs/S'", "gpuspool retry 'my runs/S'"]
    box.write("job.py", "def f(task, ctx):\n    return 1\n")
    typed(box, failed[1] + " --keep-done")
    box.write("my data/a b.txt", "1234")
    refusal = suggested(box.run(*command, code=2).err)
    (redo,) = [one for one in refusal if " redo " in one]
    assert "1 task gets another round" in typed(box, redo)
    box.write("my data/c.txt", "1")
    (resume,) = [one for one in suggested(box.run(*command, code=2).err) if " resume " in one]
    typed(box, resume)
    added = box.run("add", "my runs/S", "my data/c.txt")
    typed(box, *suggested(added.err))
    assert len(box.results("my runs/S")) == 2
    drained = box.run("drain", "my runs/S", code=0).err
    assert all(shlex.split(one)[2] == "my runs/S" for one in suggested(drained))


def typed(box: Box, command: str) -> str:
    """Type a command into a shell; returns what it said."""
    assert command.startswith("gpuspool ")
    rest = command.removeprefix("gpuspool ")
    path = f"{Path(GPUSPOOL).parent}:{os.environ['PATH']}"
    done = box.run("-c", f"gpuspool {rest}", program=("sh",), env={"PATH": path})
    return done.err
