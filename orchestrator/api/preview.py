"""What `run --dry-run` says: what a run would do, or why it would be refused.

It goes through the checks of a real start, in the same order, and raises what that would raise. It
writes nothing and takes no lock. So what only the lock or a write would show is not seen: whether
the start would be admitted, and whether a damaged spool can be repaired. Nor is any code of the job
run.
"""

from __future__ import annotations

import heapq
import itertools
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from gpuspool.orchestrator.api.occupants import parents_maybe_alive
from gpuspool.orchestrator.api.opening import (
    is_made,
    refuse_another_request,
    refuse_to_make,
    slots_for,
)
from gpuspool.orchestrator.api.report import Report
from gpuspool.orchestrator.api.whereabouts import out_now, refuse_move, refuse_out
from gpuspool.orchestrator.plan.adding import lines_to_add
from gpuspool.orchestrator.plan.create import plan
from gpuspool.orchestrator.plan.inputs import TaskList
from gpuspool.orchestrator.plan.locate import at_home
from gpuspool.orchestrator.plan.options import options_of_start
from gpuspool.orchestrator.plan.request import Request
from gpuspool.orchestrator.plan.slots import Slot
from gpuspool.orchestrator.text.words import count_of
from gpuspool.spool import placeholders
from gpuspool.spool.identity import myself
from gpuspool.spool.layout import Layout
from gpuspool.spool.open_folder import out_of
from gpuspool.spool.records import TaskLine
from gpuspool.spool.states import JobKind
from gpuspool.spool.trust import Trust, refuse_unsafe
from gpuspool.spool.view import open_view

# So many keys are shown, from the first on.
SHOWN_KEYS = 3


def preview(
    layout: Layout,
    request: Request,
    given: Mapping[str, Any],
    trust: Trust,
    *,
    fresh: bool,
    overwrite: bool,
    keep_done: bool,
    add: bool,
    out_moved_to: str | os.PathLike[str] | None,
) -> Report:
    """A report of what a run would do. Writes nothing.

    given: the options of this start, without None; all else as `run` takes it. Raises what a run
    would raise before it begins: UsageError, SpoolError and OrchestratorLive.
    """
    myself()
    if fresh or not is_made(layout):
        return _of_new_run(layout, request, trust, fresh=fresh, overwrite=overwrite)
    view = open_view(layout.root, reads_claims=False)
    refuse_unsafe(layout, trust, view.owners)
    found = refuse_another_request(view, request, keep_done, add)
    added: list[TaskLine] = []
    if add and found is not None:
        added = lines_to_add(view, request.tasks, found)
    pool, slots = slots_for(options_of_start(view.run.options, given))
    out = out_of(layout, view.run)
    moved_to = out_now(view, request.out, out_moved_to)
    if moved_to is None:
        refuse_out(view)
    else:
        out = Path(os.path.abspath(at_home(moved_to)))
        refuse_move(view, out)
    ledger = view.ledger
    left = ledger.tasks - ledger.n_finished
    beside = _beside(layout)
    text = [
        f"would go on with {layout.root}{beside} for {count_of(ledger.tasks, 'task')} "
        f"on {count_of(len(slots), 'rank')}: {ledger.n_complete} complete, {ledger.n_failed} "
        f"failed, {left} to be done",
        str(pool),
        *(f"slot {slot.number} on {slot.device_name}" for slot in slots),
    ]
    if added:
        keys = _some([line.key for line in added], len(added))
        text.append(f"{count_of(len(added), 'new task')} would be added: {keys}")
    # Not the request's own: a run keeps its numbers where the inputs come in another order.
    first = heapq.nsmallest(SHOWN_KEYS, view.planned_tasks(), key=lambda task: task.task)
    text += _names_and_command(request, first, ledger.tasks, out, layout, slots[0])
    counts = {"total": ledger.tasks, "complete": ledger.n_complete, "failed": ledger.n_failed}
    return Report(layout.root, 0, counts, "\n".join(text))


def _beside(layout: Layout) -> str:
    """Which other parents a start would work beside, in words; "" if none may be alive."""
    parents = parents_maybe_alive(layout)
    if not parents:
        return ""
    hosts = sorted({parent.host for parent in parents if parent is not None})
    return f" beside {count_of(len(parents), 'other start')} (on {', '.join(hosts) or '?'})"


def _of_new_run(
    layout: Layout, request: Request, trust: Trust, *, fresh: bool, overwrite: bool
) -> Report:
    pool, slots = slots_for(request.options)
    refuse_to_make(layout, request, trust, fresh=fresh, overwrite=overwrite)
    tasks = request.tasks
    text = [
        f"would make {layout.root} for {count_of(len(tasks), 'task')} "
        f"on {count_of(len(slots), 'rank')}",
        str(pool),
    ]
    for slot, planned in zip(slots, plan(tasks.costs, len(slots)), strict=True):
        share = count_of(len(planned), "task")
        text.append(f"rank {slot.number} on {slot.device_name}: {share}{_cost(tasks, planned)}")
    out = layout.outputs if request.out is None else Path(request.out)
    first = list(itertools.islice(tasks, SHOWN_KEYS))
    text += _names_and_command(request, first, len(tasks), out, layout, slots[0])
    counts = {"total": len(tasks), "complete": 0, "failed": 0}
    return Report(layout.root, 0, counts, "\n".join(text))


def _cost(tasks: TaskList, planned: Sequence[int]) -> str:
    """What a rank's share costs, in words; "" where costs say no more than the count of tasks."""
    costs = tasks.costs
    cost = sum(costs[index] for index in planned)
    if tasks.root:
        return f", {cost:.0f} bytes of input"
    if not costs or min(costs) == max(costs):
        return ""
    return f", whose costs add up to {cost:g}"


def _names_and_command(
    request: Request, first: list[TaskLine], n_tasks: int, out: Path, layout: Layout, slot: Slot
) -> list[str]:
    """The keys of the first tasks, where outputs go, and of a command its first call."""
    root = request.tasks.root
    keys = f"keys: {_some([task.key for task in first], n_tasks)}"
    if root:
        keys += f" (paths below {root})"
    text = [keys, f"outputs: {out}/<key><suffix>"]
    if request.job.kind is JobKind.COMMAND and first:
        input_ = _input(first[0], root)
        words = [_fill(word, first[0], input_, out, layout, slot) for word in request.job.command]
        text.append(f"first command: {shlex.join(words)}")
    return text


def _some(keys: list[str], n_keys: int) -> str:
    shown = ", ".join(keys[:SHOWN_KEYS])
    return shown if n_keys <= SHOWN_KEYS else f"{shown}, …"


def _fill(word: str, task: TaskLine, input_: str, out: Path, layout: Layout, slot: Slot) -> str:
    """A word of a command as a task gets it, once its outputs are published."""
    values = {
        "key": task.key,
        "index": str(task.task),
        "output": str(out / task.key),
        "rank": str(slot.number),
        "device": "cpu" if slot.device_name == "cpu" else "cuda:0",
        "scratch": str(layout.scratch(task.task)),
    }

    def value_of(name: str) -> str:
        return values[name] if name in values else placeholders.of_input(name, input_)

    return placeholders.fill(placeholders.parse(word), value_of)


def _input(task: TaskLine, root: str) -> str:
    """What `{input}` stands for: the file, the line, or the payload as JSON.

    root: the folder that the keys of files are relative to now, "" where it is not known.
    """
    payload = msgspec.json.decode(task.payload)
    if isinstance(payload, dict) and "path" in payload:
        return os.path.join(root, task.key) if root else str(payload["path"])
    return payload if isinstance(payload, str) else bytes(task.payload).decode()
