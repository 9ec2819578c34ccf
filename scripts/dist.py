"""Build what is handed on, a wheel and a source archive, and try both: `make dist`.

In this order:

1. hatchling builds both in a temporary folder, and twine checks what an index would show.
2. A wheel is built from the unpacked archive. It must hold the same files as the first one, byte by
   byte, or what people build is not what was tried.
3. The wheel goes into a fresh environment outside the checkout. The libraries are those of this
   interpreter, torch above all: pip must find that nothing is missing.
4. That installation is used as a stranger would use it: a run with a failure, every verb that
   looks, the report, a retry, the Python API, and a notebook.

Only then both appear in dist/, where earlier ones are removed, and nothing else.

Prints a line for each step. Ends with 1 and what went wrong at the first that fails.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# So long one command may take; none needs more than some seconds.
PATIENCE_S = 300
# A failing command is shown with the end of what it said.
SHOWN = 2000

JOB = """
import gpuspool


def count(task: gpuspool.Task, ctx: gpuspool.Context) -> dict[str, int]:
    lines = task.path.read_text().splitlines()
    print(f"counting {task.key}")
    ctx.output(task, ".sum").write_text(f"{sum(map(int, lines))}\\n")
    return {"lines": len(lines)}
"""

API = """
import sys
import gpuspool

assert gpuspool.__file__.startswith(sys.prefix), gpuspool.__file__
report = gpuspool.run("job.py:count", ["good/1.txt", "good/2.txt"], spool="spool-api", ranks=2)
assert report.ok and report.counts["complete"] == 2, report.counts
assert [result.value() for result in report.results()] == [{"lines": 1}, {"lines": 2}]
assert gpuspool.status("spool-api")["tasks"]["complete"] == 2
"""

# The last cell shows the report as a notebook does.
NOTEBOOK = """
import sys
import nbformat
from nbclient import NotebookClient

cells = [
    "import sys, gpuspool; print(gpuspool.__file__.startswith(sys.prefix))",
    "report = gpuspool.run('job.py:count', ['good/1.txt'], spool='spool-notebook', ranks=1)",
    "report",
]
notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
NotebookClient(notebook, timeout=200).execute()
outputs = [cell.outputs for cell in notebook.cells]
assert outputs[0][0].text == "True\\n", outputs[0]
assert "1 of 1 tasks complete" in str(outputs[2]), outputs[2]
"""

# What looks at a spool, with what its output must hold.
LOOKS = (
    ("status", "2 complete, 1 failed"),
    ("results", '"lines":2'),
    ("failed", "ValueError"),
    ("verify", "0 problems"),
    ("logs", "counting good/1.txt"),
    ("list", "spool-count"),
    ("report", "report.html"),
)


class NotAsItShould(Exception):
    """What was tried did not come out as it should."""


def run(argv: Sequence[str | Path], cwd: Path, code: int = 0) -> str:
    """Run a command, without any variable that could lead it to the checkout; returns its output.

    Raises NotAsItShould unless it ends with this code.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "GPUSPOOL_", "VIRTUAL_ENV"))
    }
    environment = {**kept, "CUDA_VISIBLE_DEVICES": "", "NO_COLOR": "1"}
    done = subprocess.run(
        [*map(str, argv)], cwd=cwd, env=environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    if done.returncode != code:
        command = " ".join(map(str, argv))
        raise NotAsItShould(
            f"{command}\nended with {done.returncode}, not {code}:\n{done.stdout[-SHOWN:]}"
        )
    return done.stdout


def build(source: Path, into: Path) -> tuple[Path, Path]:
    """The wheel and the archive that hatchling makes of a source folder."""
    run([sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-t", "wheel", "-d", into],
        source)  # fmt: skip
    [wheel], [archive] = into.glob("*.whl"), into.glob("*.tar.gz")
    return wheel, archive


def content(wheel: Path) -> dict[str, bytes]:
    """The files of a wheel, but for the list of their hashes."""
    with zipfile.ZipFile(wheel) as file:
        return {name: file.read(name) for name in file.namelist() if not name.endswith("/RECORD")}


def compare_with_archive(wheel: Path, archive: Path, folder: Path) -> int:
    """Build a wheel from the archive and compare; returns how many files are the same."""
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    [source] = folder.iterdir()
    rebuilt, _ = build(source, folder / "rebuilt")
    first, second = content(wheel), content(rebuilt)
    different = sorted(
        name for name in first.keys() | second.keys() if first.get(name) != second.get(name)
    )
    if different:
        raise NotAsItShould(
            f"a wheel built from {archive.name} differs from {wheel.name} in {different}"
        )
    return len(first)


def install(wheel: Path, folder: Path) -> Path:
    """A fresh environment with the wheel; returns its interpreter. Nothing is downloaded."""
    venv.create(folder)
    python = folder / "bin" / "python"
    find = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run([python, "-c", find], folder).strip())
    # Behind its own folder, so that gpuspool is the wheel's, and all else is what is there already.
    mine = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *sys.path[1:]]
    there = [path for path in dict.fromkeys(mine) if path.endswith(("site-packages",))]
    (site / "there.pth").write_text("\n".join(there) + "\n")
    pip = [python, "-m", "pip", "install", "-q", "--no-index", "--disable-pip-version-check"]
    run([*pip, "--ignore-installed", "--no-deps", wheel], folder)
    # This would fail if a library were missing, or too old.
    run([*pip, wheel], folder)
    return python


def use(python: Path, folder: Path) -> None:
    """Use the installation in an empty folder, as its user would."""
    gpuspool = python.with_name("gpuspool")
    (folder / "job.py").write_text(JOB)
    for name, text in {"good/1.txt": "1\n", "good/2.txt": "1\n2\n", "bad/3.txt": "x\n"}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    inputs = ["good/1.txt", "good/2.txt", "bad/3.txt"]
    run([gpuspool, "--version"], folder)
    run([gpuspool, "doctor"], folder)
    run([gpuspool, "run", "job.py:count", *inputs, "--ranks", "2"], folder, code=3)
    if (folder / "spool-count" / "outputs" / "good" / "2.txt.sum").read_text() != "3\n":
        raise NotAsItShould("the output of good/2.txt is not 3")
    for verb, expected in LOOKS:
        said = run([gpuspool, verb], folder)
        if expected not in said:
            raise NotAsItShould(f"gpuspool {verb} does not say {expected!r}:\n{said[-SHOWN:]}")
    run([gpuspool, "explain", "spool-count", "bad/3.txt"], folder)
    (folder / "bad" / "3.txt").write_text("3\n")
    run([gpuspool, "retry"], folder)
    run([gpuspool, "wait"], folder)
    run([python, "-c", API], folder)
    run([python, "-c", NOTEBOOK], folder)


def hand_over(made: Sequence[Path], into: Path) -> None:
    """Copy what was built into a folder, in place of what was built before. All else in the folder
    stays: whoever names it may have named any.
    """
    into.mkdir(parents=True, exist_ok=True)
    for pattern in ("gpuspool-*.whl", "gpuspool-*.tar.gz"):
        for old in into.glob(pattern):
            old.unlink()
    for path in made:
        shutil.copy(path, into)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--into", type=Path, default=ROOT / "dist", help="default: dist/")
    parser.add_argument("--no-twine", action="store_true", help="leave out twine's check")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="gpuspool-dist-") as temporary:
            home = Path(temporary).resolve()
            for name in ("source", "project"):
                (home / name).mkdir()
            wheel, archive = build(ROOT, home / "built")
            print(f"built {wheel.name} and {archive.name}", flush=True)
            if not options.no_twine:
                run([sys.executable, "-m", "twine", "check", "--strict", wheel, archive], ROOT)
                print("twine check: both would be shown as they should", flush=True)
            files = compare_with_archive(wheel, archive, home / "source")
            print(f"a wheel built from the archive is the same in its {files} files", flush=True)
            python = install(wheel, home / "venv")
            print("installed into a fresh environment; no library is missing", flush=True)
            use(python, home / "project")
            print("used there: runs, every verb that looks, Python API, notebook", flush=True)
            hand_over([wheel, archive], options.into)
    except NotAsItShould as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
