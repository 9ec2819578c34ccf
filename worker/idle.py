"""What an attempt does once nothing is left to claim: it waits for a word, and helps in silence.

Some tasks have no verdict yet: others have them in hand, or wait to try them again. If such a
worker dies, its tasks come back in a new manifest, and an idle attempt is the first that can run
them, with its job loaded. So it waits until every task is finished, or until it can be of no use:
where only tasks are left that failed in it, another process must try them, and where no parent
lives that could rule about what failed, the next one must.

1. It waits for a word: that all tasks are finished, that it shall drain, or that there is another
   manifest. The parent gives these words, since it sees everything first.
2. After some time without a word it reads the whole spool itself (`_help`). It closes attempts that
   are proved dead, publishes stranded tasks again, and finds out whether it was closed itself.
3. It goes on with 1., and waits longer than before.

**How long it waits** is a matter of load, since every idle rank does this. Between two looks it
waits a tenth of the time that it has waited, from 2 ms to a quarter of a second, or to some minutes
where its parent says by a nudge when there is news. While the parent lives, only some HELPERS of
all ranks together read the spool per second, and fewer from one help to the next.
Without a parent each helps after SILENCE_S and then spends at most HELPING of its time on it, since
there is nobody else. Before these bounds a rank listed two folders a hundred times and read the
whole spool four times a second (decision 14; docs/performance.md has the figures of a thousand
ranks).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from enum import Enum, auto

from gpuspool.spool.closing import close_attempts
from gpuspool.spool.death import Death, Evidence, classify
from gpuspool.spool.journal import JournalWriter
from gpuspool.spool.layout import Layout
from gpuspool.spool.liveness import FailureDetector
from gpuspool.spool.publish import listdir
from gpuspool.spool.records import IdleLine, Intent, Run
from gpuspool.spool.states import LineState
from gpuspool.spool.sweep import sweep
from gpuspool.spool.timeouts import read_stacks
from gpuspool.spool.view import View, read_control
from gpuspool.worker.drain import Drain
from gpuspool.worker.nudges import PROMPT_S, UNNUDGED_LOOK_S, Nudges
from gpuspool.worker.parent import Parent
from gpuspool.worker.supply import LEFT_TO_OTHERS_S

# The first and the longest pause between two looks.
FIRST_PAUSE_S = 0.002
LONGEST_PAUSE_S = 0.25
# The next pause is this part of the time waited so far: a word is noticed late by at most a tenth.
PAUSE_FRACTION = 0.1
# With a parent that says when there is news, the wait for the next reading of the whole spool grows
# by this factor, up to so long.
NUDGED_GROWTH = 16.0
LONGEST_NUDGED_S = 3600.0
# Without a word for so long, an idle attempt reads the whole spool.
SILENCE_S = 1.0
# While the parent lives, so many of all ranks together do so in SILENCE_S, and ever fewer.
HELPERS = 8
# An idle attempt reads the spool for at most this part of its time.
HELPING = 0.1
# A sweep reads every manifest. An idle attempt sweeps at its first help, then waits so long before
# the next, and twice as long each time, up to the second.
FIRST_SWEEP_S = 2.0
LONGEST_SWEEP_S = 60.0


class Word(Enum):
    """What an idle attempt learned."""

    # Every task is finished.
    FINISHED = auto()
    # A drain was asked for.
    DRAINED = auto()
    # Somebody closed this attempt.
    CLOSED = auto()
    # There is another manifest, so there may be something to claim.
    NEW_MANIFEST = auto()
    # There are positions that nobody has claimed, and that this attempt passed over.
    OVERLOOKED = auto()
    # The parent is gone, and all that is left are failures, about which only a parent may rule.
    NOBODY_RULES = auto()
    # Only doubtful tasks are left that this attempt must not take, or had better leave to others,
    # and others have had the time to take them.
    OTHERS_HAD_TIME = auto()
    # Nothing happened for as long as it waited.
    SILENCE = auto()


class Idling:
    """The idle times of one attempt. What was read of the spool is kept from one to the next."""

    def __init__(
        self,
        layout: Layout,
        run: Run,
        intent: Intent,
        journal: JournalWriter,
        drain: Drain,
        parent: Parent,
        nudges: Nudges | None = None,
        check_folders: Callable[[], None] = lambda: None,
    ) -> None:
        """nudges: of the parent. check_folders: raises where the spool or OUT is not the folder
        that it was.
        """
        self._nudges = nudges or Nudges(None)
        self._check_folders = check_folders
        self._layout = layout
        self._run = run
        self._intent = intent
        self._journal = journal
        self._drain = drain
        self._parent = parent
        # The number of claims that the last idle line in the journal tells of; -1 before any. The
        # first time it is said also without a claim: one may stand in this attempt's name.
        self._claims_told = -1
        # Made at the first help: it reads the whole spool, and most attempts never need to.
        self._detector: FailureDetector | None = None
        self._sweep_pause_s = FIRST_SWEEP_S
        self._next_sweep = 0.0

    def wait(
        self, claims_tried: int, leaves_doubtful: bool = False, needs_fresh: bool = False
    ) -> Word:
        """Wait, and help, until there is a word; never returns SILENCE.

        claims_tried: how many claims this attempt has tried to make. leaves_doubtful: it passed
        over doubtful tasks that failed here, or on this device. needs_fresh: these need a process
        that has tried no task. Raises OSError where the spool cannot be read or the journal is
        broken.
        """
        self._say_idle(claims_tried)
        patience_s, alone_s = self._first_waits(leaves_doubtful, needs_fresh)
        idle_since = time.monotonic()
        while True:
            word = self._await_word(patience_s, alone_s, idle_since)
            if word is not Word.SILENCE:
                return word
            # A parent closes the dead, and gives out what they had in hand. Without one nobody else
            # does.
            if leaves_doubtful and self._parent.is_there():
                return Word.OTHERS_HAD_TIME
            began = time.monotonic()
            word = self._help(leaves_doubtful)
            if word is not Word.SILENCE:
                return word
            if leaves_doubtful:
                return Word.OTHERS_HAD_TIME
            took_s = time.monotonic() - began
            alone_s = max(LONGEST_PAUSE_S, took_s / HELPING)
            longer_s = min(2 * patience_s, LONGEST_SWEEP_S)
            if self._is_nudged():
                longer_s = min(NUDGED_GROWTH * patience_s, LONGEST_NUDGED_S)
            patience_s = max(alone_s, longer_s)

    def _first_waits(self, leaves_doubtful: bool, needs_fresh: bool) -> tuple[float, float]:
        """How long to wait for the first word, while the parent lives and without it."""
        if leaves_doubtful:
            # It is vain to wait where nobody else could take what was passed over, as with a single
            # rank, or where this process shall make room for a fresh one.
            is_vain = self._intent.world_size == 1 or needs_fresh
            wait_s = 0.0 if is_vain else LEFT_TO_OTHERS_S
            return wait_s, wait_s
        # Spread, so that not all ranks help at once.
        return SILENCE_S * self._share_of_help() * random.uniform(1, 2), SILENCE_S

    def _share_of_help(self) -> float:
        """How many times longer than a rank alone this one waits, since others help too.

        Where parents say when there is news, all ranks of all of them count, and also that each has
        to read what all have written.
        """
        n_ranks = self._intent.world_size
        if not self._is_nudged():
            return max(1.0, n_ranks / HELPERS)
        n_ranks = max(n_ranks, len(listdir(self._layout.attempts)))
        return max(1.0, n_ranks / HELPERS) ** 2

    # An attempt may hold claims that it does not know: each link(2) was carried out, and told as an
    # error. As long as it lives these look like work in hand. Two such attempts would wait for each
    # other for ever, each with the last tasks of the other. So whoever becomes idle says so, in the
    # one file that tells in order what it finished and what it did not.
    def _say_idle(self, claims_tried: int) -> None:
        """Say in the journal that no claim so far is in hand, unless that was said before."""
        if claims_tried > self._claims_told:
            self._journal.append(IdleLine(state=LineState.IDLE, claims=claims_tried))
            self._claims_told = claims_tried
        else:
            self._journal.flush()

    def _await_word(self, patience_s: float, alone_s: float, idle_since: float) -> Word:
        """Wait for a word, for `patience_s` while the parent lives and `alone_s` without it.

        idle_since: on the monotonic clock.
        """
        known = listdir(self._layout.manifests)
        began = time.monotonic()
        waited_s = 0.0
        while waited_s < (patience_s if self._parent.is_there() else alone_s):
            self._journal.check()
            self._check_folders()
            if self._drain.is_requested:
                return Word.DRAINED
            if read_control(self._layout).finished >= self._intent.epoch:
                return Word.FINISHED
            if listdir(self._layout.manifests) != known:
                return Word.NEW_MANIFEST
            if self._is_nudged():
                # As long again as it has been idle so far: it looks a dozen times, and leaves the
                # rest to its parent.
                pause_s = max(FIRST_PAUSE_S, time.monotonic() - idle_since)
                if pause_s >= PROMPT_S:
                    pause_s = UNNUDGED_LOOK_S
                self._await_nudge(min(pause_s, patience_s - waited_s))
            else:
                pause_s = max(FIRST_PAUSE_S, waited_s * PAUSE_FRACTION)
                time.sleep(min(pause_s, LONGEST_PAUSE_S))
            waited_s = time.monotonic() - began
        return Word.SILENCE

    def _is_nudged(self) -> bool:
        """Whether the parent is there, and says when there is news."""
        return self._nudges.are_promised and self._parent.is_there()

    def _await_nudge(self, seconds: float) -> None:
        """Wait for a nudge, at most so long; a drain that was asked for by a signal ends it too."""
        until = time.monotonic() + seconds
        while (left_s := until - time.monotonic()) > 0:
            if self._nudges.wait(min(left_s, LONGEST_PAUSE_S)) or self._drain.is_requested:
                return
            if not self._is_nudged():
                return

    def _help(self, leaves_doubtful: bool = False) -> Word:
        """Read the whole spool, close what is proved dead, sweep.

        leaves_doubtful: what is unclaimed was seen, and passed over on purpose.
        """
        if self._detector is None:
            view = View(self._layout, self._run)
            self._detector = FailureDetector(view, self._intent.options.lease_s)
        detector = self._detector
        view = detector.view.refresh()
        me = self._intent.attempt
        if view.ledger.is_finished:
            return Word.FINISHED
        if me in view.closed:
            return Word.CLOSED
        if not leaves_doubtful and _offers_anything(view):
            return Word.OVERLOOKED
        if not self._parent.is_there() and self._awaits_only_rulings(view):
            return Word.NOBODY_RULES
        deaths = self._find_dead(detector)
        if deaths and close_attempts(view, deaths, by=me):
            return Word.NEW_MANIFEST
        if time.monotonic() >= self._next_sweep:
            self._next_sweep = time.monotonic() + self._sweep_pause_s
            self._sweep_pause_s = min(self._sweep_pause_s * 2, LONGEST_SWEEP_S)
            if sweep(view):
                return Word.NEW_MANIFEST
        return Word.SILENCE

    def _awaits_only_rulings(self, view: View) -> bool:
        """Whether every unfinished task failed, and waits for a parent to rule about it."""
        unruled = {task for task, _ in view.unruled()}
        return len(unruled) == view.ledger.tasks - view.ledger.n_finished

    def _find_dead(self, detector: FailureDetector) -> dict[str, Death]:
        """The attempts that are proved dead and that no parent closes, with how they died."""
        deaths: dict[str, Death] = {}
        for attempt in detector.view.open_attempts:
            if attempt != self._intent.attempt and detector.is_dead_orphan(attempt):
                evidence = Evidence(stacks=read_stacks(self._layout, attempt))
                deaths[attempt] = classify(evidence)
        return deaths


# Where a power cut took back a claim, the tasks that it held are mostly finished, and would run
# twice. Mending claims waits until the dead of that host are closed, and an idle attempt does not.
def _offers_anything(view: View) -> bool:
    """Whether there are positions that nobody has claimed, with a task that is not finished."""
    for name, chain in view.chains.items():
        if chain.unclaimed:
            for task in map(view.manifests[name].task, chain.uncovered()):
                if task is not None and not view.ledger.is_finished_in(task.task, task.round):
                    return True
    return False
