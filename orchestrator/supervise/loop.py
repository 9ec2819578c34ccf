"""The parent's loop: wake, look, decide, act, until the epoch has ended one way or another.

It starts and restarts workers in its slots, adopts those that outlived their own parent, closes the
dead, and tells; the gatherer also rules and sweeps. All that it needs is on disk, except which
children are its own: killed at any moment, another parent goes on from the spool.

One round of the loop is `_step_and_wait`:

1. It glances at who else is there and at what control/ says, by listings alone (`company.py`).
2. If there may be something to do (`scope.py`), it takes a full look, decides and acts, and looks
   again until there is nothing to do but wait (`_step`). Else it takes a light look: it beats, and
   nudges its children if there is news.
3. It waits for the bell of `bell.py`, for as long as `pace.py` or `scope.py` says.

The loop only puts the parts together. What to do next is decided in `decide.py`, from a snapshot
that `snapshot.py` takes. `workers.py` knows the processes, and `drain.py` hears when somebody asks
for an end. `trouble.py` waits out a file system that fails, and `telling.py` and `notices.py` tell
people. `orchestrator.api` makes one `Orchestrator` for each start and calls `run`.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import assert_never

from gpuspool.orchestrator.plan.slots import Slot
from gpuspool.orchestrator.supervise import decide as d
from gpuspool.orchestrator.supervise.adopting import meet_others, start_in_words, tell_of_adopted
from gpuspool.orchestrator.supervise.bell import Bell
from gpuspool.orchestrator.supervise.company import Company
from gpuspool.orchestrator.supervise.drain import Cause, Drain, DrainWatch, most_failed, order_drain
from gpuspool.orchestrator.supervise.finish import Outcome, finish, sum_up
from gpuspool.orchestrator.supervise.folders import RunFolders
from gpuspool.orchestrator.supervise.launch import Orders
from gpuspool.orchestrator.supervise.leftovers import remove_from_spool
from gpuspool.orchestrator.supervise.lock import hold
from gpuspool.orchestrator.supervise.notices import Notices
from gpuspool.orchestrator.supervise.opinions import OUTAGE_S
from gpuspool.orchestrator.supervise.pace import Moment, Pace
from gpuspool.orchestrator.supervise.parent_beat import ParentBeat
from gpuspool.orchestrator.supervise.repair import DamageKeeper
from gpuspool.orchestrator.supervise.rest import Rest
from gpuspool.orchestrator.supervise.rulings import Judge
from gpuspool.orchestrator.supervise.scope import Scope
from gpuspool.orchestrator.supervise.snapshot import Situation
from gpuspool.orchestrator.supervise.telling import Telling
from gpuspool.orchestrator.supervise.trouble import ABANDON_S, Patience
from gpuspool.orchestrator.supervise.workers import Workers
from gpuspool.orchestrator.text.progress import Progress
from gpuspool.orchestrator.text.words import count_of
from gpuspool.spool.errors import OrchestratorLive
from gpuspool.spool.layout import STATES
from gpuspool.spool.mending import mend_claims
from gpuspool.spool.publish import listdir, publish
from gpuspool.spool.records import Job, Options
from gpuspool.spool.states import Ending, Reason
from gpuspool.spool.sweep import sweep
from gpuspool.spool.timeouts import is_limited
from gpuspool.spool.view import Control, View, read_control

# While a doubtful task waits to be ruled, the loop looks at least so often: what it waits for may
# be only that time passes.
RULING_LOOK_S = 0.5
# Whoever has ended waits so long for the lock, which others hold for moments.
LAST_PATIENCE_S = 5.0


class Orchestrator:
    """Sees one run through one epoch, beside other parents if there are any. Used for one `run`.

    `received` collects the numbers of the signals that ask for an end, as `signals_to` does.
    `trusted` are the numbers of the users whom this one trusts.
    """

    def __init__(
        self,
        view: View,
        epoch: int,
        slots: Sequence[Slot],
        job: Job,
        options: Options,
        progress: Progress,
        received: Sequence[int],
        folders: RunFolders,
        drained: int,
        trusted: Sequence[int] = (),
        one_first: str = "",
        *,
        brings_code: bool = False,
    ) -> None:
        """epoch: that this parent has taken. drained: the newest epoch that was drained when this
        start began, -1 for none. one_first: why one rank shall import its job before the others
        start, "" if it shall not. brings_code: the user said that the code changed.
        """
        self._view = view
        self._folders = folders
        self._drained = drained
        self._brings_code = brings_code
        self._slots = slots
        self._orders = Orders(epoch, job, options, len(slots), trusted)
        self._began = time.monotonic()
        deadline = math.inf
        if options.time_limit_s is not None:
            deadline = self._began + options.time_limit_s
        self._drains = DrainWatch(view.layout, epoch, options.grace_s, received, deadline)
        max_failed = most_failed(options.max_failed, view.ledger.tasks)
        self._policy = d.Policy(
            options.max_restarts, max_failed, options.keep_going, options.grace_s
        )
        self._workers = Workers(view, self._orders, folders.out_held)
        self._judge = Judge(view, epoch, options.max_crashes)
        self._situation = Situation(
            view, self._workers, self._judge, self._policy, epoch, slots, bool(one_first)
        )
        self._telling = Telling(view.layout, epoch, progress, folders.spool.check)
        self._notices = Notices(view, self._judge, self._telling, slots, one_first)
        self._beat = ParentBeat(view.layout, epoch, options.lease_s)
        self._company = Company(view.layout, self._workers.others.detector, epoch)
        self._scope = Scope(
            view,
            self._company,
            self._workers.children.attempts,
            is_watched=progress.is_watched,
            is_timed=is_limited(options),
            lease_s=options.lease_s,
        )
        self._control = Control()
        self._rest = Rest(view, self._workers.cared_for, options.leave_when_idle_s)
        self._damage = DamageKeeper(view)
        # When the next rank that waits out its backoff may be started, or the next death be judged,
        # or the rank be looked at that others wait for, as of the last look.
        self._wake_at: float | None = None
        # The attempts that this parent has closed.
        self._closed: set[str] = set()
        # Whether `run` came to its end.
        self._is_over = False
        # Says of the whole run what this parent leaves to others, as long as there are any.
        self._unsaid: Callable[[], None] = lambda: None
        # How many manifests there were, and what control/ said, when the children were told of it.
        self._nudged_for = 0, Control()
        # How many attempts were closed when it was asked last whether one had drained.
        self._closings_heard = 0

    @property
    def drain(self) -> Drain | None:
        """The drain that this start was asked for; None if it was asked for none."""
        return self._drains.drain

    def run(self) -> Outcome:
        """Run the epoch to its end and return how it ended.

        Raises OSError where a file system stays in trouble for longer than the loop has patience;
        the workers of this host have been ended then as far as they could be.
        """
        self._begin()
        ending = self._see_to_workers()
        return self._finish(ending)

    def _begin(self) -> None:
        """Hear what was asked for before there was an epoch, and see who else is there."""
        epoch = self._orders.epoch
        self._beat.beat_if_due(self._began)
        # Whoever drained since this start began could not name its epoch, and named one before it.
        # Whoever drains from here on finds its parent's record.
        self._drains.hear_before(read_control(self._view.layout), self._drained, self._began)
        self._telling.record("run_started", text=f"epoch {epoch}", ranks=self._orders.world_size)
        self._telling.follow(self._view)
        self._company.look()
        older = [other for other in self._company.others if other < epoch]
        meet_others(
            self._view,
            self._workers,
            self._orders.job,
            older,
            self._telling,
            brings_code=self._brings_code,
        )

    def _see_to_workers(self) -> Ending:
        """Loop until the epoch ends, and see every worker off; returns how it ended.

        The last workers may take long to exit, and whoever adds tasks meanwhile, or gives some
        another round, sees that this parent lives and relies on it. Then the run goes on.
        """
        bell = Bell(self._view.layout.root, self._orders.options.poll_s)
        with contextlib.closing(bell):
            bell.watch_soon(self._folders_to_watch())
            while True:
                ending = self._loop_and_see_off(bell)
                if ending is not Ending.FINISHED or self._view.ledger.is_finished:
                    return ending

    def _loop_and_see_off(self, bell: Bell) -> Ending:
        """Loop until the epoch seems to have ended, see every worker off, and read what came last.

        Raises OSError.
        """
        tell_of_slow = self._notices.tell_of_slow_end
        try:
            ending = self._loop(bell)
        except OSError as trouble:
            self._abandon(trouble, bell)
            raise
        self._workers.see_off(bell, tell_of_slow)
        for closing in self._workers.reap(tell_of_slow):
            self._notices.tell_of_failed_close(closing)
        # What follows reads the spool and is written into it, and says where the outputs are.
        self._folders.check()
        self._view.read_late_lines()
        return ending

    def _finish(self, ending: Ending) -> Outcome:
        """Write and say how the epoch ended."""
        took_s = time.monotonic() - self._began
        self._telling.show_end(self._view, took_s)
        self._company.look()
        epoch, is_alone = self._orders.epoch, self._company.is_alone
        sick = self._situation.sick_devices()
        outcome = finish(self._view, ending, epoch, took_s, sick, is_alone, self._closed)
        if not is_alone and ending is not Ending.FINISHED:
            self._unsaid = lambda: sum_up(self._view, outcome, epoch, took_s, sick)
        self._is_over = True
        self._telling.record("run_ended", how=outcome.how, exit_code=outcome.exit_code)
        return outcome

    def end(self) -> None:
        """Beat no more, and do what the last parent of all does, if this one is that.

        To be called once it was said how this parent ended. Of several that end at the same moment
        each found others when it finished; whoever says last that it ended finds nobody. Raises
        OSError.
        """
        self._beat.end()
        if not self._is_over:
            return
        layout = self._view.layout
        # Nobody may be admitted while hidden files are removed: they could be the newcomer's. Who
        # holds the lock for so long is about to come in, and does this when it ends.
        with contextlib.suppress(OrchestratorLive), hold(layout, LAST_PATIENCE_S):
            self._company.look()
            if self._company.is_alone:
                self._view.read_late_lines()
                remove_from_spool(self._view, self._orders.epoch)
                self._unsaid()

    def _folders_to_watch(self) -> list[Path]:
        """The folders in which a new file may change what is to be done."""
        layout = self._view.layout
        folders = [layout.manifests, layout.control, *map(layout.subdir, STATES)]
        if self._policy.max_failed is not None:
            folders.append(layout.failed_tasks)
        return folders

    def _abandon(self, trouble: OSError, bell: Bell) -> None:
        """End the workers of a spool that cannot be used any more.

        Nobody could account for them. All else is left as it is. The children are told first, and
        that reads nothing; that others cannot be judged now keeps nobody from seeing them off.
        """
        text = f"{trouble}; workers are stopped, at most {ABANDON_S:.0f} s"
        self._telling.tell("abandoned", text)
        with contextlib.suppress(OSError):
            self._workers.tell_to_stop()
        self._workers.see_off(bell, self._notices.tell_of_slow_end, ABANDON_S)

    def _loop(self, bell: Bell) -> Ending:
        """Step and wait until a step ends the epoch.

        One try is a step and the wait after it: whom to wait for is read from the spool too, and
        that fails as any look does.
        """
        patience = Patience(self._telling)
        longest_s = min(self._telling.every_s, self._beat.every_s)
        pace = Pace(bell.quiet_s, longest_s, self._view.ledger.n_complete)
        while True:
            ending = patience.attempt(lambda: self._step_and_wait(bell, pace))
            if ending is not None:
                return ending

    def _step_and_wait(self, bell: Bell, pace: Pace) -> Ending | None:
        """A step, and unless that ends the epoch the wait until the next. Raises OSError."""
        has_listed = self._glance()
        self._leave_if_idle()
        if not self._is_full_look_due():
            # Where no bell rings for a new manifest, it is looked for as often as for beats.
            self._look_lightly(is_news_likely=has_listed or bell.has_observer)
            bell.wait(self._light_nap_s(), self._workers.known_pids())
            return None
        ending = self._step()
        self._nudge_if_news(len(self._view.manifests))
        if ending is None:
            nap_s = pace.nap_s(self._moment(bell))
            bell.wait(nap_s, self._workers.pids())
        return ending

    def _leave_if_idle(self) -> None:
        """Begin to drain where this parent shall leave since it has nothing to do."""
        now = time.monotonic()
        may_leave = self._drains.drain is None and self._view.ledger.tasks > 0
        if may_leave and self._scope.has_looked_fully and self._rest.is_over(now):
            limit_s = self._rest.limit_s
            self._drains.begin(f"nothing to do for {limit_s:g} s, --leave-when-idle", now)

    def _is_full_look_due(self) -> bool:
        is_draining = self._drains.drain is not None or self._drains.is_asked(self._control)
        return self._scope.is_full_look_due(
            self._control, self._workers.has_any_ended(), is_draining
        )

    def _light_nap_s(self) -> float:
        """How long to wait after a light look: never past what is due by the clock alone."""
        now = time.monotonic()
        naps = [self._scope.light_nap_s(), self._beat.every_s]
        naps.append(max(0.0, self._drains.deadline - now))
        rest_s = self._rest.due_in_s(now)
        if rest_s is not None:
            naps.append(rest_s)
        return min(naps)

    def _look_lightly(self, is_news_likely: bool) -> None:
        """Do what must be done also where nothing is read. Raises FolderGone, and OSError.

        is_news_likely: manifests are to be listed.
        """
        # OUT is not looked at: those that write there, the workers, do that.
        self._folders.spool.check()
        self._beat.beat_if_due(time.monotonic())
        n_manifests = self._nudged_for[0]
        if is_news_likely:
            n_manifests = len(listdir(self._view.layout.manifests))
        self._nudge_if_news(n_manifests)

    def _nudge_if_news(self, n_manifests: int) -> None:
        """Tell the children if there is a new manifest, or a new word in control/.

        Those that wait for work look then, and need not look by themselves again and again.
        """
        news = n_manifests, self._control
        if news != self._nudged_for:
            self._nudged_for = news
            self._workers.children.nudge()

    def _moment(self, bell: Bell) -> Moment:
        """What `Pace` is told before a wait."""
        now = time.monotonic()
        dues = [self._drains.deadline - now]
        if self._wake_at is not None:
            dues.append(self._wake_at - now)
        rest_s = self._rest.due_in_s(now)
        if rest_s is not None:
            dues.append(rest_s)
        if self._judge.is_waiting:
            dues.append(RULING_LOOK_S)
        due_in_s = min(dues)
        return Moment(
            open_attempts=len(self._view.open_attempts),
            complete=self._view.ledger.n_complete,
            is_timed=self._drains.drain is not None or is_limited(self._orders.options),
            has_observer=bell.has_observer,
            due_in_s=None if due_in_s == math.inf else due_in_s,
        )

    def _step(self) -> Ending | None:
        """Look, decide and act until there is nothing to do but wait.

        Returns how the epoch ended, None while it goes on. Raises OSError.
        """
        while True:
            self._look_fully()
            is_gatherer = self._company.is_gatherer
            snapshot = self._situation.snapshot(
                self._drains.drain, is_gatherer, self._company.others
            )
            # One moment for both, so that a restart is either decided now or waited for.
            now = time.monotonic()
            actions = d.decide(snapshot, self._policy, now)
            self._wake_at = _earliest(
                d.next_restart_at(snapshot, self._policy, now), self._situation.next_due_at()
            )
            self._telling.show(self._view)
            self._notices.tell_why_tasks_wait(snapshot, now)
            for action in actions:
                if isinstance(action, d.End):
                    return action.ending
                self._act(action)
            if not any(isinstance(action, d.CHANGING) for action in actions):
                # A slot that an attempt of somebody else takes counts as free: once that is closed,
                # by whomever, there is a new manifest.
                has_free_slot = len(self._workers.children.attempts()) < len(self._slots)
                self._scope.note_full_look(self._control, has_free_slot, self._wake_at)
                return None

    def _look_fully(self) -> None:
        """Hear and read what is new, and deal with what needs no decision.

        Nothing is read, and so nothing is decided or done, unless the spool and OUT are where they
        were. Raises FolderGone, and OSError.
        """
        self._folders.check()
        now = time.monotonic()
        self._hear(now)
        self._beat.beat_if_due(now)
        self._view.refresh()
        if self._drains.drain is None and self._has_anybody_drained():
            # A worker may have heard of a drain sooner than this process, and be seen to have
            # closed itself for it: then the order is there by now.
            self._glance()
            self._hear(now)
        for damage in self._damage.keep_new():
            text = f"damaged: {damage}; what it held is looked up elsewhere or run again"
            self._telling.tell("damage", text)
        tell_of_adopted(self._workers, self._telling)
        for closing in self._workers.reap(self._notices.tell_of_slow_end):
            is_draining = self._drains.drain is not None
            self._notices.tell_of_end(closing, is_draining)
        for attempt, why in self._workers.kill_overdue().items():
            self._telling.tell("overdue", f"{attempt} {why}", attempt=attempt)

    def _hear(self, now: float) -> None:
        """Hear whether somebody asks for a drain, and pass it on. Raises OSError."""
        drain = self._drains.hear(self._control, now)
        if drain is not None:
            self._pass_on(drain)
            self._drains.note_told(drain)

    def _has_anybody_drained(self) -> bool:
        """Whether an attempt is seen to be closed, since this was asked last, since it drained."""
        closed = self._view.closed
        new = list(itertools.islice(closed.values(), self._closings_heard, None))
        self._closings_heard = len(closed)
        return any(closing.reason is Reason.DRAINED for closing in new)

    def _glance(self) -> bool:
        """See who else is there, and what control/ says. Raises OSError.

        Returns whether beats/ was listed.
        """
        has_listed = self._company.glance()
        if self._company.was_taken_for_dead:
            text = (
                "this start stood still for longer than the lease, and others took it for dead. It "
                "goes on; what its workers had in hand may be done by others"
            )
            self._telling.tell("taken_for_dead", text)
        for quiet in self._company.newly_quiet():
            parent = self._workers.others.detector.parents.known.get(quiet.epoch)
            text = (
                f"{start_in_words(parent)} has not been heard of for {quiet.silent_s:.0f} s; once "
                f"that is {quiet.lease_s:.0f} s, others go on with what it leaves"
            )
            self._telling.tell("waiting", text, epochs=[quiet.epoch])
        self._control = read_control(self._view.layout)
        return has_listed

    def _pass_on(self, drain: Drain) -> None:
        """Tell of a drain: the workers of this host, whoever else it is for, and then people."""
        if drain.is_interrupted:
            # The workers know already, and are about to be killed.
            text = f"{drain.why}: workers are killed; what they had in hand is done again later"
            self._telling.tell("draining", text, why=drain.why)
            return
        self._workers.tell_to_stop()
        # A signal does not reach a worker whose job takes it for itself, so those look into
        # control/. Where this parent alone was told to stop, its word is for its own workers, and
        # for those of dead parents of this host that it has adopted; what the gatherer decides is
        # an order for everybody.
        layout = self._view.layout
        if drain.is_own:
            for epoch in sorted({self._orders.epoch, *self._workers.others.adopted_epochs()}):
                publish(layout.leave(epoch), b"", durable=False)
        elif drain.ending is not Ending.STOPPED:
            self._company.look()
            order_drain(layout, self._company.newest, drain.ending, drain.why)
        grace_s = self._orders.options.grace_s
        text = f"{drain.why}: workers finish the tasks in hand, at most {grace_s:.0f} s"
        if drain.cause is Cause.TERMINAL:
            text += "; a second Ctrl-C kills them at once, and the same command goes on later"
        self._telling.tell("draining", text, why=drain.why)

    def _act(self, action: d.Act) -> None:
        match action:
            case d.Close(attempts):
                self._close(attempts)
            case d.Mend():
                self._mend()
            case d.SayFinished():
                self._say_finished()
            case d.Stop():
                self._stop()
            case d.Rule():
                self._rule()
            case d.Break(ending):
                self._break(ending)
            case d.Launch():
                self._launch(action)
            case d.Kill(attempt):
                self._workers.kill(attempt)
            case d.Sweep():
                self._sweep()
            case _:
                assert_never(action)

    def _close(self, attempts: Sequence[str]) -> None:
        for ended in self._workers.close(attempts):
            closing = ended.closing
            self._closed.add(closing.attempt)
            how = ended.how
            # What fails is named below, with all that is known of it.
            if ended.in_hand and not closing.failures:
                how += f" ({ended.in_hand} in hand)"
            text = f"{closing.attempt} ended: {how}; what it had not finished is given out again"
            for failure in closing.failures:
                text += f"; task {failure.key} fails: {failure.error.message}"
            self._telling.tell("attempt_closed", text, attempt=closing.attempt)

    def _mend(self) -> None:
        """Extend the claims over what a power cut gave back, and sweep what lies between."""
        if mend_claims(self._view):
            sweep(self._view)
        self._situation.note_mending()

    def _say_finished(self) -> None:
        layout = self._view.layout
        # It is not synced. Should a power cut take it back, the attempts that wait find out by
        # themselves, only later.
        if self._control.finished < self._orders.epoch:
            self._company.look()
            publish(layout.finished(self._company.newest), b"", durable=False)
            self._glance()
        self._situation.note_said_finished(time.monotonic())

    def _stop(self) -> None:
        failed = self._view.ledger.n_failed
        why = f"{failed} tasks failed, --max-failed {self._orders.options.max_failed}"
        # The next look hears of it, and tells the workers.
        self._drains.begin(why, time.monotonic(), Ending.TOO_MANY_FAILED)

    def _rule(self) -> None:
        for failure in self._judge.publish():
            text = f"task {failure.key} fails: {failure.error.type}: {failure.error.message}"
            self._telling.record("task_failed", text=text, task=failure.task)

    def _break(self, ending: Ending) -> None:
        why = "every task fails, and none ever completed"
        if ending is Ending.OUTAGE:
            why = f"nothing was finished for {OUTAGE_S / 60:.0f} minutes, and tasks only fail"
        self._drains.begin(why, time.monotonic(), ending)

    def _launch(self, action: d.Launch) -> None:
        slot = action.slot
        child = self._workers.launch(slot, action.patience, action.is_doubted)
        self._situation.note_launch(slot, child.attempt)
        self._telling.record(
            "attempt_started", attempt=child.attempt, pid=child.pid, device=slot.device_name
        )

    def _sweep(self) -> None:
        count = sweep(self._view)
        self._situation.note_sweep()
        if count:
            tasks = count_of(count, "stranded task is", "stranded tasks are")
            text = f"{tasks} given out again: nobody held them"
            self._telling.tell("swept", text, tasks=count)


def _earliest(*moments: float | None) -> float | None:
    return min((moment for moment in moments if moment is not None), default=None)
