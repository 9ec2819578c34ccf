"""The benches that every system can be put through.

Each function is one repetition for one peer, and yields its figures.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import timed, traces
from benchmarks.peers import HERE
from benchmarks.points import Point, Setting, growing, start, whole

WORKERS = 2
LOSS_WORKERS = 4
PATIENCE_S = 600.0


def throughput(setting: Setting) -> Iterator[Point]:
    """Tasks that do nothing: the whole command for each N, and the rate without start-up.

    The latter is the slope from the least N to the largest.
    """
    ends: dict[int, float] = {}
    for n, took in growing(setting.sizes.throughput, setting.sizes.limit_s):
        with timed.fresh(setting.folder()) as folder:
            traces.write_tasks(folder, [0.0] * n)
            ended, wrong = whole(setting, n, WORKERS, folder, PATIENCE_S)
        if ended is None or wrong:
            yield setting.point(f"N={n}", "whole command", "tasks/s", None, wrong)
            return
        took.append(ended.seconds)
        ends[n] = ended.seconds
        yield setting.point(f"N={n}", "whole command", "tasks/s", n / ended.seconds)
        yield setting.point(f"N={n}", "memory of the largest process", "MB", ended.peak_mb)
        yield setting.point(f"N={n}", "CPU of all", "s", ended.cpu_s)
    least, most = min(ends), max(ends)
    if ends[most] > ends[least]:
        rate = (most - least) / (ends[most] - ends[least])
        yield setting.point("", "without start-up", "tasks/s", rate, f"up to N={most}")


def warm_up(setting: Setting) -> None:
    """Let a system make what it keeps from its first use on, as far as it does a trivial bench."""
    if "startup" not in setting.peer.benches:
        return
    with timed.fresh(setting.folder()) as folder:
        traces.write_tasks(folder, [0.0] * 2)
        # What is wrong with it will be told by what is measured.
        with contextlib.suppress(OSError, ValueError, AssertionError, IndexError):
            whole(setting, 2, WORKERS, folder, PATIENCE_S, "startup")


def startup(setting: Setting) -> Iterator[Point]:
    """Two trivial tasks on two workers, whole command."""
    yield from _startup(setting, "startup")


def startup_torch(setting: Setting) -> Iterator[Point]:
    """Two trivial tasks whose workers import torch, beside two interpreters that only import it."""
    if importlib.util.find_spec("torch") is None:
        yield setting.point(
            "2 tasks, torch", "whole command", "s", None, "torch is not installed here"
        )
        return
    yield from _startup(setting, "startup_torch")
    if setting.peer.slug == "gpuspool":
        with timed.fresh(setting.folder()) as folder:
            once = f"{sys.executable} -c 'import torch'"
            ended = timed.run(["/bin/sh", "-c", f"{once} & {once}; wait"], folder, PATIENCE_S)
        assert ended is not None
        yield Point(
            setting.bench,
            "import torch, twice at once",
            "2 tasks, torch",
            "whole command",
            "s",
            ended.seconds,
        )


def _startup(setting: Setting, bench: str) -> Iterator[Point]:
    with timed.fresh(setting.folder()) as folder:
        traces.write_tasks(folder, [0.0] * 2)
        ended, wrong = whole(setting, 2, WORKERS, folder, PATIENCE_S, bench)
    seconds = None if ended is None or wrong else ended.seconds
    case = "2 tasks" + ", torch" * (bench == "startup_torch")
    yield setting.point(case, "whole command", "s", seconds, wrong)
    if ended is not None and not wrong:
        yield setting.point(case, "CPU of all", "s", ended.cpu_s)


def skew(setting: Setting) -> Iterator[Point]:
    """Lognormal sleeps, two stragglers at the end: the makespan against the best possible one."""
    sizes = setting.sizes
    seconds = traces.skewed(sizes.skew, sizes.skew_mean_s, sizes.straggler_s)
    for workers in sizes.skew_workers:
        bound = traces.lower_bound(seconds, workers)
        with timed.fresh(setting.folder()) as folder:
            traces.write_tasks(folder, seconds)
            ended, wrong = whole(setting, len(seconds), workers, folder, 60 + 10 * bound)
            executions = traces.read_traces(folder)
        value = (
            None
            if ended is None or wrong or not executions
            else traces.makespan(executions) / bound
        )
        yield setting.point(f"{workers} workers", "makespan / lower bound", "", value, wrong)
        if setting.peer.slug == "gpuspool":
            for how, order in (
                ("list order", seconds),
                ("longest first", sorted(seconds, reverse=True)),
            ):
                best = traces.schedule(order, workers) / bound
                case = (f"{workers} workers", "makespan / lower bound", "")
                yield Point(setting.bench, f"arithmetic, {how}", *case, best)


def recovery(setting: Setting) -> Iterator[Point]:
    """SIGKILL everything half way and run the same command again.

    Counted are the tasks that ran twice, those that were lost, and the seconds of the second run.
    """
    n, case = setting.sizes.recovery, f"{setting.sizes.recovery} tasks"
    with timed.fresh(setting.folder()) as folder:
        traces.write_tasks(folder, [setting.sizes.recovery_s] * n)
        running = start(setting, n, WORKERS, folder)
        timed.wait_until(
            lambda: traces.count_traces(folder) >= n // 2 or running.is_over(), PATIENCE_S, 0.02
        )
        was_over = running.is_over()
        running.kill_and_reap()
        before = traces.count_traces(folder)
        if was_over or before < n // 2:
            yield setting.point(
                case, "second run", "s", None, "ended before it was killed: " + running.said()
            )
            return
        ended, wrong = whole(setting, n, WORKERS, folder, PATIENCE_S)
        twice, lost = traces.twice_and_lost(traces.read_traces(folder), n)
    yield setting.point(case, "done before the kill", "tasks", before)
    yield setting.point(case, "done twice", "tasks", twice)
    yield setting.point(case, "lost", "tasks", lost, wrong)
    yield setting.point(case, "second run", "s", None if ended is None else ended.seconds, wrong)


def scan(setting: Setting) -> Iterator[Point]:
    """Everything is complete, and the same command is run again."""
    for n, took in growing(setting.sizes.scan, setting.sizes.limit_s):
        case = f"N={n}"
        with timed.fresh(setting.folder()) as folder:
            traces.write_tasks(folder, [0.0] * n)
            first, wrong = whole(setting, n, WORKERS, folder, PATIENCE_S)
            if first is None or wrong:
                yield setting.point(case, "scan", "s", None, wrong)
                return
            took.append(first.seconds)
            again, wrong = whole(setting, n, WORKERS, folder, PATIENCE_S)
            yield setting.point(
                case, "scan", "s", None if again is None or wrong else again.seconds, wrong
            )
            journals = sorted(map(str, (folder / "spool" / "journal").glob("*.jsonl")))
            if journals and again is not None:
                bare = timed.run(
                    [sys.executable, f"{HERE}/adapters/bare_read.py", *journals], folder, PATIENCE_S
                )
                assert bare is not None
                right = bare.code == 0 and int(bare.last_line) == n
                assert right, bare.complaint()
                yield Point(
                    setting.bench,
                    "bare read of gpuspool's journals",
                    case,
                    "scan",
                    "s",
                    bare.seconds,
                )
                yield setting.point(case, "memory of the largest process", "MB", again.peak_mb)


def rank_loss(setting: Setting) -> Iterator[Point]:
    """One of four workers is killed half way.

    The makespan is held against the time that the other three need for the rest.
    """
    n, seconds = setting.sizes.rank_loss, setting.sizes.rank_loss_s
    case = f"{n} tasks, {LOSS_WORKERS} workers"
    with timed.fresh(setting.folder()) as folder:
        traces.write_tasks(folder, [seconds] * n)
        running = start(setting, n, LOSS_WORKERS, folder)
        timed.wait_until(
            lambda: traces.count_traces(folder) >= n // 2 or running.is_over(), PATIENCE_S, 0.005
        )
        killed_at = _kill_a_worker(folder)
        ended = running.wait(
            time.perf_counter()
            - running.began
            + max(setting.sizes.patience_s, 4 * n * seconds / LOSS_WORKERS)
        )
        executions = traces.read_traces(folder)
    twice, lost = traces.twice_and_lost(executions, n)
    began = min(execution.start for execution in executions)
    done = sum(execution.end <= killed_at for execution in executions)
    ideal = killed_at - began + (n - done) * seconds / (LOSS_WORKERS - 1)
    wrong = (
        "never ends"
        if ended is None
        else f"exit code {ended.code}"
        if ended.code
        else "lost tasks" * (lost > 0)
    )
    value = None if wrong else traces.makespan(executions) / ideal
    yield setting.point(case, "makespan / ideal of the rest", "", value, wrong)
    yield setting.point(case, "lost", "tasks", lost)
    yield setting.point(case, "done twice", "tasks", twice)


def _kill_a_worker(folder: Path) -> float:
    """SIGKILL the worker that finished a task last; returns at what time."""
    pid = traces.read_traces(folder)[-1].pid
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return time.time()


def overhead(setting: Setting) -> Iterator[Point]:
    """Tasks that keep a core busy: the part of the workers' time that is spent inside them."""
    for n, seconds in setting.sizes.overhead:
        with timed.fresh(setting.folder()) as folder:
            traces.write_tasks(folder, [seconds] * n)
            ended, wrong = whole(setting, n, WORKERS, folder, PATIENCE_S)
            executions = traces.read_traces(folder)
        case, metric = f"tasks of {1000 * seconds:g} ms", "time inside tasks"
        inside = None if ended is None or wrong else 100 * traces.share_inside(executions)
        yield setting.point(case, metric, "%", inside, wrong)
