"""From what the user names to an ordered list of tasks with keys, payloads and costs.

Every refusal is a UsageError that names the file and line, before anything is written.
"""

from __future__ import annotations

import array
import glob
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from gpuspool.spool.codec import SHALLOW_BYTES, refuse_depth, seal_bodies, seal_lines, unseal
from gpuspool.spool.errors import UsageError
from gpuspool.spool.layout import OUT_MARK
from gpuspool.spool.records import TaskLine

COST_LIMIT = 1e200  # the costs of all tasks are added up


class Inputs:
    """The tasks in input order, as the sealed lines that stand for them everywhere, and what they
    cost.

    `newest_mtime`: among file inputs.
    """

    def __init__(
        self, lines: list[bytes], costs: Sequence[float], newest_mtime: float = 0.0
    ) -> None:
        self.lines, self.costs, self.newest_mtime = lines, costs, newest_mtime

    def __len__(self) -> int:
        return len(self.lines)

    def __iter__(self) -> Iterator[TaskLine]:
        return (unseal(line[:-1], TaskLine) for line in self.lines)


def sealed(tasks: Iterable[TaskLine], newest_mtime: float = 0.0) -> Inputs:
    costs = array.array("d")

    def noted() -> Iterator[TaskLine]:
        for task in tasks:
            costs.append(task.cost)
            yield task

    return Inputs(seal_lines(noted()), costs, newest_mtime)


class TaskSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A line of --tasks that says more than its payload."""

    payload: msgspec.Raw
    key: str | None = None
    cost: float | None = None


def collect(
    paths: Iterable[str] = (),
    files_from: str | None = None,
    lines: str | None = None,
    tasks: str | None = None,
) -> Inputs:
    """The one source of tasks that was named. "-" is standard input. Raises UsageError."""
    named = [
        bool(paths := list(paths)),
        files_from is not None,
        lines is not None,
        tasks is not None,
    ]
    if sum(named) != 1:
        raise UsageError(
            "name the inputs in one way: paths or globs, --files-from, --lines or --tasks "
            f"({sum(named)} of them were given)."
        )
    if lines is not None:
        return from_values(_read_lines(lines))
    if tasks is not None:
        return sealed(_checked(_from_jsonl(tasks)))
    return _from_files(
        _expand(paths) if files_from is None else [p for p in _read_lines(files_from) if p]
    )


def from_values(values: Iterable[Any]) -> Inputs:
    """One task of cost 1 for each JSON value; NaN and infinity become null. Raises UsageError for
    what is none.
    """
    lines = seal_bodies(
        b'{"task":%d,"key":"t%d","payload":%b,"cost":1.0' % (index, index, payload)
        for index, payload in enumerate(_payloads(values))
    )
    return Inputs(lines, array.array("d", [1.0]) * len(lines))


def _payloads(values: Iterable[Any]) -> Iterator[bytes]:
    encode = msgspec.json.Encoder().encode
    for index, value in enumerate(values):
        try:
            payload = encode(value)
            if len(payload) > SHALLOW_BYTES:
                refuse_depth(payload)
            yield payload
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(
                f"item {index} ({value!r:.80}) cannot be a payload: {error}. Use JSON values."
            ) from None


def _read_lines(source: str) -> list[str]:
    if source == "-" and sys.stdin is None:
        raise UsageError("there is no stdin. Name a file.")
    try:
        data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        text = data.decode().removesuffix("\n")
        found = text.split("\n") if data else []
        return [line.rstrip("\r") for line in found] if "\r" in text else found
    except OSError as error:
        raise UsageError(
            f"{source} cannot be read: {error.strerror}. Name a readable file, or - for stdin."
        ) from None
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{source}, byte {error.start}: not UTF-8. Convert it, e.g. with iconv."
        ) from None


def _from_jsonl(source: str) -> Iterable[TaskLine]:
    lines = _read_lines(source)[::-1]
    index, count = 0, len(lines)
    while lines:
        line, number = (
            lines.pop(),
            count - len(lines),
        )  # let go one by one: a million of them are large
        if not line.strip():
            continue
        try:
            text = line.strip().encode()
            value = msgspec.json.decode(text)
            refuse_depth(text)
            payload = msgspec.Raw(text)
            is_spec = isinstance(value, dict) and "payload" in value
            spec = msgspec.json.decode(payload, type=TaskSpec) if is_spec else TaskSpec(payload)
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
            raise UsageError(
                f"{source}, line {number}: {error}. Each line is a JSON value; nothing was run."
            ) from None
        cost = 1.0 if spec.cost is None else spec.cost
        if not 0 <= cost < COST_LIMIT:
            raise UsageError(
                f"{source}, line {number}: cost {cost} is not a number from 0 to {COST_LIMIT:g}; nothing was run."
            )
        yield TaskLine(task=index, key=spec.key or f"t{index}", payload=spec.payload, cost=cost)
        index += 1


def _expand(patterns: Iterable[str]) -> list[str]:
    """Paths as they are; what is no path and looks like a glob, expanded to the files it matches,
    sorted.
    """
    files: list[str] = []
    for pattern in patterns:
        if os.path.lexists(pattern):
            files.append(pattern)
            continue
        found = sorted(glob.glob(pattern, recursive=True)) if glob.has_magic(pattern) else []
        found = [path for path in found if not os.path.isdir(path)]
        if not found:
            raise UsageError(
                f"{pattern} matches no file. Check the path; quote a glob so that gpuspool expands it."
            )
        files += found
    return files


def _from_files(paths: list[str]) -> Inputs:
    """One task a file: its size is its cost, its path below the common parent its key."""
    absolute = [os.path.abspath(path) for path in paths]
    top = os.path.commonpath([os.path.dirname(path) for path in absolute]) if absolute else ""
    tasks, newest = [], 0.0
    for index, (given, path) in enumerate(zip(paths, absolute, strict=True)):
        try:
            stat = os.stat(path)
            payload = msgspec.Raw(msgspec.json.encode({"path": path}))
        except OSError as error:
            raise UsageError(f"input {given}: {error.strerror}. Nothing was run.") from None
        except UnicodeEncodeError:
            raise UsageError(
                f"input {given!r}: its name is not UTF-8. Rename it, e.g. with convmv."
            ) from None
        if os.path.isdir(path):
            raise UsageError(
                f"input {given} is a folder. Name its files with a glob: '{given.rstrip('/')}/**/*'."
            )
        newest = max(newest, stat.st_mtime)
        key = os.path.relpath(path, top)
        tasks.append(TaskLine(task=index, key=key, payload=payload, cost=float(stat.st_size)))
    return sealed(_checked(tasks), newest)


def _checked(tasks: Iterable[TaskLine]) -> Iterator[TaskLine]:
    """The tasks, each once its key is known to be safe as a path below OUT, and unique."""
    seen: dict[str, int] = {}
    for task in tasks:
        reason = _refusal(task.key)
        if reason:
            raise UsageError(
                f"task {task.task}: the key {task.key!r:.120} {reason}. Nothing was run."
            )
        if task.key in seen:
            raise UsageError(
                f"tasks {seen[task.key]} and {task.task} have the same key {task.key!r}. Nothing was run."
            )
        seen[task.key] = task.task
        yield task


def _refusal(key: str) -> str | None:
    parts = key.split("/")
    if key.startswith("/"):
        return "is absolute; outputs go below OUT"
    if any(part in ("", ".", "..") for part in parts):
        return "has an empty part, '.' or '..'; outputs go below OUT"
    if any(ord(c) < 32 or 127 <= ord(c) < 160 for c in key):
        return "holds control characters"
    if any(part.startswith(OUT_MARK) for part in parts):
        return f"begins with {OUT_MARK}, which gpuspool keeps for itself"
    return None
