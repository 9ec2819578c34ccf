"""Spools made by hand, for the tests of the protocol: no orchestrator and no worker, only the
files.

What a test does to a spool it does through the public functions of `spool`, or to the bytes
themselves.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from gpuspool.spool.claims import ClaimChain
from gpuspool.spool.closing import close_attempts
from gpuspool.spool.codec import encode, seal, seal_pretty
from gpuspool.spool.death import Crashed, Death, Lost, Witness
from gpuspool.spool.identity import identity_of, myself
from gpuspool.spool.journal import JournalReader, JournalWriter, start_journal
from gpuspool.spool.layout import FORMAT_TEXT, SUBDIRS, Layout, attempt_name, rank_name
from gpuspool.spool.manifest import Damage, publish_manifest
from gpuspool.spool.publish import publish
from gpuspool.spool.records import (
    Claim,
    Closing,
    Fingerprint,
    Identity,
    Intent,
    Job,
    JournalLine,
    Options,
    Run,
    TaskLine,
)
from gpuspool.spool.view import View, load_run

A0, A1, B0, C0 = attempt_name(0, 0), attempt_name(0, 1), attempt_name(1, 0), attempt_name(2, 0)
JOB = Job(
    kind="file",
    spec="job.py:work",
    name="work",
    file="/somewhere/job.py",
    copy="job.py",
    sha256="12ab",
)


def task(index: int, **more: Any) -> TaskLine:
    """The task t<index>, of cost 1 unless said otherwise."""
    return TaskLine(
        **{"task": index, "key": f"t{index}", "payload": msgspec.Raw(b"%d" % index), "cost": 1.0}
        | more
    )


def some_run(tasks: int, manifests: int = 1) -> Run:
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
    )


def make_spool(root: Path, *planned: int | Sequence[TaskLine]) -> Layout:
    """A spool with one manifest for each rank: so many new tasks, or these. It ends up whole, as
    `gpuspool run`'s.
    """
    layout, count = Layout(root), 0
    root.mkdir(parents=True)
    for name in SUBDIRS:
        layout.subdir(name).mkdir()
    for rank, tasks in enumerate(planned):
        lines = (
            [task(index) for index in range(count, count + tasks)]
            if isinstance(tasks, int)
            else tasks
        )
        count += len(lines)
        assert publish_manifest(layout, rank_name(rank), lines)
    publish(layout.format, FORMAT_TEXT.encode())
    publish(layout.run, seal_pretty(some_run(count, len(planned))))
    return layout


def view_of(layout: Layout) -> View:
    """A view by somebody who comes new to the spool."""
    return View(layout, load_run(layout)).refresh()


def intend(layout: Layout, attempt: str, epoch: int = 0, parent: Identity | None = None) -> Intent:
    """Write the intent to start an attempt, by this process unless another parent is named."""
    intent = Intent(
        attempt=attempt,
        epoch=epoch,
        device="0",
        world_size=2,
        argv=["python", "-m", "gpuspool.worker"],
        parent=parent or myself(),
        job=JOB,
        options=Options(),
        environment={"CUDA_VISIBLE_DEVICES": "0"},
        at=1700000000.5,
    )
    assert publish(layout.intent(attempt), seal_pretty(intent))
    return intent


def begin(layout: Layout, attempt: str) -> JournalWriter:
    """Start an attempt that this process plays."""
    writer = start_journal(layout, attempt, myself())
    assert writer is not None
    return writer


def take(layout: Layout, attempt: str, stop: int, manifest: str = rank_name(0)) -> Claim:
    """Claim the places of a manifest from where its claims end to `stop`."""
    end = layout.manifest(manifest).read_bytes().count(b"\n") - manifest.endswith(".orphans")
    claim = ClaimChain(layout, manifest, end).advance().take(attempt, stop)
    assert claim is not None
    return claim


def finish(writer: JournalWriter, *tasks: int, round_: int = 0, state: str = "complete") -> None:
    for index in tasks:
        writer.append(
            JournalLine(task=index, round=round_, state=state, start=1700000000.0, seconds=0.25)
        )


def close_dead(
    view: View,
    attempt: str,
    by: str = "test",
    death: Death | None = None,
    witness: Witness | None = None,
) -> Closing | None:
    """Close one attempt: lost unless its death, or a witness of it, is given."""
    if death is None:
        death = Lost() if witness is None else Crashed(witness)
    return close_attempts(view, {attempt: death}, by).get(attempt)


def indices(lines: Iterable[TaskLine]) -> list[int]:
    return [line.task for line in lines]


def verdicts(view: View) -> str:
    """One letter a task: c, f, or - for none."""
    return "".join((view.ledger.verdict(index) or "-")[0] for index in range(view.run.tasks))


def read_journal(layout: Layout, attempt: str) -> tuple[list[tuple[int, bytes]], list[Damage]]:
    """Every line of a journal with its offset, and the damage that was reported."""
    damage: list[Damage] = []
    lines = JournalReader(layout, attempt, damage.append).read(msgspec.Raw)
    return [(at, bytes(line)) for at, line in lines], damage


def write_claim(layout: Layout, manifest: str, start: int, data: bytes | Claim) -> None:
    """A claim file as it is, whatever it holds."""
    path = layout.claim(manifest, start)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(encode(data) if isinstance(data, Claim) else data)


def cuts(data: bytes) -> Iterator[bytes]:
    """Every proper beginning of some bytes."""
    return (data[:length] for length in range(len(data)))


def flips(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(offset, the bytes with one bit there changed), for every bit."""
    for at in range(len(data)):
        for bit in range(8):
            yield at, data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]


def sealed_lines(data: bytes) -> list[tuple[int, int]]:
    """(offset, end without the newline) of the lines in some bytes."""
    found, at = [], 0
    for line in data.splitlines(keepends=True):
        found.append((at, at + len(line) - line.endswith(b"\n")))
        at += len(line)
    return found


def manifest_bytes(tasks: Iterable[TaskLine]) -> bytes:
    return b"".join(map(seal, tasks))


def hidden_files(folder: Path) -> list[str]:
    """What a crash or a loser left below a folder."""
    return [path.name for path in folder.rglob(".*")]


def dead_process() -> Identity:
    """The identity of a process that lived on this host, and was reaped."""
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
    """Inside `race`: wait until every process has come to this line."""
    _barrier.wait(60)


def race(function: Callable[..., Any], *argses: tuple[Any, ...]) -> list[Any]:
    """Call a function of a module in one new process for each tuple of arguments, at the same
    moment.
    """
    context = multiprocessing.get_context("spawn")
    with context.Pool(len(argses), _arrive, [context.Barrier(len(argses))]) as pool:
        results = pool.starmap(_go, [(function, args) for args in argses], chunksize=1)
        pool.close()
        pool.join()
    return results


def python(source: str, *args: object) -> subprocess.Popen[str]:
    """A process that runs a script which can import what the tests can; its output is a pipe."""
    paths = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    return subprocess.Popen(
        [sys.executable, "-c", source, *map(str, args)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
