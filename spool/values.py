"""Python values as JSON that keeps their types, for what the seed API passes between parent and
worker.

JSON values stand for themselves. What JSON cannot say stands in an object with one key that begins
with `$`: `{"$tuple": […]}`, `{"$path": "…"}`, `{"$float": "nan"}`, `{"$str": hex}` for text that is
not UTF-8, and `{"$dict": [[key, value], …]}` for a dict whose keys are not plain text.
`decode_value(encode_value(x))` is x, in value and type, for every x that is taken; nothing else is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from gpuspool.spool.codec import MAX_DEPTH


def refuse(value: Any, where: str) -> NoReturn:
    raise TypeError(
        f"{where}: a {type(value).__name__} ({value!r:.80}) cannot be passed on; "
        "JSON values, tuples, Paths and None can, also inside lists, dicts and tuples"
    )


def encode_value(
    value: Any, where: str, default: Callable[[Any, str], Any] = refuse, depth: int = 0
) -> Any:
    """The value as JSON. `default` gives another value for one that is not taken, or raises.

    Raises TypeError that names the element, as in `worker_args[1]['x'][0]: a function …`.
    """

    def inner(item: Any, name: str) -> Any:
        return encode_value(item, name, default, depth + 1)

    if depth > MAX_DEPTH:
        raise TypeError(f"{where:.80}…: nested deeper than {MAX_DEPTH}, or contains itself")
    kind = type(value)
    if value is None or kind in (bool, int) or (kind is float and math.isfinite(value)):
        return value
    if kind is float:
        return {"$float": repr(value)}
    if kind is str:
        return value if _is_utf8(value) else {"$str": value.encode("utf-8", "surrogatepass").hex()}
    if kind is type(Path()):
        return {"$path": inner(str(value), where)}
    if kind in (list, tuple):
        items = [inner(item, f"{where}[{place}]") for place, item in enumerate(value)]
        return items if kind is list else {"$tuple": items}
    if kind is dict:
        keys = [inner(key, f"{where}, key {key!r:.40}") for key in value]
        pairs = list(
            zip(
                keys, [inner(item, f"{where}[{key!r}]") for key, item in value.items()], strict=True
            )
        )
        is_plain = all(isinstance(key, str) and not key.startswith("$") for key in keys)
        return dict(pairs) if is_plain else {"$dict": pairs}
    return inner(default(value, where), where)


def decode_value(plain: Any) -> Any:
    """The value that was encoded."""
    if isinstance(plain, list):
        return [decode_value(item) for item in plain]
    if not isinstance(plain, dict):
        return plain
    name = next(iter(plain), "")
    if len(plain) == 1 and name in _DECODERS:
        return _DECODERS[name](decode_value(plain[name]))
    return {key: decode_value(item) for key, item in plain.items()}


_DECODERS: dict[str, Callable[[Any], Any]] = {
    "$float": float,
    "$str": lambda text: bytes.fromhex(text).decode("utf-8", "surrogatepass"),
    "$path": Path,
    "$tuple": tuple,
    "$dict": dict,
}


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
