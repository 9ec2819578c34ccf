"""Row "full disk, full inodes, read-only": a file system goes bad half way, and is repaired.

A case is named by four words:

- the file system: tmpfs, ext4
- what lies on it: spool (the spool with its outputs), out (only `--out`), logs (only what workers
  and jobs print)
- what goes wrong: own-bytes, own-inodes (the run itself uses up what there is), bytes, inodes
  (somebody else does), read-only
- how the job writes: write, numpy, torch, tidy, command

Gates hold back the second half of the tasks until the file system has gone bad.

The run must end by itself within 30 s, with exit code 1 or 4, with the system's own words and the
path on stderr. No process of it may be left, and no task may have failed. Once the file system is
repaired, the same command must end with exit code 0, and every output must be there and right.

`python -m torture.full_disk WORD WORD WORD WORD` plays one case and shows what the run said.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from helpers import slowness

from torture import checker, disk_job
from torture.checker import Counts
from torture.forked import Ended, Server
from torture.job import payloads
from torture.mounts import Disk, Ext4, Tmpfs, mounted, why_not
from torture.rows import Row

NAME = "full disk, full inodes, read-only"
TASKS, HALF = 24, 12
# How long it may take from the fault to the end of the run and of its last process, on
# a quiet machine.
PATIENCE_S = 30.0
SIZE, INODES = 20 << 20, 512
# Where the run itself uses up the disk, there is room for so many more outputs and half of one.
# That is fewer than are due.
ROOM = 5
OUTPUT_BYTES = {
    "write": 4096,
    "numpy": 68 << 10,
    "torch": 68 << 10,
    "tidy": 256 << 10,
    "command": 64 << 10,
}
SUFFIX = {"write": ".txt", "numpy": ".npy", "torch": ".pt", "tidy": ".bin", "command": ".bin"}
FUNCTION = {"write": "write", "numpy": "save_numpy", "torch": "save_torch", "tidy": "save_tidily"}
CONTENT = {"tidy": disk_job.large_chunk}
FAULTS = ("own-bytes", "bytes", "own-inodes", "inodes", "read-only")
WORDS = ("No space left on device", "Read-only file system", "Input/output error")
LOG_FAULTS = (("tmpfs", "bytes"), ("ext4", "bytes"), ("ext4", "read-only"))
# How many cases are played at once. They spend most of their time waiting for restarts.
AT_ONCE = 6
SMALL = (
    "tmpfs out bytes write",
    "tmpfs out bytes numpy",
    "tmpfs spool inodes command",
    "ext4 spool read-only write",
)


@dataclass(frozen=True)
class Case:
    kind: str
    place: str
    fault: str
    writer: str

    def __str__(self) -> str:
        return f"{self.kind} {self.place} {self.fault} {self.writer}"

    @property
    def is_possible(self) -> bool:
        """Whether the case makes sense.

        A tmpfs cannot be made read-only while a file is open, a log needs no new inode, and only
        `write` prints.
        """
        if self.place == "logs":
            return self.writer == "write" and (
                self.fault == "bytes" or (self.kind, self.fault) == ("ext4", "read-only")
            )
        return (self.kind, self.place, self.fault) != ("tmpfs", "spool", "read-only")

    @property
    def is_cheap(self) -> bool:
        """Whether it is played: torch takes a second for each worker, so few cases use it."""
        return self.writer != "torch" or (
            self.kind == "ext4" and self.fault in ("bytes", "read-only")
        )


@dataclass
class Verdict:
    """What became of a case."""

    counts: Counts = field(default_factory=Counts)
    problems: list[str] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)
    # From the fault to the end.
    seconds: float = 0.0


def cases(amount: str) -> Iterator[Case]:
    """All cases that are played."""
    if amount == "small":
        yield from (Case(*text.split()) for text in SMALL)
        return
    for words in itertools.product(
        ("tmpfs", "ext4"), ("out", "spool", "logs"), FAULTS, OUTPUT_BYTES
    ):
        case = Case(*words)
        if case.is_possible and case.is_cheap:
            yield case


class Play:
    """One case, in a folder of its own."""

    def __init__(self, case: Case, home: Path, server: Server) -> None:
        self.case, self.home, self.server = case, home, server
        self.disk: Disk
        self.verdict = Verdict()
        self.gates, self.executions = home / "gates", home / "executions"
        for folder in (self.gates, self.executions):
            folder.mkdir(parents=True)

    def play(self) -> Verdict:
        kind = {"tmpfs": Tmpfs, "ext4": Ext4}[self.case.kind]
        try:
            with mounted(kind, self.home / "disk", SIZE, INODES) as self.disk:
                self.spool = (self.disk.path if self.case.place == "spool" else self.home) / "S"
                self._open_gates(0, HALF)
                command = self._command()
                if self.case.place == "logs":
                    self.server.run(*command, "--time-limit", "0s", cwd=self.home)
                    self.disk.show_at(self.spool / "logs")
                self._break_half_way(self.server.start(*command, cwd=self.home))
                self._repair_and_go_on(command)
        finally:
            self.server.kill_left()
        return self.verdict

    def _open_gates(self, start: int, stop: int) -> None:
        for index in range(start, stop):
            (self.gates / str(index)).touch()

    def _command(self) -> list[str]:
        """The command of the run. What it needs is made first."""
        options = ["run", "--ranks", "2", "--spool", str(self.spool)]
        if self.case.place == "out":
            options += ["--out", str(self.disk.path / "out")]
        if self.case.writer == "command":
            folder = self.home / "in"
            folder.mkdir()
            for index in range(TASKS):
                (folder / f"{index:02d}").write_bytes(disk_job.chunk(index))
            wait = 'until [ -e "$0" ]; do sleep 0.01; done; exec cp "$1" "$2"'
            return [
                *options,
                "in/*",
                "--",
                "sh",
                "-c",
                wait,
                f"{self.gates}/{{index}}",
                "{input}",
                "{output}.bin",
            ]
        tasks = self.home / "tasks.jsonl"
        tasks.write_text(
            "".join(f'{{"payload": {{"n": {p["n"]}, "ms": 1}}}}\n' for p in payloads(TASKS))
        )
        job = Path(disk_job.__file__)
        options += [
            "--tasks",
            str(tasks),
            "--arg",
            f"gates={self.gates}",
            "--arg",
            f"executions={self.executions}",
        ]
        return [*options, f"{job}:{FUNCTION[self.case.writer]}"]

    def _break_half_way(self, pid: int) -> None:
        """Start the run, break the disk, and see how the run ends."""
        deadline = time.monotonic() + PATIENCE_S * slowness()
        while len(self._facts().complete) < HALF and time.monotonic() < deadline:
            time.sleep(0.01)
        self._break()
        self._open_gates(HALF, TASKS)
        began = time.monotonic()
        ended = self.server.wait(pid, PATIENCE_S * slowness())
        while self.server.left() and time.monotonic() < began + PATIENCE_S * slowness():
            time.sleep(0.02)
        self.verdict.seconds = time.monotonic() - began
        self.verdict.ended.append(ended)
        self._judge_end(ended, self.server.left())
        self.server.kill_left()

    def _break(self) -> None:
        """Break the disk. If the run itself is to use up the rest, some is left for it."""
        match self.case.fault:
            case "own-bytes":
                self.disk.fill(leave=(2 * ROOM + 1) * OUTPUT_BYTES[self.case.writer] // 2)
            case "bytes":
                self.disk.fill()
            case "own-inodes":
                self.disk.fill_inodes(leave=ROOM)
            case "inodes":
                self.disk.fill_inodes()
            case "read-only":
                self.disk.make_read_only()

    def _facts(self) -> checker.Facts:
        return checker.read_facts(self.spool)

    def _judge_end(self, ended: Ended, left: list[int]) -> None:
        """How a run must end on a bad disk."""
        problem = self.verdict.problems.append
        if ended.hung:
            problem(f"had not ended after {PATIENCE_S:.0f} s")
        elif ended.code not in (1, 4):
            problem(f"ended with exit code {ended.code}")
        if left:
            problem(f"{len(left)} processes lived on for {PATIENCE_S:.0f} s after the fault")
        where = self.spool / "logs" if self.case.place == "logs" else self.disk.path
        if not any(word in ended.err for word in WORDS) or str(where) not in ended.err:
            problem(
                f"stderr does not name the errno and a path below {where}: {ended.err[-400:]!r}"
            )
        failed = sorted(self._facts().failed_round)
        if failed:
            problem(f"tasks {failed} failed for good because of the disk")

    def _repair_and_go_on(self, command: list[str]) -> None:
        """Repair the disk; the same command must then end well."""
        looks = [checker.look(self._out())]
        self.disk.free()
        if self.case.fault == "read-only":
            self.disk.repair()
        ended = self.server.run(*command, cwd=self.home, patience_s=2 * PATIENCE_S * slowness())
        self.verdict.ended.append(ended)
        if ended.code != 0:
            self.verdict.problems.append(
                f"after the repair it ends with exit code {ended.code}: {ended.err[-600:]!r}"
            )
        if self.case.writer == "write":
            self.verdict.counts = checker.check(
                self.spool,
                TASKS,
                claimed_ok=ended.code == 0,
                executions=self.executions,
                looks=looks,
            )
        else:
            self._judge_large(ended.code == 0, looks[0])

    def _out(self) -> Path:
        return self.disk.path / "out" if self.case.place == "out" else self.spool / "outputs"

    def _judge_large(self, is_claimed: bool, look: checker.Look) -> None:
        """Count, as the checker does, in outputs that it does not know."""
        counts, facts, out = self.verdict.counts, self._facts(), self._out()
        for index in range(TASKS):
            key = f"{index:02d}" if self.case.writer == "command" else f"t{index}"
            path = out / f"{key}{SUFFIX[self.case.writer]}"
            lines = facts.complete.get(index)
            if facts.has_failed(index):
                continue
            if not lines or not path.exists():
                counts.found(
                    "L",
                    f"task {index} has {len(lines or ())} complete lines, output {path.exists()}",
                )
            elif lines[0].record["outputs"] != [[path.name, path.stat().st_size]]:
                counts.found("C", f"task {index}: its line names {lines[0].record['outputs']}")
            elif disk_job.read_back(path) != CONTENT.get(self.case.writer, disk_job.chunk)(index):
                counts.found("C", f"{path} is not what task {index} writes")
        names = {path.name for path in out.iterdir()}
        for name in names - {".gpuspool"}:
            if name.startswith("."):
                counts.found("D", f"{out / name} was left in OUT")
        for name in checker.changed(look, checker.look(out)):
            counts.found("D", f"output {name} changed after it was published")
        if is_claimed and counts.L + counts.C:
            counts.found("X", "exit code 0")


def play_all(chosen: list[Case], home: Path, at_once: int) -> list[Verdict]:
    """Play cases, a few at a time, each with a server that no other uses meanwhile."""
    with contextlib.ExitStack() as stack:
        free: queue.SimpleQueue[Server] = queue.SimpleQueue()
        for _ in range(at_once):
            free.put(stack.enter_context(Server()))

        def play(case: Case) -> Verdict:
            server = free.get()
            try:
                return Play(case, home / str(case).replace(" ", "-"), server).play()
            finally:
                free.put(server)

        return list(stack.enter_context(ThreadPoolExecutor(at_once)).map(play, chosen))


def row(amount: str, home: Path) -> Row:
    """All cases of an amount."""
    reason = why_not()
    if reason:
        return Row(NAME, 0, f"skipped: {reason}", notes=[reason])
    began, chosen = time.monotonic(), list(cases(amount))
    verdicts = play_all(chosen, home, min(AT_ONCE, len(chosen)))
    row = Row(NAME, len(chosen), "", seconds=time.monotonic() - began)
    for case, verdict in zip(chosen, verdicts, strict=True):
        for letter in "LDCXR":
            setattr(row, letter, getattr(row, letter) + getattr(verdict.counts, letter))
        texts = [*verdict.problems, *verdict.counts.notes]
        row.failures += [f"python -m torture.full_disk {case}: {text}" for text in texts]
    slowest = max(verdict.seconds for verdict in verdicts)
    row.counts = (
        f"{len(chosen)} disks went bad, each run ended in at most {slowest:.1f} s "
        "and went on once the disk was repaired"
    )
    return row


def main(words: list[str]) -> int:
    """Play one case and tell all of it."""
    reason = why_not()
    if reason:
        print(f"skipped: {reason}")
        return 0
    with tempfile.TemporaryDirectory() as home:
        verdict = play_all([Case(*words)], Path(home), 1)[0]
    for ended in verdict.ended:
        print(f"exit code {ended.code} after {ended.seconds:.1f} s\n{ended.err}{ended.out}")
    print(
        *verdict.problems,
        *verdict.counts.notes,
        f"{verdict.seconds:.1f} s from the fault to the end",
        sep="\n",
    )
    return int(bool(verdict.problems or verdict.counts.notes))


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main(sys.argv[1:]))
