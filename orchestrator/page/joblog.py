"""The finished tasks of a run as GNU parallel's --joblog has them, for who has scripts for that.

One line for each task that is complete or failed, in the order in which they ended, with the
columns Seq, Host, Starttime, JobRuntime, Send, Receive, Exitval, Signal and Command, between which
are tabs. Seq counts from 1, as there; it is one more than the number of the task. Nothing is sent
or received. Exitval and Signal are those of a command. A class has none: a task of it has Exitval 0
if it is complete, else 1, or the exit code and the signal of the worker that it took along.

Of some tasks it is known that they are finished, and not by which call: where a batch took its
worker along, say. They come first, with Starttime and JobRuntime 0.
"""

from __future__ import annotations

import array
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from gpuspool.orchestrator.page.reading import Reading
from gpuspool.orchestrator.report.failures import each_failure
from gpuspool.orchestrator.report.keys import TaskKey, read_keys
from gpuspool.orchestrator.text.printable import one_line, shell_word
from gpuspool.spool import placeholders
from gpuspool.spool.layout import rank_of
from gpuspool.spool.open_folder import out_of
from gpuspool.spool.records import CPU, Error, TaskLine
from gpuspool.spool.states import JobKind

COLUMNS = (
    "Seq", "Host", "Starttime", "JobRuntime", "Send", "Receive", "Exitval", "Signal", "Command",
)  # fmt: skip

# So many lines are written at once.
LINES_AT_ONCE = 4096

# What stands for the host where none is known, as for parallel it is the one that it runs on.
NO_HOST = ":"

# A task's words when a task is known by its number, and by the number of the attempt that it ended
# in; None where that is not known.
Words = Callable[[int, int | None], str]


@dataclass(frozen=True)
class _Failed:
    """What is kept of the error of a failed task: one has up to 16 KiB, and there may be many."""

    code: int
    signal: int
    host: str


def joblog_pieces(reading: Reading) -> Iterator[bytes]:
    """The list, some lines at a time. Raises OSError."""
    failed = {
        task: _Failed(*_exit(error), sys.intern(one_line(error.host)))
        for task, error, _ in each_failure(reading.view)
    }
    words = _words(reading)
    hosts = [one_line(reading.view.host_of(attempt.name)) for attempt in reading.attempts]
    complete = _Failed(0, 0, "")
    lines = ["\t".join(COLUMNS) + "\n"]
    for begin, seconds, number, task in _rows(reading):
        how = failed.get(task, complete)
        host = how.host if number is None else hosts[number]
        lines.append(
            f"{task + 1}\t{host or NO_HOST}\t{begin:.3f}\t{seconds:.3f}\t0\t0"
            f"\t{how.code}\t{how.signal}\t{words(task, number)}\n"
        )
        if len(lines) == LINES_AT_ONCE:
            yield "".join(lines).encode()
            lines.clear()
    yield "".join(lines).encode()


def _rows(reading: Reading) -> Iterator[tuple[float, float, int | None, int]]:
    """(begin, seconds, number of the attempt, task) of the call that gave each task its verdict, in
    the order in which these ended; before them the tasks of which no such call is known.
    """
    ledger = reading.view.ledger
    ends = array.array("d")
    numbers = array.array("i")
    places = array.array("i")
    is_told = bytearray(ledger.tasks)
    for number, attempt in enumerate(reading.attempts):
        calls = attempt.calls
        for at, tells in enumerate(calls.tells):
            if tells:
                is_told[calls.tasks[at]] = 1
                ends.append(calls.begins[at] + calls.durations[at])
                numbers.append(number)
                places.append(at)
    task = is_told.find(0)
    while task >= 0:
        if ledger.verdict(task) is not None:
            yield 0.0, 0.0, None, task
        task = is_told.find(0, task + 1)
    for row in sorted(range(len(ends)), key=ends.__getitem__):
        calls = reading.attempts[numbers[row]].calls
        at = places[row]
        yield calls.begins[at], calls.durations[at], numbers[row], calls.tasks[at]


def _exit(error: Error) -> tuple[int, int]:
    """Exitval and Signal of a task that failed."""
    if error.exit_code is not None and error.exit_code < 0:
        return 0, -error.exit_code
    if error.signal:
        named = getattr(signal, error.signal, None)
        if isinstance(named, signal.Signals):
            return error.exit_code or 0, int(named)
    return error.exit_code or 1, 0


def _words(reading: Reading) -> Words:
    """What stands under Command: the command as it ran for a task, or the job and its key."""
    view = reading.view
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

    def words(task: int, number: int | None) -> str:
        key, text = keys_and_inputs.get(task, ("", ""))
        attempt = None if number is None else reading.attempts[number]

        def value_of(name: str) -> str:
            match name:
                case "output":
                    return os.path.join(out, key)
                case "key":
                    return key
                case "index":
                    return str(task)
                case "rank" if attempt is not None:
                    return str(rank_of(attempt.name))
                case "device" if attempt is not None:
                    is_cpu = attempt.intent is not None and attempt.intent.device == CPU
                    return "cpu" if is_cpu else "cuda:0"
                case "rank" | "device":
                    # Nobody knows what it was.
                    return f"{{{name}}}"
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
