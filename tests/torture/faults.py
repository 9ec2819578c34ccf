"""Spoiling one file-system call of one process of a run, by the library `faults.c`.

A `Fault` names a call by its role, its class and its number. A `Scene` is the small run in which it
happens, played again and again in one folder. Scenes are made so that a number means the same call
each time, as far as that is possible while processes race: `Scene.count` counts on runs without a
fault, `Scene.hit` tells which call a fault has come to.

Each scene has 6 tasks and 2 ranks:

even    each rank has 3 tasks; faults in the parent, or in rank 0, the worker
thief   rank 0 has 1 task, rank 1 has 5; faults in rank 0, which steals
heir    all processes of a run were killed with tasks in hand, and with an output published that no
        journal tells of; its spool is copied anew for each case; faults in the parent of the
        resume, which closes the dead and starts ranks
"""

from __future__ import annotations

import atexit
import errno
import json
import os
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

from torture.checker import Counts, check
from torture.forked import Ended, Server
from torture.job import payloads

TASKS = 6
# How long each task takes: a thief that starts later than its victim still finds work to steal.
MS = 2
SCENE_OF = {"parent": "even", "worker": "even", "thief": "thief", "heir": "heir"}
PROCESS_OF = {"parent": "parent", "worker": "r0.a0", "thief": "r0.a0", "heir": "parent"}
ROLES = tuple(SCENE_OF)
MUTATING = ("create", "write", "link", "rename", "unlink", "mkdir")
JOB = Path(__file__).with_name("job.py")

T = TypeVar("T")


class NoCompiler(Exception):
    """There is no C compiler here, so no call can be spoiled."""


@cache
def library(name: str = "faults") -> Path:
    """A compiled library of this folder, compiled once for each process that asks.

    Raises NoCompiler.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise NoCompiler(f"no C compiler (cc, gcc or $CC): {name}.c cannot be made")
    folder = tempfile.mkdtemp(prefix=f"{name}-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder, f"{name}.so")
    source = Path(__file__).with_name(f"{name}.c")
    made = subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", path, source, "-ldl"], capture_output=True
    )
    if made.returncode:
        raise NoCompiler(f"{compiler} cannot make {name}.c: {made.stderr.decode(errors='replace')}")
    return path


@dataclass(frozen=True)
class Fault:
    """The n-th call of a class by a process of a role.

    many: how many calls in a row are spoiled; 0 for all from there on.
    """

    role: str
    call: str
    n: int
    action: str
    error: str = ""
    many: int = 1

    def __str__(self) -> str:
        return " ".join(
            map(str, (self.role, self.call, self.n, self.action, self.error or "-", self.many))
        )

    @staticmethod
    def parse(text: str) -> Fault:
        """The inverse of str."""
        role, call, n, action, error, many = text.split()
        return Fault(role, call, int(n), action, "" if error == "-" else error, int(many))

    @property
    def text(self) -> str:
        """The fault in the words of `faults_arm`."""
        number = getattr(errno, self.error) if self.error else 0
        return (
            f"class={self.call}\nn={self.n}\nmany={self.many}\n"
            f"action={self.action}\nerrno={number}\n"
        )


class Scene:
    """The run in which the faults of one role happen.

    It is played for one case after the other, in one folder, with one server.
    """

    def __init__(self, role: str, home: Path, server: Server) -> None:
        self.role, self.server, self.home = role, server, home
        self.kind = SCENE_OF[role]
        # This folder holds the spool alone, so whatever happens below it is the run's doing.
        self.place = home / "place"
        self.spool = self.place / "S"
        self.executions = home / "executions"
        self._record, self._master = home / "calls", home / "master"
        home.mkdir(parents=True)
        costs = [100.0 if self.kind == "thief" else 1.0] + [1.0] * (TASKS - 1)
        tasks = [
            {"payload": p, "cost": cost} for p, cost in zip(payloads(TASKS, MS), costs, strict=True)
        ]
        (home / "tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
        # A copy, so that editing the file meanwhile changes no job under test.
        shutil.copy(JOB, home)
        self._run = (
            "run",
            "job.py:work",
            "--tasks",
            "tasks.jsonl",
            "--ranks",
            "2",
            "--spool",
            str(self.spool),
            "-q",
        )
        self._run += ("--arg", f"executions={self.executions}")
        if self.kind == "heir":
            self._make_master()

    def _make_master(self) -> None:
        """Make the spool of "heir".

        Both workers die just after they published an output, and the parent dies while it closes
        the first of them.
        """
        self._clear()
        died = "class=link\nmany=1\naction=after\n"
        plan = {
            "r0.a0": f"under={self.spool / 'outputs'}\n{died}n=1\n",
            "r1.a0": f"under={self.spool / 'outputs'}\n{died}n=2\n",
            "parent": f"under={self.spool / 'journal'}\nclass=sync\nn=1\nmany=1\naction=before\n",
        }
        self.server.run(*self._run, cwd=self.home, plan=plan)
        shutil.copytree(self.spool, self._master / "S")
        shutil.copytree(self.executions, self._master / "executions")

    def _clear(self) -> None:
        for folder in (self.place, self.executions):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        self._record.unlink(missing_ok=True)

    def play(self, fault: Fault | None = None, patience_s: float = 30.0) -> Ended:
        """Play the run from its beginning, with a fault. Workers may outlive their parent."""
        self._clear()
        if self.kind == "heir":
            shutil.copytree(self._master, self.home, dirs_exist_ok=True)
            shutil.move(self.home / "S", self.spool)
        text = f"under={self.place}\nrecord={self._record}\n" + (fault.text if fault else "")
        command = ("resume", str(self.spool), "-q") if self.kind == "heir" else self._run
        plan = {PROCESS_OF[self.role]: text}
        return self.server.run(*command, cwd=self.home, plan=plan, patience_s=patience_s, keep=True)

    def again(self, patience_s: float = 30.0) -> Ended:
        """Go on without a fault: with `resume` if there is a spool, else with the same `run`."""
        command = (
            ("resume", str(self.spool), "-q") if (self.spool / "run.json").exists() else self._run
        )
        return self.server.run(*command, cwd=self.home, patience_s=patience_s, keep=True)

    def retry(self) -> Ended:
        """`gpuspool retry`."""
        return self.server.run("retry", str(self.spool), "-q", cwd=self.home, keep=True)

    def verify(self) -> Ended:
        """`gpuspool verify`."""
        return self.server.run("verify", str(self.spool), cwd=self.home)

    def judge(self, claimed_ok: bool = True) -> Counts:
        """What the checker says about the spool."""
        return check(self.spool, TASKS, claimed_ok=claimed_ok, executions=self.executions)

    def count(self, times: int) -> Counter[str]:
        """How many calls of each class the role makes: the most of so many runs without a fault."""
        most: Counter[str] = Counter()
        for _ in range(times):
            self.play()
            self.server.kill_left()
            most |= Counter(line.split(" ", 1)[0] for line in self._lines())
        return most

    def hit(self) -> str | None:
        """The first call that a fault came to: "link 3 /…/x -> /…/y", in paths below `place`."""
        spoiled = (line for line in self._lines() if " ! " in line)
        found = next(spoiled, None)
        return None if found is None else found.rpartition(" ! ")[0].replace(f"{self.place}/", "")

    def _lines(self) -> list[str]:
        return self._record.read_text().splitlines() if self._record.exists() else []

    def logs(self) -> str:
        """What the workers printed."""
        return "".join(
            path.read_text(errors="replace") for path in sorted((self.spool / "logs").glob("*.log"))
        )


def count_calls(home: Path, times: int) -> dict[str, Counter[str]]:
    """How many calls there are to spoil, by role and class: the most of so many runs."""
    with Server(library()) as server:
        return {role: Scene(role, home / "count" / role, server).count(times) for role in ROLES}


def chosen(
    amount: str, name: Callable[[dict[str, Counter[str]]], Iterable[Fault]], small: int, home: Path
) -> list[Fault]:
    """All faults that `name` makes of the calls there are.

    For the amount "small" about `small` of them, spread evenly.
    """
    faults = list(name(count_calls(home, 3 if amount == "full" else 1)))
    return faults if amount == "full" else faults[:: max(1, len(faults) // small)]


def played(
    faults: Iterable[Fault], play: Callable[[Scene, Fault], T], home: Path, at_once: int
) -> Iterator[tuple[Fault, T]]:
    """Every fault with the verdict of `play`, several at once.

    Each lane has a server and scenes of its own.
    """
    lanes: SimpleQueue[dict[str, Scene]] = SimpleQueue()
    servers = [Server(library()) for _ in range(at_once)]
    for number, server in enumerate(servers):
        lanes.put({role: Scene(role, home / f"lane-{number}" / role, server) for role in ROLES})

    def one(fault: Fault) -> tuple[Fault, T]:
        lane = lanes.get()
        try:
            return fault, play(lane[fault.role], fault)
        finally:
            lanes.put(lane)

    try:
        with ThreadPoolExecutor(at_once) as pool:
            yield from pool.map(one, faults)
    finally:
        for server in servers:
            server.close()


def play_one(text: str, play: Callable[[Scene, Fault], object]) -> None:
    """For a module's command line: play one case, tell all, and keep its folder."""
    home, fault = Path(tempfile.mkdtemp(prefix="torture-")), Fault.parse(text)
    with Server(library()) as server:
        scene = Scene(fault.role, home / "scene", server)
        first = scene.play(fault)
        print(
            f"first: exit code {first.code}{' (hung)' if first.hung else ''}, "
            f"{first.seconds:.2f} s\n{first.err}"
        )
        print(f"spoiled: {scene.hit()}\nlogs:\n{scene.logs()}")
        server.kill_left()
        print(f"the whole case: {play(scene, fault)}\nin {scene.home}")
