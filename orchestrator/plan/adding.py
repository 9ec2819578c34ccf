"""Adding tasks to a run that is there: new, running, stopped or finished.

What the run has already is left as it is. The rest becomes its tasks N, N+1, …, in one manifest
whose link(2) is the commit: whoever is killed before it has added nothing. No lock is needed, since
of two who add at once one finds the name taken, looks at what the other added, and adds the rest.
Called by `run --add` and by `add`.
"""

from __future__ import annotations

import sys
import time
from typing import NoReturn

import msgspec

from gpuspool.orchestrator.plan.create import plan
from gpuspool.orchestrator.plan.inputs import TaskList
from gpuspool.orchestrator.plan.matching import Matching, match
from gpuspool.orchestrator.text.printable import recordable
from gpuspool.spool.errors import SpoolError, UsageError
from gpuspool.spool.manifest import publish_added
from gpuspool.spool.records import Added, TaskLine
from gpuspool.spool.view import View, load_run

# A manifest that another process added may be seen this many seconds after its name was taken.
LATE_S = 120.0
LATE_LOOK_S = 0.2


def add_tasks(view: View, tasks: TaskList, found: Matching | None = None) -> int:
    """Add those tasks that the run does not have; returns how many these were.

    found: how the two compare, if that is known already for this view. The view knows the new ones
    afterwards. Raises UsageError for a key that the run has for another task, and where another run
    is at its place by now; SpoolError where the spool cannot be read.
    """
    deadline = time.monotonic() + LATE_S
    while True:
        new = lines_to_add(view, tasks, found or match(view, tasks))
        if not new:
            return 0
        _refuse_another_run(view)
        name = view.next_numbered("added")
        if publish_added(view.layout, name, _head(view, new), _in_order(new)):
            view.refresh()
            return len(new)
        # Somebody else added tasks just now.
        found = None
        view.refresh()
        if name not in view.manifests:
            if time.monotonic() > deadline:
                raise SpoolError(
                    f"{view.layout.manifest(name)} is there and cannot be read. Try again later."
                )
            time.sleep(LATE_LOOK_S)


def _refuse_another_run(view: View) -> None:
    """Raise UsageError where the spool was renamed and another one made, as --fresh does.

    The inputs may have come from a pipe, for hours.
    """
    if load_run(view.layout).id != view.run.id:
        raise UsageError(
            f"{view.layout.root} was replaced by another run meanwhile. Nothing was added; look at "
            "it, and add again."
        )


def lines_to_add(view: View, tasks: TaskList, found: Matching) -> list[TaskLine]:
    """What the run does not have, with the indices and keys that it gets."""
    first = view.ledger.tasks
    if found.changed and not (tasks.root and view.run.root):
        _refuse_changed(view, found.changed[0])
    is_new = set(found.new)
    lines: list[TaskLine] = []
    for task in tasks:
        if task.task in is_new:
            lines.append(_in_run(view, tasks, task, first + len(lines)))
    _refuse_taken(view, lines)
    return lines


def _in_run(view: View, tasks: TaskList, task: TaskLine, index: int) -> TaskLine:
    """A task of the request as the run shall have it."""
    key, payload = task.key, task.payload
    if key == f"t{task.task}" and not tasks.is_named:
        key = f"t{index}"
    root = view.run.fingerprint.root
    if root and tasks.root not in ("", root):
        # All payloads of a run name its files where they were when it was made, so that one rule
        # tells where they are now.
        payload = msgspec.Raw(msgspec.json.encode({"path": f"{root.rstrip('/')}/{key}"}))
    return msgspec.structs.replace(task, task=index, key=key, payload=payload)


def _refuse_changed(view: View, index: int) -> None:
    for task in view.planned_tasks():
        if task.task == index:
            _refuse_key(task)


def _refuse_taken(view: View, lines: list[TaskLine]) -> None:
    """Raise UsageError for a key that another task has: one of the run, or another new one."""
    keys: set[str] = set()
    for line in lines:
        # A key that the user gave may look like one that counts.
        if line.key in keys:
            raise UsageError(
                f"two new tasks would have the key {line.key!r}, since a task without a key is "
                "called by its number in the run. Give it one. Nothing was added."
            )
        keys.add(line.key)
    for task in view.planned_tasks():
        if task.key in keys:
            _refuse_key(task)


def _refuse_key(task: TaskLine) -> NoReturn:
    raise UsageError(
        f"the key {task.key!r} of a new task is that of task {task.task} of the run, whose "
        "payload differs. Name the task by another key. Nothing was added."
    )


def _head(view: View, lines: list[TaskLine]) -> Added:
    return Added(
        first=view.ledger.tasks,
        tasks=len(lines),
        cost=sum(line.cost for line in lines),
        at=time.time(),
        argv=[recordable(word) for word in sys.argv],
    )


def _in_order(lines: list[TaskLine]) -> list[TaskLine]:
    """In the order of a planned manifest."""
    [order] = plan([line.cost for line in lines], 1)
    return [lines[index] for index in order]
