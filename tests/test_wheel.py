"""What people install: a wheel, in an environment of its own, away from the checkout.

The torch that is there already is used.
"""

import json
import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
        ".",
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("gpuspool-*.whl"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel; the libraries, torch and pip are those of this one."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder)
    python = folder / "bin" / "python"
    purelib = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(purelib, check=True, capture_output=True, text=True).stdout.strip())
    there = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    (site / "there.pth").write_text("\n".join(there) + "\n")
    # With --no-index nothing can be downloaded. If anything were missing, above all another
    # torch, this would fail.
    install = [
        str(python),
        "-m",
        "pip",
        "install",
        "-q",
        "--no-index",
        "--ignore-installed",
        "--no-deps",
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True)
    return python


def test_the_wheel_holds_the_packages_their_types_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    ours = {name for name in names if ".dist-info/" not in name}
    assert {"gpuspool/__init__.py", "gpuspool/py.typed", "gpuspool/worker/__main__.py"} <= ours
    assert {name.partition("/")[0] for name in ours} == {"gpuspool"}
    page = "gpuspool/orchestrator/page"
    assert {f"{page}/page.html", f"{page}/page.css", f"{page}/page.js"} <= ours


def test_installing_beside_a_torch_pulls_no_second_one(
    wheel: Path, python: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    command = [
        str(python),
        "-m",
        "pip",
        "install",
        "-q",
        "--dry-run",
        "--no-index",
        "--report",
        str(report),
        str(wheel),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not [
        item
        for item in json.loads(report.read_text())["install"]
        if item["metadata"]["name"] == "torch"
    ]


def test_the_installed_command_runs_a_job_away_from_the_checkout(
    python: Path, tmp_path: Path
) -> None:
    (tmp_path / "job.py").write_text(
        "import gpuspool\ndef f(task: gpuspool.Task, ctx): return gpuspool.__file__\n"
    )
    (tmp_path / "lines").write_text("a\nb\n")
    command = [str(python.with_name("gpuspool")), "run", "job.py:f", "--lines", "lines", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = [str(python.with_name("gpuspool")), "results"]
    lines = subprocess.run(
        results, cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert len(lines) == 2
    assert all(str(python.parent.parent) in json.loads(line)["result"] for line in lines), (
        "not from the checkout"
    )


def from_checkout(python: Path, folder: Path, *arguments: str) -> str:
    """What `gpuspool ARGUMENTS` prints, run by this interpreter from the checkout."""
    command = [str(python), "-P", "-c", "from gpuspool.__main__ import main; main()", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_checkout_on_pythonpath_serves_parent_and_workers(python: Path, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(
        "import gpuspool\ndef f(task, ctx): return gpuspool.__file__\n"
    )
    (tmp_path / "lines").write_text("a\n")
    from_checkout(python, tmp_path, "run", "job.py:f", "--lines", "lines")
    assert json.loads(from_checkout(python, tmp_path, "results"))["result"] == str(
        ROOT / "gpuspool" / "__init__.py"
    )


def test_the_oldest_libraries_that_are_named_serve(tmp_path: Path) -> None:
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    oldest = [f"{one.replace('>=', '==')}.*" for one in named if not one.startswith("torch")]
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    done = subprocess.run([*pip, "install", "-q", *oldest], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip cannot install {' '.join(oldest)} here: {done.stderr.strip()[-200:]}")
    (tmp_path / "job.py").write_text(
        "def f(task, ctx): ctx.output(task, '.txt').write_text(task.payload); return 1\n"
    )
    (tmp_path / "lines").write_text("a\nb\n")
    from_checkout(
        python,
        tmp_path,
        "run",
        "job.py:f",
        "--lines",
        "lines",
        "--ranks",
        "2",
        "--time-limit",
        "10m",
    )
    for verb in ("status", "verify", "failed", "logs", "drain"):
        from_checkout(python, tmp_path, verb)
    assert len(from_checkout(python, tmp_path, "results").splitlines()) == 2
    assert (tmp_path / "spool-f" / "orchestrator.lock").exists(), (
        "some filelocks unlink it, which lets two hold it"
    )
