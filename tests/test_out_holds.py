"""No folder is renamed that holds what is needed where it is, and no OUT lies among records."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import JOBS, Box, tree

import gpuspool

DOUBLE = f"{JOBS}/plain.py:double"


@pytest.fixture
def project(box: Box) -> Path:
    """A folder with a job, inputs, a command's tool, and a folder that nobody needs."""
    box.write("project/job.py", "def f(task, ctx): return 1\n")
    box.write("project/in/a", "1")
    box.write("project/deep/down/notes", "precious")
    box.write("project/tool.sh", "exit 0\n")
    box.write("away/in/b", "1")
    box.lines(2)
    (box / "link").symlink_to(box / "project")
    return box / "project"


def refused(box: Box, *command: str | Path, holds: str, cwd: Path | None = None) -> None:
    before = tree(box.home)
    verb, *words = command
    done = box.run(verb, "--overwrite", *words, cwd=cwd, code=2)
    assert holds in done.err
    assert "--overwrite does not rename" in done.err
    assert tree(box.home) == before


@pytest.mark.parametrize("out", [".", "..", "../project", "deep/..", "../link", "{box}/link"])
def test_the_current_folder_is_not_renamed(box: Box, project: Path, out: str) -> None:
    named = out.format(box=box.home)
    command = ["run", DOUBLE, "--lines", box / "lines", "--spool", box / "S", "--out", named]
    refused(box, *command, holds="holds the current folder", cwd=project)


def test_python_renames_no_more_than_the_command_line(
    box: Box, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    before = tree(box.home)
    for out in (".", "", Path("../link"), box / "project"):
        with pytest.raises(gpuspool.UsageError, match="holds the current folder"):
            gpuspool.run(DOUBLE, items=[1], spool=box / "S", out=out, overwrite=True)
    assert tree(box.home) == before


def test_neither_the_job_nor_a_tool_nor_an_input_nor_the_spool_is_renamed(
    box: Box, project: Path
) -> None:
    lines = box / "lines"
    away = box / "away"
    spool = ["--spool", box / "S"]
    for out in (project, box / "link", box / "link" / "deep" / ".."):
        overwrite = ["--out", out]
        job = ["run", project / "job.py:f", "--lines", lines, *spool, *overwrite]
        refused(box, *job, holds="holds the job", cwd=away)
        linked = ["run", box / "link" / "job.py:f", "--lines", lines, *spool, *overwrite]
        refused(box, *linked, holds="holds the job", cwd=away)
        inputs = ["run", DOUBLE, "../project/in/*", *spool, *overwrite]
        refused(box, *inputs, holds="holds the input", cwd=away)
        there = ["run", DOUBLE, "in/b", "--spool", project / "S", *overwrite]
        refused(box, *there, holds="holds the spool", cwd=away)
        tool = ["run", "in/b", *spool, *overwrite, "--", "sh", "../project/tool.sh", "{input}"]
        refused(box, *tool, holds="holds a file of the command", cwd=away)


def test_an_input_that_is_a_link_out_of_the_folder_is_in_it(box: Box, project: Path) -> None:
    """Its target stays, but the name by which the tasks know it would be gone."""
    (project / "deep" / "b").symlink_to(box / "away" / "in" / "b")
    command = ["run", DOUBLE, box / "project/deep/b", "--spool", box / "S"]
    refused(box, *command, "--out", project / "deep", holds="holds the input", cwd=box / "away")


def test_neither_home_nor_python_nor_the_root_is_renamed(box: Box, project: Path) -> None:
    run = ["run", DOUBLE, "--lines", box / "lines", "--spool", box / "S", "--overwrite"]
    home = {"HOME": str(project / "deep")}
    for out, holds in ((project, "your home folder"), (project / "deep", "your home folder")):
        done = box.run(*run, "--out", out, env=home, cwd=box / "away", code=2)
        assert f"holds {holds}" in done.err
    assert "the Python that runs this" in box.run(*run, "--out", sys.prefix, code=2).err
    assert "holds the current folder" in box.run(*run, "--out", "/", code=2).err


@pytest.fixture
def mount(box: Box, project: Path) -> Iterator[Path]:
    """A second name, by a bind mount, for the project."""
    point = box / "mount"
    point.mkdir()
    done = subprocess.run(["mount", "--bind", project, point], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {done.stderr.decode()}")
    yield point
    subprocess.run(["umount", "-l", point], check=True)


def test_a_folder_is_known_by_another_name_of_its_mount(
    box: Box, project: Path, mount: Path
) -> None:
    run = ["run", DOUBLE, project / "in" / "a", "--spool", box / "S", "--overwrite"]
    done = box.run(*run, "--out", mount / "in", cwd=box / "away", code=2)
    assert "holds the input" in done.err
    nothing = ["run", DOUBLE, "--lines", box / "lines", "--spool", box / "S", "--overwrite"]
    for out in (mount, box.home):
        done = box.run(*nothing, "--out", out, cwd="/", env={"HOME": "/"}, code=2)
        assert f"mounted on {mount}" in done.err or "holds the spool" in done.err


def test_a_folder_that_holds_nothing_of_this_is_renamed_as_ever(box: Box, project: Path) -> None:
    command = ["run", DOUBLE, "--lines", box / "lines", "--spool", box / "S", "--overwrite"]
    box.run(*command, "--out", project / "deep")
    assert (project / "deep.old-1" / "down" / "notes").read_text() == "precious"


def test_outputs_may_go_into_the_current_folder_while_it_is_empty(box: Box) -> None:
    box.lines(2)
    (box / "empty").mkdir()
    command = ["run", DOUBLE, "--lines", box / "lines", "--spool", box / "S", "--out", "."]
    box.run(*command, cwd=box / "empty")


# Into a spool.


@pytest.mark.parametrize("place", ["", "manifests", "job", "new", "claims/rank-0000", "x/outputs"])
def test_outputs_never_go_among_the_records_of_a_spool(box: Box, place: str) -> None:
    box.run("run", DOUBLE, "--lines", box.lines(2), "--spool", "S")
    os.symlink("S", box / "link")
    before = tree(box.home)
    for spool, root in (("T", "S"), ("T", "T"), ("T", "link"), ("T", "link/../S")):
        out = box / root / place
        done = box.run(
            "run", DOUBLE, "--lines", "lines", "--spool", spool, "--out", out, "--overwrite", code=2
        )
        assert "lies in the spool" in done.err, done.err
    assert tree(box.home) == before


def test_outputs_of_a_second_run_may_go_below_those_of_a_first(box: Box) -> None:
    box.run("run", DOUBLE, "--lines", box.lines(2), "--spool", "S")
    box.run("run", DOUBLE, "--lines", "lines", "--spool", "T", "--out", "S/outputs/second")
    assert box.problems("T") == []


def test_fresh_renames_no_spool_that_holds_what_the_run_needs(box: Box) -> None:
    box.write("job.py", "def f(task, ctx):\n    open(ctx.output(task, '.txt'), 'w').write('1')\n")
    box.run("run", "job.py:f", "--lines", box.lines(2), "--spool", "S")
    before = tree(box.home)
    fresh = ["run", DOUBLE, box / "S/outputs/t0.txt", "--spool", box / "S", "--fresh"]
    done = box.run(*fresh, code=2)
    assert "holds the input" in done.err
    assert "--fresh does not rename" in done.err
    done = box.run(*fresh[:-1], "--fresh", cwd=box / "S" / "outputs", code=2)
    assert "holds the current folder" in done.err
    assert tree(box.home) == before
