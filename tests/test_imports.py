"""Who imports whom, as the sources tell; what the cheap commands load, as the interpreter tells."""

import ast
import ctypes
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
from helpers import JOBS, Box

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("orchestrator", "worker", "spool")
FILES = sorted(
    chain(ROOT.glob("gpuspool/*.py"), *((ROOT / package).rglob("*.py") for package in PACKAGES))
)
HEAVY = {"torch", "rich", "watchdog", "numpy", "pyarrow", "pandas"}
ONE_FILE = {"torch", "rich", "watchdog", "filelock", "pyarrow", "pandas"}
# Both sides ask NVML, and share no code but the protocol.
ONE_FILE_EACH = {"pynvml": {"gpuspool.orchestrator.plan.nvml", "gpuspool.worker.gpu"}}
# click's decorators are the command line; its one package is the boundary.
ONE_PACKAGE = {"click": "gpuspool.orchestrator.cli"}

# Each module of spool and of worker may import only what stands in a line above its own; those of
# one line know nothing of each other. A module that is missing here fails the test.
SPOOL_ORDER = (
    "states errors file_system placeholders signals",
    "layout exits oom cores",
    "records",
    "codec ledger identity death",
    "publish values",
    "beats code open_folder usage",
    "manifest parents processes timeouts trust",
    "claims journal",
    "view",
    "liveness blame sweep mending",
    "closing",
)
WORKER_ORDER = (
    "causes context drain folders gpu imported nudges reports resources say standing starting "
    "supply",
    "clocks devices modules",
    "backlog batch_size children doing leaving limits memory parent pinning scratch turns warmup",
    "usage",
    "beat idle outputs results timer",
    "job job_end prefetch settle trouble",
    "call prepare",
    "execute",
    "statistics",
    "work",
    "attempt",
    "__main__",
)
# orchestrator: a folder may import those above it, and `report` and `supervise` do not know each
# other.
FOLDERS_ABOVE = {
    "text": set(),
    "plan": {"text"},
    "slurm": {"text", "plan"},
    "report": {"text", "plan", "slurm"},
    "page": {"text", "plan", "slurm", "report"},
    "supervise": {"text", "plan", "slurm"},
    "export": {"text", "plan", "slurm", "report"},
    "api": {"text", "plan", "slurm", "report", "page", "export", "supervise"},
    "gpu_coordinator": {"text", "plan", "slurm", "report", "supervise"},
    "cli": {"text", "plan", "slurm", "report", "page", "export", "supervise", "api"},
}


def module_of(path: Path) -> str:
    """The dotted name of a file of ours: `gpuspool.spool.view`, and of a package that of its
    folder.
    """
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] != "gpuspool":
        parts = ["gpuspool", *parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def imports(path: Path) -> set[str]:
    """The dotted names of all modules that a file imports, anywhere in it."""
    return set(_imports(ast.parse(path.read_bytes())))


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            assert node.module is not None
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            submodules = [name for name in names if name in MODULES]
            yield from submodules
            if len(submodules) < len(names):
                yield node.module


def of(package: str) -> set[str]:
    """What the modules of a package import."""
    inside = [path for name, path in MODULES.items() if f"{name}.".startswith(f"{package}.")]
    assert inside
    return set().union(*map(imports, inside))


def third_party(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - {"gpuspool"}


def ours(names: set[str], package: str) -> set[str]:
    """Those of the names that lie in a package of ours."""
    return {name for name in names if f"{name}.".startswith(f"gpuspool.{package}.")}


def test_orchestrator_and_worker_never_import_each_other() -> None:
    assert not ours(of("gpuspool.orchestrator"), "worker")
    assert not ours(of("gpuspool.worker"), "orchestrator")


def test_spool_imports_nothing_of_ours_and_little_else() -> None:
    assert not {name for name in of("gpuspool.spool") if name.startswith("gpuspool")} - ours(
        of("gpuspool.spool"), "spool"
    )
    assert third_party(of("gpuspool.spool")) == {"msgspec"}


def test_the_worker_needs_msgspec_alone_and_asks_torch_and_nvml_where_they_are() -> None:
    assert third_party(of("gpuspool.worker")) == {"msgspec", "torch", "pynvml"}


@pytest.mark.parametrize(
    ("package", "order"),
    [("spool", SPOOL_ORDER), ("worker", WORKER_ORDER)],
    ids=["spool", "worker"],
)
def test_the_modules_of_a_flat_package_stand_in_order(package: str, order: tuple[str, ...]) -> None:
    level = {name: number for number, line in enumerate(order) for name in line.split()}
    prefix = f"gpuspool.{package}."
    there = {name.removeprefix(prefix) for name in MODULES if name.startswith(prefix)}
    assert there == level.keys()
    for name in there:
        for other in ours(imports(MODULES[prefix + name]), package):
            below = other.removeprefix(prefix)
            # It may be the package itself, for its version; that has no level.
            if below in level:
                assert level[below] < level[name], f"{name} imports {below}"


def test_arrows_between_the_folders_of_the_orchestrator_go_one_way() -> None:
    prefix = "gpuspool.orchestrator."
    for name, path in MODULES.items():
        if not name.startswith(prefix):
            continue
        folder = name.removeprefix(prefix).partition(".")[0]
        seen = {
            other.removeprefix(prefix).partition(".")[0]
            for other in imports(path)
            if other.startswith(prefix)
        }
        assert seen - {folder} <= FOLDERS_ABOVE[folder], name


def test_a_third_party_library_is_imported_in_one_place() -> None:
    importers = defaultdict(list)
    for name, path in MODULES.items():
        for library in third_party(imports(path)) - {"msgspec"}:
            importers[library].append(name)
    assert set(importers) == {*ONE_FILE, *ONE_FILE_EACH, *ONE_PACKAGE}
    for library in ONE_FILE:
        assert len(importers[library]) == 1, library
    for library, modules in ONE_FILE_EACH.items():
        assert set(importers[library]) == modules, library
    for library, package in ONE_PACKAGE.items():
        assert {name.rpartition(".")[0] for name in importers[library]} == {package}


def loaded(text: str) -> set[str]:
    """The modules in the report of `-X importtime`: their names, and those of all packages that
    they lie in.
    """
    names = [match[1] for match in re.finditer(r"^import time:.*\| +(\S+)$", text, re.MULTILINE)]
    found = {
        ".".join(name.split(".")[:end]) for name in names for end in range(1, name.count(".") + 2)
    }
    assert "json" in found or "os" in found, text
    return found


def test_starting_a_worker_loads_nothing_heavy(box: Box) -> None:
    done = box.run(
        "-X", "importtime", "-P", "-m", "gpuspool.worker", "--help", program=(sys.executable,)
    )
    assert "--attempt" in done.out
    assert not loaded(done.err) & {*HEAVY, "gpuspool.orchestrator", "click", "filelock", "pynvml"}
    # These come along with much that looks harmless, such as importlib.abc. An installation that
    # can be edited imports some of them in its .pth file, while `site` is imported.
    own = done.err.partition("| site\n")[2]
    assert not loaded(own) & {"tempfile", "shutil", "subprocess", "logging", "asyncio"}


IMPORT_EACH_SECOND = """
import os, sys
import gpuspool.orchestrator.cli.main
for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        __import__(name)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, name
"""


def test_each_module_that_a_verb_imports_late_may_be_the_first(box: Box) -> None:
    """Most tests run verbs in a process that has imported all of them."""
    late = [name for name in MODULES if name.startswith("gpuspool.orchestrator.api.")]
    assert len(late) > 5
    box.run("-c", IMPORT_EACH_SECOND, *late, program=(sys.executable,))


def test_looking_at_a_spool_loads_nothing_heavy(box: Box) -> None:
    box.run("run", f"{JOBS}/plain.py:double", "--lines", box.lines(3), "--spool", "S")
    gpuspool = Path(sys.executable).with_name("gpuspool")
    verbs = [
        "status --json",
        "results",
        "results --format csv --flatten",
        "verify",
        "failed",
        "logs",
        "report",
    ]
    for verb in map(str.split, verbs):
        done = box.run("-X", "importtime", gpuspool, *verb, "S", program=(sys.executable,))
        assert not loaded(done.err) & {*HEAVY, "gpuspool.worker", "pynvml"}, verb


def test_a_job_without_torch_runs_without_torch(box: Box) -> None:
    box.write(
        "job.py",
        "import sys\ndef f(task, ctx):\n    return sorted({'torch', 'numpy'} & set(sys.modules))\n",
    )
    box.run("run", "job.py:f", "--lines", box.lines(2), "--spool", "S")
    assert [result["result"] for result in box.results("S")] == [[], []]


def has_driver() -> bool:
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    "devices",
    [
        pytest.param(["--devices", "cpu"], id="devices-cpu"),
        pytest.param([], id="host-without-a-driver"),
    ],
)
def test_a_run_without_devices_asks_no_driver_for_them(box: Box, devices: list[str]) -> None:
    if not devices and has_driver():
        pytest.skip("this host has a driver, which is asked")
    gpuspool = Path(sys.executable).with_name("gpuspool")
    run = ["run", f"{JOBS}/plain.py:double", "--lines", box.lines(3), "--spool", "S", *devices]
    done = box.run("-X", "importtime", gpuspool, *run, program=(sys.executable,))
    assert not loaded(done.err) & {"torch", "numpy", "pynvml"}
    assert "gpuspool.orchestrator.report.picture" not in loaded(done.err), "no table was drawn"
