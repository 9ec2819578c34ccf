"""Row "folders that go away": the spool or OUT is taken from its path in the middle of a run.

A case is named by five words:

- which folder: out, spool
- how it goes: rename; mkdir, link, another (renamed, and then an empty folder, a link to one, or
  another run's OUT is at its path); parent (the folder above is renamed); unmount (a lazy umount of
  the file system that holds it); cover (a file system is mounted over it); replaced (the spool is
  renamed, and the same command makes a new one at its path while the old workers live); copied (the
  spool is copied, and the copy resumed beside the original)
- who lives then: together (parent and workers), orphans (the parent was killed before), adopted
  (another parent has adopted the workers)
- the job: single, batched
- how it goes on: back (the folder is put back), told (`--out-moved-to`, or `resume` at the place
  where the spool is now)

Each case ends by itself, with exit code 1 where there is a parent, and no task fails for it. What
is at the path afterwards is, byte for byte, what was put there. Of each task that a journal calls
complete the whole output lies in the folder that was taken away. Then the run goes on, ends with
exit code 0, and the checker judges it as any other.

`python -m torture.moved_folders WORD WORD WORD WORD WORD` plays one case.
"""

from __future__ import annotations

import contextlib
import json
import math
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers import Box, Started, count_lines, kill, newest_parent, tree, wait_until

from gpuspool.spool.errors import GpuspoolError
from torture import mounts
from torture.checker import Counts, check, look, nonce_of, read_facts
from torture.job import body, payloads
from torture.rows import Row

NAME = "folders that go away"
JOB = Path(__file__).with_name("job.py")
JOBS = {"single": "work", "batched": "Batched"}
# A run of so many tasks lasts for some seconds, so that there is a middle to hit.
TASKS, TASK_MS, RANKS = 120, 60, 3
# The folder goes away when the journals have so many lines.
LINES = (12, 48)
OUT_WAYS = ("rename", "mkdir", "link", "another", "parent", "unmount", "cover")
SPOOL_WAYS = ("rename", "mkdir", "parent", "unmount", "cover", "replaced", "copied")
MOUNTED = ("unmount", "cover")
WHO = ("together", "orphans", "adopted")
GOES_ON = ("back", "told")
CASES = {"small": 4, "full": 100}
SMALL = (
    "out unmount together single back",
    "out cover adopted single told",
    "spool replaced orphans batched told",
    "spool copied together batched back",
)
# How many cases are played at once. They mostly wait for a parent that gives up after 8 s.
AT_ONCE = 5
# From the fault to the end of the last process: 8 s of patience, and the time to see workers off.
PATIENCE_S = 90.0
OPTIONS = ("--max-restarts", "1000000", "-q")


@dataclass(frozen=True)
class Case:
    folder: str
    way: str
    who: str
    job: str
    goes_on: str

    def __str__(self) -> str:
        return f"{self.folder} {self.way} {self.who} {self.job} {self.goes_on}"


@dataclass
class Verdict:
    case: Case
    counts: Counts = field(default_factory=Counts)
    problems: list[str] = field(default_factory=list)
    # Whether the run had ended before its folder went away.
    was_late: bool = False


class Scene:
    """One case, from its first command to the last look at it."""

    def __init__(self, case: Case, home: Path) -> None:
        self.case = case
        self.verdict = Verdict(case)
        home.mkdir(parents=True)
        self._box = Box(home)
        self._rng = random.Random(str(case))
        self._executions = home / "executions"
        self._executions.mkdir()
        # The folder in question is `place/F`; the other one lies beside `place`.
        self._place = home / "place"
        self._subject = self._place / "F"
        self._true = home / "true"
        self._disk: mounts.Disk | None = None
        self._cover: mounts.Disk | None = None
        self._place.mkdir()
        self._spool = home / "S"
        self._out = home / "S" / "outputs"
        if case.folder == "out":
            self._out = self._subject
        else:
            self._spool = self._subject
            self._out = self._subject / "outputs"
        tasks = self._box.tasks(payloads(TASKS, TASK_MS))
        self._command: list[str | Path] = ["run", f"{JOB}:{JOBS[case.job]}", "--tasks", tasks]
        self._command += ["--spool", self._spool, "--ranks", str(RANKS), *OPTIONS]
        self._command += ["--arg", f"executions={self._executions}"]
        if case.folder == "out":
            self._command += ["--out", self._out]

    def play(self) -> Verdict:
        """Play the whole case. It leaves no process, and files only if something is wrong."""
        try:
            self._play()
        # A spool that cannot be read any more fails its own case, and the others go on.
        except (AssertionError, OSError, ValueError, LookupError, GpuspoolError) as error:
            self._problem(f"{type(error).__name__}: {error}")
        finally:
            self._box.kill_all()
            for disk in (self._cover, self._disk):
                if disk is not None:
                    disk.unmount()
        if not self.verdict.problems and self.verdict.counts.is_clean:
            shutil.rmtree(self._box.home)
            shutil.rmtree(f"{self._box.home}-cli")
        return self.verdict

    def _problem(self, text: str) -> None:
        self.verdict.problems.append(f"{text}; again: python -m torture.moved_folders {self.case}")

    def _play(self) -> None:
        if self.case.way in MOUNTED:
            self._disk = mounts.Tmpfs(self._box.home / "disk", 16 << 20, 4096)
            self._disk.show_at(self._place)
        started = self._start()
        if self.case.way == "copied":
            self._play_copied(started)
        elif self.case.way == "replaced":
            self._play_replaced(started)
        else:
            self._play_gone(started)

    def _start(self) -> Started:
        """The command whose end is waited for, in the middle of its run."""
        started = self._box.start(*self._command)
        goal = self._rng.randint(*LINES)
        wait_until(lambda: self._is_at(goal) or started.is_over(), PATIENCE_S)
        if self.case.who != "together":
            kill(started.pid)
            started.process.wait(PATIENCE_S)
        if self.case.who != "adopted":
            return started
        adopter = self._box.start("resume", self._spool, *OPTIONS)
        wait_until(lambda: self._is_admitted(adopter.pid) or adopter.is_over(), PATIENCE_S)
        return adopter

    def _is_at(self, goal: int) -> bool:
        return (self._spool / "journal").is_dir() and count_lines(self._spool) >= goal

    def _is_admitted(self, pid: int) -> bool:
        return bool(newest_parent(self._spool)["pid"] == pid)

    # A folder that is taken away.

    def _play_gone(self, started: Started) -> None:
        self._take_away()
        taken_at = time.time()
        before = self._put_there()
        code = self._end_of(started)
        self.verdict.was_late = self._ended_at() <= taken_at
        if code != (0 if self.verdict.was_late else 1) and self.case.who != "orphans":
            self._problem(f"exit code {code}")
        after = self._at_path()
        if after != before:
            differing = sorted(name for name, _ in after.items() ^ before.items())
            self.verdict.counts.found("D", f"{self._subject} differs in {differing}")
        spool, out = self._true_paths()
        self._judge_halfway(spool, out)
        seen = look(out)
        self._go_on(spool, out)
        self._judge(*self._end_paths, looks=[seen])

    def _ended_at(self) -> float:
        """When the run ended in peace; infinite where it did not."""
        spool, _ = self._true_paths()
        try:
            summary = json.loads((spool / "summary.json").read_bytes())
        except FileNotFoundError:
            return math.inf
        return float(summary["at"]) if summary["exit_code"] == 0 else math.inf

    def _end_of(self, started: Started) -> int:
        """Wait until nothing of the run is alive; returns the exit code of its command."""
        code = started.process.wait(PATIENCE_S)
        wait_until(lambda: not self._box.processes(), PATIENCE_S)
        return code

    def _take_away(self) -> None:
        """Let the folder be gone from its path."""
        match self.case.way:
            case "parent":
                self._place.rename(self._box.home / "moved")
                return
            case "unmount":
                mounts.call("umount", "--lazy", self._place)
                return
            case "cover":
                # `Tmpfs` makes the folder that it mounts on, and here that is to be covered.
                cover = mounts.Tmpfs(self._box.home / "cover", 1 << 20, 64)
                cover.show_at(self._subject)
                self._cover = cover
                return
        self._subject.rename(self._true)
        beside = self._box.home / "beside"
        match self.case.way:
            case "mkdir":
                self._subject.mkdir()
            case "link":
                beside.mkdir()
                self._subject.symlink_to(beside)
            case "another":
                self._subject.mkdir()
                (self._subject / ".gpuspool").write_text("0123456789abcdef\n")
                (self._subject / "t0.txt").write_text("another run's\n")

    def _at_path(self) -> dict[str, bytes | None]:
        """All that is at the path of the folder now."""
        return tree(self._subject) if self._subject.is_dir() else {}

    def _put_there(self) -> dict[str, bytes | None]:
        """What was put at the path, without what a task in hand writes there at this moment.

        A job writes to the path that it was given, wherever that leads. What it wrote must be gone
        at the end.
        """
        found = self._at_path()
        return {name: data for name, data in found.items() if not name.startswith(".gpuspool-")}

    def _true_paths(self) -> tuple[Path, Path]:
        """(spool, OUT), wherever they are now."""
        now = self._true
        if self.case.way == "parent":
            now = self._box.home / "moved" / "F"
        elif self.case.way in MOUNTED:
            assert self._disk is not None
            now = self._disk.path / "F"
        if self.case.folder == "out":
            return self._spool, now
        return now, now / "outputs"

    def _go_on(self, spool: Path, out: Path) -> None:
        """Finish the run, once its folder is back or gpuspool was told where it is."""
        self._end_paths = (spool, out)
        if self.case.goes_on == "told":
            command: list[str | Path] = ["resume", spool, *OPTIONS]
            if self.case.folder == "out":
                refused = self._box.run(*command, code=None)
                if refused.code != 2 or "--out-moved-to" not in refused.err:
                    self._problem(f"a start without OUT: exit code {refused.code}")
                command += ["--out-moved-to", out]
        else:
            self._put_back()
            self._end_paths = (self._spool, self._out)
            command = self._command
        self._code = self._box.run(*command, code=None).code
        wait_until(lambda: not self._box.processes(), PATIENCE_S)

    def _put_back(self) -> None:
        match self.case.way:
            case "parent":
                (self._box.home / "moved").rename(self._place)
                return
            case "unmount":
                assert self._disk is not None
                self._disk.show_at(self._place)
                return
            case "cover":
                mounts.call("umount", "--lazy", self._subject)
                return
        if self._subject.is_symlink():
            self._subject.unlink()
        elif self._subject.is_dir():
            shutil.rmtree(self._subject)
        self._true.rename(self._subject)

    # A spool that is made anew, or copied, while the workers of the old one live.

    def _play_replaced(self, started: Started) -> None:
        self._subject.rename(self._true)
        new = self._box.run(*self._command, code=None)
        self._end_of(started)
        spool, out = self._true_paths()
        self._judge_halfway(spool, out)
        self._code = new.code
        self._judge(self._spool, self._out, has_executions=False)
        self._code = self._box.run("resume", spool, *OPTIONS, code=None).code
        self._judge(spool, out, has_executions=False)

    def _play_copied(self, started: Started) -> None:
        copy = self._box.home / "copy"
        shutil.copytree(self._spool, copy, symlinks=True, ignore_dangling_symlinks=True,
                        copy_function=_copy_if_there)  # fmt: skip
        beside = self._box.run("resume", copy, *OPTIONS, code=None)
        code = self._end_of(started)
        if self.case.who != "orphans":
            self._code = code
            self._judge_attempts()
        else:
            # Without a parent the workers see the run to its end themselves.
            self._code = self._box.run("resume", self._spool, *OPTIONS, code=None).code
        self._judge(self._spool, self._out, has_executions=False)
        self._code = beside.code
        self._judge(copy, copy / "outputs", has_executions=False)

    def _judge_attempts(self) -> None:
        """No worker of the original may have ended otherwise than in peace."""
        for state in ("failed", "stopped"):
            for path in (self._spool / state).iterdir():
                self._problem(f"the original's {path.name} is {state}")

    # Judging.

    def _judge_halfway(self, spool: Path, out: Path) -> None:
        """What is told complete must be there, and no task may have failed."""
        counts = self.verdict.counts
        facts = read_facts(spool)
        for task in facts.complete:
            path = out / f"t{task}.txt"
            data = path.read_bytes() if path.is_file() else b""
            if data != body(f"t{task}") + f"nonce {nonce_of(data)}\n".encode():
                counts.found("X", f"task {task} is told complete and is not in {out}")
        for task in facts.failed_round:
            self._problem(f"task {task} failed")

    def _judge(self, spool: Path, out: Path, looks: Any = (), has_executions: bool = True) -> None:
        """What the checker says of the run at its end."""
        if self._code != 0:
            self._problem(f"{spool}: exit code {self._code} at last")
        told = "".join(json.dumps(result) + "\n" for result in self._box.results(spool))
        counts = check(
            spool,
            TASKS,
            claimed_ok=self._code == 0,
            executions=self._executions if has_executions else None,
            looks=looks,
            told=told,
        )
        ours = self.verdict.counts
        for letter in "LDCXR":
            setattr(ours, letter, getattr(ours, letter) + getattr(counts, letter))
        ours.notes += counts.notes
        for task in counts.failed:
            self._problem(f"task {task} failed")
        if not out.is_dir():
            self._problem(f"{out} is not there at last")
        for text in self._box.problems(spool):
            self._problem(text)


def _copy_if_there(source: str, target: str) -> str:
    """Copy a file of a live run: hidden ones may be gone by now."""
    with contextlib.suppress(FileNotFoundError):
        shutil.copy2(source, target)
    return target


def all_cases(can_mount: bool) -> list[Case]:
    """Every case that makes sense."""
    found = []
    for folder, ways in (("out", OUT_WAYS), ("spool", SPOOL_WAYS)):
        for way in ways:
            if way in MOUNTED and not can_mount:
                continue
            for who in WHO:
                for job in JOBS:
                    for goes_on in GOES_ON:
                        found.append(Case(folder, way, who, job, goes_on))
    return found


def choose(amount: str, can_mount: bool) -> list[Case]:
    """The cases of a row: the same ones each time."""
    if amount == "small":
        cases = [Case(*words.split()) for words in SMALL]
        return [case for case in cases if can_mount or case.way not in MOUNTED]
    cases = all_cases(can_mount)
    random.Random(NAME).shuffle(cases)
    return cases[: CASES[amount]]


def verdicts(cases: list[Case], home: Path) -> Iterator[Verdict]:
    """Play cases, several at once."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        scenes = [
            pool.submit(lambda case=case, place=place: Scene(case, home / f"{place}").play())
            for place, case in enumerate(cases)
        ]
        for scene in scenes:
            yield scene.result()


def row(amount: str, home: Path) -> Row:
    """Play the row."""
    began = time.monotonic()
    # Asked here, in the main thread: it makes the mount namespace that the threads inherit.
    reason = mounts.why_not()
    found = Row(NAME, 0, "")
    if reason:
        found.notes.append(f"no case with mounts: {reason}")
    late = 0
    for verdict in verdicts(choose(amount, not reason), home):
        counts = verdict.counts
        found.cases += 1
        late += verdict.was_late
        for letter in "LDCXR":
            setattr(found, letter, getattr(found, letter) + getattr(counts, letter))
        found.failures += [f"{verdict.case}: {text}" for text in counts.notes]
        found.failures += verdict.problems
    found.counts = f"{found.cases} folders went away"
    found.notes.append(f"{late} runs had ended before their folder went away")
    if late > found.cases // 4:
        found.failures.append(f"{late} of {found.cases} runs had ended too early")
    found.seconds = time.monotonic() - began
    return found


if __name__ == "__main__":
    mounts.why_not()
    print(Scene(Case(*sys.argv[1:]), Path(tempfile.mkdtemp(prefix="moved-"), "home")).play())
