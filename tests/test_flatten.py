"""--flatten: which columns there are, and of which type, over all rows and in every format."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from spooling import A0, B0, begin, make_spool, view_of

import gpuspool
from gpuspool.orchestrator.export import flatten
from gpuspool.orchestrator.export.columns import Field, Type
from gpuspool.orchestrator.export.flatten import Flattener
from gpuspool.orchestrator.report.places import Places
from gpuspool.spool.errors import UsageError
from gpuspool.spool.records import JournalLine
from gpuspool.spool.states import LineState

BIG = 2**63
# No float holds it.
HUGE = 10**400


def as_json(values: list[Any]) -> list[Raw]:
    return [Raw(json.dumps(value).encode()) for value in values]


def flat(*batches: list[Any]) -> tuple[dict[str, Type], dict[str, list[Any]]]:
    """The types and the columns of results that come in these batches."""
    made = Flattener(["index", "key", "state"])
    for batch in batches:
        made.learn(as_json(batch))
    fields = made.fields()
    whole: list[list[Any]] = [[] for _ in fields]
    for batch in batches:
        for column, some in zip(whole, made.columns(as_json(batch)), strict=True):
            column += some
    names = [field.name for field in fields]
    types = {field.name: field.type for field in fields}
    return types, dict(zip(names, whole, strict=True))


@pytest.mark.parametrize(
    ("values", "type_", "expected"),
    [
        ([True, False, None], Type.BOOL, [True, False, None]),
        ([1, 2, None], Type.INT, [1, 2, None]),
        ([1, 0.5], Type.FLOAT, [1.0, 0.5]),
        ([0.5, 1], Type.FLOAT, [0.5, 1.0]),
        ([1, BIG], Type.TEXT, ["1", str(BIG)]),
        ([-BIG, BIG - 1], Type.INT, [-BIG, BIG - 1]),
        ([BIG, 0.5], Type.FLOAT, [float(BIG), 0.5]),
        ([0.5, BIG], Type.FLOAT, [0.5, float(BIG)]),
        ([HUGE, 0.5], Type.TEXT, [str(HUGE), "0.5"]),
        ([0.5, -HUGE], Type.TEXT, ["0.5", str(-HUGE)]),
        ([BIG, HUGE, 0.5], Type.TEXT, [str(BIG), str(HUGE), "0.5"]),
        ([1, BIG, HUGE], Type.TEXT, ["1", str(BIG), str(HUGE)]),
        (["a", None, ""], Type.TEXT, ["a", None, ""]),
        ([1, "a", True, 0.5], Type.TEXT, ["1", "a", "true", "0.5"]),
        ([True, 1], Type.TEXT, ["true", "1"]),
        ([1, [2, {"ä": 3}]], Type.TEXT, ["1", '[2,{"ä":3}]']),
        ([None, None], Type.TEXT, [None, None]),
    ],
)
@pytest.mark.parametrize("in_batches", [False, True])
def test_the_type_of_a_column_is_found_over_all_rows(
    values: list[Any], type_: Type, expected: list[Any], in_batches: bool
) -> None:
    rows = [{"v": value} for value in values]
    types, columns = flat(*([[row] for row in rows] if in_batches else [rows]))
    assert types == {"v": type_}
    assert columns == {"v": expected}
    assert [type(one) for one in columns["v"]] == [type(one) for one in expected]


def test_values_that_are_never_scalars_get_no_column() -> None:
    types, columns = flat([{"a": [1], "b": 1}, {"a": {"c": 1}}])
    assert types == {"b": Type.INT}
    assert columns == {"b": [1, None]}


def test_results_that_are_scalars_have_a_column_of_their_own() -> None:
    types, columns = flat([0.5, {"value": "x"}, 1, None, [1]])
    assert types == {"value": Type.FLOAT, "result_value": Type.TEXT}
    assert columns == {
        "value": [0.5, None, 1.0, None, None],
        "result_value": [None, "x", None, None, None],
    }


def test_names_that_are_taken_get_a_prefix() -> None:
    result = {"State": 1, "result_state": 2, "a": 3, "A": 4, "": 5}
    types, columns = flat([result])
    assert list(types) == ["result_State", "result_result_state", "a", "result_A", "result_"]
    assert [column[0] for column in columns.values()] == list(result.values())


@pytest.mark.parametrize("name", ['quo"te', "back\\slash", "new\nline", "ä", "a b", "x" * 500])
def test_names_may_be_anything(name: str) -> None:
    types, columns = flat([{name: 1}], [{name: 2.5}])
    assert types == {name: Type.FLOAT}
    assert columns == {name: [1.0, 2.5]}


def test_results_with_a_name_for_each_input_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flatten, "MOST_COLUMNS", 10)
    flat([{f"k{at}": 1 for at in range(10)}])
    with pytest.raises(UsageError, match="more than 10 columns"):
        flat([{f"k{at}": 1} for at in range(11)])


def test_half_a_surrogate_costs_no_row() -> None:
    made = Flattener([])
    results = [Raw(rb'{"a":"\ud83d","b":1}'), Raw(b'{"a":"x"}')]
    made.learn(results)
    assert made.fields() == [Field("a", Type.TEXT), Field("b", Type.INT)]
    assert made.columns(results) == [["?", "x"], [1, None]]


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([HUGE, -HUGE]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=4),
    st.lists(st.integers(), max_size=1),
)
RESULTS = st.one_of(SCALARS, st.dictionaries(st.sampled_from("abc"), SCALARS, max_size=3))


@given(st.lists(RESULTS, min_size=1, max_size=12), st.integers(1, 12))
def test_how_results_come_in_batches_changes_nothing(results: list[Any], size: int) -> None:
    batches = [results[at : at + size] for at in range(0, len(results), size)]
    assert flat(*batches) == flat(results)


def test_an_integer_beyond_all_floats_makes_a_column_of_numbers_text(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 2)
    writer = begin(layout, A0)
    for at, number in enumerate((HUGE, 0.5)):
        result = Raw(json.dumps({"n": number}).encode())
        writer.append(JournalLine(task=at, round=0, state=LineState.COMPLETE, result=result))
    gpuspool.export(layout.root, tmp_path / "x.csv", flatten=True)
    with (tmp_path / "x.csv").open(newline="") as file:
        assert [row["n"] for row in csv.DictReader(file)] == [str(HUGE), "0.5"]


def test_large_results_are_learned_from_some_at_a_time(tmp_path: Path) -> None:
    """However many results are heard, they and what they were read from are a few MiB."""
    n_tasks, size = 64, 512 * 1024
    layout = make_spool(tmp_path / "s", n_tasks)
    writer = begin(layout, A0)
    for at in range(n_tasks):
        result = Raw(b'"%s"' % (b"x" * size))
        writer.append(JournalLine(task=at, round=0, state=LineState.COMPLETE, result=result))
    heard: list[int] = []
    Places(view_of(layout), hear=lambda results: heard.append(sum(map(len, results))))
    assert sum(heard) == n_tasks * (size + 2)
    assert max(heard) <= 4 * 1024 * 1024


def test_a_type_that_changes_late_stops_no_reader(tmp_path: Path) -> None:
    """More rows than readers look at, and more than are read at once."""
    n_tasks = 60_000
    layout = make_spool(tmp_path / "s", n_tasks)
    writers = begin(layout, A0), begin(layout, B0)
    for at in range(n_tasks):
        result = {"n": at, "s": 1} if at < n_tasks - 2 else {"n": 0.5, "s": "x", "late": True}
        line = JournalLine(
            task=at, round=0, state=LineState.COMPLETE, result=Raw(json.dumps(result).encode())
        )
        writers[at % 2].append(line, may_wait=at < n_tasks - 2)
    for format_ in ("csv", "jsonl"):
        gpuspool.export(layout.root, tmp_path / f"x.{format_}", flatten=True)
    with (tmp_path / "x.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [rows[0][name] for name in ("n", "s", "late")] == ["0.0", "1", ""]
    assert [rows[-1][name] for name in ("n", "s", "late")] == ["0.5", "x", "true"]
    lines = (tmp_path / "x.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["late"] is None
    pytest.importorskip("pyarrow", reason="the extra [arrow] is not installed")
    import pyarrow.json
    import pyarrow.parquet

    gpuspool.export(layout.root, tmp_path / "x.parquet", flatten=True)
    tables = [
        pyarrow.parquet.read_table(tmp_path / "x.parquet"),
        pyarrow.json.read_json(tmp_path / "x.jsonl"),
    ]
    for table in tables:
        assert table["n"].to_pylist() == [*map(float, range(n_tasks - 2)), 0.5, 0.5]
        assert table["s"].to_pylist()[-3:] == ["1", "x", "x"]
        assert table["late"].to_pylist()[-3:] == [None, True, True]
