"""`gpuspool report`: which files it writes and how; the trace, and the list of jobs."""

import gzip
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from helpers import JOBS, Box, names, record
from played import T0, Played, batch, call, error
from spooling import hidden_files

import gpuspool
from gpuspool.orchestrator.api.handing_on import write_file
from gpuspool.spool.records import Error, Job, TaskFailure, Usage
from gpuspool.spool.states import AttemptState, Reason

COMMAND = Job(
    kind="command", spec="predict", name="predict", sha256="12ab",
    command=["predict", "{input}", "--out", "{output}.json", "--rank", "{rank}", "{{literal}}"],
)  # fmt: skip


@pytest.fixture
def finished(box: Box) -> Path:
    box.run("run", f"{JOBS}/plain.py:double", "--lines", box.lines(5), "--spool", "S")
    return box / "S"


def is_page(data: bytes) -> bool:
    return data.startswith(b"<!DOCTYPE html>") and data.rstrip().endswith(b"</html>")


def test_the_page_lies_in_the_spool_and_nobody_takes_it_for_a_fault(
    box: Box, finished: Path
) -> None:
    done = box.run("report", "S")
    assert "wrote S/report.html" in done.err
    assert is_page((finished / "report.html").read_bytes())
    assert stat.S_IMODE((finished / "report.html").stat().st_mode) & 0o077 == (
        stat.S_IMODE((finished / "FORMAT").stat().st_mode) & 0o077
    )
    verified = box.run("verify", "S", "--json").record()
    assert verified == {"problems": [], "notes": []}
    assert box.run("status", "S", "--json").record()["state"] == "complete"
    # A run that goes on, is added to and is made anew minds it no more than its own files.
    box.run("resume", "S")
    box.run("run", f"{JOBS}/plain.py:double", "--lines", box.lines(7), "--spool", "S", "--add")
    assert box.problems("S") == []
    assert (finished / "report.html").exists()
    box.run("report", "S")
    box.run("run", f"{JOBS}/plain.py:double", "--lines", box.lines(7), "--spool", "S", "--fresh")
    assert not (finished / "report.html").exists()


def test_a_page_is_replaced_in_one_step(box: Box, finished: Path) -> None:
    page = finished / "report.html"
    page.write_text("old")
    with page.open() as old:
        box.run("report", "S")
        assert old.read() == "old"
    assert is_page(page.read_bytes())
    assert hidden_files(finished) == hidden_files(finished / "outputs")


def test_a_link_in_the_place_of_the_page_leads_nowhere(box: Box, finished: Path) -> None:
    other = box.write("precious", "kept")
    (finished / "report.html").symlink_to(other)
    box.run("report", "S")
    assert other.read_text() == "kept"
    assert not (finished / "report.html").is_symlink()


def test_where_the_page_shall_be_is_told(box: Box, finished: Path) -> None:
    box.run("report", "S", "-o", "a.html")
    box.run("report", "S", "--output", str(box / "b.html"))
    box.run("report", "S", env={"GPUSPOOL_REPORT_OUTPUT": "c.html"})
    for name in ("a.html", "b.html", "c.html"):
        assert is_page((box / name).read_bytes())
    assert not (finished / "report.html").exists()
    for to in ("-", "/dev/stdout"):
        done = box.run("report", "S", "-o", to)
        assert is_page(done.out.encode())
    assert Path("/dev/stdout").is_symlink()
    box.run("report", "S", "-o", "/dev/null")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["-o", "S"], "is a folder"),
        (["-o", ""], "is empty"),
        (["-o", "nowhere/x.html"], "there is no folder nowhere"),
        (["-o", "x", "--trace", "x"], "named twice"),
        (["-o", "x", "--trace", "./x"], "named twice"),
        (["-o", "lines/../x", "--joblog", "x"], "named twice"),
        (["--trace", "S/journal"], "is a folder"),
    ],
)
def test_a_name_that_no_file_can_have_is_refused(
    box: Box, finished: Path, options: list[str], says: str
) -> None:
    done = box.run("report", "S", *options, code=2)
    assert says in done.err
    assert names(box.home) == ["S", "lines"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_spool_of_somebody_else_asks_for_another_place(box: Box, finished: Path) -> None:
    finished.chmod(0o555)
    try:
        assert "Name another file, with -o" in box.run("report", "S", code=2).err
        box.run("report", "S", "-o", "mine.html")
    finally:
        finished.chmod(0o755)


def test_no_page_is_written_where_only_a_trace_or_a_list_is_asked_for(
    box: Box, finished: Path
) -> None:
    box.run("report", "S", "--trace", "t.json", "--joblog", "j.txt")
    assert not (finished / "report.html").exists()
    assert len(record(box / "t.json")["traceEvents"]) > 5
    assert (box / "j.txt").read_text().count("\n") == 6
    box.run("report", "S", "--joblog", "j.txt", "-o", "p.html")
    assert is_page((box / "p.html").read_bytes())


def test_what_is_not_a_spool_is_told_so(box: Box) -> None:
    assert "is not a spool" in box.run("report", ".", code=2).err
    assert "does not exist" in box.run("report", "S", code=2).err


def test_the_same_from_python(box: Box, finished: Path) -> None:
    assert gpuspool.report(finished) == finished / "report.html"
    assert gpuspool.report(finished, box / "p.html") == box / "p.html"
    assert gpuspool.report(finished, trace=box / "t.json") is None
    assert (box / "t.json").exists()
    with pytest.raises(gpuspool.UsageError, match="is a folder"):
        gpuspool.report(finished, finished)


def test_no_start_takes_what_is_being_written_for_a_leftover(box: Box, finished: Path) -> None:
    """The usual place of a page is the spool, and it may take minutes."""

    def pieces() -> Iterator[bytes]:
        yield b"half"
        assert box.run("resume", "S").code == 0
        yield b" and half"

    assert write_file(str(finished / "report.html"), pieces())
    assert (finished / "report.html").read_bytes() == b"half and half"
    assert box.problems("S") == []


# The trace.


def played(root: Path, **more: Any) -> Played:
    """Two hosts; a batch, a failure, a crash and a restart."""
    made = Played(root, [f"k{i}" for i in range(8)], ranks=2, **more)
    made.start(0, 0.0, "n1")
    made.start(1, 0.0, "n2")
    died = TaskFailure(
        task=7, key="k7", start=T0 + 5.0,
        error=error(
            "died", kind="lost", type="WorkerLost", exit_code=-11, attempts=["rank-0001.a00"]
        ),
    )  # fmt: skip
    usage = [Usage(at=T0 + 4.0, rss=1000, cpu=0.5, gpu=75.0, gpu_mem=2000, gpu_mem_total=4000)]
    failed = call(6, 4.0, 0.5, "failed", error=error("exit code 3", kind="exit", exit_code=3))
    made.attempt(0, 0, 0.5, [*batch([0, 2, 4], 1.0, 1.5), failed], 9.0, usage=usage)
    made.attempt(
        1, 0, 0.5, batch([1, 3], 1.0, 2.0), 6.0, epoch=1, host="n2", reason=Reason.CRASH,
        state=AttemptState.FAILED, by="parent", lost=[died], has_stats=False,
    )  # fmt: skip
    made.attempt(1, 1, 6.5, [call(5, 7.0, 1.0)], 9.0, epoch=1, host="n2")
    return made


def events_of(made: Played, path: Path) -> list[dict[str, Any]]:
    gpuspool.report(made.root, trace=path)
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    events: list[dict[str, Any]] = json.loads(data)["traceEvents"]
    return events


@pytest.mark.parametrize("name", ["t.json", "t.json.gz"])
def test_a_trace_has_a_process_for_each_host_and_a_track_for_each_rank(
    tmp_path: Path, name: str
) -> None:
    events = events_of(played(tmp_path / "S"), tmp_path / name)
    named = {(event["name"], event["args"]["name"]) for event in events if event["ph"] == "M"}
    assert named == {
        ("process_name", "n1"), ("process_name", "n2"), ("thread_name", "rank 0"),
        ("thread_name", "rank 1"),
    }  # fmt: skip
    calls = [event for event in events if event["ph"] == "X" and event["cat"] != "attempt"]
    assert {event["name"]: event["cat"] for event in calls} == {
        **{f"k{i}": "complete" for i in range(6)}, "k6": "failed", "k7": "lost",
    }  # fmt: skip
    counters = {event["name"]: event["args"]["now"] for event in events if event["ph"] == "C"}
    assert counters["rank 0: GPU use, percent"] == 75.0


def test_what_lies_on_a_track_lies_within_each_other_or_apart(tmp_path: Path) -> None:
    events = events_of(played(tmp_path / "S"), tmp_path / "t.json")
    tracks: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for event in events:
        if event["ph"] == "X":
            span = (event["ts"], event["ts"] + event["dur"])
            tracks.setdefault((event["pid"], event["tid"]), []).append(span)
    assert sum(map(len, tracks.values())) == 11
    for spans in tracks.values():
        for first in spans:
            for second in spans:
                is_within = second[0] >= first[0] - 0.01 and second[1] <= first[1] + 0.01
                is_around = first[0] >= second[0] - 0.01 and first[1] <= second[1] + 0.01
                is_apart = second[0] >= first[1] - 0.01 or second[1] <= first[0] + 0.01
                assert is_within or is_around or is_apart, (first, second)


def test_the_track_of_a_rank_has_its_name_on_each_host(tmp_path: Path) -> None:
    made = Played(tmp_path / "S", ["a", "b"])
    made.attempt(
        0, 0, 0.0, [call(0, 1.0, 0.5)], 5.0, reason=Reason.DRAINED, state=AttemptState.STOPPED
    )
    made.attempt(0, 1, 10.0, [call(1, 11.0, 0.5)], 15.0, epoch=1, host="n2")
    events = events_of(made, tmp_path / "t.json")
    named = {
        (event["pid"], event["tid"]): event["args"]["name"]
        for event in events
        if event["name"] == "thread_name"
    }
    tracks = {(event["pid"], event["tid"]) for event in events if event["ph"] == "X"}
    assert tracks == named.keys()
    assert set(named.values()) == {"rank 0"}


def test_no_call_reaches_over_its_attempt(tmp_path: Path) -> None:
    made = Played(tmp_path / "S", [f"t{i}" for i in range(300)])
    lines = [call(i, 0.1 + i / 3, 1 / 3) for i in range(300)]
    made.attempt(0, 0, 0.1, lines, 0.1 + 100.0, idle_s={}, lived_s=100.0)
    spans = [event for event in events_of(made, tmp_path / "t.json") if event["ph"] == "X"]
    ((ended,), ends) = (
        [
            round(one["ts"] + one["dur"], 3)
            for one in spans
            if (one["cat"] == "attempt") is is_attempt
        ]
        for is_attempt in (True, False)
    )
    assert max(ends) <= ended


# The list of jobs.


def joblog(made: Played, path: Path) -> list[list[str]]:
    gpuspool.report(made.root, joblog=path)
    return [line.split("\t") for line in path.read_text().splitlines()]


def test_the_list_of_jobs_has_the_columns_of_gnu_parallel(tmp_path: Path) -> None:
    head, *rows = joblog(played(tmp_path / "S"), tmp_path / "log")
    assert head == [
        "Seq", "Host", "Starttime", "JobRuntime", "Send", "Receive", "Exitval", "Signal", "Command",
    ]  # fmt: skip
    assert [len(row) for row in rows] == [9] * 8
    ended = [float(row[2]) + float(row[3]) for row in rows]
    assert ended == sorted(ended)
    by_seq = {int(row[0]): row for row in rows}
    assert sorted(by_seq) == list(range(1, 9))
    assert by_seq[1][1:8] == ["n1", f"{T0 + 1.0:.3f}", "0.500", "0", "0", "0", "0"]
    assert by_seq[7][6:8] == ["3", "0"]
    assert by_seq[8][6:8] == ["0", "11"]
    assert by_seq[2][8] == "job.py:work k1"


def test_a_command_stands_in_the_list_as_it_ran(tmp_path: Path) -> None:
    payloads = [{"path": f"/data/my file {i}"} for i in range(8)]
    made = played(tmp_path / "S", job=COMMAND, payloads=payloads)
    rows = joblog(made, tmp_path / "log")[1:]
    command = next(row[8] for row in rows if row[0] == "6")
    out = tmp_path / "S" / "outputs" / "k5"
    assert command == f"predict '/data/my file 5' --out {out}.json --rank 1 '{{literal}}'"


def test_no_name_breaks_a_line_of_the_list(tmp_path: Path) -> None:
    made = Played(tmp_path / "S", ["tab\there", "line\nbreak", "\x1b[31m"])
    made.attempt(0, 0, 0.0, [call(i, 1.0 + i, 0.5) for i in range(3)], 5.0, host="a\tb")
    rows = joblog(made, tmp_path / "log")
    assert [len(row) for row in rows] == [9] * 4


def test_tasks_without_a_verdict_are_not_in_the_list(tmp_path: Path) -> None:
    made = Played(tmp_path / "S", ["a", "b", "c"])
    made.attempt(0, 0, 0.0, [call(0, 1.0, 0.5)], 5.0)
    assert [row[0] for row in joblog(made, tmp_path / "log")[1:]] == ["1"]


def test_tasks_that_are_finished_by_no_known_call_are_in_the_list(tmp_path: Path) -> None:
    made = Played(tmp_path / "S", ["a", "b", "c", "d"], job=COMMAND)
    died = [
        TaskFailure(
            task=index, key="x", start=T0 + 5.0,
            error=error("died", kind="lost", exit_code=-9, host="n7", attempts=["rank-0000.a00"]),
        )
        for index in (1, 2)
    ]  # fmt: skip
    lines = [call(0, 1.0, 0.5), call(3, -T0, 0.5)]
    made.attempt(
        0, 0, 0.0, lines, 6.0, reason=Reason.CRASH, state=AttemptState.FAILED, by="parent",
        lost=died, has_stats=False,
    )  # fmt: skip
    rows = joblog(made, tmp_path / "log")[1:]
    assert [row[0] for row in rows] == ["3", "4", "1", "2"]
    assert rows[0][1:8] == ["n7", "0.000", "0.000", "0", "0", "0", "9"]
    assert rows[1][1:8] == [":", "0.000", "0.000", "0", "0", "0", "0"]
    assert "--rank '{rank}'" in rows[0][8]
    assert rows[3][1:8] == ["n1", f"{T0 + 5.0:.3f}", "1.000", "0", "0", "0", "9"]


@pytest.mark.skipif(shutil.which("parallel") is None, reason="there is no GNU parallel here")
def test_gnu_parallel_goes_on_with_the_list(tmp_path: Path, box: Box) -> None:
    log = tmp_path / "log"
    joblog(played(tmp_path / "S"), log)
    done = box.run(
        "--resume-failed",
        "--joblog",
        log,
        "echo",
        ":::",
        *map(str, range(8)),
        program=("parallel",),
    )
    assert sorted(done.out.split()) == ["6", "7"]


def test_a_signal_is_told_by_its_number() -> None:
    from gpuspool.orchestrator.page.joblog import _exit

    cases: list[tuple[dict[str, Any], tuple[int, int]]] = [
        ({}, (1, 0)),
        ({"exit_code": 3}, (3, 0)),
        ({"exit_code": -9}, (0, 9)),
        ({"exit_code": 139, "signal": "SIGSEGV"}, (139, 11)),
        ({"exit_code": 0}, (1, 0)),
    ]
    for fields, told in cases:
        made = Error(kind="exit", type="CommandFailed", message="", **fields)
        assert _exit(made) == told
    assert msgspec.json.encode(Error(kind="exit", type="x", message=""))
