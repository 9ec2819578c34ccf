"""Spools made by hand, for the tests of the protocol: no orchestrator, no worker, only the files.

A test changes a spool through the public functions of `spool`, or it changes the bytes themselves.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gpuspool.spool.claims import ClaimChain
from gpuspool.spool.closing import close_attempts
from gpuspool.spool.codec import encode, pretty, seal, seal_pretty
from gpuspool.spool.death import Crashed, Death, Lost, Witness
from gpuspool.spool.identity import identity_of, myself
from gpuspool.spool.journal import JournalReader, JournalWriter, start_journal
from gpuspool.spool.layout import FORMAT_TEXT, SUBDIRS, Layout, attempt_name, rank_name, rank_of
from gpuspool.spool.manifest import Damage, load_manifest, publish_manifest
from gpuspool.spool.open_folder import folder_id
from gpuspool.spool.publish import publish
from gpuspool.spool.records import (
    Claim,
    Closing,
    Fingerprint,
    Identity,
    IdleLine,
    Intent,
    Job,
    JournalLine,
    Options,
    Parent,
    ParentEnd,
    Place,
    Run,
    Scheduler,
    TaskLine,
)
from gpuspool.spool.states import LineState
from gpuspool.spool.view import View, load_run

# Four attempts: two of rank 0, and the first ones of ranks 1 and 2.
A0 = attempt_name(0, 0)
A1 = attempt_name(0, 1)
B0 = attempt_name(1, 0)
C0 = attempt_name(2, 0)

JOB = Job(
    kind="file",
    spec="job.py:work",
    name="work",
    file="/somewhere/job.py",
    copy="job.py",
    sha256="12ab",
)


# Making spools and records.


def task(index: int, **more: Any) -> TaskLine:
    """The task t<index>, of cost 1, unless `more` says otherwise."""
    fields = {"task": index, "key": f"t{index}", "payload": msgspec.Raw(b"%d" % index), "cost": 1.0}
    return TaskLine(**{**fields, **more})


def some_run(tasks: int, manifests: int = 1, checksums: Sequence[int] = ()) -> Run:
    """The run.json of a run with so many tasks in so many planned manifests."""
    return Run(
        id="0123456789abcdef",
        job=JOB,
        args={"alpha": 0.5, "name": "ä"},
        tasks=tasks,
        cost=float(tasks),
        fingerprint=Fingerprint(job_sha256="12ab", args_sha256="", tasks_sha256="", seed=0, out=""),
        options=Options(),
        submit_dir="/somewhere",
        out=None,
        created_at=1700000000.25,
        versions={"gpuspool": "0.1.0"},
        argv=["gpuspool", "run", "job.py:work"],
        manifests=manifests,
        manifests_crc32=list(checksums),
    )


def make_spool(
    root: Path, *planned: int | Sequence[TaskLine], has_checksums: bool = False
) -> Layout:
    """A spool with one manifest for each rank, which holds these tasks, or so many new ones.

    What is on disk in the end is what `gpuspool run` leaves there before it starts any worker. The
    checksums of the manifests may be missing: then a test may change these, and each line is
    checked by itself.
    """
    layout = Layout(root)
    root.mkdir(parents=True)
    for name in SUBDIRS:
        layout.subdir(name).mkdir()
    count = 0
    for rank, tasks in enumerate(planned):
        if isinstance(tasks, int):
            tasks = [task(index) for index in range(count, count + tasks)]
        count += len(tasks)
        assert publish_manifest(layout, rank_name(rank), tasks)
    publish(layout.format, FORMAT_TEXT.encode())
    checksums = []
    if has_checksums:
        names = (rank_name(rank) for rank in range(len(planned)))
        checksums = [zlib.crc32(layout.manifest(name).read_bytes()) for name in names]
    publish(layout.run, seal_pretty(some_run(count, len(planned), checksums)))
    return layout


def view_of(layout: Layout) -> View:
    """A refreshed view of somebody who has never looked at the spool before."""
    return View(layout, load_run(layout)).refresh()


# Playing an attempt.


def intend(
    layout: Layout,
    attempt: str,
    epoch: int = 0,
    parent: Identity | None = None,
    device: str = "0",
    job_id: str = "",
    options: Options | None = None,
    job: Job = JOB,
    uuids: Sequence[str] = (),
    is_doubted: bool = False,
) -> Intent:
    """Publish the intent to start an attempt in the slot that bears the number of its rank.

    This process is the parent unless one is named.
    """
    intent = Intent(
        attempt=attempt,
        epoch=epoch,
        device=device,
        world_size=2,
        local_rank=rank_of(attempt),
        argv=["python", "-m", "gpuspool.worker"],
        parent=parent or myself(),
        job=job,
        options=options or Options(),
        environment={"CUDA_VISIBLE_DEVICES": "0"},
        at=1700000000.5,
        device_uuids=list(uuids),
        job_id=job_id,
        is_doubted=is_doubted,
    )
    assert publish(layout.intent(attempt), seal_pretty(intent))
    return intent


def begin(layout: Layout, attempt: str) -> JournalWriter:
    """Begin an attempt that this process plays; returns its journal."""
    writer = start_journal(layout, attempt, myself())
    assert writer is not None
    return writer


def take(
    layout: Layout, attempt: str, stop: int, manifest: str = rank_name(0), number: int = 0
) -> Claim:
    """Claim the positions of a manifest from where its claims end to `stop`."""
    end = layout.manifest(manifest).read_bytes().count(b"\n")
    if manifest.endswith(".orphans"):
        # The closing has no position.
        end -= 1
    claim = ClaimChain(layout, manifest, end).advance().take(attempt, stop, number)
    assert claim is not None
    return claim


def finish(writer: JournalWriter, *tasks: int, round_: int = 0, state: str = "complete") -> None:
    """Append the verdict on these tasks to a journal."""
    for index in tasks:
        writer.append(
            JournalLine(task=index, round=round_, state=state, start=1700000000.0, seconds=0.25)
        )


def say_idle(writer: JournalWriter, claims: int) -> None:
    """Append the line of an attempt that has nothing of its first so many claims in hand."""
    writer.append(IdleLine(state=LineState.IDLE, claims=claims))


# Playing a parent.


def admit(
    layout: Layout,
    epoch: int,
    who: Identity,
    lease_s: float = 120.0,
    job: Job = JOB,
    at: float = 1700000000.0,
    job_id: str = "",
) -> Parent:
    """Publish that a process is the parent of an epoch, with one slot on the CPU, in this spool.

    job_id: the Slurm job that it runs in, "" for none.
    """
    parent = Parent(
        **msgspec.structs.asdict(who),
        epoch=epoch,
        at=at,
        slots=[Place()],
        argv=["gpuspool", "run"],
        command="run",
        lease_s=lease_s,
        folder=folder_id(layout.root),
        job_sha256=job.sha256,
        scheduler=Scheduler(kind="slurm", job=job_id) if job_id else None,
    )
    assert publish(layout.parent(epoch), seal_pretty(parent))
    return parent


def say_ended(layout: Layout, epoch: int, how: str = "drained") -> None:
    """Publish that the parent of an epoch has ended."""
    assert publish(layout.parent_end(epoch), pretty(ParentEnd(how=how, exit_code=75, at=1.0)))


# Closing it.


def close_dead(
    view: View,
    attempt: str,
    by: str = "test",
    death: Death | None = None,
    witness: Witness | None = None,
) -> Closing | None:
    """Close one attempt, as lost unless its death or a witness of it is given.

    None: it began meanwhile.
    """
    if death is None:
        death = Lost() if witness is None else Crashed(witness)
    return close_attempts(view, {attempt: death}, by).get(attempt)


def close(
    view: View,
    attempt: str,
    by: str = "test",
    death: Death | None = None,
    witness: Witness | None = None,
) -> Closing:
    """Close one attempt that can be closed, like `close_dead`."""
    closing = close_dead(view, attempt, by, death, witness)
    assert closing is not None
    return closing


def orphans_left(layout: Layout, attempt: str) -> list[TaskLine]:
    """The tasks that the closing of an attempt left for others."""
    manifest = load_manifest(layout, f"{attempt}.orphans", pytest.fail)
    assert manifest is not None
    return list(manifest.tasks())


# Reading what is there.


def indices(lines: Iterable[TaskLine]) -> list[int]:
    return [line.task for line in lines]


def verdicts(view: View) -> str:
    """One letter for each task: c for complete, f for failed, - for no verdict."""
    return "".join((view.ledger.verdict(index) or "-")[0] for index in range(view.run.tasks))


def watch_opens(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of all files that are opened and folders that are listed from now on."""
    opened: list[str] = []
    real_open, real_listdir = os.open, os.listdir

    def watched_open(path: Any, *args: Any, **more: Any) -> int:
        opened.append(os.fspath(path))
        return real_open(path, *args, **more)

    def watched_listdir(path: Any) -> list[str]:
        opened.append(os.fspath(path))
        return real_listdir(path)

    monkeypatch.setattr(os, "open", watched_open)
    monkeypatch.setattr(os, "listdir", watched_listdir)
    return opened


def read_journal(layout: Layout, attempt: str) -> tuple[list[tuple[int, bytes]], list[Damage]]:
    """Every line of a journal with its offset, and the damage that was reported."""
    damage: list[Damage] = []
    lines = JournalReader(layout, attempt, damage.append).read(msgspec.Raw)
    return [(at, bytes(line)) for at, line in lines], damage


def write_claim(layout: Layout, manifest: str, start: int, data: bytes | Claim) -> None:
    """Write a claim's file with these bytes, whatever they are."""
    if isinstance(data, Claim):
        data = encode(data)
    path = layout.claim(manifest, start)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)


# Bytes.


def cuts(data: bytes) -> Iterator[bytes]:
    """Every proper beginning of some bytes."""
    return (data[:length] for length in range(len(data)))


def flips(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(offset, the bytes with one bit of that byte changed), for every bit."""
    for at in range(len(data)):
        for bit in range(8):
            yield at, data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]


def sealed_lines(data: bytes) -> list[tuple[int, int]]:
    """(offset, end) of each line in some bytes; the newline lies behind the end."""
    found = []
    at = 0
    for line in data.splitlines(keepends=True):
        found.append((at, at + len(line.removesuffix(b"\n"))))
        at += len(line)
    return found


def manifest_bytes(tasks: Iterable[TaskLine]) -> bytes:
    """The bytes of a manifest with these tasks, in this order."""
    return b"".join(map(seal, tasks))


def hidden_files(folder: Path) -> list[str]:
    """The names of unfinished files below a folder, which a crash leaves, or a bug."""
    return [path.name for path in folder.rglob(".*")]


# Other processes.


@contextlib.contextmanager
def living_process() -> Iterator[Identity]:
    """The identity of a process of this host, which leads a group and lives as long as the block.

    Somebody else may end it before.
    """
    with subprocess.Popen(["sleep", "1000"], start_new_session=True) as process:
        try:
            who = identity_of(process.pid)
            assert who is not None
            yield who
        finally:
            process.kill()


def elsewhere(number: int = 0) -> Identity:
    """The identity of a process of another host; each number has one of its own."""
    return Identity(host="elsewhere", boot_id="another", pid_ns="", pid=1 + number, pid_start=7)


def dead_process() -> Identity:
    """The identity of a process of this host that was killed and reaped."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    who = identity_of(process.pid)
    process.kill()
    process.communicate()
    assert who is not None
    return who


_barrier: Any = None


def _arrive(barrier: Any) -> None:
    global _barrier
    _barrier = barrier


def _go(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    _barrier.wait(60)
    return function(*args)


def together() -> None:
    """Inside a function that `race` calls: wait until every process has come here."""
    _barrier.wait(60)


def race(function: Callable[..., Any], *argses: tuple[Any, ...]) -> list[Any]:
    """Call a function in several new processes at the same moment; returns what each returned.

    There is one process for each tuple of arguments. The function must be one of a module.
    """
    context = multiprocessing.get_context("spawn")
    with context.Pool(len(argses), _arrive, [context.Barrier(len(argses))]) as pool:
        results = pool.starmap(_go, [(function, args) for args in argses], chunksize=1)
        pool.close()
        pool.join()
    return results


def python(source: str, *args: object) -> subprocess.Popen[str]:
    """Start a script that can import what the tests can; its standard output is a pipe."""
    paths = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    return subprocess.Popen(
        [sys.executable, "-c", source, *map(str, args)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
