"""The options of a run: their names and types, and which of several values wins.

`Options` (spool/records.py) is the record that stands in run.json and in every attempt's intent.
The two TypedDicts here show the same fields to people: `help(gpuspool.run)`, editors and type
checkers read them, and a test compares them with the record. Called by the Python API, which the
command line calls too.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypedDict, TypeVar

import msgspec

from gpuspool.spool.errors import UsageError
from gpuspool.spool.records import Options

# How msgspec says that a number is too small.
_AT_LEAST = re.compile(r"Expected `(?P<type>int|float)` (?P<sign>>=?) (?P<number>[\d.]+)")

F = TypeVar("F", bound=Callable[..., Any])


class StartOptions(TypedDict, total=False):
    """What each start may say for itself: `run`, `resume`, `retry` and `redo` take these options.

    None is the same as leaving an option out. All durations are in seconds.

    ranks: the number of workers. Default: one for each device, or one on the CPU.
    devices: the devices to use: "0,1", "GPU-…" or "MIG-…" tokens joined by commas, or "cpu".
        Default: the inherited CUDA_VISIBLE_DEVICES, else what NVML lists, else the CPU.
    ranks_per_gpu: how many ranks share each device. Default 1.
    gpus_per_rank: how many devices each rank gets. Default 1; not together with ranks_per_gpu.
    retries: how many times more a task that raised is tried in its process. Default 0.
    max_restarts: a rank or a device is given up once more than so many of its processes in a row
        completed nothing and speak against it. Default 3.
    max_crashes: how many crashes with one task in hand, alone, make this task fail, if its worker
        crashed each time. Default 2; 1: without a second opinion.
    max_failed: a number, or "P%": stop early once so many tasks have failed. Default: never.
    keep_going: each failure is its task's at once, without a second opinion, and the run goes on
        even if every task fails. Default: no.
    task_timeout_s: a task that takes longer fails as a timeout. Default: no limit.
    stall_timeout_s: a worker that makes no progress for so long is ended. Default: no limit.
    time_limit_s: drain this long after the start. Default: no limit. Holds for this start alone.
    leave_when_idle_s: end once no worker of this start has had anything to do for so long, while
        other starts go on with the run. Default: wait for its end. Holds for this start alone.
    grace_s: how long a drain waits for the tasks in hand before it kills. Default 25.
    on_parent_exit: whether workers whose parent is gone "finish" the run (the default), or "stop"
        after the tasks in hand.
    poll_s: look this often instead of using inotify. Default: inotify; 2 on a network file system.
    lease_s: the silence that proves a worker on another host dead. Default 120, at least 1.
    """

    ranks: int | None
    devices: str | None
    ranks_per_gpu: int | None
    gpus_per_rank: int | None
    retries: int | None
    max_restarts: int | None
    max_crashes: int | None
    max_failed: int | str | None
    keep_going: bool | None
    task_timeout_s: float | None
    stall_timeout_s: float | None
    time_limit_s: float | None
    leave_when_idle_s: float | None
    grace_s: float | None
    on_parent_exit: Literal["finish", "stop"] | None
    poll_s: float | None
    lease_s: float | None


class RunOptions(StartOptions, total=False):
    """All options of `run`: those of `StartOptions`, and what only the making of a run can say.

    seed: changes every `task.seed`. Default 0. A run keeps the seed that it was made with.
    """

    seed: int | None


# What a run keeps for good, so that no later start may say otherwise: results would depend on who
# computed them.
FIXED = RunOptions.__annotations__.keys() - StartOptions.__annotations__.keys()


def options_of_new_run(given: Mapping[str, Any]) -> Options:
    """The options that run.json records: what was given, else the defaults. Raises UsageError."""
    return _checked(Options(), given, list(RunOptions.__annotations__))


def options_of_start(recorded: Options, given: Mapping[str, Any]) -> Options:
    """The options that hold for one start of a run. This function alone decides which value wins.

    1. What this start was given, in Python or on the command line. (There an option beats its
       environment variable; click sees to that.)
    2. What run.json recorded when the run was made. `time_limit_s` and `leave_when_idle_s` are left
       out: they are about the one start that they were given to.
    3. The default.

    What comes out is written into the intent of every attempt that this start makes. The attempt
    obeys its own intent for as long as it lives, also when it outlives its orchestrator and a later
    start says otherwise: `View.options_of` tells it. `recorded` are the options of run.json.

    Raises UsageError for an option that does not exist, that cannot be taken, or that is fixed for
    the whole run.
    """
    _refuse_to_change_fixed(recorded, given)
    base = msgspec.structs.replace(recorded, time_limit_s=None, leave_when_idle_s=None)
    return _checked(base, given, list(RunOptions.__annotations__))


def _refuse_to_change_fixed(recorded: Options, given: Mapping[str, Any]) -> None:
    """Raise UsageError for an option that a run keeps for good and that now shall differ."""
    for name in sorted(FIXED & given.keys()):
        before = getattr(recorded, name)
        now = given[name]
        if now != before:
            raise UsageError(
                f"{name}={now!r}, but the run was made with {before!r}, and this cannot change. "
                "Leave it out, or make a new run."
            )


def without_none(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were really given: None says that an option is left out."""
    return {name: value for name, value in given.items() if value is not None}


def _checked(base: Options, given: Mapping[str, Any], known: list[str]) -> Options:
    """The base with what was given. Raises UsageError."""
    unknown = given.keys() - set(known)
    if unknown:
        raise UsageError(f"unknown option {min(unknown)}. There are: {', '.join(known)}.")
    for name, value in given.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{name}={value} is not possible; it must be finite.")
    values = {**msgspec.structs.asdict(base), **given}
    if type(values["max_failed"]) is int:
        values["max_failed"] = str(values["max_failed"])
    try:
        return msgspec.convert(values, Options)
    except msgspec.ValidationError as error:
        raise UsageError(_in_words(str(error), values)) from None


def _in_words(said: str, values: Mapping[str, Any]) -> str:
    """What msgspec says of an option that cannot be taken, as people say it."""
    what, _, place = said.rpartition(" - at `$.")
    name = place.rstrip("`")
    least = _AT_LEAST.fullmatch(what)
    if name not in values:
        return f"an option is not possible: {said}"
    must_be = what.replace("Expected", "it must be").replace("`", "").replace(" | null", "")
    if least is not None:
        number = "a whole number" if least["type"] == "int" else "a number"
        than = "of at least" if least["sign"] == ">=" else "above"
        must_be = f"it must be {number} {than} {float(least['number']):g}"
    elif name == "max_failed":
        must_be = "it must be a whole number above 0, or a percentage such as 5%"
    elif name == "on_parent_exit":
        must_be = 'it must be "finish" or "stop"'
    option = name.removesuffix("_s").replace("_", "-")
    return f"--{option} {values[name]} is not possible: {must_be}."


def shows_options(options: type) -> Callable[[F], F]:
    """Show the options of a TypedDict in the signature and the docstring of a function.

    Python's `help` prints `**options: Unpack[RunOptions]` and nothing of what is in there. With
    `__signature__` it prints each option, with its type and that it may be left out, as if they
    were parameters. The function itself goes on to take `**options`, so that a name that does not
    exist can be answered with a UsageError that lists those that do.
    """

    def decorate(function: F) -> F:
        function.__signature__ = _signature_with(function, options)  # type: ignore[attr-defined]
        function.__doc__ = _docstring_with(function, options)
        return function

    return decorate


class _Source(str):
    """An annotation as it is written, shown without quotes.

    `help` prints the repr of an annotation. Evaluating the annotations instead would cost every
    start of a run a millisecond, for a text that hardly anybody asks for.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _signature_with(function: Callable[..., Any], options: type) -> inspect.Signature:
    """The signature of a function with each option in the place of `**options`."""
    signature = inspect.signature(function)
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            parameters.append(parameter.replace(annotation=_Source(parameter.annotation)))
    for name, reference in options.__annotations__.items():
        option = inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=_Source(reference.__forward_arg__),
        )
        parameters.append(option)
    result = _Source(signature.return_annotation)
    return signature.replace(parameters=parameters, return_annotation=result)


def _docstring_with(function: Callable[..., Any], options: type) -> str:
    """The docstring of a function, and below it those of the options."""
    texts = [inspect.getdoc(function), inspect.getdoc(StartOptions)]
    if options is RunOptions:
        texts.append(inspect.getdoc(RunOptions))
    return "\n\n".join(text for text in texts if text is not None)
