"""Who is blamed when a worker dies: what its death does to the tasks that it had claimed and not
finished.

Pure but for the reading of the scene. A crash counts only with a witness, and only against a task
that was certainly in hand, alone; what may have been in hand runs alone from then on, so that the
next crash names the culprit. A time-out names it at once. Nobody else is ever blamed.
"""

from __future__ import annotations

import contextlib
import signal

import msgspec

from gpuspool.spool.errors import EXIT_UNUSABLE
from gpuspool.spool.layout import Layout, rank_of
from gpuspool.spool.publish import read_bytes
from gpuspool.spool.records import Error, Lost, Options, TaskLine
from gpuspool.spool.timeouts import describe_limit, where_of
from gpuspool.spool.view import Started, View

MAX_KILLS = (
    5  # SIGKILLs come from outside far more often than from a task: more patience than with crashes
)
TAIL_BYTES = 4096  # of a log's end that a failure record holds
TAIL_LINES = 40


class Witness(msgspec.Struct, frozen=True):
    """What an attempt's own live parent saw: the exit code (-N for signal N) of a worker nobody
    told to stop.

    `is_oom`: the kernel's counters explain the SIGKILL, which is then a crash like any other.
    """

    exit_code: int
    max_crashes: int
    max_kills: int = MAX_KILLS
    is_oom: bool = False

    @property
    def is_kill(self) -> bool:
        """Whether it may well have come from outside."""
        return self.exit_code == -signal.SIGKILL and not self.is_oom

    @property
    def most(self) -> int:
        """How often this may happen to one task."""
        return max(self.max_crashes, self.max_kills) if self.is_kill else self.max_crashes


class Scene(msgspec.Struct, frozen=True):
    """Where an attempt died, for the record of a task that is lost by it."""

    attempt: str
    device: str
    host: str
    log_tail: str


def signal_of(code: int) -> str:
    """The name of the signal behind an exit code, -N or a shell's 128+N; "" where there is none."""
    number = -code if code < 0 else code - 128
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}" if code < 0 else ""


def describe_exit(code: int) -> str:
    """ "killed by SIGSEGV", "exit code 3", "exit code 139 (SIGSEGV)"."""
    name = signal_of(code)
    if code == EXIT_UNUSABLE:
        return f"exit code {code} (its device or process had become unusable, see the log)"
    if code < 0:
        return f"killed by {name}"
    return f"exit code {code} ({name})" if name else f"exit code {code}"


def blame(
    orphans: list[TaskLine], started: Started | None, witness: Witness, scene: Scene
) -> tuple[list[TaskLine], list[Lost], int]:
    """What a witnessed crash does to the tasks it left: (orphans, lost for good, how many records
    got worse).

    Those that may have been in hand run carefully from now on. Only a task that was certainly in
    hand, alone, is counted against; at the limit it is lost. Nobody else is ever blamed.
    """
    in_hand, certain = _in_hand(orphans, started)
    kept: list[TaskLine] = []
    lost: list[Lost] = []
    suspects = 0
    for task in orphans:
        if (task.task, task.round) not in in_hand:
            kept.append(task)
            continue
        is_certain = task is certain
        suspects += is_certain or not task.careful
        counted = _count(task, witness, scene) if is_certain else task
        if is_certain and (counted.kills if witness.is_kill else counted.crashes) >= witness.most:
            lost.append(_lost(counted, witness, scene))
        else:
            kept.append(msgspec.structs.replace(counted, careful=True))
    return kept, lost, suspects


def _in_hand(
    orphans: list[TaskLine], started: Started | None
) -> tuple[set[tuple[int, int]], TaskLine | None]:
    """(the (task, round) of all that may have been in hand, the one that certainly was).

    Where no `started` line names an orphan, every orphan may have been.
    """
    named = (
        []
        if started is None
        else [t for t in orphans if t.task in started.tasks and t.round == started.round]
    )
    in_hand = named or orphans
    is_certain = len(orphans) == 1 or (
        started is not None and len(named) == len(started.tasks) == 1
    )
    return {(t.task, t.round) for t in in_hand}, in_hand[0] if is_certain else None


def _count(task: TaskLine, witness: Witness, scene: Scene) -> TaskLine:
    return msgspec.structs.replace(
        task,
        crashes=task.crashes + (not witness.is_kill),
        kills=task.kills + witness.is_kill,
        crashed_in=(*task.crashed_in, scene.attempt),
    )


def _lost(task: TaskLine, witness: Witness, scene: Scene) -> Lost:
    times = task.crashes + task.kills
    often = "once" if times == 1 else f"{times} times"
    how = (
        "the kernel ran out of memory and killed the worker"
        if witness.is_oom
        else "the worker died"
    )
    error = Error(
        kind="host_oom" if witness.is_oom else "lost",
        type="HostOutOfMemory" if witness.is_oom else "WorkerLost",
        message=f"{how} {often} with this task in hand; last: {describe_exit(witness.exit_code)} on {place_of(scene)}",
        tries=times,
        exit_code=witness.exit_code,
        signal=signal_of(witness.exit_code),
    )
    return _lose(task, error, scene, task.crashed_in)


def _lose(task: TaskLine, error: Error, scene: Scene, attempts: tuple[str, ...]) -> Lost:
    error = msgspec.structs.replace(
        error,
        rank=rank_of(scene.attempt),
        device=scene.device,
        host=scene.host,
        attempts=list(attempts),
        log_tail=scene.log_tail,
    )
    return Lost(task=task.task, round=task.round, key=task.key, error=error)


def place_of(scene: Scene) -> str:
    return (
        f"rank {rank_of(scene.attempt)}, device {scene.device}, host {scene.host}, attempt {scene.attempt}, "
        f"log logs/{scene.attempt}.log"
    )


def time_out(
    orphans: list[TaskLine], started: Started | None, options: Options, stacks: str, scene: Scene
) -> tuple[list[TaskLine], list[Lost], int]:
    """The same for a worker that took too long: the task that was certainly in hand fails at once.

    A batch runs again carefully, and the next time-out names the culprit. A time-out is no crash.
    With a limit every call has its `started` line, so without one nothing was in hand.
    """
    if started is None:
        return orphans, [], 0
    in_hand, certain = _in_hand(orphans, started)
    kept = [
        msgspec.structs.replace(t, careful=True) if (t.task, t.round) in in_hand else t
        for t in orphans
        if t is not certain
    ]
    suspects = sum(
        (t.task, t.round) in in_hand and not t.careful for t in orphans if t is not certain
    )
    if certain is None:
        return kept, [], suspects
    kind, what = describe_limit(options, len(started.tasks))
    message = f"{what}; {place_of(scene)}"
    error = Error(
        kind="timeout", type=kind, message=message, where=where_of(stacks), traceback=stacks
    )
    return kept, [_lose(certain, error, scene, (*certain.crashed_in, scene.attempt))], suspects + 1


def scene_of(view: View, attempt: str) -> Scene:
    intent, who = view.intents.get(attempt), view.identity(attempt)
    host = who.host if who is not None else intent.parent.host if intent is not None else "?"
    return Scene(
        attempt, "?" if intent is None else intent.device, host, read_tail(view.layout, attempt)
    )


def read_tail(layout: Layout, attempt: str) -> str:
    """The last lines of an attempt's log."""
    path = layout.log(attempt)
    try:
        size = path.stat().st_size
    except OSError:
        return ""
    text = (read_bytes(path, max(0, size - TAIL_BYTES)) or b"").decode(errors="replace")
    return "\n".join(text.splitlines()[-TAIL_LINES:])
