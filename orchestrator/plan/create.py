"""Making a spool, and recognising that a spool is this very run.

A spool is built under a hidden name beside its own and renamed into place: the rename is its
commit, so a spool that exists is whole. The fingerprint says what was asked; the same again
resumes, anything else is refused with the difference shown.
"""

from __future__ import annotations

import array
import functools
import hashlib
import heapq
import os
import sys
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from gpuspool.orchestrator.plan.inputs import Inputs
from gpuspool.spool import __version__
from gpuspool.spool.codec import seal_pretty
from gpuspool.spool.errors import UsageError
from gpuspool.spool.layout import (
    FORMAT_TEXT,
    OUT_MARK,
    SUBDIRS,
    Layout,
    hidden_name,
    parse_hidden,
    rank_name,
)
from gpuspool.spool.publish import (
    FOLDER_MODE,
    SyncError,
    fsync_dir,
    fsync_file,
    make_folder,
    publish,
    read_bytes,
    remove_tree_quietly,
    rename,
    write_file,
)
from gpuspool.spool.records import Fingerprint, Job, Options, Run, TaskLine
from gpuspool.spool.view import View

JOINED = 4096  # lines that are hashed at once
DIFF_LINES = 40  # of a changed job's source that an error shows


class Request(msgspec.Struct, frozen=True, dict=True):
    """All that a run is asked to do, before anything is on disk."""

    job: Job
    source: bytes
    args: dict[str, Any]
    inputs: Inputs
    options: Options
    out: str | None
    argv: list[str]

    @functools.cached_property
    def fingerprint(self) -> Fingerprint:
        tasks, lines = hashlib.sha256(), self.inputs.lines
        for start in range(0, len(lines), JOINED):
            tasks.update(b"".join(lines[start : start + JOINED]))
        args = msgspec.json.encode(self.args, order="sorted")
        return Fingerprint(
            job_sha256=self.job.sha256,
            args_sha256=hashlib.sha256(args).hexdigest(),
            tasks_sha256=tasks.hexdigest(),
            seed=self.options.seed,
            out=self.out or "",
        )


def plan(costs: Sequence[float], ranks: int) -> list[Sequence[int]]:
    """Longest first over the ranks: each task, by falling cost, to the rank with the least so far."""
    if not costs or min(costs) == max(costs):
        return [range(rank, len(costs), ranks) for rank in range(ranks)]
    planned = [array.array("q") for _ in range(ranks)]
    loads = [(0.0, rank) for rank in range(ranks)]
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        load, rank = loads[0]
        planned[rank].append(index)
        heapq.heapreplace(loads, (load + costs[index], rank))
    return list(planned)


def create(layout: Layout, request: Request, ranks: int) -> dict[str, bytes] | None:
    """Build the spool and rename it into place; returns its manifests. None: somebody else did so
    just now.

    Raises UsageError.
    """
    run = Run(
        id=os.urandom(8).hex(),
        job=request.job,
        args=request.args,
        tasks=len(request.inputs),
        cost=sum(request.inputs.costs),
        fingerprint=request.fingerprint,
        options=request.options,
        submit_dir=os.getcwd(),
        out=request.out,
        created_at=time.time(),
        versions={"gpuspool": __version__, "python": sys.version.split()[0]},
        argv=[word.encode(errors="backslashreplace").decode() for word in request.argv],
        manifests=ranks,
    )
    building = Layout(layout.root.parent / hidden_name(layout.root.name))
    try:
        make_folder(layout.root.parent)
        manifests = _build(building, run, request, ranks)
        rename(building.root, layout.root)
        fsync_dir(layout.root.parent)
        return manifests
    except UnicodeEncodeError as error:
        remove_tree_quietly(building.root)
        raise UsageError(
            f"{error.object!r:.200} is not UTF-8, so no record can hold it. Rename it."
        ) from None
    except SyncError:
        remove_tree_quietly(building.root)
        raise  # nobody can say whether the spool would outlive a power cut
    except OSError as error:
        remove_tree_quietly(building.root)
        if layout.run.exists():
            return None
        raise UsageError(
            f"the spool {layout.root} cannot be made: {error.strerror} ({error.filename or building.root}). "
            "It needs a writable file system with hard links and an empty or new folder; choose one with --spool."
        ) from None


def _build(layout: Layout, run: Run, request: Request, ranks: int) -> dict[str, bytes]:
    """Write all, then sync all: nobody looks before the rename, and the first sync takes most of
    the rest along.
    """
    layout.root.mkdir(FOLDER_MODE)
    for name in SUBDIRS:
        layout.subdir(name).mkdir(FOLDER_MODE)
    made: list[Path] = []
    if request.source:
        made.append(write_file(layout.job_copy(run.job.copy), request.source))
    if run.out is None:
        layout.outputs.mkdir()
        made.append(write_file(layout.outputs / OUT_MARK, f"{run.id}\n".encode()))
    manifests = {}
    for rank, planned in enumerate(plan(request.inputs.costs, ranks)):
        name = rank_name(rank)
        layout.claims(name).mkdir()
        manifests[name] = b"".join(map(request.inputs.lines.__getitem__, planned))
        made.append(write_file(layout.manifest(name), manifests[name]))
    made.append(write_file(layout.format, FORMAT_TEXT.encode()))
    checksums = [zlib.crc32(manifest) for manifest in manifests.values()]
    record = seal_pretty(msgspec.structs.replace(run, manifests_crc32=checksums))
    made.append(write_file(layout.run_copy, record))
    for path in made:
        fsync_file(path)
    for folder in {path.parent for path in made} - {layout.root}:
        fsync_dir(folder)
    publish(
        layout.run, record
    )  # last; and a link, so that a file system without them is found out here
    return manifests


def half_made(layout: Layout) -> list[Path]:
    """What runs left that died while they made this spool. Nothing in it is ever used."""
    if not layout.root.parent.is_dir():
        return []
    found = ((path, parse_hidden(path.name)) for path in layout.root.parent.iterdir())
    ours = [
        (path, made[1]) for path, made in found if made is not None and made[0] == layout.root.name
    ]
    return [path for path, pid in ours if not Path(f"/proc/{pid}").exists()]


def check_out(out: Path, overwrite: bool, inputs: Inputs) -> None:
    """Refuse an OUT that is no folder, one that holds anything, with `overwrite` an input. Raises
    UsageError.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is not a folder.")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not overwrite:
        raise UsageError(
            f"--out {out} is not empty. Name another folder, or move all of it to {_aside(out)} with --overwrite."
        )
    for path in _paths(inputs):
        if os.path.lexists(path) and Path(os.path.realpath(path)).is_relative_to(out.resolve()):
            raise UsageError(
                f"--out {out} holds the input {path}, so it is not moved aside. Name another folder."
            )


def _paths(inputs: Inputs) -> Iterator[str]:
    for task in inputs:
        payload = msgspec.json.decode(task.payload)
        path = payload.get("path") if isinstance(payload, dict) else None
        if isinstance(path, str):
            yield path


def clear_out(out: Path) -> None:
    """Move an OUT that holds anything aside, whole; once nothing can refuse any more."""
    if out.is_dir() and any(out.iterdir()):
        os.rename(out, _aside(out))
        fsync_dir(out.parent)


def mark_out(run: Run) -> None:
    """Make an OUT beside the spool bear this run's mark. Raises UsageError where it bears
    another's.
    """
    if run.out is None:
        return
    mark, text = Path(run.out, OUT_MARK), f"{run.id}\n".encode()
    make_folder(mark.parent)
    if not publish(mark, text) and read_bytes(mark) != text:
        raise UsageError(
            f"--out {run.out} belongs to another run. Name another folder with another --spool."
        )


def _aside(path: Path) -> Path:
    """The first free name of the kind PATH.old-1."""
    number = 1
    while (aside := path.with_name(f"{path.name}.old-{number}")).exists():
        number += 1
    return aside


def set_aside(layout: Layout) -> Path:
    """--fresh: rename the spool; nothing is deleted."""
    aside = _aside(layout.root)
    os.rename(layout.root, aside)
    return aside


def job_difference(view: View, job: Job, source: bytes) -> list[str]:
    """The lines of a diff from the job that the spool last ran to this one; empty where they are
    the same.
    """
    old = view.latest_job()
    if old.sha256 == job.sha256:
        return []
    if job.kind == "command" or old.kind == "command":
        return [f"- {old.spec}", f"+ {job.spec}"]
    import difflib  # not where nothing changed

    before = (
        (read_bytes(view.layout.job_copy(old.copy)) or b"").decode(errors="replace").splitlines()
    )
    after = source.decode(errors="replace").splitlines()
    lines = list(
        difflib.unified_diff(
            before, after, f"{old.copy} (as it ran)", f"{job.copy} (now)", lineterm="", n=1
        )
    )
    return (
        [*lines[:DIFF_LINES], f"… {len(lines) - DIFF_LINES} more lines"]
        if len(lines) > DIFF_LINES
        else lines
    )


def other_differences(view: View, request: Request) -> list[str]:
    """What else was asked differently, one line each."""
    was, now = view.run.fingerprint, request.fingerprint
    old, job, found = view.latest_job(), request.job, []
    if old.name != job.name and "command" not in (old.kind, job.kind):
        found.append(f"job: {old.spec} before, {job.spec} now")
    if was.args_sha256 != now.args_sha256:
        found += [
            f"--arg {name}: {view.run.args.get(name)!r} before, {request.args.get(name)!r} now"
            for name in sorted(view.run.args.keys() | request.args.keys())
            if view.run.args.get(name) != request.args.get(name)
        ]
    if was.seed != now.seed:
        found.append(f"--seed: {was.seed} before, {now.seed} now")
    if was.out != now.out:
        found.append(
            f"--out: {was.out or 'SPOOL/outputs'} before, {now.out or 'SPOOL/outputs'} now"
        )
    if was.tasks_sha256 != now.tasks_sha256:
        found += _task_differences(view, request.inputs)
    return found


def _task_differences(view: View, now: Inputs) -> list[str]:
    """The counts, and the first task that differs."""
    was = {task.task: task for task in _planned(view)}
    found = (
        [f"tasks: {view.run.tasks} before, {len(now)} now"] if view.run.tasks != len(now) else []
    )
    for task in now:
        old = was.get(task.task)
        if old is not None and old != task:
            fields = [f for f in ("key", "payload", "cost") if getattr(old, f) != getattr(task, f)]
            before = ", ".join(f"{f} {_show(getattr(old, f))}" for f in fields)
            after = ", ".join(f"{f} {_show(getattr(task, f))}" for f in fields)
            return [
                *found,
                f"task {task.task} ({task.key}): {before} before, {after} now (the first that differs)",
            ]
    return found or ["the task list"]


def _show(value: object) -> str:
    return bytes(value).decode()[:100] if isinstance(value, msgspec.Raw) else str(value)


def _planned(view: View) -> Iterable[TaskLine]:
    for rank in range(view.run.manifests):
        manifest = view.manifests.get(rank_name(rank))
        if manifest is not None:
            yield from manifest.tasks()
