"""The runs whose crash states are tried: three of gpuspool itself, one for each planted bug.

adopted    one task a call; killed half way, resumed at once: two workers are adopted, two closed
alone      four tasks a call; killed half way, ended by the two workers that are left
recovery   the recovery of a state of the first, in which half of all that was in doubt is lost or
           spoilt
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers import GPUSPOOL, Box

from torture.checker import checked_line
from torture.job import payloads
from torture.losses import mixed
from torture.recording import NotRecorded, record
from torture.replay import Moment, Record, Sync, Write
from torture.two_epochs import RUN, SPOOL

HERE = Path(__file__).parent
TASKS = 50
# How many tasks are finished when the first epoch dies.
HALF = 20
# How long a task takes: so each epoch lasts longer than the second after which journals are synced.
PACE_S = 0.25
# How long a task takes where no sync by the clock is needed.
FAST_S = 0.01
# How often a recording is tried: of a process that is killed within a call, strace may not tell
# whether the call was done.
TRIES = 3
SPARED = "executions"
CLAIMER = re.compile(rb'{"attempt":"(rank-[0-9]{4,})[.]')
# The share of what is in doubt that survives where "recovery" begins.
SHARE = 0.5


@dataclass(frozen=True)
class Recording:
    """A recording, and the command that was recorded."""

    name: str
    record: Record
    command: list[str]

    @property
    def steals(self) -> int:
        """How many claims were made on another rank's manifest."""
        found = 0
        for path in (self.record.home / SPOOL / "claims").glob("rank-????/*"):
            # A claim that a power cut spoilt names nobody.
            claimer = CLAIMER.match(path.read_bytes())
            found += claimer is not None and claimer[1].decode() != path.parent.name
        return found

    @property
    def syncs(self) -> int:
        return sum(isinstance(op, Sync) for op in self.record.ops)

    def go_on(self, home: Path) -> list[str]:
        """What people type after a power cut: `resume`, or `run` again if there is no spool."""
        return ["resume", SPOOL, "-q"] if (home / SPOOL).exists() else self.command

    def lines(self) -> list[tuple[int, dict[str, Any]]]:
        """(cut at which it was written, record) of each journal line of a complete task."""
        writes = [
            op
            for op in self.record.ops
            if isinstance(op, Write) and op.data.startswith(b'{"task":')
        ]
        lines = [(op.begin, checked_line(op.data.rstrip(b"\n"))) for op in writes]
        return [
            (cut, line)
            for cut, line in lines
            if line is not None and line.get("state") == "complete"
        ]


def _new_home(base: Path) -> Path:
    """A folder for a recording; all have names of one length."""
    return base / f"r{len(list(base.glob('r????'))):04}"


def _several_times(attempt: Callable[[], Record]) -> Record:
    for _ in range(TRIES - 1):
        try:
            return attempt()
        except NotRecorded:
            continue
    return attempt()


def record_run(
    base: Path,
    how: str,
    job: str,
    pace_s: float = FAST_S,
    program: tuple[str | Path, ...] = (GPUSPOOL,),
) -> Recording:
    """Record a run of a job of paced.py that ends in one of the ways of two_epochs.py.

    Raises NotRecorded.
    """
    spec = f"{HERE}/paced.py:{job}"

    def attempt() -> Record:
        home = _new_home(base)
        (home / SPARED).mkdir(parents=True)
        box = Box(home)
        box.tasks(payloads(TASKS, ms=0))
        command = [sys.executable, HERE / "two_epochs.py", how, str(HALF), spec, *program]
        try:
            return record(box, command, spared=SPARED, TORTURE_PACE=str(pace_s))
        finally:
            box.kill_all()

    return Recording(how, _several_times(attempt), ["run", spec, *RUN])


def record_recovery(base: Path, first: Recording, seed: int) -> Recording:
    """Record the recovery of a state of another recording in which much was lost.

    Raises NotRecorded.
    """
    rng = random.Random(seed)
    cuts = [cut for cut, _ in first.lines()]
    state = mixed(Moment(first.record, cuts[2 * len(cuts) // 3]), rng, SHARE)

    def attempt() -> Record:
        home = _new_home(base)
        state.write(home, first.record.home)
        box = Box(home)
        try:
            return record(box, [GPUSPOOL, *first.go_on(home)], spared=SPARED)
        finally:
            box.kill_all()

    return Recording("recovery", _several_times(attempt), first.command)
