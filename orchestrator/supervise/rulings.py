"""Ruling what becomes of tasks that failed somewhere and have no verdict yet.

A worker lets go of a task that failed in it, by a `held` line in its journal. What a death speaks
against stands in the closing of the attempt. The `Judge` gathers these failures as opinions,
decides by the theory of `opinions.py`, and publishes what it ruled: one manifest, whose first line
holds the verdicts and whose tasks are to be tried again. Its link(2) is the commit instant of all
of them. Killed before it, nothing is ruled; killed after it, all of it is. Without an orchestrator
nobody rules, and the tasks wait for the next one.

The loop is the only caller.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from gpuspool.orchestrator.supervise.opinions import (
    EXCUSED_A_SECOND,
    EXCUSED_AT_ONCE,
    EXCUSED_FOR_EACH,
    OPINIONS,
    Finding,
    Ground,
    Opinion,
    excuse_pause_s,
    rule,
    unproved_pause_s,
)
from gpuspool.spool.closing import copy_of, publish_failed_task
from gpuspool.spool.codec import unseal
from gpuspool.spool.death import MAX_KILLS
from gpuspool.spool.errors import Damaged
from gpuspool.spool.layout import attempt_name, parse_attempt, rank_of
from gpuspool.spool.manifest import publish_ruling
from gpuspool.spool.publish import read_bytes
from gpuspool.spool.records import Closing, Error, JournalLine, Ruling, TaskFailure, TaskLine
from gpuspool.spool.states import ErrorKind
from gpuspool.spool.view import Held, View

# Tasks are ruled together, so that a run with many failures has few manifests. The first of them
# waits so long for others. Where somebody has nothing else to do it does not wait.
GATHER_S = 1.0
# It waits for this part of the run's time so far, if that is longer, so that a long run has no more
# rulings than a short one;
GATHER_FRACTION = 0.01
# but never longer than this.
GATHER_MOST_S = 30.0

# So much of a journal is read for one line at first. Nearly every line is shorter.
LINE_BYTES = 64 * 1024

# A failure of these kinds may be that of what the process did before.
OUT_OF_MEMORY = frozenset({ErrorKind.GPU_OOM, ErrorKind.HOST_OOM})

# (task, round): what an opinion is about.
Key = tuple[int, int]


class Sort(NamedTuple):
    """What is read of a failure to rule about it: its kind, None if unreadable, and its signal."""

    kind: ErrorKind | None
    signal: str


class Judge:
    """Rules about the doubtful tasks of one run."""

    def __init__(self, view: View, epoch: int, max_crashes: int) -> None:
        self._view = view
        self._epoch = epoch
        self._max_crashes = max_crashes
        self._began = time.monotonic()
        # When each opinion was first seen, by task; as many entries as it has opinions.
        self._seen: dict[Key, list[float]] = {}
        # The sorts of failures that had to be known so far.
        self._sorts: dict[tuple[Held, Key], Sort] = {}
        # The unfinished tasks that failed somewhere in their newest round, as of the last look.
        self.doubtful: list[Key] = []
        # How many tasks that failed somewhere were read in the view.
        self._held_read = 0
        # Since when all unfinished tasks are doubtful, on the monotonic clock; None while some are
        # not.
        self.last_phase_since: float | None = None
        # Since when, besides, no task has completed; and how many were complete at the last look.
        self._quiet_since: float | None = None
        self._n_complete = 0
        # Whether a process was seen to break after it had completed tasks; see `Ground`.
        self.do_processes_break = False
        # Since when a task waits to be ruled.
        self._waiting_since: float | None = None
        # The tasks that can be ruled now, and how.
        self._findings: dict[Key, Finding] = {}
        # The ranks that get no process before others have tried what failed there.
        self._without_news: frozenset[int] = frozenset()
        # How many excused tasks may be tried again, and when that was reckoned.
        self._credit = EXCUSED_AT_ONCE
        self._credited_at = self._began
        # In how many seconds opinions count without a proof, and for how long nothing has completed
        # in the last phase, as of the last look.
        self.old_in_s = math.inf
        self.quiet_s = 0.0

    @property
    def is_last(self) -> bool:
        """Whether every unfinished task is doubtful."""
        return self.last_phase_since is not None

    @property
    def is_waiting(self) -> bool:
        """Whether a task waits to be ruled, or only doubtful tasks are left."""
        return self._waiting_since is not None or self.is_last

    def look(
        self,
        devices: frozenset[str],
        working: frozenset[str],
        is_somebody_free: bool,
        without_news: frozenset[int] = frozenset(),
    ) -> bool:
        """Find what can be ruled now; whether it is time to publish it.

        devices: those whose opinions count. working: those on which a task completed since this
        start. is_somebody_free: a rank waits for work. without_news: the ranks that get no process
        before others have tried what failed there.
        """
        now = time.monotonic()
        self._without_news = without_news
        self._note_failures(now)
        self._note_phase(now)
        ground = self._ground(devices, working, now)
        self.old_in_s = ground.old_in_s
        self.quiet_s = 0.0 if self._quiet_since is None else now - self._quiet_since
        unruled = set(self._view.unruled())
        self._findings = {}
        for key in self.doubtful:
            finding = self._rule(key, ground, key in unruled, is_somebody_free)
            if finding is not Finding.WAIT:
                self._findings[key] = finding
        self._ration(now)
        return self._is_time(now, is_somebody_free)

    def _ration(self, now: float) -> None:
        """Let no more tasks be tried again than there is credit for, of those that are excused."""
        self._credit = min(
            max(self._credit, EXCUSED_AT_ONCE),
            self._credit + EXCUSED_A_SECOND * (now - self._credited_at),
        )
        self._credited_at = now
        excused = [key for key in self._findings if self._view.held[key][-1].is_excused]
        for key in excused[max(0, int(self._credit)) :]:
            del self._findings[key]

    @property
    def excused(self) -> list[Key]:
        """The doubtful tasks that a file system in trouble kept from running last."""
        held = self._view.held
        return [key for key in self.doubtful if held[key][-1].is_excused]

    def _note_phase(self, now: float) -> None:
        """Note whether this is the last phase, and since when nothing has completed in it."""
        ledger = self._view.ledger
        if not self.doubtful or len(self.doubtful) < ledger.tasks - ledger.n_finished:
            self.last_phase_since = self._quiet_since = None
            return
        if self.last_phase_since is None:
            self.last_phase_since = self._quiet_since = now
        elif ledger.n_complete > self._n_complete:
            # What failed before may have failed by an outage, since this completed.
            self._quiet_since = now
        self._n_complete = ledger.n_complete

    def _note_failures(self, now: float) -> None:
        """Note which tasks are doubtful, when each opinion came, and what completed after all.

        What is finished stays so, and is not looked at again: a run may have failed thousands.
        """
        ledger, held = self._view.ledger, self._view.held
        new = list(itertools.islice(held, self._held_read, None))
        self._held_read += len(new)
        doubtful: list[Key] = []
        for key in [*self.doubtful, *new]:
            task, round_ = key
            if ledger.complete[task]:
                if held[key][-1].is_excused:
                    self._credit += EXCUSED_FOR_EACH
                self.do_processes_break |= not all(map(self._is_sure, self._opinions_held(key)))
            elif round_ == ledger.round_of(task) and not ledger.is_finished_in(task, round_):
                doubtful.append(key)
                seen = self._seen.setdefault(key, [])
                seen.extend([now] * (len(held[key]) - len(seen)))
        self.doubtful = doubtful

    def _is_time(self, now: float, is_somebody_free: bool) -> bool:
        if not self._findings:
            self._waiting_since = None
            return False
        if self._waiting_since is None:
            self._waiting_since = now
        gather_s = min(max(GATHER_S, GATHER_FRACTION * (now - self._began)), GATHER_MOST_S)
        return is_somebody_free or self.is_last or now - self._waiting_since >= gather_s

    def _ground(self, devices: frozenset[str], working: frozenset[str], now: float) -> Ground:
        unproven = 0
        if self.last_phase_since is not None:
            for key in self.doubtful:
                opinions = self._opinions_held(key)
                unproven += bool(opinions) and not any(map(self._is_proof, opinions))
        elapsed_s = now - self._began
        return Ground(
            devices,
            working,
            self._quiet_since,
            unproven,
            elapsed_s,
            now,
            self._view.ledger.tasks,
            self.do_processes_break,
        )

    def _rule(
        self, key: Key, ground: Ground, is_with_nobody: bool, is_somebody_free: bool
    ) -> Finding:
        """What is to be done with a doubtful task now; WAIT where that is nothing.

        is_with_nobody: its last failure was not ruled yet, so no worker has it or may claim it.
        is_somebody_free: a rank waits for work, as there is none left to claim.
        """
        held = self._view.held[key]
        if len(held) < OPINIONS and not is_with_nobody:
            # It was given out again, and nobody has said anything since.
            return Finding.WAIT
        if held[-1].is_excused:
            is_time = is_with_nobody and self._has_waited(key, ground.now)
            return Finding.AGAIN if is_time else Finding.WAIT
        opinions = self._opinions(key)
        least = self._least(key)
        finding = rule(opinions, ground, least)
        if finding is Finding.FAIL and self._may_be_worn_out(key):
            finding = Finding.AGAIN
        if finding is not Finding.AGAIN:
            return finding
        if not is_with_nobody or self._is_worth_waiting(held[-1], opinions, ground, least):
            return Finding.WAIT
        if is_somebody_free and not self.is_last:
            pause_s = unproved_pause_s(len(opinions))
            return Finding.AGAIN if ground.now >= opinions[-1].since_s + pause_s else Finding.WAIT
        return Finding.AGAIN

    def _is_worth_waiting(
        self, last: Held, opinions: Sequence[Opinion], ground: Ground, least: int
    ) -> bool:
        """Whether the place of a last failure may yet complete a task, and so prove it.

        It is a first failure, or such a proof would then be enough.
        """
        if self.is_last or opinions[-1].is_confirmed or not self._may_be_confirmed(last):
            return False
        confirmed = [msgspec.structs.replace(one, is_confirmed=True) for one in opinions]
        return len(opinions) == 1 or rule(confirmed, ground, least) is Finding.FAIL

    def _has_waited(self, key: Key, now: float) -> bool:
        """Whether it is time to try a task again that a file system kept from running."""
        held = self._view.held[key]
        times = sum(one.is_excused and self.is_of_this_epoch(one.attempt) for one in held)
        return now >= self._seen[key][-1] + excuse_pause_s(times)

    def _opinions_held(self, key: Key) -> list[Held]:
        """The failures of a task that speak against it or its place."""
        return [one for one in self._view.held[key] if not one.is_excused]

    def _opinions(self, key: Key) -> list[Opinion]:
        opinions: list[Opinion] = []
        for held, since_s in zip(self._view.held[key], self._seen[key], strict=True):
            if held.is_excused:
                continue
            device = self._place(held.attempt)
            # What failed in an earlier epoch may have failed by what ended that one, or before the
            # user mended the job. Unless the place proved itself, that is long ago.
            if not self.is_of_this_epoch(held.attempt):
                since_s = -math.inf
            is_confirmed, is_sure = self._is_confirmed(held), self._is_sure(held)
            is_crash = self._is_crash(held, key)
            opinion = Opinion(held.attempt, device, is_confirmed, since_s, is_sure, is_crash)
            opinions.append(opinion)
        return opinions

    def is_of_this_epoch(self, attempt: str) -> bool:
        """Whether an attempt was started by this parent or a later one, which works beside it."""
        intent = self._view.intents.get(attempt)
        return intent is not None and intent.epoch >= self._epoch

    def _least(self, key: Key) -> int:
        """How many opinions a task needs at least: --max-crashes, if its worker always crashed.

        And if its command was always killed, as many as a worker that is killed: somebody else
        may have done it, such as the kernel for want of memory.
        """
        held = self._opinions_held(key)
        if all(self._is_crash(one, key) for one in held):
            return self._max_crashes
        if all(self._is_killed_command(one, key) for one in held):
            return MAX_KILLS
        return OPINIONS

    def _may_be_worn_out(self, key: Key) -> bool:
        """Whether only processes that had done others before had not enough memory for a task.

        Memory that earlier tasks left behind fails a large task, and the small ones after it
        complete. What a fresh process has no memory for is too large.
        """
        held = self._opinions_held(key)
        if any(self._view.completed_before(one) == 0 for one in held):
            return False
        return all(self._sort(one, key).kind in OUT_OF_MEMORY for one in held)

    def _sort(self, held: Held, key: Key) -> Sort:
        """What sort of failure an attempt has on record of a task."""
        if (held, key) not in self._sorts:
            self._sorts[held, key] = self._read_sort(held, key)
        return self._sorts[held, key]

    def _read_sort(self, held: Held, key: Key) -> Sort:
        error: Error | None = None
        if held.at is None:
            opinion = _opinion_in(self._view.closed[held.attempt], key)
            error = opinion.error if opinion is not None else None
        else:
            record = read_line(self._view, held.attempt, held.at)
            error = record.error if record is not None else None
        if error is None:
            return Sort(None, "")
        return Sort(error.kind, error.signal)

    def _is_crash(self, held: Held, key: Key) -> bool:
        """Whether a task took its process along, otherwise than by its time limit."""
        return held.at is None and self._sort(held, key).kind is not ErrorKind.TIMEOUT

    def _is_killed_command(self, held: Held, key: Key) -> bool:
        """Whether a command was killed, and not by the kernel for want of memory."""
        if held.at is None:
            return False
        sort = self._sort(held, key)
        return sort.signal == "SIGKILL" and sort.kind not in OUT_OF_MEMORY

    def _is_confirmed(self, held: Held) -> bool:
        """Whether the place completed another task after this failure.

        A process that lives on does so itself. For one that died, a later one of its rank does.
        """
        if held.at is not None:
            return self._view.completed(held.attempt) > self._view.completed_before(held)
        return any(self._view.completed(later) for later in self._later(held.attempt))

    def _is_proof(self, held: Held) -> bool:
        """Whether this failure proves the task bad: confirmed, and sure where processes break."""
        if self.do_processes_break and not self._is_sure(held):
            return False
        return self._is_confirmed(held)

    def _is_sure(self, held: Held) -> bool:
        """Whether the process of this failure had not just broken, by what it did besides."""
        if self._view.completed_before(held) == 0:
            return True
        return held.at is not None and self._is_confirmed(held)

    def _may_be_confirmed(self, held: Held) -> bool:
        """Whether the place may still complete another task, so that it is worth waiting for."""
        if held.at is not None:
            is_open = held.attempt not in self._view.closed
            return is_open and not self.is_idle(held.attempt)
        if rank_of(held.attempt) in self._without_news:
            # It waits for what others make of this very task.
            return False
        if any(
            self._place(later) != self._place(held.attempt) for later in self._next(held.attempt)
        ):
            # The parent has gone, and another one has its rank, in another place.
            return False
        return not any(later in self._view.closed for later in self._later(held.attempt))

    def _later(self, attempt: str) -> Iterator[str]:
        """The later attempts of the same rank that ran in the same place."""
        place = self._place(attempt)
        return (later for later in self._next(attempt) if self._place(later) == place)

    def _next(self, attempt: str) -> Iterator[str]:
        """The later attempts of the same rank, wherever they ran."""
        rank, number = parse_attempt(attempt) or (0, 0)
        for later in range(number + 1, self._view.next_number(rank)):
            yield attempt_name(rank, later)

    def is_idle(self, attempt: str) -> bool:
        """Whether an open attempt has nothing in hand, by its own word."""
        claims = self._view.claims_by.get(attempt, [])
        return all(self._view.is_released(attempt, claimed.number) for claimed in claims)

    def _device(self, attempt: str) -> str:
        intent = self._view.intents.get(attempt)
        if intent is None:
            return "?"
        return intent.device

    def _place(self, attempt: str) -> str:
        """The device of an attempt, as no other host has it."""
        intent = self._view.intents.get(attempt)
        return "?" if intent is None else intent.place

    def publish(self) -> list[TaskFailure]:
        """Publish what can be ruled, by link(2); returns the tasks that have failed by it.

        Nothing is ruled where another orchestrator took the name first; the next look rules anew.
        Raises OSError.
        """
        self._waiting_since = None
        again: list[TaskLine] = []
        failures: list[TaskFailure] = []
        for key, finding in self._findings.items():
            self._credit -= self._view.held[key][-1].is_excused
            line = how_it_failed(self._view, key, self._view.held[key][-1]).line
            if finding is Finding.AGAIN and line is not None:
                again.append(self._again(key, line))
            else:
                # Without a line nobody can try it again, and it would be ruled about for ever.
                failures.append(self._verdict(key))
        ruling = Ruling(epoch=self._epoch, at=time.time(), failures=failures)
        name = self._view.next_numbered("ruling")
        if not publish_ruling(self._view.layout, name, ruling, again):
            self._view.refresh()
            return []
        for failure in failures:
            # Without a key there is no name for the copy; the ruling itself tells of the task.
            if failure.key:
                told = copy_of(failure, failure.error.told_attempt, ruling.at)
                publish_failed_task(self._view.layout, told)
        self._view.refresh()
        return failures

    def _again(self, key: Key, line: TaskLine) -> TaskLine:
        """The line with which a task is given out again. After a crash it runs alone."""
        held = self._view.held[key]
        return msgspec.structs.replace(
            line,
            failed_in=tuple(map(self._where, held)),
            careful=line.careful or any(one.at is None for one in held),
        )

    def _where(self, held: Held) -> tuple[str, str]:
        """The attempt of a failure, and the device that it speaks against; "" if it is excused."""
        if held.is_excused:
            return held.attempt, ""
        return held.attempt, self._place(held.attempt)

    def _verdict(self, key: Key) -> TaskFailure:
        """That a task has failed: how, where that was, and all the attempts in which it did.

        Of several failures the last one is told that a place has proved itself after. What a sick
        device says of a bad task is true by chance.
        """
        held = self._opinions_held(key) or self._view.held[key]
        told = next(filter(self._is_confirmed, reversed(held)), held[-1])
        failure = how_it_failed(self._view, key, told)
        identity = self._view.identity(told.attempt)
        error = msgspec.structs.replace(
            failure.error,
            tries=len(held),
            attempts=[one.attempt for one in held],
            attempt=told.attempt,
            rank=rank_of(told.attempt),
            device=self._device(told.attempt),
            host=failure.error.host or (identity.host if identity is not None else ""),
        )
        name = failure.line.key if failure.line is not None else ""
        return TaskFailure(task=key[0], round=key[1], key=name, error=error, start=failure.start)


class Failure(msgspec.Struct, frozen=True):
    """How a doubtful task failed once.

    line: the task's, None where nothing describes it any more. start: when the call began, 0 where
    that is not known.
    """

    error: Error
    line: TaskLine | None
    start: float = 0.0


def how_it_failed(view: View, key: Key, held: Held) -> Failure:
    """One failure of a doubtful task; in few words where its own cannot be read. Raises OSError."""
    if held.at is None:
        opinion = _opinion_in(view.closed[held.attempt], key)
        if opinion is not None:
            return Failure(opinion.error, opinion.line, opinion.start)
    else:
        record = read_line(view, held.attempt, held.at)
        if record is not None and record.error is not None:
            return Failure(record.error, record.line, record.start)
    message = f"it failed in {held.attempt}, whose words cannot be read any more"
    error = Error(kind=ErrorKind.LOST, type="Failed", message=message)
    return Failure(error, _described(view, key))


def _opinion_in(closing: Closing, key: Key) -> TaskFailure | None:
    """What the closing of an attempt says of a task that took it along."""
    for opinion in closing.held:
        if (opinion.task, opinion.round) == key:
            return opinion
    return None


def _described(view: View, key: Key) -> TaskLine | None:
    """The line of a task in any manifest; None where no readable one describes it."""
    for manifest in view.manifests.values():
        for line in manifest.tasks():
            if (line.task, line.round) == key:
                return line
    return None


def read_line(view: View, attempt: str, at: int) -> JournalLine | None:
    """The line at this offset of an attempt's journal, None where it is damaged or gone."""
    path = view.layout.journal(attempt)
    line = b""
    for size in (LINE_BYTES, -1):
        data = read_bytes(path, at, size) or b""
        line, newline, _ = data.partition(b"\n")
        if newline:
            break
    try:
        return unseal(line, JournalLine)
    except Damaged:
        return None
