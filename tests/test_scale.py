"""What looking at a spool holds and opens, however many ranks, tasks and bytes there are.

Nothing here is about speed: counts of descriptors, opens and bytes are compared, never seconds.
"""

import json
import os
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from helpers import GPUSPOOL, PATIENCE_S, wait_until
from msgspec import Raw
from spooling import A0, begin, intend, living_process, make_spool

from gpuspool.orchestrator.report.logs import Logs
from gpuspool.orchestrator.report.places import WINDOW_BYTES
from gpuspool.orchestrator.report.ranges import READ_BYTES
from gpuspool.orchestrator.report.results import Results
from gpuspool.spool.records import JournalLine
from gpuspool.spool.states import LineState
from gpuspool.spool.view import open_view

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # benchmarks is a folder of the checkout, and no installed package

from benchmarks.scale import Row, Table, Verb, has_verb, looking  # noqa: E402
from benchmarks.spools import Pulse, Size, make_busy, make_finished  # noqa: E402

RANKS = 300
DESCRIPTORS = 64


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on more ranks than a process may have files open."""
    spool = tmp_path_factory.mktemp("wide") / "S"
    make_finished(spool, Size(tasks=RANKS, ranks=RANKS, tasks_a_claim=1))
    return spool


def with_few_descriptors(*arguments: str | Path) -> str:
    command = ["bash", "-c", f'ulimit -n {DESCRIPTORS} && exec "$@"', "bash", GPUSPOOL]
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_every_verb_reads_more_journals_than_it_may_open(wide: Path) -> None:
    counts = json.loads(with_few_descriptors("status", "--json", wide))["tasks"]
    assert (counts["total"], counts["complete"]) == (RANKS, RANKS)
    results = [json.loads(line) for line in with_few_descriptors("results", wide).splitlines()]
    assert [(result["index"], result["rank"]) for result in results] == [
        (index, index) for index in range(RANKS)
    ]
    assert {result["state"] for result in results} == {"complete"}
    assert with_few_descriptors("failed", wide) == f"gpuspool: no task of {wide} has failed\n"
    assert with_few_descriptors("verify", wide).startswith(f"0 problems; {RANKS} complete")
    assert with_few_descriptors("logs", wide).count("==> ") == RANKS
    assert "nothing is known that t7 printed" in with_few_descriptors("logs", "--task", "t7", wide)
    assert f"{RANKS} complete, 0 failed" in with_few_descriptors("wait", wide)


COUNT_OPENS = """
import sys

opened = []
def note(event, arguments):
    if event == "open" and str(arguments[0]).startswith(sys.argv[1]):
        opened.append(arguments[0])

from gpuspool.orchestrator.report.failures import group_failures
from gpuspool.orchestrator.report.results import Results
from gpuspool.orchestrator.report.status import status
from gpuspool.spool.view import open_view

sys.addaudithook(note)
view = open_view(sys.argv[1], reads_claims=False)
if sys.argv[2] == "status":
    status(view)
elif sys.argv[2] == "failed":
    assert group_failures(view, 20).n_tasks == view.ledger.n_failed
else:
    assert sum(1 for _ in Results(view)) == view.run.tasks
print(len(opened))
"""


def opens(verb: str, spool: Path) -> int:
    """How many files of a spool a reader opens."""
    done = subprocess.run(
        [sys.executable, "-c", COUNT_OPENS, spool, verb],
        capture_output=True, text=True, timeout=PATIENCE_S, check=True,
    )  # fmt: skip
    return int(done.stdout)


@pytest.mark.parametrize("verb", ["status", "failed", "results"])
def test_opens_grow_with_ranks_and_not_with_tasks(verb: str, tmp_path: Path) -> None:
    few, many, wider = tmp_path / "few", tmp_path / "many", tmp_path / "wider"
    make_finished(few, Size(tasks=40, ranks=4, tasks_a_claim=2))
    make_finished(many, Size(tasks=4000, ranks=4, tasks_a_claim=2))
    make_finished(wider, Size(tasks=40, ranks=8, tasks_a_claim=2))
    assert 4 < opens(verb, few) == opens(verb, many) < opens(verb, wider)


@pytest.mark.parametrize("verb", ["status", "failed"])
def test_opens_do_not_grow_with_failures(verb: str, tmp_path: Path) -> None:
    few, many = tmp_path / "few", tmp_path / "many"
    with living_process() as alive:
        make_busy(few, Size(tasks=2000, ranks=4, tasks_a_claim=4), 16, alive)
        make_busy(many, Size(tasks=2000, ranks=4, tasks_a_claim=4), 400, alive)
        assert 4 < opens(verb, few) == opens(verb, many)


def peak_bytes(read: str, spool: Path) -> int:
    """The most memory that Python allocates while all of something is read."""
    view = open_view(spool, reads_claims=False)
    tracemalloc.start()
    try:
        if read == "results":
            for result in Results(view):
                assert len(result.result) > 1
        else:
            assert sum(map(len, Logs(view).new_text())) > BYTES
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# Results of half a MiB, so many that together they are many times a window.
COUNT = 160
BYTES = 512 * 1024


def make_large(root: Path, small: int = 0) -> Path:
    """A spool with large results; of each eight tasks the last so many have a small one."""
    layout = make_spool(root, COUNT)
    intend(layout, A0)
    writer = begin(layout, A0)
    for index in range(COUNT):
        result = Raw(b'"' + b"x" * BYTES + b'"')
        if index % 8 >= 8 - small:
            result = Raw(b"1")
        line = JournalLine(task=index, round=0, state=LineState.COMPLETE, result=result)
        writer.append(line)
    return root


def test_large_results_are_not_held_together(tmp_path: Path) -> None:
    # A window is held as it was read, joined, and split for checking; besides, one call's bytes.
    bound = 6 * WINDOW_BYTES
    assert bound < COUNT * BYTES / 2
    assert peak_bytes("results", make_large(tmp_path / "s")) < bound


def test_a_result_that_is_kept_keeps_no_window(tmp_path: Path) -> None:
    view = open_view(make_large(tmp_path / "s", small=7), reads_claims=False)
    tracemalloc.start()
    try:
        kept = [result for result in Results(view) if result.result == Raw(b"1")]
        assert len(kept) == COUNT * 7 / 8
        assert tracemalloc.get_traced_memory()[0] < BYTES
    finally:
        tracemalloc.stop()


def test_a_large_log_is_not_held_whole(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 1)
    intend(layout, A0)
    begin(layout, A0)
    with layout.log(A0).open("wb") as log:
        log.truncate(64 * READ_BYTES)
    assert peak_bytes("log", layout.root) < 8 * READ_BYTES


# The bench, and what it measures on.


@pytest.mark.parametrize(("tasks", "ranks", "failed"), [(400, 4, 16), (403, 5, 60), (120, 2, 7)])
def test_a_spool_of_a_run_at_work_is_as_a_run_leaves_it(
    tasks: int, ranks: int, failed: int, tmp_path: Path
) -> None:
    spool = tmp_path / "S"
    with living_process() as alive:
        made = make_busy(spool, Size(tasks, ranks, 4), failed, alive)
        verified = with_few_descriptors("verify", spool).splitlines()
        assert verified == [
            f"0 problems; {made.complete} complete, {made.failed} failed of {tasks}"
        ]
        now = json.loads(with_few_descriptors("status", "--json", spool))
        results = [json.loads(line) for line in with_few_descriptors("results", spool).splitlines()]
        told = with_few_descriptors("failed", spool)
        log = with_few_descriptors("logs", "--task", made.failed_key, spool)
    assert (now["state"], now["doubtful"]) == ("running", made.doubtful)
    assert [row["state"] for row in now["ranks"]] == ["running"] * ranks
    left = made.running + made.doubtful + 2 * ranks
    assert made.complete + made.failed + left == tasks
    states = {result["key"]: result["state"] for result in results}
    assert states[made.failed_key] == "failed"
    assert states[made.retaken_key] == "complete"
    assert states[made.running_key] == states[made.waiting_key] == "missing"
    counts = re.findall(r"^(\d+) tasks?: ", told, re.MULTILINE)
    assert sum(map(int, counts)) == failed
    assert made.failed_key in log


def test_a_run_at_work_goes_on_while_it_is_watched(tmp_path: Path) -> None:
    spool = tmp_path / "S"
    with living_process() as alive:
        made = make_busy(spool, Size(200, 2, 4), 4, alive)
        before = {path.name: path.stat().st_size for path in (spool / "journal").iterdir()}
        beats = set(os.listdir(spool / "beats"))
        with Pulse(spool):
            wait_until(lambda: beats.isdisjoint(os.listdir(spool / "beats")))
        after = {path.name: path.stat().st_size for path in (spool / "journal").iterdir()}
        assert sum(after[name] > before[name] for name in after) == 2
        verified = with_few_descriptors("verify", spool)
    assert verified.startswith(f"0 problems; {made.complete} complete")


@pytest.mark.slow
def test_the_bench_measures_two_versions_side_by_side(tmp_path: Path) -> None:
    """This version against itself; what it prints is looked at, not how large the figures are."""
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / ".venv").symlink_to(sys.prefix)
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- scale -->\nold\n<!-- end of scale -->\nafter\n")
    command = [sys.executable, "-m", "benchmarks.scale", "--quick", "--runs", "1"]
    done = subprocess.run(
        [*command, "--home", home, "--against", tmp_path, "--doc", page],
        cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [re.split("  +", line) for line in done.stdout.splitlines()[1:]]
    measured = {row[0]: row[1:] for row in rows}
    for case in ("400 tasks x 4 ranks", "1,600 tasks x 4 ranks"):
        for verb in ("status", "failed", "results", "logs of a task", "explain a task"):
            what = f"{verb}, at work, {case}"
            assert {f"{what}: CPU s", f"{what}: opens", f"{what}: MB"} <= measured.keys()
        assert f"status --watch, at work, {case}: % of a core" in measured
    assert {"resume, 2 dead attempts: CPU s", "resume, 4 dead attempts: CPU s"} <= measured.keys()
    for what, (ours, theirs, *_) in measured.items():
        if "opens" in what:
            assert ours == theirs, what
    table = page.read_text()
    assert table.startswith("before\n<!-- scale -->\n| what | this | other | ratio | limit | is it")
    assert table.endswith("|\n<!-- end of scale -->\nafter\n")
    assert table.count("\n| ") == 1 + len(measured)
    assert list(home.iterdir()) == [], "the bench left something behind"


def test_a_verb_that_a_version_does_not_have_is_left_out_and_said_to_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "gpuspool"
    old.write_text('#!/bin/sh\n[ "$1" = status ] || exit 2\n')
    old.chmod(0o755)
    assert has_verb("status", old)
    assert not has_verb("explain", old)
    table = Table([old])
    capsys.readouterr()
    looking(Verb("explain a task", ("explain", "t7")), "at rest", tmp_path, table, 1, Size(4, 2, 2))
    line = capsys.readouterr().out.strip()
    assert re.split("  +", line) == [
        "explain a task, at rest", "left out: this version has no `gpuspool explain`"
    ]  # fmt: skip
    assert table.rows == []


@pytest.mark.parametrize(
    ("figure", "limit", "verdict"),
    [(0.3, 0.3, "met"), (0.31, 0.3, "not met"), (5, None, "–"), (None, 7, "–")],
)
def test_a_figure_is_held_against_its_limit(
    figure: float | None, limit: float | None, verdict: str
) -> None:
    assert Row("what", (figure,), limit).cells()[-1] == verdict
