"""How the ranks of a run stand: what each is at, since when, and what matters most about it.

A row tells of the newest attempt of a rank, and counts what all of its attempts did. What is in
hand comes from heartbeats, which are some seconds old. What a heartbeat names and the journals say
to be finished is not told to go on.

`status` calls this. Nothing here writes, and nothing decides.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from gpuspool.orchestrator.report.keys import keys_at_hand
from gpuspool.orchestrator.report.parents import LIVE, SILENT, Beats, is_at_work
from gpuspool.orchestrator.text.words import count_of
from gpuspool.spool.exits import signal_of
from gpuspool.spool.file_system import heartbeat_s
from gpuspool.spool.identity import is_stopped
from gpuspool.spool.layout import rank_of
from gpuspool.spool.liveness import ATTEMPT_BEATS, BEATS
from gpuspool.spool.records import Closing, Heartbeat, Identity
from gpuspool.spool.states import AttemptState, ErrorKind, Life, Phase, Reason
from gpuspool.spool.timeouts import limit_s
from gpuspool.spool.view import View

# The states of ranks that are no `AttemptState` and no `Phase`; SILENT is another one.
# Its newest attempt is closed, and its parent is about to start the next one.
RESTARTING = "restarting"
# The same, but all that is left is in hand or in doubt, and there is nothing to do for it.
HELD_UP = "waiting"
STARTING = "starting"
LOST = "lost"

# A limit of time is told of in its last quarter, at least and at most so many seconds ahead: before
# that it only disturbs.
TIMEOUT_FRACTION = 0.25
TIMEOUT_TOLD_S = (10.0, 60.0)

# A process tells what it is at in its heartbeat. One that missed so many is told of.
LATE_BEATS = 3

# A call without a limit of time is told of once it takes at least so long, and so many times as
# long as any other that is known: it may hang. Calls of one run often differ tenfold, and then the
# longest mostly come first.
LONG_LEAST_S = 30.0
LONG_TIMES = 10

# How much a rank needs somebody's eyes; where not all ranks can be shown, the highest come first.
FINE = 0
NOTEWORTHY = 1
TROUBLED = 2
LEFT = 3


class Ranks:
    """Makes the rows of one look."""

    def __init__(
        self,
        view: View,
        lives: Mapping[str, Life],
        beats: Beats,
        parents: list[dict[str, Any]],
        doubtful: Collection[int] = (),
    ) -> None:
        """lives: of the open attempts. parents: the rows of all parents. doubtful: the tasks that
        failed somewhere and have no verdict.
        """
        self._doubtful = frozenset(doubtful)
        self._view = view
        self._lives = lives
        self._beats = beats
        self._parents = {row["epoch"]: row for row in parents}
        self._now = time.time()
        self._is_under_way = any(map(is_at_work, parents)) or any(
            life is not Life.DEAD for life in lives.values()
        )
        # From how old a heartbeat on a process here has told nothing for long; None: not asked yet.
        self._late_s: float | None = None
        # Every task is finished, in hand or in doubt, as far as is known.
        self._is_all_taken = False
        self._of_rank: dict[int, list[str]] = defaultdict(list)
        for attempt in view.attempts:
            self._of_rank[rank_of(attempt)].append(attempt)

    def rows(self, *, names_tasks: bool = True) -> list[dict[str, Any]]:
        """One row for each rank, in their order.

        names_tasks: the rows have the keys of the tasks in hand, for which manifests are searched
        where the heartbeats do not have them. Raises OSError.
        """
        rows = [self._row(self._of_rank[rank]) for rank in sorted(self._of_rank)]
        ledger = self._view.ledger
        # A task in doubt runs alone.
        taken = sum(row["in_hand"] for row in rows if row["task"] not in self._doubtful)
        if taken + len(self._doubtful) >= ledger.tasks - ledger.n_finished:
            # Nothing is left that a further process could do, so none is started now.
            self._is_all_taken = True
            rows = [
                self._row(self._of_rank[row["rank"]]) if row["state"] == RESTARTING else row
                for row in rows
            ]
        _count_by_rank(self._view, rows)
        if names_tasks:
            self._name_tasks(rows)
        for row in rows:
            row["note"], row["trouble"] = self._note(row, rows)
        return rows

    def _row(self, attempts: list[str]) -> dict[str, Any]:
        """What is told of a rank that had these attempts."""
        view = self._view
        attempt = attempts[-1]
        life = self._lives.get(attempt)
        closing = view.closed.get(attempt)
        heartbeat = view.heartbeat(attempt) if closing is None else None
        identity = view.identity(attempt)
        intent = view.intents.get(attempt)
        state = self._state(attempts, closing, life, heartbeat)
        failures = self._failures(attempts, state)
        # One that has not begun will be where its parent is.
        where: Identity | None = identity
        if where is None and intent is not None:
            where = intent.parent
        row: dict[str, Any] = {
            "rank": rank_of(attempt),
            "attempt": attempt,
            "epoch": None if intent is None else intent.epoch,
            "state": state,
            "device": None if intent is None else intent.device,
            "host": where.host if where is not None else None,
            "pid": None if identity is None else identity.pid,
            "task": None,
            "key": None,
            "in_hand": 0,
            "task_since": None,
            "task_s": None,
            "timeout_in_s": None,
            "times_longest": None,
            "beat_age_s": None,
            "silent_s": None,
            "done": 0,
            "failed": 0,
            "is_proved_alive": life is Life.ALIVE,
            "restarts": len(failures),
            "restart_cause": str(failures[0].reason) if failures else None,
            "ended": None if closing is None else str(closing.reason),
            "note": "",
            "trouble": FINE,
        }
        # What a heartbeat says holds only as long as its writer may live.
        if heartbeat is not None and life in (Life.ALIVE, Life.ELSEWHERE):
            row["beat_age_s"] = round(self._now - heartbeat.at, 1)
            self._add_task(row, heartbeat)
        row["silent_s"] = self._silent_s(row)
        return row

    def _state(
        self,
        attempts: list[str],
        closing: Closing | None,
        life: Life | None,
        heartbeat: Heartbeat | None,
    ) -> str:
        """What a rank is at, or how its newest attempt ended: the name of an `AttemptState` or of a
        `Phase`, or one of the words above.
        """
        if closing is not None:
            if not self._goes_on(attempts, closing):
                return str(closing.state)
            return HELD_UP if self._is_all_taken else RESTARTING
        if life is Life.DEAD:
            return LOST
        if life is Life.ELSEWHERE and not self._beats.is_fresh(attempts[-1]):
            return SILENT
        return STARTING if heartbeat is None else str(heartbeat.state)

    def _goes_on(self, attempts: list[str], closing: Closing) -> bool:
        """Whether the parent of a closed attempt starts the next one, once there is work for it, by
        all signs.
        """
        parent = self._parent_of(attempts[-1])
        if parent is None or parent["state"] != LIVE or parent["is_draining"]:
            return False
        return not self._view.ledger.is_finished and may_be_followed(self._view, attempts, closing)

    def _failures(self, attempts: list[str], state: str) -> list[Closing]:
        """How the attempts of this start ended that failed and were followed by another one, or
        will be; the newest first.
        """
        return [
            closing
            for closing in closings_of_start(self._view, attempts)
            if closing.state is AttemptState.FAILED
            and (closing.attempt != attempts[-1] or state == RESTARTING)
        ]

    def _note_of_restarts(self, row: dict[str, Any]) -> str:
        """ "3 restarts: crash" """
        failures = self._failures(self._of_rank[row["rank"]], row["state"])
        if not failures:
            return ""
        return f"{count_of(len(failures), 'restart')}: {why_ended(failures[0])}"

    def _parent_of(self, attempt: str) -> dict[str, Any] | None:
        intent = self._view.intents.get(attempt)
        return None if intent is None else self._parents.get(intent.epoch)

    def _add_task(self, row: dict[str, Any], heartbeat: Heartbeat) -> None:
        """What is in hand by a heartbeat."""
        if heartbeat.task is None:
            return
        row["task"] = heartbeat.task
        row["key"] = heartbeat.key or None
        row["in_hand"] = max(1, heartbeat.in_hand)
        ledger = self._view.ledger
        is_known = 0 <= heartbeat.task < ledger.tasks
        # One that has a verdict is not in hand any more: its rank is at a later one.
        if heartbeat.task_since is None or not is_known or ledger.verdict(heartbeat.task):
            return
        row["task_since"] = heartbeat.task_since
        row["task_s"] = round(max(0.0, self._now - heartbeat.task_since), 1)
        # How long a call may take is known only where it is told how many tasks it has.
        limit = limit_s(self._view.options_of(row["attempt"]), heartbeat.in_hand)
        if limit is not None and heartbeat.in_hand > 0 and heartbeat.state is Phase.RUNNING:
            row["timeout_in_s"] = round(limit - row["task_s"], 1)

    def _silent_s(self, row: dict[str, Any]) -> float | None:
        """For how long nothing was heard of an open attempt, where that is longer than usual."""
        if row["ended"] is not None or row["state"] == LOST:
            return None
        age_s = self._beats.age_s(row["attempt"])
        if age_s is None:
            return None
        usual_s = BEATS * self._view.options_of(row["attempt"]).lease_s / ATTEMPT_BEATS
        return round(age_s, 1) if row["state"] == SILENT or age_s > usual_s else None

    def _name_tasks(self, rows: list[dict[str, Any]]) -> None:
        """Put into each row the key of the task in hand, where no heartbeat has it."""
        nameless = [row for row in rows if row["task"] is not None and row["key"] is None]
        keys = keys_at_hand(self._view, {row["task"]: row["rank"] for row in nameless})
        for row in nameless:
            row["key"] = keys.get(row["task"])

    # What matters most of a rank is the first of these that holds.
    def _note(self, row: dict[str, Any], rows: list[dict[str, Any]]) -> tuple[str, int]:
        """What matters most of a rank, "" for nothing, and how much it matters."""
        attempts = self._of_rank[row["rank"]]
        if row["state"] == LOST:
            # Of a run that was killed as a whole that is said once.
            return ("its process is gone" if self._is_under_way else ""), TROUBLED
        is_waited_for = not self._view.ledger.is_finished
        is_late = self._is_late(row)
        if is_late and is_stopped(row["pid"]):
            return "its process is stopped", TROUBLED
        if row["silent_s"] is not None and is_waited_for:
            return f"silent {row['silent_s']:.0f} s", TROUBLED
        if row["state"] == SILENT:
            return ("silent", TROUBLED) if is_waited_for else ("", FINE)
        if row["state"] == HELD_UP and row["ended"] is not None and self._doubtful:
            return f"waits: {count_of(len(self._doubtful), 'task')} in doubt", NOTEWORTHY
        if row["ended"] is not None and row["state"] != RESTARTING:
            return self._note_of_end(row, attempts)
        timeout = _note_of_timeout(row)
        if timeout:
            return timeout, TROUBLED
        if row["state"] == Phase.WAITING:
            return _who_is_waited_for(row, rows), FINE
        if is_late:
            return f"told nothing for {row['beat_age_s']:.0f} s", NOTEWORTHY
        restarts = self._note_of_restarts(row)
        if row["state"] == RESTARTING:
            return restarts or why_ended(self._view.closed[row["attempt"]]), TROUBLED
        intent = self._view.intents.get(row["attempt"])
        if intent is not None and intent.is_doubted and not self._view.completed(row["attempt"]):
            return ", ".join(filter(None, ("doubted", restarts))), NOTEWORTHY
        return restarts, NOTEWORTHY if restarts else FINE

    def _is_late(self, row: dict[str, Any]) -> bool:
        """Whether a process of this host has not told for long what it is at.

        It may be stopped, or in a call that keeps the interpreter's lock. Ages of heartbeats from
        elsewhere are by two clocks, and there the beats tell who is silent.
        """
        age_s = row["beat_age_s"]
        if not row["is_proved_alive"] or age_s is None or age_s < LATE_BEATS:
            return False
        if self._late_s is None:
            options = self._view.run.options
            beat_s = heartbeat_s(self._view.layout.root, options.lease_s, options.poll_s)
            self._late_s = LATE_BEATS * beat_s
        return bool(age_s > self._late_s)

    def _note_of_end(self, row: dict[str, Any], attempts: list[str]) -> tuple[str, int]:
        """The note of a rank that gets no other process, as far as is known."""
        closing = self._view.closed[row["attempt"]]
        faults = faults_of(self._view, attempts)
        if is_given_up(self._view, attempts):
            return f"gave up: {_in_a_row(len(faults), why_ended(closing))}", LEFT
        if closing.state is AttemptState.FAILED:
            return why_ended(closing), NOTEWORTHY
        restarts = self._note_of_restarts(row)
        return restarts or ("" if closing.reason is Reason.FINISHED else why_ended(closing)), FINE


def note_long_calls(rows: list[dict[str, Any]], longest_s: float | None) -> None:
    """Note of calls without a limit of time that they take much longer than others.

    longest_s: how long the longest task took that has ended, as far as is known: its share of its
    call.
    """
    if not longest_s:
        return
    for row in rows:
        is_running = row["state"] == Phase.RUNNING and row["task_s"] is not None
        if not is_running or row["timeout_in_s"] is not None or row["trouble"] >= TROUBLED:
            continue
        times = int(row["task_s"] / row["in_hand"] / longest_s)
        if times >= LONG_TIMES and row["task_s"] >= LONG_LEAST_S:
            row["times_longest"] = times
            row["note"], row["trouble"] = f"{times:,} times any other task", TROUBLED


# What follows an attempt that ended, as far as its rank alone tells. `explain` asks too.


def may_be_followed(view: View, attempts: list[str], closing: Closing) -> bool:
    """Whether a parent that is at work starts another process where the last of these attempts
    ended, once there is something to do.

    attempts: of a rank, whose journals were read. Which ranks try doubtful tasks that others left
    is for the parent to say, so of one that left some nothing is told.
    """
    if closing.reason in (Reason.FINISHED, Reason.DRAINED, Reason.HANDOVER):
        return False
    return not is_given_up(view, attempts)


def is_given_up(view: View, attempts: list[str]) -> bool:
    """Whether so many attempts of a rank ended in vain that it gets no other one."""
    return len(faults_of(view, attempts)) > view.options_of(attempts[-1]).max_restarts


def faults_of(view: View, attempts: list[str]) -> list[Closing]:
    """The last closings of a rank in a row that speak against it alone, the newest first.

    These attempts of one start failed without a task in hand, and completed nothing.
    """
    found: list[Closing] = []
    for closing in closings_of_start(view, attempts):
        has_task = closing.suspects or closing.failures or closing.held
        has_task = has_task or closing.attempt in view.failed_in
        is_fault = closing.state is AttemptState.FAILED and not has_task
        if not is_fault or view.completed(closing.attempt):
            break
        found.append(closing)
    return found


def closings_of_start(view: View, attempts: list[str]) -> Iterator[Closing]:
    """How the attempts of a rank ended that its newest one's parent started, that one first."""
    newest = view.intents.get(attempts[-1])
    for attempt in reversed(attempts):
        intent = view.intents.get(attempt)
        if newest is None or intent is None or intent.epoch != newest.epoch:
            break
        if attempt in view.closed:
            yield view.closed[attempt]


def why_ended(closing: Closing) -> str:
    """Why an attempt ended, in a word or two."""
    errors = [failure.error for failure in (*closing.failures, *closing.held)]
    if closing.error is not None:
        errors.append(closing.error)
    kinds = {error.kind for error in errors}
    if ErrorKind.HOST_OOM in kinds:
        return "out of memory"
    if ErrorKind.GPU_OOM in kinds:
        return "out of GPU memory"
    match closing.reason:
        case Reason.CRASH:
            signal = signal_of(closing.exit_code or 0)
            return f"crash, {signal}" if signal else "crash"
        case Reason.TIMEOUT:
            return "time-out"
        case Reason.LOAD:
            return "the job does not load"
        case Reason.DEVICE:
            return "does not see its device"
        case Reason.IO:
            return "trouble with a file system"
        case Reason.FAILURES:
            return "failures in a row"
        case Reason.HANDOVER:
            return "only doubtful tasks left"
        case Reason.RECYCLED:
            return "fresh process"
        case Reason.KILLED:
            return "stopped"
        case Reason.FINISHED | Reason.DRAINED | Reason.LOST:
            return str(closing.reason)


def _in_a_row(count: int, why: str) -> str:
    if why == "crash":
        return f"{count_of(count, 'crash', 'crashes')} in a row"
    return f"{count} times in a row, {why}"


def _note_of_timeout(row: dict[str, Any]) -> str:
    """ "time-out in 5 s" if that is near, else "" """
    left_s = row["timeout_in_s"]
    if left_s is None:
        return ""
    if left_s <= 0:
        return "time-out now"
    least_s, most_s = TIMEOUT_TOLD_S
    told_s = min(max(TIMEOUT_FRACTION * (left_s + row["task_s"]), least_s), most_s)
    return f"time-out in {left_s:.0f} s" if left_s <= told_s else ""


def _who_is_waited_for(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Who warms the host of a rank up, which waits for that."""
    for other in rows:
        is_neighbour = (other["epoch"], other["host"]) == (row["epoch"], row["host"])
        if is_neighbour and other["state"] in (STARTING, Phase.LOADING, Phase.MAKING):
            return f"waits for rank {other['rank']}"
    return "waits for a warm-up"


def _count_by_rank(view: View, rows: list[dict[str, Any]]) -> None:
    """Count in each row what all attempts of its rank completed, and which failed tasks failed
    there last.
    """
    done: Counter[int] = Counter()
    for attempt in view.attempts:
        done[rank_of(attempt)] += view.completed(attempt)
    failed = Counter(_ranks_of_failed(view))
    for row in rows:
        row["done"] = done[row["rank"]]
        row["failed"] = failed[row["rank"]]


def _ranks_of_failed(view: View) -> Iterator[int]:
    """For each failed task, as far as that is known, the rank of whose failure `failed` tells."""
    ledger = view.ledger
    rank_at: dict[int, int] = {}
    for closing in view.closed.values():
        for failure in closing.failures:
            if failure.round == ledger.round_of(failure.task):
                rank_at[failure.task] = rank_of(closing.attempt)
    for ruling in view.rulings.values():
        for failure in ruling.failures:
            rank = failure.error.rank
            if rank is not None and failure.round == ledger.round_of(failure.task):
                rank_at[failure.task] = rank
    # What a journal says of the newest round comes before what others say of it.
    newest = ledger.failed_round
    for task, line in view.failed_lines.items():
        if line.round == newest.get(task) or task not in rank_at:
            rank_at[task] = rank_of(line.attempt)
    return (rank_at[task] for task in ledger.failed() if task in rank_at)
