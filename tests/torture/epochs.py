"""What the records of a run's parents and attempts must say, whoever was killed, where and when.

Part of the independent judge (`checker.py`): it reads files by docs/spool-format.md alone. Several
parents work on one run, and nothing but links keeps them apart. So what is written must show that
they were apart:

D   two parents had one epoch, or one process was two parents at a time; an attempt was started by
    another process than the parent of its epoch; an attempt was two processes; two attempts of one
    rank were open at a time
X   a parent has said that it has seen off all that it started, and an attempt of it was open

An attempt is open from its intent to its closing, whatever becomes of its process. One that has
lost its parent may be adopted, and goes on; such a parent has said nothing. Times are compared only
where one host has written both, or where the caller says that all hosts have one clock.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

ATTEMPT = re.compile(r"rank-(\d{4,})\.a(\d{2,})", re.ASCII)
PARENT = re.compile(r"(\d{4,})\.json", re.ASCII)
END = re.compile(r"(\d{4,})\.end\.json", re.ASCII)
# The fields of a process's identity: these five name one process of one boot of one host.
IDENTITY = ("host", "boot_id", "pid_ns", "pid", "pid_start")
# A parent that could not go on, or that others proved dead, has not accounted for all its attempts.
UNACCOUNTED = ("failed", "lost")

Record = dict[str, Any]
# Is told a letter and what it is about.
Found = Callable[[str, str], None]


def judge(
    spool: Path,
    closings: Mapping[str, Record],
    executions: Path | None,
    found: Found,
    has_one_clock: bool = True,
) -> None:
    """Tell `found` of whatever is not as it must be. closings: of each closed attempt."""
    parents = _records(spool / "parents", PARENT)
    ends = _records(spool / "parents", END)
    intents = {
        path.stem: record
        for path, record in _read(spool / "attempts")
        if ATTEMPT.fullmatch(path.stem)
    }
    _judge_parents(parents, ends, found)
    _judge_intents(parents, intents, found)
    _judge_ends(ends, intents, closings, found)
    if has_one_clock:
        _judge_ranks(intents, closings, found)
    if executions is not None:
        _judge_processes(executions, found)


def _read(folder: Path) -> Iterator[tuple[Path, Record]]:
    """The files of a folder that hold a JSON object, each with that."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            record = json.loads(path.read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(record, dict):
            yield path, record


def _records(folder: Path, name: re.Pattern[str]) -> dict[int, Record]:
    """The records whose names are an epoch and an ending of ours, by epoch."""
    records = {}
    for path, record in _read(folder):
        match = name.fullmatch(path.name)
        if match:
            records[int(match[1])] = record
    return records


def _identity(record: Record) -> tuple[Any, ...]:
    return tuple(record.get(field) for field in IDENTITY)


def _judge_parents(parents: Mapping[int, Record], ends: Mapping[int, Record], found: Found) -> None:
    """Of each epoch there is one parent, and no process is two at a time."""
    epochs_of: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for epoch, record in sorted(parents.items()):
        if record["epoch"] != epoch:
            found("D", f"the parent of epoch {epoch} says that it is that of {record['epoch']}")
        epochs_of[_identity(record)].append(epoch)
    for epochs in epochs_of.values():
        for earlier, later in itertools.pairwise(epochs):
            end = ends.get(earlier)
            if end is None or end["at"] > parents[later]["at"]:
                found("D", f"one process is the parent of epochs {earlier} and {later} at a time")
    for epoch in ends.keys() - parents.keys():
        found("X", f"the parent of epoch {epoch} has ended, and there was none")


def _judge_intents(
    parents: Mapping[int, Record], intents: Mapping[str, Record], found: Found
) -> None:
    """Each attempt was started by the parent of its epoch, which was known by then."""
    for attempt, intent in intents.items():
        parent = parents.get(intent["epoch"])
        if parent is None:
            found("D", f"{attempt} is of epoch {intent['epoch']}, which has no parent")
        elif _identity(parent) != _identity(intent["parent"]):
            found("D", f"{attempt} was not started by the parent of epoch {intent['epoch']}")


def _judge_ends(
    ends: Mapping[int, Record],
    intents: Mapping[str, Record],
    closings: Mapping[str, Record],
    found: Found,
) -> None:
    """Once a parent has said how it ended, all that it has started is closed."""
    for attempt, intent in intents.items():
        epoch = intent["epoch"]
        end = ends.get(epoch)
        if end is None or end["how"] in UNACCOUNTED:
            continue
        closing = closings.get(attempt)
        if closing is None:
            found("X", f"the parent of epoch {epoch} has ended, and its {attempt} is open")
        elif closing["by"] in (attempt, "parent") and closing["at"] > end["at"]:
            found("X", f"the parent of epoch {epoch} had ended before its {attempt} was closed")


def _judge_ranks(
    intents: Mapping[str, Record], closings: Mapping[str, Record], found: Found
) -> None:
    """An attempt of a rank begins once the one before it is closed."""
    by_rank: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for attempt in intents:
        match = ATTEMPT.fullmatch(attempt)
        assert match is not None
        by_rank[int(match[1])].append((int(match[2]), attempt))
    for numbered in by_rank.values():
        attempts = [attempt for _, attempt in sorted(numbered)]
        for earlier, later in itertools.pairwise(attempts):
            closing = closings.get(earlier)
            if closing is None or closing["at"] > intents[later]["at"]:
                found("D", f"{earlier} and {later} were open at a time")


def _judge_processes(executions: Path, found: Found) -> None:
    """All that was executed in the name of an attempt was executed by one process."""
    pids: dict[str, set[str]] = defaultdict(set)
    for path in executions.iterdir() if executions.is_dir() else ():
        attempt, _, pid = path.name.rpartition(".")
        pids[attempt].add(pid)
    for attempt, of_one in sorted(pids.items()):
        if len(of_one) > 1:
            found("D", f"{attempt} was {len(of_one)} processes: {sorted(of_one)}")
