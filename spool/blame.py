"""What the death of a worker does to the tasks that it had claimed and not finished.

A death speaks only against a task that was certainly in hand, alone. Tasks that were perhaps in
hand run alone from then on (`careful`), so the next crash speaks against one of them alone. What
was not in hand is given back as it was.

A crash or a time-out of a task that was certainly in hand is one opinion: it is held back, and the
orchestrator rules what becomes of it, since the process or the device may be to blame. A SIGKILL
comes from outside far more often than from a task, so it is counted, and believed at last.

`judge` is pure, and so is `certain_in_hand`, which tells people which task that was. `scene_of`
reads what a failure's record tells people: device, host, end of the log.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from gpuspool.spool.death import Crashed, Death, TimedOut, Witness
from gpuspool.spool.exits import describe_exit, signal_of
from gpuspool.spool.layout import Layout, rank_of
from gpuspool.spool.publish import read_bytes
from gpuspool.spool.records import Error, Options, TaskFailure, TaskLine
from gpuspool.spool.states import ErrorKind
from gpuspool.spool.timeouts import describe_limit, where_of
from gpuspool.spool.view import Started, View

# How much of a log's end stands in the record of a failure: enough for the last words of a crash,
# and small where a thousand tasks fail.
TAIL_BYTES = 4096
TAIL_LINES = 40

# So much of it is looked at for that. A crash ends its stacks with the names of all extension
# modules on one line, which is longer than the record where a job has imported many; and the stacks
# of a process with a hundred threads take so much.
LOOKED_AT_BYTES = 64 * 1024
# So many characters of a line are kept, since others say more than the rest of it.
LINE_KEPT = 400

# How faulthandler begins to tell of a crash, and where it tells of the thread that crashed.
_FATAL = "Fatal Python error: "
_CRASHED = "Current thread 0x"


class Scene(msgspec.Struct, frozen=True):
    """Where an attempt died, for the record of a task that fails by it."""

    attempt: str
    device: str
    host: str
    log_tail: str

    def __str__(self) -> str:
        return (
            f"rank {rank_of(self.attempt)}, device {self.device}, host {self.host}, "
            f"attempt {self.attempt}, log SPOOL/logs/{self.attempt}.log"
        )


class Judgement(msgspec.Struct, frozen=True):
    """What a death does to the tasks that the attempt left.

    orphans: those that run again. failures: those that fail for good. held: those that it speaks
    against. killed: the one that was certainly in hand when a SIGKILL came. suspects: how many
    tasks' records got worse; while there are any, the rank itself is not to blame.
    """

    orphans: list[TaskLine]
    failures: list[TaskFailure] = msgspec.field(default_factory=list)
    held: list[TaskFailure] = msgspec.field(default_factory=list)
    killed: int | None = None
    suspects: int = 0


class _InHand(msgspec.Struct, frozen=True):
    """The tasks that the attempt may have been running. certain: the one that it ran for sure."""

    tasks: set[tuple[int, int]]
    certain: TaskLine | None

    def holds(self, task: TaskLine) -> bool:
        return (task.task, task.round) in self.tasks


def judge(
    death: Death,
    orphans: list[TaskLine],
    started: Started | None,
    options: Options,
    scene: Scene,
    is_leaving: bool = False,
) -> Judgement:
    """What a death does to the tasks that the attempt had claimed and not finished.

    started: the last call that the attempt told of and did not finish. options: the attempt's own.
    is_leaving: it had called its job for the last task, so none was in hand.
    """
    if is_leaving:
        return Judgement(orphans)
    match death:
        case Crashed(witness):
            in_hand = _in_hand(orphans, started)
            return _judge_crash(orphans, in_hand, witness, options, scene)
        case TimedOut(stacks) if started is not None:
            in_hand = _in_hand(orphans, started)
            return _judge_time_out(orphans, in_hand, started, options, stacks, scene)
        case _:
            # With a limit of time every call has its `started` line, so a worker that timed out
            # without one had nothing in hand. All other deaths blame nobody.
            return Judgement(orphans)


def certain_in_hand(orphans: list[TaskLine], started: Started | None) -> TaskLine | None:
    """The one of these tasks that an attempt was at for sure when it died; None if there is none.

    orphans: all that it had claimed and not finished. started: as for `judge`.
    """
    return _in_hand(orphans, started).certain if orphans else None


def _in_hand(orphans: list[TaskLine], started: Started | None) -> _InHand:
    """Which orphans the attempt may have been running.

    Those that its last `started` line names; where it names none, any of them may have been.
    """
    named: list[TaskLine] = []
    if started is not None:
        for task in orphans:
            if task.task in started.tasks and task.round == started.round:
                named.append(task)
    suspects = named or orphans
    certain = None
    was_alone = started is not None and len(named) == len(started.tasks) == 1
    if was_alone or (len(orphans) == 1 and (named or started is None)):
        certain = suspects[0]
    return _InHand({(task.task, task.round) for task in suspects}, certain)


def _judge_crash(
    orphans: list[TaskLine], in_hand: _InHand, witness: Witness, options: Options, scene: Scene
) -> Judgement:
    """A crash speaks against the task that was in hand for sure.

    What may have been in hand runs carefully from now on.
    """
    certain = in_hand.certain
    if certain is None:
        return _suspect(orphans, in_hand)
    others = [task for task in orphans if task is not certain]
    if not witness.is_kill:
        failure = _worker_lost(certain, 1, witness, scene)
        if options.keep_going or witness.most == 1:
            return Judgement(others, failures=[_verdict(failure)], suspects=1)
        return Judgement(others, held=[failure], suspects=1)
    kills = certain.kills + 1
    if kills >= witness.most:
        failure = _worker_lost(certain, kills, witness, scene)
        verdict = _verdict(failure)
        return Judgement(others, failures=[verdict], killed=certain.task, suspects=1)
    counted = msgspec.structs.replace(certain, kills=kills, careful=True)
    return Judgement([*others, counted], killed=certain.task, suspects=1)


def _suspect(orphans: list[TaskLine], in_hand: _InHand) -> Judgement:
    """Nobody knows which task it was: those that may have been in hand run alone from now on."""
    kept: list[TaskLine] = []
    suspects = 0
    for task in orphans:
        if in_hand.holds(task):
            suspects += not task.careful
            kept.append(msgspec.structs.replace(task, careful=True))
        else:
            kept.append(task)
    return Judgement(kept, suspects=suspects)


def _worker_lost(task: TaskLine, times: int, witness: Witness, scene: Scene) -> TaskFailure:
    kind, type_, how = ErrorKind.LOST, "WorkerLost", "the worker died"
    if witness.is_oom:
        kind, type_ = ErrorKind.HOST_OOM, "HostOutOfMemory"
        how = "the kernel ran out of memory and killed the worker"
    end = describe_exit(witness.exit_code, scene.log_tail)
    # A crash is one opinion, and the ruling tells how many there were. Kills are counted here.
    often, what = "", end
    if times > 1:
        often, what = f" {times} times", f"last {end}"
    error = Error(
        kind=kind,
        type=type_,
        message=f"{how}{often} with this task in hand: {what}; {scene}",
        tries=times,
        exit_code=witness.exit_code,
        signal=signal_of(witness.exit_code),
    )
    return _fail(task, error, scene)


def _judge_time_out(
    orphans: list[TaskLine],
    in_hand: _InHand,
    started: Started,
    options: Options,
    stacks: str,
    scene: Scene,
) -> Judgement:
    """A time-out speaks against the task that was in hand for sure.

    A batch runs again carefully, and the next time-out speaks against one task alone.
    """
    certain = in_hand.certain
    if certain is None:
        return _suspect(orphans, in_hand)
    others = [task for task in orphans if task is not certain]
    failure = _too_long(certain, started, options, stacks, scene)
    if options.keep_going:
        return Judgement(others, failures=[_verdict(failure)], suspects=1)
    return Judgement(others, held=[failure], suspects=1)


def _too_long(
    task: TaskLine, started: Started, options: Options, stacks: str, scene: Scene
) -> TaskFailure:
    type_, what = describe_limit(options, len(started.tasks))
    error = Error(
        kind=ErrorKind.TIMEOUT,
        type=type_,
        message=f"{what}; {scene}",
        where=where_of(stacks),
        traceback=stacks,
    )
    return _fail(task, error, scene)


def _fail(task: TaskLine, error: Error, scene: Scene) -> TaskFailure:
    """The record of a task's failure, with the scene of the death."""
    error = msgspec.structs.replace(
        error,
        rank=rank_of(scene.attempt),
        device=scene.device,
        host=scene.host,
        attempts=[scene.attempt],
        attempt=scene.attempt,
        log_tail=scene.log_tail,
    )
    return TaskFailure(task=task.task, round=task.round, key=task.key, error=error, line=task)


def _verdict(failure: TaskFailure) -> TaskFailure:
    """A failure that is final: nobody needs the task's line any more."""
    return msgspec.structs.replace(failure, line=None)


def scene_of(view: View, attempt: str) -> Scene:
    """Where an attempt died, by its intent, its journal and its log; "?" for what nobody wrote."""
    intent = view.intents.get(attempt)
    who = view.identity(attempt)
    device, host = "?", "?"
    if intent is not None:
        device, host = intent.device, intent.parent.host
    if who is not None:
        host = who.host
    return Scene(attempt, device, host, read_tail(view.layout, attempt))


def read_tail(layout: Layout, attempt: str) -> str:
    """The last lines of an attempt's log, "" where it has none.

    Where a crash has left more stacks than there is room for, its name and the beginning of the
    stack of the thread that crashed.
    """
    path = layout.log(attempt)
    try:
        size = path.stat().st_size
    except OSError:
        return ""
    data = read_bytes(path, max(0, size - LOOKED_AT_BYTES)) or b""
    lines = [_short(line) for line in data.decode(errors="replace").splitlines()]
    kept = list(_fitting(reversed(lines)))
    kept.reverse()
    if not any(line.startswith(_FATAL) for line in kept):
        kept = list(_fitting(_crash_in(lines))) or kept
    return "\n".join(kept)


def _crash_in(lines: Sequence[str]) -> list[str]:
    """The line that names the last crash in a log, and what follows on the thread that crashed.

    Nothing where the log tells of no crash.
    """
    name = ""
    found: list[str] = []
    for at, line in enumerate(lines):
        if line.startswith(_FATAL):
            name = line
        elif name and line.startswith(_CRASHED):
            found = [name, *lines[at:]]
            name = ""
    return found


def _fitting(lines: Iterable[str]) -> Iterator[str]:
    """The first of the lines, as many as a record has room for."""
    n_bytes = 0
    for line in itertools.islice(lines, TAIL_LINES):
        n_bytes += len(line.encode()) + 1
        if n_bytes > TAIL_BYTES:
            return
        yield line


def _short(line: str) -> str:
    return line if len(line) <= LINE_KEPT else f"{line[: LINE_KEPT - 1]}…"
