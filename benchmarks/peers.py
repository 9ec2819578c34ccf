"""Who is measured: one entry for each system, with the adapter that drives it.

An adapter is a script in adapters/ with a fixed contract. Its arguments are BENCH N WORKERS FOLDER;
FOLDER/lines holds the tasks, one a line: "INDEX SECONDS". A library's adapter is the program that a
user would write: it does the bench in the peer's own interpreter, ends with one line of JSON,
{"done": N}, and is what is timed. The adapter of a system with a command line of its own answers
with one line of JSON, {"argv": [...]}, the command that a user would type; that command is timed,
and the adapter is not. Called again with the same folder, a system that can go on goes on.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
VENVS = HERE / ".venvs"


@dataclass(frozen=True)
class Peer:
    """One system. `keeps`: what a SIGKILL of all its processes leaves; `benches`: those that mean
    something for it; `interpreter`: the Python that has it, where that is neither the runner's nor
    one of a venv of its own.
    """

    name: str
    adapter: str
    keeps: str
    benches: tuple[str, ...]
    requirements: tuple[str, ...] = ()
    has_command: bool = False
    is_durable: bool = False
    program: str = ""
    quick: bool = False
    variant: str = ""
    interpreter: str = ""

    @property
    def slug(self) -> str:
        """Its name on the command line and as a folder's."""
        return self.adapter.removeprefix("with_").removesuffix(".py") + self.variant

    @property
    def python(self) -> str:
        """The interpreter of its own venv; the runner's where it needs none."""
        if self.requirements:
            return str(VENVS / self.slug / "bin" / "python")
        return self.interpreter or sys.executable

    def why_not(self) -> str:
        """Why it cannot be measured here; "" if it can."""
        if self.program and shutil.which(self.program) is None:
            return f"{self.program} is not on PATH; install_peers.py says how to get it"
        if not self.requirements:
            return ""
        note = VENVS / f"{self.slug}.json"
        if not note.exists():
            return "not installed; run `python benchmarks/install_peers.py`"
        return str(json.loads(note.read_text())["reason"])

    def version(self) -> str:
        note = VENVS / f"{self.slug}.json"
        return (
            str(json.loads(note.read_text())["version"])
            if self.requirements and note.exists()
            else ""
        )


# What a system is not put through would say nothing of it: a scan where nothing is kept, the loss
# of a worker where each task is a process of its own.
_LIBRARY = ("throughput", "startup", "skew", "recovery", "rank_loss", "overhead")
PEERS = (
    Peer(
        "gpuspool", "with_gpuspool.py", "everything",
        (*_LIBRARY, "startup_torch", "scan", "latency", "idle", "metadata", "ahead", "ranks",
         "elements"),
        has_command=True, is_durable=True, quick=True,
    ),
    Peer(
        "gpuspool, costs known", "with_gpuspool.py", "everything", ("skew",),
        has_command=True, is_durable=True,
        quick=True, variant="_costs",
    ),
    Peer(
        "our floor", "with_floor.py", "journals", ("throughput", "startup", "recovery", "scan"),
        is_durable=True,
        quick=True,
    ),
    Peer(
        "gpuspool's libraries, imported", "with_imports.py", "nothing", ("startup",),
        quick=True, variant="_libraries",
    ),
    Peer(
        "gpuspool itself, imported", "with_imports.py", "nothing", ("startup",),
        quick=True, variant="_modules",
    ),
    Peer("multiprocessing.Pool", "with_pool.py", "nothing", _LIBRARY, quick=True),
    Peer("joblib", "with_joblib.py", "nothing", _LIBRARY, ("joblib",)),
    Peer(
        "joblib.Memory", "with_joblib_memory.py", "a folder a task", ("recovery", "scan"),
        ("joblib",),
        is_durable=True
    ),
    Peer(
        "GNU parallel", "with_parallel.py", "joblog",
        ("throughput", "startup", "startup_torch", "skew", "recovery", "scan"),
        has_command=True, is_durable=True, program="parallel",
    ),
    Peer("huey on SQLite", "with_huey.py", "queue", _LIBRARY, ("huey",), is_durable=True),
    Peer("dask", "with_dask.py", "nothing", _LIBRARY, ("distributed",)),
    Peer("ray", "with_ray.py", "nothing", _LIBRARY, ("ray",)),
    Peer("parsl", "with_parsl.py", "checkpoint", (*_LIBRARY, "scan"), ("parsl",), is_durable=True),
    Peer(
        "HyperQueue", "with_hyperqueue.py", "nothing (wheel)",
        ("throughput", "startup", "skew", "recovery"),
        ("hyperqueue",),
    ),
    Peer(
        "datatrove", "with_datatrove.py", "marker files",
        ("throughput", "startup", "skew", "recovery", "scan", "overhead"), ("datatrove",),
        is_durable=True,
    ),
    Peer(
        "submitit", "with_submitit.py", "pickles", ("throughput", "startup", "skew"), ("submitit",)
    ),
)  # fmt: skip


def chosen(names: Sequence[str], quick: bool) -> list[Peer]:
    """The peers of these names (all without any); raises SystemExit for a name that is none."""
    unknown = set(names) - {peer.slug for peer in PEERS}
    if unknown:
        raise SystemExit(
            f"no peer is called {min(unknown)!r}; there are: {', '.join(p.slug for p in PEERS)}"
        )
    return [
        peer for peer in PEERS if peer.slug in names or (not names and (peer.quick or not quick))
    ]
