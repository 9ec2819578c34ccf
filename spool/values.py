"""Python values as JSON that keeps their types: what the seed API passes between parent and worker.

JSON values stand for themselves. What JSON cannot say stands in an object with one key that begins
with `$`:

    (1, 2)              {"$tuple": [1, 2]}
    Path("a/b")         {"$path": "a/b"}
    float("nan")        {"$float": "nan"}
    "\\udc80"            {"$str": "edb280"}, hex, for text that is not UTF-8
    {1: "a"}            {"$dict": [[1, "a"]]}, where a key is not plain text or begins with $

`decode_value(encode_value(x))` is x, in value and type, for every x that is taken. Anything else is
refused, by its place in the whole. Called by the seed API's parent for arguments, and by its
workers for what they report.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

from gpuspool.spool.codec import MAX_DEPTH


def refuse(value: Any, where: str) -> NoReturn:
    """Raises TypeError for a value that cannot be passed on.

    where: its place, as in `worker_args[1]['x'][0]`.
    """
    raise TypeError(
        f"{where}: a {type(value).__name__} ({value!r:.80}) cannot be passed on; "
        "JSON values, tuples, Paths and None can, also inside lists, dicts and tuples"
    )


def encode_value(
    value: Any, where: str, default: Callable[[Any, str], Any] = refuse, depth: int = 0
) -> Any:
    """The value as JSON.

    where: its place, for the message of an error. default: gives another value in place of one that
    is not taken, or raises. depth: how many lists, tuples and dicts the value is in.

    Raises TypeError for a value that is not taken, that contains itself, or that nests too deep.
    """

    def inner(item: Any, name: str) -> Any:
        return encode_value(item, name, default, depth + 1)

    if depth > MAX_DEPTH:
        raise TypeError(f"{where:.80}…: nested deeper than {MAX_DEPTH}, or contains itself")
    # By the exact type: a subclass would come back as another one.
    kind = type(value)
    if value is None or kind is bool or kind is int:
        return value
    if kind is float:
        return _encode_float(value)
    if kind is str:
        return _encode_text(value)
    if kind is type(Path()):
        return {"$path": inner(str(value), where)}
    if kind is list:
        return _encode_items(value, where, inner)
    if kind is tuple:
        return {"$tuple": _encode_items(value, where, inner)}
    if kind is dict:
        return _encode_dict(value, where, inner)
    return inner(default(value, where), where)


def _encode_float(value: float) -> Any:
    if math.isfinite(value):
        return value
    return {"$float": repr(value)}


def _encode_text(value: str) -> Any:
    try:
        value.encode()
    except UnicodeEncodeError:
        return {"$str": value.encode("utf-8", "surrogatepass").hex()}
    return value


def _encode_items(value: Iterable[Any], where: str, inner: Callable[[Any, str], Any]) -> list[Any]:
    return [inner(item, f"{where}[{place}]") for place, item in enumerate(value)]


def _encode_dict(value: dict[Any, Any], where: str, inner: Callable[[Any, str], Any]) -> Any:
    """A dict as a JSON object if that is possible, else as a list of its pairs."""
    keys = [inner(key, f"{where}, key {key!r:.40}") for key in value]
    items = [inner(item, f"{where}[{key!r}]") for key, item in value.items()]
    pairs = list(zip(keys, items, strict=True))
    if all(isinstance(key, str) and not key.startswith("$") for key in keys):
        return dict(pairs)
    return {"$dict": pairs}


def decode_value(plain: Any) -> Any:
    """The value that `encode_value` made this JSON of."""
    if isinstance(plain, list):
        return [decode_value(item) for item in plain]
    if not isinstance(plain, dict):
        return plain
    name = next(iter(plain), "")
    if len(plain) == 1 and name in _DECODERS:
        return _DECODERS[name](decode_value(plain[name]))
    return {key: decode_value(item) for key, item in plain.items()}


# What makes a value of what stands under each of our keys, once that is decoded itself.
_DECODERS: dict[str, Callable[[Any], Any]] = {
    "$float": float,
    "$str": lambda text: bytes.fromhex(text).decode("utf-8", "surrogatepass"),
    "$path": Path,
    "$tuple": tuple,
    "$dict": dict,
}
