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
    # Imported here because most runs change no job, and it costs every one of them some start-up.
    import difflib

    before = read_bytes(view.layout.job_copy(old.copy)) or b""
    lines = list(
        difflib.unified_diff(
            before.decode(errors="replace").splitlines(),
            source.decode(errors="replace").splitlines(),
            f"{old.copy} (as it ran)",
            f"{job.copy} (now)",
            lineterm="",
            n=1,
        )
    )
    if len(lines) > DIFF_LINES:
        return [*lines[:DIFF_LINES], f"… {len(lines) - DIFF_LINES} more lines"]
    return lines


def other_differences(view: View, request: Request) -> list[str]:
    """What else was asked differently, one line each; none if only the job may differ."""
    was = view.run.fingerprint
    now = request.fingerprint
    found: list[str] = []
    old = view.latest_job()
    job = request.job
    if old.name != job.name and JobKind.COMMAND not in (old.kind, job.kind):
        found.append(f"job: {old.spec} before, {job.spec} now")
    if was.args_sha256 != now.args_sha256:
        found += _arg_differences(view, request)
    if was.seed != now.seed:
        found.append(f"--seed: {was.seed} before, {now.seed} now")
    if was.out != now.out:
        inside = "SPOOL/outputs"
        found.append(f"--out: {was.out or inside} before, {now.out or inside} now")
    if was.tasks_sha256 != now.tasks_sha256:
        found += _task_differences(view, request.tasks)
    return found


def _arg_differences(view: View, request: Request) -> list[str]:
    before = view.run.args
    now = request.args
    return [
        f"--arg {name}: {before.get(name)!r} before, {now.get(name)!r} now"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


def _task_differences(view: View, now: TaskList) -> list[str]:
    """How many tasks there are, and the first one that differs."""
    found: list[str] = []
    if view.run.tasks != len(now):
        found.append(f"tasks: {view.run.tasks} before, {len(now)} now")
    was = {task.task: task for task in _planned_tasks(view)}
    for task in now:
        old = was.get(task.task)
        if old is not None and old != task:
            return [*found, _task_difference(old, task)]
    return found or ["the task list"]


def _task_difference(old: TaskLine, new: TaskLine) -> str:
    fields = [
        name for name in ("key", "payload", "cost") if getattr(old, name) != getattr(new, name)
    ]
    before = ", ".join(f"{name} {_shown(getattr(old, name))}" for name in fields)
    after = ", ".join(f"{name} {_shown(getattr(new, name))}" for name in fields)
    return f"task {new.task} ({new.key}): {before} before, {after} now (the first that differs)"


def _shown(value: object) -> str:
    if isinstance(value, msgspec.Raw):
        return bytes(value).decode()[:SHOWN_CHARS]
    return str(value)


def _planned_tasks(view: View) -> Iterator[TaskLine]:
    """The tasks as they were first given out; later manifests only repeat some of them."""
    for rank in range(view.run.manifests):
        manifest = view.manifests.get(rank_name(rank))
        if manifest is not None:
            yield from manifest.tasks()
