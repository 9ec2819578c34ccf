"""From what user code returned or raised to what a journal line can hold."""

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuspool.spool.codec import MAX_DEPTH, seal, unseal
from gpuspool.spool.errors import CommandFailed, CommandOutOfMemory, OutputError, ResultError
from gpuspool.spool.layout import RESULT_BYTES, TRACEBACK_BYTES
from gpuspool.spool.records import NO_JSON, JournalBrief, JournalLine
from gpuspool.worker.results import MESSAGE_BYTES, call_user_code, to_error, to_json


def kept(result: Any) -> Any:
    """What a reader of the journal gets of a result."""
    line = seal(JournalLine(task=1, round=0, state="complete", result=to_json(result)))
    assert line.count(b"\n") == 1
    assert unseal(line[:-1], JournalBrief).state == "complete"
    return msgspec.json.decode(unseal(line[:-1], JournalLine).result)


def raised(error: BaseException) -> BaseException:
    """The error with the traceback that raising it gives."""
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001 - of any kind
        return caught


class Odd:
    """Has a `tolist` that is none."""

    tolist = 3


class Loop:
    def tolist(self) -> Any:
        return [self]


texts = st.text(st.characters(exclude_categories=["Cs"]))
numbers = st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
plain = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner),
    max_leaves=10,
)


def test_no_result_is_left_out() -> None:
    assert to_json(None) == NO_JSON
    assert b"result" not in seal(
        JournalLine(task=1, round=0, state="complete", result=to_json(None))
    )


@settings(max_examples=100, deadline=None)
@given(plain.filter(lambda value: value is not None))
def test_json_comes_back_as_it_was(value: Any) -> None:
    assert kept(value) == value


def test_what_is_nested_and_no_json_is_converted_where_it_says_how() -> None:
    result = {
        "scalar": np.float32(0.5),
        "int": np.int64(7),
        "flag": np.bool_(True),
        "array": np.arange(6).reshape(2, 3),
        "tensor": torch.tensor([[1.5, 2.5]]),
        "tensor scalar": torch.tensor(3),
        "tuple": (1, (np.int8(2),)),
        "empty": [np.zeros(0), {}, []],
        "text": np.str_("ä"),
    }
    assert kept(result) == {
        "scalar": 0.5,
        "int": 7,
        "flag": True,
        "array": [[0, 1, 2], [3, 4, 5]],
        "tensor": [[1.5, 2.5]],
        "tensor scalar": 3,
        "tuple": [1, [2]],
        "empty": [[], {}, []],
        "text": "ä",
    }


@pytest.mark.parametrize("result", [np.float64(0.25), torch.tensor(0.25), np.array(0.25), 0.25])
def test_a_bare_number_of_any_library_is_a_number(result: Any) -> None:
    assert kept(result) == 0.25


@pytest.mark.parametrize(
    "value", [math.nan, -math.nan, np.float32("nan"), np.float64("nan"), torch.tensor(math.nan)]
)
def test_nan_becomes_null(value: Any) -> None:
    assert kept(value) is None
    assert kept({"a": [1.5, value], "b": "NaN", "c": np.array([value, 2.0])}) == {
        "a": [1.5, None],
        "b": "NaN",
        "c": [None, 2.0],
    }


@pytest.mark.parametrize(
    "value", [math.inf, -math.inf, np.float32("inf"), torch.tensor([1.0, -math.inf])]
)
def test_infinity_is_an_error_also_beside_nan(value: Any) -> None:
    for result in (value, {"a": [math.nan, value]}):
        with pytest.raises(ResultError, match="Infinity"):
            to_json(result)


@pytest.mark.parametrize(
    ("result", "name"),
    [
        ({1, 2}, "set"),
        (b"bytes", "bytes"),
        (object(), "object"),
        ([1j], "complex"),
        ({"a": Odd()}, "Odd"),
    ],
)
def test_what_json_cannot_hold_is_an_error_that_names_it(result: Any, name: str) -> None:
    with pytest.raises(ResultError, match=f"a {name} "):
        to_json(result)


@pytest.mark.parametrize("result", [{(1, 2): 3}, {b"k": 1}, {np.int64(1): 2}])
def test_a_key_that_json_cannot_hold_is_an_error(result: Any) -> None:
    with pytest.raises(ResultError, match="keys must be"):
        to_json(result)


def test_what_holds_itself_is_an_error() -> None:
    ring: list[Any] = [1]
    ring.append({"again": ring})
    for result in (ring, Loop(), [math.nan, ring]):
        with pytest.raises(ResultError, match="not JSON"):
            to_json(result)


@pytest.mark.parametrize("number", [2**63, 2**64, -(2**80), 10**400])
def test_a_large_integer_leaves_a_line_that_can_be_read(number: int) -> None:
    """Whatever a reader makes of so large a number, the task must stay complete."""
    line = seal(JournalLine(task=1, round=0, state="complete", result=to_json({"n": number})))[:-1]
    assert unseal(line, JournalBrief).state == "complete"
    assert json.loads(bytes(unseal(line, JournalLine).result)) == {"n": number}


def test_a_number_of_too_many_digits_is_an_error() -> None:
    with pytest.raises(ResultError):
        to_json(10**5000)


def test_the_largest_result_is_a_mebibyte_and_a_larger_one_is_pointed_to_output() -> None:
    assert len(bytes(to_json("x" * (RESULT_BYTES - 2)))) == RESULT_BYTES == 1024 * 1024
    for result in ("x" * (RESULT_BYTES - 1), ["ä" * 600_000], [math.nan] * 300_000):
        with pytest.raises(ResultError, match=r"ctx\.output"):
            to_json(result)


@pytest.mark.parametrize("pair", ["[]", "{}"])
def test_a_result_that_nests_too_deep_for_a_reader_is_an_error(pair: str) -> None:
    """A line that the orchestrator cannot decode would make the spool unreadable for good."""

    def nested(depth: int) -> Any:
        value: Any = "[" * 500 + '\\"{'
        for _ in range(depth):
            value = [value, 0] if pair == "[]" else {"a{": value, "b": 1}
        return value

    assert kept(nested(MAX_DEPTH)) == nested(MAX_DEPTH)
    assert len(kept([[1]] * 1000)) == 1000
    for depth in (MAX_DEPTH + 1, 2 * MAX_DEPTH, 400):
        with pytest.raises(ResultError, match=f"deeper than {MAX_DEPTH}"):
            to_json(nested(depth))


@pytest.mark.parametrize("text", ["\ud800", "a\udc80b", "\udfff\ud800", "x\ud83d"])
def test_a_lone_surrogate_leaves_a_line_that_can_be_read(text: str) -> None:
    """Half a character, as of a file name that is not UTF-8: its task is complete, and so must its
    line be.
    """
    found = kept({"name": text, "n": 3})
    assert found["n"] == 3
    assert isinstance(found["name"], str)
    key = kept({text: [1, math.nan]})
    assert list(key.values()) == [[1, None]]


def test_pairs_of_surrogates_are_one_character() -> None:
    assert kept(["\U0001f600", "ä\u2028\x00\x7f"]) == ["\U0001f600", "ä\u2028\x00\x7f"]


# Errors.


@pytest.mark.parametrize(
    ("error", "kind", "type_", "exit_code"),
    [
        (ValueError("bad"), "exception", "ValueError", None),
        (KeyboardInterrupt(), "exception", "KeyboardInterrupt", None),
        (SystemExit(3), "exception", "SystemExit", None),
        (MemoryError(), "host_oom", "MemoryError", None),
        (RuntimeError("CUDA out of memory. Tried to allocate"), "exception", "RuntimeError", None),
        (torch.OutOfMemoryError("CUDA out of memory"), "gpu_oom", "OutOfMemoryError", None),
        (ResultError("no JSON"), "result", "ResultError", None),
        (OutputError("nothing"), "output", "OutputError", None),
        (CommandFailed("sh: exit code 7", 7), "exit", "CommandFailed", 7),
        (CommandOutOfMemory("sh: killed by SIGKILL", -9), "host_oom", "CommandOutOfMemory", -9),
    ],
)
def test_the_kind_of_an_error_comes_from_its_type(
    error: BaseException, kind: str, type_: str, exit_code: int | None
) -> None:
    record = to_error(raised(error), tries=2)
    assert (record.kind, record.type, record.exit_code, record.tries) == (kind, type_, exit_code, 2)


def test_an_error_keeps_its_message_and_its_traceback() -> None:
    record = to_error(raised(ValueError("pixel 3: bad\nsecond line")))
    assert record.message == "pixel 3: bad\nsecond line"
    assert "in raised" in record.traceback
    assert record.traceback.endswith("ValueError: pixel 3: bad\nsecond line\n")


def test_a_cause_is_told_too() -> None:
    error = RuntimeError("cannot load")
    error.__cause__ = raised(FileNotFoundError("no weights"))
    assert "no weights" in to_error(raised(error)).traceback


def test_an_error_with_notes_keeps_its_own_message() -> None:
    error = ValueError("bad pixel")
    error.add_note("while reading: a.jpg")
    record = to_error(raised(error))
    assert record.message == "bad pixel"
    assert "while reading: a.jpg" in record.traceback


@pytest.mark.parametrize("notes", [None, 5, [], ["a", 3], ("two\nlines", "b: c")])
def test_odd_notes_cost_an_error_nothing(notes: Any) -> None:
    error = ValueError("bad pixel")
    error.__notes__ = notes
    record = to_error(raised(error))
    assert (record.kind, record.message) == ("exception", "bad pixel")


def test_an_error_without_a_message_has_none() -> None:
    assert to_error(raised(ValueError())).message == ""
    assert to_error(ValueError("never raised")).message == "never raised"


def test_an_error_that_cannot_be_worded_is_recorded_all_the_same() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    record = to_error(raised(Broken()))
    assert (record.kind, record.type) == ("exception", "Broken")


class _Odd(Exception):
    """Raises whatever it is asked."""

    __notes__ = property(lambda self: 1 / 0)
    __class__ = property(lambda self: 1 / 0)
    __cause__ = property(lambda self: 1 / 0)
    args = property(lambda self: 1 / 0)


class _OddOSError(OSError):
    errno = property(lambda self: 1 / 0)
    filename = property(lambda self: 1 / 0)


def _from_nowhere() -> type[Exception]:
    """An exception whose class has no module: the code was run without a `__name__`."""
    space: dict[str, Any] = {"__builtins__": {"Exception": Exception, "type": type}}
    exec("E = type('E', (Exception,), {})", space)
    kind: type[Exception] = space["E"]
    return kind


@pytest.mark.parametrize(
    "kind",
    [
        _Odd,
        _OddOSError,
        _from_nowhere(),
        type("E", (Exception,), {"__module__": None}),
        type("E", (Exception,), {"__module__": 5}),
        type("E", (Exception,), {"__notes__": property(lambda self: 1 / 0)}),
        type("E", (Exception,), {"__str__": lambda self: 5}),
        type("E", (ExceptionGroup,), {"exceptions": property(lambda self: 1 / 0)}),
        type("E", (SyntaxError,), {"lineno": "x", "text": 5, "filename": 7, "offset": ()}),
    ],
    ids=lambda kind: kind.__name__,
)
def test_an_exception_that_raises_what_it_is_asked_is_recorded_all_the_same(
    kind: type[Exception],
) -> None:
    def of_the_user() -> None:
        raise kind("q", [ValueError()]) if issubclass(kind, ExceptionGroup) else kind("q")

    _, odd = call_user_code(of_the_user)
    assert odd is not None
    error = to_error(odd)
    assert error.type == kind.__name__
    assert error.where.startswith("test_results.py:")
    assert "in of_the_user" in error.traceback
    assert seal(JournalLine(task=1, round=0, state="failed", error=error)).count(b"\n") == 1


def test_what_our_own_errors_say_needs_no_traceback() -> None:
    for error in (ResultError("a"), OutputError("b"), CommandFailed("c", 1)):
        assert to_error(raised(error)).traceback == ""


def test_messages_and_tracebacks_are_bounded_and_keep_what_tells_most() -> None:
    def deep(n: int) -> None:
        if n:
            deep(n - 1)
        raise ValueError("m" * 10 * MESSAGE_BYTES + "the end")

    with pytest.raises(ValueError, match="the end") as caught:
        deep(50)
    record = to_error(caught.value)
    assert len(record.message) == MESSAGE_BYTES
    assert len(record.traceback) == TRACEBACK_BYTES
    assert record.traceback.endswith("the end\n")


def test_an_error_that_no_utf8_can_hold_still_makes_a_line() -> None:
    record = to_error(raised(FileNotFoundError("no file caf\udce9 \ud800")))
    line = seal(JournalLine(task=1, round=0, state="failed", error=record))[:-1]
    found = unseal(line, JournalLine)
    assert found.error == record
    assert found.error is not None
    assert found.error.message.startswith("no file caf")
    assert json.loads(line)["error"]["type"] == "FileNotFoundError"


def test_what_json_cannot_hold_is_named_by_its_place_and_shown_whole_or_marked_as_cut() -> None:
    path = Path("/data") / ("folder-" * 20)
    with pytest.raises(ResultError) as caught:
        to_json({"a": [1, {"path": path}], "n": math.nan})
    said = f"result['a'][1]['path'] is a PosixPath (PosixPath('{path}')); return str(…) of it"
    assert said in str(caught.value)
    with pytest.raises(ResultError, match=r"result\[1\] is a set \(\{.*…\)"):
        to_json([0, {"x" * 1000}])
    with pytest.raises(ResultError, match=r"result\['a'\] holds -Infinity"):
        to_json({"a": -math.inf})
    assert to_error(raised(ValueError("m" * 10_000))).message.endswith("m…")
