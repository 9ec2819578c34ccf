"""Who imports whom, told from the sources; what the cheap commands load, told by the interpreter; how long all is."""

import ast
import re
import sys
from collections import defaultdict
from itertools import chain
from pathlib import Path

import pytest
from helpers import JOBS, Box

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("orchestrator", "worker", "spool")
FILES = sorted(chain(ROOT.glob("gpuspool.py"), *((ROOT / package).glob("**/*.py") for package in PACKAGES)))
HEAVY = {"torch", "rich", "watchdog", "numpy"}
ONE_FILE = {"torch", "rich", "watchdog", "filelock", "pynvml", "click"}
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 70


def imports(path: Path) -> set[str]:
    """The top-level names that a file imports, anywhere in it; relative imports are those of its own package."""
    found = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(path.parent.name if node.level else (node.module or "").partition(".")[0])
    return found


def of(package: str) -> set[str]:
    return set().union(*(imports(path) for path in FILES if path.parent.name == package))


def third_party(names: set[str]) -> set[str]:
    return names - set(sys.stdlib_module_names) - {*PACKAGES, "gpuspool"}


def test_orchestrator_and_worker_never_import_each_other() -> None:
    assert len(FILES) > 20
    assert "worker" not in of("orchestrator")
    assert "orchestrator" not in of("worker")
    assert not {"gpuspool"} & (of("orchestrator") | of("worker") | of("spool"))


def test_spool_imports_nothing_of_ours_and_little_else() -> None:
    assert not {"orchestrator", "worker"} & of("spool")
    assert third_party(of("spool")) <= {"msgspec", "filelock"}


def test_only_the_worker_imports_torch() -> None:
    assert "torch" not in of("orchestrator") | of("spool")


def test_a_third_party_library_is_imported_in_one_file() -> None:
    importers = defaultdict(list)
    for path in FILES:
        for name in third_party(imports(path)) - {"msgspec"}:
            importers[name].append(str(path.relative_to(ROOT)))
    assert set(importers) == ONE_FILE
    assert {name: files for name, files in importers.items() if len(files) > 1} == {}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) < MAX_FILE_LINES
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions if f.end_lineno - f.lineno >= MAX_FUNCTION_LINES}
    assert long == {}


def loaded(text: str) -> set[str]:
    """The top-level names in the report of `-X importtime`."""
    found = {match[1].partition(".")[0] for match in re.finditer(r"^import time:.*\| +(\S+)$", text, re.MULTILINE)}
    assert "json" in found or "os" in found, text
    return found


def test_starting_a_worker_loads_nothing_heavy(box: Box) -> None:
    done = box.run("-X", "importtime", "-P", "-m", "worker", "--help", program=(sys.executable,))
    assert "--attempt" in done.out
    assert not loaded(done.err) & {*HEAVY, "orchestrator", "click", "filelock", "pynvml"}


def test_looking_at_a_spool_loads_nothing_heavy(box: Box) -> None:
    box.run("run", f"{JOBS}/plain.py:double", "--lines", box.lines(3), "--spool", "S")
    gpuspool = Path(sys.executable).with_name("gpuspool")
    for verb in (["status", "--json"], ["results"], ["verify"], ["failed"], ["logs"]):
        done = box.run("-X", "importtime", gpuspool, *verb, "S", program=(sys.executable,))
        assert not loaded(done.err) & {*HEAVY, "worker", "pynvml"}, verb


def test_a_job_without_torch_runs_without_torch(box: Box) -> None:
    box.write("job.py", "import sys\ndef f(task, ctx):\n    return sorted({'torch', 'numpy'} & set(sys.modules))\n")
    box.run("run", "job.py:f", "--lines", box.lines(2), "--spool", "S")
    assert [result["result"] for result in box.results("S")] == [[], []]


def test_a_run_without_devices_asks_no_driver_for_them(box: Box) -> None:
    gpuspool = Path(sys.executable).with_name("gpuspool")
    run = ["run", f"{JOBS}/plain.py:double", "--lines", box.lines(3), "--spool", "S", "--devices", "cpu"]
    done = box.run("-X", "importtime", gpuspool, *run, program=(sys.executable,))
    assert not loaded(done.err) & {"torch", "numpy", "pynvml"}
