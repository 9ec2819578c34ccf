"""Tables of results: which rows and columns they have, that what reads them gets back what was
there, and that a file appears whole or not at all.
"""

import csv
import errno
import importlib.util
import io
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import GPUSPOOL, JOBS, Box, names, wait_until
from msgspec import Raw
from spooling import A0, B0, begin, intend, make_spool, take, task, view_of

import gpuspool
from gpuspool.orchestrator.export.npy import make_header
from gpuspool.orchestrator.export.rows import FIELDS
from gpuspool.orchestrator.export.table import Format, Table, write_rows
from gpuspool.orchestrator.report.results import Results, encode_result
from gpuspool.spool.codec import seal_bodies
from gpuspool.spool.errors import Incomplete, UsageError
from gpuspool.spool.journal import JournalWriter
from gpuspool.spool.layout import Layout
from gpuspool.spool.manifest import publish_added, publish_manifest, publish_orphans
from gpuspool.spool.records import NO_JSON, Added, Closing, Error, JournalLine, TaskFailure
from gpuspool.spool.states import AttemptState, ErrorKind, LineState, Reason

COLUMNS = [field.name for field in FIELDS]
# All that can be written and read again here.
FORMATS = ("jsonl", "csv", "parquet") if importlib.util.find_spec("pyarrow") else ("jsonl", "csv")

# Names of files and fields that break what splits lines and fields without thinking.
ODD_KEYS = [
    'a,b.txt', 'quo"te.txt', '""', "tab in it", " led by a blank", "semi;colon", "'single'",
    "=1+1", "-x", "ä ö ü", "日本", "😀.png", "null", "NA", "1", "1e5", "true", "back\\slash",
    "\u2028 is a line to some", "<img onerror=x>",
]  # fmt: skip


def complete(writer: JournalWriter, index: int, result: Any = None, **more: Any) -> None:
    """A complete line with this result."""
    line = JournalLine(
        task=index,
        round=more.pop("round_", 0),
        state=LineState.COMPLETE,
        start=1700000000.5 + index,
        seconds=0.25,
        result=NO_JSON if result is None else Raw(json.dumps(result, ensure_ascii=False).encode()),
        **more,
    )
    writer.append(line)


def fail(writer: JournalWriter, index: int, message: str, round_: int = 0) -> None:
    error = Error(kind=ErrorKind.EXCEPTION, type="ValueError", message=message)
    writer.append(
        JournalLine(task=index, round=round_, state=LineState.FAILED, start=1.7e9, error=error)
    )


def read_table(path: Path) -> list[dict[str, Any]]:
    """The rows of a table, with the types that every format can say."""
    if path.suffix == ".parquet":
        import pyarrow.parquet

        return list(pyarrow.parquet.read_table(path).to_pylist())
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, strict=True))
    for row in rows:
        for name, value in row.items():
            if name in ("index", "rank"):
                row[name] = int(value) if value else None
            elif name in ("start", "seconds"):
                row[name] = float(value) if value else None
            elif name == "outputs":
                row[name] = json.loads(value)
            elif value == "":
                row[name] = None
    return rows


def tables(spool: Path, folder: Path, **options: Any) -> list[list[dict[str, Any]]]:
    """The table of a spool, written in each format and read again."""
    found = []
    for format_ in FORMATS:
        path = folder / f"table.{format_}"
        rows = gpuspool.export(spool, path, **options)
        found.append(read_table(path))
        assert len(found[-1]) == rows
    return found


@pytest.fixture
def many_fates(tmp_path: Path) -> Layout:
    """A spool in which tasks have met all that they can meet."""
    layout = make_spool(tmp_path / "s", 8)
    intend(layout, A0)
    intend(layout, B0)
    a0, b0 = begin(layout, A0), begin(layout, B0)
    take(layout, A0, 8)
    complete(a0, 0, {"label": "cat"}, outputs=[("t0.vec", 12), ("t0.txt", 3)])
    complete(a0, 1)
    fail(a0, 2, 'no such\nlabel, "x"')
    # One failed, was given another round, and completed there; the next failed in both.
    fail(a0, 3, "at first")
    fail(a0, 4, "at first")
    publish_manifest(layout, "retry-01", [task(3, round=1), task(4, round=1)])
    complete(b0, 3, 3.5, round_=1)
    fail(b0, 4, "again", round_=1)
    # It ran twice.
    complete(b0, 0, {"label": "dog"})
    # Its line is damaged afterwards.
    complete(a0, 5, "lost")
    # One that was done again.
    complete(a0, 6, "old")
    publish_manifest(layout, "retry-02", [task(6, round=1, redo=True)])
    complete(b0, 6, "new", round_=1)
    added = Added(first=8, tasks=1, cost=1.0)
    payload = Raw(b'{"path":"/data/x.txt"}')
    publish_added(layout, "added-01", added, [task(8, key="x.txt", payload=payload)])
    complete(b0, 8, [1])
    return layout


def test_each_task_has_one_row_with_what_became_of_it(many_fates: Layout, tmp_path: Path) -> None:
    for rows in tables(many_fates.root, tmp_path):
        assert [list(row) for row in rows] == [COLUMNS] * 9
        assert [row["index"] for row in rows] == list(range(9))
        assert [row["state"] for row in rows] == [
            *("complete", "complete", "failed", "complete", "failed"),
            *("complete", "complete", "missing", "complete"),
        ]
        first = rows[0]
        assert json.loads(first["result"]) == {"label": "cat"}
        assert (first["start"], first["seconds"]) == (1700000000.5, 0.25)
        assert (first["rank"], first["attempt"], first["host"]) == (0, A0, os.uname().nodename)
        assert first["outputs"] == ["t0.vec", "t0.txt"]
        assert (rows[1]["result"], rows[1]["error"], rows[1]["outputs"]) == (None, None, [])
        assert rows[2]["error"] == 'ValueError: no such\nlabel, "x"'
        assert (rows[3]["result"], rows[3]["attempt"]) == ("3.5", B0)
        assert rows[4]["error"] == "ValueError: again"
        assert rows[6]["result"] == '"new"'
        assert [rows[7][name] for name in ("result", "start", "rank", "host")] == [None] * 4
        assert (rows[8]["key"], rows[8]["path"]) == ("x.txt", "/data/x.txt")
        assert rows[0]["path"] is None


def test_rows_say_what_the_lines_of_results_say(many_fates: Layout, tmp_path: Path) -> None:
    told = list(Results(view_of(many_fates)))
    for rows in tables(many_fates.root, tmp_path):
        for row, result in zip(rows, told, strict=True):
            assert row["key"] == result.key
            assert row["state"] == result.state
            assert json.loads(row["result"] or "null") == result.value()
            assert (row["rank"], row["attempt"]) == (result.rank, result.attempt)
            assert row["seconds"] == result.seconds
            assert (row["error"] is None) is (result.error is None)


def damage(layout: Layout, attempt: str, text: bytes) -> None:
    """Change a bit of the line that holds this text."""
    path = layout.journal(attempt)
    path.write_bytes(path.read_bytes().replace(text, text.swapcase()))


def test_a_row_whose_line_cannot_be_read_any_more_is_there_once(
    many_fates: Layout, tmp_path: Path
) -> None:
    view = view_of(many_fates)
    for format_ in map(Format, FORMATS):
        table = Table(view, is_flat=True)
        damage(many_fates, A0, b'"lost"')
        path = tmp_path / f"table.{format_}"
        with path.open("wb") as file:
            assert write_rows(table, format_, file) == 9
        damage(many_fates, A0, b'"LOST"')
        rows = read_table(path)
        assert [row["index"] for row in rows] == list(range(9))
        assert (rows[5]["state"], rows[5]["result"]) == ("complete", None)
        assert rows[5]["error"].startswith("LineUnreadable: ")
        assert rows[5]["attempt"] == A0
        assert table.unreadable == 1
        assert json.loads(rows[0]["result"]) == {"label": "cat"}


def test_a_task_that_a_closing_failed_has_its_error_and_its_attempt(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 2)
    begin(layout, A0)
    error = Error(kind=ErrorKind.EXIT, type="Crashed", message="killed by SIGSEGV")
    failure = TaskFailure(task=0, error=error, start=1.7e9)
    closing = Closing(
        attempt=A0, state=AttemptState.FAILED, reason=Reason.CRASH, by="test", failures=[failure]
    )
    publish_orphans(layout, closing, [])
    for rows in tables(layout.root, tmp_path):
        row = rows[0]
        assert (row["state"], row["error"]) == ("failed", "Crashed: killed by SIGSEGV")
        assert (row["start"], row["seconds"], row["attempt"]) == (1.7e9, None, A0)
        assert rows[1]["state"] == "missing"


@pytest.mark.parametrize("states", [["failed"], ["complete", "missing"]])
def test_only_rows_of_the_states_that_were_named(
    many_fates: Layout, tmp_path: Path, states: list[str]
) -> None:
    for rows in tables(many_fates.root, tmp_path, states=states):
        assert {row["state"] for row in rows} == set(states)
    assert [r["index"] for r in tables(many_fates.root, tmp_path, states="failed")[0]] == [2, 4]


def test_a_table_without_rows_has_its_columns(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 2)
    assert gpuspool.export(layout.root, tmp_path / "x.csv", states="failed") == 0
    assert next(csv.reader((tmp_path / "x.csv").read_text().splitlines())) == COLUMNS
    gpuspool.export(layout.root, tmp_path / "x.jsonl", states="failed")
    assert (tmp_path / "x.jsonl").read_bytes() == b""
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra [arrow] is not installed")
    gpuspool.export(layout.root, tmp_path / "x.parquet", states="failed")
    assert parquet.read_table(tmp_path / "x.parquet").schema.names == COLUMNS


@pytest.fixture
def odd_spool(tmp_path: Path) -> tuple[Layout, list[Any]]:
    """A spool of odd keys and odd results."""
    results: list[Any] = [
        {"text": key, "n": at, key or "x": None} for at, key in enumerate(ODD_KEYS)
    ]
    lines = [task(at, key=key) for at, key in enumerate(ODD_KEYS)]
    layout = make_spool(tmp_path / "s", lines)
    writer = begin(layout, A0)
    for at, result in enumerate(results):
        complete(writer, at, result, outputs=[(f"{ODD_KEYS[at]}.vec", 1)])
    return layout, results


def test_odd_keys_and_results_come_back_as_they_were(
    odd_spool: tuple[Layout, list[Any]], tmp_path: Path
) -> None:
    layout, results = odd_spool
    for rows in tables(layout.root, tmp_path):
        assert [row["key"] for row in rows] == ODD_KEYS
        assert [json.loads(row["result"]) for row in rows] == results
        assert [row["outputs"] for row in rows] == [[f"{key}.vec"] for key in ODD_KEYS]


def test_csv_is_as_rfc_4180_has_it(odd_spool: tuple[Layout, list[Any]], tmp_path: Path) -> None:
    layout, _ = odd_spool
    path = tmp_path / "x.csv"
    gpuspool.export(layout.root, path)
    data = path.read_bytes()
    assert data.count(b"\r\n") == data.count(b"\n") == len(ODD_KEYS) + 1
    assert data.endswith(b"\r\n")
    for fields in csv.reader(io.StringIO(data.decode(), newline=""), strict=True):
        assert len(fields) == len(COLUMNS)
    # Text is in quotes and numbers are not, so the two are told apart.
    assert b'\r\n14,"1",' in data


def test_pyarrow_reads_the_csv_and_the_lines(
    odd_spool: tuple[Layout, list[Any]], tmp_path: Path
) -> None:
    pytest.importorskip("pyarrow", reason="the extra [arrow] is not installed")
    import pyarrow.csv
    import pyarrow.json

    layout, _ = odd_spool
    gpuspool.export(layout.root, tmp_path / "x.csv", flatten=True)
    read = pyarrow.csv.read_csv(
        tmp_path / "x.csv", convert_options=pyarrow.csv.ConvertOptions(include_columns=["key", "n"])
    )
    assert read["key"].to_pylist() == ODD_KEYS
    assert read["n"].to_pylist() == list(range(len(ODD_KEYS)))
    gpuspool.export(layout.root, tmp_path / "x.jsonl", flatten=True)
    assert pyarrow.json.read_json(tmp_path / "x.jsonl")["key"].to_pylist() == ODD_KEYS


def test_other_readers_that_are_here_read_all_formats(
    odd_spool: tuple[Layout, list[Any]], tmp_path: Path
) -> None:
    layout, _ = odd_spool
    polars = pytest.importorskip("polars")
    duckdb = pytest.importorskip("duckdb")
    pytest.importorskip("pyarrow", reason="the extra [arrow] is not installed")
    for format_ in FORMATS:
        gpuspool.export(layout.root, tmp_path / f"x.{format_}", flatten=True)
    for format_, read in (
        ("csv", polars.read_csv),
        ("jsonl", polars.read_ndjson),
        ("parquet", polars.read_parquet),
    ):
        path = tmp_path / f"x.{format_}"
        assert read(path)["key"].to_list() == ODD_KEYS
        found = duckdb.sql(f"SELECT key, n FROM '{path}' ORDER BY index").fetchall()
        assert [key for key, _ in found] == ODD_KEYS
        assert [n for _, n in found] == list(range(len(ODD_KEYS)))


def test_paths_of_inputs_are_those_that_jobs_find(box: Box) -> None:
    for name in ("a/1.txt", "a/2.txt", "b.txt"):
        box.write(f"in/{name}", name)
    box.write("job.py", "def read(task, ctx):\n    return task.path.read_text()\n")
    box.run("run", "job.py:read", "in/**/*.txt", "--spool", "S")
    box.run("results", "S", "-o", "x.jsonl")
    rows = read_table(box / "x.jsonl")
    assert [row["path"] for row in rows] == [str(box / "in" / row["key"]) for row in rows]
    assert all(Path(row["path"]).is_file() for row in rows)
    (box / "in").rename(box / "moved")
    box.run("run", "job.py:read", "moved/**/*.txt", "--spool", "S")
    box.run("results", "S", "-o", "x.jsonl")
    assert all(Path(row["path"]).is_file() for row in read_table(box / "x.jsonl"))


def test_what_is_printed_without_options_is_as_it_was(many_fates: Layout, box: Box) -> None:
    printed = box.run("results", many_fates.root).out
    expected = b"".join(encode_result(one) + b"\n" for one in Results(view_of(many_fates)))
    assert printed.encode() == expected
    failed = box.run("results", many_fates.root, "--state", "failed").records()
    assert [record["index"] for record in failed] == [2, 4]


def test_tables_can_be_printed(many_fates: Layout, box: Box) -> None:
    for format_ in ("csv", "jsonl"):
        box.run("results", many_fates.root, "-o", f"x.{format_}")
        for words in (["--format", format_], ["--format", format_, "-o", "-"]):
            printed = box.run("results", many_fates.root, *words)
            # Text streams of tests turn CRLF into newlines.
            assert printed.out == (box / f"x.{format_}").read_text()
    assert "name a file" in box.run("results", many_fates.root, "--format", "parquet", code=2).err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["-o", "x.xls"], "say --format"),
        (["-o", "-"], "--format"),
        (["--flatten"], "say -o FILE"),
        (["--suffix", ".npy"], "--stack"),
        (["--stack", "x.txt"], ".npy or .arrow"),
        (["--stack", "x.npy", "--state", "failed"], "complete tasks alone"),
        (["--state", "finished"], "finished"),
        (["-o", "."], "is a folder"),
        (["-o", ".", "--format", "csv"], "is a folder"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    many_fates: Layout, box: Box, words: list[str], told: str
) -> None:
    assert told in box.run("results", many_fates.root, *words, code=2).err
    assert names(box.home) == []


def test_incomplete_runs_are_refused_where_that_was_asked(many_fates: Layout, box: Box) -> None:
    (box / "x.csv").write_text("before")
    for words in (["-o", "x.csv"], ["--format", "csv"], [], ["--stack", "x.npy"]):
        done = box.run("results", many_fates.root, "--require-complete", *words, code=3)
        assert "6 of 9 tasks are complete (2 failed, 1 without a verdict)" in done.err
        assert done.out == ""
    assert (box / "x.csv").read_text() == "before"
    with pytest.raises(Incomplete):
        gpuspool.export(many_fates.root, box / "x.csv", require_complete=True)


def test_a_complete_run_meets_the_requirement(box: Box) -> None:
    box.run("run", f"{JOBS}/plain.py:double", "--lines", box.lines(3), "--spool", "S")
    box.run("results", "S", "-o", "x.csv", "--require-complete")
    assert len(read_table(box / "x.csv")) == 3


def say_too_much(layout: Layout, attempt: str) -> None:
    """Make each line of a journal say what this version does not understand: it counts, and its
    result cannot be read.
    """
    path = layout.journal(attempt)
    lines = path.read_bytes().replace(b'"seconds":0.25', b'"seconds":"a quarter"').splitlines()
    bodies = [line[: line.rindex(b',"crc"')] for line in lines]
    path.write_bytes(b"".join(seal_bodies(bodies)))


@pytest.mark.parametrize(
    "words",
    [
        *([], ["--format", "csv"], ["--format", "jsonl", "-o", "-"]),
        *(["-o", "x.csv"], ["-o", "/dev/stdout", "--format", "csv"], ["--stack", "x.npy"]),
    ],
)
def test_results_that_cannot_be_read_are_refused_where_all_were_asked_for(
    box: Box, words: list[str]
) -> None:
    layout = make_spool(box / "s", 2)
    layout.outputs.mkdir(exist_ok=True)
    (layout.outputs / "t0.npy").write_bytes(make_header("<f4", (3,)) + bytes(12))
    a0, b0 = begin(layout, A0), begin(layout, B0)
    complete(a0, 0, 1, outputs=[("t0.npy", 1)])
    complete(b0, 1, 2)
    say_too_much(layout, B0)
    (box / "x.csv").write_text("before")
    done = box.run("results", "s", *words, "--require-complete", code=3)
    assert done.out == ""
    assert "of 1 the result cannot be read any more" in done.err
    assert "Nothing was written." in done.err
    assert (box / "x.csv").read_text() == "before"
    assert names(box.home) == ["s", "x.csv"]
    box.run("results", "s", *words)


# Of all tasks the first fifteen or so end at once, and the others wait.
GATE = """
import os, time
def f(task, ctx):
    os.makedirs("done", exist_ok=True)
    while len(os.listdir("done")) > 15 and not os.path.exists("go"):
        time.sleep(0.01)
    open(f"done/{task.index}", "w").close()
    return {"n": task.index}
"""


def test_a_live_run_has_each_row_once(box: Box) -> None:
    box.write("gate.py", GATE)
    run = box.start("run", "gate.py:f", "--lines", box.lines(40), "--spool", "S", "--ranks", "2")
    wait_until(lambda: (box / "S").is_dir() and box.status("S")["tasks"]["complete"] > 5)
    for format_ in FORMATS:
        box.run("results", "S", "-o", f"x.{format_}", "--flatten")
        rows = read_table(box / f"x.{format_}")
        assert [row["index"] for row in rows] == list(range(40))
        assert {row["state"] for row in rows} == {"complete", "missing"}
    box.write("go", "")
    run.wait(0)


def test_a_variable_says_where_the_table_goes_and_nothing_to_the_report(
    many_fates: Layout, box: Box
) -> None:
    box.environment["GPUSPOOL_RESULTS_OUTPUT"] = "x.csv"
    box.run("results", many_fates.root)
    box.run("report", many_fates.root)
    assert len(read_table(box / "x.csv")) == 9


def test_a_link_is_followed_and_a_pipe_is_written_to(many_fates: Layout, box: Box) -> None:
    (box / "real.csv").write_text("before")
    (box / "link.csv").symlink_to("real.csv")
    box.run("results", many_fates.root, "-o", "link.csv")
    assert (box / "link.csv").is_symlink()
    assert len(read_table(box / "real.csv")) == 9
    os.mkfifo(box / "fifo")
    reader = box.start("-c", "print(open('fifo').read(), end='')", program=(sys.executable,))
    box.run("results", many_fates.root, "-o", "fifo", "--format", "jsonl")
    assert len(reader.wait(0).records()) == 9
    box.run("results", many_fates.root, "-o", "/dev/null", "--format", "csv")
    assert not Path("/dev/null").is_file()
    printed = box.run("results", many_fates.root, "-o", "/dev/stdout", "--format", "jsonl")
    assert len(printed.records()) == 9
    assert Path("/dev/stdout").is_symlink()
    for name in ("fifo", "/dev/stdout"):
        args = ("results", many_fates.root, "-o", name, "--format", "parquet")
        assert "is no plain file" in box.run(*args, code=2).err


def test_a_reader_that_went_away_is_told(box: Box) -> None:
    """click would end the process with 1 and without a word."""
    os.mkfifo(box / "fifo")
    big = box.write("big.py", "def f(task, ctx):\n    return 'x' * 100_000\n")
    box.run("run", f"{big}:f", "--lines", box.lines(40), "--spool", "B")
    script = f"head -c 5 fifo >/dev/null & exec {GPUSPOOL} results B -o fifo --format csv"
    done = box.run("-c", script, program=("bash",), code=1)
    assert "Broken pipe" in done.err
    assert "fifo), errno 32" in done.err
    script = (
        f"{GPUSPOOL} results B -o /dev/stdout --format csv | head -c 5; exit ${{PIPESTATUS[0]}}"
    )
    assert box.run("-c", script, program=("bash",), code=141).err == ""


def test_a_place_where_no_file_can_be_is_refused_before_anything_is_read(
    many_fates: Layout, box: Box
) -> None:
    for words, says in (
        (["-o", "nowhere/x.csv"], "nowhere/x.csv cannot be written: there is no folder nowhere"),
        (["--stack", "nowhere/x.npy"], "nowhere/x.npy cannot be written: there is no folder"),
        (["-o", "", "--format", "csv"], "the name of a file to write is empty"),
        (["--stack", "x.npy", "--suffix", ""], "--suffix is empty"),
    ):
        assert says in box.run("results", many_fates.root, *words, code=2).err
    with pytest.raises(UsageError, match="is no file"):
        gpuspool.export(many_fates.root, "-", "csv")


def test_a_file_that_cannot_be_written_whole_is_not_there(
    odd_spool: tuple[Layout, list[Any]], box: Box
) -> None:
    root = odd_spool[0].root
    for format_ in FORMATS:
        (box / f"x.{format_}").write_text("before")
        limited = f"ulimit -f 1; trap '' XFSZ; exec {GPUSPOOL} results {root} -o x.{format_}"
        done = box.run("-c", limited, program=("bash",), code=1)
        assert "errno 27" in done.err
        assert (box / f"x.{format_}").read_text() == "before"
    assert [name for name in os.listdir(box.home) if name.startswith(".x")] == []


def test_a_folder_that_knows_no_fsync_gets_its_file(
    many_fates: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def fsync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    assert gpuspool.export(many_fates.root, tmp_path / "x.csv") == 9
    assert len(read_table(tmp_path / "x.csv")) == 9


# Kills with SIGKILL at its N-th system call that writes, syncs or renames.
KILLER = """
import os, signal, sys
from pathlib import Path
from gpuspool.orchestrator.export import saved
import gpuspool
at = int(sys.argv[1])
count = 0
def deadly(call):
    def wrapped(*args, **more):
        global count
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **more)
    return wrapped
os.rename = deadly(os.rename)
saved.sync = deadly(saved.sync)
saved.fsync_dir_if_possible = deadly(saved.fsync_dir_if_possible)
real = os.fdopen
def fdopen(fd, mode="r", *args, **more):
    if "w" not in mode:
        return real(fd, mode, *args, **more)
    class Raw(__import__("io").FileIO):
        write = deadly(__import__("io").FileIO.write)
    return __import__("io").BufferedWriter(Raw(fd, "w"), 512)
os.fdopen = fdopen
gpuspool.export(sys.argv[2], sys.argv[3], flatten=True)
print(count)
"""


@pytest.mark.parametrize("format_", FORMATS)
def test_a_kill_at_any_write_leaves_the_name_as_it_was_or_whole(
    many_fates: Layout, box: Box, format_: str
) -> None:
    script = box.write("killer.py", KILLER)

    def killed_at(number: int, path: Path) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, script, str(number), many_fates.root, path]
        return subprocess.run(words, capture_output=True, text=True, check=False)

    whole = box / f"whole.{format_}"
    done = killed_at(0, whole)
    assert done.returncode == 0, done.stderr
    writes = int(done.stdout)
    assert writes >= 4
    for before in (None, b"before"):
        for number in range(1, writes + 1):
            path = box / f"{number}.{format_}"
            if before is None:
                path.unlink(missing_ok=True)
            else:
                path.write_bytes(before)
            assert killed_at(number, path).returncode == -signal.SIGKILL
            there = path.read_bytes() if path.exists() else None
            # Only the last call, the sync of the folder, comes after the rename.
            assert there == (whole.read_bytes() if number == writes else before), number


def test_without_pyarrow_is_said_what_to_install(many_fates: Layout, box: Box) -> None:
    box.write("no/pyarrow.py", "raise ImportError('none here')\n")
    hidden = {"PYTHONPATH": str(box / "no")}
    words = ("-m", "gpuspool", "results", many_fates.root)
    many_fates.outputs.mkdir(exist_ok=True)
    (many_fates.outputs / "t0.vec").write_bytes(make_header("<f4", (3,)) + bytes(12))
    for more in (["-o", "x.parquet"], ["--stack", "x.arrow", "--suffix", ".vec"]):
        done = box.run(*words, *more, program=(sys.executable,), env=hidden, code=2)
        assert "pip install 'gpuspool[arrow]'" in done.err
        assert "none here" in done.err
    assert names(box.home) == ["no"]
    box.run(*words, "-o", "x.csv", program=(sys.executable,), env=hidden)


def test_a_report_becomes_a_data_frame(many_fates: Layout) -> None:
    pandas = pytest.importorskip("pandas")
    report = gpuspool.Report(many_fates.root, 3, {}, "")
    frame = report.to_pandas(flatten=True)
    assert list(frame.columns) == [*COLUMNS, "value", "label"]
    assert frame["index"].tolist() == list(range(9))
    assert str(frame["rank"].dtype) == "Int64"
    assert frame["label"][0] == "cat"
    assert pandas.isna(frame["rank"][7])


def test_without_pandas_is_said_what_to_install(many_fates: Layout, box: Box) -> None:
    box.write("no/pandas.py", "raise ImportError('none here')\n")
    source = (
        f"import gpuspool\ngpuspool.Report({str(many_fates.root)!r}, 0, {{}}, '').to_pandas()\n"
    )
    done = box.python(source, code=1, env={"PYTHONPATH": str(box / "no")})
    assert "pip install pandas" in done.err
    assert UsageError.__name__ in done.err
