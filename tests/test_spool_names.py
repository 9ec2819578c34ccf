"""Where a run's spool is if nobody says so: runs of different jobs do not meet in one folder."""

import shlex

import pytest
from helpers import Box, names

from gpuspool.orchestrator.plan.locate import command_name

JOB = "class J:\n    def __call__(self, task, ctx):\n        return {!r}\n"


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("python x.py {input}", "x"),
        ("python3.12 -u -W ignore deep/x.py", "x"),
        ("python -O x.py {input}", "x"),
        ("python -m pkg.mod --size 3", "pkg.mod"),
        ("python -c pass", "python"),
        ("python {input}", "python"),
        ("bash run.sh", "run"),
        ("bash -e ./run {input}", "run"),
        ("bash -o pipefail run.sh {input}", "run"),
        ("bash -euc 'cat {input}'", "bash"),
        ("Rscript fit.R {input}", "fit"),
        ("env A=b -u C python -m pkg.mod", "pkg.mod"),
        ("/usr/bin/env python x.py", "x"),
        ("./tool-1.2 {input}", "tool-1.2"),
        ("srun -n 1 -p gpu python x.py", "x"),
        ("srun -n1 --gres=gpu:1 sort {input}", "sort"),
        ("nice -n 10 timeout 5m python {input}", "python"),
        ("uv run --with numpy x.py", "x"),
        ("conda run -n embed python x.py", "x"),
        ("apptainer exec --nv image.sif python /opt/x.py", "x"),
        ("accelerate launch -m pkg.train", "pkg.train"),
        ("numactl -m 0 python x.py {input}", "x"),
        ("docker run -m 4g image python x.py", "x"),
        ("srun ghost", "srun"),
        ("{input}", "{input}"),
    ],
)
def test_a_command_is_named_after_what_it_runs(command: str, name: str) -> None:
    assert command_name(shlex.split(command)) == name


def test_two_scripts_have_two_spools(box: Box) -> None:
    for name in ("one", "two"):
        box.write(f"{name}.py", "pass\n")
        box.run("run", "--lines", box.lines(1), "--", "python3", f"{name}.py", "{input}")
    assert {"spool-one", "spool-two"} <= set(names(box.home))


def test_a_class_of_the_same_name_in_another_file_is_another_job(box: Box) -> None:
    box.write("a.py", JOB.format("a"))
    box.write("b.py", JOB.format("b"))
    inputs = ["--lines", box.lines(2)]
    box.run("run", "a.py:J", *inputs)
    refusal = box.run("run", "b.py:J", *inputs, code=2).err
    assert "another job: a.py:J before, b.py:J now" in refusal
    assert refusal.index("--spool spool-J-b") < refusal.index("--keep-done")
    box.run("run", "b.py:J", *inputs, "--spool", "spool-J-b")
    assert [result["result"] for result in box.results("spool-J")] == ["a", "a"]
    assert [result["result"] for result in box.results("spool-J-b")] == ["b", "b"]


def test_a_job_file_that_was_renamed_and_edited_is_a_changed_job(box: Box) -> None:
    job = box.write("a.py", JOB.format("a"))
    inputs = ["--lines", box.lines(2)]
    box.run("run", "a.py:J", *inputs)
    job.rename(box / "b.py")
    box.write("b.py", JOB.format("b"))
    assert "the job changed" in box.run("run", "b.py:J", *inputs, code=2).err
    box.run("run", "b.py:J", *inputs, "--keep-done")


def test_a_project_that_was_copied_and_edited_is_a_changed_job(box: Box) -> None:
    box.write("old/a.py", JOB.format("a"))
    box.lines(1, "old/lines")
    box.run("run", "a.py:J", "--lines", "lines", cwd=box / "old")
    box.run("-r", "old", "new", program=("cp",))
    box.write("new/a.py", JOB.format("b"))
    done = box.run("run", "a.py:J", "--lines", "lines", cwd=box / "new", code=2)
    assert "the job changed" in done.err


def test_another_program_is_another_job(box: Box) -> None:
    inputs = ["--lines", box.lines(1), "--spool", "S"]
    box.run("run", *inputs, "--", "true", "{input}")
    assert "job: true {input} before, echo {input} now" in (
        box.run("run", *inputs, "--", "echo", "{input}", code=2).err
    )
    assert "the job changed" in box.run("run", *inputs, "--", "true", "-x", "{input}", code=2).err
