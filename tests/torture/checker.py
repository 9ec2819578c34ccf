"""The independent judge of a spool: what was lost, doubled, wrong, claimed falsely, or run again.

It reads the files of the spool and of OUT, by docs/spool-format.md alone, and shares no code with
spool/, worker/ or orchestrator/. It knows one job, torture/job.py, of whose tasks it knows every
byte. It counts:

L   a task without a verdict: neither a complete line whose output exists, nor a failure on record
D   an output that changed between two looks; a hidden or a second output of a task in OUT; a task
    that is told twice; parents or attempts that were not kept apart (`epochs.py`)
C   an output or a result that is not what the job computes for this task, or that no execution of
    it wrote
X   success is claimed (exit code 0, summary.json, `results`) although it is not so, or a parent
    claims to have seen off what it has not (`epochs.py`)
R   an execution that began after a complete line of its task stood in a journal

Every count has a note that names the task and the file. A checker that never fails proves nothing,
so test_torture_checker.py plants each of these.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torture import epochs
from torture.job import body, value

JOURNAL = re.compile(r"rank-(\d{4,})\.a(\d{2,})\.jsonl", re.ASCII)
MANIFEST = re.compile(
    r"(rank-\d{4,}|(retry|sweep|ruling|added)-\d{2,}|rank-\d{4,}\.a\d{2,}(?P<orphans>\.orphans))\.jsonl",
    re.ASCII,
)


@dataclass
class Counts:
    """What was found. `again` are executions beyond the first of each task, whatever the reason."""

    L: int = 0
    D: int = 0
    C: int = 0
    X: int = 0
    R: int = 0
    notes: list[str] = field(default_factory=list)
    complete: int = 0
    failed: list[int] = field(default_factory=list)
    unreadable: list[int] = field(default_factory=list)
    duplicates: int = 0
    executions: int = 0
    again: int = 0

    def found(self, letter: str, text: str) -> None:
        """Count one more."""
        setattr(self, letter, getattr(self, letter) + 1)
        self.notes.append(f"{letter}: {text}")

    @property
    def is_clean(self) -> bool:
        return not (self.L or self.D or self.C or self.X)


@dataclass(frozen=True)
class Line:
    """One valid complete line of a journal, and where it stands.

    Of several lines of a task, readers tell the one with the lowest (attempt, offset).
    """

    attempt: tuple[int, int]
    offset: int
    record: dict[str, Any]

    @property
    def nonce(self) -> str | None:
        result = self.record.get("result")
        return result.get("nonce") if isinstance(result, dict) else None

    @property
    def stood_at(self) -> float:
        """The time from which on an execution of the task was in vain."""
        return float(self.record.get("start", 0.0)) + float(self.record.get("seconds", 0.0))


@dataclass
class Facts:
    """Everything that the journals and manifests of a spool say."""

    complete: dict[int, list[Line]] = field(default_factory=dict)
    failed_round: dict[int, int] = field(default_factory=dict)
    newest_round: dict[int, int] = field(default_factory=dict)
    # From which round on lines of a task count, where it was redone.
    redone: dict[int, int] = field(default_factory=dict)
    described: set[int] = field(default_factory=set)
    # The closing of each closed attempt.
    closings: dict[str, dict[str, Any]] = field(default_factory=dict)

    def fail(self, task: int, round_: int) -> None:
        self.failed_round[task] = max(round_, self.failed_round.get(task, -1))

    def raise_round(self, task: int, round_: int) -> None:
        self.newest_round[task] = max(round_, self.newest_round.get(task, 0))

    def has_failed(self, task: int) -> bool:
        return self.failed_round.get(task, -1) >= self.newest_round.get(task, 0)


@dataclass(frozen=True)
class Output:
    """One file in OUT as it was when looked at."""

    inode: int
    sha256: str
    nonce: str | None


Look = dict[str, Output]
# For each task, the nonce of each of its executions and when that began.
Executions = dict[int, dict[str, float]]


def check(
    spool: Path,
    tasks: int,
    *,
    claimed_ok: bool = False,
    executions: Path | None = None,
    looks: Sequence[Look] = (),
    told: str | None = None,
    unreadable_ok: bool = False,
    has_results: bool = True,
    has_one_clock: bool = True,
) -> Counts:
    """Judge a spool in which nothing runs any more and that should have a verdict for every task.

    claimed_ok: the last command ended with exit code 0. executions: where the job noted its
    executions. looks: what `look` saw of OUT earlier. told: what `gpuspool results` printed.
    unreadable_ok: a task that no valid manifest line describes is not lost, since the test itself
    destroyed its description; nor need the records of parents and attempts be whole. has_results:
    False where a command ran, which returns nothing. has_one_clock: False where the clocks of hosts
    are apart, so that nobody can tell what was first: then R stays 0.
    """
    counts, facts = Counts(), read_facts(spool)
    out = out_of(spool)
    began = read_executions(executions) if executions is not None else None
    for task in range(tasks):
        _judge_task(counts, facts, out, task, began, unreadable_ok, has_results)
    _judge_out(counts, out, tasks)
    now = look(out)
    for earlier in looks:
        for name in changed(earlier, now):
            counts.found("D", f"output {name} changed after it was published")
    if told is not None:
        _judge_told(counts, facts, tasks, told)
    _judge_claims(counts, spool, tasks, claimed_ok)
    if began is not None:
        _judge_executions(counts, facts, began, has_one_clock)
    if not unreadable_ok:
        epochs.judge(spool, facts.closings, executions, counts.found, has_one_clock)
    return counts


def checked_line(line: bytes) -> dict[str, Any] | None:
    """The JSON object of one sealed line without its newline; None if it is not whole."""
    head, mark, tail = line.rpartition(b',"crc":"')
    if not mark or tail != b'%08x"}' % zlib.crc32(head):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def sealed_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(offset, record) of the valid lines of a regular file. Without a newline it is no line."""
    if not stat.S_ISREG(path.lstat().st_mode):
        return
    offset = 0
    for line in path.read_bytes().split(b"\n")[:-1]:
        record = checked_line(line)
        if record is not None:
            yield offset, record
        offset += len(line) + 1


def read_facts(spool: Path) -> Facts:
    """Everything that decides about tasks: manifests and closings, then journals."""
    facts = Facts()
    for path, match in _files(spool / "manifests", MANIFEST):
        for offset, record in sealed_lines(path):
            if (match["orphans"] or match[2] == "ruling") and offset == 0:
                # A closing, or a ruling: the tasks that failed by it.
                for lost in [*record.get("lost", ()), *record.get("failures", ())]:
                    facts.fail(lost["task"], lost.get("round", 0))
                if match["orphans"]:
                    facts.closings[path.name.removesuffix(".orphans.jsonl")] = record
            elif _is_about_a_task(record) and "key" in record:
                facts.described.add(record["task"])
                if match[2] == "retry":
                    facts.raise_round(record["task"], record.get("round", 0))
                    if record.get("redo"):
                        facts.redone[record["task"]] = record["round"]
    for path, match in _files(spool / "journal", JOURNAL):
        for offset, record in sealed_lines(path):
            if offset == 0 or not _is_about_a_task(record):
                continue
            if record.get("round", 0) < facts.redone.get(record["task"], 0):
                continue
            if record.get("state") == "complete":
                line = Line((int(match[1]), int(match[2])), offset, record)
                facts.complete.setdefault(record["task"], []).append(line)
            elif record.get("state") == "failed":
                facts.fail(record["task"], record.get("round", 0))
    for lines in facts.complete.values():
        lines.sort(key=lambda line: (line.attempt, line.offset))
    return facts


def _is_about_a_task(record: dict[str, Any]) -> bool:
    return type(record.get("task")) is int and type(record.get("round", 0)) is int


def _files(folder: Path, pattern: re.Pattern[str]) -> Iterator[tuple[Path, re.Match[str]]]:
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = pattern.fullmatch(path.name)
        if match:
            yield path, match


def out_of(spool: Path) -> Path:
    """Where the outputs of a run are, by its run.json; SPOOL/outputs if that cannot be read."""
    record = _json(spool / "run.json")
    named = record.get("out") if record else None
    return Path(named) if isinstance(named, str) else spool / "outputs"


def _json(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def look(out: Path) -> Look:
    """Every file of OUT that is an output of this job, hidden ones not."""
    found = {}
    for path in sorted(out.rglob("*")):
        if path.name.startswith(".") or path.is_symlink() or not path.is_file():
            continue
        data = path.read_bytes()
        name = str(path.relative_to(out))
        found[name] = Output(path.stat().st_ino, hashlib.sha256(data).hexdigest(), nonce_of(data))
    return found


def changed(earlier: Look, later: Look) -> list[str]:
    """The outputs that are not the very same files any more."""
    return [name for name, output in earlier.items() if later.get(name) != output]


def nonce_of(data: bytes) -> str | None:
    """The nonce of the execution that wrote this output, by its last line; None if it is torn."""
    match = re.search(rb"\nnonce (\S+)\n\Z", data)
    return match[1].decode(errors="replace") if match else None


def read_executions(folder: Path) -> Executions:
    """Every execution that began, by what the job noted."""
    found: Executions = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        for line in path.read_text().split("\n")[:-1]:
            record = json.loads(line)
            found.setdefault(record["task"], {})[record["nonce"]] = record["at"]
    return found


def _judge_task(
    counts: Counts,
    facts: Facts,
    out: Path,
    task: int,
    began: Executions | None,
    unreadable_ok: bool,
    has_results: bool,
) -> None:
    lines = facts.complete.get(task)
    if lines:
        counts.duplicates += len(lines) - 1
        _judge_complete(counts, out, task, lines[0], began, has_results)
    elif facts.has_failed(task):
        counts.failed.append(task)
    elif unreadable_ok and task not in facts.described:
        counts.unreadable.append(task)
    else:
        counts.found("L", f"task {task} has no verdict")


def _judge_complete(
    counts: Counts, out: Path, task: int, line: Line, began: Executions | None, has_results: bool
) -> None:
    """A task that a line calls complete must have its whole, right output, and a right result."""
    path = out / f"t{task}.txt"
    try:
        data = path.read_bytes()
    except OSError:
        counts.found("L", f"task {task} is called complete and its output {path} is not there")
        return
    counts.complete += 1
    nonce = nonce_of(data)
    if nonce is None or data != body(f"t{task}") + f"nonce {nonce}\n".encode():
        counts.found("C", f"output {path} is not what task {task} writes")
    elif line.record.get("outputs") != [[path.name, len(data)]]:
        counts.found(
            "C", f"the line of task {task} names {line.record.get('outputs')}, not its output"
        )
    result = line.record.get("result")
    if not has_results:
        return
    if not isinstance(result, dict) or result.get("value") != value(task):
        counts.found("C", f"task {task} has the result {result!r}, not {value(task)}")
    if began is not None and not {nonce, line.nonce} <= began.get(task, {}).keys():
        counts.found("C", f"no execution of task {task} has the nonce {nonce} or {line.nonce}")


def _judge_out(counts: Counts, out: Path, tasks: int) -> None:
    """Of each task, only its one output may lie in OUT."""
    expected = {f"t{task}.txt" for task in range(tasks)} | {".gpuspool"}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if name in expected:
            continue
        if path.name.startswith(".gpuspool-"):
            counts.found("D", f"{path} was left in OUT")
        elif path.is_file() and nonce_of(path.read_bytes()) is not None:
            counts.found("D", f"{path} is a second output")


def _judge_told(counts: Counts, facts: Facts, tasks: int, told: str) -> None:
    """`gpuspool results` must tell each task once, by the line of the lowest (attempt, offset)."""
    records = [json.loads(line) for line in told.splitlines()]
    times = Counter(record["index"] for record in records)
    for task in range(tasks):
        if times[task] > 1:
            counts.found("D", f"`results` tells task {task} {times[task]} times")
        elif not times[task]:
            counts.found("L", f"`results` does not tell task {task}")
    for record in records:
        task, lines = record["index"], facts.complete.get(record["index"])
        if (record["state"] == "complete") != bool(lines):
            letter = "L" if lines else "X"
            counts.found(
                letter, f"`results` calls task {task} {record['state']}, its journals do not"
            )
        elif lines and record["result"] != lines[0].record.get("result"):
            counts.found("C", f"`results` tells another line of task {task} than the first")


def _judge_claims(counts: Counts, spool: Path, tasks: int, claimed_ok: bool) -> None:
    is_true = counts.complete == tasks and counts.L == counts.C == 0
    if claimed_ok and not is_true:
        counts.found("X", "exit code 0")
    summary = _json(spool / "summary.json")
    if summary is not None and not is_true:
        told = summary.get("tasks", {})
        if summary.get("exit_code") == 0 or told.get("complete") == tasks:
            counts.found(
                "X",
                f"summary.json claims {told.get('complete')} complete, "
                f"exit code {summary['exit_code']}",
            )


def _judge_executions(counts: Counts, facts: Facts, began: Executions, has_one_clock: bool) -> None:
    """Count R, and how often tasks were executed at all."""
    counts.executions = sum(map(len, began.values()))
    counts.again = counts.executions - len(began)
    if not has_one_clock:
        return
    for task, nonces in began.items():
        for nonce, at in nonces.items():
            others = [line.stood_at for line in facts.complete.get(task, ()) if line.nonce != nonce]
            if others and at > min(others):
                counts.found("R", f"task {task} was run again ({nonce}) though it was complete")
