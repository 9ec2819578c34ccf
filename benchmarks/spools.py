"""Spools of any size, in the bytes that a run would have left.

They are made by hand: to run a million tasks first would take longer than all that is measured on
them. `gpuspool verify` finds nothing wrong with any of them, which a test checks.

- `make_finished`: all is complete.
- `make_dead`: many ranks died together.
- `make_busy`: a run in the middle of its third start, with whatever a night brings: failures of
  several kinds, crashes, tasks given out again, several attempts of each rank, tasks in hand. While
  it is looked at, a `Pulse` keeps it going.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import Raw
from msgspec.structs import asdict, replace

from gpuspool.spool import publish
from gpuspool.spool.beats import read_beats
from gpuspool.spool.codec import decode, encode, pretty, seal, seal_lines, seal_pretty
from gpuspool.spool.identity import myself
from gpuspool.spool.layout import (
    FORMAT_TEXT,
    OUT_MARK,
    SUBDIRS,
    Layout,
    attempt_name,
    epoch_name,
    orphans_name,
    parse_attempt,
    rank_name,
    rank_of,
)
from gpuspool.spool.open_folder import folder_id
from gpuspool.spool.records import (
    Claim,
    Closing,
    Error,
    Fingerprint,
    Heartbeat,
    Identity,
    Intent,
    Job,
    JournalHead,
    JournalLine,
    Options,
    Parent,
    ParentEnd,
    Place,
    Record,
    Ruling,
    Run,
    TaskFailure,
    TaskLine,
    Usage,
    place_name,
)
from gpuspool.spool.states import (
    BY_PARENT,
    BY_RESUME,
    AttemptState,
    ErrorKind,
    JobKind,
    LineState,
    Phase,
    Reason,
)

# When all that the spools tell of happened, in Unix seconds; but what a live run tells of now.
THEN = 1.7e9

JOB = Job(kind=JobKind.COMMAND, spec="true", name="true", command=["true"])

# The epochs of a busy run. The first start was killed, the second drained, the third is at work.
KILLED, DRAINED, LIVE = range(3)

# Of a busy run, the parts of each rank's tasks that its attempts in the first two epochs took; and
# how many tasks nobody has claimed yet.
FIRST_PART = 0.4
SECOND_PART = 0.4
LEFT = 2

# The last claim of an attempt that crashes, and of one that is at work, in tasks.
IN_HAND = 3

# Of so many tasks one fails once, is put off, and completes in the same attempt.
DEFERRED_ONE_OF = 40

# So many minutes of each attempt tell in usage/ what it used.
USAGE_LINES = 30

# So many tasks of a busy run have failed somewhere and wait for a ruling.
DOUBTFUL = 3


@dataclass(frozen=True)
class Size:
    """How large a run is. A claim has few tasks where each took long."""

    tasks: int
    ranks: int
    tasks_a_claim: int


def make_finished(root: Path, size: Size) -> None:
    """The spool of a run that is over: every task complete, every attempt closed by itself."""
    made = _Maker(root, size.ranks)
    for rank in range(size.ranks):
        tasks = range(rank, size.tasks, size.ranks)
        attempt = attempt_name(rank, 0)
        made.plan(rank, map(_plain_task, tasks))
        made.claim(attempt, rank_name(rank), 0, len(tasks), size.tasks_a_claim)
        made.begin(attempt)
        made.journal(attempt, map(_complete, tasks))
        made.close(_closing(attempt, AttemptState.COMPLETE, Reason.FINISHED))
    made.finish(size.tasks)


def make_dead(root: Path, count: int) -> None:
    """A spool on which so many ranks died together, each after the last of its four tasks.

    A resume has to close them all, and then finds nothing left to run: what it costs is closing.
    """
    made = _Maker(root, count)
    for rank in range(count):
        tasks = range(rank, 4 * count, count)
        attempt = attempt_name(rank, 0)
        made.plan(rank, map(_plain_task, tasks))
        made.claim(attempt, rank_name(rank), 0, len(tasks), len(tasks))
        made.begin(attempt)
        made.journal(attempt, map(_complete, tasks))
    made.finish(4 * count)


def make_busy(root: Path, size: Size, failed: int, alive: Identity) -> Busy:
    """The spool of a run that is in the middle of its third start, on as many ranks as before.

    Of each rank's tasks, in order: those of `a00`, which crashed with a task in hand when the first
    start was killed; those of `a01`, which was drained, and which also did what `a00` left and what
    the first ruling gave out again; those of `a02`, which on even ranks crashed too, and of `a03`
    that took over there; and some that nobody has claimed.

    failed: so many tasks have failed for good, half of them by a ruling after a failure on two
    ranks each, half by the word of an attempt of the second start, which kept going. alive: the
    process that plays the third parent and all its workers; as long as it lives, the run is at
    work. Returns what can be asked about.
    """
    return _BusyMaker(root, size, failed, alive).make()


@dataclass(frozen=True)
class Busy:
    """What there is in a busy run, for those who ask about it.

    complete, failed, running, doubtful: how many tasks. failed_key: the key of a task that failed
    by a ruling. running_key: of one in hand. retaken_key: of one that a crash gave back, and that
    completed elsewhere. waiting_key: of one that nobody has claimed.
    """

    complete: int
    failed: int
    running: int
    doubtful: int
    failed_key: str
    running_key: str
    retaken_key: str
    waiting_key: str


class Pulse:
    """Keeps a busy run busy while the block lasts: each second the beats move, and each live
    attempt begins a call.
    """

    def __init__(self, root: Path) -> None:
        self._layout = Layout(root)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._go_on)

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _go_on(self) -> None:
        numbers = read_beats(self._layout)
        heartbeats = {
            name: decode(self._layout.heartbeat(name).read_bytes(), Heartbeat)
            for name in numbers
            if parse_attempt(name) is not None
        }
        second = 0
        while not self._over.wait(1.0):
            for name, number in numbers.items():
                os.rename(self._layout.beat(name, number), self._layout.beat(name, number + 1))
                numbers[name] += 1
            for heartbeat in heartbeats.values():
                self._begin_call(heartbeat, second)
            second += 1

    def _begin_call(self, heartbeat: Heartbeat, second: int) -> None:
        attempt = heartbeat.attempt
        assert heartbeat.task is not None
        with self._layout.journal(attempt).open("ab") as journal:
            journal.write(seal(_started(heartbeat.task)))
        # An attempt replaces its heartbeat every ten seconds.
        if (rank_of(attempt) + second) % 10 == 0:
            now = replace(heartbeat, beat=heartbeat.beat + second, at=time.time())
            publish.replace(self._layout.heartbeat(attempt), encode(now))


class _Maker:
    """Writes a spool as it is, without the care for crashes that a real one takes."""

    def __init__(self, root: Path, ranks: int) -> None:
        self.layout = Layout(root)
        self._ranks = ranks
        self._checksums: list[int] = []
        # A process of this host and boot that is gone: no process began with the first tick.
        self.gone: Identity = replace(myself(), pid_start=1)
        for name in SUBDIRS:
            self.layout.subdir(name).mkdir(parents=True)
        self.layout.outputs.mkdir()

    @staticmethod
    def write(path: Path, data: bytes) -> None:
        path.write_bytes(data)

    def plan(self, rank: int, tasks: Iterable[TaskLine]) -> None:
        """The manifest of a rank."""
        data = sealed(tasks)
        self._checksums.append(zlib.crc32(data))
        self.write(self.layout.manifest(rank_name(rank)), data)

    def claim(
        self, attempt: str, manifest: str, start: int, stop: int, at_once: int, at: float = THEN
    ) -> None:
        """An attempt claims these positions of a manifest, so many with each claim."""
        self.layout.claims(manifest).mkdir(exist_ok=True)
        for first in range(start, stop, at_once):
            last = min(first + at_once, stop)
            claim = Claim(attempt=attempt, start=first, stop=last, at=at)
            self.write(self.layout.claim(manifest, first), encode(claim))

    def begin(self, attempt: str, epoch: int = 0, who: Identity | None = None) -> None:
        """The intent of an attempt, and its last heartbeat, at nothing."""
        self.intend(attempt, epoch, who or self.gone)
        self.beat(attempt, who or self.gone, state=Phase.IDLE, at=THEN)

    def intend(self, attempt: str, epoch: int, parent: Identity, **more: Any) -> None:
        """The intent of an attempt."""
        fields = {"device": "", "options": Options(), **more}
        intent = Intent(
            attempt=attempt,
            epoch=epoch,
            world_size=self._ranks,
            argv=["gpuspool-worker"],
            parent=parent,
            job=JOB,
            environment={},
            at=THEN,
            **fields,
        )
        self.write(self.layout.intent(attempt), seal_pretty(intent))

    def beat(self, attempt: str, who: Identity, **more: Any) -> None:
        """The heartbeat of an attempt; the last one that is written counts."""
        fields = {"attempt": attempt, "beat": 1, "parent": "", "device": "", **more}
        heartbeat = Heartbeat(**asdict(who), **fields)
        self.write(self.layout.heartbeat(attempt), encode(heartbeat))

    def journal(
        self, attempt: str, lines: Iterable[JournalLine], who: Identity | None = None
    ) -> int:
        """The whole journal of an attempt; returns its length in bytes."""
        head = JournalHead(**asdict(who or self.gone), attempt=attempt)
        data = seal(head) + sealed(lines)
        self.write(self.layout.journal(attempt), data)
        return len(data)

    def close(self, closing: Closing, orphans: Iterable[TaskLine] = ()) -> None:
        """The closing of an attempt, and its copy for people."""
        attempt = closing.attempt
        self.write(self.layout.orphans(attempt), seal(closing) + sealed(orphans))
        self.write(self.layout.status(closing.state, attempt), pretty(closing))

    def finish(self, tasks: int) -> None:
        """run.json, which makes a spool of all this."""
        run_id = "0123456789abcdef"
        self.write(self.layout.outputs / OUT_MARK, f"{run_id}\n".encode())
        run = Run(
            id=run_id,
            job=JOB,
            args={},
            tasks=tasks,
            cost=float(tasks),
            fingerprint=Fingerprint(job_sha256="", args_sha256="", tasks_sha256="", seed=0, out=""),
            options=Options(ranks=1),
            submit_dir=str(self.layout.root.parent),
            out=None,
            created_at=THEN,
            versions={},
            argv=["gpuspool", "run"],
            manifests=self._ranks,
            manifests_crc32=self._checksums,
        )
        self.write(self.layout.format, FORMAT_TEXT.encode())
        self.write(self.layout.run_copy, seal_pretty(run))
        self.write(self.layout.run, seal_pretty(run))


def sealed(records: Iterable[Record]) -> bytes:
    return b"".join(seal_lines(records))


def _plain_task(task: int) -> TaskLine:
    return TaskLine(task=task, key=f"t{task}", payload=Raw(b'"input-%d"' % task), cost=1.0)


def _complete(task: int) -> JournalLine:
    return JournalLine(
        task=task,
        round=0,
        state=LineState.COMPLETE,
        start=THEN + 0.01 * task,
        seconds=0.01,
        result=Raw(b'{"label":"cat","score":0.9%d}' % task),
    )


def _closing(attempt: str, state: AttemptState, reason: Reason, **more: Any) -> Closing:
    """A closing, by the attempt itself unless more is said."""
    fields = {"by": attempt, "at": THEN, **more}
    return Closing(attempt=attempt, state=state, reason=reason, **fields)


# The failures of a busy run.


def _key(task: int) -> str:
    return f"batch-{task // 1000:05d}/frame-{task:08d}.png"


def _task(task: int) -> TaskLine:
    payload = Raw(b'{"path":"/data/frames/%s"}' % _key(task).encode())
    return TaskLine(task=task, key=_key(task), payload=payload, cost=1.0)


_FRAME = '  File "{0}", line {1}, in {2}\n    {3}\n    {4}\n'
_JOB_FILE = "/home/ada/project/embed.py"
_LIBRARY = "/opt/venv/lib/python3.11/site-packages/PIL/Image.py"


def _traceback(line: int, last: str) -> str:
    """A traceback as jobs leave them: two frames of the job, three of a library.

    line: the one of the job that raised.
    """
    text = "Traceback (most recent call last):\n"
    call = "self.load(task.path).to(self.device, non_blocking=True)"
    text += _FRAME.format(_JOB_FILE, 31, "__call__", call, "^" * len(call))
    call = "Image.open(path).convert('RGB').resize((224, 224))"
    text += _FRAME.format(_JOB_FILE, line, "load", call, "^" * len(call))
    for number, name in ((3280, "open"), (3266, "_open_core"), (871, "convert")):
        call = f"return self.{name}(path, mode=mode, prefix=prefix)"
        text += _FRAME.format(_LIBRARY, number, name, call, "^" * len(call))
    return f"{text}{last}\n"


def _error(task: int) -> Error:
    """How a task fails: in one of four ways, two of which name the task in their message."""
    match task % 4:
        case 0:
            type_, line = "UnidentifiedImageError", 48
            message = f"cannot identify image file '/data/frames/{_key(task)}'"
        case 1:
            type_, line, message = "KeyError", 57, "'label'"
        case 2:
            type_, line = "ValueError", 48
            message = f"{_key(task)}: expected 3 channels, got {1 + task % 7}"
        case _:
            message = "python: exit code 1: OSError: image file is truncated"
            said = f"loading\n{message}\n"
            return Error(
                kind=ErrorKind.EXIT,
                type="CommandFailed",
                message=message,
                traceback=said,
                exit_code=1,
            )
    return Error(
        kind=ErrorKind.EXCEPTION,
        type=type_,
        message=message,
        where=f"embed.py:{line}",
        traceback=_traceback(line, f"{type_}: {message}"),
    )


def _spread(over: Sequence[range], count: int) -> list[set[int]]:
    """So many positions, spread evenly over ranges and within each."""
    found: list[set[int]] = []
    for number, positions in enumerate(over):
        here = count // len(over) + (number < count % len(over))
        assert here <= len(positions), "too many failures for so few tasks"
        found.append({positions[at * len(positions) // here] for at in range(here)})
    return found


class _BusyMaker:
    """Makes one busy run, in the order in which its files would have come about."""

    def __init__(self, root: Path, size: Size, failed: int, alive: Identity) -> None:
        self._made = _Maker(root, size.ranks)
        self._layout = self._made.layout
        self._size = size
        self._alive = alive
        self._folder = folder_id(self._layout.root)
        self._now = time.time()
        # Of each rank its tasks, and the first position behind those of each of two attempts.
        self._tasks = [range(rank, size.tasks, size.ranks) for rank in range(size.ranks)]
        self._first = [round(FIRST_PART * len(tasks)) for tasks in self._tasks]
        self._second = [round((FIRST_PART + SECOND_PART) * len(tasks)) for tasks in self._tasks]
        # Of each rank the positions of tasks that fail: by a ruling, and at once.
        n_ruled = failed // 2
        firsts = [range(first - IN_HAND) for first in self._first]
        seconds = [range(*ends) for ends in zip(self._first, self._second, strict=True)]
        self._ruled = _spread(firsts, n_ruled + DOUBTFUL)
        self._at_once = _spread(seconds, failed - n_ruled)
        self._failed = failed
        # Those of the first that no ruling has seen.
        ruled = [(rank, at) for rank, ats in enumerate(self._ruled) for at in sorted(ats)]
        self._doubtful = {self._tasks[rank][at] for rank, at in ruled[-DOUBTFUL:]}
        self._a_failed_task = self._tasks[ruled[0][0]][ruled[0][1]]

    def make(self) -> Busy:
        ranks = range(self._size.ranks)
        self._parents()
        for rank, tasks in enumerate(self._tasks):
            self._made.plan(rank, map(_task, tasks))
        for rank in ranks:
            self._crash_first(rank)
        again = [list(self._to_try_again(rank)) for rank in ranks]
        self._rule("ruling-01", [], [line for lines in again for line in lines])
        start = 0
        for rank, lines in enumerate(again):
            # Whoever tries again is another rank, on another device.
            self._drain_second((rank + 1) % len(ranks), start, lines)
            start += len(lines)
        self._rule(
            "ruling-02",
            [self._verdict(line) for lines in again for line in lines if not line.careful],
            [],
        )
        for rank in ranks:
            self._work_third(rank)
        self._made.finish(self._size.tasks)
        return self._what_there_is()

    def _what_there_is(self) -> Busy:
        running = self._size.ranks * IN_HAND
        waiting = self._size.ranks * LEFT
        finished = self._size.tasks - running - waiting - len(self._doubtful)
        first = self._tasks[0]
        return Busy(
            complete=finished - self._failed,
            failed=self._failed,
            running=running,
            doubtful=len(self._doubtful),
            failed_key=_key(self._a_failed_task),
            running_key=_key(first[len(first) - LEFT - IN_HAND]),
            retaken_key=_key(first[self._first[0] - 1]),
            waiting_key=_key(first[-1]),
        )

    # Parents and attempts.

    def _parents(self) -> None:
        gone = self._made.gone
        for epoch, who in ((KILLED, gone), (DRAINED, gone), (LIVE, self._alive)):
            parent = Parent(
                **asdict(who),
                epoch=epoch,
                at=THEN if epoch != LIVE else self._now,
                slots=[Place(device=_device(rank)) for rank in range(self._size.ranks)],
                argv=["gpuspool", "resume"],
                command="resume" if epoch else "run",
                lease_s=120.0,
                folder=self._folder,
            )
            self._made.write(self._layout.parent(epoch), seal_pretty(parent))
        end = ParentEnd(how="drained", exit_code=75, at=THEN)
        self._made.write(self._layout.parent_end(DRAINED), pretty(end))
        self._made.write(self._layout.beat(epoch_name(LIVE), 5), b"")

    def _begin(self, attempt: str, epoch: int) -> None:
        rank = rank_of(attempt)
        self._made.intend(
            attempt,
            epoch,
            self._alive if epoch == LIVE else self._made.gone,
            device=_device(rank),
            local_rank=rank,
            options=Options(keep_going=epoch == DRAINED),
            folder=self._folder,
        )
        self._made.beat(attempt, self._made.gone, state=Phase.IDLE, at=THEN)
        began = self._now - 60.0 * USAGE_LINES if epoch == LIVE else THEN
        usage = (_usage(began + 60.0 * minute, minute) for minute in range(USAGE_LINES))
        self._made.write(self._layout.usage(attempt), b"".join(map(encode, usage)))

    def _close(
        self, closing: Closing, journal_bytes: int, orphans: Sequence[TaskLine] = ()
    ) -> None:
        self._made.close(replace(closing, journal_bytes=journal_bytes), orphans)

    # The first start, which was killed.

    def _crash_first(self, rank: int) -> None:
        attempt = attempt_name(rank, 0)
        self._begin(attempt, KILLED)
        end = self._first[rank]
        self._claim_and_hold(attempt, rank, 0, end)
        log = _Log()
        lines = itertools.chain(
            self._lines(rank, range(end - IN_HAND), log, held=self._ruled[rank]),
            [_started(self._tasks[rank][end - IN_HAND])],
        )
        n_bytes = self._made.journal(attempt, lines)
        self._write_log(attempt, log)
        in_hand = [_task(task) for task in self._tasks[rank][end - IN_HAND : end]]
        held = TaskFailure(
            task=in_hand[0].task,
            key=in_hand[0].key,
            error=_loss(attempt),
            line=in_hand[0],
            start=THEN,
        )
        closing = _closing(attempt, AttemptState.FAILED, Reason.LOST, by=BY_RESUME, held=[held])
        self._close(closing, n_bytes, in_hand[1:])

    def _claim_and_hold(self, attempt: str, rank: int, start: int, stop: int) -> None:
        """Claim positions of an attempt's own manifest, the last few, which it has in hand, by one
        claim.
        """
        name = rank_name(rank)
        self._made.claim(attempt, name, start, stop - IN_HAND, self._size.tasks_a_claim)
        self._made.claim(attempt, name, stop - IN_HAND, stop, IN_HAND)

    def _lines(
        self,
        rank: int,
        positions: range,
        log: _Log,
        held: Set[int] = frozenset(),
        failed: Set[int] = frozenset(),
    ) -> Iterator[JournalLine]:
        """What became of the tasks at these positions of a rank's manifest."""
        tasks = self._tasks[rank]
        for at in positions:
            task = tasks[at]
            if at in held:
                yield _line(
                    task, LineState.HELD, log.say(task), error=_error(task), line=_task(task)
                )
            elif at in failed:
                yield _line(task, LineState.FAILED, log.say(task), error=_error(task))
            else:
                if task % DEFERRED_ONE_OF == 0:
                    yield _started(task)
                    yield _line(task, LineState.DEFERRED, log.say(task), error=_error(task))
                    yield _started(task)
                yield _line(task, LineState.COMPLETE, log.nothing, result=_RESULT)

    def _write_log(self, attempt: str, log: _Log) -> None:
        self._made.write(self._layout.log(attempt), log.text())

    # The rulings, and the second start, which was drained.

    def _to_try_again(self, rank: int) -> Iterator[TaskLine]:
        """What the first ruling gives out again of that which failed in a rank's first attempt."""
        attempt = attempt_name(rank, 0)
        failed_in = ((attempt, self._place(rank)),)
        for at in sorted(self._ruled[rank]):
            task = self._tasks[rank][at]
            if task not in self._doubtful:
                yield replace(_task(task), failed_in=failed_in)
        crashed = self._tasks[rank][self._first[rank] - IN_HAND]
        yield replace(_task(crashed), failed_in=failed_in, careful=True)

    def _place(self, rank: int) -> str:
        return place_name(self._made.gone.host, "", _device(rank))

    def _rule(self, name: str, failures: list[TaskFailure], again: Sequence[TaskLine]) -> None:
        ruling = Ruling(epoch=DRAINED, at=THEN, failures=failures)
        self._made.write(self._layout.manifest(name), seal(ruling) + sealed(again))

    def _verdict(self, line: TaskLine) -> TaskFailure:
        first, _ = line.failed_in[0]
        second = attempt_name((rank_of(first) + 1) % self._size.ranks, 1)
        error = replace(
            _error(line.task),
            tries=2,
            attempts=[first, second],
            attempt=second,
            rank=rank_of(second),
            device=_device(rank_of(second)),
            host=self._made.gone.host,
        )
        return TaskFailure(task=line.task, key=line.key, error=error, start=THEN)

    def _drain_second(self, rank: int, start: int, again: Sequence[TaskLine]) -> None:
        """start: where what this attempt tries again begins in the first ruling."""
        attempt = attempt_name(rank, 1)
        self._begin(attempt, DRAINED)
        first, second = self._first[rank], self._second[rank]
        at_once = self._size.tasks_a_claim
        orphans = orphans_name(attempt_name(rank, 0))
        self._made.claim(attempt, orphans, 0, IN_HAND - 1, at_once)
        self._made.claim(attempt, rank_name(rank), first, second, at_once)
        self._made.claim(attempt, "ruling-01", start, start + len(again), at_once)
        log = _Log()
        n_bytes = self._made.journal(
            attempt,
            itertools.chain(
                self._lines(rank, range(first - IN_HAND + 1, first), log),
                self._lines(rank, range(first, second), log, failed=self._at_once[rank]),
                self._tried_again(again, log),
            ),
        )
        self._write_log(attempt, log)
        self._close(_closing(attempt, AttemptState.STOPPED, Reason.DRAINED), n_bytes)

    def _tried_again(self, again: Iterable[TaskLine], log: _Log) -> Iterator[JournalLine]:
        for line in again:
            task = line.task
            if line.careful:
                yield _started(task)
                yield _line(task, LineState.COMPLETE, log.nothing, result=_RESULT)
            else:
                yield _held(line, log)

    # The third start, which is at work.

    def _work_third(self, rank: int) -> None:
        start = self._second[rank]
        stop = len(self._tasks[rank]) - LEFT
        number = 2
        if rank % 2 == 0:
            middle = (start + stop) // 2
            self._crash_third(rank, start, middle)
            start, number = middle, 3
        attempt = attempt_name(rank, number)
        self._begin(attempt, LIVE)
        log = _Log()
        lines = self._lines(rank, range(start, stop - IN_HAND), log)
        if number == 3:
            orphans = orphans_name(attempt_name(rank, 2))
            self._made.claim(attempt, orphans, 0, IN_HAND, IN_HAND)
            lines = itertools.chain(self._lines(rank, range(start - IN_HAND, start), log), lines)
        self._claim_and_hold(attempt, rank, start, stop)
        self._made.journal(attempt, lines, self._alive)
        self._write_log(attempt, log)
        self._made.beat(
            attempt,
            self._alive,
            state=Phase.RUNNING,
            at=self._now,
            task=self._tasks[rank][stop - IN_HAND],
            key=_key(self._tasks[rank][stop - IN_HAND]),
            task_since=self._now - 12.5,
            in_hand=IN_HAND,
            done=stop - start,
        )
        self._made.write(self._layout.beat(attempt, 3), b"")

    def _crash_third(self, rank: int, start: int, stop: int) -> None:
        attempt = attempt_name(rank, 2)
        self._begin(attempt, LIVE)
        self._claim_and_hold(attempt, rank, start, stop)
        tasks = self._tasks[rank][stop - IN_HAND : stop]
        log = _Log()
        lines = itertools.chain(
            self._lines(rank, range(start, stop - IN_HAND), log), [_started(tasks[0], tasks[1:])]
        )
        n_bytes = self._made.journal(attempt, lines)
        self._write_log(attempt, log)
        closing = _closing(
            attempt,
            AttemptState.FAILED,
            Reason.CRASH,
            by=BY_PARENT,
            exit_code=-9,
            suspects=IN_HAND,
            at=self._now,
        )
        self._close(closing, n_bytes, [replace(_task(task), careful=True) for task in tasks])


_RESULT = Raw(b'{"label":"cat","score":0.97}')


class _Log:
    """What an attempt printed: a line for each task that failed."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self._n_bytes = 0

    def say(self, task: int) -> tuple[int, int]:
        """Print about a task; returns from which byte to which."""
        line = f"WARNING: {_key(task)} is not as expected\n".encode()
        self._lines.append(line)
        self._n_bytes += len(line)
        return self._n_bytes - len(line), self._n_bytes

    @property
    def nothing(self) -> tuple[int, int]:
        """From which byte to which nothing was printed."""
        return self._n_bytes, self._n_bytes

    def text(self) -> bytes:
        return b"".join(self._lines)


def _device(rank: int) -> str:
    return f"GPU-{rank:08x}-3b1c-4e0f-9a77-5d2c8f60e1aa"


def _usage(at: float, minute: int) -> Usage:
    return Usage(
        at=at,
        done=10 * minute,
        busy_s=55.0 * minute,
        idle_s={"start": 0.5, "load": 4.5, "inputs": 2.0 * minute, "publish": 0.5 * minute},
        rss=3_000_000_000,
        cpu=1.1,
        gpu=97.0,
        gpu_mem=40_000_000_000,
        gpu_mem_total=85_000_000_000,
    )


def _started(task: int, others: Iterable[int] = ()) -> JournalLine:
    return JournalLine(
        task=task, round=0, state=LineState.STARTED, start=THEN + 0.01 * task, batch=list(others)
    )


def _line(task: int, state: LineState, log: tuple[int, int], **more: Any) -> JournalLine:
    return JournalLine(
        task=task, round=0, state=state, start=THEN + 0.01 * task, seconds=0.01, log=log, **more
    )


def _held(line: TaskLine, log: _Log) -> JournalLine:
    """That a task failed, which decides nothing yet."""
    task = line.task
    return _line(task, LineState.HELD, log.say(task), error=_error(task), line=line)


def _loss(attempt: str) -> Error:
    """What a death says of the task that was in hand."""
    message = f"the worker died with this task in hand; rank {rank_of(attempt)}, attempt {attempt}"
    return Error(
        kind=ErrorKind.LOST,
        type="WorkerLost",
        message=message,
        rank=rank_of(attempt),
        attempts=[attempt],
        attempt=attempt,
        log_tail="loading\nSegmentation fault",
    )
