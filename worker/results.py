"""From what user code returned or raised to what a journal line holds.

`call_user_code` is the one place in the project where anything may be raised. `to_json` makes a
result a line's `result`, `to_error` makes an exception its `error`. Called by whoever runs the job.
"""

from __future__ import annotations

import json
import math
import os
import re
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from gpuspool.spool.codec import MAX_DEPTH, refuse_depth
from gpuspool.spool.errors import (
    CommandFailed,
    CommandOutOfMemory,
    OutputError,
    ResultError,
    TaskError,
)
from gpuspool.spool.exits import signal_of
from gpuspool.spool.layout import RESULT_BYTES, TRACEBACK_BYTES
from gpuspool.spool.records import NO_JSON, Error
from gpuspool.spool.states import ErrorKind
from gpuspool.worker import children
from gpuspool.worker.causes import causes
from gpuspool.worker.context import NotDone, Restart
from gpuspool.worker.imported import imported
from gpuspool.worker.memory import is_device_oom, is_host_oom
from gpuspool.worker.say import cut

T = TypeVar("T")

# So many characters of a value that JSON cannot hold are shown: a whole path, and not an array.
VALUE_SHOWN = 300
# The message of an error is cut here: some libraries put a whole array into it.
MESSAGE_BYTES = 4096
# The message of an exception that cannot be asked for it.
UNTOLD = "<the exception cannot be formatted>"
# Where our own frames of a traceback come from,
_OURS = str(Path(__file__).parent)
# those of the standard library,
_STANDARD = os.path.dirname(os.__file__)
# and those of installed packages.
_INSTALLED = ("/site-packages/", "/dist-packages/")
# Where an error of ours is defined is nobody's business: its name is enough.
_OUR_MODULES = re.compile(r"^gpuspool\.[a-z_.]+\.(?=[A-Z]\w*(:|$))", re.MULTILINE)
# What is said where a file cannot be unpickled since a script pickled a class of its own into it.
# Python says so by an AttributeError, torch by an UnpicklingError.
_NOT_IN_MAIN = re.compile(r"get attribute '(\w+)[\w.]*' on <module '(?:[\w.]+\.)?__main__'")
_NAMES_MAIN = re.compile(r"\b__main__\.(\w+)")
_ABOUT_MAIN = (
    " (The script that wrote this file had {0} in its own `__main__`, and a worker has another "
    "one. Define or import {0} in the job, and say `import __main__; __main__.{0} = {0}` before "
    "loading{1}; better, save a state_dict instead of the whole object.)"
)


def call_user_code(function: Callable[..., Any], *args: Any) -> tuple[Any, BaseException | None]:
    """Call the function: (value, None), or (None, what it raised).

    A process that the job forked, and that comes back here, is no worker: it ends.
    """
    try:
        value = function(*args)
    except BaseException as error:  # noqa: BLE001 - user code may raise anything; it is published
        if children.is_fork:
            children.leave(error)
        return None, error
    if children.is_fork:
        children.leave(None)
    return value, None


def to_json(result: Any) -> msgspec.Raw:
    """A job's result as JSON: `.tolist()` is used where there is one, and NaN becomes null.

    Raises ResultError for infinity, for what JSON cannot hold, and for more than RESULT_BYTES or
    MAX_DEPTH levels.
    """
    if result is None:
        return NO_JSON
    # What most classifiers return. The encoder takes 4 µs for one number, much of what a task of a
    # large batch costs.
    if type(result) is float and math.isfinite(result):
        return msgspec.Raw(repr(result).encode())
    if isinstance(result, (dict, list, tuple)):
        _refuse_collisions(result)
    data = _to_utf8(_to_text(result))
    try:
        refuse_depth(data)
    except RecursionError as error:
        raise ResultError(f"the result cannot be kept: {error}") from None
    if len(data) > RESULT_BYTES:
        raise ResultError(
            f"the result is {len(data)} bytes of JSON, at most {RESULT_BYTES} are kept; "
            "write it to ctx.output(task, suffix) and return a summary"
        )
    return msgspec.Raw(data)


def _refuse_collisions(value: Any) -> None:
    """Raise ResultError where two keys of a dict are the same text in JSON, as 1 and "1" are.

    What is nested too deeply, or in itself, is refused by whoever encodes it.
    """
    levels = [iter((value,))]
    while levels and len(levels) <= MAX_DEPTH:
        each = next(levels[-1], _END)
        if each is _END:
            levels.pop()
        elif isinstance(each, dict):
            texts = {_key_text(key) for key in each}
            if len(texts) < len(each):
                raise ResultError(
                    f"the result has keys that are one text in JSON: "
                    f"{cut(repr(list(each)), VALUE_SHOWN)}"
                )
            levels.append(iter(each.values()))
        elif isinstance(each, (list, tuple)):
            levels.append(iter(each))


def _key_text(key: Any) -> str:
    """A key as JSON has it; what it refuses is refused later."""
    if isinstance(key, str):
        return key
    if key is None or isinstance(key, bool):
        return {None: "null", True: "true", False: "false"}[key]
    return repr(key)


class _NoForm(Exception):
    """JSON has nothing for this value, of which `what` is said."""

    def __init__(self, value: Any, what: str) -> None:
        super().__init__(value, what)
        self.value = value
        self.what = what


def _plain(value: Any) -> Any:
    """What stands for a value that JSON does not know. Raises _NoForm where there is nothing."""
    tolist = getattr(value, "tolist", None)
    if callable(tolist):
        return tolist()
    what = f"a {type(value).__name__} ({cut(repr(value), VALUE_SHOWN)})"
    raise _NoForm(value, what)


def _place_of(result: Any, is_it: Callable[[Any], bool]) -> str:
    """Where in a result a value stands, as `result['path'][0]`.

    `result` alone where it is not found, as what `tolist` made.
    """
    levels: list[tuple[str, Iterator[tuple[Any, Any]]]] = [("result", iter(()))]
    if isinstance(result, dict):
        levels = [("result", iter(result.items()))]
    elif isinstance(result, (list, tuple)):
        levels = [("result", iter(enumerate(result)))]
    while levels:
        above, pairs = levels[-1]
        name, each = next(pairs, (None, _END))
        place = f"{above}[{name!r}]"
        if each is _END:
            levels.pop()
        elif is_it(each):
            return place
        elif len(levels) < MAX_DEPTH and isinstance(each, dict):
            levels.append((place, iter(each.items())))
        elif len(levels) < MAX_DEPTH and isinstance(each, (list, tuple)):
            levels.append((place, iter(enumerate(each))))
    return "result"


# What an iterator gives at its end.
_END = object()

_encoder = json.JSONEncoder(
    allow_nan=False, default=_plain, separators=(",", ":"), ensure_ascii=False
)


def _to_text(result: Any) -> str:
    try:
        try:
            return _encoder.encode(result)
        except ValueError:
            return _without_nan(result)
    except _NoForm as error:
        value = error.value
        place = _place_of(result, lambda each: each is value)
        raise ResultError(
            f"the result is not JSON: {place} is {error.what}; return str(…) of it, or what JSON "
            "has"
        ) from None
    except TypeError as error:
        raise ResultError(f"the result is not JSON: {error}") from None


def _without_nan(result: Any) -> str:
    """The text of a result that holds NaN (which becomes null), infinity or itself (refused).

    Few results do, so it may cost an encoding and a decoding more.
    """
    try:
        text = json.dumps(result, default=_plain)
        plain = json.loads(text, parse_constant=_constant)
    except _Infinite as error:
        place = _place_of(result, lambda each: isinstance(each, float) and math.isinf(each))
        raise ResultError(
            f"the result is not JSON: {place} holds {error}, which has no JSON form (NaN becomes "
            "null)"
        ) from None
    except ValueError as error:
        raise ResultError(f"the result is not JSON: {error}") from None
    return json.dumps(plain, separators=(",", ":"), ensure_ascii=False)


class _Infinite(Exception):
    """A result holds Infinity or -Infinity."""


def _constant(name: str) -> None:
    if name != "NaN":
        raise _Infinite(name)


def _to_utf8(text: str) -> bytes:
    """The text as UTF-8. Lone surrogates become question marks.

    Names of files that are not UTF-8 hold such surrogates, and their tasks are complete all the
    same.
    """
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()


def to_error(error: BaseException, tries: int = 1) -> Error:
    """The record of what user code raised. Its kind comes from its type, and those behind it.

    What cannot be told of an exception is left out or said to be untold, and the rest is told.
    """
    command = _as_command(error)
    if command is None:
        exit_code = None
        signal = _asked(error, signal_behind, "")
        is_plain = issubclass(type(error), TaskError)
        trace = "" if is_plain else _asked(error, _traceback, _bare_traceback(error))
    else:
        exit_code = command.status
        signal = signal_of(command.status)
        trace = _clean(command.said)
    return Error(
        kind=_asked(error, _kind, ErrorKind.EXCEPTION),
        type=_asked(error, _type_name, "Exception"),
        message=_asked(error, _message, UNTOLD),
        where=_asked(error, _where, ""),
        traceback=trace,
        tries=tries,
        exit_code=exit_code,
        signal=signal,
    )


# An exception is an object of the user's. Its `__str__`, `__notes__` or `__class__`, its class, or
# the loader of a module in its traceback may raise, or be of a type that the standard library does
# not reckon with: an exception of a class that `exec` made has no `__module__`. That must not take
# the task's failure along, or the worker would end for it.
def _asked(error: BaseException, tell: Callable[[BaseException], T], otherwise: T) -> T:
    """What `tell` tells of an exception; `otherwise` where that raises."""
    told, trouble = call_user_code(tell, error)
    return otherwise if trouble is not None else told


def _as_command(error: BaseException) -> CommandFailed | None:
    """The failure of a command, by its true class; None for anything else."""
    if not issubclass(type(error), CommandFailed):
        return None
    assert isinstance(error, CommandFailed)
    return error


def _type_name(error: BaseException) -> str:
    return _clean(type(error).__name__)


def signal_behind(error: BaseException) -> str:
    """The name of the signal that ended a process, where an exception says that one did; else "".

    `subprocess.run(check=True)` says so, and Python itself where SIGINT is not handled.
    """
    # A job that never imported the module cannot have met its exception.
    module = imported("subprocess")
    for cause in causes(error):
        if isinstance(cause, KeyboardInterrupt):
            return "SIGINT"
        if module is not None and isinstance(cause, module.CalledProcessError):
            return signal_of(cause.returncode)
    return ""


def _kind(error: BaseException) -> ErrorKind:
    match error:
        case NotDone():
            return ErrorKind.NOT_DONE
        case Restart():
            return ErrorKind.RESTART
        case CommandOutOfMemory():
            return ErrorKind.HOST_OOM
        case CommandFailed():
            return ErrorKind.EXIT
        case ResultError():
            return ErrorKind.RESULT
        case OutputError():
            return ErrorKind.OUTPUT
        case _ if is_device_oom(error):
            return ErrorKind.GPU_OOM
        case _ if is_host_oom(error):
            return ErrorKind.HOST_OOM
        case _:
            return ErrorKind.EXCEPTION


def _message(error: BaseException) -> str:
    """What stands behind the error's type in the last line of its traceback."""
    summary = traceback.TracebackException(type(error), error, None)
    # Notes would be the last lines.
    summary.__notes__ = None
    last = list(summary.format_exception_only())[-1]
    text = _clean(last.strip().partition(": ")[2])
    return cut(text, MESSAGE_BYTES) + _explanation(error, text)


def _explanation(error: BaseException, text: str) -> str:
    """What helps with an error whose own text leads nowhere, in parentheses; else ""."""
    # A job that never imported the module cannot have met its exception.
    pickle = imported("pickle")
    if pickle is not None and isinstance(error, pickle.UnpicklingError):
        found = _NAMES_MAIN.search(text)
        how = " with weights_only=False"
    elif isinstance(error, AttributeError):
        found = _NOT_IN_MAIN.search(text)
        how = ""
    else:
        return ""
    return "" if found is None else _ABOUT_MAIN.format(found[1], how)


def _where(error: BaseException) -> str:
    """The line that raised, `file:line`.

    The innermost line of the user's own code, else of a library; "" where all frames are ours.
    """
    frames = []
    own = []
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename.startswith((_OURS, "<")):
            continue
        frames.append(frame)
        if not _is_library(frame.filename):
            own.append(frame)
    if not frames:
        return ""
    innermost = (own or frames)[-1]
    return f"{_clean(Path(innermost.filename).name)}:{innermost.lineno}"


def _is_library(path: str) -> bool:
    return path.startswith(_STANDARD) or any(folder in path for folder in _INSTALLED)


def _traceback(error: BaseException) -> str:
    """The traceback without our own frames at its top.

    Of a long one the last bytes are kept: the end names the culprit.
    """
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith(_OURS):
        frames = frames.tb_next
    text = "".join(traceback.format_exception(type(error), error, frames))
    text = _OUR_MODULES.sub("", _clean(text))
    explanation = _explanation(error, text).strip()
    if explanation:
        text = f"{text}{explanation}\n"
    return text[-TRACEBACK_BYTES:]


def _bare_traceback(error: BaseException) -> str:
    """A traceback of places alone, for an exception that the standard library cannot format."""
    lines = ["Traceback (most recent call last):"]
    for frame, line in traceback.walk_tb(error.__traceback__):
        code = frame.f_code
        if not code.co_filename.startswith(_OURS):
            lines.append(f'  File "{code.co_filename}", line {line}, in {code.co_name}')
    lines.append(f"{_asked(error, _type_name, 'Exception')}: {UNTOLD}\n")
    return _clean("\n".join(lines))[-TRACEBACK_BYTES:]


def _clean(text: str) -> str:
    """Text that UTF-8 can hold, whatever bytes a file name brought in."""
    return text.encode("utf-8", "backslashreplace").decode()
