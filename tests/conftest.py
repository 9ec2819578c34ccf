"""The fixtures of the end-to-end tests: a folder to run commands in, an NVML to ask, and a Slurm.

No process is left behind in the folder.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import warm
from helpers import TESTS, Box, Nvml
from hypothesis import settings
from slurm.cluster import Cluster, why_not

# The files of tests that wait longer than they work.
WAITING = ("test_torture", "test_slurm", "test_sick", "test_stops", "test_budgets")
# The files of tests about how a command starts, its streams, its signals, its limits and what it
# finds around it: they execute the installed program. In the others a warm process forks it.
EXECUTING = (
    *("test_standard_streams", "test_environment", "test_locales", "test_inherited_signals"),
    *("test_ways_in", "test_first_", "test_completion", "test_errors", "test_kills", "test_stops"),
    *("test_pinning", "test_nvml", "test_containers", "test_slurm", "test_limits", "test_run"),
    *("test_starting", "test_fresh_processes", "test_wheel", "test_torture"),
)
# How long one example takes says more of the machine than of the code.
settings.register_profile("gpuspool", deadline=None)
settings.load_profile("gpuspool")
# Where the tests run in the background of a shell, Ctrl-C and Ctrl-\\ are ignored, and would be by
# all that the tests start. What is handled here is not ignored there.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the tests that mostly wait come first: at the end nothing would be done beside them."""
    items.sort(key=lambda item: not item.path.name.startswith(WAITING))


@pytest.fixture(scope="session", autouse=True)
def warm_processes() -> Iterator[None]:
    """They end with the tests."""
    yield
    warm.stop()


@pytest.fixture
def box(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Box]:
    home = tmp_path / "home"
    home.mkdir()
    one = Box(home, forks=not request.path.name.startswith(EXECUTING))
    yield one
    one.kill_all()


@pytest.fixture
def slurm(request: pytest.FixtureRequest, box: Box) -> Iterator[Cluster]:
    """A real Slurm, which the commands of the box reach.

    A test that needs another one than three nodes with three GPUs each says so by
    `@pytest.mark.parametrize("slurm", [{"nodes": 2, "MaxArraySize": "5"}], indirect=True)`.
    """
    if why_not():
        pytest.skip(why_not())
    with Cluster(box, **getattr(request, "param", {})) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> Nvml:
    """A libnvidia-ml.so.1 that says what a test tells it, for the real bindings to load."""
    compiler = os.environ.get("CC") or shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler (cc) to build a libnvidia-ml.so.1 with")
    folders = {}
    for name, flags in (("new", []), ("old", ["-DWITHOUT_MIG"])):
        folders[name] = tmp_path_factory.mktemp(f"nvml-{name}")
        library = folders[name] / "libnvidia-ml.so.1"
        command = [compiler, "-shared", "-fPIC", "-Wall", "-Werror", "-D_GNU_SOURCE", *flags]
        subprocess.run([*command, "-o", library, TESTS / "nvml" / "nvml.c"], check=True)
    return Nvml(folders["new"], folders["old"])
