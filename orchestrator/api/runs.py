"""Starting a run, going on with it, joining it, adding to it and stopping it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from gpuspool.orchestrator.api.epoch import Again, supervise
from gpuspool.orchestrator.api.opening import KEEP_DONE, is_made, open_or_create, refuse_changed_job
from gpuspool.orchestrator.api.preview import preview
from gpuspool.orchestrator.api.report import Report
from gpuspool.orchestrator.api.whereabouts import out_now
from gpuspool.orchestrator.plan.adding import add_tasks
from gpuspool.orchestrator.plan.encoding import refuse_other_encoding
from gpuspool.orchestrator.plan.inputs import TaskList, collect
from gpuspool.orchestrator.plan.jobs import (
    TO_A_SHELL,
    parse_job,
    refuse_swapped,
    shell_words,
    with_source,
)
from gpuspool.orchestrator.plan.locate import at_home, default_spool, find_spool, refuse_no_spool
from gpuspool.orchestrator.plan.matching import root_chooser
from gpuspool.orchestrator.plan.options import RunOptions, StartOptions, shows_options, without_none
from gpuspool.orchestrator.plan.request import Request, make_request
from gpuspool.orchestrator.slurm.allocation import refuse_misplaced, refuse_to_begin_again
from gpuspool.orchestrator.supervise.drain import ASKED, order_drain
from gpuspool.orchestrator.text.progress import say, warn
from gpuspool.orchestrator.text.words import count_of, to_type
from gpuspool.spool.errors import UsageError
from gpuspool.spool.layout import Layout
from gpuspool.spool.parents import may_any_parent_live
from gpuspool.spool.states import JobKind
from gpuspool.spool.trust import refuse_unsafe, trust_in
from gpuspool.spool.view import View, load_view, open_view


@shows_options(RunOptions)
def run(
    job: Any = None,
    inputs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | None = None,
    *,
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
    out_moved_to: str | os.PathLike[str] | None = None,
    args: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    keep_done: bool = False,
    add: bool = False,
    key_root: str | os.PathLike[str] | None = None,
    fresh: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
    requeue: int = 0,
    trust_owner: str | Iterable[str] = (),
    **options: Unpack[RunOptions],
) -> Report:
    """Run a job over inputs, or go on with this run where it stopped. Returns when it has ended.

    Failed tasks raise nothing: look at the report. Raises GpuspoolError where the run cannot be
    started, and OSError where the spool cannot be read or written for some seconds.

    job: "file.py:Name", "module:Name", or a class or function of a module or of the script being
        run; command: a list of words instead, with placeholders as on the command line.
    capture: what the command prints on stdout is its task's result.
    inputs: paths and globs; or items: JSON values; or files_from: a file of paths, one a line; or
        lines: a file of which each line is a payload; or tasks: a file of JSON values; or csv: a
        table with a header, of which each row is a payload.
    key_field: the column, or the field of each object, that holds the task's key.
    null: the paths in `files_from` end with zero bytes instead of newlines.
    spool: the spool's folder. Default: ./spool-<name of the job, or of a command's script>.
    out: the folder for outputs. Default: `outputs` in the spool.
    out_moved_to: the folder for outputs was moved: where it is now. It is recorded in the spool.
    args: what the job finds in `ctx.args`, JSON values by name.
    overwrite: move what is in `out` aside instead of refusing it.
    keep_done: the job, or an input, changed: finished tasks stay, the rest use what is there now.
    add: what is named and the run does not have becomes new tasks of it.
    key_root: the folder that the keys of input files are relative to. Default: the one that the run
        remembers, else the lowest that holds all inputs.
    fresh: start anew; a spool that is there is renamed, never deleted.
    dry_run: say in the report's message what would be done, or raise what would be raised, and do
        nothing.
    quiet: show no progress on stderr.
    requeue: in a batch job of Slurm's: if tasks are left when the time limit is reached or SIGUSR2
        comes, have Slurm start the job again, up to so many times. Then this does not return.
    trust_owner: a user, or several, by name or number: go on with a spool although it, or some of
        what decides about code in it, is theirs.
    """
    refuse_misplaced()
    refuse_requeue(requeue, fresh)
    trust = trust_in(trust_owner)
    given = without_none(options)
    layout, request, _ = asked_for(
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
    if fresh and is_made(layout):
        refuse_to_begin_again(layout.root, os.environ)
    if dry_run:
        return preview(
            layout,
            request,
            given,
            trust,
            fresh=fresh,
            overwrite=overwrite,
            keep_done=keep_done,
            add=add,
            out_moved_to=out_moved_to,
        )
    view, matching = open_or_create(
        layout, request, trust, fresh=fresh, overwrite=overwrite, keep_done=keep_done, add=add
    )
    if add and matching is not None:
        n_added = add_tasks(view, request.tasks, matching)
        say(f"{count_of(n_added, 'task')} added to {layout.root}")
    out_moved_to = out_now(view, request.out, out_moved_to)
    inputs_root = request.tasks.root
    record, source = request.job, request.source
    # The list of a million tasks is large, and nobody needs it while the run goes on.
    del request, matching
    return supervise(
        view,
        record,
        source,
        given,
        trust,
        command="run",
        quiet=quiet,
        out_moved_to=out_moved_to,
        inputs_root=inputs_root,
        requeue=requeue,
        brings_code=keep_done,
    )


def asked_for(
    job: Any,
    command: Sequence[str] | None,
    capture: bool,
    *,
    inputs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | None,
    spool: str | os.PathLike[str] | None,
    fresh: bool,
    add: bool,
    key_root: str | os.PathLike[str] | None,
    args: Mapping[str, Any] | None,
    out: str | os.PathLike[str] | None,
    options: Mapping[str, Any],
    **sources: Any,
) -> tuple[Layout, Request, View | None]:
    """What a command asks for, in which spool, and a view of that spool if it is there.

    Whoever uses the view refreshes it first: no more than the run record is sure to be read.

    options: those that were given, without None. sources: further ways to name inputs, as `collect`
    takes them; all else as `run` takes it. Writes nothing. Raises UsageError.
    """
    refuse_other_encoding()
    # Before the inputs, which may come from a pipe that is still being written, or take a while to
    # list: a job that cannot be run is refused at once.
    refuse_swapped(job, inputs)
    record, source = parse_job(job, command, capture)
    for word in shell_words(record.command):
        warn(
            f"the command has the word {word!r}, and no shell is involved: the program gets it as "
            f"an argument. If a shell is meant, write {TO_A_SHELL}"
        )
    layout = Layout(Path(at_home(spool)) if spool else default_spool(record))
    # Mostly the run record tells where files lie, and whoever goes on reads all else anyway.
    known = None if fresh or not is_made(layout) else load_view(layout.root, reads_claims=False)
    found = _collect(known, key_root, adds=add, paths=inputs or (), **sources)
    request = make_request(record, source, found, args=args, out=out, options=options)
    return layout, request, known


def refuse_requeue(requeue: int, fresh: bool = False) -> None:
    """Raise UsageError for a count of restarts that is none, or that would begin anew each time."""
    if requeue < 0:
        raise UsageError(f"--requeue {requeue} is not possible: it must be a number, at least 0.")
    if requeue and fresh:
        raise UsageError(
            "--fresh and --requeue exclude each other: each restart of the job would begin anew. "
            "Leave --fresh out; if there is an old spool, rename it first or name another --spool."
        )


@shows_options(StartOptions)
def resume(
    spool: str | os.PathLike[str] | None = None,
    *,
    out_moved_to: str | os.PathLike[str] | None = None,
    keep_done: bool = False,
    quiet: bool = False,
    retry: bool = False,
    requeue: int = 0,
    trust_owner: str | Iterable[str] = (),
    **options: Unpack[StartOptions],
) -> Report:
    """Go on with a run wherever it stopped. Returns when it has ended.

    The options that are given hold for this start; all others are those that the run was made with.
    Raises GpuspoolError where the run cannot be started, and OSError where the spool cannot be read
    or written for some seconds.

    spool: the spool's folder. Default: the only ./spool-* there is.
    out_moved_to: the folder for outputs was moved: where it is now. It is recorded in the spool.
    keep_done: the job changed: finished tasks stay, the rest use the new code.
    quiet: show no progress on stderr.
    retry: give every failed task another round, as `gpuspool.retry` does.
    requeue: have Slurm start this job again when its time is up, as for `run`. Not with `retry`,
        which each restart would repeat.
    trust_owner: users whose spool is accepted, as for `run`.
    """
    if retry and requeue:
        raise UsageError(
            "retry and requeue exclude each other: each restart of the job would give failed tasks "
            "another round. Retry first, without requeue."
        )
    again = Again() if retry else None
    return _go_on(
        "retry" if retry else "resume",
        spool,
        again,
        out_moved_to,
        keep_done,
        quiet,
        trust_owner,
        options,
        requeue=requeue,
    )


def join(
    spool: str | os.PathLike[str] | None = None,
    *,
    ranks: int | None = None,
    devices: str | None = None,
    time_limit_s: float | None = None,
    leave_when_idle_s: float | None = None,
    grace_s: float | None = None,
    requeue: int = 0,
    quiet: bool = False,
    trust_owner: str | Iterable[str] = (),
) -> Report:
    """Work on a run along with whoever else does, on devices of this host, until it has ended.

    As `resume`, but of the job only the spool's copy counts: its file may have changed since, or be
    out of reach. Array jobs consist of calls of this. Raises what `resume` raises.

    spool: the spool's folder. Default: the only ./spool-* there is.
    ranks, devices, time_limit_s, leave_when_idle_s, grace_s: of this start alone, as for `resume`.
    requeue: have Slurm start this job again when its time is up, as for `run`.
    quiet: show no progress on stderr.
    trust_owner: users whose spool is accepted, as for `run`.
    """
    own = {
        "ranks": ranks,
        "devices": devices,
        "time_limit_s": time_limit_s,
        "leave_when_idle_s": leave_when_idle_s,
        "grace_s": grace_s,
    }
    return _go_on(
        "join",
        spool,
        None,
        None,
        False,
        quiet,
        trust_owner,
        own,
        requeue=requeue,
        reads_source=False,
    )


def _go_on(
    command: str,
    spool: str | os.PathLike[str] | None,
    again: Again | None,
    out_moved_to: str | os.PathLike[str] | None,
    keep_done: bool,
    quiet: bool,
    trust_owner: str | Iterable[str],
    options: Mapping[str, Any],
    *,
    requeue: int = 0,
    reads_source: bool = True,
) -> Report:
    """Start the run of a spool that is there.

    command: the verb that was typed. again: which tasks get another round. reads_source: the job's
    file is looked at, and refused if it changed; else the spool's copy of it is what runs.
    """
    refuse_other_encoding()
    refuse_misplaced()
    refuse_requeue(requeue)
    trust = trust_in(trust_owner)
    view = open_view(find_spool(spool))
    layout = view.layout
    refuse_unsafe(layout, trust, view.owners)
    job = view.latest_job()
    refuse_seed_api(view)
    source: bytes | None = None
    ways_on = KEEP_DONE
    if not reads_source:
        ways_on = f"{to_type('resume', layout.root, '--keep-done')} goes on."
    if reads_source and job.kind is not JobKind.COMMAND and Path(job.file).exists():
        job, source = with_source(job, Path(job.file))
    refuse_changed_job(view, job, source, keep_done, ways_on)
    return supervise(
        view,
        job,
        source,
        without_none(options),
        trust,
        command=command,
        quiet=quiet,
        out_moved_to=out_moved_to,
        again=again,
        requeue=requeue,
        brings_code=keep_done,
    )


@shows_options(StartOptions)
def retry(
    spool: str | os.PathLike[str] | None = None,
    *,
    out_moved_to: str | os.PathLike[str] | None = None,
    keep_done: bool = False,
    quiet: bool = False,
    trust_owner: str | Iterable[str] = (),
    **options: Unpack[StartOptions],
) -> Report:
    """Give every failed task another round, and go on with the run. Returns when it has ended.

    A task gets all its tries and second opinions anew. The errors of the earlier round are kept in
    the spool, in `failed-tasks/round-0`. Raises what `resume` raises.

    spool: the spool's folder. Default: the only ./spool-* there is.
    out_moved_to: the folder for outputs was moved: where it is now. It is recorded in the spool.
    keep_done: the job changed: finished tasks stay, the rest use the new code.
    quiet: show no progress on stderr.
    trust_owner: users whose spool is accepted, as for `run`.
    """
    return resume(
        spool,
        out_moved_to=out_moved_to,
        keep_done=keep_done,
        quiet=quiet,
        retry=True,
        trust_owner=trust_owner,
        **options,
    )


@shows_options(StartOptions)
def redo(
    spool: str | os.PathLike[str] | None = None,
    keys: Iterable[str] = (),
    *,
    missing_outputs: bool = False,
    out_moved_to: str | os.PathLike[str] | None = None,
    keep_done: bool = False,
    quiet: bool = False,
    trust_owner: str | Iterable[str] = (),
    **options: Unpack[StartOptions],
) -> Report:
    """Do finished tasks again, and go on with the run. Returns when it has ended.

    What they came to before does not count any more, and their outputs replace those that are
    there. Raises what `resume` raises, and UsageError for a word that means no task.

    spool: the spool's folder. Default: the only ./spool-* there is.
    keys: which tasks: their keys, patterns of these with `*`, `?` and `[…]`, `#INDEX`, or the paths
        of their inputs.
    missing_outputs: also those whose outputs are not there, or not as they were published.
    out_moved_to: the folder for outputs was moved: where it is now. It is recorded in the spool.
    keep_done: the job changed: finished tasks stay, the rest use the new code.
    quiet: show no progress on stderr.
    trust_owner: users whose spool is accepted, as for `run`.
    """
    if isinstance(keys, str):
        raise UsageError(f"keys={keys!r} is one text. Give a list of keys: [{keys!r}].")
    words = list(keys)
    for word in words:
        if not isinstance(word, str):
            raise UsageError(
                f"keys: {word!r:.80} is no text. A key is a task's name: {str(word)!r}."
            )
    if not missing_outputs:
        refuse_no_spool("redo", spool, words)
    # This imports the readers of results, which no other start needs.
    from gpuspool.orchestrator.api.redoing import selection

    again = Again(selection(words, missing_outputs), missing_outputs)
    return _go_on("redo", spool, again, out_moved_to, keep_done, quiet, trust_owner, options)


def add(
    spool: str | os.PathLike[str] | None = None,
    inputs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | None = None,
    *,
    items: Iterable[Any] | None = None,
    files_from: str | os.PathLike[str] | None = None,
    lines: str | os.PathLike[str] | None = None,
    tasks: str | os.PathLike[str] | None = None,
    csv: str | os.PathLike[str] | None = None,
    key_field: str | None = None,
    null: bool = False,
    key_root: str | os.PathLike[str] | None = None,
    trust_owner: str | Iterable[str] = (),
) -> int:
    """Make inputs that a run does not have new tasks of it; returns how many these are.

    A live run does them along with the others, on whatever host it is; any other is to be resumed.
    What the run has already is left as it is. Raises UsageError for what cannot become a task, and
    for a key that the run has for another task, and SpoolError where the spool cannot be read.

    spool: the spool's folder. Default: the only ./spool-* there is.
    inputs: paths and globs; or items, files_from, lines, tasks or csv: as for `run`, and so are
        key_field and null.
    key_root: the folder that the keys of input files are relative to. Default: the one that the run
        remembers.
    trust_owner: users whose spool is accepted, as for `run`.
    """
    refuse_other_encoding()
    words = [inputs] if isinstance(inputs, (str, os.PathLike)) else inputs
    if words is None or isinstance(words, (list, tuple)):
        refuse_no_spool("add", spool, [os.fspath(word) for word in words or ()])
    trust = trust_in(trust_owner)
    view = open_view(find_spool(spool), reads_claims=False)
    refuse_unsafe(view.layout, trust, view.owners)
    refuse_seed_api(view)
    found = _collect(
        view,
        key_root,
        adds=True,
        paths=inputs or (),
        items=items,
        files_from=files_from,
        lines=lines,
        tasks=tasks,
        csv=csv,
        key_field=key_field,
        null=null,
    )
    return add_tasks(view, found)


def _collect(
    view: View | None, key_root: str | os.PathLike[str] | None, *, adds: bool, **sources: Any
) -> TaskList:
    """The tasks that were named; their keys are those that a run gives them, if there is one.

    adds: they may become tasks of that run. sources: as `collect` takes them.
    """
    found = collect(**sources, choose_root=root_chooser(view, key_root, adds=adds))
    if found.left_out:
        files = count_of(found.left_out, "file")
        warn(f"the globs match {files} in spools and folders of outputs, which are left out")
    return found


def refuse_seed_api(view: View) -> None:
    if view.run.job.kind is JobKind.CALL:
        raise UsageError(
            f"{view.layout.root} was made by spawn_workers. Call that again: it makes a spool of "
            "its own."
        )


def drain(
    spool: str | os.PathLike[str] | None = None, *, trust_owner: str | Iterable[str] = ()
) -> Path:
    """Ask a live run, on whatever host, to finish the tasks in hand and stop. It can be resumed.

    Returns the spool's folder, at once; `wait` returns when the run has stopped. Without a live run
    nothing happens: the next start is not drained. Raises UsageError where there is no spool, and
    SpoolError where it cannot be read.

    spool: the spool's folder. Default: the only ./spool-* there is.
    trust_owner: users whose spool is accepted, as for `run`.
    """
    trust = trust_in(trust_owner)
    view = open_view(find_spool(spool), reads_claims=False)
    layout = view.layout
    refuse_unsafe(layout, trust, view.owners)
    drained = -1
    while drained < (epoch := max(view.next_epoch() - 1, 0)):
        # A start that has not taken its epoch yet looks whether a drain is new. So where nobody
        # else is there, this drain gets a number of its own, even if the epoch before was drained.
        may_anybody_live = may_any_parent_live(layout)
        drained = epoch
        while not order_drain(layout, drained, ASKED) and not may_anybody_live:
            drained += 1
    return layout.root
