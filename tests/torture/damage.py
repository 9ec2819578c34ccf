"""Row "damage": one file of a spool is damaged, and then every verb is tried on the spool.

Each case is a copy of a base spool (finished, killed half way, drained, with failed tasks, with
every kind of manifest) with one mutation: a file is torn, flipped, zeroed, emptied, replaced,
copied or removed. `verify` must name it, and `status`, `results` and `failed` must cope with it.
`resume` must end the run as if nothing had happened: each task is complete or failed as it should
be. Only if the mutation destroyed the one line that described a task may that task fail as
unreadable. The damaged file must stand in corrupt/ as it was found.

Several servers of torture/forked.py play cases side by side; some cases are played by the real
command line too.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from typing import Any

from helpers import Box, count_lines, names, wait_until, wait_until_told_to_drain

from torture.checker import Counts, check, checked_line, look
from torture.forked import Ended, Server
from torture.job import payloads
from torture.mutations import DECISIVE, FOREIGN, KINDS, NOT_OURS, PLACES, Mutation, describe, mutate
from torture.rows import Row

JOB = Path(__file__).with_name("job.py")
TASKS = 24
# An attempt whose identity is destroyed might live on another host, so a lease decides.
LEASE = ("--lease", "1s")
CASES = {"small": 10, "full": 1000}
# The name of the file that tasks of a run wait for which is to be stopped half way.
GATE = "gate"
# One of so many cases is played by the real command line too.
REAL_EVERY = {"small": 10, "full": 50}
BASES = ("finished", "killed", "drained", "failed", "manifests")
READERS = ("verify", "status", "results", "failed")


@dataclass(frozen=True)
class Base:
    """A spool that cases are copies of.

    folder: holds the spool, S, and the executions, E. fails: the tasks that fail, and no others.
    """

    name: str
    folder: Path
    fails: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Case:
    base: str
    place: str
    kind: str
    number: int

    def __str__(self) -> str:
        return f"{self.base}/{self.place}/{self.kind}/{self.number}"


@dataclass
class Verdict:
    """What became of one case."""

    case: Case
    counts: Counts = field(default_factory=Counts)
    failures: list[str] = field(default_factory=list)


def gated(tasks: list[Any]) -> list[Any]:
    """All but the first tasks that begin wait at the gate: no run ends before it is opened.

    More are left than two ranks have in hand, so a drain leaves some.
    """
    for task in tasks:
        task.update(gate=GATE, free=14)
    return tasks


class TooLate(AssertionError):
    """The machine was busy: a run that should have been stopped half way had already ended."""


class Builder:
    """Makes the base spools with one server.

    The folder in which the run was started does not exist any more afterwards. So a worker runs in
    the spool itself, and the relative path of the executions leads each copy to its own.
    """

    def __init__(self, server: Server, home: Path) -> None:
        self._server, self._home = server, home

    def build(self) -> list[Base]:
        return [self.build_one(name) for name in BASES]

    def build_one(self, name: str) -> Base:
        """Build one by the method of its name; try again if the machine was too busy."""
        make: Callable[[str], frozenset[int]] = getattr(self, name)
        folder = self._home / name
        for is_last in (False,) * 9 + (True,):
            (folder / "run").mkdir(parents=True)
            (folder / "E").mkdir()
            try:
                fails = make(name)
                break
            except TooLate:
                if is_last:
                    raise
                shutil.rmtree(folder)
            finally:
                self._server.kill_left()
        shutil.rmtree(folder / "run")
        return Base(name, folder, fails)

    def finished(self, name: str) -> frozenset[int]:
        self._expect(0, self._server.wait(self._start(name, payloads(TASKS, 3))))
        return frozenset()

    def killed(self, name: str) -> frozenset[int]:
        self._kill(
            self._start(name, gated(payloads(TASKS, 5))),
            lambda: count_lines(self._spool(name)) >= TASKS // 3,
        )
        self._open(name)
        return frozenset()

    def drained(self, name: str) -> frozenset[int]:
        pid = self._start(name, gated(payloads(TASKS, 5)))
        wait_until(lambda: count_lines(self._spool(name)) >= TASKS // 3)
        self._expect(0, self._server.run("drain", self._spool(name), cwd=self._home, keep=True))
        # The workers are told before people are. From then on they finish what is in hand.
        wait_until_told_to_drain(self._spool(name))
        self._open(name)
        # What was stopped by order ends so that no script goes on with it by itself.
        self._expect(4, self._server.wait(pid))
        return frozenset()

    def failed(self, name: str) -> frozenset[int]:
        """One task raised, and one ended its worker twice."""
        tasks = payloads(TASKS, 2, fail={3})
        tasks[9]["exit"] = True
        self._expect(3, self._server.wait(self._start(name, tasks)))
        return frozenset({3, 9})

    def manifests(self, name: str) -> frozenset[int]:
        """Every kind of manifest: orphans, a sweep and a retry.

        The run is killed, a claim is removed, the run is resumed and swept, retried, killed again.
        """
        spool = self._spool(name)
        tasks = gated(payloads(TASKS, 4, fail={5, 11}))
        for index in (5, 11):
            tasks[index].update(gate="failing", free=0)
        self._open(name, "failing")
        self._kill(self._start(name, tasks), lambda: count_lines(spool) >= TASKS // 3)
        self._open(name)
        (spool / "claims" / "rank-0000" / names(spool / "claims" / "rank-0000")[-1]).write_bytes(
            b""
        )
        self._expect(3, self._server.run("resume", spool, *LEASE, cwd=self._home))
        (self._home / name / "failing").unlink()
        retry = self._server.start("retry", spool, cwd=self._home)
        self._kill(retry, lambda: names(spool / "claims" / "retry-01"))
        self._open(name, "failing")
        kinds = {path.split(".")[-2] for path in names(spool / "manifests")}
        # How many rulings there are depends on who met the bad tasks first.
        kinds = {"ruling" if kind.startswith("ruling-") else kind for kind in kinds}
        assert kinds == {"rank-0000", "rank-0001", "orphans", "sweep-01", "retry-01", "ruling"}, (
            kinds
        )
        return frozenset({5, 11})

    def _spool(self, name: str) -> Path:
        return self._home / name / "S"

    def _open(self, name: str, gate: str = GATE) -> None:
        """Let the tasks behind a gate go on, here and in every copy of this spool."""
        (self._home / name / gate).touch()

    def _start(self, name: str, tasks: list[Any]) -> int:
        folder = self._home / name / "run"
        (folder / "tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
        command = [
            "run",
            f"{JOB}:Batched",
            "--tasks",
            "tasks.jsonl",
            "--ranks",
            "2",
            "--spool",
            "../S",
        ]
        return self._server.start(*command, "--arg", "executions=../E", cwd=folder)

    def _kill(self, pid: int, condition: Callable[[], Any]) -> None:
        wait_until(condition, poll=0.001)
        self._server.kill_left()
        self._expect(-signal.SIGKILL, self._server.wait(pid))

    def _expect(self, code: int, ended: Ended) -> None:
        if ended.code != code:
            raise TooLate(f"exit code {code} was expected: {ended}")


class Player:
    """Plays cases with one server."""

    def __init__(self, server: Server, bases: list[Base], home: Path) -> None:
        self._server, self._home = server, home
        self._bases = {base.name: base for base in bases}

    def play(self, case: Case, is_real: bool = False) -> Verdict | None:
        """Play one case; None if its base has nothing that could be damaged in this way."""
        base = self._bases[case.base]
        folder = self._home / str(case).replace("/", "-")
        shutil.copytree(base.folder, folder)
        mutation = mutate(random.Random(f"damage {case}"), folder / "S", case.place, case.kind)
        if mutation is None:
            shutil.rmtree(folder)
            return None
        trial = _Trial(base, case, mutation, folder)
        if is_real:
            box = Box(folder)
            try:
                trial.run(self._real(box))
            finally:
                box.kill_all()
        else:
            trial.run(self._forked(folder))
        if not trial.verdict.failures:
            shutil.rmtree(folder)
            shutil.rmtree(f"{folder}-cli", ignore_errors=True)
        return trial.verdict

    def _forked(self, folder: Path) -> Run:
        # `run` kills whatever a command leaves alive.
        return lambda *args: self._server.run(*args, cwd=folder)

    def _real(self, box: Box) -> Run:
        def run(*args: str) -> Ended:
            began = time.monotonic()
            done = box.run(*args, code=None)
            return Ended(
                done.code, done.out, done.err, time.monotonic() - began, left=box.processes()
            )

        return run


Run = Callable[..., Ended]


class _Trial:
    """One case: the verbs before, the resume, the verbs after, and the judgement."""

    def __init__(self, base: Base, case: Case, mutation: Mutation, folder: Path) -> None:
        self.verdict = Verdict(case)
        self._base, self._mutation, self._folder, self._spool = base, mutation, folder, folder / "S"
        self._what = describe(mutation, self._spool)
        is_file = mutation.is_content and mutation.path.is_file()
        self._damaged = mutation.path.read_bytes() if is_file else None

    def run(self, run: Run) -> None:
        before = look(self._spool / "outputs")
        said = self._read(run, READERS, "before")["verify"].out
        ended = run("resume", "S", *LEASE, "-q")
        self._check_sane("resume", ended, {0, 3})
        if ended.left:
            self._fail(f"resume left the processes {ended.left}")
        after = self._read(run, ("verify", "results"), "after")
        # While an attempt may still write, `verify` does not complain about its torn last line.
        said += after["verify"].out
        self._check_named(said)
        counts = check(
            self._spool,
            TASKS,
            claimed_ok=ended.code == 0,
            executions=self._folder / "E",
            looks=[before],
            told=after["results"].out if after["results"].code == 0 else None,
            unreadable_ok=True,
        )
        self.verdict.counts = counts
        if ended.code in (0, 3):
            for text in counts.notes:
                if not text.startswith("R"):
                    self._fail(text)
            self._check_tasks(counts, ended)
            self._check_kept(said)
            self._check_strangers()

    def _fail(self, text: str) -> None:
        self.verdict.failures.append(f"{self.verdict.case} ({self._what}): {text}")

    def _read(self, run: Run, verbs: Sequence[str], when: str) -> dict[str, Ended]:
        """Verbs that only read."""
        ended = {verb: run(verb, "S") for verb in verbs}
        for verb, one in ended.items():
            self._check_sane(f"{verb} {when}", one, {0, 5} if verb == "verify" else {0})
        return ended

    def _check_sane(self, verb: str, ended: Ended, codes: set[int]) -> None:
        """The command must end by itself, without a traceback, with one of these exit codes."""
        last = [
            line.replace(f"{self._folder}/", "") for line in ended.err.strip().splitlines()[-1:]
        ] or [""]
        if ended.hung:
            self._fail(f"{verb} hung")
        elif "Traceback" in ended.err:
            self._fail(f"{verb} crashed: {last[0]}")
        elif ended.code not in codes:
            self._fail(f"{verb} ended with exit code {ended.code}: {last[0]}")

    def _check_named(self, said: str) -> None:
        """`verify` must name the file if it holds no valid record any more."""
        if self._is_detectable() and not self._is_named(said):
            self._fail("verify does not name it")

    def _is_named(self, said: str) -> bool:
        return str(self._mutation.path.relative_to(self._folder)) in said

    def _is_detectable(self) -> bool:
        case = self.verdict.case
        if case.place in ("FORMAT", "run.json", "job"):
            return case.kind not in ("copied", "folder_foreign", "folder_stale")
        if case.place not in DECISIVE or case.kind in (
            "copied",
            "folder_foreign",
            "folder_stale",
            "missing",
        ):
            return False
        if self._damaged is None:
            return True
        if case.place in ("manifests", "journal"):
            return any(checked_line(line) is None for line in self._damaged.splitlines())
        return not _is_json(self._damaged)

    def _check_tasks(self, counts: Counts, ended: Ended) -> None:
        """Only tasks that must fail, or that nothing describes, may fail. The exit code agrees."""
        wrongly = set(counts.failed) - self._base.fails
        if wrongly:
            self._fail(f"tasks {sorted(wrongly)} failed")
        if (ended.code == 3) != bool(counts.failed or counts.unreadable):
            self._fail(
                f"exit code {ended.code} with {counts.failed} failed "
                f"and {counts.unreadable} unreadable"
            )

    def _check_kept(self, said: str) -> None:
        """Every file that `verify` named as damaged must be in corrupt/, byte for byte."""
        if self._damaged is None or not self._is_detectable() or not self._is_named(said):
            return
        folder = self._spool / "corrupt"
        copies = (
            [path.read_bytes() for path in folder.iterdir() if path.is_file()]
            if folder.is_dir()
            else []
        )
        if self._damaged not in copies:
            self._fail("no copy in corrupt/")

    def _check_strangers(self) -> None:
        """Foreign files must stay as they are.

        Files that were never linked to their names must be gone once nobody lives who wants them.
        """
        folder = self._mutation.path
        if self.verdict.case.kind == "folder_foreign":
            changed = [name for name in FOREIGN if not _is_foreign(folder / name)]
            if changed:
                self._fail(f"{changed} were changed or deleted, and are not ours")
        elif self.verdict.case.kind == "folder_stale" and (
            left := sum(1 for _ in folder.glob(".rank-0000.a00.json.*"))
        ):
            self._fail(f"{left} stale files were left")


def _is_foreign(path: Path) -> bool:
    return path.is_dir() or (path.is_file() and path.read_text() == NOT_OURS)


def _is_json(data: bytes) -> bool:
    try:
        return isinstance(json.loads(data), dict)
    except ValueError:
        return False


def cases() -> Iterator[Case]:
    """Every combination, well mixed; then all of them again at other places in the files."""
    everything = [(base, place, kind) for base in BASES for place in PLACES for kind in KINDS]
    for number in range(4):
        mixed = list(everything)
        random.Random(number).shuffle(mixed)
        yield from (Case(*one, number) for one in mixed)


def verdicts(amount: str, home: Path) -> Iterator[Verdict]:
    """As many cases as the amount asks for, played by one server for each core."""
    width = len(os.sched_getaffinity(0))
    servers = [Server() for _ in range(width)]
    try:
        bases = Builder(servers[0], home / "bases").build()
        free: Queue[Player] = Queue()
        for server in servers:
            free.put(Player(server, bases, home))

        def play(job: tuple[int, Case]) -> Verdict | None:
            player = free.get()
            try:
                return player.play(job[1], is_real=job[0] % REAL_EVERY[amount] == 0)
            finally:
                free.put(player)

        found = 0
        todo = enumerate(cases())
        with ThreadPoolExecutor(width) as pool:
            while some := list(itertools.islice(todo, CASES[amount] - found)):
                for verdict in filter(None, pool.map(play, some)):
                    found += 1
                    yield verdict
    finally:
        for server in servers:
            server.close()


def row(amount: str, home: Path) -> Row:
    """Play the row: at least as many mutations as the amount asks for."""
    began = time.monotonic()
    found = Row("damage", 0, "")
    unreadable = again = 0
    for verdict in verdicts(amount, home):
        counts = verdict.counts
        found.cases += 1
        found.add(counts)
        found.failures += verdict.failures
        unreadable, again = unreadable + len(counts.unreadable), again + counts.again
    found.counts = f"{found.cases} mutations"
    found.notes.append(f"{unreadable} tasks lost their only description and failed as unreadable")
    found.seconds = time.monotonic() - began
    return found


def main(name: str) -> None:
    """Play one case again and keep its folder, to be looked at."""
    base, place, kind, number = name.split("/")
    home = Path(tempfile.mkdtemp(prefix="damage-"))
    with Server() as server:
        bases = Builder(server, home / "bases").build()
        print(
            home, Player(server, bases, home).play(Case(base, place, kind, int(number))), sep="\n"
        )


if __name__ == "__main__":
    main(sys.argv[1])
