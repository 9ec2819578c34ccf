"""What a request asks differently from the run that a spool holds, told to people.

The same request again goes on with the run. For a changed job the user sees a diff and two ways to
go on; whatever else differs is listed, and refused. Called when a run is opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from gpuspool.orchestrator.plan.code import Change, changes
from gpuspool.orchestrator.plan.inputs import TaskList
from gpuspool.orchestrator.plan.locate import command_name
from gpuspool.orchestrator.plan.matching import Matching
from gpuspool.orchestrator.plan.request import Request
from gpuspool.spool.open_folder import read_mark
from gpuspool.spool.publish import read_bytes
from gpuspool.spool.records import Job, TaskLine
from gpuspool.spool.states import JobKind, Verdict
from gpuspool.spool.view import View

# An error message shows at most so many lines of a diff: what changed can be seen on one screen.
DIFF_LINES = 40

# Of tasks that differ, so many keys are shown.
SHOWN_KEYS = 3

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
        return [f"- {_typed(old)}", f"+ {_typed(job)}"]
    before = read_bytes(view.layout.job_copy(old.copy)) or b""
    lines = _diff(before, source, f"{old.copy} (as it ran)", f"{job.copy} (now)")
    n_more = len(lines) - DIFF_LINES
    if n_more <= 0:
        return lines
    return [*lines[:DIFF_LINES], f"… {n_more} more lines"]


def code_difference(view: View, job: Job) -> list[str]:
    """How the other files that the run's code consists of differ from what it last ran.

    As many lines as fit on a screen: of a text a diff, of any other file what is known of it. An
    empty list where nothing changed, or where no start has told what it ran.
    """
    lines: list[str] = []
    for change in changes(view, job):
        if not change.was_seen_by_run:
            lines += _tell_change(change)
    n_more = len(lines) - DIFF_LINES
    if n_more <= 0:
        return lines
    return [*lines[:DIFF_LINES], f"… {n_more} more lines"]


def _tell_change(change: Change) -> list[str]:
    before, now = change.before, change.now
    if before.text is None or now is None or now.text is None:
        what = "is gone" if now is None else "changed"
        return [f"{change.path} {what}"]
    return _diff(
        before.text.encode(), now.text.encode(), f"{before.name} (as it ran)", f"{now.name} (now)"
    )


def _typed(job: Job) -> str:
    """A job as it was typed, with the option that belongs to it."""
    return f"--capture -- {job.spec}" if job.capture else job.spec


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
    # The folder that the run was made with is right, the one that it was moved to, and one that
    # bears the run's mark.
    if now.out not in (was.out, view.run.out or "") and not is_out_of(view, now.out):
        out_before = view.run.out or OUT_INSIDE
        out_now = now.out or OUT_INSIDE
        found.append(f"--out: {out_before} before, {out_now} now")
    return found


def is_out_of(view: View, out: str) -> bool:
    """Whether a folder bears the mark of this run's outputs."""
    return bool(out) and read_mark(Path(out)) == view.run.id


def task_difference(view: View, matching: Matching, names: TaskList) -> str:
    """How the tasks of a request differ from the run's: counts and some keys; "" if they do not.

    What does not matter is no difference: finished tasks that are not named any more, and failed or
    unfinished files of another size.
    """
    verdict = view.ledger.verdict
    gone = [task for task in matching.gone if verdict(task) is None]
    changed = matching.changed
    if names.root:
        changed = [task for task in changed if verdict(task) is Verdict.COMPLETE]
    if not (matching.new or gone or changed):
        return ""
    text = f"{len(matching.new)} new, {len(gone)} gone, {len(changed)} changed"
    for what, keys in (
        ("new", _keys_of(names, matching.new)),
        ("gone", _keys_of(view.planned_tasks(), gone)),
        ("changed", _keys_of(view.planned_tasks(), changed)),
    ):
        if keys:
            text += f"\n  {what}: {', '.join(keys)}"
    return text


def _keys_of(tasks: Iterable[TaskLine], indices: list[int]) -> list[str]:
    """The keys of the first few of these tasks, and that there are more."""
    wanted = set(indices[:SHOWN_KEYS])
    keys = [task.key for task in tasks if task.task in wanted]
    return keys if len(indices) <= SHOWN_KEYS else [*keys, "…"]


def _name_difference(old: Job, job: Job) -> list[str]:
    """That another class, function or program is named, as one line; else nothing."""
    name_before, name_now = old.name, job.name
    if JobKind.COMMAND == job.kind == old.kind:
        name_before, name_now = command_name(old.command), command_name(job.command)
    if name_before == name_now and (old.kind is JobKind.COMMAND) == (job.kind is JobKind.COMMAND):
        return []
    return [f"job: {old.spec} before, {job.spec} now"]


# Two files may well have a class J each, and then their runs have one default spool. Such a file is
# another job, and not a changed one. But a file that was renamed, or moved along with the whole
# project, is the same job.
def is_from_another_file(view: View, job: Job) -> bool:
    """Whether a job of the same name, and with other code, is from another file than the run's."""
    old = view.latest_job()
    if old.sha256 == job.sha256 or JobKind.COMMAND in (old.kind, job.kind):
        return False
    if job.module and job.module == old.module:
        return False
    place_before = os.path.relpath(old.file, view.run.submit_dir)
    is_same_place = old.file == job.file or place_before == os.path.relpath(job.file)
    return not is_same_place and Path(old.file).exists()


def _arg_differences(view: View, request: Request) -> list[str]:
    found: list[str] = []
    names = view.run.args.keys() | request.args.keys()
    for name in sorted(names):
        before = view.run.args.get(name)
        now = request.args.get(name)
        if before != now:
            found.append(f"--arg {name}: {before!r} before, {now!r} now")
    return found
