"""Submitting a run to Slurm: an array of jobs of one node, each of which joins the run.

1. What can be refused is refused: no sbatch, a file system that other hosts do not see.
2. The run is planned, once, as `run` does it, and its spool is made; nothing of it is started.
3. SPOOL/slurm/0001.sh is published by link(2), under the next number that is free.
4. Slurm is asked how many elements of this run it has already, and given the rest.

Killed anywhere, the same command goes on: an element more than was asked for only adds ranks to the
run. `resubmit` does the last step alone, with the newest script.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import msgspec

from gpuspool.orchestrator.api.opening import (
    is_made,
    open_or_create,
    refuse_another_request,
    refuse_changed_job,
    refuse_to_make,
)
from gpuspool.orchestrator.api.runs import asked_for, refuse_requeue, refuse_seed_api
from gpuspool.orchestrator.plan.adding import add_tasks
from gpuspool.orchestrator.plan.devices import Pool, share_out
from gpuspool.orchestrator.plan.differences import (
    code_difference,
    is_from_another_file,
    keeps_nothing,
)
from gpuspool.orchestrator.plan.imports import place_on_network
from gpuspool.orchestrator.plan.locate import at_home, find_spool
from gpuspool.orchestrator.plan.options import RunOptions, shows_options, without_none
from gpuspool.orchestrator.plan.request import Request
from gpuspool.orchestrator.slurm.script import (
    Wish,
    array_in,
    batch_script,
    further_options,
    job_name,
    refuse_path,
    spool_in,
)
from gpuspool.orchestrator.slurm.submitting import (
    NodeShape,
    Submitted,
    alive_arrays,
    before_that,
    fair_cpus,
    gpus_in,
    largest_array,
    node_shapes,
    split_arrays,
    submit_arrays,
)
from gpuspool.orchestrator.text.progress import say, warn
from gpuspool.orchestrator.text.words import count_of, quoted_path, short_path, to_type
from gpuspool.spool.errors import GpuspoolError, UsageError
from gpuspool.spool.file_system import file_system_type, is_network, is_of_one_host
from gpuspool.spool.layout import Layout, parse_slurm_script
from gpuspool.spool.parents import Parents
from gpuspool.spool.publish import (
    listdir,
    make_subfolder,
    publish,
    read_bytes,
    remove_quietly,
    replace,
)
from gpuspool.spool.records import Options
from gpuspool.spool.trust import Trust, refuse_unsafe, trust_in
from gpuspool.spool.view import View, load_run, open_view, read_control

# So many GPUs a whole node is taken for where sinfo does not tell. The plan is only a beginning:
# ranks without tasks of their own take them from others.
USUAL_GPUS = 4

# More interpreters than this that start at once from one network file system wait for it: each
# opens thousands of small files.
MANY_ELEMENTS = 8

# What stands for the id of a run that is not made.
NO_ID = "RUN-ID"


@dataclasses.dataclass(frozen=True)
class Submission:
    """What was submitted to Slurm.

    spool: its folder. script: the batch script; None where nothing had to be submitted. jobs: the
    ids of the arrays. elements: how many elements these have together. message: what the command
    line says.
    """

    spool: Path
    script: Path | None
    jobs: list[str]
    elements: int
    message: str


@shows_options(RunOptions)
def submit(
    job: Any = None,
    inputs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | None = None,
    *,
    elements: int,
    gpus_per_element: int | None = None,
    whole_nodes: bool = False,
    cpus_per_element: int | None = None,
    max_at_once: int | None = None,
    time: str = "",
    partition: str = "",
    account: str = "",
    qos: str = "",
    gres: str = "",
    no_gres: bool = False,
    sbatch: str = "",
    setup: str | os.PathLike[str] | None = None,
    requeue: int = 0,
    items: Iterable[Any] | None = None,
    command: Sequence[str] | None = None,
    capture: bool = False,
    files_from: str | os.PathLike[str] | None = None,
    lines: str | os.PathLike[str] | None = None,
    tasks: str | os.PathLike[str] | None = None,
    csv: str | os.PathLike[str] | None = None,
    key_field: str | None = None,
    null: bool = False,
    spool: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    args: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    keep_done: bool = False,
    add: bool = False,
    key_root: str | os.PathLike[str] | None = None,
    fresh: bool = False,
    dry_run: bool = False,
    trust_owner: str | Iterable[str] = (),
    **options: Unpack[RunOptions],
) -> Submission:
    """Plan a run and submit it to Slurm, as an array of jobs that join it. Returns at once.

    The same call again submits what is missing. Raises UsageError for what cannot be run or
    submitted, with Slurm's own words; GpuspoolError where Slurm does not tell what it did; and what
    `run` raises before it starts anything.

    elements: how many jobs. Each is one process on one node. max_at_once: at most so many of them
        run at the same time.
    gpus_per_element: GPUs of each. Default 1.
    whole_nodes: each element takes a node with all that it has.
    gres: what sbatch is to be asked for instead, such as "gpu:a100:2". no_gres: nothing.
    cpus_per_element: cores of each. Default: as many as go with its GPUs on such nodes; on the CPU
        one for each rank.
    time, partition, account, qos: as sbatch takes them; the time also as "4h". Default: Slurm's.
    sbatch: further options of sbatch's, as one text.
    setup: a file of lines for bash that come first in each job, copied into the spool.
    requeue: how often each element has itself started again when its time is up.
    leave_when_idle_s: of each element. job, inputs, …: as for `run`.
    keep_done: an input changed: finished tasks stay. Where the job changed this is refused: only a
        start of the run can take new code.
    dry_run: say in the message what would be done, with the script, and do nothing.
    """
    given = without_none(options)
    _refuse_options(elements, max_at_once, given)
    refuse_requeue(requeue)
    _refuse_without_sbatch()
    trusted = (trust_owner,) if isinstance(trust_owner, str) else tuple(trust_owner)
    trust = trust_in(trusted)
    layout, request, known = asked_for(
        job,
        command,
        capture,
        spool=spool,
        fresh=fresh,
        add=add,
        key_root=key_root,
        args=args,
        out=out,
        options=given,
        inputs=inputs,
        items=items,
        files_from=files_from,
        lines=lines,
        tasks=tasks,
        csv=csv,
        key_field=key_field,
        null=null,
    )
    if known is not None:
        _refuse_changed_code(known.refresh(), request, keep_done)
    refuse_path(layout.root)
    _refuse_unshared(layout, request, elements)
    setup_lines = _setup_lines(setup)
    wish = Wish(
        elements=elements,
        at_once=max_at_once,
        whole_nodes=whole_nodes,
        cpus=cpus_per_element,
        time=time,
        partition=partition,
        account=account,
        qos=qos,
        more=tuple(_split(sbatch)),
        has_setup=setup_lines is not None,
        requeue=requeue,
        on_cpu=no_gres and request.options.devices is None and not _asks_for_gpus(sbatch),
        leave_when_idle_s=given.get("leave_when_idle_s"),
        trusted=trusted,
        gres=_gres(gres, no_gres, gpus_per_element, whole_nodes, request.options),
    )
    # What is wrong in them is told before a spool is made.
    further_options(wish.more)
    wish, ranks = _with_shape(wish, request.options)
    _warn_of_imports(elements)
    if dry_run:
        _tell_of_time(wish)
        return _preview(
            layout,
            request,
            trust,
            wish,
            ranks,
            fresh=fresh,
            overwrite=overwrite,
            keep_done=keep_done,
            add=add,
        )
    if fresh and is_made(layout):
        _warn_of_pending(layout)
    view, matching = open_or_create(
        layout,
        request,
        trust,
        fresh=fresh,
        overwrite=overwrite,
        keep_done=keep_done,
        add=add,
        n_ranks=elements * ranks,
    )
    if add and matching is not None:
        n_added = add_tasks(view, request.tasks, matching)
        say(f"{count_of(n_added, 'task')} added to {layout.root}")
        view.refresh()
    if _is_finished(view):
        return _nothing_left(view)
    alive = _alive_or_refuse(view)
    if len(alive) >= elements:
        return _enough(view, alive)
    if setup_lines is not None:
        make_subfolder(layout.slurm)
        replace(layout.slurm_setup, setup_lines, durable=True)
    script = _publish_script(layout, batch_script(wish, view.run.id, layout, _python()))
    _tell_of_time(wish)
    return _submit(view, script, elements, max_at_once, alive, is_new=True)


def resubmit(
    spool: str | os.PathLike[str] | None = None, *, trust_owner: str | Iterable[str] = ()
) -> Submission:
    """Submit to Slurm again what of a submitted run is neither pending nor running there.

    As the newest script in SPOOL/slurm says. Raises what `submit` raises.

    spool: the spool's folder. Default: the only ./spool-* there is.
    trust_owner: users whose spool is accepted, as for `run`.
    """
    _refuse_without_sbatch()
    trust = trust_in(trust_owner)
    view = open_view(find_spool(spool))
    layout = view.layout
    numbers = _script_numbers(layout)
    scripts = [layout.slurm_script(number) for number in numbers]
    if os.path.lexists(layout.slurm_setup):
        scripts.append(layout.slurm_setup)
    refuse_unsafe(layout, trust, view.owners, scripts)
    refuse_seed_api(view)
    if _is_finished(view):
        return _nothing_left(view)
    if not numbers:
        raise UsageError(
            f"{layout.root} was not submitted to Slurm yet: there is no script in {layout.slurm}. "
            "`gpuspool submit`, with the job and the inputs as before, does that."
        )
    script = layout.slurm_script(numbers[-1])
    text = read_bytes(script) or b""
    _refuse_moved(layout, script, spool_in(text))
    array = array_in(text)
    if array is None:
        raise UsageError(
            f"{script} does not say how many elements it has, in a line such as #SBATCH "
            f"--array=0-15%4. Put one in, or `sbatch {quoted_path(script)}` as it is."
        )
    alive = _alive_or_refuse(view)
    if len(alive) >= array.elements:
        return _enough(view, alive)
    return _submit(view, script, array.elements, array.at_once, alive)


# What is refused before anything is written.


def _refuse_options(elements: int, max_at_once: int | None, given: Mapping[str, Any]) -> None:
    if elements < 1:
        raise UsageError(f"--elements {elements} is not possible: it must be at least 1.")
    if max_at_once is not None and max_at_once < 1:
        raise UsageError(f"--max-at-once {max_at_once} is not possible: it must be at least 1.")
    if "time_limit_s" in given:
        raise UsageError(
            "submit takes no time limit of a start: --time is that of the jobs, and each drains "
            "before it is over."
        )


def _refuse_without_sbatch() -> None:
    if shutil.which("sbatch") is None:
        raise UsageError(
            "there is no sbatch on PATH, so nothing can be submitted here. Use a login node of a "
            "Slurm cluster. For other schedulers, start `gpuspool join SPOOL` in their jobs."
        )


def _refuse_unshared(layout: Layout, request: Request, elements: int) -> None:
    """Refuse, or warn of, a spool or an OUT that other hosts may not see.

    Raises UsageError. A single element may run on this very host, so that is only warned of.
    """
    for what, folder in (("the spool", layout.root), ("--out", request.out)):
        if folder is None:
            continue
        kind = file_system_type(Path(folder))
        if is_of_one_host(kind) and elements > 1:
            raise UsageError(
                f"{what} {folder} would lie on {kind}, which no other host can see. Choose a "
                "folder that all nodes share."
            )
        if kind and not is_network(kind):
            warn(
                f"{what} {folder} lies on {kind}, a disk of this host. The jobs work only if this "
                "host exports that folder to all nodes, at the same path"
            )


def _refuse_changed_code(view: View, request: Request, keep_done: bool) -> None:
    """Raise UsageError, with the diff, where the job is not the one that elements would run.

    They run the spool's copy, and only a start of the run can replace that: it has the workers with
    the old one stop.
    """
    job = request.job
    if not keep_done and is_from_another_file(view, job):
        # That is another job, and is refused as such.
        return
    if job.sha256 == view.latest_job().sha256 and not code_difference(view, job):
        return
    root = view.layout.root
    if keeps_nothing(view):
        raise UsageError(
            f"the job changed since {root} was made, and elements would run the old one. No task "
            "is complete, so --fresh loses nothing: it renames the old spool and makes a new one."
        )
    ways_on = (
        "Elements run the spool's copy of the job. To have it replaced, start the run once in a "
        "job of its own: `gpuspool run` with the same words and --keep-done. It stops workers with "
        f"the old one. Once it has begun, {to_type('resume', root, '--slurm')}. --fresh starts "
        "anew, and another --spool makes a second run."
    )
    refuse_changed_job(view, job, request.source, False, ways_on)


def _refuse_moved(layout: Layout, script: Path, named: str | None) -> None:
    """Raise UsageError where the elements of a script would not join the spool that it lies in.

    named: the spool that they join. A spool that --fresh has renamed has another run at its old
    path, and elements would work on that one.
    """
    with contextlib.suppress(OSError):
        if named is None or os.path.samefile(named, layout.root):
            return
    raise UsageError(
        f"{script} starts elements that join {named}, and not {layout.root}: the spool was moved. "
        f"`gpuspool submit`, with the job and the inputs as before and --spool "
        f"{quoted_path(layout.root)}, writes a new script."
    )


def _setup_lines(setup: str | os.PathLike[str] | None) -> bytes | None:
    """The content of the file of --setup; None where none is named. Raises UsageError."""
    if setup is None:
        return None
    try:
        return Path(at_home(setup)).read_bytes()
    except OSError as error:
        raise UsageError(f"--setup {setup}: {error.strerror}. Name a file of bash lines.") from None


def _split(sbatch: str) -> list[str]:
    try:
        return shlex.split(sbatch)
    except ValueError as error:
        raise UsageError(f"--sbatch {sbatch!r}: {error}. Quote it as for a shell.") from None


# What each element asks for.


def _gres(gres: str, no_gres: bool, gpus: int | None, whole_nodes: bool, options: Options) -> str:
    """What --gres of sbatch is to say, "" for nothing. Raises UsageError for two that exclude."""
    named = {
        "--gres": bool(gres),
        "--no-gres": no_gres,
        "--gpus-per-element": gpus is not None,
        "--whole-nodes": whole_nodes,
    }
    chosen = [name for name, is_named in named.items() if is_named]
    # What a whole node has may still have to be named.
    if len(chosen) > 1 and chosen != ["--gres", "--whole-nodes"]:
        raise UsageError(f"{' and '.join(chosen)} exclude each other. Say one of them.")
    if gpus is not None and gpus < 1:
        raise UsageError(
            f"--gpus-per-element {gpus} is not possible: it must be at least 1. --no-gres asks for "
            "no GPU."
        )
    if gres or no_gres or whole_nodes or options.devices == "cpu":
        return gres
    return f"gpu:{gpus or 1}"


def _asks_for_gpus(sbatch: str) -> bool:
    """Whether further options of sbatch's ask for GPUs in a way of their own, as --gpus does."""
    return any(word in sbatch for word in ("gpu", "gres", "tres", "-G"))


def _with_shape(wish: Wish, options: Options) -> tuple[Wish, int]:
    """The wish with its number of cores, and how many ranks each element is planned for.

    Raises UsageError where the options of devices do not add up.
    """
    gpus = gpus_in(wish.gres)
    shapes: list[NodeShape] = []
    if wish.whole_nodes or (gpus and wish.cpus is None):
        shapes = node_shapes(wish.partition)
    if wish.whole_nodes and not wish.gres and options.devices != "cpu":
        gpus = max((shape.gpus for shape in shapes), default=USUAL_GPUS)
    pool = Pool([str(number) for number in range(gpus)], f"{gpus} for each element")
    ranks = len(share_out(pool, options.ranks, options.ranks_per_gpu, options.gpus_per_rank))
    cpus = wish.cpus
    if cpus is None and not wish.whole_nodes:
        cpus = fair_cpus(shapes, gpus) if gpus else ranks
    return msgspec.structs.replace(wish, cpus=cpus), ranks


def _tell_of_time(wish: Wish) -> None:
    """Say that elements with a time limit are not started again, where nobody asked for that."""
    if wish.time and not wish.requeue:
        say(
            f"each element drains shortly before its time ({wish.time}) is over, and is not "
            "started again then: --requeue N has Slurm do that, up to N times"
        )


def _warn_of_imports(elements: int) -> None:
    """Warn of an interpreter that many elements read over the network at once."""
    found = place_on_network()
    if found is not None and elements > MANY_ELEMENTS:
        place, kind = found
        warn(
            f"{place} lies on {kind}, and {elements} elements that start at once read thousands of "
            "small files of it each. An image, or a copy on the disks of the nodes, starts faster"
        )


def _warn_of_pending(layout: Layout) -> None:
    """Warn of elements of a run that --fresh renames: they join whatever is at its path then."""
    try:
        name = job_name(load_run(layout).id)
    except GpuspoolError:
        # Whoever begins anew may do so since the old spool cannot be read.
        return
    alive = alive_arrays(name)
    if alive and not isinstance(alive, str):
        warn(
            f"{count_of(len(alive), 'element')} of the run before, pending or running, will join "
            f"the new one; `scancel --me -n {name}` ends them"
        )


def _python() -> str:
    """The interpreter that has gpuspool."""
    return os.path.abspath(sys.executable)


# The last step.


def _is_finished(view: View) -> bool:
    return view.ledger.n_finished >= view.ledger.tasks


def _alive_or_refuse(view: View) -> list[str]:
    """Of each element of this run that is pending or running the id of its array.

    Raises UsageError where Slurm does not tell: nobody knows then what is missing.
    """
    alive = alive_arrays(job_name(view.run.id))
    if isinstance(alive, str):
        numbers = _script_numbers(view.layout)
        hint = ""
        if numbers:
            script = view.layout.slurm_script(numbers[-1])
            hint = f" `sbatch {quoted_path(script)}` submits all: elements too many only add ranks."
        raise UsageError(
            "nobody knows which elements of this run are pending or running, so none was "
            f"submitted: {alive}\nTry again once squeue answers.{hint}"
        )
    return alive


def _script_numbers(layout: Layout) -> list[int]:
    """The numbers of the batch scripts in a spool, in order."""
    numbers = map(parse_slurm_script, listdir(layout.slurm))
    return sorted(number for number in numbers if number is not None)


def _publish_script(layout: Layout, text: bytes) -> Path:
    """Publish a batch script by link(2), under the next free number; returns its path."""
    make_subfolder(layout.slurm)
    number = max(_script_numbers(layout), default=0) + 1
    while not publish(layout.slurm_script(number), text):
        number += 1
    return layout.slurm_script(number)


def _submit(
    view: View,
    script: Path,
    elements: int,
    at_once: int | None,
    alive: list[str],
    *,
    is_new: bool = False,
) -> Submission:
    """Submit so many elements of a script as are missing. Raises UsageError where Slurm refuses.

    alive: those that Slurm has. is_new: the script was written for this.
    """
    missing = elements - len(alive)
    if at_once is not None:
        at_once = max(1, at_once - len(alive))
    arrays = split_arrays(missing, at_once, largest_array())
    name = job_name(view.run.id)
    done = submit_arrays(script, name, arrays, alive)
    for text in done.said:
        say(f"sbatch: {text}")
    root = view.layout.root
    if done.refusal:
        raise UsageError(_refused(script, done, is_new))
    jobs = done.jobs
    what, those_there = "element", ""
    if alive:
        what = "more element"
        those_there = f" ({len(alive)} of the {elements} are pending or running)"
    draining = _about_draining(view, alive)
    if draining:
        those_there += f"; {draining}"
    message = (
        f"submitted {count_of(missing, what)} as Slurm job {', '.join(jobs)}, by "
        f"{short_path(script)}{those_there}.\n{to_type('status', root)} tells how the run stands, "
        f"`squeue --me -n {name}` what Slurm has of it, {to_type('resume', root, '--slurm')} "
        "submits what was lost."
    )
    return Submission(root, script, jobs, missing, message)


def _refused(script: Path, done: Submitted, is_new: bool) -> str:
    """That Slurm refused a script, and how to go on.

    A new one of which nothing was submitted is removed: what is submitted again later, by the
    newest script, is not to be refused for ever.
    """
    what = f"Slurm did not take {script}: {done.refusal}\n"
    if is_new and not done.jobs:
        remove_quietly(script)
        return (
            f"{what}So the script is removed again; --dry-run shows it. Give the command again, "
            "with other options, or later."
        )
    again = to_type("resume", script.parent.parent, "--slurm")
    later = (
        "If an option is wrong, submit again with the right one. If the trouble was Slurm's, "
        f"{again} submits the same script again later."
    )
    return f"{what}{later}{before_that(done.jobs)}"


def _enough(view: View, alive: list[str]) -> Submission:
    root = view.layout.root
    elements = count_of(len(alive), "element")
    message = f"nothing submitted: {elements} of {root} are pending or running"
    draining = _about_draining(view, alive)
    if draining:
        message += f"; {draining}"
    return Submission(root, None, [], 0, message)


def _about_draining(view: View, alive: list[str]) -> str:
    """How many elements that Slurm has are about to end since a drain was ordered, and what to do.

    "" where none is. Slurm does not know of that: to it they run. alive: the ids of their arrays.
    """
    parents = Parents(view.layout).refresh()
    ordered = read_control(view.layout).drain
    jobs: set[str] = set()
    for epoch in parents.maybe_alive():
        parent = parents.known[epoch]
        if epoch <= ordered and parent is not None and parent.scheduler is not None:
            jobs.add(parent.scheduler.job)
    # The id of an element begins with that of its array.
    n_draining = sum(job.partition("_")[0] in alive for job in jobs)
    if not n_draining:
        return ""
    them = "1 of them drains" if n_draining == 1 else f"{n_draining} of them drain"
    again = to_type("resume", view.layout.root, "--slurm")
    return (
        f"{them}, by an order from before, and will end without being started again. Once "
        f"{to_type('status', view.layout.root)} shows that, {again} submits what is missing then"
    )


def _nothing_left(view: View) -> Submission:
    root = view.layout.root
    message = f"nothing submitted: every task of {root} has a verdict"
    if view.ledger.n_failed:
        message += f", and {view.ledger.n_failed} failed ({to_type('failed', root)})"
    return Submission(root, None, [], 0, message)


def _preview(
    layout: Layout,
    request: Request,
    trust: Trust,
    wish: Wish,
    ranks: int,
    *,
    fresh: bool,
    overwrite: bool,
    keep_done: bool,
    add: bool,
) -> Submission:
    """What would be submitted, with the script. Writes nothing, and raises what `submit` would."""
    planned = count_of(wish.elements * ranks, "rank")
    if fresh or not is_made(layout):
        refuse_to_make(layout, request, trust, fresh=fresh, overwrite=overwrite)
        run_id = NO_ID
        tasks = count_of(len(request.tasks), "task")
        text = f"would make {layout.root} for {tasks} on {planned}, and submit"
    else:
        view = open_view(layout.root, reads_claims=False)
        refuse_unsafe(layout, trust, view.owners)
        refuse_another_request(view, request, keep_done, add)
        run_id = view.run.id
        text = f"would submit what Slurm does not have of {layout.root}:"
    script = batch_script(wish, run_id, layout, _python())
    return Submission(layout.root, None, [], 0, f"{text}\n{os.fsdecode(script).rstrip()}")
