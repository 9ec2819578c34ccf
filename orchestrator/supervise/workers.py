"""All attempts of a run as their parent deals with them: started, watched, told to stop, killed,
closed and seen off.

Two kinds of attempts are kept apart. `children.py` has those that this process started and knows by
wait(2); `others.py` has those that somebody else started and that must be judged from outside. Here
they come together, for all that is done to both alike. A process that was sent SIGKILL and is not
gone after a while hangs in the kernel and runs no user code any more, so it counts as dead.

The loop is the only caller.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import assert_never

import msgspec

from gpuspool.orchestrator.plan.slots import Slot
from gpuspool.orchestrator.supervise.bell import Bell
from gpuspool.orchestrator.supervise.children import Children
from gpuspool.orchestrator.supervise.decide import FAREWELL_S
from gpuspool.orchestrator.supervise.evidence import Forensics
from gpuspool.orchestrator.supervise.interventions import Interventions
from gpuspool.orchestrator.supervise.launch import Child, Orders, kill_group
from gpuspool.orchestrator.supervise.others import Others
from gpuspool.orchestrator.supervise.overdue import Lateness, OverdueWatch
from gpuspool.orchestrator.supervise.ranks import Ranks
from gpuspool.orchestrator.supervise.trouble import DiskWatch
from gpuspool.spool.blame import certain_in_hand, read_tail
from gpuspool.spool.closing import close_attempts
from gpuspool.spool.death import Evidence, classify
from gpuspool.spool.exits import describe_exit
from gpuspool.spool.identity import is_stopped
from gpuspool.spool.layout import orphans_name
from gpuspool.spool.open_folder import folder_id
from gpuspool.spool.processes import kill_marked, run_mark
from gpuspool.spool.publish import open_to_append
from gpuspool.spool.records import Closing
from gpuspool.spool.signals import is_ending, moment_after
from gpuspool.spool.states import BY_PARENT, BY_RESUME, ErrorKind, Life, Reason
from gpuspool.spool.timeouts import STACKS_SIGNAL
from gpuspool.spool.view import View

# A worker that closed itself and that some other process started has this long to be gone. It has
# written all that it will, so less patience is lost on it than on a child.
OTHERS_S = 3.0

# While workers are seen off they are looked at this often at least, for what the bell misses.
SEE_OFF_LOOK_S = 1.0

# And no more often than this, however late it is: what was just killed takes a moment to be gone.
SEE_OFF_PAUSE_S = 0.05

# A worker that is about to be killed has so long to write its stacks, which it does in C within
# milliseconds unless it hangs in the kernel. It is looked at this often meanwhile.
STACKS_S = 0.5
STACKS_LOOK_S = 0.02

# People are told of a worker whose process goes on for so long after its work.
SLOW_S = 4.0

# Is given the name of such an attempt.
OnSlow = Callable[[str], None]


class Ended(msgspec.Struct, frozen=True):
    """An attempt that this process closed.

    how: its end as people are told of it. in_hand: the key of the task that it was certainly at; ""
    where there was none, or that is not known.
    """

    closing: Closing
    how: str
    in_hand: str


class Workers:
    """The attempts of one run in one epoch.

    Its methods raise OSError where the spool cannot be read or written.
    """

    def __init__(self, view: View, orders: Orders, out: Path | None = None) -> None:
        """out: as for `DiskWatch`."""
        options = orders.options
        self.children = Children(view, orders)
        self.others = Others(view, self.children, options.lease_s)
        self._ranks = Ranks(view, self.others.detector, orders.epoch)
        self._view = view
        self._epoch = orders.epoch
        self._mark = run_mark(view.run.id, folder_id(view.layout.root))
        self._interventions = Interventions()
        self._overdue = OverdueWatch(view)
        self._disks = DiskWatch(view, out)
        self._examined: dict[str, Evidence] = {}
        self._is_believing = options.keep_going or options.max_crashes == 1
        # Those that people were told of since their processes go on and on.
        self._slow: set[str] = set()
        self._forensics = Forensics(view, self.children, self._interventions, options.max_crashes)

    def launch(self, slot: Slot, patience: int, is_doubted: bool) -> Child:
        """Start the next attempt in a slot; so many failures in a row end it.

        Raises OSError, also while a file system that ended an attempt before takes no data.
        """
        self._disks.check()
        return self.children.launch(slot, self._ranks, patience, is_doubted)

    def life(self, attempt: str) -> Life:
        """Whether an open attempt lives, is proved dead, or is elsewhere."""
        if attempt in self.children:
            found = self.children.life(attempt)
        elif self.children.is_stillborn(attempt):
            return Life.DEAD
        else:
            found = self.others.life(attempt)
        now = time.monotonic()
        if found is Life.ALIVE and self._interventions.is_beyond_help(attempt, now):
            return Life.DEAD
        return found

    def believed_at(self, attempt: str) -> float:
        """From when on the death of an attempt may be judged, on the monotonic clock.

        A stop that everybody gets may end a worker before this process hears of it: then nobody is
        to blame. So the death of a child that nobody told to end is believed a moment later.
        """
        ended_at = self.children.ended_at(attempt)
        code = self.children.exit_code(attempt)
        if ended_at is None or code is None or self._interventions.is_explained(attempt):
            return -math.inf
        return ended_at + _moment_s(code, self._is_believing)

    def pids(self) -> list[int]:
        """The pids of all workers that are proved alive on this host."""
        return [*self.children.running().values(), *self.others.running().values()]

    def known_pids(self) -> list[int]:
        """As `pids`, as of the last look: by the table of processes, without reading the spool."""
        return [*self.children.running().values(), *self.others.adopted_running().values()]

    def cared_for(self) -> list[str]:
        """The children that are not forgotten, and what is adopted and runs. Reads nothing of the
        spool.
        """
        return [*self.children.attempts(), *self.others.adopted_running()]

    def has_any_ended(self) -> bool:
        """Whether a child, or one that is adopted, has ended and was not seen to yet. Reads nothing
        of the spool.
        """
        children = self.children
        if len(children.running()) < len(children.attempts()):
            return True
        return self.others.has_adopted_ended()

    def tell_to_stop(self) -> None:
        """SIGTERM to every worker of this host, its own first.

        However any attempt ends from now on, nobody is blamed. That holds for those on other hosts
        too, which hear of the drain through the spool. Harmless to repeat. Raises OSError where an
        attempt that this process did not start cannot be judged.
        """
        self._interventions.note_told(self.children.attempts())
        for pid in self.children.running().values():
            _terminate(pid)
        # Only from here on is the spool read, which may fail: the children were told by then. They
        # come first because a scheduler may kill all of us within seconds, and they need the time
        # to finish what is in hand.
        open_attempts = self._view.open_attempts
        living = [name for name in open_attempts if self.life(name) is not Life.DEAD]
        self._interventions.note_told(living)
        for pid in self.others.running().values():
            _terminate(pid)

    def kill(self, attempt: str) -> None:
        """End a worker of this host and its process group. Its parent says so: nobody is blamed."""
        self._interventions.note_told([attempt])
        self._kill(attempt)

    def _kill(self, attempt: str) -> None:
        """Kill the process group of a worker, if that is proved to be one that lives here."""
        if self.life(attempt) is not Life.ALIVE:
            return
        pid = self._pid_here(attempt)
        if pid is not None:
            kill_group(pid)
            self._interventions.note_killed(attempt, time.monotonic())

    def _pid_here(self, attempt: str) -> int | None:
        """The pid of an attempt of this host, whoever started it; None where it is elsewhere."""
        child = self.children.get(attempt)
        if child is not None:
            return child.pid
        return self.others.pid_here(attempt)

    def kill_overdue(self) -> dict[str, str]:
        """Kill the attempts that are in a call beyond its limit, or that stand still as a whole.

        Returns what people are told of each.
        """
        self._forensics.look_at_memory()
        # First all are judged, then they are killed. Who takes too long is noted as overdue before
        # its signal, since its end may be seen at once: without the note it would be taken for a
        # crash, and would count against a task that was only slow.
        found = {attempt: self._lateness(attempt) for attempt in self._view.open_attempts}
        late = [attempt for attempt, lateness in found.items() if lateness is Lateness.TOO_LONG]
        for attempt in late:
            self._interventions.note_overdue(attempt)
        self._ask_for_stacks(late)
        told: dict[str, str] = {}
        for attempt, lateness in found.items():
            match lateness:
                case Lateness.NONE:
                    continue
                case Lateness.TOO_LONG:
                    told[attempt] = "took too long and is killed"
                case Lateness.STANDS_STILL:
                    told[attempt] = "stands still (is it stopped?) and is killed; no task failed"
                case _:
                    assert_never(lateness)
            self._kill(attempt)
        return told

    def _lateness(self, attempt: str) -> Lateness:
        if not self._overdue.is_limited(attempt) or self._interventions.was_killed(attempt):
            return Lateness.NONE
        if self.life(attempt) is not Life.ALIVE:
            return Lateness.NONE
        pid = self._pid_here(attempt)
        return self._overdue.look(attempt, pid is not None and is_stopped(pid), time.monotonic())

    def _ask_for_stacks(self, attempts: list[str]) -> None:
        """Let workers that are about to be killed write where they hang; wait a moment for it."""
        asked = []
        for attempt in attempts:
            pid = self._pid_here(attempt)
            if pid is not None and self.life(attempt) is Life.ALIVE:
                _send(pid, STACKS_SIGNAL)
                asked.append(attempt)
        until = time.monotonic() + STACKS_S
        while asked and time.monotonic() < until:
            time.sleep(STACKS_LOOK_S)
            asked = [attempt for attempt in asked if self.life(attempt) is Life.ALIVE]

    def close(self, attempts: Iterable[str]) -> Iterator[Ended]:
        """Close attempts that are proved dead, each in the way that its death asks for.

        What they left running is killed first. However many they are, the spool is read a few
        times. Left out of what is yielded are those with nothing to tell: since they were judged
        they began after all, or closed themselves. Raises OSError, after it has yielded what was
        closed, where some could not be.
        """
        # A closing gives the attempt's tasks to others. So what a dead worker started is killed
        # before: it could still write to the outputs of a task that somebody else is about to
        # begin, or hold memory of the device that the next attempt needs.
        dead = tuple(attempts)
        kill_marked(self._mark, dead)
        evidence = {attempt: self._examine(attempt) for attempt in dead}
        trouble = self._close_all(evidence)
        for attempt in dead:
            closing = self._view.closed.get(attempt)
            if closing is None:
                continue
            del self._examined[attempt]
            if closing.by == attempt:
                continue
            self._disks.note(closing)
            self._keep_stacks(closing)
            how = self._describe_end(closing, evidence[attempt])
            yield Ended(closing, how, self._key_in_hand(closing))
        if trouble is not None:
            raise trouble

    # Examining a death may use evidence up: a kill for want of memory explains one death only. So
    # what was found is kept until the attempt is closed, which a full disk may put off.
    def _examine(self, attempt: str) -> Evidence:
        if attempt not in self._examined:
            self._examined[attempt] = self._forensics.examine(attempt)
        return self._examined[attempt]

    def _close_all(self, evidence: dict[str, Evidence]) -> OSError | None:
        """Close what this process can explain, then all others; returns what went wrong last."""
        explained = [attempt for attempt, one in evidence.items() if _is_explained(one)]
        unexplained = [attempt for attempt, one in evidence.items() if not _is_explained(one)]
        trouble: OSError | None = None
        for attempts, by in ((explained, BY_PARENT), (unexplained, BY_RESUME)):
            deaths = {attempt: classify(evidence[attempt]) for attempt in attempts}
            try:
                if deaths:
                    close_attempts(self._view, deaths, by)
            except OSError as error:
                trouble = error
        return trouble

    def _keep_stacks(self, closing: Closing) -> None:
        """Append where every thread stood, when the worker's timer ended it, to the attempt's log.

        That is for people, so that the log cannot be written is nobody's trouble.
        """
        if closing.error is None or not closing.error.traceback:
            return
        path = self._view.layout.log(closing.attempt)
        with contextlib.suppress(OSError), open(open_to_append(path), "a") as log:
            log.write(closing.error.traceback)

    def _describe_end(self, closing: Closing, evidence: Evidence) -> str:
        if closing.reason is Reason.TIMEOUT:
            return _describe_timeout(closing)
        if closing.error is not None and closing.error.kind is ErrorKind.TIMEOUT:
            return "it was told to stop, and its call took too long; no task is blamed"
        if evidence.exit_code is not None:
            where = " in the job's `close`" if closing.attempt in self._view.leaving else ""
            log = read_tail(self._view.layout, closing.attempt)
            return f"{describe_exit(evidence.exit_code, log)}{where}"
        if evidence.never_started:
            return "it could not be started"
        if closing.attempt in self.children:
            return "it hangs in the kernel"
        if not self.others.is_parent_dead(closing.attempt):
            return "it died while its parent, which lives, did nothing (is that stopped?)"
        return "its parent died, and then it died itself"

    def _key_in_hand(self, closing: Closing) -> str:
        """As `Ended.in_hand`, of an attempt that was closed just now."""
        blamed = [*closing.failures, *closing.held]
        if blamed:
            return blamed[0].key
        manifest = self._view.manifests.get(orphans_name(closing.attempt))
        if manifest is None or closing.attempt in self._view.leaving:
            return ""
        started = self._view.started.get(closing.attempt)
        certain = certain_in_hand(list(manifest.tasks()), started)
        return "" if certain is None else certain.key

    def reap(self, on_slow: OnSlow) -> list[Closing]:
        """Forget the children that closed themselves and have ended; returns their closings.

        A child that lingers after its closing is killed. `on_slow` is told of it before, once.
        """
        for attempt, waited_s in self.children.leaving(time.monotonic()).items():
            self._note_slow(attempt, waited_s, on_slow)
            if waited_s > FAREWELL_S:
                self._kill(attempt)
        closings = self.children.reap()
        for closing in closings:
            self._disks.note(closing)
        return closings

    def lingering(self) -> list[str]:
        """The children that closed themselves and whose processes go on.

        Without those that hang in the kernel: nobody waits for them.
        """
        now = time.monotonic()
        closed = self.children.leaving(now)
        return [name for name in closed if not self._interventions.is_beyond_help(name, now)]

    def _note_slow(self, attempt: str, waited_s: float, on_slow: OnSlow) -> None:
        if waited_s > SLOW_S and attempt not in self._slow:
            self._slow.add(attempt)
            on_slow(attempt)

    def see_off(self, bell: Bell, on_slow: OnSlow, patience_s: float = FAREWELL_S) -> None:
        """Wait for every worker of this host to exit; kill those that linger, and what they left.

        `on_slow` is told, once, of each that takes long. Afterwards no process of the run is left
        on this host, except what hangs in the kernel.
        """
        # What hangs in the kernel is not among those that linger, so this ends even if a driver
        # does not. The marks are looked for last: only once no worker lives can none of them start
        # another process behind our back.
        #
        # Nothing here reads the spool: it may be the spool's file system that ended the run.
        began = time.monotonic()
        while lingering := self._lingering():
            waited_s = time.monotonic() - began
            nap_s = max(patience_s - waited_s, SEE_OFF_PAUSE_S)
            bell.wait(min(nap_s, SEE_OFF_LOOK_S), lingering.values())
            waited_s = time.monotonic() - began
            for attempt in lingering:
                self._note_slow(attempt, waited_s, on_slow)
            self._kill_lingering(lingering, waited_s, patience_s)
        kill_marked(self._mark, self._closed_here())

    def _closed_here(self) -> set[str]:
        """The closed attempts that this parent started, or whose parents are gone.

        What other parents have closed they see off themselves.
        """
        found: set[str] = set()
        for attempt in self._view.closed:
            intent = self._view.intents.get(attempt)
            is_own = intent is not None and intent.epoch == self._epoch
            if is_own or self.others.is_parent_dead(attempt):
                found.add(attempt)
        return found

    def _kill_lingering(self, attempts: Iterable[str], waited_s: float, patience_s: float) -> None:
        others_patience_s = min(patience_s, OTHERS_S)
        for attempt in attempts:
            allowed_s = others_patience_s
            if attempt in self.children:
                allowed_s = patience_s
            pid = self._pid_lingering(attempt)
            if waited_s > allowed_s and pid is not None:
                kill_group(pid)
                self._interventions.note_killed(attempt, time.monotonic())

    def _pid_lingering(self, attempt: str) -> int | None:
        """The pid of an attempt that still runs here, told without reading the spool."""
        child = self.children.get(attempt)
        if child is None:
            return self.others.pid_running(attempt)
        if child.exit_code() is None:
            return child.pid
        return None

    def _lingering(self) -> dict[str, int]:
        """attempt -> pid of children that run, and of other attempts that closed and still run."""
        found = {**self.children.running(), **self.others.leaving()}
        now = time.monotonic()
        lingering: dict[str, int] = {}
        for attempt, pid in found.items():
            if not self._interventions.is_beyond_help(attempt, now):
                lingering[attempt] = pid
        return lingering


def _moment_s(code: int, is_believing: bool) -> float:
    """How long after a death with this exit code a stop may still be told that explains it.

    is_believing: one crash fails a task. Otherwise a crash that does not look like a stop is no
    more than an opinion, and nobody need wait.
    """
    # SIGKILL is the last thing that a stop brings, and a process that crashes in its code, by
    # SIGSEGV for example, crashed.
    if code == -signal.SIGKILL or (code < 0 and not is_ending(code)):
        return 0.0
    if not is_ending(code) and not is_believing:
        return 0.0
    return moment_after(is_ending(code))


def _describe_timeout(closing: Closing) -> str:
    """A worker whose own timer ended it has left its stacks; any other was killed."""
    if closing.error is not None and closing.error.traceback:
        return "it took too long"
    return "it took too long and was killed"


def _is_explained(evidence: Evidence) -> bool:
    """Whether this process knows how the attempt died, by having seen it or having caused it."""
    if evidence.is_overdue or evidence.was_told or evidence.never_started:
        return True
    return evidence.exit_code is not None


def _terminate(pid: int) -> None:
    """SIGTERM; a process that has gone already is fine."""
    _send(pid, signal.SIGTERM)


def _send(pid: int, number: int) -> None:
    """Send a signal; a process that has gone already is fine."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
