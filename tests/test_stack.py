"""The arrays of all tasks in one file: every row and every id, by its content."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import GPUSPOOL, Box, names
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from spooling import A0, begin, make_spool, task

import gpuspool
from gpuspool.orchestrator.export.npy import NpyError, make_header, read_elements, read_header
from gpuspool.orchestrator.export.saved import saved_together
from gpuspool.spool.codec import seal_bodies
from gpuspool.spool.errors import UsageError
from gpuspool.spool.layout import Layout
from gpuspool.spool.records import Error, JournalLine
from gpuspool.spool.states import ErrorKind, LineState


def spool_of(root: Path, arrays: dict[str, dict[str, Any]]) -> Layout:
    """A spool whose tasks have these keys and outputs: an array, some text, or some bytes each."""
    layout = make_spool(root, [task(at, key=key) for at, key in enumerate(arrays)])
    layout.outputs.mkdir(exist_ok=True)
    writer = begin(layout, A0)
    for at, outputs in enumerate(arrays.values()):
        for name, content in outputs.items():
            path = layout.outputs / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                path.write_text(content)
            elif isinstance(content, bytes):
                path.write_bytes(content)
            else:
                with path.open("wb") as file:
                    np.save(file, content)
        sizes = [(name, 1) for name in outputs]
        line = JournalLine(
            task=at, round=0, state=LineState.COMPLETE, outputs=sizes, result=Raw(b"1")
        )
        writer.append(line)
    return layout


def fortran_header(shape: tuple[int, ...]) -> bytes:
    """The header of an array in Fortran's order."""
    return make_header("<f4", shape).replace(b"False", b"True ")


def stacked(path: Path) -> dict[str, Any]:
    """By id: the row of a stacked .npy file."""
    rows = np.load(path, mmap_mode="r")
    ids = path.with_suffix(".ids.txt").read_text().removesuffix("\n").split("\n")
    assert len(ids) == len(rows) == len(set(ids))
    return dict(zip(ids, rows, strict=True))


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "i8", "u1", ">f4", "c16", "<U3"])
def test_each_row_is_the_array_of_its_task(tmp_path: Path, dtype: str) -> None:
    arrays = {f"d/{at}, x": (np.arange(5) + 10 * at).astype(dtype) for at in range(40)}
    layout = spool_of(tmp_path / "s", {key: {f"{key}.npy": one} for key, one in arrays.items()})
    made = gpuspool.stack(layout.root, tmp_path / "x.npy")
    assert (made.rows, made.shape, made.tasks, made.n_without) == (40, (5,), 40, 0)
    rows = stacked(tmp_path / "x.npy")
    assert list(rows) == list(arrays)
    for key, one in arrays.items():
        assert rows[key].dtype == one.dtype
        assert (rows[key] == one).all()


def test_a_batch_gives_a_row_for_each_of_its_things(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    one, several = rng.random((1, 3)), rng.random((4, 3))
    named = np.asarray(rng.random((2, 3)), order="F")
    layout = spool_of(
        tmp_path / "s",
        {
            "one": {"one.npy": one},
            "empty": {"empty.npy": np.empty((0, 3))},
            "none": {"none.npy": np.empty((0, 3)), "none.ids.txt": ""},
            "several": {"several.npy": several},
            "named": {"named.npy": named, "named.ids.txt": "first of all\nsecond\n"},
            "flat": {"flat.npy": several[0]},
        },
    )
    gpuspool.stack(layout.root, tmp_path / "x.npy")
    rows = stacked(tmp_path / "x.npy")
    batch = [f"several[{at}]" for at in range(4)]
    assert list(rows) == ["one", *batch, "first of all", "second", "flat"]
    expected = [one[0], *several, *named, several[0]]
    assert all((row == other).all() for row, other in zip(rows.values(), expected, strict=True))


def test_an_arrow_file_has_the_same_rows(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="the extra [arrow] is not installed")
    arrays = {f"k{at}": np.full((at % 3 + 1, 2, 3), at, dtype="f4") for at in range(50)}
    layout = spool_of(tmp_path / "s", {key: {f"{key}.npy": one} for key, one in arrays.items()})
    gpuspool.stack(layout.root, [tmp_path / "x.npy", tmp_path / "x.arrow"])
    rows = stacked(tmp_path / "x.npy")
    import pyarrow
    import pyarrow.ipc

    with pyarrow.memory_map(str(tmp_path / "x.arrow")) as file:
        table = pyarrow.ipc.open_file(file).read_all()
        assert table["id"].to_pylist() == list(rows)
        assert table["vector"].to_pylist() == [row.tolist() for row in rows.values()]
        assert table["key"].to_pylist() == [one.partition("[")[0] for one in rows]
        assert table["index"].to_pylist() == [int(key[1:]) for key in table["key"].to_pylist()]


def test_large_arrays_are_written_in_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra [arrow] is not installed")
    from gpuspool.orchestrator.export import arrow, npy

    monkeypatch.setattr(arrow, "BATCH_BYTES", 100)
    monkeypatch.setattr(npy, "READ_BYTES", 33)
    array = np.arange(700, dtype="<i4").reshape(100, 7)
    layout = spool_of(tmp_path / "s", {"a": {"a.npy": array}, "b": {"b.npy": array[:3] + 1}})
    gpuspool.stack(layout.root, [tmp_path / "x.arrow", tmp_path / "x.npy"])
    file = pyarrow.ipc.open_file(tmp_path / "x.arrow")
    assert file.num_record_batches > 10
    vectors = np.array(file.read_all()["vector"].to_pylist())
    assert (vectors == np.load(tmp_path / "x.npy")).all()
    assert (vectors == np.concatenate([array, array[:3] + 1])).all()


def test_arrays_that_differ_are_named_and_nothing_is_written(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {f"k{at}": np.zeros(4, "f4") for at in range(3)}
    arrays["long"] = np.zeros(5, "f4")
    arrays["wide"] = np.zeros(4, "f8")
    layout = spool_of(tmp_path / "s", {key: {f"{key}.npy": one} for key, one in arrays.items()})
    with pytest.raises(UsageError) as refused:
        gpuspool.stack(layout.root, tmp_path / "x.npy")
    told = str(refused.value)
    assert "k0.npy are (4,) <f4, and 2 outputs differ" in told
    assert "long.npy (5,) <f4; wide.npy (4,) <f8" in told
    assert names(tmp_path) == ["s"]


@pytest.mark.parametrize(
    ("outputs", "told"),
    [
        ({"k.npy": b"no array"}, "does not begin as a .npy file does"),
        ({"k.npy": np.array([{}], dtype=object)}, "no plain type"),
        ({"k.npy": np.zeros(3, dtype=[("a", "f4")])}, "no plain type"),
        ({"k.npy": make_header("<f4", (3,)) + bytes(11)}, "cut short"),
        ({"k.npy": make_header("<f4", (3,)) + bytes(13)}, "more in it"),
        ({"k.npy": make_header("<f4", (3,))[:50]}, "ends in its header"),
        ({"k.npy": make_header("<f4", (10**12, 10**6))}, "cut short"),
        ({"k.npy": fortran_header((10**12, 10**6))}, "cut short"),
        ({"k.npy": np.empty((5, 0))}, "its rows have no elements"),
        ({"k.npy": make_header("<f4", (10**12, 0))}, "its rows have no elements"),
        ({"k.npy": np.empty(0)}, "its rows have no elements"),
        ({"k.npy": np.zeros(3), "k.mask.npy": np.zeros(3)}, "2 outputs that end in .npy"),
        ({"k.npy": np.zeros((2, 3)), "k.ids.txt": "one\n"}, "a line for each row"),
        ({"k.txt": "text"}, "nothing to stack"),
    ],
)
def test_what_cannot_be_stacked_is_refused(
    tmp_path: Path, outputs: dict[str, Any], told: str
) -> None:
    layout = spool_of(tmp_path / "s", {"k": outputs})
    arrow = [tmp_path / "x.arrow"] if importlib.util.find_spec("pyarrow") else []
    for files in ([tmp_path / "x.npy"], arrow or [tmp_path / "x.npy"]):
        with pytest.raises(UsageError, match=told):
            gpuspool.stack(layout.root, files)
    assert names(tmp_path) == ["s"]


def test_an_output_that_is_gone_is_named(tmp_path: Path) -> None:
    layout = spool_of(tmp_path / "s", {"k": {"k.npy": np.zeros(3)}})
    (layout.outputs / "k.npy").unlink()
    with pytest.raises(UsageError, match=r"k\.npy is not there any more"):
        gpuspool.stack(layout.root, tmp_path / "x.npy")


def test_a_suffix_says_which_of_several_outputs_is_meant(tmp_path: Path) -> None:
    of = {
        "a": {"a.npy": np.full(2, 1), "a.emb.npy": np.full(2, 2)},
        "b": {"b.npy": np.full(2, 3), "b.emb.npy": np.full(2, 4)},
    }
    layout = spool_of(tmp_path / "s", of)
    gpuspool.stack(layout.root, tmp_path / "x.npy", suffix=".emb.npy")
    assert {key: row.tolist() for key, row in stacked(tmp_path / "x.npy").items()} == {
        "a": [2, 2],
        "b": [4, 4],
    }


def test_tasks_without_an_array_have_no_row_and_are_told(tmp_path: Path, box: Box) -> None:
    layout = spool_of(tmp_path / "s", {"a": {"a.npy": np.zeros(3)}, "b": {"b.txt": "x"}, "c": {}})
    done = box.run("results", layout.root, "--stack", "x.npy")
    assert "1x3 of <f8, of 1 task, in x.npy; the ids of the rows are in x.ids.txt" in done.err
    assert "2 complete tasks have no such output: b, c" in done.err
    assert list(stacked(box / "x.npy")) == ["a"]


def test_tasks_whose_outputs_nobody_can_read_have_no_row_and_are_told(
    tmp_path: Path, box: Box
) -> None:
    layout = spool_of(tmp_path / "s", {"a": {"a.npy": np.zeros(3)}, "b": {"b.npy": np.zeros(3)}})
    path = layout.journal(A0)
    head, first, second = path.read_bytes().splitlines()
    body = second[: second.rindex(b',"crc"')] + b',"seconds":"a quarter"'
    path.write_bytes(b"\n".join([head, first, *seal_bodies([body])]))
    done = box.run("results", layout.root, "--stack", "x.npy")
    assert "1x3 of <f8, of 1 task, in x.npy" in done.err
    assert "1 complete task has no row, for want of a journal line that can be read" in done.err
    assert list(stacked(box / "x.npy")) == ["a"]


def test_failed_tasks_have_no_row(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 1)
    writer = begin(layout, A0)
    error = Error(kind=ErrorKind.EXCEPTION, type="Odd", message="")
    writer.append(
        JournalLine(task=0, round=0, state=LineState.FAILED, error=error, outputs=[("t0.npy", 1)])
    )
    with pytest.raises(UsageError, match="nothing to stack"):
        gpuspool.stack(layout.root, tmp_path / "x.npy")


def test_a_run_is_stacked_from_the_command_line(box: Box) -> None:
    box.write(
        "embed.py",
        "import numpy\n"
        "def f(task, ctx):\n"
        "    vector = numpy.arange(4, dtype='f4') * task.index\n"
        "    numpy.save(ctx.output(task, '.npy'), vector)\n",
    )
    box.run("run", "embed.py:f", "--lines", box.lines(9), "--spool", "S", "--ranks", "2")
    box.run("results", "S", "--stack", "x.npy", "--require-complete")
    rows = stacked(box / "x.npy")
    assert list(rows) == [f"t{at}" for at in range(9)]
    assert all((row == np.arange(4) * at).all() for at, row in enumerate(rows.values()))


def test_what_was_there_stays_where_the_new_files_are_gone(tmp_path: Path, box: Box) -> None:
    """Somebody may take the hidden files away. Nor may the old array go before that is seen."""
    path = box / "x.npy"
    gpuspool.stack(spool_of(tmp_path / "old", {"a": {"a.npy": np.full(2, 1)}}).root, path)
    before = path.read_bytes()

    def write_and_lose() -> None:
        with saved_together([box / "x.ids.txt", path]) as files:
            for file in files:
                file.write(b"new")
            for hidden in box.home.glob(".x.*"):
                hidden.unlink()

    with pytest.raises(FileNotFoundError):
        write_and_lose()
    assert path.read_bytes() == before


def test_a_folder_in_the_place_of_an_array_is_named(tmp_path: Path, box: Box) -> None:
    layout = spool_of(tmp_path / "s", {"a": {"a.npy": np.full(2, 1)}})
    output = layout.outputs / "a.npy"
    output.unlink()
    output.mkdir()
    done = box.run("results", layout.root, "--stack", "x.npy", code=2)
    assert f"{output} cannot be stacked: it is a folder" in done.err


@pytest.mark.parametrize("name", ["x.npy", "./x.npy", "x.ids.txt"])
def test_a_table_and_a_stack_are_no_one_file(tmp_path: Path, box: Box, name: str) -> None:
    layout = spool_of(tmp_path / "s", {"a": {"a.npy": np.full(2, 1)}})
    args = ["--stack", "x.npy", "-o", name, "--format", "csv"]
    assert "named twice" in box.run("results", layout.root, *args, code=2).err
    assert names(box.home) == []


def test_a_full_disk_is_that_of_the_file_that_is_written(tmp_path: Path, box: Box) -> None:
    pytest.importorskip("pyarrow", reason="Arrow files need pyarrow")
    layout = spool_of(
        tmp_path / "s", {f"k{at}": {f"k{at}.npy": np.zeros(4000)} for at in range(40)}
    )
    limited = f"ulimit -f 100; trap '' XFSZ; exec {GPUSPOOL} results {layout.root} --stack x.arrow"
    done = box.run("-c", limited, program=("bash",), code=1)
    assert "(x.arrow), errno 27" in done.err


# Kills with SIGKILL at its N-th rename, unlink or sync.
KILLER = """
import os, pathlib, signal, sys
from gpuspool.orchestrator.export import saved
import gpuspool
at, count = int(sys.argv[1]), 0
def deadly(call):
    def wrapped(*args, **more):
        global count
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **more)
    return wrapped
os.rename = deadly(os.rename)
pathlib.Path.unlink = deadly(pathlib.Path.unlink)
saved.sync = deadly(saved.sync)
gpuspool.stack(sys.argv[2], sys.argv[3])
print(count)
"""


def test_after_a_kill_an_array_is_never_beside_the_ids_of_another(tmp_path: Path, box: Box) -> None:
    script = box.write("killer.py", KILLER)
    old = spool_of(tmp_path / "old", {"a": {"a.npy": np.full(2, 1)}, "b": {"b.npy": np.full(2, 2)}})
    new = spool_of(tmp_path / "new", {"c": {"c.npy": np.full(2, 3)}})
    path = box / "x.npy"

    def killed_at(number: int, layout: Layout) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, script, str(number), layout.root, path]
        return subprocess.run(words, capture_output=True, text=True, check=False)

    calls = int(killed_at(0, old).stdout)
    assert calls >= 5
    seen = set()
    for number in range(1, calls + 1):
        assert killed_at(0, old).returncode == 0
        killed_at(number, new)
        rows = {key: row.tolist() for key, row in stacked(path).items()} if path.exists() else {}
        assert rows in ({}, {"a": [1, 1], "b": [2, 2]}, {"c": [3, 3]}), number
        seen.add(json.dumps(rows))
    assert len(seen) == 3


@given(
    st.lists(st.integers(0, 4), max_size=4),
    st.sampled_from(["<f4", "<f8", "<i2", "|u1", ">i4", "|b1"]),
    st.sampled_from("CF"),
)
def test_elements_are_those_that_numpy_has(shape: list[int], dtype: str, order: Any) -> None:
    import io

    array = np.asarray(np.arange(int(np.prod(shape))).reshape(shape).astype(dtype), order=order)
    file = io.BytesIO()
    np.save(file, array)
    file.seek(0)
    header = read_header(file)
    data = b"".join(read_elements(file, header))
    assert (header.shape, header.dtype) == (array.shape, array.dtype.str)
    again = np.load(io.BytesIO(make_header(header.dtype, header.shape) + data))
    assert again.dtype == array.dtype
    assert again.shape == array.shape
    assert (again == array).all()


def test_a_header_cut_anywhere_is_none() -> None:
    import io

    whole = make_header("<f4", (3, 4))
    assert len(whole) % 64 == 0
    for length in range(len(whole)):
        with pytest.raises(NpyError):
            read_header(io.BytesIO(whole[:length]))
