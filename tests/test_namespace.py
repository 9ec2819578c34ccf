"""Installed, everything is `gpuspool`: a user's modules of whatever name are theirs, and ours are
ours.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import JOBS, Box

# Names that our own packages have, or had, and one that begins with our name.
THEIRS = ("worker", "spool", "orchestrator", "gpuspool_helper", "cli", "plan", "report", "text")


@pytest.fixture
def project(box: Box) -> Box:
    """A project with modules of those names beside its job.

    Each of them fails if it is run as a program.
    """
    for name in THEIRS:
        box.write(
            f"{name}.py",
            f"import sys\nNAME = {name!r}\n"
            "if __name__ == '__main__':\n    sys.exit('theirs was run')\n",
        )
    lines = "".join(f"    import {name}\n    found.append({name}.NAME)\n" for name in THEIRS)
    box.write(
        "job.py",
        "import gpuspool\ndef f(task: gpuspool.Task, ctx):\n"
        f"    found = []\n{lines}    return found\n",
    )
    return box


@pytest.mark.parametrize("where", ["beside the job", "on PYTHONPATH", "installed"])
def test_modules_with_names_like_ours_serve_their_project(
    project: Box, tmp_path: Path, where: str
) -> None:
    env = {}
    if where != "beside the job":
        for name in THEIRS:
            (project / f"{name}.py").rename(tmp_path / f"{name}.py")
    if where == "on PYTHONPATH":
        env["PYTHONPATH"] = str(tmp_path)
    if where == "installed":
        env["PYTHONUSERBASE"] = str(tmp_path / "user")
        site = subprocess.run(
            [sys.executable, "-c", "import site; print(site.getusersitepackages())"],
            env={**os.environ, **env}, capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
        Path(site).mkdir(parents=True)
        for name in THEIRS:
            (tmp_path / f"{name}.py").rename(Path(site, f"{name}.py"))
        probe = subprocess.run(
            [sys.executable, "-c", "import worker"], env={**os.environ, **env}, cwd=tmp_path
        )
        # a virtual environment has no user site: a path file is what pip's editable installs use
        if probe.returncode:
            env = {"PYTHONPATH": site}
    project.run(
        "run", "job.py:f", "--lines", project.lines(2), "--spool", "S", "--ranks", "2", env=env
    )
    assert [result["result"] for result in project.results("S")] == [list(THEIRS)] * 2
    for verb in ("status", "results", "failed", "verify", "logs", "wait"):
        assert "Traceback" not in project.run(verb, "S", env=env).err


@pytest.mark.parametrize("name", ["worker", "spool", "orchestrator"])
def test_a_job_may_have_a_name_that_a_package_of_ours_has(box: Box, name: str) -> None:
    box.write(f"{name}.py", "def f(task, ctx):\n    return __name__\n")
    box.run("run", f"{name}.py:f", "--lines", box.lines(1), "--spool", "S")
    assert [result["result"] for result in box.results("S")] == [name]


@pytest.mark.parametrize("name", ["worker", "spool", "orchestrator"])
def test_only_gpuspool_can_be_imported_from_an_installation(tmp_path: Path, name: str) -> None:
    code = f"import gpuspool.{name}, importlib.util; print(importlib.util.find_spec({name!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "None\n", done.stderr


def test_the_module_is_the_command(box: Box) -> None:
    assert box.run("-m", "gpuspool", "--version", program=(sys.executable,)).out.startswith(
        "gpuspool, version "
    )
    run = ["run", f"{JOBS}/plain.py:double", "--lines", box.lines(2), "--spool", "S"]
    box.run("-m", "gpuspool", *run, program=(sys.executable,))
    assert len(box.results("S")) == 2
    assert box.run(
        "-m", "gpuspool", "resume", "absent", program=(sys.executable,), code=2
    ).err.startswith("gpuspool: ")
