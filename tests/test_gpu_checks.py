"""What `make gpu` does besides what only a GPU can show: its table, its limits, and what it says
where there is no GPU.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import Nvml, is_alive, wait_until

from benchmarks import gpu, gpu_checks, gpu_rows, gpu_usage
from benchmarks.gpu_checks import Step
from benchmarks.gpu_rows import FAILED, MEASURED, NOT_RUN, PASSED, SKIPPED, Row

ROOT = Path(__file__).resolve().parent.parent
CHECKS = ROOT / "benchmarks" / "gpu_checks.py"
GIB = 2**30


def checks(env: dict[str, str | None], *options: str) -> subprocess.CompletedProcess[str]:
    merged = {**os.environ, **env}
    given = {name: value for name, value in merged.items() if value is not None}
    command = [sys.executable, str(CHECKS), *options]
    return subprocess.run(command, env=given, capture_output=True, text=True, check=False)


def python(source: str) -> tuple[str, ...]:
    """A step in Python, which is told the file for its rows as `rows`."""
    head = "from pathlib import Path\nfrom benchmarks.gpu_rows import *\nrows = Path('{rows}')\n"
    return (sys.executable, "-c", head + source)


GOOD = python("plan(rows, 'one')\nadd(rows, Row('one', PASSED, 'fine', 0.5))")


# Where there is no GPU.


def test_without_a_gpu_that_is_said_and_nothing_is_tried(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    done = checks({"CUDA_VISIBLE_DEVICES": ""}, "--json", str(out))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{gpu.NO_GPU}\n"
    assert not out.exists()


def test_where_torch_cannot_use_the_card_that_is_said_and_no_more_is_tried(
    nvml: Nvml, tmp_path: Path
) -> None:
    out = tmp_path / "gpu.json"
    env = nvml.lists("GPU-aaaa@1", CUDA_VISIBLE_DEVICES="GPU-aaaa", NVML_NAME="A card")
    done = checks(env, "--json", str(out))
    assert done.returncode == 1
    assert "not built for GPUs" in done.stdout
    told = json.loads(out.read_text())
    assert told["device"] == "A card"
    assert [row["result"] for row in told["rows"]] == [FAILED, NOT_RUN, NOT_RUN, NOT_RUN]
    assert "4 rows, 1 failed, 3 not run" in done.stdout


def test_a_driver_that_does_not_answer_is_not_waited_for(
    nvml: Nvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = nvml.lists("GPU-aaaa@1", CUDA_VISIBLE_DEVICES="GPU-aaaa", NVML_NAME="")
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert gpu_checks.card_name(1.0) is None
    monkeypatch.setenv("NVML_NAME", "A card")
    assert gpu_checks.card_name() == "A card"


@pytest.mark.parametrize("trouble", ["raise RuntimeError('sick')", "import os; os.abort()"])
def test_who_cannot_ask_for_the_gpu_says_so_and_fails(tmp_path: Path, trouble: str) -> None:
    (tmp_path / "pynvml.py").write_text(trouble)
    done = checks({"CUDA_VISIBLE_DEVICES": None, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 1
    assert "could not be asked" in done.stdout
    assert gpu.NO_GPU not in done.stdout


def test_a_driver_that_does_not_fit_is_not_taken_for_none(
    nvml: Nvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pynvml

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    for code, is_none in (
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, False),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, True),
    ):

        def init(code: int = code) -> None:
            raise pynvml.NVMLError(code)

        monkeypatch.setattr(pynvml, "nvmlInit", init)
        if is_none:
            assert gpu.find_gpu() is None
        else:
            with pytest.raises(pynvml.NVMLError):
                gpu.find_gpu()


# The table.


def test_what_was_planned_and_never_came_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    gpu_rows.plan(path, "one", "two", "three")
    gpu_rows.add(path, Row("two", MEASURED, "7 things", 1.0, {"things": 7.0}))
    with open(path, "a") as file:
        file.write('{"what": "three", "result": "pas')
    assert gpu_rows.read(path) == [
        Row("one", NOT_RUN),
        Row("two", MEASURED, "7 things", 1.0, {"things": 7.0}),
        Row("three", NOT_RUN),
    ]


def test_a_row_stays_one_row_of_the_table() -> None:
    assert Row("a|b", FAILED, "x | y", 1.26).line() == "| a/b | failed | x / y | 1.3 |"


def test_a_step_that_never_began_has_no_rows(tmp_path: Path) -> None:
    assert gpu_rows.read(tmp_path / "none") == []


def test_the_figures_of_the_bench_are_shares_of_the_bare_loop() -> None:
    base = {"what": "bare loop", "tasks_per_s": 200.0, "gpu_busy_percent": None, "seconds": 3.0}
    ranks = {"what": "two", "tasks_per_s": 190.0, "gpu_busy_percent": 98.06, "seconds": 3.0}
    assert gpu.as_row(base, base).figure == "200 tasks/s"
    row = gpu.as_row(ranks, base)
    assert row.figure == "95.0 % of the bare loop, 190 tasks/s, GPU busy 98.1 %"
    assert row.values["of_bare_loop_percent"] == 95.0


# The limits.


def test_all_limits_together_are_within_eight_minutes() -> None:
    steps = gpu_checks.all_steps(is_tiny=False)
    assert gpu_checks.WHOLE_S == 8 * 60
    limits = sum(step.limit_s + gpu_checks.END_S for step in steps)
    assert gpu_checks.ASKING_S + gpu_checks.END_S + limits <= gpu_checks.WHOLE_S


def test_a_step_that_hangs_is_killed_with_all_that_it_started_and_the_next_one_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hangs = python(
        "import os, signal, subprocess, sys, time\n"
        "plan(rows, 'quick', 'slow')\n"
        "add(rows, Row('quick', PASSED))\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen(['sleep', '1000'], start_new_session=True)\n"
        f"Path({str(tmp_path / 'pids')!r}).write_text(f'{{os.getpid()}} {{child.pid}}')\n"
        "print('I am at the slow one', flush=True)\n"
        "time.sleep(1000)\n"
    )
    steps = [Step("hanging", hangs, 6.0), Step("good", GOOD, 60.0)]
    rows = gpu_checks.run_steps(steps, tmp_path)
    assert [(row.what, row.result) for row in rows] == [
        ("quick", PASSED),
        ("slow", NOT_RUN),
        ("the step hanging", FAILED),
        ("one", PASSED),
    ]
    assert "stopped after its 6 s: I am at the slow one" in rows[2].figure
    assert not any(map(is_alive, map(int, (tmp_path / "pids").read_text().split())))
    assert rows[0].line() in capsys.readouterr().out


def test_when_the_time_for_the_whole_is_over_the_rest_is_named(tmp_path: Path) -> None:
    rows = gpu_checks.run_steps([Step("good", GOOD, 60.0)], tmp_path, whole_s=0.0)
    assert rows == [Row("good", NOT_RUN, "the time for the whole was over")]


def test_the_time_that_is_left_of_the_whole_bounds_a_step(tmp_path: Path) -> None:
    hangs = python("import time\nplan(rows, 'slow')\ntime.sleep(1000)\n")
    whole_s = gpu_checks.END_S + 3.0
    rows = gpu_checks.run_steps([Step("hanging", hangs, 900.0)], tmp_path, whole_s=whole_s)
    assert rows[-1].figure.startswith("stopped after its 3 s")


# A step that sleeps, in a process that is interrupted meanwhile.
INTERRUPTED = """
import sys
from pathlib import Path
from benchmarks import gpu_checks
sleeps = ("bash", "-c", "echo $$ >{rows}.pid; mv {rows}.pid pid; exec sleep 1000")
gpu_checks.run_steps([gpu_checks.Step("sleeping", sleeps, 900.0)], Path(sys.argv[1]))
"""


def test_a_step_does_not_outlive_an_interrupt(tmp_path: Path) -> None:
    script = INTERRUPTED.replace("mv {rows}.pid pid", f"mv {{rows}}.pid {tmp_path}/pid")
    checking = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE
    )
    wait_until((tmp_path / "pid").exists)
    checking.send_signal(signal.SIGINT)
    _, errors = checking.communicate()
    assert b"KeyboardInterrupt" in errors
    assert not is_alive(int((tmp_path / "pid").read_text()))


def test_rows_of_an_earlier_call_are_not_told_again(tmp_path: Path) -> None:
    gpu_rows.add(tmp_path / "usage.rows", Row("last month", PASSED))
    says = python("print('no GPU')")
    (row,) = gpu_checks.run_steps([Step("usage", says, 60.0)], tmp_path)
    assert (row.what, row.result) == ("the step usage", FAILED)
    assert row.figure == "it ended without a row: no GPU"


def test_a_step_that_breaks_is_a_failure_with_its_last_words(tmp_path: Path) -> None:
    breaks = python(
        "plan(rows, 'one', 'two')\nadd(rows, Row('one', PASSED))\nraise SystemExit('no')"
    )
    rows = gpu_checks.run_steps([Step("broken", breaks, 60.0)], tmp_path)
    assert [row.result for row in rows] == [PASSED, NOT_RUN, FAILED]
    assert rows[2].figure == "exit code 1: no"


def test_without_what_is_needed_the_others_are_not_tried(tmp_path: Path) -> None:
    fails = python("add(rows, Row('need', FAILED, 'no card'))\nraise SystemExit(1)")
    steps = [Step("look", fails, 60.0, is_needed=True), Step("good", GOOD, 60.0)]
    rows = gpu_checks.run_steps(steps, tmp_path)
    assert rows == [Row("need", FAILED, "no card"), Row("good", NOT_RUN, "needs what look tried")]


def test_tests_are_rows_also_those_that_hang(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(
        "import time, pytest\n"
        "def test_that_passes(): pass\n"
        "def test_that_fails(): assert 1 == 2\n"
        "@pytest.mark.skip(reason='no second card')\n"
        "def test_that_is_skipped(): pass\n"
        "@pytest.mark.parametrize('one', ['a'])\n"
        "def test_that_hangs(one): time.sleep(1000)\n"
        "@pytest.fixture\n"
        "def broken(): raise OSError('no disk')\n"
        "def test_whose_fixture_breaks(broken): pass\n"
    )
    argv = (
        sys.executable, "-m", "pytest", "-q", "-p", "benchmarks.gpu_reports", "--timeout", "2",
        "-c", "/dev/null", "-p", "no:cacheprovider", str(tmp_path / "test_some.py"),
    )  # fmt: skip
    rows = gpu_checks.run_steps([Step("tests", argv, 100.0)], tmp_path)
    assert {row.what: row.result for row in rows} == {
        "that passes": PASSED,
        "that fails": FAILED,
        "that is skipped": SKIPPED,
        "that hangs[a]": FAILED,
        "whose fixture breaks": FAILED,
    }
    figures = {row.what: row.figure for row in rows}
    assert "assert 1 == 2" in figures["that fails"]
    assert "no second card" in figures["that is skipped"]
    assert "Timeout" in figures["that hangs[a]"]
    assert "no disk" in figures["whose fixture breaks"]


# What usage/ tells, through the real bindings of NVML.


@pytest.mark.slow
def test_usage_is_held_against_nvml_while_a_load_runs(nvml: Nvml, tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text(f"#!/bin/sh\necho {80 * 1024}\n")
    smi.chmod(0o755)
    env = nvml.lists(
        "GPU-aaaa@1",
        CUDA_VISIBLE_DEVICES="GPU-aaaa",
        NVML_NAME="A card",
        NVML_BUSY="70",
        NVML_MEMORY=f"{5 * GIB}/{80 * GIB}",
        PATH=f"{smi.parent}:{os.environ['PATH']}",
    )
    done = checks(env, "--tiny", "--only", "usage", "--json", str(out))
    rows = {row["what"]: row for row in json.loads(out.read_text())["rows"]}
    assert rows[gpu_usage.LINES]["result"] == PASSED, done.stdout
    assert rows[gpu_usage.BUSY]["result"] == PASSED
    assert rows[gpu_usage.BUSY]["values"] == {"told_percent": 70.0, "seen_percent": 70.0}
    assert rows[gpu_usage.MEMORY]["result"] == PASSED
    assert rows[gpu_usage.MEMORY]["values"] == {"told_bytes": 5 * GIB, "seen_bytes": 5 * GIB}
    assert rows[gpu_usage.SMI]["result"] == PASSED


def sampler(busy: float, used: int) -> gpu.Busy:
    """What NVML said at the moments 0 to 9."""
    found = gpu.Busy(None)
    found._samples = [(float(moment), busy) for moment in range(10)]
    found._used = [(float(moment), used) for moment in range(10)]
    return found


def lines(busy: float | None, used: int) -> list[dict[str, Any]]:
    return [
        {"at": float(moment), "gpu": busy, "gpu_mem": used, "gpu_mem_total": 80 * GIB}
        for moment in range(10)
    ]


@pytest.mark.parametrize(
    ("busy", "used", "smi", "expected"),
    [
        (95.0, 10 * GIB, 80 * GIB, [PASSED, PASSED, PASSED, PASSED]),
        (5.0, 10 * GIB, 80 * GIB, [PASSED, FAILED, PASSED, PASSED]),
        (95.0, 40 * GIB, 80 * GIB, [PASSED, PASSED, FAILED, PASSED]),
        (95.0, 10 * GIB, 8 * GIB, [PASSED, PASSED, PASSED, FAILED]),
        (None, 10 * GIB, None, [PASSED, SKIPPED, PASSED, SKIPPED]),
    ],
)
def test_figures_of_usage_that_are_off_fail(
    busy: float | None, used: int, smi: float | None, expected: list[str]
) -> None:
    rows = gpu_usage.compare(lines(busy, used), sampler(98.0, 10 * GIB), smi)
    assert [row.result for row in rows] == expected


def test_too_few_lines_of_usage_fail_and_are_not_compared() -> None:
    rows = gpu_usage.compare(lines(98.0, GIB)[:2], sampler(98.0, GIB), None)
    assert [(row.what, row.result) for row in rows] == [(gpu_usage.LINES, FAILED)]


@pytest.mark.slow
def test_the_bench_gives_rows_for_the_bare_loop_and_one_two_and_four_ranks(
    nvml: Nvml, tmp_path: Path
) -> None:
    out = tmp_path / "gpu.json"
    env = nvml.lists(
        "GPU-aaaa@1", CUDA_VISIBLE_DEVICES="GPU-aaaa", NVML_NAME="A card", NVML_BUSY="70"
    )
    checks(env, "--tiny", "--only", "bench", "--json", str(out))
    rows = json.loads(out.read_text())["rows"]
    assert [row["what"] for row in rows] == [gpu.row_name(ranks) for ranks in (0, 1, 2, 4)]
    assert {row["result"] for row in rows} == {MEASURED}
