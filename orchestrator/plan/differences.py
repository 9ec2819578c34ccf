"""What a request asks differently from the run that a spool holds, told to people.

The same request again goes on with the run. For a changed job the user sees a diff and two ways to
go on; whatever else differs is listed, and refused. Called when a run is opened.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from gpuspool.orchestrator.plan.inputs import TaskList
from gpuspool.orchestrator.plan.request import Request
from gpuspool.spool.layout import rank_name
from gpuspool.spool.publish import read_bytes
from gpuspool.spool.records import Job, TaskLine
from gpuspool.spool.states import JobKind
from gpuspool.spool.view import View

# An error message shows at most so many lines of a diff: what changed can be seen on one screen.
DIFF_LINES = 40

# Of a task that differs, at most so many characters of its payload are shown.
SHOWN_CHARS = 100

# How people are told of an output folder that the user did not name.
OUT_INSIDE = "SPOOL/outputs"


def job_difference(view: View, job: Job, source: bytes) -> list[str]:
    """The lines of a diff from the job that the spool last ran to this one.

    An empty list where nothing changed. A command has no source to compare, so the two command
    lines are shown.
    """
    old = view.latest_job()
    if old.sha256 == job.sha256:
        return []
    if JobKind.COMMAND in (job.kind, old.kind):
        return [f"- {old.spec}", f"+ {job.spec}"]
    before = read_bytes(view.layout.job_copy(old.copy)) or b""
    lines = _diff(before, source, f"{old.copy} (as it ran)", f"{job.copy} (now)")
    n_more = len(lines) - DIFF_LINES
    if n_more <= 0:
        return lines
    return [*lines[:DIFF_LINES], f"… {n_more} more lines"]


def _diff(before: bytes, now: bytes, name_before: str, name_now: str) -> list[str]:
    """The lines of a diff between two sources."""
    # Imported here because most runs change no job, and it costs every one of them some start-up.
    import difflib

    lines = difflib.unified_diff(
        before.decode(errors="replace").splitlines(),
        now.decode(errors="replace").splitlines(),
        name_before,
        name_now,
        lineterm="",
        n=1,
    )
    return list(lines)


def other_differences(view: View, request: Request) -> list[str]:
    """What else was asked differently, one line each; none if only the job may differ."""
    was = view.run.fingerprint
    now = request.fingerprint
    found = _name_difference(view.latest_job(), request.job)
    if was.args_sha256 != now.args_sha256:
        found += _arg_differences(view, request)
    if was.seed != now.seed:
        found.append(f"--seed: {was.seed} before, {now.seed} now")
    # Both the folder that the run was made with and the one that it was moved to are right.
    if now.out not in (was.out, view.run.out or ""):
        out_before = view.run.out or OUT_INSIDE
        out_now = now.out or OUT_INSIDE
        found.append(f"--out: {out_before} before, {out_now} now")
    if was.tasks_sha256 != now.tasks_sha256:
        found += _task_differences(view, request.tasks)
    return found


def _name_difference(old: Job, job: Job) -> list[str]:
    """That another class or function is named. For a command `job_difference` tells all."""
    if old.name == job.name or JobKind.COMMAND in (old.kind, job.kind):
        return []
    return [f"job: {old.spec} before, {job.spec} now"]


def _arg_differences(view: View, request: Request) -> list[str]:
    found: list[str] = []
    names = view.run.args.keys() | request.args.keys()
    for name in sorted(names):
        before = view.run.args.get(name)
        now = request.args.get(name)
        if before != now:
            found.append(f"--arg {name}: {before!r} before, {now!r} now")
    return found


def _task_differences(view: View, now: TaskList) -> list[str]:
    """How many tasks there are, and the first one that differs."""
    found: list[str] = []
    n_before = view.run.tasks
    n_now = len(now)
    if n_before != n_now:
        found.append(f"tasks: {n_before} before, {n_now} now")
    found += _first_task_difference(view, now)
    return found or ["the task list"]


def _first_task_difference(view: View, now: TaskList) -> list[str]:
    """Where a task that both have is not the same, the first such task; else nothing."""
    was = {task.task: task for task in _planned_tasks(view)}
    for task in now:
        old = was.get(task.task)
        if old is not None and old != task:
            return [_task_difference(old, task)]
    return []


def _task_difference(old: TaskLine, new: TaskLine) -> str:
    before: list[str] = []
    now: list[str] = []
    for name in ("key", "payload", "cost"):
        old_value = getattr(old, name)
        new_value = getattr(new, name)
        if old_value != new_value:
            before.append(f"{name} {_shown(old_value)}")
            now.append(f"{name} {_shown(new_value)}")
    task = f"task {new.task} ({new.key})"
    change = f"{', '.join(before)} before, {', '.join(now)} now"
    return f"{task}: {change} (the first that differs)"


def _shown(value: object) -> str:
    if isinstance(value, msgspec.Raw):
        text = bytes(value).decode()
        return text[:SHOWN_CHARS]
    return str(value)


def _planned_tasks(view: View) -> Iterator[TaskLine]:
    """The tasks as they were first given out; later manifests only repeat some of them."""
    for rank in range(view.run.manifests):
        manifest = view.manifests.get(rank_name(rank))
        if manifest is not None:
            yield from manifest.tasks()
