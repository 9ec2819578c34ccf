"""What a request asks differently from the run that a spool holds, told to people.

The same request again goes on with the run. For a changed job the user sees a diff and two ways to
go on; whatever else differs is listed, and refused. Called when a run is opened.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gpuspool.orchestrator.plan.code import Change, changes
from gpuspool.orchestrator.plan.inputs import TaskList
from gpuspool.orchestrator.plan.locate import command_name
from gpuspool.orchestrator.plan.matching import Matching
from gpuspool.orchestrator.plan.request import Request
from gpuspool.orchestrator.text.words import to_type
from gpuspool.spool.open_folder import read_mark
from gpuspool.spool.publish import listdir, read_bytes
from gpuspool.spool.records import Job, TaskLine
from gpuspool.spool.states import JobKind, Verdict
from gpuspool.spool.view import View

# An error message shows at most so many lines of a diff: what changed can be seen on one screen.
DIFF_LINES = 40

# Of tasks that differ, so many keys are shown.
SHOWN_KEYS = 3
# What stands behind these if there are more.
ELLIPSIS = "…"

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
    return _on_a_screen(lines)


def keeps_nothing(view: View) -> bool:
    """Whether a run has nothing that came from its code: no complete task, and no part of one.

    A part is what a task saved in its scratch folder, to go on from there.
    """
    return view.ledger.n_complete == 0 and not listdir(view.layout.scratches)


def code_difference(view: View, job: Job) -> list[str]:
    """How the other files that the run's code consists of differ from what it last ran.

    As many lines as fit on a screen: of a text a diff, of any other file what is known of it. An
    empty list where nothing changed, or where no start has told what it ran.
    """
    lines: list[str] = []
    for change in changes(view, job):
        if not change.was_seen_by_run:
            lines += _tell_change(change)
    return _on_a_screen(lines)


def _on_a_screen(lines: list[str]) -> list[str]:
    """The first lines of a difference, and how many more there are."""
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


def what_matters(view: View, matching: Matching, names: TaskList) -> Matching:
    """How the tasks of a request differ from the run's, without what does not matter.

    That is finished tasks that are not named any more, and failed or unfinished files of another
    size.
    """
    verdict = view.ledger.verdict
    gone = [task for task in matching.gone if verdict(task) is None]
    changed = matching.changed
    if names.root:
        changed = [task for task in changed if verdict(task) is Verdict.COMPLETE]
    return Matching(matching.new, gone, changed)


def task_difference(view: View, differing: Matching, names: TaskList) -> str:
    """How the tasks of a request differ from the run's, and how to go on; "" if they do not.

    differing: what matters of it.
    """
    new, gone, changed = differing.new, differing.gone, differing.changed
    if not (new or gone or changed):
        return ""
    text = f"{len(new)} new, {len(gone)} gone, {len(changed)} changed"
    changed_keys = keys_of(view.planned_tasks(), changed)
    for what, keys in (
        ("new", keys_of(names, new)),
        ("gone", keys_of(view.planned_tasks(), gone)),
        ("changed", changed_keys),
    ):
        if keys:
            text += f"\n  {what}: {', '.join(keys)}"
    ways: list[str] = []
    if changed and names.root:
        ways.append(f"{redo_command(view, changed_keys)} computes what changed again")
        ways.append("--keep-done leaves the old results as they are")
    if new:
        ways.append("--add takes the new ones into the run")
    if new or gone or not names.root:
        ways.append(f"{to_type('resume', view.layout.root)} goes on with the run as it is")
    ways.append("--fresh starts anew (the old spool is renamed)")
    return f"{text}\n{', '.join(ways)}, and another --spool makes a second run."


def redo_command(view: View, keys: list[str]) -> str:
    """The command that does the tasks with these keys again, in backquotes.

    keys: as `keys_of` gives them. Where these are not all, the user has to write them.
    """
    words = "KEY…" if ELLIPSIS in keys else shlex.join(keys)
    return to_type("redo", view.layout.root, words)


def keys_of(tasks: Iterable[TaskLine], indices: list[int]) -> list[str]:
    """The keys of the first few of these tasks, and that there are more."""
    if not indices:
        return []
    first = indices[:SHOWN_KEYS]
    found = {task.task: task.key for task in tasks if task.task in first}
    # What no readable line of the run describes has no key.
    keys = [found[index] for index in first if index in found]
    return keys if len(indices) <= SHOWN_KEYS else [*keys, ELLIPSIS]


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
        before = _shown(view.run.args, name)
        now = _shown(request.args, name)
        if before != now:
            found.append(f"--arg {name}: {before} before, {now} now")
    return found


def _shown(args: Mapping[str, Any], name: str) -> str:
    """The value of one of the args, for people."""
    return repr(args[name]) if name in args else "not given"
