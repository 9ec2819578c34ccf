"""Starting and going on with runs: what both the command line and Python call.

`run` is idempotent: no spool, it makes one; the same run, it goes on; a changed job, it stops and
shows two ways on; anything else that differs, it refuses.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from gpuspool.orchestrator.plan import create as c
from gpuspool.orchestrator.plan.devices import assign
from gpuspool.orchestrator.plan.inputs import collect, from_values
from gpuspool.orchestrator.plan.jobs import parse_job, with_source
from gpuspool.orchestrator.plan.slots import Slot, make_slots
from gpuspool.orchestrator.report.results import Result, Results
from gpuspool.orchestrator.report.status import status as _status
from gpuspool.orchestrator.supervise.doctor import warnings_of
from gpuspool.orchestrator.supervise.drain import signals_to
from gpuspool.orchestrator.supervise.finish import Outcome, file_away_old_failures
from gpuspool.orchestrator.supervise.lock import hold, renounce
from gpuspool.orchestrator.supervise.loop import Orchestrator
from gpuspool.orchestrator.supervise.repair import make_way, repair, repair_job
from gpuspool.orchestrator.text.progress import make_progress, warn
from gpuspool.spool.codec import refuse_depth
from gpuspool.spool.errors import OrchestratorLive, UsageError
from gpuspool.spool.layout import Layout
from gpuspool.spool.liveness import FailureDetector
from gpuspool.spool.manifest import publish_manifest
from gpuspool.spool.publish import publish
from gpuspool.spool.records import Job, Options, TaskLine
from gpuspool.spool.states import Life
from gpuspool.spool.view import View, load_run, open_view, refuse_unsafe


@dataclasses.dataclass(frozen=True)
class Report:
    """How a run ended. exit_code as the command line's; counts: total, complete, failed; message:
    one line.
    """

    spool: Path
    exit_code: int
    counts: dict[str, int]
    message: str

    @property
    def ok(self) -> bool:
        """Whether every task is complete."""
        return self.exit_code == 0

    def __repr__(self) -> str:
        """A small table, for prompts and notebooks."""
        rows = {"spool": self.spool, "exit code": self.exit_code, **self.counts}
        return "\n".join(f"{name:10}{value}" for name, value in rows.items()) + f"\n{self.message}"

    def results(self) -> Iterator[Result]:
        """One `Result` for each task, in input order, read lazily from the journals."""
        return iter(Results(open_view(self.spool)))


def run(
    job: Any = None,
    inputs: Iterable[str | os.PathLike[str]] | None = None,
    *,
    items: Iterable[Any] | None = None,
    command: list[str] | None = None,
    files_from: str | None = None,
    lines: str | None = None,
    tasks: str | None = None,
    spool: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    args: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    keep_done: bool = False,
    fresh: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
    **options: Any,
) -> Report:
    """Run a job over inputs, or go on with the run that the spool holds.

    job: "file.py:Name", "module:Name", or a class or function of a module or of the script being
    run. inputs: paths and globs; items: JSON values. options: the fields of
    `gpuspool.spool.records.Options` (ranks, devices, retries, …; durations in seconds, `…_s`).
    Failed tasks raise nothing: look at the report. Raises GpuspoolError.
    """
    record, source = parse_job(job, command)
    if items is not None:
        collected = from_values(items)
    else:
        collected = collect([os.fspath(path) for path in inputs or ()], files_from, lines, tasks)
    name = os.path.splitext(record.name)[0] if record.kind == "command" else record.name
    layout = Layout(spool or f"spool-{name}")
    given = {name: value for name, value in options.items() if value is not None}
    request = c.Request(
        job=record,
        source=source,
        args=_plain(args or {}),
        inputs=collected,
        options=_options(Options(), given),
        out=None if out is None else os.path.abspath(out),
        argv=sys.argv,
    )
    slots = _slots(request.options)
    is_new = fresh or not _is_made(layout)
    if dry_run:
        return _describe(layout, request, slots, is_new)
    written = None
    if request.out is not None and is_new:
        c.check_out(Path(request.out), overwrite, request.inputs)
    if fresh and layout.root.exists():
        _set_aside(layout)
    if is_new:
        if request.out is not None:
            c.clear_out(Path(request.out))
        for path in c.half_made(layout):
            warn(f"{path} was left half made; it is not used, delete it")
        written = c.create(layout, request, len(slots))
    view = open_view(layout.root, written=written)
    refuse_unsafe(layout)
    if written is None:
        _check_same(view, request, keep_done)
    del collected, request, written  # a million tasks need not wait for the end of their run
    return _orchestrate(view, record, source, given, quiet)


def _plain(args: Mapping[str, Any]) -> dict[str, Any]:
    args = dict(args)
    try:
        refuse_depth(msgspec.json.encode(args))
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"args cannot be passed to the job: {error}. Use JSON values.") from None
    return args


def resume(
    spool: str | os.PathLike[str],
    *,
    keep_done: bool = False,
    quiet: bool = False,
    retry: bool = False,
    **options: Any,
) -> Report:
    """Go on with a spool wherever it stopped; with `retry`, failed tasks get another round. Raises
    GpuspoolError.
    """
    view = open_view(os.fspath(spool))
    refuse_unsafe(view.layout)
    old = view.latest_job()
    if old.kind == "call":
        raise UsageError(
            f"{view.layout.root} was made by spawn_workers. Call that again: it makes a spool of its own."
        )
    job, source = old, None
    if old.kind != "command" and Path(old.file).exists():
        job, source = with_source(old, Path(old.file))
        _refuse_change(c.job_difference(view, job, source), keep_done, view.layout)
    given = {name: value for name, value in options.items() if value is not None}
    return _orchestrate(view, job, source, given, quiet, retry)


def status(spool: str | os.PathLike[str]) -> dict[str, Any]:
    """How a run stands, as `gpuspool status --json` prints it. Raises GpuspoolError."""
    return _status(open_view(os.fspath(spool)))


def _is_made(layout: Layout) -> bool:
    return layout.run.exists() or layout.run_copy.exists()


def _options(base: Options, given: Mapping[str, Any]) -> Options:
    unknown = given.keys() - set(Options.__struct_fields__)
    if unknown:
        raise UsageError(
            f"unknown option {min(unknown)}. There are: {', '.join(Options.__struct_fields__)}."
        )
    endless = [
        name
        for name, value in given.items()
        if isinstance(value, float) and not math.isfinite(value)
    ]
    if endless:
        raise UsageError(f"{endless[0]}={given[endless[0]]} cannot be taken; it must be finite.")
    try:
        return msgspec.convert({**msgspec.structs.asdict(base), **given}, Options)
    except msgspec.ValidationError as error:
        raise UsageError(f"an option cannot be taken: {error}") from None


def _slots(options: Options) -> list[Slot]:
    return make_slots(
        assign(options.devices, options.ranks, options.ranks_per_gpu, options.gpus_per_rank)
    )


def _describe(layout: Layout, request: c.Request, slots: list[Slot], is_new: bool) -> Report:
    """--dry-run: what would be done; nothing is written."""
    costs = request.inputs.costs
    verb = "make" if is_new else "go on, if nothing but the job differs, with"
    text = f"would {verb} {layout.root} for {len(costs)} tasks on {len(slots)} ranks"
    for rank, planned in enumerate(c.plan(costs, len(slots))):
        cost = sum(costs[index] for index in planned)
        text += f"\nrank {rank} on {slots[rank].device_name}: {len(planned)} tasks of cost {cost:g}"
    return Report(layout.root, 0, {"total": len(costs), "complete": 0, "failed": 0}, text)


def _set_aside(layout: Layout) -> None:
    """--fresh, unless something of the old run still lives: it would go on writing into the new spool."""
    if not layout.format.exists():
        raise UsageError(
            f"{layout.root} is not a spool; it is not renamed. Choose another --spool."
        )
    with hold(layout):
        alive: list[str] = []
        if _is_made(layout):
            view = open_view(layout.root)
            detector = FailureDetector(view)
            alive = [
                attempt for attempt in view.open_attempts if detector.life(attempt) is not Life.DEAD
            ]
        if alive:
            raise OrchestratorLive(
                f"{layout.root}: {', '.join(alive)} may still be running. "
                "Stop them first with `gpuspool drain`, or choose another --spool."
            )
        c.set_aside(layout)


def _check_same(view: View, request: c.Request, keep_done: bool) -> None:
    layout, other = view.layout, c.other_differences(view, request)
    if other:
        raise UsageError(
            f"{layout.root} holds another run:\n  " + "\n  ".join(other) + "\n"
            "Use the same inputs and options to go on with it, --fresh to start anew (the old spool is renamed), or "
            "another --spool."
        )
    _refuse_change(c.job_difference(view, request.job, request.source), keep_done, layout)
    if request.inputs.newest_mtime > view.run.created_at:
        warn("an input changed since the run began (same size); done tasks stay")


def _refuse_change(difference: list[str], keep_done: bool, layout: Layout) -> None:
    if difference and not keep_done:
        raise UsageError(
            f"the job changed since {layout.root} was made:\n" + "\n".join(difference) + "\n"
            "--keep-done goes on: finished tasks stay, the rest use the new code. "
            "--fresh starts anew; the old spool is renamed."
        )


def _accept(view: View, job: Job, source: bytes | None) -> Job:
    """The job as it is to run: the copy that is there, or (--keep-done) one more under a name of
    its own.
    """
    layout, old = view.layout, view.latest_job()
    if job.kind == "command" or source is None or job.sha256 == old.sha256:
        job = msgspec.structs.replace(
            job, copy=old.copy
        )  # what it imports lies beside it where it is now
        repair_job(layout, job, source)
        return job
    stem, suffix = os.path.splitext(job.copy)
    job = msgspec.structs.replace(job, copy=f"{stem}.{job.sha256[:8]}{suffix}")
    publish(layout.job_copy(job.copy), source)
    return job


def _orchestrate(
    view: View,
    job: Job,
    source: bytes | None,
    given: Mapping[str, Any],
    quiet: bool,
    retry: bool = False,
) -> Report:
    layout, received = view.layout, list[int]()
    make_way(layout.lock)
    with hold(layout) as warning, signals_to(received):
        run = load_run(layout)
        if run.id != view.run.id:
            raise OrchestratorLive(
                f"{layout.root} was replaced by another run just now. Look, and start again."
            )
        repair(layout, run)
        job = _accept(view.refresh(), job, source)
        options = _options(
            msgspec.structs.replace(view.run.options, time_limit_s=None), given
        )  # of one epoch
        c.mark_out(view.run)
        progress = make_progress(view.run.tasks, view.run.cost or view.run.tasks, quiet)
        try:
            for text in (warning, *warnings_of(layout.root)):
                if text:
                    progress.say(f"warning: {text}")
            if retry:
                progress.say(f"{_publish_retry(view)} failed tasks get another round")
            outcome: Outcome = Orchestrator(
                view, _slots(options), job, options, progress, received
            ).run()
        finally:
            progress.close()
            with contextlib.suppress(OSError):
                renounce(layout)
    ledger = view.ledger
    counts = {"total": ledger.tasks, "complete": ledger.n_complete, "failed": ledger.n_failed}
    return Report(layout.root, outcome.exit_code, counts, outcome.message)


def _publish_retry(view: View) -> int:
    """Give every failed task its next round: the commit instant is the link of the retry manifest."""
    failed = set(view.ledger.failed())
    newest: dict[int, TaskLine] = {}
    for manifest in view.manifests.values():
        newest.update({task.task: task for task in manifest.tasks() if task.task in failed})
    if not newest:
        return 0
    tasks = []
    for index in sorted(newest):
        last = max(view.ledger.round_of(index), view.ledger.failed_round.get(index, 0))
        tasks.append(
            msgspec.structs.replace(
                newest[index], round=last + 1, crashes=0, kills=0, crashed_in=(), careful=False
            )
        )
    publish_manifest(view.layout, view.next_numbered("retry"), tasks)
    file_away_old_failures(view.refresh())
    return len(tasks)
