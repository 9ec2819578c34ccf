"""Values that pass between parent and worker come back the same, in value and type."""

from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuspool.spool.values import decode_value, encode_value

# Lone surrogates too, as in file names that are not UTF-8.
texts = st.text(st.characters(codec=None), max_size=8)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | texts
    | st.just("$tuple")
    | st.just(Path("a/b"))
)
keys = st.recursive(scalars, lambda inner: st.lists(inner, max_size=2).map(tuple), max_leaves=3)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=12,
)


@given(values)
def test_every_value_comes_back_through_json(value: Any) -> None:
    plain = msgspec.json.decode(msgspec.json.encode(encode_value(value, "value")))
    assert repr(decode_value(plain)) == repr(value)


@pytest.mark.parametrize(
    "value", [{"$tuple": [1]}, {"$path": "x"}, {"$dict": []}, {"$": 1}, {"$float": "nan", "b": 1}]
)
def test_a_dict_that_looks_like_a_mark_is_a_dict(value: Any) -> None:
    assert decode_value(encode_value(value, "value")) == value


@pytest.mark.parametrize(
    "value", [b"x", 1j, {1}, object(), print, PurePosixPath("a"), Counter("a"), Exception("x")]
)
def test_any_other_value_is_refused_and_its_place_named(value: Any) -> None:
    with pytest.raises(TypeError, match=rf"^args\[1\]\['k'\]: a {type(value).__name__} \("):
        encode_value([0, {"k": value}], "args")


def test_a_key_that_is_refused_is_named_too() -> None:
    with pytest.raises(TypeError, match=r"^args\[0\], key b'x': a bytes"):
        encode_value([{b"x": 1}], "args")


def test_what_contains_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(TypeError, match="nested deeper than 100, or contains itself"):
        encode_value(value, "args")


def test_a_default_may_give_another_value() -> None:
    assert encode_value([{1, 2}], "args", lambda value, where: sorted(value)) == [[1, 2]]
