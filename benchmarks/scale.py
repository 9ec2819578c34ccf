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
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks import timed

# The name of a spool in the folder that a command runs in.
SPOOL = "spool"

# No command here takes minutes; one that does has failed.
PATIENCE_S = 600.0

# When all that the spools tell of happened, in Unix seconds.
THEN = 1.7e9


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
