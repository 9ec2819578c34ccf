"""The spool for a request: the one that is there if it holds the same run, or a new one.

`run` may be called again and again. Without a spool it makes one; with a spool of the same request
it goes on; a changed job is refused with a diff and two ways to go on; for whatever else differs it
is refused with a list. Nothing is changed before the last reason to refuse has been looked for.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from gpuspool.orchestrator.api.occupants import (
    Occupants,
    describe_parent,
    in_words,
    parents_maybe_alive,
)
from gpuspool.orchestrator.plan.aside import move_aside
from gpuspool.orchestrator.plan.create import create, half_made, refuse_place
from gpuspool.orchestrator.plan.devices import Pool, find_pool, share_out
from gpuspool.orchestrator.plan.differences import (
    code_difference,
    is_from_another_file,
    job_difference,
    keeps_nothing,
    keys_of,
    other_differences,
    redo_command,
    task_difference,
    what_matters,
)
from gpuspool.orchestrator.plan.holds import refuse_to_rename
from gpuspool.orchestrator.plan.inputs import TaskList
from gpuspool.orchestrator.plan.matching import Matching, match
from gpuspool.orchestrator.plan.out import check_out, clear_out
from gpuspool.orchestrator.plan.request import Request
from gpuspool.orchestrator.plan.slots import Slot, make_slots
from gpuspool.orchestrator.slurm.allocation import scheduler_now
from gpuspool.orchestrator.supervise.lock import hold
from gpuspool.orchestrator.text.progress import say, warn
from gpuspool.orchestrator.text.words import count_of, to_type
from gpuspool.spool.errors import OrchestratorLive, UsageError
from gpuspool.spool.identity import myself
from gpuspool.spool.layout import Layout
from gpuspool.spool.liveness import FailureDetector
from gpuspool.spool.records import Job, Options
from gpuspool.spool.states import Life, Verdict
from gpuspool.spool.trust import Trust, refuse_unsafe
from gpuspool.spool.view import View, open_view


def open_or_create(
    layout: Layout,
    request: Request,
    trust: Trust,
    *,
    fresh: bool,
    overwrite: bool,
    keep_done: bool,
    add: bool,
    n_ranks: int | None = None,
) -> tuple[View, Matching | None]:
    """A view of the spool that holds this request, and how the two lists of tasks compare.

    None for the latter where they are known to be the same without a comparison.

    trust: whose spool is accepted. fresh: move a spool that is there aside, and make a new one.
    overwrite: an OUT that holds anything may be moved aside. keep_done: a changed job is fine. add:
    so are tasks that the run does not have yet; they are not added here. n_ranks: for how many a
    new run is planned; None for those that this host gives. Raises UsageError, SpoolError and
    OrchestratorLive.
    """
    # A host on which processes cannot be told apart is refused before anything is made.
    myself()
    written = None
    if fresh or not is_made(layout):
        written = _make(layout, request, trust, fresh=fresh, overwrite=overwrite, n_ranks=n_ranks)
    view = open_view(layout.root, written=written)
    refuse_unsafe(layout, trust, view.owners)
    if written is None:
        return view, refuse_another_request(view, request, keep_done, add)
    return view, None


def is_made(layout: Layout) -> bool:
    """Whether there is a spool, perhaps a damaged one. It has two copies of its run record."""
    return layout.run.exists() or layout.run_copy.exists()


def slots_for(options: Options) -> tuple[Pool, list[Slot]]:
    """The pool, and the slots that these options ask for, one for each rank. Raises UsageError."""
    pool = find_pool(options.devices)
    devices = share_out(pool, options.ranks, options.ranks_per_gpu, options.gpus_per_rank)
    scheduler = scheduler_now()
    return pool, make_slots(devices, pool, "" if scheduler is None else scheduler.job)


# How one goes on with a job that changed: by each verb that runs, and by those that make spools.
KEEP_DONE = "--keep-done goes on: finished tasks stay, the rest use the new code."
WAYS_ON = (
    f"{KEEP_DONE} --fresh starts anew; the old spool is renamed. Another --spool makes a second "
    "run."
)


def refuse_changed_job(
    view: View, job: Job, source: bytes | None, keep_done: bool, ways_on: str = WAYS_ON
) -> None:
    """Raise UsageError, with the diff, for code that changed and was not said to be fine.

    source: of the job, None where it has none that could have changed. ways_on: what people are
    told to do about it.
    """
    if keep_done:
        return
    difference: list[str] = []
    if source is not None:
        difference += job_difference(view, job, source)
    difference += code_difference(view, job)
    if difference and keeps_nothing(view) and not alive_attempts(view):
        # A job that never worked was fixed: there is nothing that two codes could be mixed in.
        say("the job changed; no task was complete, so the run goes on with the new code")
        return
    if difference:
        raise UsageError(
            f"the job changed since {view.layout.root} was made:\n"
            + "\n".join(difference)
            + f"\n{ways_on}"
        )


def _make(
    layout: Layout,
    request: Request,
    trust: Trust,
    *,
    fresh: bool,
    overwrite: bool,
    n_ranks: int | None,
) -> dict[str, bytes] | None:
    """Make the spool; returns its manifests, or None where another process was faster."""
    if n_ranks is None:
        n_ranks = len(slots_for(request.options)[1])
    # Another start may make this very run in this moment, and its OUT. Then that is neither refused
    # for what it holds nor moved aside.
    occupants: Occupants | None = None
    try:
        occupants = refuse_to_make(
            layout, request, trust, fresh=fresh, overwrite=overwrite, waits=True
        )
    except UsageError:
        if fresh or not is_made(layout):
            raise
    if not fresh and is_made(layout):
        return None
    if fresh and layout.root.exists():
        with hold(layout):
            _refuse_alive(layout, occupants, waits=False)
            move_aside(layout.root)
    if request.out is not None:
        clear_out(Path(request.out))
    for path in half_made(layout):
        warn(f"{path} was left half made; it is not used, delete it")
    return create(layout, request, n_ranks)


def refuse_to_make(
    layout: Layout,
    request: Request,
    trust: Trust,
    *,
    fresh: bool,
    overwrite: bool,
    waits: bool = False,
) -> Occupants | None:
    """Raise UsageError or OrchestratorLive where a spool cannot be made. Changes nothing.

    waits: of --fresh, whether to wait for a lease where only that can prove that nobody is at work
    on the spool that is to be moved aside. Returns the `Occupants` that knows what the wait has
    proved, None where there was none.
    """
    if request.out is not None:
        check_out(Path(request.out), overwrite, request, layout.root)
    if fresh and layout.root.exists():
        return _refuse_to_move_aside(layout, request, trust, waits)
    refuse_place(layout)
    return None


def _refuse_to_move_aside(
    layout: Layout, request: Request, trust: Trust, waits: bool
) -> Occupants | None:
    """--fresh: refuse a spool that cannot be renamed, or of whose run anything may be alive.

    A worker that still lives has the spool's path, and would go on writing into the new spool. A
    folder that is not a spool is refused, because the user may have named the wrong one. Raises
    UsageError and OrchestratorLive.
    """
    if not layout.format.exists():
        raise UsageError(
            f"{layout.root} is not a spool; it is not renamed. Choose another --spool."
        )
    refuse_to_rename(layout.root, "--fresh", request, None)
    # Taking its lock opens a file in there for writing.
    refuse_unsafe(layout, trust, {})
    return _refuse_alive(layout, None, waits=waits)


def _refuse_alive(layout: Layout, occupants: Occupants | None, *, waits: bool) -> Occupants | None:
    """Raise OrchestratorLive where a parent or an attempt is not proved dead.

    occupants: what an earlier call has returned, None at the first one. waits: whether to wait
    until it is sure. Returns the occupants that were asked, for a second look under the lock.
    """
    if occupants is None and is_made(layout):
        occupants = Occupants(open_view(layout.root, reads_claims=False))
    if occupants is None:
        # Of what has no run record it is not known what a lease is.
        who = ", ".join(map(describe_parent, parents_maybe_alive(layout)))
    else:
        who = in_words(occupants.wait() if waits else occupants.look())
    if who:
        raise OrchestratorLive(
            f"{layout.root}: {who} may still be running. "
            "Stop them first with `gpuspool drain`, or choose another --spool."
        )
    return occupants


def alive_attempts(view: View) -> list[str]:
    """The attempts that are not proved dead, at a single look."""
    detector = FailureDetector(view)
    return [name for name in view.open_attempts if detector.life(name) is not Life.DEAD]


def refuse_another_request(
    view: View, request: Request, keep_done: bool, add: bool
) -> Matching | None:
    """Raise UsageError unless the spool holds this request, up to what the user says is fine.

    Returns how the tasks compare, None where they are the same in the same order.
    """
    root = view.layout.root
    if not keep_done and is_from_another_file(view, request.job):
        file = Path(request.job.file)
        another = shlex.quote(f"{root.name}-{file.stem}")
        raise UsageError(
            f"{root} holds the run of another job: {view.latest_job().spec} before, "
            f"{request.job.spec} now.\n"
            f"Name another spool for this one, e.g. --spool {another}. --fresh "
            f"renames the old one and starts anew. If {file.name} is the same job as before in a "
            "new file, --keep-done goes on with it."
        )
    differences = other_differences(view, request)
    if differences:
        raise UsageError(
            f"{root} holds another run:\n  " + "\n  ".join(differences) + "\n"
            "Use the same inputs and options to go on with it, --fresh to start anew (the old "
            "spool is renamed), or another --spool."
        )
    refuse_changed_job(view, request.job, request.source, keep_done)
    found: Matching | None = None
    if not _are_same_tasks(view, request):
        found = refuse_other_tasks(view, request.tasks, keep_done=keep_done, add=add)
    _warn_of_changed_inputs(view, request.tasks, [] if found is None else found.changed)
    return found


def _warn_of_changed_inputs(view: View, tasks: TaskList, changed: list[int]) -> None:
    """Name the complete tasks whose input files are not those that they ran with.

    changed: the run's tasks whose files have another size now. Others show by the time at which the
    file was changed; one that was redone since began later.
    """
    changed_at = tasks.changed_after(view.run.created_at)
    verdict = view.ledger.verdict
    indices = {task for task in changed if tasks.root and verdict(task) is Verdict.COMPLETE}
    if changed_at:
        # Imported here, since every start of a run imports this module and few come to this line.
        from gpuspool.orchestrator.report.results import Results

        indices.update(Results(view).begun_before(changed_at))
    if not indices:
        return
    keys = keys_of(view.planned_tasks(), sorted(indices))
    changed_inputs = count_of(
        len(indices), "input changed after its task", "inputs changed after their tasks"
    )
    warn(
        f"{changed_inputs} had run: {', '.join(keys)}. What is complete is not run again; "
        f"{redo_command(view, keys)} does that"
    )


def _are_same_tasks(view: View, request: Request) -> bool:
    """Whether the request names just what the run has, in the same words and order."""
    is_as_begun = view.run.fingerprint.tasks_sha256 == request.fingerprint.tasks_sha256
    return is_as_begun and view.ledger.tasks == view.run.tasks


def refuse_other_tasks(view: View, tasks: TaskList, *, keep_done: bool, add: bool) -> Matching:
    """Raise UsageError where the run does not have just these tasks, up to what is said to be fine.

    Returns how they compare.

    keep_done: finished tasks whose inputs have changed stay. add: new ones are to be added, and
    those that are not named are left as they are.
    """
    found = match(view, tasks)
    root = view.layout.root
    fine = Matching(
        new=[] if add else found.new,
        gone=[] if add else found.gone,
        changed=[] if keep_done and tasks.root else found.changed,
    )
    difference = task_difference(view, what_matters(view, fine, tasks), tasks)
    if difference:
        raise UsageError(
            f"{root} has {count_of(view.ledger.tasks, 'task')}; of what is named now {difference}"
        )
    verdict = view.ledger.verdict
    n_mended = sum(verdict(task) is Verdict.FAILED for task in found.changed)
    if n_mended:
        inputs = count_of(n_mended, "failed input has", "failed inputs have")
        warn(f"{inputs} changed; {to_type('retry', root)} gives them another round")
    return found
