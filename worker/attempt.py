"""One attempt of one rank, from its journal's first line to the link that closes it.

1. `__main__` links the journal: the attempt is open.
2. The job is loaded (`prepare`).
3. The work loop runs (`work`): claim, run, journal, until nothing is claimable; then help the
   others to an end, with the job still loaded, until every task is finished.
4. The job's `close` is called, where it has one (`job_end`).
5. The attempt closes itself. Whatever the end, what it claimed and did not finish goes into its
   orphans manifest; the link(2) of that is the instant at which the attempt is closed.

In two cases it does not close itself. If somebody else has closed it, it ends without a word. If
this process can run nothing more (`Unusable`), it ends at once as a crash does, and its parent
closes it.

A job of kind "call" (the seed API's) is one task that this rank alone may run: the attempt steals
nothing, drains at no signal, waits for nobody, and ends with the exit code that multiprocessing
would give.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, assert_never

import msgspec

from gpuspool.spool.closing import publish_closing
from gpuspool.spool.errors import (
    EXIT_CANNOT_CLOSE,
    EXIT_COMPLETE,
    EXIT_DRAINED,
    EXIT_NOT_FINISHED,
    EXIT_UNUSABLE,
    AttemptError,
    Unusable,
)
from gpuspool.spool.exits import BROKEN
from gpuspool.spool.file_system import data_mounts
from gpuspool.spool.identity import myself
from gpuspool.spool.journal import JournalWriter
from gpuspool.spool.layout import Layout, writer_name
from gpuspool.spool.manifest import Damage, planned_checksums
from gpuspool.spool.processes import run_mark
from gpuspool.spool.records import Closing, Error, IdleLine, Intent, Run
from gpuspool.spool.signals import STOP_SIGNALS
from gpuspool.spool.states import AttemptState, ErrorKind, JobKind, LineState, Phase, Reason
from gpuspool.spool.view import read_control
from gpuspool.worker import children, leaving
from gpuspool.worker.backlog import Backlog
from gpuspool.worker.beat import Beat
from gpuspool.worker.call import Call
from gpuspool.worker.context import Context
from gpuspool.worker.drain import Drain
from gpuspool.worker.execute import Executor
from gpuspool.worker.folders import Folders
from gpuspool.worker.idle import Idling
from gpuspool.worker.job import LoadedJob
from gpuspool.worker.job_end import JobEnd
from gpuspool.worker.modules import Modules
from gpuspool.worker.nudges import Nudges
from gpuspool.worker.outputs import Outputs
from gpuspool.worker.parent import Parent
from gpuspool.worker.prepare import Preparation, judge_load
from gpuspool.worker.say import for_people, say
from gpuspool.worker.scratch import Scratch
from gpuspool.worker.settle import Settler
from gpuspool.worker.standing import Standing
from gpuspool.worker.statistics import final_stats
from gpuspool.worker.supply import Supply
from gpuspool.worker.timer import Timer
from gpuspool.worker.turns import Turns
from gpuspool.worker.warmup import Drained
from gpuspool.worker.work import Work, WorkEnd


class Ended(msgspec.Struct, frozen=True):
    """The attempt is at its end, and must be closed for this reason."""

    reason: Reason
    error: Error | None = None


class ClosedByAnother(msgspec.Struct, frozen=True):
    """The attempt was closed by somebody else, whose word stands. There is nothing left to do."""


def report_damage(damage: Damage) -> None:
    """Log what could not be read. Its tasks are found by a sweep."""
    say(f"gpuspool: damaged: {damage}; going on without it")


class Attempt:
    """The life cycle of one attempt, and the parts that it is made of."""

    def __init__(
        self,
        layout: Layout,
        folders: Folders,
        run: Run,
        intent: Intent,
        rank: int,
        journal: JournalWriter,
        nudges: Nudges,
    ) -> None:
        """layout: of the spool that `folders` holds. Raises OSError where a file of its own cannot
        be opened.
        """
        self.name = intent.attempt
        self._layout = layout
        self._folders = folders
        self._marked_run = run_mark(run.id, folders.spool.folder_id)
        self._run = run
        self._intent = intent
        self._rank = rank
        self._journal = journal
        self._nudges = nudges
        self._is_call = intent.job.kind is JobKind.CALL
        self._end_children = functools.partial(
            children.end_all, self._marked_run, self.name, intent.parent.pid
        )
        self._drain = Drain(
            is_possible=not self._is_call,
            is_published=lambda: read_control(layout).stops(intent.epoch),
        )
        self._parent = Parent(intent, self._drain)
        self._standing = Standing(layout, self.name, intent.options.lease_s, folders.check)
        self._timer = Timer(layout, self.name, intent.options, self._parent.is_there)
        self._modules = Modules(layout, intent.job, run.submit_dir, intent.trusted)
        self._beat = Beat(
            layout, intent, myself(), journal, self._drain, self._standing, self._modules, nudges
        )
        self._preparation = Preparation(layout, intent, self._beat, self._timer, self._drain)
        self._settler, self._work = self._make_loop()
        self._executor: Executor | None = None
        # The job's `close`, with its context, once the job is loaded and has one.
        self._job_close: tuple[Callable[[Context], Any], Context] | None = None

    def _make_loop(self) -> tuple[Settler, Work]:
        supply = Supply(
            self._layout,
            self._rank,
            self.name,
            report_damage,
            steals=not self._is_call,
            device=self._intent.place,
            planned=planned_checksums(self._run),
        )
        backlog = Backlog(supply, self._journal.flush, self._standing.is_still_open)
        settler = Settler(
            self._layout,
            self.name,
            self._intent.options,
            self._intent.patience,
            self._intent.is_doubted,
            self._journal,
            backlog,
            self._standing,
            self._timer,
            self._beat.doing,
            self._drain,
            is_believing=self._is_call or self._intent.options.keep_going,
            # By the spool's own path, since a job may hand that to programs.
            scratch=Scratch(Layout(self._folders.spool.path), self._folders.check),
        )
        idling: Idling | None = None
        if not self._is_call:
            idling = Idling(
                self._layout,
                self._run,
                self._intent,
                self._journal,
                self._drain,
                self._parent,
                self._nudges,
                self._folders.check,
            )
        work = Work(
            self._layout,
            self._journal,
            self._beat.doing,
            self._drain,
            self._parent,
            self._standing,
            self._timer,
            backlog,
            settler,
            idling,
        )
        return settler, work

    def run(self) -> int:
        """The whole attempt; returns the exit code of this process."""
        self._handle_signals()
        # Before the job is imported, so that the handlers of its modules come first: a pool of
        # processes ends its own.
        atexit.register(self._end_children)
        # From here on the beat's thread looks at the modules too.
        self._modules.keep()
        self._beat.start()
        self._timer.start(self._beat.beat)
        code = self._end(self._live())
        # A call of the seed API behaves as multiprocessing does, which waits for its threads.
        if not self._is_call:
            leaving.watch(code)
        if self._executor is not None:
            self._executor.close()
        children.call_soon(self._end_children)
        return code

    def _handle_signals(self) -> None:
        """From now on a drain signal drains, but in no process that the job forks."""
        if not self._is_call:
            for number in STOP_SIGNALS:
                # nohup ignores SIGHUP, and so shall we.
                if signal.getsignal(number) != signal.SIG_IGN:
                    signal.signal(number, self._drain.request)
        children.keep_apart(STOP_SIGNALS, self._drain.request)

    def _live(self) -> Ended | ClosedByAnother:
        """Load the job and work. Returns how it came to an end, whatever was raised."""
        try:
            end = self._load_and_work()
        except Drained:
            end = Ended(Reason.DRAINED)
        except OSError as trouble:
            if trouble.errno == errno.EBADF:
                # Only descriptors that stay open can be bad: the journal's.
                self._die(Unusable(f"the job closed files that are not its own: {trouble}"))
            say(f"gpuspool: this attempt ends: {trouble}")
            message = for_people(str(trouble))
            error = Error(kind=ErrorKind.IO, type=type(trouble).__name__, message=message)
            end = Ended(Reason.IO, error)
        except Unusable as broken:
            self._die(broken)
        except AttemptError as misled:
            # Found out by the first call: no rank can use this job, or this device.
            error = judge_load(misled)
            end = Ended(Reason(error.kind), error)
        # Whatever was in hand is so no longer, and no limit holds for how this attempt ends.
        self._timer.end()
        return end

    def _load_and_work(self) -> Ended | ClosedByAnother:
        # By its path and not through the spool that is held open: the job and its commands, which
        # write there, know nothing of that.
        out = Layout(self._folders.spool.path).outputs
        if self._run.out is not None:
            out = Path(self._run.out)
        held = self._folders.open_out(out, self._run.id)
        writer = writer_name(self._marked_run, self.name)
        outputs = Outputs(out, writer, self._folders.check, held)
        context = self._make_context(outputs)
        self._beat.doing.clocks.begin_load()
        try:
            job = self._preparation.load(context)
        finally:
            self._beat.doing.clocks.end_load()
        if isinstance(job, Error):
            return Ended(Reason(job.kind), job)
        self._executor = self._make_executor(job, context, outputs)
        if job.close is not None:
            self._job_close = job.close, context
        end = self._work.run(self._executor)
        match end:
            case WorkEnd.FINISHED:
                return Ended(Reason.FINISHED)
            case WorkEnd.DRAINED:
                return Ended(Reason.DRAINED)
            case WorkEnd.FAILURES:
                return Ended(Reason.FAILURES, self._about_failures())
            case WorkEnd.HANDOVER:
                return Ended(Reason.HANDOVER)
            case WorkEnd.RECYCLED:
                return Ended(Reason.RECYCLED, self._settler.restart)
            case WorkEnd.CLOSED:
                return ClosedByAnother()
            case _:
                assert_never(end)

    def _about_failures(self) -> Error:
        """Why this process ends after too many failures in a row: what the last of them said."""
        last = self._settler.last_error
        assert last is not None
        n_failed = self._settler.failures_in_a_row
        text = f"{n_failed} tasks in a row failed here; the last: {last.message}"
        return msgspec.structs.replace(last, message=text)

    def _make_context(self, outputs: Outputs) -> Context:
        def is_draining() -> bool:
            return self._drain.is_requested

        return Context(
            self._rank,
            self._intent.world_size,
            self.name,
            "cuda:0" if os.environ.get("CUDA_VISIBLE_DEVICES") else "cpu",
            self._run.args,
            outputs.path,
            is_draining,
            self._settler.scratch.of,
            local_rank=self._intent.local_rank,
        )

    def _make_executor(self, job: LoadedJob, context: Context, outputs: Outputs) -> Executor:
        seed = self._intent.options.seed
        # What was mounted when the run was made, and what has been mounted since.
        mounts = sorted({*self._run.mounts, *data_mounts()})
        moved = self._run.fingerprint.root, self._run.root
        call = Call(job, context, outputs, seed, self._beat.doing, self._settler, mounts, moved)
        if self._intent.job.kind in (JobKind.FILE, JobKind.MODULE):
            call.check_first(self._preparation.check_first_call)
        turns: Turns | None = None
        if self._intent.device not in ("", "cpu"):
            turns = Turns(self._intent.device)
        return Executor(job, call, self._drain, turns)

    def _die(self, broken: Unusable) -> NoReturn:
        """End at once, as a crash does. Only what the journal was told is written out."""
        with contextlib.suppress(OSError):
            self._journal.flush()
        say(f"{broken.traceback}{BROKEN}{broken}")
        os._exit(EXIT_UNUSABLE)

    def _end(self, end: Ended | ClosedByAnother) -> int:
        match end:
            case ClosedByAnother():
                return EXIT_COMPLETE
            case Ended():
                return self._close(end, self._end_job(end))
            case _:
                assert_never(end)

    def _end_job(self, end: Ended) -> Error | None:
        """Call the job's `close`, where it has one; returns the error that this came to."""
        if self._job_close is None or self._executor is None:
            return None
        close, context = self._job_close
        # It shall find nothing of the job at work but what the job itself has started.
        self._executor.stop_loading()
        self._beat.doing.clocks.begin_close()
        self._beat.doing.phase = Phase.CLOSING
        self._beat.doing.let_go()
        try:
            self._journal.append(IdleLine(state=LineState.IDLE, claims=0, is_leaving=True))
            self._journal.flush()
            self._beat.beat()
        except OSError as trouble:
            # Closing the attempt will fail for it, and tell.
            say(f"gpuspool: cannot say that the job's `close` begins: {trouble}")

        def give_up(error: Error) -> NoReturn:
            code = self._close(end, error)
            self._end_children()
            leaving.exit_now(code)

        return JobEnd(self._drain, self._intent.options.grace_s).call(close, context, give_up)

    def _close(self, end: Ended, close_error: Error | None = None) -> int:
        """Give back what is not finished and say how it ended, by one link(2).

        Returns the exit code. Where the link cannot be made this process says so by its code, and
        whoever comes next closes the attempt.
        """
        state = _state_of(end.reason)
        orphans = self._work.release()
        try:
            self._beat.finish()
            closing = Closing(
                attempt=self.name,
                state=state,
                reason=end.reason,
                by=self.name,
                at=time.time(),
                error=end.error,
                close_error=close_error,
                stats=final_stats(self._beat.doing, self._preparation.device, self._executor),
                journal_bytes=self._journal.n_bytes,
            )
            publish_closing(self._layout, closing, orphans)
            self._beat.end_proof()
        except OSError as trouble:
            say(f"gpuspool: cannot close {self.name}: {trouble}; its parent, or a resume, will")
            return EXIT_CANNOT_CLOSE
        if self._is_call:
            return self._settler.exit_code
        return _exit_code_of(state)


def _state_of(reason: Reason) -> AttemptState:
    """The state of an attempt that closes itself."""
    match reason:
        case Reason.FINISHED:
            return AttemptState.COMPLETE
        case Reason.DRAINED | Reason.HANDOVER | Reason.RECYCLED:
            return AttemptState.STOPPED
        case _:
            return AttemptState.FAILED


def _exit_code_of(state: AttemptState) -> int:
    match state:
        case AttemptState.COMPLETE:
            return EXIT_COMPLETE
        case AttemptState.STOPPED:
            return EXIT_DRAINED
        case AttemptState.FAILED:
            return EXIT_NOT_FINISHED
        case _:
            assert_never(state)
