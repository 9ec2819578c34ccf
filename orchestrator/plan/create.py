"""Making a spool.

1. The tasks are planned over the ranks: one manifest for each.
2. Everything is written into a folder with a hidden name beside the spool's own, then synced.
3. The folder is renamed to the spool's name. This rename is the commit: a spool that exists is
   whole.
4. The folder above is synced, so that the name outlives a power cut.

Whoever is killed on the way leaves a hidden folder that nothing ever uses. Of two processes that
make the same spool at once, one renames first, and the other goes on with that spool. Called when a
run is opened, and by `GPUProcessCoordinator`.
"""

from __future__ import annotations

import array
import errno
import heapq
import os
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from gpuspool.orchestrator.plan.request import Request
from gpuspool.orchestrator.text.printable import recordable
from gpuspool.spool import __version__
from gpuspool.spool.codec import seal_pretty
from gpuspool.spool.errors import SyncError, UsageError
from gpuspool.spool.file_system import data_mounts, file_system_type, is_network
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
    fsync_dir,
    fsync_file,
    make_folder,
    publish,
    remove_tree_quietly,
    rename,
    write_file,
)
from gpuspool.spool.records import Run


def plan(costs: Sequence[float], ranks: int) -> list[Sequence[int]]:
    """For each rank the indices of its tasks, in the order in which it should run them.

    Longest first, but every fourth task comes from the other end (see `_with_news`): each task, by
    falling cost, goes to the rank that has the least so far. Ranks steal from each other later, so
    this only needs to be nearly fair; it lets the largest tasks begin first, so that none of them
    is left for the end. Tasks of one cost are dealt out in turn.
    """
    n_tasks = len(costs)
    if not costs or min(costs) == max(costs):
        dealt: list[Sequence[int]] = [range(rank, n_tasks, ranks) for rank in range(ranks)]
        return [_with_news(tasks, tasks[_news_start(tasks) :]) for tasks in dealt]
    planned = _longest_first(costs, ranks)
    return [_with_news(tasks, tasks[: _news_start(tasks) - 1 : -1]) for tasks in planned]


# One task in so many of a manifest comes from its other end.
NEWS_EVERY = 4

# A shorter manifest is left in order: if its first quarter is bad, that is no longer a row of
# failures than a process has the patience for.
NEWS_LEAST = 20


def _news_start(tasks: Sequence[int]) -> int:
    """Where the tasks that come early begin: the last quarter."""
    return len(tasks) - len(tasks) // NEWS_EVERY


def _with_news(tasks: Sequence[int], early: Sequence[int]) -> Sequence[int]:
    """The tasks in order, but each fourth position, from the first on, holds one of `early`.

    `early` are those of the last quarter: the cheapest first where costs are known. So a run tells
    soon how it fares and how long it will take. And a block of bad inputs, which are often the
    longest or stand together in the list, is mixed with others: a process that meets it still
    completes some tasks, and shows that it is in order.
    """
    if len(tasks) < NEWS_LEAST:
        return tasks
    ordered = array.array("q", tasks)
    n_early = len(early)
    positions = range(0, n_early * NEWS_EVERY, NEWS_EVERY)
    ordered[positions.start : positions.stop : NEWS_EVERY] = array.array("q", early)
    rest = iter(tasks[: len(tasks) - n_early])
    for start in range(0, len(tasks), NEWS_EVERY):
        first = start + 1 if start < positions.stop else start
        for position in range(first, min(start + NEWS_EVERY, len(tasks))):
            ordered[position] = next(rest)
    return ordered


def _longest_first(costs: Sequence[float], ranks: int) -> list[Sequence[int]]:
    """Give each task, by falling cost, to the rank that has the least so far."""
    planned = [array.array("q") for _ in range(ranks)]
    # A heap: the rank that has the least, and of equals the lowest, comes first.
    loads = [(0.0, rank) for rank in range(ranks)]
    by_falling_cost = sorted(range(len(costs)), key=lambda index: -costs[index])
    for index in by_falling_cost:
        load, rank = loads[0]
        planned[rank].append(index)
        heapq.heapreplace(loads, (load + costs[index], rank))
    return list(planned)


def create(layout: Layout, request: Request, ranks: int) -> dict[str, bytes] | None:
    """Build the spool and rename it into place; returns its manifests by name.

    None where another process has made this spool just now. Raises UsageError where it cannot be
    made, and SyncError where nobody can say whether it would outlive a power cut.
    """
    # The hidden name is ours alone, so no other process builds in this folder. Renaming a folder
    # onto one that holds anything fails, so of two that make the same spool the second one gets an
    # error, finds run.json there, and knows that it was too late. Whatever else fails, what was
    # built is removed: nothing refers to it yet.
    run = _run_record(request, ranks)
    building = Layout(layout.root.parent / hidden_name(layout.root.name))
    try:
        make_folder(layout.root.parent)
        manifests = _build(building, run, request)
        rename(building.root, layout.root)
        fsync_dir(layout.root.parent)
    except UnicodeEncodeError as error:
        remove_tree_quietly(building.root)
        raise UsageError(
            f"{error.object!r:.200} is not UTF-8, so no record can hold it. Rename it."
        ) from None
    except SyncError:
        remove_tree_quietly(building.root)
        raise
    except OSError as error:
        remove_tree_quietly(building.root)
        if layout.run.exists():
            return None
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and layout.root.is_dir():
            raise _in_the_way(layout) from None
        where = error.filename or str(building.root)
        raise _cannot_be_made(layout, error.strerror, where) from None
    return manifests


def refuse_place(layout: Layout) -> None:
    """Raise UsageError where a spool cannot be made, as far as a look can tell."""
    root = layout.root
    if root.is_dir() and any(root.iterdir()):
        # Another process may have made this very spool in this moment.
        if layout.run.exists():
            return
        raise _in_the_way(layout)
    above = root.parent
    while not os.path.lexists(above):
        above = above.parent
    reason = None
    if root.exists() and not root.is_dir():
        above = root
        reason = errno.ENOTDIR
    elif not above.is_dir():
        reason = errno.ENOTDIR
    # What this process may do, by its capabilities too: the real user alone may do less.
    elif not os.access(above, os.W_OK | os.X_OK, effective_ids=True):
        reason = errno.EACCES
    if reason is not None:
        raise _cannot_be_made(layout, os.strerror(reason), str(above))


def _in_the_way(layout: Layout) -> UsageError:
    return UsageError(
        f"{layout.root} is there, holds something and is no spool: perhaps what is left of one "
        "that was deleted. Remove it, or choose another folder with --spool."
    )


def _cannot_be_made(layout: Layout, why: str | None, where: str) -> UsageError:
    return UsageError(
        f"the spool {layout.root} cannot be made: {why} ({where}). It needs a writable file "
        "system with hard links and an empty or new folder; choose one with --spool."
    )


# Where other hosts write too, the pid in the name of a hidden folder may be of another one, whose
# process may make the spool in this moment. Nothing takes it so long, and clocks differ by less.
HALF_MADE_S = 24 * 3600.0


def half_made(layout: Layout) -> list[Path]:
    """The hidden folders of processes that died while they made this spool. Nothing uses them."""
    folder = layout.root.parent
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _is_half_made(path, layout.root.name)]
    if found and is_network(file_system_type(folder)):
        return [path for path in found if _has_been_left(path)]
    return found


def _is_half_made(path: Path, spool_name: str) -> bool:
    """Whether a path is the hidden folder in which a process made the spool of this name that is
    not here, or not any more.
    """
    hidden = parse_hidden(path.name)
    if hidden is None:
        return False
    name, pid = hidden
    is_alive = Path(f"/proc/{pid}").exists()
    return name == spool_name and not is_alive


def _has_been_left(path: Path) -> bool:
    """Whether nothing was made in a folder for HALF_MADE_S; False for one that is gone."""
    try:
        return path.stat().st_mtime < time.time() - HALF_MADE_S
    except OSError:
        return False


def _run_record(request: Request, ranks: int) -> Run:
    """run.json, as it will stand in the spool; the checksums of the manifests follow later.

    Words of the command line that are not UTF-8 are escaped: only people read them.
    """
    return Run(
        id=os.urandom(8).hex(),
        job=request.job,
        args=request.args,
        tasks=len(request.tasks),
        cost=sum(request.tasks.costs),
        fingerprint=request.fingerprint,
        options=request.options,
        submit_dir=os.getcwd(),
        out=request.out,
        created_at=time.time(),
        versions={"gpuspool": __version__, "python": sys.version.split()[0]},
        argv=[recordable(word) for word in request.argv],
        manifests=ranks,
        mounts=data_mounts(),
        root=request.tasks.root,
    )


def _build(layout: Layout, run: Run, request: Request) -> dict[str, bytes]:
    """Write all files of a spool, and sync them; returns the manifests by name.

    All is written before anything is synced, because nobody looks in here before the rename, and
    the first fsync takes most of the rest to the disk along with its own file.
    """
    layout.root.mkdir(FOLDER_MODE)
    for name in SUBDIRS:
        layout.subdir(name).mkdir(FOLDER_MODE)
    made: list[Path] = []
    if request.source:
        copy = layout.job_copy(run.job.copy)
        made.append(write_file(copy, request.source))
    if run.out is None:
        layout.outputs.mkdir(FOLDER_MODE)
        mark = layout.outputs / OUT_MARK
        made.append(write_file(mark, f"{run.id}\n".encode()))
    manifests = _manifests(request, run.manifests)
    for name, data in manifests.items():
        layout.claims(name).mkdir(FOLDER_MODE)
        made.append(write_file(layout.manifest(name), data))
    made.append(write_file(layout.format, FORMAT_TEXT.encode()))
    checksums = [zlib.crc32(data) for data in manifests.values()]
    record = seal_pretty(msgspec.structs.replace(run, manifests_crc32=checksums))
    made.append(write_file(layout.run_copy, record))
    # The last file is linked into place like those that follow in the life of the spool, so that a
    # file system without hard links is found out here and not by the first worker.
    publish(layout.run, record, durable=False)
    _sync([*made, layout.run])
    return manifests


def _manifests(request: Request, ranks: int) -> dict[str, bytes]:
    """For each rank its planned manifest: the sealed lines of its tasks."""
    lines = request.tasks.lines
    manifests: dict[str, bytes] = {}
    for rank, planned in enumerate(plan(request.tasks.costs, ranks)):
        manifests[rank_name(rank)] = b"".join(map(lines.__getitem__, planned))
    return manifests


def _sync(made: list[Path]) -> None:
    """Make files durable, and their names in all folders."""
    for path in made:
        fsync_file(path)
    for folder in {path.parent for path in made}:
        fsync_dir(folder)
