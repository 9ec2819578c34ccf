"""Row "crash states": what a power cut at any moment may leave of a run, and what becomes of it.

This is done in the manner of ALICE. Runs of 50 tasks on 4 ranks, which steal and die half way, are
recorded call by call (`crash_recordings.py`). A state is any prefix of a recording, of which any
part is lost that was not synced by then (`replay.py`, `losses.py`). From it `gpuspool resume`, or
`run` if there is no spool yet, must make a finished run: every task is complete, outputs that were
there are untouched, and no task whose line is there is executed again. All processes of the
recording are dead by then, as their identities say.

The harness itself is tested too: four bugs are planted (`planted.py`), and each must show in some
state.

`python -m torture.crash_states [--amount all] [--seed N]` plays this row alone; "all" is every cut,
in every way that `losses.TURNS` knows.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from helpers import GPUSPOOL, Box

from torture.checker import Counts, check, look, out_of
from torture.crash_recordings import (
    HERE,
    PACE_S,
    SPARED,
    TASKS,
    Recording,
    record_recovery,
    record_run,
)
from torture.forked import Server
from torture.losses import TURNS
from torture.planted import BUGS
from torture.promises import broken_promises
from torture.recording import NotRecorded, missing_strace
from torture.replay import Moment, Record, State
from torture.rows import Row
from torture.two_epochs import SPOOL

# How long one recovery may take on a busy machine.
PATIENCE_S = 200.0
# How many states are recovered side by side. Some wait a second for a sweep.
LANES = 4
SEED = 20260101
STATES = {"small": {"adopted": 15}, "full": {"adopted": 800, "alone": 400, "recovery": 400}}
# how often "all" takes each of the turns at each cut; states that are the same are tried once
AGAIN = 3
# How many bad states keep their folders.
KEPT = 20
# Among so many states a planted bug must show.
DIRECTED = 40
TURN_OF = {
    "no_fsync": "all but one", "no_folder_fsync": "mixed",
    "journal_first": "killed", "torn_tail": "torn",
}  # fmt: skip
# The bug that is planted in the program that recovers, and not in the one that is recorded.
OF_READERS = "torn_tail"
# States are rebuilt in memory: a sync costs nothing there, and the model knows what it would do.
FAST = Path("/dev/shm")


@dataclass(frozen=True)
class Case:
    """One state of a recording: the moment, what was lost, and the seed of its random choices."""

    cut: int
    turn: str
    seed: str

    def state(self, record: Record) -> State:
        return TURNS[self.turn](Moment(record, self.cut), random.Random(self.seed))


@dataclass(frozen=True)
class Verdict:
    """What recovering a state gave."""

    case: Case
    counts: Counts
    problems: list[str]


def some_cases(record: Record, seed: int) -> Iterator[Case]:
    """Endless cases: any cut, any turn."""
    rng = random.Random(seed)
    cuts, turns = record.cuts(), list(TURNS)
    while True:
        cut, turn = rng.choice(cuts), rng.choice(turns)
        yield Case(cut, turn, f"{seed} {cut} {turn} {rng.random()}")


def all_cases(record: Record, seed: int) -> Iterator[Case]:
    """Every cut, every turn."""
    for cut in record.cuts():
        for turn in TURNS:
            for number in range(AGAIN):
                yield Case(cut, turn, f"{seed} {cut} {turn} {number}")


def directed_cases(recording: Recording, turn: str, seed: int) -> Iterator[Case]:
    """Moments at which a task has just become complete, the latest first."""
    for cut, _ in reversed(recording.lines()):
        yield Case(cut, turn, f"{seed} {cut} {turn}")


def states_of(record: Record, cases: Iterable[Case], most: int = 0) -> Iterator[tuple[Case, State]]:
    """The states of cases, each different one once; at most so many (0: all)."""
    known: set[str] = set()
    for case in cases:
        state = case.state(record)
        digest = state.digest()
        if digest in known:
            continue
        known.add(digest)
        yield case, state
        if len(known) == most:
            return


# Runs gpuspool with these arguments in this folder; returns (exit code, what it said).
Recovery = Callable[[list[str], Path], tuple[int, str]]


def by_server(server: Server) -> Recovery:
    """Recovery in forked processes."""

    def recovery(args: list[str], home: Path) -> tuple[int, str]:
        ended = server.run(*args, cwd=home, patience_s=PATIENCE_S)
        if ended.hung:
            return ended.code, f"it hung for {PATIENCE_S} s"
        return (
            ended.code or -1 if ended.left else ended.code
        ), f"{len(ended.left)} processes left; {ended.err}"

    return recovery


def by_program(*program: str | Path) -> Recovery:
    """Recovery by a program of its own."""

    def recovery(args: list[str], home: Path) -> tuple[int, str]:
        box = Box(home)
        try:
            done = box.run(*args, program=program, code=None)
        finally:
            box.kill_all()
        return done.code, done.err

    return recovery


def recover(
    recording: Recording, case: Case, state: State, home: Path, recovery: Recovery
) -> Verdict:
    """Make the state real, let gpuspool go on with it, and judge the result."""
    shutil.rmtree(home, ignore_errors=True)
    state.write(home, recording.record.home)
    spool = home / SPOOL
    before = look(out_of(spool))
    args = recording.go_on(home)
    code, said = recovery(args, home)
    counts = check(spool, TASKS, claimed_ok=code == 0, executions=home / SPARED, looks=[before])
    last = said.strip().rpartition("\n")[2][:300]
    ends = [f"`gpuspool {args[0]}` ends with exit code {code}: {last}"] if code else []
    return Verdict(case, counts, [*ends, *counts.notes])


class Lanes:
    """Folders in which states are recovered side by side, each with its server.

    All names below `base` have the same length.
    """

    def __init__(self, base: Path) -> None:
        self.base = base
        self._kept = 0
        self._pool = ThreadPoolExecutor(LANES)
        self._free: SimpleQueue[tuple[Path, Server | None]] = SimpleQueue()
        for number in range(LANES):
            # The server of a lane is started once it is needed.
            self._free.put((base / f"l{number:04}", None))

    def recover(
        self,
        recording: Recording,
        states: Iterable[tuple[Case, State]],
        program: tuple[str | Path, ...] | None = None,
    ) -> Iterator[Verdict]:
        """The verdicts, in the order of the states. gpuspool or another program recovers."""
        waiting: deque[Future[Verdict]] = deque()
        for case, state in states:
            waiting.append(self._pool.submit(self._recover, recording, case, state, program))
            if len(waiting) > LANES:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _recover(
        self, recording: Recording, case: Case, state: State, program: tuple[str | Path, ...] | None
    ) -> Verdict:
        home, server = self._free.get()
        try:
            if program is not None:
                return recover(recording, case, state, home, by_program(*program))
            server = server or Server()
            return recover(recording, case, state, home, by_server(server))
        finally:
            self._free.put((home, server))

    def keep(self, recording: Recording, case: Case) -> str:
        """Make a state once more, to be looked at; returns how to type its recovery."""
        if self._kept == KEPT:
            return "its state is not kept, there are too many"
        home = self.base / f"k{self._kept:04}"
        self._kept += 1
        state = case.state(recording.record)
        state.write(home, recording.record.home)
        return f"again: cd {home} && {GPUSPOOL} {' '.join(recording.go_on(home))}"

    def close(self) -> None:
        self._pool.shutdown()
        while not self._free.empty():
            _, server = self._free.get()
            if server is not None:
                server.close()


def play(
    found: Row, lanes: Lanes, recording: Recording, states: Iterable[tuple[Case, State]]
) -> None:
    """Check the promises of a recording, recover its states, and add both to the row."""
    tried = 0
    for verdict in lanes.recover(recording, states):
        counts, case = verdict.counts, verdict.case
        tried += 1
        found.add(counts)
        if verdict.problems:
            text = (
                f"{recording.name}, cut {case.cut}, {case.turn}: {len(verdict.problems)} problems, "
            )
            found.failures.append(f"{text}{verdict.problems[0]}; {lanes.keep(recording, case)}")
    broken = broken_promises(recording)
    if broken:
        found.failures.append(f"{recording.name}: {len(broken)} broken promises, {broken[0]}")
    found.cases += tried
    ops = len(recording.record.ops)
    found.notes.append(
        f"{recording.name}: {tried} states recovered; "
        f"the promises of {len(recording.lines())} lines looked up; "
        f"{ops} calls, {recording.syncs} of them syncs; {recording.steals} steals"
    )


def find_planted(lanes: Lanes, bug: str, seed: int) -> str | None:
    """What a planted bug does in the first directed state that reveals it; None if none does."""
    program = (sys.executable, HERE / "planted.py", bug)
    if bug == OF_READERS:
        recording, recovering = record_run(lanes.base, "whole", "work"), program
    else:
        recording, recovering = record_run(lanes.base, "whole", "work", program=program), None
    states = states_of(recording.record, directed_cases(recording, TURN_OF[bug], seed), DIRECTED)
    for number, verdict in enumerate(lanes.recover(recording, states, recovering), 1):
        counts = verdict.counts
        if counts.L or counts.D or counts.C or verdict.problems:
            return f"{bug}: state {number} shows it: {verdict.problems[0]}"
    return None


def row(amount: str, home: Path, seed: int = SEED) -> Row:
    """Play the row.

    Amount "small": 15 states of one recording. "full": 1,600 states of three, and the planted bugs.
    "all": every state.
    """
    found = Row("crash states", 0, "")
    reason = missing_strace()
    if reason is not None:
        found.counts = f"not played: {reason}"
        return found
    began = time.monotonic()
    base = Path(
        tempfile.mkdtemp(prefix="crash-states-", dir=FAST if os.access(FAST, os.W_OK) else home)
    )
    lanes = Lanes(base)
    try:
        _play_all(found, lanes, amount, seed)
    except NotRecorded as error:
        found.failures.append(f"nothing was proved: {error}")
    finally:
        lanes.close()
    if found.is_clean:
        shutil.rmtree(base)
    found.seconds = time.monotonic() - began
    return found


def _play_all(found: Row, lanes: Lanes, amount: str, seed: int) -> None:
    most = STATES["full" if amount == "all" else amount]
    first: Recording | None = None
    for name in most:
        if first is None:
            first = recording = record_run(lanes.base, name, "work", PACE_S)
        elif name == "alone":
            recording = record_run(lanes.base, name, "Batched", PACE_S)
        else:
            recording = record_recovery(lanes.base, first, seed)
        if amount == "all":
            states = states_of(recording.record, all_cases(recording.record, seed))
        else:
            states = states_of(recording.record, some_cases(recording.record, seed), most[name])
        play(found, lanes, recording, states)
    found.counts = f"{found.cases} states"
    if amount == "small":
        return
    seen = {bug: find_planted(lanes, bug, seed) for bug in BUGS}
    found.notes += [text for text in seen.values() if text]
    found.failures += [
        f"the planted bug {bug} was not flagged" for bug, text in seen.items() if text is None
    ]
    found.counts += f", {sum(map(bool, seen.values()))} of {len(BUGS)} planted bugs flagged"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m torture.crash_states", description="Crash states alone."
    )
    parser.add_argument("--amount", choices=("small", "full", "all"), default="full")
    parser.add_argument("--seed", type=int, default=SEED, help="of the states that are sampled")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        found = row(asked.amount, Path(home), asked.seed)
    print("\n".join([found.line(), *found.notes, *found.failures]))
    return 0 if found.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
