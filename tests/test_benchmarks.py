"""The parts of the benchmarks work and tell the truth; test_benchmarks_smoke.py runs every bench.

Nothing here is about speed: how long something took is never compared with anything.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import PATIENCE_S, wait_until
from slurm import cluster

ROOT = Path(__file__).resolve().parent.parent
# benchmarks is a folder of the checkout, and no installed package.
sys.path.append(str(ROOT))

from benchmarks import paired, peers, points, report, targets, timed, traces  # noqa: E402
from benchmarks.__main__ import arguments, main, run_all  # noqa: E402
from benchmarks.points import Point, growing  # noqa: E402


def test_elements_of_an_array_are_measured_on_the_slurm_of_the_tests(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    why = cluster.why_not()
    # The sockets of a Slurm want a short path.
    points = run_all(arguments(["--quick", "--bench", "elements"]), tmp_path_factory.mktemp("e"))
    if why:
        assert [point.note for point in points] == [why]
        return
    found = {(point.case, point.metric): point.value or 0 for point in points}
    assert set(found) == {
        ("1 element", "from sbatch to its first task"),
        ("2 elements", "last task / bound"),
        ("2 elements", "all have ended / bound"),
    }
    assert found["2 elements", "all have ended / bound"] > found["2 elements", "last task / bound"]


def test_a_page_gets_the_tables_of_what_was_measured_and_keeps_the_rest() -> None:
    figures = report.gather([Point("idle", "gpuspool", "8 ranks", "CPU", "%", 0.5)])
    before = "# P\n<!-- idle -->\nold\n<!-- end of idle -->\n"
    page = f"{before}text\n<!-- scan -->\nkept\n<!-- end of scan -->\n"
    made = report.splice(page, figures, "today")
    assert made.startswith("# P\n<!-- idle -->\n| system | 8 ranks, CPU, % |\n")
    assert "| gpuspool | 0.500 |" in made.replace("0.5000", "0.500")
    assert "old" not in made
    assert made.endswith(
        "today\n<!-- end of idle -->\ntext\n<!-- scan -->\nkept\n<!-- end of scan -->\n"
    )
    assert report.splice(made, figures, "today") == made


def test_a_peer_that_is_not_installed_is_named_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "VENVS", tmp_path)
    (tmp_path / "dask.json").write_text(
        '{"version": "", "reason": "pip: no network", "megabytes": 0}'
    )
    points = run_all(
        arguments(["--quick", "--peer", "ray", "dask", "--bench", "startup"]), tmp_path
    )
    notes = {point.peer: point.note for point in points}
    assert notes == {
        "ray": "not installed; run `python benchmarks/install_peers.py`",
        "dask": "pip: no network",
    }
    assert "| ray | not installed" in report.table(report.gather(points))


def test_a_system_finds_what_it_left_in_its_home_at_first_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And another system does not; what is measured is never the first use."""
    adapter = tmp_path / "adapters" / "with_first_use.py"
    adapter.parent.mkdir()
    adapter.write_text(
        "import json, os, pathlib, sys\n"
        "mark = pathlib.Path(os.environ['HOME'], 'used')\n"
        "is_first = not mark.exists()\n"
        "mark.touch()\n"
        "print(json.dumps({'done': 0 if is_first else int(sys.argv[2])}))\n"
    )
    monkeypatch.setattr(points, "HERE", tmp_path)
    made = [
        peers.Peer(name, "with_first_use.py", "nothing", ("startup",), variant=f"_{name}")
        for name in ("one", "other")
    ]
    monkeypatch.setattr(peers, "PEERS", tuple(made))
    slugs = [peer.slug for peer in made]
    found = run_all(arguments(["--peer", *slugs, "--bench", "startup"]), tmp_path / "home")
    whole = [point for point in found if point.metric == "whole command"]
    assert [point.peer for point in whole] == ["one", "other"] * 3
    assert [point.note for point in whole] == [""] * 6
    homes = {path.parent.name for path in (tmp_path / "home").rglob("used")}
    assert homes == set(slugs)


def test_an_unknown_peer_or_bench_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="no peer is called 'nobody'"):
        main(["--peer", "nobody"])
    with pytest.raises(SystemExit):
        main(["--bench", "nothing"])
    assert "invalid choice: 'nothing'" in capsys.readouterr().err


def test_daemons_of_a_command_are_found_and_killed(tmp_path: Path) -> None:
    script = "setsid sh -c 'sleep 1000 & sleep 1000' & exec sleep 1000"
    running = timed.Running(["/bin/sh", "-c", script], tmp_path)
    wait_until(lambda: len(timed.marked(tmp_path)) == 4)
    running.kill_and_reap()
    assert timed.marked(tmp_path) == []


def test_a_command_that_does_not_end_is_given_up_with_all_it_started(tmp_path: Path) -> None:
    assert timed.run(["/bin/sh", "-c", "sleep 1000 & sleep 1000"], tmp_path, patience_s=0.1) is None
    assert timed.marked(tmp_path) == []


def test_a_command_that_ends_is_told_with_its_code_and_words(tmp_path: Path) -> None:
    ended = timed.run(
        ["/bin/sh", "-c", "echo a; echo b; echo why >&2; exit 3"], tmp_path, PATIENCE_S
    )
    assert ended is not None
    assert (ended.code, ended.last_line, ended.complaint()) == (3, "b", "why")
    assert 0 < ended.seconds < PATIENCE_S


def test_nothing_of_ours_leaks_into_a_peers_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUSPOOL_RANKS", "7")
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    ended = timed.run(
        [sys.executable, "-c", "import os; print(dict(os.environ))"], tmp_path, PATIENCE_S
    )
    assert ended is not None
    assert "GPUSPOOL_RANKS" not in ended.out
    assert "PYTHONHASHSEED" not in ended.out


@pytest.fixture
def traced(tmp_path: Path) -> Path:
    traces.write_tasks(tmp_path, [0.0] * 4)
    (tmp_path / "trace" / "1").write_text("0 10 11 1\n1 11 13 1\n")
    (tmp_path / "trace" / "2").write_text("1 10 14 2\n3 14.5 15 2\n")
    return tmp_path


def test_traces_are_counted_and_read_by_their_end(traced: Path) -> None:
    executions = traces.read_traces(traced)
    assert [(one.task, one.end, one.pid) for one in executions] == [
        (0, 11, 1),
        (1, 13, 1),
        (1, 14, 2),
        (3, 15, 2),
    ]
    assert traces.count_traces(traced) == 4
    assert traces.twice_and_lost(executions, 4) == (1, 1)
    assert traces.makespan(executions) == 5
    assert traces.share_inside(executions) == pytest.approx((3 + 4.5) / (3 + 5))


def test_a_task_of_python_and_one_of_the_shell_leave_the_same_kind_of_trace(tmp_path: Path) -> None:
    traces.write_tasks(tmp_path, [0.001, 0.001])
    first, second = (tmp_path / "lines").read_text().splitlines()
    code = f"import work; work.sleeping({first!r})"
    for argv in ([sys.executable, "-c", code], [str(peers.HERE / "adapters" / "task.sh"), second]):
        ended = timed.run(argv, tmp_path, PATIENCE_S)
        assert ended is not None
        assert ended.code == 0, ended.err
    executions = traces.read_traces(tmp_path)
    assert [one.task for one in executions] == [0, 1]
    assert all(one.end >= one.start + 0.001 and one.pid > 1 for one in executions)


def test_skewed_tasks_are_the_same_each_time_and_have_the_mean_that_was_asked_for() -> None:
    seconds = traces.skewed(20_000, 0.02, 4.0)
    assert seconds == traces.skewed(20_000, 0.02, 4.0)
    assert seconds[-2:] == [4.0, 4.0]
    assert sum(seconds[:-2]) / 20_000 == pytest.approx(0.02, rel=0.1)


def test_arithmetic_schedules() -> None:
    seconds = [1.0, 1.0, 1.0, 3.0]
    assert traces.lower_bound(seconds, 2) == 3.0
    assert traces.schedule(seconds, 2) == 4.0
    assert traces.schedule(sorted(seconds, reverse=True), 2) == 3.0


def test_sizes_grow_until_the_next_would_take_too_long_or_one_went_wrong() -> None:
    seen = []
    for n, took in growing((1, 10, 100, 1000), limit_s=50):
        seen.append(n)
        took.append(n / 10)
    assert seen == [1, 10, 100], "1,000 would take 100 s"
    assert [n for n, _ in growing((1, 10), limit_s=50)] == [1]
    for n, took in growing((1, 10, 100), limit_s=50):
        took.append(40 + n / 100)
    assert n == 100, "most of the time of the smaller ones was the start"


def point(value: float | None, peer: str = "gpuspool", note: str = "") -> Point:
    return Point("throughput", peer, "N=1000000", "whole command", "tasks/s", value, note)


def test_repetitions_become_a_median_and_a_range() -> None:
    [figure] = report.gather([point(1.0), point(5.0), point(2.0)])
    assert figure.cell() == "2 (1–5)"
    assert {name: figure.record()[name] for name in ("median", "low", "high")} == {
        "median": 2,
        "low": 1,
        "high": 5,
    }
    [nothing] = report.gather([point(None, note="exit code 1")])
    assert nothing.cell() == "exit code 1"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0123456, "0.0123"),
        (0.5, "0.500"),
        (1.0, "1"),
        (86.32, "86.3"),
        (1234567, "1,230,000"),
        (999, "999"),
    ],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert report.number(value) == text


def test_targets_are_ratios_of_one_run_and_say_whether_they_are_met() -> None:
    figures = report.gather([point(300.0), point(200.0, "joblib"), point(2.0, "GNU parallel")])
    lines = [target.line() for target in targets.targets(figures)]
    assert lines == [
        "met    tasks/s at 1M against the best durable peer at any N: 150 (at least 100)",
        "met    tasks/s at 1M against joblib: 1.50 (at least 1)",
    ]
    missed = report.gather([point(100.0), point(200.0, "joblib")])
    assert [target.is_met for target in targets.targets(missed)] == [False]


def test_the_gpu_bench_says_so_where_there_is_no_gpu() -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py")]
    done = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S * 2,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "no GPU" in done.stdout


def test_two_versions_are_held_against_each_other_pair_by_pair(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert paired.main([sys.executable, "--bench", "startup", "--runs", "2"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].startswith("| bench | figure | this | the other")
    assert any(row.startswith("| startup, 2 tasks | whole command |") for row in rows)
