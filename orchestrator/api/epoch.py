"""One start of a run (an epoch), from the lock to the report.

1. What can be refused is refused: options, devices.
2. It is admitted, one start at a time, under the lock:
   - The spool is repaired where it is damaged, if no other parent may be at work in it.
   - The job's source is put where workers find it, and what else the code consists of is recorded.
   - For a retry, every failed task gets another round; for a redo, those that were named.
   - OUT is known by its mark, or it is made and marked if nothing was published yet.
   - The epoch is taken, by the link(2) of the parent's record.
3. The lock is given back, and others may come in. The parent sees the run to its end.
4. It says how it ended, and beats no more.

Called by `run`, and by `resume`, `retry`, `redo` and `join`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from gpuspool.orchestrator.api.live import LiveTable
from gpuspool.orchestrator.api.occupants import Occupants
from gpuspool.orchestrator.api.opening import slots_for
from gpuspool.orchestrator.api.report import Report
from gpuspool.orchestrator.api.whereabouts import (
    claim_out,
    record_move,
    record_root,
    refuse_out,
    root_moved_along,
    wait_for_writers,
)
from gpuspool.orchestrator.plan.code import changed_since, code_now
from gpuspool.orchestrator.plan.devices import Pool
from gpuspool.orchestrator.plan.imports import why_one_first
from gpuspool.orchestrator.plan.options import options_of_start
from gpuspool.orchestrator.plan.slots import Slot
from gpuspool.orchestrator.slurm.allocation import others_in, scheduler_now
from gpuspool.orchestrator.slurm.limits import with_limits_of_job
from gpuspool.orchestrator.slurm.requeue import requeue as requeue_job
from gpuspool.orchestrator.supervise.doctor import warnings_of
from gpuspool.orchestrator.supervise.drain import Cause, Drain, signals_to
from gpuspool.orchestrator.supervise.finish import Outcome, file_away_old_failures
from gpuspool.orchestrator.supervise.folders import RunFolders
from gpuspool.orchestrator.supervise.leftovers import remove_scratch
from gpuspool.orchestrator.supervise.lock import hold
from gpuspool.orchestrator.supervise.loop import Orchestrator
from gpuspool.orchestrator.supervise.repair import make_way, repair, repair_job
from gpuspool.orchestrator.supervise.telling import Telling
from gpuspool.orchestrator.text.printable import recordable
from gpuspool.orchestrator.text.progress import Progress, make_progress, say
from gpuspool.orchestrator.text.words import count_of
from gpuspool.spool.code import publish_code, read_code
from gpuspool.spool.codec import pretty, seal_pretty
from gpuspool.spool.errors import OrchestratorLive
from gpuspool.spool.file_system import file_system_type, is_network, is_of_one_host
from gpuspool.spool.identity import myself
from gpuspool.spool.layout import FORMAT_TEXT, copy_name
from gpuspool.spool.manifest import publish_manifest
from gpuspool.spool.open_folder import folder_id, out_of
from gpuspool.spool.parents import being_parent, may_any_parent_live
from gpuspool.spool.publish import publish, replace
from gpuspool.spool.records import Job, Parent, ParentEnd, Place, Run, TaskLine
from gpuspool.spool.signals import children_can_be_awaited
from gpuspool.spool.states import JobKind
from gpuspool.spool.trust import Trust
from gpuspool.spool.view import View, is_of_older_format, load_run, read_control

# What a start made of its ranks is told of those that took so many seconds. Most of a shorter one
# is the start of Python and the loading of the job, whatever that is, and nobody would act on it.
EFFICIENCY_FROM_S = 20.0


def supervise(
    view: View,
    job: Job,
    source: bytes | None,
    given: Mapping[str, Any],
    trust: Trust,
    *,
    command: str,
    quiet: bool,
    out_moved_to: str | os.PathLike[str] | None = None,
    inputs_root: str = "",
    again: Again | None = None,
    requeue: int = 0,
    brings_code: bool = False,
) -> Report:
    """Start the run of a spool and see it to its end.

    job, source: what to run; a source of None leaves the spool's copy as it is. given: the options
    of this start, without None. trust: whose files its workers may obey. command: the verb that was
    typed, for people. out_moved_to: where OUT is now, if it was moved. inputs_root: likewise the
    folder that keys of input files are relative to, "" if that was not said. again: which tasks get
    another round. requeue: how often Slurm is asked to start this job again when its time is up;
    then this does not return. brings_code: the user said that the code changed. Raises
    GpuspoolError, and OSError where the file system does.
    """
    # Where processes cannot be told apart this raises, before anything is touched.
    myself()
    layout = view.layout
    # Who drains from here on means this start, which nobody can name before it has told its epoch.
    drained = read_control(layout).drain
    options = options_of_start(view.run.options, given)
    pool, slots = slots_for(options)
    one_first = why_one_first()
    # This may take a lease, so it comes before the lock, which others wait for.
    writers = None if out_moved_to is None else wait_for_writers(view, Path(out_moved_to))
    received: list[int] = []
    make_way(layout.lock)
    with contextlib.ExitStack() as stack:
        admission = stack.enter_context(contextlib.ExitStack())
        lock_warning = admission.enter_context(hold(layout))
        # From here on a Ctrl-C ends in a drain, and not in the middle of a repair.
        stack.enter_context(signals_to(received))
        stack.enter_context(children_can_be_awaited())
        view.use_run(_still_this_run(view))
        was_older = is_of_older_format(layout)
        job = _repair_and_publish_job(view, job, source)
        _record_moves(view, out_moved_to, inputs_root, writers)
        given_round = _claim_out_for(view, again)
        # Whatever fails from here on, neither is left to a caller of the Python API, who lives on.
        folders = stack.enter_context(contextlib.closing(RunFolders(view)))
        progress = make_progress(quiet, LiveTable(view))
        stack.enter_context(contextlib.closing(progress))
        parent = _take_epoch(view, slots, job, options.lease_s, command)
        stack.enter_context(being_parent(layout, parent.epoch))
        with _ended_in_any_case(view, folders, progress, parent.epoch) as epoch:
            admission.close()
            telling = Telling(layout, parent.epoch, progress, folders.spool.check)
            _warn(progress, _own_choice(job, slots), lock_warning, *warnings_of(layout.root))
            _warn(progress, *_of_one_host_alone(view))
            if was_older and not is_of_older_format(layout):
                progress.say(_what_a_new_format_means())
            if given_round:
                progress.say(given_round)
            telling.tell("devices", _what_starts(view, len(slots), pool))
            # A start that has nothing to do need not wait for what Slurm says.
            if view.ledger.n_finished < view.ledger.tasks:
                options, told = with_limits_of_job(options, given)
                for text in told:
                    telling.tell("limits", text)
            orchestrator = epoch.orchestrator = Orchestrator(
                view,
                parent.epoch,
                slots,
                job,
                options,
                progress,
                received,
                folders,
                drained,
                trust.named,
                one_first,
                brings_code=brings_code,
            )
            began = time.monotonic()
            outcome = epoch.outcome = orchestrator.run()
            took_s = time.monotonic() - began
            _warn(progress, _changed_meanwhile(view, job))
    if requeue and _is_requeue_due(view, orchestrator.drain, received):
        requeue_job(requeue, outcome.message.splitlines()[0], say)
    efficiency = ""
    if progress.is_shown and took_s >= EFFICIENCY_FROM_S:
        efficiency = _efficiency(view, parent.epoch, took_s)
    return _report(view, outcome, efficiency)


class _Epoch:
    """How far the epoch of this start has come. outcome: None until it has come to its end."""

    orchestrator: Orchestrator | None = None
    outcome: Outcome | None = None


@contextlib.contextmanager
def _ended_in_any_case(
    view: View, folders: RunFolders, progress: Progress, epoch: int
) -> Iterator[_Epoch]:
    """Whatever happens in the block, this process is the parent of nobody afterwards.

    A caller of the Python API lives on, and others would wait for what its parent sees to. The
    block notes in what is yielded how far it came.
    """
    noted = _Epoch()
    try:
        yield noted
    finally:
        # Nothing is written where the spool is gone: another run's may be at its path.
        with contextlib.suppress(OSError):
            folders.spool.check()
            _say_ended(view, epoch, noted.outcome)
            # The last table shows this parent as one that has ended.
            progress.close()
            if noted.orchestrator is not None:
                noted.orchestrator.end()
        # It is closed again, without any effect, once the block is left for good.
        progress.close()


def _take_epoch(view: View, slots: list[Slot], job: Job, lease_s: float, command: str) -> Parent:
    """Take the next epoch, by the link(2) of this parent's record; returns that."""
    layout = view.layout
    scheduler = scheduler_now()
    epoch = view.next_epoch()
    while True:
        parent = Parent(
            **msgspec.structs.asdict(myself()),
            epoch=epoch,
            at=time.time(),
            slots=[Place(device=slot.device, uuids=slot.uuids) for slot in slots],
            argv=[recordable(word) for word in sys.argv],
            command=command,
            lease_s=lease_s,
            scheduler=scheduler,
            folder=folder_id(layout.root),
            job_sha256=job.sha256,
            code=job.code,
        )
        if publish(layout.parent(epoch), seal_pretty(parent)):
            return parent
        # Somebody else was admitted at the same moment: locks do not work here.
        epoch += 1


def _say_ended(view: View, epoch: int, outcome: Outcome | None) -> None:
    """Publish how this parent ended, by link(2), or by rename(2) if others had said that it is
    lost. outcome: None where it could not go on.
    """
    how, exit_code, message = "failed", 1, ""
    if outcome is not None:
        how, exit_code, message = outcome.how, outcome.exit_code, outcome.message
    end = ParentEnd(how=how, exit_code=exit_code, at=time.time(), message=recordable(message))
    path = view.layout.parent_end(epoch)
    if not publish(path, pretty(end)):
        # Others took it for dead just now, and said so.
        replace(path, pretty(end), durable=True)


def _is_requeue_due(view: View, drain: Drain | None, received: list[int]) -> bool:
    """Whether a start that may have its job started again ended in such a way.

    That is so if tasks are left and its time was up. Whoever sent another signal, even while it
    drained, wants an end: a job that starts itself again on SIGTERM could not be cancelled.
    """
    is_left = view.ledger.n_finished < view.ledger.tasks
    wants_end = set(received) - {signal.SIGUSR2}
    is_time_up = drain is not None and drain.cause is Cause.TIME
    return is_time_up and is_left and not wants_end


def _what_starts(view: View, n_ranks: int, pool: Pool) -> str:
    """The first line of a start: how much there is to do, where, and in which spool."""
    ledger = view.ledger
    n_left = ledger.tasks - ledger.n_finished
    tasks = f"{ledger.tasks:,} {'task' if ledger.tasks == 1 else 'tasks'}"
    if n_left < ledger.tasks:
        tasks = f"{n_left:,} of {tasks} left,"
    spool = os.fspath(view.layout.root)
    with contextlib.suppress(OSError):
        spool = os.path.relpath(spool)
    return f"{tasks} on {count_of(n_ranks, 'rank')} ({pool.in_words}), {spool}"


def _what_a_new_format_means() -> str:
    """What the first start of this version on a spool of an earlier one tells."""
    number = FORMAT_TEXT.split()[1]
    return (
        f"an earlier version made this spool; it is one of format {number} from now on, which that "
        "version refuses. All that was done stays"
    )


def _still_this_run(view: View) -> Run:
    """The run record, read again now that the lock is held. Raises OrchestratorLive.

    Between the first look and the lock another process may have moved the spool aside and made a
    new one in its place.
    """
    run = load_run(view.layout)
    if run.id != view.run.id:
        raise OrchestratorLive(
            f"{view.layout.root} was replaced by another run just now. Look at it, and start again."
        )
    return run


def _repair_and_publish_job(view: View, job: Job, source: bytes | None) -> Job:
    """Make the spool whole, put the job where workers find it, and record its code.

    Returns the job as this start runs it.
    """
    # The repair comes before the view is read again, since it makes whole what a view is read from.
    if not may_any_parent_live(view.layout):
        repair(view.layout, view.run)
    job = _publish_job(view.refresh(), job, source)
    code = publish_code(view.layout, code_now(view, job))
    return msgspec.structs.replace(job, code=code)


def _record_moves(
    view: View,
    out_moved_to: str | os.PathLike[str] | None,
    inputs_root: str,
    writers: Occupants | None,
) -> None:
    """Record where OUT and the input files are now, as `supervise` was told or can see.

    writers: what `wait_for_writers` returned.
    """
    if out_moved_to is not None:
        record_move(view, Path(out_moved_to), writers)
    moved_to = inputs_root or root_moved_along(view)
    if moved_to and view.run.root:
        record_root(view, moved_to)


def _publish_job(view: View, job: Job, source: bytes | None) -> Job:
    """The job as this start runs it, with the name of its copy in the spool.

    An unchanged job runs from the copy that is there, which is repaired where it is damaged; the
    modules that it imports are found beside the job's file where that is now. A changed job
    (--keep-done) gets a copy of its own name, because workers of an earlier start may still read
    the old one.
    """
    old = view.latest_job()
    if job.kind is JobKind.COMMAND or source is None or job.sha256 == old.sha256:
        job = msgspec.structs.replace(job, copy=old.copy)
        repair_job(view.layout, job, source)
        return job
    job = msgspec.structs.replace(job, copy=copy_name(job.copy, job.sha256))
    publish(view.layout.job_copy(job.copy), source)
    return job


class Again(msgspec.Struct, frozen=True):
    """Which tasks get another round: those that failed, and those that are redone.

    redo: asked, under the lock, which these are, by their indices; None for a retry. remakes_out:
    an OUT that is gone with what was published there is made anew.
    """

    redo: Callable[[View], set[int]] | None = None
    remakes_out: bool = False


def _claim_out_for(view: View, again: Again | None) -> str:
    """Claim OUT, or make it anew, and before that publish the tasks that get another round.

    Returns how many these are, in words; "" where another round was not asked for.
    """
    # An OUT that was made anew would pass for the whole one, so the tasks whose outputs were in the
    # old one are published first. That may yet be refused, and this process may die.
    lack = refuse_out(view, remakes=again is not None and again.remakes_out)
    told = "" if again is None else _publish_another_round(view, again)
    claim_out(view, lack)
    return told


def _publish_another_round(view: View, again: Again) -> str:
    """Publish the tasks that get another round; returns how many these are, in words.

    The link of their manifest is the moment at which these tasks count as unfinished again. Raises
    UsageError where the user named a task that there is not.
    """
    # What is on record of the task's failures and kills is forgotten: the user says that the cause
    # is gone, and with the old ones the first failure could fail it again. The files of the old
    # failures are filed away only after the link, since until then they are what is true. If this
    # process dies in between, the end of the next epoch does it.
    wanted = set(view.ledger.failed()) if again.redo is None else again.redo(view)
    lines = _newest_lines(view, wanted)
    what = "failed task gets", "failed tasks get"
    if again.redo is not None:
        what = "task gets", "tasks get"
    if lines:
        # What a complete task kept is there only if its worker died when it was to remove that. A
        # redo would go on from it.
        remove_scratch(view)
        tasks = [_in_next_round(view, line, is_redo=again.redo is not None) for line in lines]
        publish_manifest(view.layout, view.next_numbered("retry"), tasks)
        file_away_old_failures(view.refresh())
    if not wanted and again.redo is None:
        return "no task has failed, so none gets another round"
    return f"{count_of(len(lines), *what)} another round"


def _newest_lines(view: View, wanted: set[int]) -> list[TaskLine]:
    """Of each of these tasks the newest readable line that describes it, in input order."""
    newest: dict[int, TaskLine] = {}
    for manifest in view.manifests.values():
        for line in manifest.tasks():
            if line.task not in wanted:
                continue
            # A sweep or a ruling of an earlier round may be listed behind a later retry.
            known = newest.get(line.task)
            if known is None or line.round >= known.round:
                newest[line.task] = line
    return [newest[task] for task in sorted(newest)]


def _in_next_round(view: View, line: TaskLine, is_redo: bool) -> TaskLine:
    """The line of a task with which it begins its next round, with a clean record.

    An input file that was mended has another size, and so another cost, by which a later command
    knows it again.
    """
    ledger = view.ledger
    failed_round = ledger.failed_round.get(line.task, 0)
    last_round = max(ledger.round_of(line.task), failed_round, line.round)
    cost = line.cost
    if view.run.root:
        with contextlib.suppress(OSError):
            cost = float(os.stat(os.path.join(view.run.root, line.key)).st_size)
    return msgspec.structs.replace(
        line,
        round=last_round + 1,
        cost=cost,
        kills=0,
        restarts=0,
        failed_in=(),
        careful=False,
        redo=is_redo or line.redo,
    )


def _own_choice(job: Job, slots: list[Slot]) -> str | None:
    """A warning of a command that puts all ranks on one device; None where nothing shows that."""
    if len({slot.device for slot in slots}) > 1:
        for word in job.command:
            if "CUDA_VISIBLE_DEVICES=" in word:
                return f"the command sets CUDA_VISIBLE_DEVICES itself, for all ranks alike: {word}"
    return None


def _of_one_host_alone(view: View) -> list[str]:
    """A warning for each of the spool and OUT that other starts of this Slurm job may not see.

    These would not be refused anything: each would find no spool, make one, and do all of the work.
    """
    others = others_in(os.environ)
    if not others:
        return []
    told: list[str] = []
    for what, option, folder in (
        ("the spool", "--spool", view.layout.root),
        ("the folder of outputs", "--out", out_of(view.layout, view.run)),
    ):
        kind = file_system_type(folder)
        if not kind or is_network(kind) or (option == "--out" and view.run.out is None):
            continue
        sees = "which no other node can see" if is_of_one_host(kind) else "a disk of this node"
        told.append(
            f"{what} {folder} lies on {kind}, {sees}. If this job has other nodes too, {others} "
            "finds or makes a folder of its own at that path, and where that is the spool it does "
            f"ALL of the work again. Stop this job, and name a folder that all nodes share with "
            f"{option}. If one node runs all of it, or exports that folder to the others, all is "
            "well"
        )
    return told


def _changed_meanwhile(view: View, job: Job) -> str | None:
    """A warning of files that the command or the args name and that changed while the run was on.

    Workers read them whenever they like, so some tasks may have had the old ones, some the new.
    """
    code = read_code(view.layout, job.code)
    changed = [] if code is None else [one.path for one in changed_since(view, job, code)]
    if not changed:
        return None
    return f"{', '.join(changed)} changed while the run went on"


def _warn(progress: Progress, *warnings: str | None) -> None:
    for text in warnings:
        if text:
            progress.say(f"warning: {text}")


def _efficiency(view: View, epoch: int, took_s: float) -> str:
    """What this start made of its ranks, for people; "" where there is nothing to tell."""
    # Imported once the run is over: by then nobody waits for it.
    from gpuspool.orchestrator.report.efficiency import efficiency_text

    # Whatever goes wrong with a few lines of advice, the run is over, and has gone as it has.
    with contextlib.suppress(Exception):
        return efficiency_text(view, epoch, took_s)
    return ""


def _report(view: View, outcome: Outcome, efficiency: str) -> Report:
    ledger = view.ledger
    counts = {"total": ledger.tasks, "complete": ledger.n_complete, "failed": ledger.n_failed}
    return Report(view.layout.root, outcome.exit_code, counts, outcome.message, efficiency)
