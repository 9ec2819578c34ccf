"""`python -m benchmarks.scale`: what looking at large spools costs, and closing many dead attempts.

Printed are CPU seconds of the whole command, since those hardly depend on what else the machine
does, and how many files of the spool it opened, since on a network file system each open is a round
trip. With `--against DIR`, the root of another checkout that has a `.venv` of its own, each figure
stands beside that of the other version, measured right after it on the same files.

The spools are made by hand, in the bytes that a run would have left: to run a million tasks first
would take longer than all else here.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from msgspec import Raw
from msgspec.structs import asdict, replace

from benchmarks import timed
from gpuspool.spool.codec import encode, seal, seal_lines, seal_pretty
from gpuspool.spool.identity import myself
from gpuspool.spool.layout import FORMAT_TEXT, OUT_MARK, SUBDIRS, Layout, attempt_name, rank_name
from gpuspool.spool.records import (
    Claim,
    Closing,
    Fingerprint,
    Heartbeat,
    Identity,
    Intent,
    Job,
    JournalHead,
    JournalLine,
    Options,
    Record,
    Run,
    TaskLine,
)
from gpuspool.spool.states import AttemptState, JobKind, LineState, Phase, Reason

# The name of a spool in the folder that a command runs in.
SPOOL = "spool"

# No command here takes minutes; one that does has failed.
PATIENCE_S = 600.0

# When all that the spools tell of happened, in Unix seconds.
THEN = 1.7e9

JOB = Job(kind=JobKind.COMMAND, spec="true", name="true", command=["true"])


@dataclass(frozen=True)
class Size:
    """A finished run. A claim has few tasks where each took long."""

    tasks: int
    ranks: int
    tasks_a_claim: int


# The last two are what the targets are about. The first beside the second shows whether opens grow
# with the number of tasks.
FULL = (Size(25_000, 64, 4), Size(100_000, 64, 4), Size(1_000_000, 2, 64))
QUICK = (Size(400, 4, 4), Size(1_600, 4, 4))
DEAD_FULL = (50, 100, 200, 400, 800)
DEAD_QUICK = (2, 4)


def make_finished(root: Path, size: Size) -> None:
    """The spool of a run that is over: every task complete, every attempt closed by itself."""
    made = _Maker(root, size.ranks)
    for rank in range(size.ranks):
        tasks = range(rank, size.tasks, size.ranks)
        attempt = attempt_name(rank, 0)
        made.plan(rank, tasks)
        made.work(attempt, tasks, size.tasks_a_claim)
        closing = Closing(
            attempt=attempt,
            state=AttemptState.COMPLETE,
            reason=Reason.FINISHED,
            by=attempt,
            at=THEN,
        )
        made.write(made.layout.orphans(attempt), seal(closing))
        made.write(made.layout.status(closing.state, attempt), encode(closing))
    made.finish(size.tasks)


def make_dead(root: Path, count: int) -> None:
    """A spool on which so many ranks died together, each after the last of its four tasks.

    A resume has to close them all, and then finds nothing left to run: what it costs is closing.
    """
    made = _Maker(root, count)
    for rank in range(count):
        tasks = range(rank, 4 * count, count)
        made.plan(rank, tasks)
        made.work(attempt_name(rank, 0), tasks, len(tasks))
    made.finish(4 * count)


class _Maker:
    """Writes a spool as it is, without the care for crashes that a real one takes."""

    def __init__(self, root: Path, ranks: int) -> None:
        self.layout = Layout(root)
        self._ranks = ranks
        self._checksums: list[int] = []
        # A process of this host and boot that is gone: no process began with the first tick.
        self._gone: Identity = replace(myself(), pid_start=1)
        for name in SUBDIRS:
            self.layout.subdir(name).mkdir(parents=True)
        self.layout.outputs.mkdir()

    @staticmethod
    def write(path: Path, data: bytes) -> None:
        path.write_bytes(data)

    def plan(self, rank: int, tasks: Iterable[int]) -> None:
        """The manifest of a rank."""
        data = _sealed(
            TaskLine(task=task, key=f"t{task}", payload=Raw(b'"input-%d"' % task), cost=1.0)
            for task in tasks
        )
        self._checksums.append(zlib.crc32(data))
        self.write(self.layout.manifest(rank_name(rank)), data)
        self.layout.claims(rank_name(rank)).mkdir()

    def work(self, attempt: str, tasks: Sequence[int], tasks_a_claim: int) -> None:
        """An attempt that claimed and completed all tasks of its rank, in order."""
        layout = self.layout
        manifest = attempt.rpartition(".")[0]
        for start in range(0, len(tasks), tasks_a_claim):
            stop = min(start + tasks_a_claim, len(tasks))
            claim = Claim(attempt=attempt, start=start, stop=stop, at=THEN)
            self.write(layout.claim(manifest, start), encode(claim))
        intent = Intent(
            attempt=attempt,
            epoch=0,
            device="",
            world_size=self._ranks,
            argv=["gpuspool-worker"],
            parent=self._gone,
            job=JOB,
            options=Options(),
            environment={},
            at=THEN,
        )
        self.write(layout.intent(attempt), seal_pretty(intent))
        head = JournalHead(**asdict(self._gone), attempt=attempt)
        lines = _sealed(
            JournalLine(
                task=task,
                round=0,
                state=LineState.COMPLETE,
                start=THEN + 0.01 * task,
                seconds=0.01,
                result=Raw(b'{"label":"cat","score":0.9%d}' % task),
            )
            for task in tasks
        )
        self.write(layout.journal(attempt), seal(head) + lines)
        heartbeat = Heartbeat(
            **asdict(self._gone),
            attempt=attempt,
            beat=1,
            parent="",
            device="",
            state=Phase.IDLE,
            at=THEN,
        )
        self.write(layout.heartbeat(attempt), encode(heartbeat))

    def finish(self, tasks: int) -> None:
        """run.json, which makes a spool of all this."""
        run_id = "0123456789abcdef"
        self.write(self.layout.outputs / OUT_MARK, f"{run_id}\n".encode())
        run = Run(
            id=run_id,
            job=JOB,
            args={},
            tasks=tasks,
            cost=float(tasks),
            fingerprint=Fingerprint(job_sha256="", args_sha256="", tasks_sha256="", seed=0, out=""),
            options=Options(ranks=1),
            submit_dir=str(self.layout.root.parent),
            out=None,
            created_at=THEN,
            versions={},
            argv=["gpuspool", "run"],
            manifests=self._ranks,
            manifests_crc32=self._checksums,
        )
        self.write(self.layout.format, FORMAT_TEXT.encode())
        self.write(self.layout.run_copy, seal_pretty(run))
        self.write(self.layout.run, seal_pretty(run))


def _sealed(records: Iterable[Record]) -> bytes:
    return b"".join(seal_lines(records))


def cpu_s(arguments: Sequence[str], folder: Path, gpuspool: Path) -> float:
    """The CPU seconds of a whole command, its start included."""
    ended = timed.run([str(gpuspool), *arguments], folder, PATIENCE_S)
    assert ended is not None, arguments
    assert ended.code == 0, ended.complaint()
    return ended.cpu_s


def least_cpu_s(runs: int, arguments: Sequence[str], folder: Path, gpuspool: Path) -> float:
    """The CPU seconds of a command that changes nothing, in the best of some runs."""
    return min(cpu_s(arguments, folder, gpuspool) for _ in range(runs))


def opens(arguments: Sequence[str], folder: Path, gpuspool: Path) -> int | None:
    """How often a command opens something of the spool; None where there is no strace."""
    if shutil.which("strace") is None:
        return None
    calls = folder / "calls"
    trace = ["strace", "-f", "-qq", "-e", "trace=open,openat", "-o", str(calls)]
    ended = timed.run([*trace, str(gpuspool), *arguments], folder, PATIENCE_S)
    assert ended is not None, arguments
    assert ended.code == 0, ended.complaint()
    beginning = f'"{folder / SPOOL}'
    with calls.open(errors="replace") as lines:
        return sum(beginning in line for line in lines)


class Table:
    """Figures, a line for each: of this version, and of the other if there is one."""

    def __init__(self, versions: Sequence[Path]) -> None:
        self._versions = versions
        names = ["this"]
        if len(versions) > 1:
            names += ["other", "ratio"]
        print(f"{'':44}" + "".join(f"{name:>12}" for name in names), flush=True)

    def add(self, what: str, measure: Callable[[Path], float | None]) -> None:
        figures = [measure(gpuspool) for gpuspool in self._versions]
        cells = [_cell(figure) for figure in figures]
        if len(figures) > 1 and None not in figures:
            ours, theirs = figures
            assert ours is not None
            assert theirs is not None
            cells.append(f"{ours / theirs:.3f}")
        print(f"{what:44}" + "".join(f"{cell:>12}" for cell in cells), flush=True)


def _cell(figure: float | None) -> str:
    if figure is None:
        return "no strace"
    if isinstance(figure, int):
        return str(figure)
    return f"{figure:.2f}"


def reading(size: Size, home: Path, table: Table, runs: int) -> None:
    """The verbs that read a finished run."""
    with timed.fresh(home / "reading") as folder:
        make_finished(folder / SPOOL, size)
        for verb in ("status", "results"):
            command = (verb, SPOOL)
            case = f"{verb}, {size.tasks:,} tasks x {size.ranks} ranks"
            table.add(f"{case}: CPU s", partial(least_cpu_s, runs, command, folder))
            table.add(f"{case}: opens", partial(opens, command, folder))


def closing(count: int, home: Path, table: Table, runs: int) -> None:
    """A resume that has to close so many dead attempts."""
    table.add(f"resume, {count} dead attempts: CPU s", partial(_least_closing, runs, count, home))


def _least_closing(runs: int, count: int, home: Path, gpuspool: Path) -> float:
    return min(_close_once(count, home, gpuspool) for _ in range(runs))


def _close_once(count: int, home: Path, gpuspool: Path) -> float:
    """A resume changes its spool, so each needs one of its own."""
    with timed.fresh(home / "closing") as folder:
        make_dead(folder / SPOOL, count)
        seconds = cpu_s(("resume", SPOOL, "--quiet"), folder, gpuspool)
        n_closed = sum(1 for _ in (folder / SPOOL / "manifests").glob("*.orphans.jsonl"))
        assert n_closed == count, n_closed
    return seconds


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale",
        description="What looking at large spools costs, and closing many dead attempts.",
    )
    parser.add_argument(
        "--against", type=Path, metavar="DIR", help="another checkout, with a .venv of its own"
    )
    parser.add_argument("--quick", action="store_true", help="small spools: a smoke test")
    parser.add_argument("--runs", type=int, default=3, help="of which the least counts; default 3")
    parser.add_argument(
        "--home", type=Path, help="where the spools are made; default a new folder in TMPDIR"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    versions = [Path(sys.executable).with_name("gpuspool")]
    if options.against is not None:
        versions.append(options.against.resolve() / ".venv" / "bin" / "gpuspool")
    sizes, dead = FULL, DEAD_FULL
    if options.quick:
        sizes, dead = QUICK, DEAD_QUICK
    table = Table(versions)
    with tempfile.TemporaryDirectory(prefix="scale-", dir=options.home) as made:
        home = Path(made).resolve()
        for size in sizes:
            reading(size, home, table, options.runs)
        for count in dead:
            closing(count, home, table, options.runs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
