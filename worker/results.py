"""From what user code returned or raised to what a journal line holds."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from gpuspool.spool.codec import refuse_depth
from gpuspool.spool.errors import CommandFailed as CommandFailed
from gpuspool.spool.errors import CommandOutOfMemory as CommandOutOfMemory
from gpuspool.spool.errors import OutputError, TaskError
from gpuspool.spool.errors import ResultError as ResultError
from gpuspool.spool.exits import signal_of
from gpuspool.spool.layout import TRACEBACK_BYTES
from gpuspool.spool.records import NO_JSON, Error
from gpuspool.spool.states import ErrorKind
from gpuspool.worker import children
from gpuspool.worker.devices import is_device_oom

RESULT_BYTES = 1024 * 1024
MESSAGE_BYTES = 4096
_OURS = str(Path(__file__).parent)
_STANDARD = os.path.dirname(os.__file__)
_INSTALLED = ("/site-packages/", "/dist-packages/")


def call_user_code(function: Callable[..., Any], *args: Any) -> tuple[Any, BaseException | None]:
    """The one place where anything may be raised: (value, None) or (None, what was raised)."""
    try:
        value = function(*args)
    except BaseException as error:  # noqa: BLE001 - user code may raise anything; it is published
        return (None, error) if not children.is_fork else children.leave(error)
    return (value, None) if not children.is_fork else children.leave(None)


def to_json(result: Any) -> msgspec.Raw:
    """A job's result as JSON. `.tolist()` is used where there is one; NaN becomes null.

    Raises ResultError for infinity, for what JSON cannot hold, for more than 1 MiB or than
    MAX_DEPTH levels.
    """
    if result is None:
        return NO_JSON
    try:
        text = _encoder.encode(result)
    except ValueError:
        text = _without_nan(result)
    except TypeError as error:
        raise ResultError(f"the result is not JSON: {error}") from None
    try:
        data = text.encode()
    except UnicodeEncodeError:  # lone surrogates, as file names that are not UTF-8 have them
        data = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()
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


def _plain(value: Any) -> Any:
    tolist = getattr(value, "tolist", None)
    if callable(tolist):
        return tolist()
    raise TypeError(f"a {type(value).__name__} ({value!r:.60}) has no JSON form")


_encoder = json.JSONEncoder(
    allow_nan=False, default=_plain, separators=(",", ":"), ensure_ascii=False
)


def _without_nan(result: Any) -> str:
    """For the rare result that holds NaN, infinity or itself."""
    try:
        text = json.dumps(result, default=_plain)
        plain = json.loads(text, parse_constant=_constant)
    except ValueError as error:
        raise ResultError(f"the result is not JSON: {error}") from None
    return json.dumps(plain, separators=(",", ":"), ensure_ascii=False)


def _constant(name: str) -> None:
    if name != "NaN":
        raise ValueError(f"{name} has no JSON form (NaN becomes null)")


def to_error(error: BaseException, tries: int = 1) -> Error:
    """The record of what user code raised. The kind comes from its type alone."""
    summary = traceback.TracebackException(type(error), error, None)
    summary.__notes__ = None  # their lines would come last
    message = list(summary.format_exception_only())[-1].strip().partition(": ")[2]
    return Error(
        kind=_kind(error),
        type=_clean(type(error).__name__),
        message=_clean(message)[:MESSAGE_BYTES],
        where=_where(error),
        traceback="" if isinstance(error, TaskError) else _traceback(error),
        tries=tries,
        exit_code=error.status if isinstance(error, CommandFailed) else None,
        signal=signal_of(error.status) if isinstance(error, CommandFailed) else "",
    )


def _where(error: BaseException) -> str:
    """The line that raised, `file:line`: the innermost of the user's own, else of a library's; ""
    where it is ours.
    """
    frames = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if not f.filename.startswith((_OURS, "<"))
    ]
    own = [frame for frame in frames if not _is_library(frame.filename)]
    return "".join(
        f"{_clean(Path(frame.filename).name)}:{frame.lineno}" for frame in (own or frames)[-1:]
    )


def _is_library(path: str) -> bool:
    return path.startswith(_STANDARD) or any(folder in path for folder in _INSTALLED)


def _kind(error: BaseException) -> ErrorKind:
    if is_device_oom(error):
        return ErrorKind.GPU_OOM
    if isinstance(error, MemoryError):
        return ErrorKind.HOST_OOM
    kinds = {
        ResultError: ErrorKind.RESULT,
        OutputError: ErrorKind.OUTPUT,
        CommandFailed: ErrorKind.EXIT,
        CommandOutOfMemory: ErrorKind.HOST_OOM,
    }
    return kinds.get(type(error), ErrorKind.EXCEPTION)


def _traceback(error: BaseException) -> str:
    """Without our own frames at the top, and the last bytes of it: the end names the culprit."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith(_OURS):
        frames = frames.tb_next
    return _clean("".join(traceback.format_exception(type(error), error, frames)))[
        -TRACEBACK_BYTES:
    ]


def _clean(text: str) -> str:
    """Text that UTF-8 can hold, whatever bytes a file name smuggled in."""
    return text.encode("utf-8", "backslashreplace").decode()
