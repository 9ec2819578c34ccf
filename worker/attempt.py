"""One attempt of one rank, from its journal's first line to the link that closes it.

Link the journal; load the job; claim, run, journal until nothing is claimable; then help the others
to an end: close what is proved dead, sweep what was lost, wait with the model loaded until every
task is complete or failed. Whatever the end, what was claimed and not finished goes into this
attempt's orphans manifest.

A job of kind "call" (the seed API's) is one task that this rank alone may run: the attempt steals
nothing, drains at no signal, waits for nobody, and ends with the exit code that multiprocessing
would give.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import random
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec

from gpuspool.spool import __version__
from gpuspool.spool.closing import FailedTask, close_attempts, publish_closing, publish_failed_task
from gpuspool.spool.death import Death, Evidence, classify
from gpuspool.spool.errors import (
    EXIT_CANNOT_CLOSE,
    EXIT_COMPLETE,
    EXIT_DRAINED,
    EXIT_NOT_FINISHED,
    EXIT_UNUSABLE,
)
from gpuspool.spool.identity import myself
from gpuspool.spool.journal import JournalWriter
from gpuspool.spool.layout import Layout
from gpuspool.spool.liveness import FailureDetector
from gpuspool.spool.manifest import Damage, planned_checksums
from gpuspool.spool.publish import listdir, ring
from gpuspool.spool.records import Closing, Error, Intent, JournalLine, Run, Stats, TaskLine
from gpuspool.spool.states import AttemptState, ErrorKind, LineState, Phase, Reason
from gpuspool.spool.sweep import sweep
from gpuspool.spool.timeouts import is_limited, read_stacks
from gpuspool.spool.view import View, finished_epoch
from gpuspool.worker import children
from gpuspool.worker.backlog import Backlog
from gpuspool.worker.beat import Beat
from gpuspool.worker.context import Context
from gpuspool.worker.devices import (
    Device,
    DeviceError,
    check_devices,
    peak_memory_bytes,
    torch_version,
)
from gpuspool.worker.execute import Executor
from gpuspool.worker.job import load_job
from gpuspool.worker.outputs import Outputs
from gpuspool.worker.resources import age_s, peak_resident_bytes
from gpuspool.worker.results import call_user_code, to_error
from gpuspool.worker.say import say
from gpuspool.worker.supply import Supply
from gpuspool.worker.timer import Timer
from gpuspool.worker.trouble import Unusable
from gpuspool.worker.warmup import Drained, wait_until, warm_up

STATE_OF = {
    "finished": AttemptState.COMPLETE,
    "drained": AttemptState.STOPPED,
    "load": AttemptState.FAILED,
    "device": AttemptState.FAILED,
    "io": AttemptState.FAILED,
}
EXIT_OF = {"complete": EXIT_COMPLETE, "stopped": EXIT_DRAINED, "failed": EXIT_NOT_FINISHED}
DRAIN_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# for the exit handlers of what the job imported to end its processes; something may wait for these
# for ever
END_S = 2.0
# where calls were so short just now, lines may wait for others: the next call is hardly a long one
TINY_S = 0.001
IDLE_S = (0.002, 0.25)  # how long an idle attempt waits between two looks: first, and at most
SILENCE_S = (
    1.0  # without a word, before an idle attempt reads the whole spool to help itself and others
)
HELPERS = 8  # of all ranks together do so in that time while the parent lives, and ever fewer
HELPING = 0.1  # the part of its time that an idle attempt may read the spool in
SWEEP_S = (
    1.0,
    60.0,
)  # wait before an idle attempt sweeps, which reads every manifest; doubled up to the second
RETRY_S = (1.0, 60.0)  # wait before a task's first retry, doubled each time up to the second


def report_damage(damage: Damage) -> None:
    say(f"gpuspool: damaged: {damage}; going on without it")


class Attempt:
    def __init__(
        self, layout: Layout, run: Run, intent: Intent, rank: int, journal: JournalWriter
    ) -> None:
        self.layout, self.run_record, self.intent, self.rank, self.journal = (
            layout,
            run,
            intent,
            rank,
            journal,
        )
        self.name = name = intent.attempt
        self.is_draining = False
        self._began = time.monotonic() - age_s()
        self._start_s = self._load_s = self._ran_s = 0.0
        self._may_wait = False  # whether lines may wait for others: calls take next to no time
        self._in_hand: deque[TaskLine] = deque()
        self._looked_at = time.monotonic()
        self._is_call = intent.job.kind == "call"
        self._call_code = 1  # until the call has returned
        supply = Supply(
            layout, rank, name, report_damage, not self._is_call, planned_checksums(run)
        )
        self._backlog = Backlog(supply, journal.flush, self._is_ours)
        self._device = Device()
        self._coroner: FailureDetector | None = None
        self._sweep_s, self._sweep_at = SWEEP_S[0], 0.0
        self._executor: Executor | None = None
        self._timer = Timer(layout, name, intent.options)
        self.beat = Beat(layout, intent, myself(), journal, self.drain)

    def drain(self, *_: Any) -> None:
        """Finish the tasks in hand and claim nothing more; safe in a signal handler."""
        self.is_draining = not self._is_call
        if self._executor is not None:
            self._executor.is_stopped = self.is_draining

    def run(self) -> int:
        """The whole attempt; returns the process's exit code."""
        for number in () if self._is_call else DRAIN_SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # SIGHUP is ignored under nohup
                signal.signal(number, self.drain)
        children.keep_apart(DRAIN_SIGNALS, self.drain)
        who = (self.layout.root, self.run_record.id, self.name, self.intent.parent.pid)
        end_children = functools.partial(children.end_all, *who)
        atexit.register(
            end_children
        )  # after what the job's own modules registered: a pool ends its processes
        self.beat.start()
        error: Error | None = None
        try:
            error = self._load()
            reason = self._work() if error is None else error.kind
        except OSError as trouble:
            reason, error = (
                "io",
                Error(kind=ErrorKind.IO, type=type(trouble).__name__, message=str(trouble)),
            )
            say(f"gpuspool: this attempt ends: {trouble}")
        except Unusable as broken:
            with contextlib.suppress(OSError):
                self.journal.flush()
            say(f"{broken}\ngpuspool: this process ends without another word; its parent closes it")
            os._exit(EXIT_UNUSABLE)
        code = 0 if reason == "closed" else self._close(reason, error)
        if self._executor is not None:
            self._executor.close()
        children.call_soon(end_children)
        return code

    def _load(self) -> Error | None:
        """Make the job, and with it the executor. What it raised, of kind "load" or "device", is
        not raised again.
        """
        self._timer.begin(0)
        self._start_s = time.monotonic() - self._began
        run = self.run_record
        device = "cuda:0" if os.environ.get("CUDA_VISIBLE_DEVICES") else "cpu"
        outputs = Outputs(Path(run.out) if run.out else self.layout.outputs, self.name)
        context = Context(
            self.rank,
            self.intent.world_size,
            self.name,
            device,
            run.args,
            outputs.path,
            lambda: self.is_draining,
        )
        began = time.monotonic()
        job, raised = call_user_code(
            load_job, self.layout, self.intent.job, context, self._check_devices, self._warm_up
        )
        self._load_s = time.monotonic() - began
        if isinstance(raised, Drained):
            return None
        if isinstance(raised, OSError) and str(raised.filename).startswith(str(self.layout.root)):
            raise raised  # the spool, not the job
        if raised is not None:
            error = to_error(raised)
            kind = ErrorKind.DEVICE if isinstance(raised, DeviceError) else ErrorKind.LOAD
            say(error.traceback or error.message)
            return msgspec.structs.replace(error, kind=kind)
        self.beat.doing.device = self._device
        self._tell_state(Phase.RUNNING)
        seed, doing = self.intent.options.seed, self.beat.doing
        self._executor = Executor(job, context, outputs, seed, doing, self._announce, self._settle)
        self._executor.is_announcing = is_limited(self.intent.options)
        return None

    def _warm_up(self, warmup: Callable[[], Any]) -> None:
        warm_up(self.layout, self.intent.epoch, self.name, warmup, self._wait_for_warmth)

    def _wait_for_warmth(self, is_over: Callable[[], bool]) -> None:
        """No limit of time holds while another process warms this host up."""
        self._timer.end()
        self._tell_state(Phase.WAITING)
        wait_until(is_over, lambda: self.is_draining)
        self._tell_state(Phase.LOADING)
        self._timer.begin(0)

    def _tell_state(self, state: Phase) -> None:
        self.beat.doing.state = state
        self.beat.beat()

    def _check_devices(self) -> None:
        self._device = check_devices(os.environ.get("CUDA_VISIBLE_DEVICES", ""))

    @property
    def executor(self) -> Executor:
        assert self._executor is not None
        return self._executor

    def _work(self) -> str:
        """Run until the end; returns the reason for it."""
        while True:
            self.journal.check()
            self.beat.heed_parent()
            if self.is_draining:
                return "drained"
            if self._was_closed_meanwhile():
                return "closed"
            backlog = self._backlog
            if backlog.fill(self.executor.batch_size, self.executor.window):
                self._run_some()
            elif self._is_closed():
                return "closed"
            elif (wait_s := backlog.due_in_s()) is not None:
                self._timer.end()
                time.sleep(max(0.0, min(wait_s, IDLE_S[1])))
            elif reason := self._idle():
                return reason

    def _was_closed_meanwhile(self) -> bool:
        """After a silence longer than the lease (a suspended process, a stalled mount) somebody may
        have closed us.
        """
        now, before = time.monotonic(), self._looked_at
        self._looked_at = now
        if not self.beat.is_late and now - before < self.intent.options.lease_s:
            return False
        self.beat.is_late = False
        return self._is_closed()

    def _is_closed(self) -> bool:
        """By a listing, which network file systems keep fresher than a look-up that found nothing
        once.
        """
        return self.layout.orphans(self.name).name in listdir(self.layout.manifests)

    def _is_ours(self) -> bool:
        """Asked after each claim. Who was closed looks again before anything else is begun, and
        ends.
        """
        if not self._is_closed():
            return True
        self.beat.is_late = True
        return False

    def _run_some(self) -> None:
        executor, backlog = self.executor, self._backlog
        lines = backlog.next_batch(executor.most, executor.job.batch_cost)
        self._in_hand = deque(lines)
        if executor.window and not self.is_draining:
            executor.look_ahead(backlog.ahead(lines, executor.batch_size, executor.window))
        costs, began = [line.cost or 1.0 for line in lines], perf_counter()
        ran = executor.run(lines)
        self.journal.flush()
        took = perf_counter() - began
        self.beat.doing.task = self.beat.doing.task_since = None
        backlog.put_back(self._in_hand)
        self._in_hand.clear()
        self._may_wait = (
            took < TINY_S * (ran if executor.is_each else 1) and not executor.is_announcing
        )
        self._ran_s += took
        backlog.rate.add(took, sum(costs[:ran]))

    def _announce(self, lines: list[TaskLine]) -> None:
        """Right before a call: set its time limit, and journal which tasks it holds.

        Tasks whose inputs are being loaded meanwhile are in hand too: they might take this process
        along.
        """
        self._timer.begin(len(lines))
        batch = [line.task for line in lines[1:]] + self.executor.loading(lines)
        self.journal.append(
            JournalLine(
                task=lines[0].task,
                round=lines[0].round,
                state=LineState.STARTED,
                start=time.time(),
                batch=batch,
            )
        )

    def _settle(self, line: TaskLine, verdict: JournalLine) -> None:
        """Journal what is known of a task now."""
        if verdict.error is not None:
            return self._settle_failed(line, verdict, verdict.error)
        self.journal.append(verdict, self._may_wait)
        self._in_hand.remove(line)
        self.beat.doing.done += 1
        self._call_code = 0
        return None

    def _settle_failed(self, line: TaskLine, verdict: JournalLine, error: Error) -> None:
        """Journal that it failed, or put it back for a retry."""
        tries = self._backlog.tries[line.task] = self._backlog.tries.get(line.task, 0) + 1
        error = msgspec.structs.replace(error, tries=tries)
        if tries <= self.intent.options.retries:
            wait = min(RETRY_S[0] * 2 ** (tries - 1), RETRY_S[1]) * random.uniform(0.75, 1.25)
            self._in_hand.remove(line)
            self.executor.is_announcing = (
                True  # what is in hand must be known now: this one is not, nor finished
            )
            self._may_wait = False
            self.journal.append(
                JournalLine(task=line.task, round=line.round, state=LineState.DEFERRED, error=error)
            )
            self._backlog.defer(line, wait)
            say(
                f"gpuspool: task {line.key} failed ({error.type}), try {tries}; again in {wait:.1f} s"
            )
            return
        if self._is_closed():  # by who took it for dead, and may have removed what it wrote
            self.beat.is_late = True
            return
        self.journal.append(msgspec.structs.replace(verdict, error=error))
        self._in_hand.remove(line)
        self._call_code = error.exit_code or 1
        self.beat.doing.failed += 1
        failed = FailedTask(
            key=line.key,
            task=line.task,
            round=line.round,
            attempt=self.name,
            at=time.time(),
            error=error,
        )
        publish_failed_task(self.layout, failed)

    def _idle(self) -> str | None:
        """Nothing to claim: see the run to its end and return the reason; None when there may be
        work again.
        """
        if self._is_call:
            return "finished"
        self._timer.end()
        self.journal.flush()
        self.beat.doing.state = Phase.IDLE
        ring(self.layout.control)
        reason: str | None = "silence"
        alone_s, patience_s = (
            SILENCE_S,
            SILENCE_S * max(1.0, self.intent.world_size / HELPERS) * random.uniform(1, 2),
        )
        while (
            reason == "silence" and (reason := self._await_word(patience_s, alone_s)) == "silence"
        ):
            began = time.monotonic()
            reason = self._help()
            alone_s = max(IDLE_S[1], (time.monotonic() - began) / HELPING)
            patience_s = max(alone_s, min(2 * patience_s, SWEEP_S[1]))
        if reason is None:
            self.beat.doing.state = Phase.RUNNING
        return reason

    def _await_word(self, patience_s: float, alone_s: float) -> str | None:
        """Wait for the parent to say that all is finished, for a drain, or (None) for another
        manifest.

        So long as the parent lives, which does most of what there is to do; and so long without it.
        """
        known, began, waited = listdir(self.layout.manifests), time.monotonic(), 0.0
        while waited < (patience_s if os.getppid() == self.intent.parent.pid else alone_s):
            self.journal.check()
            if self.is_draining:
                return "drained"
            if finished_epoch(self.layout) >= self.intent.epoch:
                return "finished"
            if listdir(self.layout.manifests) != known:
                return None
            time.sleep(min(max(IDLE_S[0], waited / 10), IDLE_S[1]))
            waited = time.monotonic() - began
        return "silence"

    def _help(self) -> str | None:
        """Nobody says anything: read the whole spool, close what is proved dead, sweep."""
        if self._coroner is None:
            self._coroner = FailureDetector(
                View(self.layout, self.run_record), self.intent.options.lease_s
            )
        view = self._coroner.view.refresh()
        if view.ledger.is_finished:
            return "finished"
        if self.name in view.closed:
            return "closed"
        if view.unclaimed:
            self._backlog.look_closely()
            return None
        deaths: dict[str, Death] = {}
        for attempt in view.open_attempts:
            if attempt != self.name and self._coroner.is_orphan(attempt):
                stacks = read_stacks(view.layout, attempt)
                deaths[attempt] = classify(Evidence(stacks=stacks))
        if deaths:
            close_attempts(view, deaths, by=self.name)
        if time.monotonic() >= self._sweep_at:
            sweep(view, idle=self.name)
            self._sweep_s = min(self._sweep_s * 2, SWEEP_S[1])
            self._sweep_at = time.monotonic() + self._sweep_s
        return "silence"

    def _close(self, reason: str, error: Error | None) -> int:
        """Release what is not finished and say how it ended; returns the exit code."""
        orphans = [*self._in_hand, *self._backlog.rest()]
        try:
            self.beat.finish()
            state = STATE_OF[reason]
            closing = Closing(
                attempt=self.name,
                state=state,
                reason=Reason(reason),
                by=self.name,
                at=time.time(),
                error=error,
                stats=self._final_stats(),
            )
            publish_closing(self.layout, closing, orphans)
        except OSError as trouble:
            say(f"gpuspool: cannot close {self.name}: {trouble}; its parent, or a resume, will")
            return EXIT_CANNOT_CLOSE
        return self._call_code if self._is_call else EXIT_OF[state]

    def _final_stats(self) -> Stats:
        executor, seconds = self._executor, time.monotonic() - self._began
        call_s, inputs_s = (0.0, 0.0) if executor is None else (executor.call_s, executor.inputs_s)
        idle_s = {"start": self._start_s, "load": self._load_s, "inputs": inputs_s}
        idle_s["publish"] = self._ran_s - call_s - inputs_s
        idle_s["work"] = seconds - call_s - sum(idle_s.values())
        versions = {
            "gpuspool": __version__,
            "python": sys.version.split()[0],
            "torch": torch_version() or "",
        }
        return Stats(
            done=self.beat.doing.done,
            failed=self.beat.doing.failed,
            seconds=round(seconds, 3),
            busy_s=round(call_s, 3),
            idle_s={cause: round(spent, 3) for cause, spent in idle_s.items()},
            ready=executor is not None,
            device=os.environ.get("CUDA_VISIBLE_DEVICES", "") or "cpu",
            device_name=self._device.name,
            device_uuid=self._device.uuid,
            peak_memory_bytes=peak_resident_bytes(),
            peak_device_memory_bytes=peak_memory_bytes(),
            batch_size=None if executor is None else executor.batch_size,
            oom_halvings=0 if executor is None else executor.oom_halvings,
            left_behind=0 if executor is None else executor.outputs.left_behind,
            versions={name: version for name, version in versions.items() if version},
        )
