"""`python -m benchmarks.scale`: what looking at large spools costs, and closing many dead attempts.

Printed are CPU seconds of the whole command, since those hardly depend on what else the machine
does; how many files of the spool it opened, since on a network file system each open is a round
trip; and the most memory that it held. Each figure stands beside its limit, if there is one, and
whether it is met. Of `status --watch`, which looks again and again, it is the part of a core that
it takes while 64 ranks go on working.

With `--against DIR`, the root of another checkout that has a `.venv` of its own, each figure stands
beside that of the other version, measured right after it on the same files. A verb that a version
does not have is left out, and said to be.

The spools are made by hand (`spools.py`): to run a million tasks first would take longer than all
else here.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import functools
import importlib.util
import multiprocessing
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from benchmarks import report, timed
from benchmarks.spools import Busy, Pulse, Size, make_busy, make_dead, make_finished
from gpuspool.spool.identity import myself

FORMATS = ("jsonl", "csv", "parquet")

# The name of a spool in the folder that a command runs in.
SPOOL = "spool"

# No command here takes minutes; one that does has failed.
PATIENCE_S = 600.0

# With what click ends for a verb that there is not.
NO_SUCH_VERB = 2

# Before a command of which no output is kept. What the kernel tells of a command's largest size
# begins with that of the process that started it, so this one must stay small: it reads nothing
# that is large, and makes no spool itself.
UNHEARD = ("/bin/sh", "-c", 'exec "$@" >/dev/null', "sh")

# `status --watch` is let start for so many seconds, and measured for so many.
WATCH_START_S = 4.0
WATCHED_S = 30.0
WATCHED_QUICK_S = 3.0

# The terminal in which it is watched: lines, columns.
TERMINAL = (50, 120)

# The last two of these are what the targets are about. The first beside the second shows whether
# opens grow with the number of tasks.
FULL = (Size(25_000, 64, 4), Size(100_000, 64, 4), Size(1_000_000, 2, 64))
QUICK = (Size(400, 4, 4), Size(1_600, 4, 4))
DEAD_FULL = (50, 100, 200, 400, 800)
DEAD_QUICK = (2, 4)

# How many tasks of a busy run have failed; and of one with very many failures.
FAILED_ONE_OF = 100
FAILED_ONE_OF_FEW = 5

# The (tasks, ranks) of the spool for which there are limits.
JUDGED = (100_000, 64)

# The most CPU seconds that a verb may take at that size.
CPU_LIMITS = {"status": 0.3, "failed": 0.3, "explain a task": 0.35, "explain a rank": 0.35}

# The most CPU seconds that a page may take beside reading the spool, and the most MB that it may
# have. Up to 200,000 calls each is in it; above that it holds 800 bins for each rank.
PAGE_LIMITS = {(100_000, 64): (1.1, 1.7), (1_000_000, 2): (4.9, 0.07)}

# The size for which there are limits of writing a table, and the most CPU seconds and MB that each
# format may take there.
WRITTEN = (1_000_000, 2)
WRITING_CPU_LIMIT = 6.0
WRITING_MB_LIMIT = 400

# The most that `status --watch` may take, in percent of a core.
WATCH_LIMIT = 4.0


def explain_opens(ranks: int) -> int:
    """How many files `explain` may open."""
    return 4 * ranks + 3


P = ParamSpec("P")
T = TypeVar("T")


def elsewhere(make: Callable[P, T], *args: P.args, **more: P.kwargs) -> T:
    """Make a spool in a process of its own, since that grows; see `UNHEARD`."""
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawning) as pool:
        return pool.submit(make, *args, **more).result()


@dataclass(frozen=True)
class Verb:
    """A command that looks at a spool. words: the first is the verb that the version must have."""

    name: str
    words: tuple[str, ...]


def verbs_on(busy: Busy) -> list[Verb]:
    """What is asked of a busy run."""
    return [
        Verb("status", ("status", SPOOL)),
        Verb("failed", ("failed", SPOOL)),
        Verb("explain a task", ("explain", SPOOL, busy.failed_key)),
        Verb("explain a rank", ("explain", SPOOL, "rank", "0")),
        Verb("logs of a task", ("logs", SPOOL, "--task", busy.failed_key)),
        Verb("results", ("results", SPOOL)),
    ]


@functools.cache
def has_verb(verb: str, gpuspool: Path) -> bool:
    """Whether a version has this verb."""
    done = subprocess.run([gpuspool, verb, "--help"], capture_output=True, check=False)
    return done.returncode != NO_SUCH_VERB


def run(arguments: Sequence[str], folder: Path, gpuspool: Path) -> timed.Ended:
    """A whole command, its start included; nobody reads what it prints."""
    ended = timed.run([*UNHEARD, str(gpuspool), *arguments], folder, PATIENCE_S)
    assert ended is not None, arguments
    assert ended.code == 0, ended.complaint()
    return ended


def best(runs: int, arguments: Sequence[str], folder: Path, gpuspool: Path) -> timed.Ended:
    """A command that changes nothing, in that of some runs which took the least CPU."""
    several = (run(arguments, folder, gpuspool) for _ in range(runs))
    return min(several, key=lambda ended: ended.cpu_s)


def opens(arguments: Sequence[str], folder: Path, gpuspool: Path) -> int | None:
    """How often a command opens something of the spool; None where there is no strace."""
    if shutil.which("strace") is None:
        return None
    calls = folder / "calls"
    trace = [*UNHEARD, "strace", "-f", "-qq", "-e", "trace=open,openat", "-o", str(calls)]
    ended = timed.run([*trace, str(gpuspool), *arguments], folder, PATIENCE_S)
    assert ended is not None, arguments
    assert ended.code == 0, ended.complaint()
    beginning = f'"{folder / SPOOL}'
    with calls.open(errors="replace") as lines:
        return sum(beginning in line for line in lines)


@dataclass(frozen=True)
class Row:
    """A figure of each version that was measured, None where it could not be. limit: of ours."""

    what: str
    figures: tuple[float | None, ...]
    limit: float | None = None

    def cells(self) -> list[str]:
        """The figures as text; of two versions their ratio too; the limit, and how ours is."""
        cells = [_cell(figure) for figure in self.figures]
        ours = self.figures[0]
        if len(self.figures) > 1:
            theirs = self.figures[1]
            cells.append(f"{ours / theirs:.3f}" if ours and theirs else "–")
        cells.append("–" if self.limit is None else _cell(self.limit))
        is_judged = self.limit is not None and ours is not None
        cells.append("–" if not is_judged else self._verdict())
        return cells

    def _verdict(self) -> str:
        ours = self.figures[0]
        assert ours is not None
        assert self.limit is not None
        return "met" if ours <= self.limit else "not met"


class Table:
    """Figures, a line for each, printed as they come."""

    def __init__(self, versions: Sequence[Path]) -> None:
        self.versions = versions
        self.rows: list[Row] = []
        self.names = ["this"]
        if len(versions) > 1:
            self.names += ["other", "ratio"]
        self.names += ["limit", "is it met"]
        print(f"{'':60}" + "".join(f"{name:>10}" for name in self.names), flush=True)

    def add(self, what: str, figures: Sequence[float | None], limit: float | None = None) -> None:
        row = Row(what, tuple(figures), limit)
        self.rows.append(row)
        print(f"{what:60}" + "".join(f"{cell:>10}" for cell in row.cells()), flush=True)

    def measure(
        self, what: str, measure: Callable[[Path], float | None], limit: float | None = None
    ) -> None:
        """Add what is measured of each version."""
        self.add(what, [measure(gpuspool) for gpuspool in self.versions], limit)

    def skip(self, what: str, reason: str) -> None:
        """Say that there is no figure."""
        print(f"{what:60}  left out: {reason}", flush=True)

    def markdown(self) -> str:
        """The table for a page."""
        text = f"| what | {' | '.join(self.names)} |\n|---|{'---|' * len(self.names)}\n"
        return text + "".join(f"| {row.what} | {' | '.join(row.cells())} |\n" for row in self.rows)


def _cell(figure: float | None) -> str:
    if figure is None:
        return "–"
    if isinstance(figure, int):
        return f"{figure:,}"
    return f"{figure:.2f}"


def looking(verb: Verb, case: str, folder: Path, table: Table, runs: int, size: Size) -> None:
    """What one verb costs on the spool in a folder."""
    what = f"{verb.name}, {case}"
    if not has_verb(verb.words[0], table.versions[0]):
        table.skip(what, f"this version has no `gpuspool {verb.words[0]}`")
        return
    ended = [
        best(runs, verb.words, folder, gpuspool) if has_verb(verb.words[0], gpuspool) else None
        for gpuspool in table.versions
    ]
    is_judged = (size.tasks, size.ranks) == JUDGED
    cpu_limit = CPU_LIMITS.get(verb.name) if is_judged else None
    table.add(f"{what}: CPU s", [one and one.cpu_s for one in ended], cpu_limit)
    n_opens = [
        opens(verb.words, folder, gpuspool) if has_verb(verb.words[0], gpuspool) else None
        for gpuspool in table.versions
    ]
    open_limit = explain_opens(size.ranks) if verb.words[0] == "explain" else None
    table.add(f"{what}: opens", n_opens, open_limit)
    table.add(f"{what}: MB", [one and round(one.peak_mb) for one in ended])


def nothing(home: Path, table: Table, runs: int) -> None:
    """What a command takes that reads no spool. CPU seconds grow on a busy machine, and this tells
    how much of the other figures that is.
    """
    with timed.fresh(home / "nothing") as folder:
        table.measure(
            "--help, without a spool: CPU s",
            lambda gpuspool: best(runs, ("--help",), folder, gpuspool).cpu_s,
        )


def reading(size: Size, home: Path, table: Table, runs: int) -> None:
    """The verbs that read a finished run."""
    with timed.fresh(home / "reading") as folder:
        elsewhere(make_finished, folder / SPOOL, size)
        case = f"finished, {size.tasks:,} tasks x {size.ranks} ranks"
        for verb in ("status", "results"):
            looking(Verb(verb, (verb, SPOOL)), case, folder, table, runs, size)
        handing_on(case, folder, table, runs, size)


def handing_on(case: str, folder: Path, table: Table, runs: int, size: Size) -> None:
    """The page of a run: what it costs beside `status`, which reads the same, and its size."""
    looking(Verb("report", ("report", SPOOL)), case, folder, table, runs, size)
    if not has_verb("report", table.versions[0]):
        return
    ours = table.versions[0]
    seconds = [best(runs, (verb, SPOOL), folder, ours).cpu_s for verb in ("report", "status")]
    limits = PAGE_LIMITS.get((size.tasks, size.ranks), (None, None))
    table.add(f"report less status, {case}: CPU s", [seconds[0] - seconds[1]], limits[0])
    megabytes = (folder / SPOOL / "report.html").stat().st_size / 1e6
    table.add(f"report, {case}: MB of the file", [megabytes], limits[1])


def tables() -> list[Verb]:
    """The formats of a table, and what makes most work of it."""
    formats = ("jsonl", "csv") if importlib.util.find_spec("pyarrow") is None else FORMATS
    found = [
        Verb(f"results -o x.{name}", ("results", SPOOL, "-o", f"x.{name}")) for name in formats
    ]
    return found + [Verb(f"{verb.name} --flatten", (*verb.words, "--flatten")) for verb in found]


def writing(size: Size, home: Path, table: Table, runs: int) -> None:
    """What a table of a finished run costs, in each format."""
    with timed.fresh(home / "writing") as folder:
        elsewhere(make_finished, folder / SPOOL, size)
        for verb in tables():
            what = f"{verb.name}, finished, {size.tasks:,} tasks x {size.ranks} ranks"
            if not _has_tables(table.versions[0]):
                table.skip(what, "this version writes no tables")
                continue
            ended = [
                best(runs, verb.words, folder, gpuspool) if _has_tables(gpuspool) else None
                for gpuspool in table.versions
            ]
            # To flatten takes longer as text, for which nobody has set a limit.
            has_limit = "--flatten" not in verb.words or verb.words[-2] == "x.parquet"
            is_judged = (size.tasks, size.ranks) == WRITTEN and has_limit
            cpu_limit = WRITING_CPU_LIMIT if is_judged else None
            mb_limit = WRITING_MB_LIMIT if (size.tasks, size.ranks) == WRITTEN else None
            table.add(f"{what}: CPU s", [one and one.cpu_s for one in ended], cpu_limit)
            table.add(f"{what}: MB", [one and round(one.peak_mb) for one in ended], mb_limit)


@functools.cache
def _has_tables(gpuspool: Path) -> bool:
    """Whether `results` of a version writes tables."""
    done = subprocess.run([gpuspool, "results", "--help"], capture_output=True, check=False)
    return b"--flatten" in done.stdout


def looking_at_work(size: Size, home: Path, table: Table, runs: int, watched_s: float) -> None:
    """The verbs that look, on a run that is at work, and has had its troubles."""
    with timed.fresh(home / "busy") as folder:
        failed = size.tasks // FAILED_ONE_OF
        busy = elsewhere(make_busy, folder / SPOOL, size, failed, myself())
        case = f"at work, {size.tasks:,} tasks x {size.ranks} ranks"
        for verb in verbs_on(busy):
            looking(verb, case, folder, table, runs, size)
        watching(case, folder, table, watched_s, size)


def many_failures(size: Size, home: Path, table: Table, runs: int) -> None:
    """The verbs that are about failures, on a run where every fifth task has failed."""
    failed = size.tasks // FAILED_ONE_OF_FEW
    with timed.fresh(home / "failing") as folder:
        busy = elsewhere(make_busy, folder / SPOOL, size, failed, myself())
        case = f"{failed:,} failed of {size.tasks:,} tasks x {size.ranks} ranks"
        for verb in verbs_on(busy)[:3]:
            looking(verb, case, folder, table, runs, size)


# Watching.


def watching(case: str, folder: Path, table: Table, seconds: float, size: Size) -> None:
    """What `status --watch` takes in a terminal, in percent of a core, while the ranks go on."""
    limit = WATCH_LIMIT if size.ranks == JUDGED[1] else None
    with Pulse(folder / SPOOL):
        table.measure(
            f"status --watch, {case}: % of a core",
            lambda gpuspool: share_of_core(folder, gpuspool, seconds),
            limit,
        )


def share_of_core(folder: Path, gpuspool: Path, seconds: float) -> float:
    """The CPU time of `status --watch` over the time that passes, in percent, after its start."""
    with in_terminal([str(gpuspool), "status", "--watch", SPOOL], folder) as watch:
        time.sleep(WATCH_START_S)
        before_s, began = cpu_of(watch.pid), time.monotonic()
        time.sleep(seconds)
        after_s, took_s = cpu_of(watch.pid), time.monotonic() - began
        assert watch.poll() is None, "the watch has ended"
    return 100 * (after_s - before_s) / took_s


def cpu_of(pid: int) -> float:
    """The CPU seconds that the threads of a live process have taken so far."""
    # /proc/PID/stat counts in hundredths, which is too coarse here.
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


@contextlib.contextmanager
def in_terminal(argv: Sequence[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command in a terminal that somebody reads, until the block ends; then Ctrl-C ends it."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *TERMINAL, 0, 0))
    surroundings = timed.environment(folder, os.path.dirname(argv[0])) | {"TERM": "xterm-256color"}
    process = subprocess.Popen(
        argv, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=surroundings,
        start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    reader = threading.Thread(target=_read_all, args=(ours,), daemon=True)
    reader.start()
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join()
        os.close(ours)


def _read_all(fd: int) -> None:
    """Read what a terminal shows until nobody writes to it any more."""
    with contextlib.suppress(OSError):
        while select.select([fd], [], [])[0] and os.read(fd, 65536):
            pass


# Closing.


def closing(count: int, home: Path, table: Table, runs: int) -> None:
    """A resume that has to close so many dead attempts."""
    table.measure(
        f"resume, {count} dead attempts: CPU s",
        lambda gpuspool: min(_close_once(count, home, gpuspool) for _ in range(runs)),
    )


def _close_once(count: int, home: Path, gpuspool: Path) -> float:
    """A resume changes its spool, so each needs one of its own."""
    with timed.fresh(home / "closing") as folder:
        elsewhere(make_dead, folder / SPOOL, count)
        seconds = run(("resume", SPOOL, "--quiet"), folder, gpuspool).cpu_s
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
        "--only",
        nargs="+",
        choices=list(PARTS),
        default=list(PARTS),
        metavar="PART",
        help=f"measure no more than these: {', '.join(PARTS)}",
    )
    parser.add_argument(
        "--home", type=Path, help="where the spools are made; default a new folder in TMPDIR"
    )
    parser.add_argument("--doc", type=Path, help="put the table into this page")
    return parser.parse_args(argv)


# What is measured, in this order.
PARTS = ("finished", "written", "at work", "failing", "closing")


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    versions = [Path(sys.executable).with_name("gpuspool")]
    if options.against is not None:
        versions.append(options.against.resolve() / ".venv" / "bin" / "gpuspool")
    sizes, dead, watched_s = FULL, DEAD_FULL, WATCHED_S
    if options.quick:
        sizes, dead, watched_s = QUICK, DEAD_QUICK, WATCHED_QUICK_S
    table = Table(versions)
    with tempfile.TemporaryDirectory(prefix="scale-", dir=options.home) as made:
        home = Path(made).resolve()
        nothing(home, table, options.runs)
        for size in sizes:
            if "finished" in options.only:
                reading(size, home, table, options.runs)
            if "written" in options.only:
                writing(size, home, table, options.runs)
            if "at work" in options.only:
                looking_at_work(size, home, table, options.runs, watched_s)
        if "failing" in options.only:
            many_failures(sizes[1], home, table, options.runs)
        for count in dead if "closing" in options.only else ():
            closing(count, home, table, options.runs)
    if options.doc is not None:
        page = options.doc.read_text()
        options.doc.write_text(report.replace_part(page, "scale", table.markdown()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
