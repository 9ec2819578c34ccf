"""Benches of gpuspool alone: how soon its parent acts, and how it uses the file system.

The figures come from the records that a spool keeps, from /proc and from strace. Nothing of
gpuspool is changed or imported.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import timed, traces
from benchmarks.points import Point, Setting, command, start, whole

PATIENCE_S = 300.0
LONG_S = 10_000.0
METADATA = (
    "access", "chmod", "creat", "faccessat", "faccessat2", "fstat", "getdents64", "link", "linkat",
    "lstat", "mkdir", "mkdirat", "newfstatat", "open", "openat", "readlink", "readlinkat", "rename",
    "renameat", "renameat2", "rmdir",
    "stat", "statfs", "statx", "unlink", "unlinkat", "fsync", "fdatasync",
)  # fmt: skip


def latency(setting: Setting) -> Iterator[Point]:
    """The time from an attempt's status record to the parent's next intent.

    Each task drains its own worker, so one run has as many such moments as tasks. The worker writes
    its record before it syncs and links it, so the figure is an upper bound.
    """
    n, case = setting.sizes.latency, "status record to next attempt"
    with timed.fresh(setting.folder()) as folder:
        traces.write_tasks(folder, [0.0] * n)
        _, wrong = whole(setting, n, 1, folder, PATIENCE_S)
        if wrong:
            yield setting.point(case, "median", "ms", None, wrong)
            return
        seconds = list(_reactions(folder / "spool"))
    assert len(seconds) >= n - 1, (len(seconds), n)
    yield setting.point(case, "median", "ms", 1000 * statistics.median(seconds))
    yield setting.point(case, "largest", "ms", 1000 * max(seconds))


def _reactions(spool: Path) -> Iterator[float]:
    for path in sorted((spool / "stopped").glob("*.json")):
        number = int(path.stem.rpartition(".a")[2]) + 1
        following = spool / "attempts" / f"{path.stem.rpartition('.a')[0]}.a{number:02d}.json"
        if following.exists():
            yield json.loads(following.read_bytes())["at"] - json.loads(path.read_bytes())["at"]


def idle(setting: Setting) -> Iterator[Point]:
    """The parent while all ranks are in long tasks: CPU, memory, and calls that touch names or ask
    for durability.
    """
    ranks, window_s = setting.sizes.idle_ranks, setting.sizes.idle_s
    case = f"{ranks} busy ranks"
    with timed.fresh(setting.folder()) as folder:
        traces.write_tasks(folder, [LONG_S] * ranks)
        running = start(setting, ranks, ranks, folder)
        beats = folder / "spool" / "heartbeat"
        began = timed.wait_until(
            lambda: _busy(beats) == ranks or running.is_over(), PATIENCE_S, 0.05
        )
        assert began, running.said()
        assert not running.is_over(), running.said()
        time.sleep(setting.sizes.settle_s)
        before = _cpu_s(running.pid)
        time.sleep(window_s)
        share = 100 * (_cpu_s(running.pid) - before) / window_s
        memory = _peak_mb(running.pid)
        calls = _calls_of(running.pid, window_s, folder)
        running.kill_and_reap()
    yield setting.point(case, "parent's CPU", "% of a core", share)
    yield setting.point(case, "parent's peak memory", "MB", memory)
    rate = None if calls is None else calls / window_s
    yield setting.point(
        case,
        "parent's metadata calls",
        "per s",
        rate,
        "" if calls is not None else "strace is missing",
    )


def _busy(beats: Path) -> int:
    """How many attempts have told by a beat that they run. The first beat comes early."""
    files = list(beats.glob("rank-*.json")) if beats.is_dir() else []
    return sum(json.loads(path.read_bytes())["state"] == "running" for path in files)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _peak_mb(pid: int) -> float:
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match is not None
    return int(match[1]) / 1024


def _calls_of(pid: int, window_s: float, folder: Path) -> int | None:
    """How many metadata calls a process and its threads make in the window; None without strace."""
    if shutil.which("strace") is None:
        return None
    table = folder / "calls"
    trace = ["strace", "-f", "-c", "-U", "calls,name", "-o", str(table), "-p", str(pid)]
    tracer = subprocess.Popen(trace, stderr=subprocess.DEVNULL)
    time.sleep(window_s)
    tracer.terminate()
    tracer.wait()
    return _metadata_calls(table)


def _metadata_calls(table: Path) -> int:
    """Of a table "calls name", as `strace -c -U calls,name` writes it."""
    rows = (line.split() for line in table.read_text().splitlines())
    return sum(int(row[0]) for row in rows if len(row) == 2 and row[1] in METADATA)


def metadata(setting: Setting) -> Iterator[Point]:
    """Metadata calls of all processes for each empty task: a long run's, less an empty run's."""
    n, case = setting.sizes.metadata, f"{setting.sizes.metadata} tasks, 2 ranks"
    if shutil.which("strace") is None:
        yield setting.point(case, "metadata calls", "per task", None, "strace is missing")
        return
    many, few = _traced(setting, n), _traced(setting, 2)
    yield setting.point(case, "metadata calls", "per task", (many - few) / (n - 2))
    yield setting.point("2 tasks, 2 ranks", "metadata calls", "in all", few)


def ahead(setting: Setting) -> Iterator[Point]:
    """Inputs that take as long to load as to work on: how much loading them ahead gains."""
    n, seconds = setting.sizes.ahead, setting.sizes.ahead_s
    case = f"load {1000 * seconds:g} ms, compute {1000 * seconds:g} ms"
    took = {}
    for bench in ("ahead", "ahead_not"):
        with timed.fresh(setting.folder()) as folder:
            traces.write_tasks(folder, [seconds] * n)
            _, wrong = whole(setting, n, 2, folder, PATIENCE_S, bench)
            if wrong:
                yield setting.point(case, "times the rate without", "", None, wrong)
                return
            took[bench] = traces.makespan(traces.read_traces(folder))
    yield setting.point(case, "times the rate without", "", took["ahead_not"] / took["ahead"])


def ranks(setting: Setting) -> Iterator[Point]:
    """Many ranks on few cores, with tasks that sleep: the makespan, and what the spool costs.

    The makespan is held against a bound: arithmetic over the time that the tasks really took, and
    over the time that ranks missed because they began late.
    """
    world, n = setting.sizes.ranks, setting.sizes.ranks * setting.sizes.tasks_a_rank
    case = f"{n} tasks, {world} ranks"
    with timed.fresh(setting.folder()) as folder:
        traces.write_tasks(folder, [setting.sizes.ranks_s] * n)
        ended, wrong = whole(setting, n, world, folder, PATIENCE_S)
        if ended is None or wrong:
            yield setting.point(case, "makespan / lower bound", "", None, wrong)
            return
        executions = traces.read_traces(folder)
        claims = sum(1 for _ in (folder / "spool" / "claims").glob("*/*"))
        files = sum(path.is_file() for path in (folder / "spool").rglob("*"))
    bound = traces.bound_of_late(executions, world)
    yield setting.point(case, "makespan / lower bound", "", traces.makespan(executions) / bound)
    yield setting.point(case, "claims", "per task", claims / n)
    yield setting.point(case, "files in the spool", "in all", files)
    yield setting.point(case, "memory of the largest process", "MB", ended.peak_mb)
    if shutil.which("strace") is not None:
        many, few = _traced(setting, n, world), _traced(setting, world, world)
        yield setting.point(case, "metadata calls", "per task", (many - few) / (n - world))


def _traced(setting: Setting, n: int, world: int = 2) -> int:
    with timed.fresh(setting.folder()) as folder:
        traces.write_tasks(folder, [setting.sizes.ranks_s if setting.bench == "ranks" else 0.0] * n)
        argv, _ = command(setting, n, world, folder)
        table = folder / "calls"
        trace = [
            "strace",
            "-f",
            "-c",
            "-U",
            "calls,name",
            "-e",
            f"trace={','.join(METADATA)}",
            "-o",
            str(table),
        ]
        ended = timed.run([*trace, *argv], folder, PATIENCE_S, **setting.surroundings())
        assert ended is not None
        assert ended.code == 0, ended.complaint()
        return _metadata_calls(table)
