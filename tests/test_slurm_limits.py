"""When a start in a Slurm job drains by itself, by what squeue and scontrol answer."""

import math

import pytest
from helpers import JOBS, Box, assert_sound, record
from hypothesis import given
from hypothesis import strategies as st
from slurm_stubs import Stubs, failing_stubs

from gpuspool.orchestrator.slurm.commands import ask, outside_any_job
from gpuspool.orchestrator.slurm.limits import grace_within, limit_within, with_limits_of_job
from gpuspool.orchestrator.slurm.own_job import OwnJob, own_job_in
from gpuspool.orchestrator.slurm.times import seconds_left
from gpuspool.spool.records import Options

JOB = {"SLURM_JOB_ID": "17"}
KILL_WAIT = 'echo "KillWait                = 30 sec"'


@pytest.fixture
def stubs(box: Box) -> Stubs:
    return failing_stubs(box)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0:00", 0),
        ("0:07", 7),
        ("59:56", 59 * 60 + 56),
        ("1:00:00", 3600),
        ("23:59:59", 86399),
        ("2-03:04:05", 2 * 86400 + 3 * 3600 + 4 * 60 + 5),
        ("1-12", 36 * 3600),
        ("UNLIMITED", math.inf),
    ],
)
def test_times_of_squeue_are_read(text: str, seconds: float) -> None:
    assert seconds_left(text) == seconds


@pytest.mark.parametrize("text", ["", "NOT_SET", "INVALID", "N/A", "-1:00", "5", "1:2:3:4", "a:b"])
def test_what_is_no_time_is_none(text: str) -> None:
    assert seconds_left(text) is None


@given(st.floats(0, 1e7), st.floats(0, 1e4))
def test_at_least_half_of_the_time_is_for_work_and_the_rest_for_the_end(
    left_s: float, grace_s: float
) -> None:
    limit_s = limit_within(left_s, grace_s)
    assert left_s / 2 <= limit_s <= left_s
    if left_s >= 2 * (grace_s + 30):
        assert limit_s == pytest.approx(left_s - grace_s - 30)


def test_a_grace_ends_before_slurm_kills() -> None:
    assert [grace_within(wait_s, 25) for wait_s in (0, 3, 10, 28, 30, 300)] == [0, 0, 7, 25, 25, 25]


def test_of_an_array_the_row_of_this_very_job_counts() -> None:
    # An array goes by the id of one of its elements, here the pending ones and later the last one.
    rows = "13|13|2-9|1:00:00\n14|13|0|59:56\n15|13|1|59:50\n"
    assert own_job_in(rows, "14") == OwnJob("13_0", "59:56")
    assert own_job_in("13|13|2|59:00\n15|13|1|59:50\n", "13") == OwnJob("13_2", "59:00")
    assert own_job_in("17|17|N/A|3:00\n", "17") == OwnJob("17", "3:00")
    assert own_job_in(rows, "16") is None
    assert own_job_in("garbage\n\n|||\n", "16") is None


def test_commands_are_asked_as_if_there_were_no_job() -> None:
    environment = {
        "PATH": "/bin",
        "SLURM_CONF": "c",
        "SLURM_CLUSTERS": "two",
        "SLURM_JWT": "token",
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_ID": "0",
        "SBATCH_PARTITION": "p",
        "SQUEUE_FORMAT": "%i",
        "SINFO_FORMAT": "%N",
    }
    kept = {"PATH", "SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT"}
    assert outside_any_job(environment).keys() == kept


@pytest.mark.parametrize("left", ["UNLIMITED", "365-00:00:00", "364-23:59:24", "310-00:00:00"])
def test_a_year_is_how_squeue_says_of_an_element_that_it_has_no_limit(
    stubs: Stubs, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    monkeypatch.setenv("PATH", stubs.path)
    stubs.add("squeue", f"echo '17|15|3|{left}'")
    options, told = with_limits_of_job(Options(), {}, JOB)
    assert options.time_limit_s is None
    assert told == ["Slurm job 15_3 has no time limit, and neither has this start"]


def test_a_command_that_answers_too_late_is_ended(
    stubs: Stubs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", stubs.path)
    # The sleep holds the pipes open after the shell was killed.
    stubs.add("squeue", "echo half; sleep 1000")
    answer = ask(["squeue"], timeout_s=0.2)
    assert "did not answer within" in answer.trouble
    stubs.add("squeue", "echo all; echo by the way >&2")
    answer = ask(["squeue"])
    assert (answer.out, answer.trouble, answer.err) == ("all\n", "", "by the way")


def test_a_command_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch, box: Box) -> None:
    monkeypatch.setenv("PATH", str(box.home))
    assert ask(["squeue"]).trouble == "there is no squeue on PATH"
    (box / "squeue").mkdir()
    assert "squeue" in ask(["squeue"]).trouble


def start(box: Box, *options: str, code: int = 0, **environment: str) -> str:
    """A run of two tasks inside a job; returns what it said."""
    command = ["run", f"{JOBS}/plain.py:double", "--lines", box.lines(2), "--spool", "S", "--fresh"]
    return box.run(*command, *options, env={**JOB, **environment}, code=code).err


def options_of(box: Box) -> dict[str, float]:
    """The options in the first intent."""
    found: dict[str, float] = record(box / "S" / "attempts" / "rank-0000.a00.json")["options"]
    return found


def test_the_time_that_is_left_is_the_limit_less_grace_and_margin(box: Box, stubs: Stubs) -> None:
    stubs.add("squeue", "echo '17|17|N/A|1:00:00'")
    stubs.add("scontrol", KILL_WAIT)
    said = start(box)
    assert "drains in 59:05: Slurm job 17 ends 0:55 later" in said
    assert options_of(box)["time_limit_s"] == 3600 - 25 - 30
    assert "grace_s" not in options_of(box)
    assert_sound(box, "S", 2)


def test_a_short_kill_wait_shortens_the_grace(box: Box, stubs: Stubs) -> None:
    stubs.add("squeue", "echo '17|17|N/A|1:00:00'")
    stubs.add("scontrol", "echo 'KillWait = 13 sec'")
    start(box)
    assert options_of(box)["grace_s"] == 10
    assert options_of(box)["time_limit_s"] == 3600 - 10 - 30


def test_what_was_said_wins_and_slurm_is_not_asked(box: Box, stubs: Stubs) -> None:
    start(box, "--time-limit", "7m", "--grace", "4s")
    assert options_of(box)["time_limit_s"] == 420
    assert options_of(box)["grace_s"] == 4
    start(box, GPUSPOOL_TIME_LIMIT="8m", GPUSPOOL_GRACE="5s")
    assert options_of(box)["time_limit_s"] == 480
    assert stubs.calls == []


def test_a_grace_that_the_run_was_made_with_wins(box: Box, stubs: Stubs) -> None:
    stubs.add("squeue", "echo '17|17|N/A|1:00:00'")
    stubs.add("scontrol", "echo 'KillWait = 13 sec'")
    start(box, "--grace", "60s", "--time-limit", "0", code=75)
    box.run("resume", "S", env=JOB)
    assert stubs.called("scontrol") == []
    (resumed,) = [
        one
        for one in (record(path) for path in (box / "S" / "attempts").iterdir())
        if one["options"].get("time_limit_s")
    ]
    assert resumed["options"]["time_limit_s"] == 3600 - 60 - 30
    assert resumed["options"]["grace_s"] == 60


def test_a_job_without_limit_gives_none_and_a_line(box: Box, stubs: Stubs) -> None:
    stubs.add("squeue", "echo '17|17|N/A|UNLIMITED'")
    stubs.add("scontrol", KILL_WAIT)
    said = start(box)
    assert "Slurm job 17 has no time limit" in said
    assert "warning" not in said
    assert "time_limit_s" not in options_of(box)


@pytest.mark.parametrize(
    ("squeue", "why"),
    [
        ("echo '17|17|N/A|NOT_SET'", "squeue says 'NOT_SET'"),
        ("echo '17|17|N/A|INVALID'", "squeue says 'INVALID'"),
        ("echo '18|18|N/A|1:00:00'", "squeue does not list job 17"),
        ("echo nonsense", "squeue does not list job 17"),
        ("echo Unable to contact slurm controller >&2; exit 1", "Unable to contact"),
    ],
)
def test_where_slurm_does_not_tell_there_is_no_limit_and_one_warning(
    box: Box, stubs: Stubs, squeue: str, why: str
) -> None:
    stubs.add("squeue", squeue)
    stubs.add("scontrol", KILL_WAIT)
    said = start(box)
    assert said.count("warning") == 1
    assert why in said
    assert "GPUSPOOL_TIME_LIMIT" in said
    assert "time_limit_s" not in options_of(box)
    assert_sound(box, "S", 2)


def test_without_squeue_there_is_no_limit_and_one_warning(box: Box) -> None:
    said = start(box, PATH="/nonexistent")
    assert said.count("warning") == 1
    assert "there is no squeue on PATH" in said


def test_a_finished_run_does_not_wait_for_slurm(box: Box, stubs: Stubs) -> None:
    start(box, "--time-limit", "1h", "--grace", "5s")
    said = box.run("join", "S", env=JOB).err
    assert "2 of 2 tasks complete" in said
    assert stubs.calls == []


def test_outside_of_a_job_nothing_is_asked(box: Box, stubs: Stubs) -> None:
    box.run("run", f"{JOBS}/plain.py:double", "--lines", box.lines(2), "--spool", "S")
    assert stubs.calls == []
    assert "time_limit_s" not in options_of(box)
