"""Loading the job: the copy in the spool, executed under its original name.

A class is made once with the context and called with tasks; a function is called with tasks; a
command is started once per task; the seed API's function is called once. Everything here runs user
code and may raise anything.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import json
import linecache
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from gpuspool.spool.errors import CommandFailed, CommandOutOfMemory, JobDamaged
from gpuspool.spool.exits import describe_exit
from gpuspool.spool.layout import Layout
from gpuspool.spool.oom import OomWatch
from gpuspool.spool.publish import read_bytes
from gpuspool.spool.records import Job
from gpuspool.spool.values import decode_value
from gpuspool.worker.context import Context, Task
from gpuspool.worker.reports import ReportQueue

MANY = 1_000_000  # tasks or batches at once
# batches: one that is ready when the one in hand is done, and one for loads that take longer than
# others
PREFETCH = 2
is_loading = False  # whether the job's module is being imported
_PLACEHOLDER = re.compile(r"\{(input|key|rank|device|index)\}")


class LoadedJob(msgspec.Struct, frozen=True):
    """`call` takes one task, or a list where `batch_size` is set; `load` loads inputs `prefetch`
    batches ahead.
    """

    call: Callable[[Any, Context], Any]
    batch_size: int | None = None
    batch_cost: float | None = None
    load: Callable[[Task], Any] | None = None
    prefetch: int = PREFETCH


def load_job(
    layout: Layout,
    job: Job,
    context: Context,
    check_devices: Callable[[], None],
    warm_up: Callable[[Callable[[], Any]], None],
) -> LoadedJob:
    """Import and make the job. `check_devices` is called between import and construction, and after
    it.

    `warm_up` is called in between with the job's own `warmup`, where it has one that takes the
    context alone.
    """
    if job.kind == "command":
        return LoadedJob(call=command_runner(job.command))
    sys.path[:] = [*job.sys_path, *(entry for entry in sys.path if entry not in job.sys_path)]
    global is_loading
    is_loading = True
    try:
        target: Any = _import(layout, job)
    finally:
        is_loading = False
    for part in job.name.split("."):
        target = getattr(target, part)
    if not callable(target):
        raise TypeError(
            f"{job.spec} is not callable ({target!r:.60}); a job is a class or a function"
        )
    check_devices()
    if job.kind == "call":
        return LoadedJob(call=call_runner(target, layout))
    if isinstance(target, type):
        warmup = next(
            (vars(base)["warmup"] for base in target.__mro__ if "warmup" in vars(base)), None
        )
        if isinstance(warmup, (classmethod, staticmethod)):
            warm_up(functools.partial(target.warmup, context))  # type: ignore[attr-defined]
        target = target() if target.__init__ is object.__init__ else target(context)  # type: ignore[misc]
        check_devices()
    load, prefetch = getattr(target, "load", None), _number(target, "prefetch", _whole, 0, MANY)
    return LoadedJob(
        call=target,
        batch_size=_number(target, "batch_size", _whole, 1, MANY),
        batch_cost=_number(target, "batch_cost", float, sys.float_info.min, float("inf")),
        load=load if callable(load) else None,
        prefetch=PREFETCH if prefetch is None else prefetch,
    )


def _import(layout: Layout, job: Job) -> ModuleType:
    """The module, from the copy in the spool but under its own name and `__file__`, so that nothing
    looks moved.
    """
    name = job.module or Path(job.file).stem
    parent, _, leaf = job.module.rpartition(".")
    if parent:
        importlib.import_module(parent)
        if name in sys.modules and _sha(read_bytes(Path(job.file))) == job.sha256:
            return sys.modules[name]  # the package imports it, and once is what it expects
    spec = importlib.util.spec_from_file_location(name, job.file)
    assert spec is not None, job.file
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    copy = layout.job_copy(job.copy)
    source = read_bytes(copy) or b""
    if _sha(source) != job.sha256:
        raise JobDamaged(
            f"{copy} is damaged or missing; `gpuspool resume` restores it while {job.file} is unchanged"
        )
    text = importlib.util.decode_source(source)
    linecache.cache[job.file] = (
        len(text),
        None,
        text.splitlines(True),
        job.file,
    )  # for who asks how it reads
    exec(compile(source, job.file, "exec"), module.__dict__)
    if parent:
        setattr(sys.modules[parent], leaf, module)  # as an import does
    return module


def _sha(data: bytes | None) -> str:
    return hashlib.sha256(data or b"").hexdigest()


def _whole(value: Any) -> int:
    number = int(value)
    if number != value:
        raise ValueError
    return number


def _number(
    target: Any, attribute: str, kind: Callable[[Any], Any], least: float, most: float
) -> Any:
    """An attribute that is a number in these bounds, or None. Raises ValueError."""
    value = getattr(target, attribute, None)
    if value is None:
        return None
    try:
        number = kind(value)
    except (TypeError, ValueError, OverflowError):
        number = -1
    if isinstance(value, bool) or not least <= number <= most:
        what = "a whole number" if kind is _whole else "a number"
        raise ValueError(
            f"{attribute} is {value!r}; it must be {what} from {least:g} to {most:g}, or None"
        )
    return number


def call_runner(target: Callable[..., Any], layout: Layout) -> Callable[[Task, Context], None]:
    """The one call of a rank of the seed API. What it returns is dropped; `sys.exit(n)` fails it
    with exit code n.
    """

    def run(_: Task, context: Context) -> None:
        queue = ReportQueue(layout, context.attempt)
        args = [decode_value(arg) for arg in context.args["worker_args"]]
        try:
            target(context.rank, context.world_size, queue, *args)
        except SystemExit as end:
            code = 0 if end.code is None else end.code & 0xFF if isinstance(end.code, int) else 1
            if code:
                raise CommandFailed(f"sys.exit({end.code!r})", code) from None

    return run


def command_runner(command: list[str]) -> Callable[[Task, Context], None]:
    """A function that runs the command for a task: the placeholders are replaced, no shell is
    involved.
    """
    import subprocess  # only here: a worker starts faster without

    watch = OomWatch()

    def run(task: Task, context: Context) -> None:
        arguments = [fill(word, task, context) for word in command]
        watch.look(time.monotonic())
        done = subprocess.run(arguments, stdin=subprocess.DEVNULL, check=False)
        if done.returncode != 0:
            is_oom = watch.explains(done.returncode, time.monotonic())
            kind, why = (CommandOutOfMemory, ", memory ran out") if is_oom else (CommandFailed, "")
            raise kind(f"{arguments[0]}: {describe_exit(done.returncode)}{why}", done.returncode)

    return run


def fill(word: str, task: Task, context: Context) -> str:
    """One argument with its placeholders replaced; what follows `{output}` in the word is the
    output's suffix.
    """
    if "{output}" in word:
        before, _, suffix = word.partition("{output}")
        return _fill_plain(before, task, context) + str(
            context.output(task, _fill_plain(suffix, task, context))
        )
    return _fill_plain(word, task, context)


def _fill_plain(word: str, task: Task, context: Context) -> str:
    """All placeholders in one pass, so that what a payload holds is never taken for one."""
    values = {
        "key": task.key,
        "rank": str(context.rank),
        "device": context.device,
        "index": str(task.index),
    }
    return _PLACEHOLDER.sub(lambda m: _input(task) if m[1] == "input" else values[m[1]], word)


def _input(task: Task) -> str:
    """What `{input}` stands for: the file, the line, or the payload as JSON."""
    if isinstance(task.payload, str):
        return task.payload
    if isinstance(task.payload, dict) and "path" in task.payload:
        return str(task.path)
    return json.dumps(task.payload)
