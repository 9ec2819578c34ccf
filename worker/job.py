"""Making the job: the copy of its source in the spool, executed under its original name.

A class is made once, with the context, and called with tasks; a function is called with tasks; a
command is started once for each task; the seed API's function is called once. Called by `prepare`.
Everything here runs user code and may raise anything.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import json
import linecache
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import MethodType, ModuleType
from typing import Any

import msgspec

from gpuspool.spool import placeholders
from gpuspool.spool.errors import CommandFailed, CommandOutOfMemory, JobDamaged, ResultError
from gpuspool.spool.exits import describe_exit
from gpuspool.spool.layout import RESULT_BYTES, Layout
from gpuspool.spool.oom import OomWatch
from gpuspool.spool.placeholders import Piece
from gpuspool.spool.publish import read_bytes
from gpuspool.spool.records import Job
from gpuspool.spool.states import JobKind
from gpuspool.spool.values import decode_value
from gpuspool.spool.view import load_run
from gpuspool.worker import starting
from gpuspool.worker.context import Context, NotDone, Task
from gpuspool.worker.reports import ReportQueue
from gpuspool.worker.say import say

# The most tasks of a batch, or batches ahead, that a job may ask for. A larger number is a mistake.
MANY = 1_000_000
# So many batches are loaded ahead unless the job says otherwise: one that is ready when the batch
# in hand is done, and one for loads that take longer than others.
PREFETCH = 2
# Whether the module of the job is being imported. `gpuspool.run` refuses to start a run meanwhile:
# a script that starts its run at import would start another one in each worker.
is_loading = False
# So many characters of the last line that a command wrote stand in the message of its failure.
LAST_WORDS = 500
# The exit status by which a command says that its task needs another call: EX_TEMPFAIL.
EXIT_NOT_DONE = 75
# What the code of a function says of it, as in `inspect`, whose import costs a worker some time.
CO_VARARGS = 0x04
CO_GENERATOR = 0x20
CO_ASYNC = 0x80 | 0x200


class LoadedJob(msgspec.Struct, frozen=True):
    """A job that is ready to be called.

    call: takes one task and the context; where `batch_size` is set, a list of tasks. batch_cost:
    the most that the costs of a batch may add up to. load: loads the input of a task; prefetch: how
    many batches ahead. recycle: after so many tasks a fresh process goes on. close: is called at
    the end of this one.
    """

    call: Callable[[Any, Context], Any]
    batch_size: int | None = None
    batch_cost: float | None = None
    load: Callable[[Task], Any] | None = None
    prefetch: int = PREFETCH
    recycle: int | None = None
    close: Callable[[Context], Any] | None = None


class CopyUnreadable(OSError):
    """The copy of the job cannot be read: the spool is in trouble, and not the job."""


def load_job(
    layout: Layout,
    job: Job,
    context: Context,
    check: Callable[[], None],
    warm_up: Callable[[Callable[[], Any]], None],
) -> LoadedJob:
    """Import and make the job. Raises whatever user code raises.

    check: called between import and construction, and after construction; what it raises is raised.
    warm_up: called before construction with the job's `warmup`, where it has one that takes the
    context alone.
    """
    if job.kind is JobKind.COMMAND:
        return LoadedJob(call=command_runner(job))
    # A job that parses arguments, at its import or later, must not meet those of this process.
    sys.argv[:] = [job.file, *_arguments(layout, job)]
    target = _find(layout, job)
    check()
    if job.kind is JobKind.CALL:
        return LoadedJob(call=call_runner(target, layout))
    if isinstance(target, type):
        target = _make(job, target, context, warm_up)
        check()
    _refuse_unfit(job, target)
    return _with_options(job, target)


def _arguments(layout: Layout, job: Job) -> list[str]:
    """What stands behind the job's file in `sys.argv`.

    Nothing, since a job has `ctx.args`. But the program of the seed API is imported as
    `multiprocessing` would do it, and reads its own arguments wherever it is imported.
    """
    if job.kind is JobKind.CALL:
        return load_run(layout).argv[1:]
    return []


def _refuse_unfit(job: Job, target: Any) -> None:
    """Raise TypeError for what could be called and yet would do no task."""
    if not callable(target):
        raise TypeError(
            f"{job.spec} is a class without __call__, so its objects cannot be called with a task. "
            "Give it a method `def __call__(self, task, ctx)`."
        )
    name = ""
    call = target
    if not hasattr(target, "__code__"):
        name = "__call__"
        call = target.__call__
    tasks = "task" if getattr(target, "batch_size", None) is None else "tasks"
    _refuse_other_parameters(job, call, name, tasks, "ctx")
    for function in (target, type(target).__call__):
        _refuse_deferred(job.spec, function)
    # A method of one of these names that is no function, or None, is the job's own business.
    for other in ("load", "close"):
        _refuse_deferred(f"{other} of {job.spec}", getattr(target, other, None))


def _refuse_deferred(what: str, function: Any) -> None:
    """Raise TypeError for a function of which a call alone runs nothing."""
    flags = getattr(getattr(function, "__code__", None), "co_flags", 0)
    if flags & CO_ASYNC:
        raise TypeError(
            f"{what} is async, and nobody awaits what it returns. Write a plain function, and call "
            "`asyncio.run` in it."
        )
    if flags & CO_GENERATOR:
        raise TypeError(
            f"{what} yields, so a call of it would run none of its code. Return the result instead."
        )


def _refuse_other_parameters(job: Job, function: Any, name: str, *given: str) -> None:
    """Raise TypeError for a function that cannot be called with what it will be given.

    Without this each call would raise Python's own TypeError, which names no way out. Only a plain
    function or method is judged: what others take cannot be seen. name: that of a method, "" of the
    job itself.
    """
    code = getattr(function, "__code__", None)
    if code is None:
        return
    is_bound = hasattr(function, "__self__")
    most = code.co_argcount - is_bound
    least = most - len(function.__defaults__ or ())
    takes_any = code.co_flags & CO_VARARGS
    n_asked = code.co_kwonlyargcount - len(function.__kwdefaults__ or ())
    if least <= len(given) and (takes_any or len(given) <= most) and n_asked == 0:
        return
    names = ", ".join((["self"] if is_bound else []) + list(given))
    where = f"{name} of {job.spec}" if name else job.spec
    raise TypeError(
        f"{where} is called with ({', '.join(given)}), and cannot take that. "
        f"Write `def {name or job.name.rpartition('.')[2]}({names})`."
    )


def _find(layout: Layout, job: Job) -> Any:
    """The class or function that the job names."""
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
    return target


def _import(layout: Layout, job: Job) -> ModuleType:
    """The module, from the copy in the spool but under its own name and `__file__`.

    So nothing looks moved: relative paths, tracebacks and `inspect.getsource` are as they would be
    without us.
    """
    name = job.module or Path(job.file).stem
    parent, _, leaf = job.module.rpartition(".")
    if parent:
        importlib.import_module(parent)
        if name in sys.modules and _sha(read_bytes(Path(job.file))) == job.sha256:
            # The package itself imports the module, and expects to find it executed once.
            return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, job.file)
    assert spec is not None, job.file
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    source = _read_copy(layout, job)
    text = importlib.util.decode_source(source)
    # Whoever asks later how a line of the job reads gets the copy's lines, even if the file has
    # changed since.
    linecache.cache[job.file] = (len(text), None, text.splitlines(True), job.file)
    exec(compile(source, job.file, "exec"), module.__dict__)
    if parent:
        # An import would bind the module in its package too.
        setattr(sys.modules[parent], leaf, module)
    return module


def _read_copy(layout: Layout, job: Job) -> bytes:
    """The source of the job as the run began with it. Raises JobDamaged and CopyUnreadable."""
    copy = layout.job_copy(job.copy)
    try:
        source = read_bytes(copy) or b""
    except OSError as error:
        raise CopyUnreadable(error.errno, error.strerror, str(copy)) from error
    if _sha(source) != job.sha256:
        raise JobDamaged(
            f"{copy} is damaged or missing; `gpuspool resume` restores it while {job.file} is "
            "unchanged"
        )
    return source


def _sha(data: bytes | None) -> str:
    return hashlib.sha256(data or b"").hexdigest()


def _make(
    job: Job, target: Any, context: Context, warm_up: Callable[[Callable[[], Any]], None]
) -> Any:
    """Warm up, and make an object of the job's class."""
    # A plain method of this name would need an object first, so it is the job's own business.
    for base in target.__mro__:
        if "warmup" in vars(base):
            if isinstance(vars(base)["warmup"], (classmethod, staticmethod)):
                _refuse_other_parameters(job, target.warmup, "warmup", "ctx")
                _refuse_deferred(f"warmup of {target.__name__}", target.warmup)
                warm_up(functools.partial(target.warmup, context))
            break
    if target.__init__ is object.__init__:
        return target()
    if _is_plain(target):
        _refuse_other_parameters(job, MethodType(target.__init__, target), "__init__", "ctx")
    return target(context)


def _is_plain(target: Any) -> bool:
    """Whether a class is made by its `__init__` alone: no metaclass and no `__new__` is asked."""
    kind: Any = type(target)
    return kind is type and target.__new__ is object.__new__


def _with_options(job: Job, target: Any) -> LoadedJob:
    """The job with what its attributes ask for. Raises ValueError and TypeError."""
    load = getattr(target, "load", None)
    close = getattr(target, "close", None)
    if callable(load):
        _refuse_other_parameters(job, load, "load", "task")
    if callable(close):
        _refuse_other_parameters(job, close, "close", "ctx")
    prefetch = _number(target, "prefetch", _whole, 0, MANY)
    return LoadedJob(
        call=target,
        batch_size=_number(target, "batch_size", _whole, 1, MANY),
        batch_cost=_number(target, "batch_cost", float, sys.float_info.min, float("inf")),
        load=load if callable(load) else None,
        prefetch=PREFETCH if prefetch is None else prefetch,
        recycle=_number(target, "recycle", _whole, 1, MANY),
        close=close if callable(close) else None,
    )


def _whole(value: Any) -> int:
    number = int(value)
    if number != value:
        raise ValueError
    return number


def _number(
    target: Any, attribute: str, kind: Callable[[Any], Any], least: float, most: float
) -> Any:
    """An attribute that is a number in these bounds; None where it is None or missing.

    Raises ValueError.
    """
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
    """The one call of a rank of the seed API.

    What it returns is dropped; `sys.exit(n)` fails it with exit code n.
    """

    def run(_: Task, context: Context) -> None:
        reports = ReportQueue(layout, context.attempt)
        args = [decode_value(arg) for arg in context.args["worker_args"]]
        try:
            target(context.rank, context.world_size, reports, *args)
        except SystemExit as end:
            code = _exit_code(end)
            if code:
                raise CommandFailed(f"sys.exit({end.code!r})", code) from None

    return run


def _exit_code(end: SystemExit) -> int:
    """What a process that ends by this exception exits with."""
    if end.code is None:
        return 0
    if isinstance(end.code, int):
        return end.code & 0xFF
    return 1


def command_runner(job: Job) -> Callable[[Task, Context], Any]:
    """A function that runs the job's command for a task.

    The placeholders are replaced, and no shell is involved. Raises NotStartable where the program
    is not there and its name has no placeholders.
    """
    watch = OomWatch()
    words = [placeholders.parse(word) for word in job.command]
    is_literal = len(words[0]) == 1
    if is_literal:
        starting.find_program(words[0][0].text)

    def run(task: Task, context: Context) -> Any:
        arguments = [fill(word, task, context) for word in words]
        printed = bytearray() if job.capture else None
        watch.look(time.monotonic())
        status, said = starting.run(arguments, is_literal, printed)
        if status == 0:
            return None if printed is None else result_of(bytes(printed))
        if printed:
            # It may tell why, and would be in the log otherwise.
            say(printed.decode(errors="replace"))
        if status == EXIT_NOT_DONE:
            raise NotDone(f"{arguments[0]}: exit status {status}")
        message = f"{arguments[0]}: {describe_exit(status)}"
        trace = f"{said}\n{message}\n" if said else ""
        if watch.explains(status, time.monotonic()):
            raise CommandOutOfMemory(f"{message}, memory ran out", status, trace)
        raise CommandFailed(_with_last_words(message, said), status, trace)

    return run


def _with_last_words(message: str, said: str) -> str:
    """A message with the last line that a command wrote before it, if it wrote any."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if not lines:
        return message
    return f"{message}: {lines[-1][:LAST_WORDS]}"


def result_of(printed: bytes) -> Any:
    """What a command printed as its task's result: a text, without newlines at its end.

    An object or a list in JSON is that. Numbers and the like stay texts, or one label of many, or
    an id that has only digits, would be of another type than its neighbours. Raises ResultError.
    """
    if len(printed) > RESULT_BYTES:
        raise ResultError(
            f"the command printed more than {RESULT_BYTES} bytes; write them to {{output}} and "
            "print a summary"
        )
    try:
        text = printed.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ResultError(
            f"what the command printed is not UTF-8, at byte {error.start}; write it to {{output}}"
        ) from None
    if text.lstrip().startswith(("{", "[")):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(text)
    return text


def fill(word: list[Piece], task: Task, context: Context) -> str:
    """One argument of a command with its placeholders replaced.

    What follows `{output}` in the word is the suffix of the output.
    """

    def value_of(name: str) -> str:
        return _value(name, task, context)

    for at, piece in enumerate(word):
        if piece.name == "output":
            before = placeholders.fill(word[:at], value_of) + piece.text
            suffix = placeholders.fill(word[at + 1 :], value_of)
            return before + str(context.output(task, suffix))
    return placeholders.fill(word, value_of)


def _value(name: str, task: Task, context: Context) -> str:
    """What a placeholder other than `{output}` stands for."""
    match name:
        case "key":
            return task.key
        case "index":
            return str(task.index)
        case "rank":
            return str(context.rank)
        case "device":
            return context.device
        case "scratch":
            return str(context.scratch(task))
        case _:
            return placeholders.of_input(name, _input(task))


def _input(task: Task) -> str:
    """What `{input}` stands for: the file, the line, or the payload as JSON."""
    if isinstance(task.payload, str):
        return task.payload
    if isinstance(task.payload, dict) and "path" in task.payload:
        return str(task.path)
    return json.dumps(task.payload)
