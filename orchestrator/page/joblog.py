"""The finished tasks of a run as GNU parallel's --joblog has them, for who has scripts for that.

One line for each task that is complete or failed, in the order in which they ended, with the
columns Seq, Host, Starttime, JobRuntime, Send, Receive, Exitval, Signal and Command, between which
are tabs. Seq counts from 1, as there; it is one more than the number of the task. Nothing is sent
or received. Exitval and Signal are those of a command. A class has none: a task of it has Exitval 0
if it is complete, else 1, or the exit code and the signal of the worker that it took along.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import msgspec

from gpuspool.orchestrator.page.calls import Outcome
from gpuspool.orchestrator.page.facts import Run
from gpuspool.orchestrator.report.failures import each_failure
from gpuspool.orchestrator.report.keys import TaskKey, read_keys
from gpuspool.orchestrator.text.printable import one_line, shell_word
from gpuspool.spool import placeholders
from gpuspool.spool.layout import rank_of
from gpuspool.spool.open_folder import out_of
from gpuspool.spool.records import CPU, Error, TaskLine
from gpuspool.spool.states import JobKind, Verdict

COLUMNS = (
    "Seq", "Host", "Starttime", "JobRuntime", "Send", "Receive", "Exitval", "Signal", "Command",
)  # fmt: skip

# So many lines are written at once.
LINES_AT_ONCE = 4096

# A task's words when a task is known by its number, and by the attempt that it ended in.
Words = Callable[[int, int], str]


def joblog_pieces(run: Run) -> Iterator[bytes]:
    """The list, some lines at a time. Raises OSError."""
    ends = _ends(run)
    errors = {task: error for task, error, _ in each_failure(run.view)}
    words = _words(run)
    hosts = [one_line(run.host_of(attempt)) or ":" for attempt in run.attempts]
    order = sorted(range(len(ends)), key=ends.__getitem__)
    lines = ["\t".join(COLUMNS) + "\n"]
    for at in order:
        end, begin, number, task = ends[at]
        code, killed_by = _exit(errors.get(task))
        lines.append(
            f"{task + 1}\t{hosts[number]}\t{begin:.3f}\t{end - begin:.3f}\t0\t0"
            f"\t{code}\t{killed_by}\t{words(task, number)}\n"
        )
        if len(lines) == LINES_AT_ONCE:
            yield "".join(lines).encode()
            lines.clear()
    yield "".join(lines).encode()


def _ends(run: Run) -> list[tuple[float, float, int, int]]:
    """(end, begin, number of the attempt, task) of the call that gave each task its verdict.

    Of a complete task that is its first call that completed; of one that was redone, or has failed,
    its last.
    """
    ledger = run.view.ledger
    found: dict[int, tuple[float, float, int, int]] = {}
    for number, attempt in enumerate(run.attempts):
        for task, begin, duration, outcome in attempt.calls.rows():
            match ledger.verdict(task):
                case Verdict.COMPLETE:
                    if outcome != Outcome.COMPLETE:
                        continue
                case Verdict.FAILED:
                    if outcome not in (Outcome.FAILED, Outcome.LOST):
                        continue
                case None:
                    continue
            row = (begin + duration, begin, number, task)
            known = found.get(task)
            is_first = ledger.complete[task] and task not in ledger.redone
            if known is None or (row < known if is_first else row > known):
                found[task] = row
    return list(found.values())


def _exit(error: Error | None) -> tuple[int, int]:
    """Exitval and Signal."""
    if error is None:
        return 0, 0
    if error.exit_code is not None and error.exit_code < 0:
        return 0, -error.exit_code
    if error.signal:
        named = getattr(signal, error.signal, None)
        if isinstance(named, signal.Signals):
            return error.exit_code or 0, int(named)
    return error.exit_code or 1, 0


def _words(run: Run) -> Words:
    """What stands under Command: the command as it ran for a task, or the job and its key."""
    view = run.view
    job = view.latest_job()
    if job.kind is not JobKind.COMMAND:
        keys = read_keys(view)
        spec = one_line(job.spec)
        return lambda task, _: f"{spec} {one_line(keys[task] or f'#{task}')}"
    pieces = [placeholders.parse(word) for word in job.command]
    names = {piece.name for word in pieces for piece in word} - {""}
    if names <= {"index", *placeholders.OF_THE_WORKER}:
        keys_and_inputs: dict[int, tuple[str, str]] = {}
    elif names <= {"key", "output", "index", "scratch", *placeholders.OF_THE_WORKER}:
        keys_and_inputs = {
            line.task: (line.key, "")
            for manifest in view.manifests.values()
            for line in manifest.records(TaskKey)
        }
    else:
        keys_and_inputs = {line.task: (line.key, _input(line)) for line in view.planned_tasks()}
    out = str(out_of(view.layout, view.run))

    def words(task: int, number: int) -> str:
        key, text = keys_and_inputs.get(task, ("", ""))
        attempt = run.attempts[number]
        device = "" if attempt.intent is None else attempt.intent.device

        def value_of(name: str) -> str:
            match name:
                case "output":
                    return os.path.join(out, key)
                case "key":
                    return key
                case "index":
                    return str(task)
                case "rank":
                    return str(rank_of(attempt.name))
                case "device":
                    return "cpu" if device == CPU else "cuda:0"
                case "scratch":
                    return str(view.layout.scratch(task))
                case _:
                    return placeholders.of_input(name, text)

        return " ".join(shell_word(placeholders.fill(word, value_of)) for word in pieces)

    return words


def _input(line: TaskLine) -> str:
    """What `{input}` stands for: the path of a file, a text, or the payload as JSON."""
    payload = msgspec.json.decode(line.payload)
    match payload:
        case str():
            return payload
        case {"path": str() as path}:
            return path
        case _:
            return bytes(line.payload).decode(errors="replace")
