"""What a page is made of: calls laid out in time, where each attempt's time went, figures."""

import base64
import gzip
import json
import re
from pathlib import Path

import pytest
from played import T0, Played, batch, call, decode, error

from gpuspool.orchestrator.page import facts, shown
from gpuspool.orchestrator.page.axis import Axis
from gpuspool.orchestrator.page.calls import CallOutcome, Calls
from gpuspool.orchestrator.page.facts import facts_of
from gpuspool.orchestrator.page.lives import Cause
from gpuspool.orchestrator.page.reading import read_run
from gpuspool.orchestrator.page.render import render
from gpuspool.orchestrator.page.sums import POINTS, RANK_BINS, times_of
from gpuspool.spool.records import Job, TaskFailure, Usage
from gpuspool.spool.states import AttemptState, Reason

YEAR_S = 365 * 86400.0


def data_in(page: str) -> bytes:
    """What is packed into a page."""
    match = re.search(r'<script type="text/plain" id="data">([^<]*)</script>', page)
    assert match is not None
    return gzip.decompress(base64.b64decode(match[1]))


def ends(calls: Calls) -> list[float]:
    return [begin + duration for begin, duration in zip(calls.begins, calls.durations, strict=True)]


def assert_none_overlap(calls: Calls) -> None:
    for end, begin in zip(ends(calls), calls.begins[1:], strict=False):
        assert begin >= end - 1e-6


def test_the_tasks_of_a_batch_lie_one_behind_the_other(tmp_path: Path) -> None:
    played = Played(tmp_path / "S", [f"t{i}" for i in range(6)])
    lines = [*batch([0, 1, 2, 3], 10.0, 2.0), *batch([4, 5], 12.5, 1.0)]
    played.attempt(0, 0, 8.0, lines, 14.0)
    calls = played.calls()
    assert [round(begin - T0, 3) for begin in calls.begins] == [10.0, 10.5, 11.0, 11.5, 12.5, 13.0]
    assert_none_overlap(calls)


def test_a_batch_that_raised_is_one_call_and_its_parts_follow(tmp_path: Path) -> None:
    played = Played(tmp_path / "S", ["a", "b", "c"])
    lines = [
        call(0, 10.0, 0.5, "deferred", batch=[1, 2], error=error("no")),
        call(0, 11.5, 0.5),
        call(1, 12.0, 0.5, "failed", error=error("no")),
        call(2, 12.5, 0.5),
    ]
    played.attempt(0, 0, 8.0, lines, 14.0)
    calls = played.calls()
    assert list(calls.outcomes) == [
        CallOutcome.AGAIN,
        CallOutcome.COMPLETE,
        CallOutcome.FAILED,
        CallOutcome.COMPLETE,
    ]
    assert calls.durations[0] == pytest.approx(1.5)
    assert_none_overlap(calls)


def test_a_clock_that_is_set_back_moves_what_came_before(tmp_path: Path) -> None:
    played = Played(tmp_path / "S", ["a", "b", "c", "d"])
    lines = [call(0, 3610.0, 1.0), call(1, 3611.0, 1.0), call(2, 12.0, 1.0), call(3, 13.0, 1.0)]
    played.attempt(0, 0, 3609.0, lines, 15.0, lived_s=6.0)
    calls = played.calls()
    assert [round(begin - T0, 3) for begin in calls.begins] == [10.0, 11.0, 12.0, 13.0]
    assert calls.jumps == [(2, pytest.approx(-3600.0))]
    made = played.facts()
    assert made["meta"]["length"] == pytest.approx(6.0, abs=0.1)
    assert any("set back by 3,600 s" in note for note in made["notes"])


def test_a_clock_that_was_wrong_by_years_makes_no_picture_of_years(tmp_path: Path) -> None:
    played = Played(tmp_path / "S", ["a", "b"])
    lines = [call(0, 10.0 - 50 * YEAR_S, 1.0), call(1, 12.0, 1.0)]
    played.attempt(0, 0, 9.0 - 50 * YEAR_S, lines, 14.0, lived_s=5.0)
    made = played.facts()
    assert made["meta"]["length"] < 10.0
    assert made["meta"]["cuts"] == []


@pytest.mark.parametrize("start", [-T0 + 1e-300, 1e300, -1e300, 8e11])
def test_a_moment_that_is_none_is_passed_over(tmp_path: Path, start: float) -> None:
    played = Played(tmp_path / "S", ["a", "b"])
    played.attempt(0, 0, 0.0, [call(0, start, 1.0), call(1, 2.0, 1.0)], 4.0)
    made = played.facts()
    assert made["meta"]["length"] < 1e4
    assert made["tiles"]["complete"] == 2


def test_times_that_nobody_can_take_are_passed_over(tmp_path: Path) -> None:
    played = Played(tmp_path / "S", ["a", "b", "c"])
    lines = [call(0, 1.0, 1e300), call(1, 2.0, -5.0), call(2, 3.0, 0.5)]
    played.attempt(0, 0, 0.0, lines, 4.0, idle_s={}, lived_s=4.0)
    assert list(played.calls().tasks) == [2]


def test_a_day_without_anybody_at_work_is_cut_out_of_the_axis(tmp_path: Path) -> None:
    played = Played(tmp_path / "S", ["a", "b"])
    played.start(0, 0.0)
    played.attempt(
        0, 0, 0.0, [call(0, 1.0, 5.0)], 10.0, reason=Reason.DRAINED, state=AttemptState.STOPPED
    )
    played.end(0, 10.0, "drained", 75)
    played.start(1, 86410.0)
    played.attempt(0, 1, 86410.0, [call(1, 86412.0, 5.0)], 86420.0, epoch=1)
    played.end(1, 86420.0)
    made = played.facts()
    assert made["meta"]["length"] == pytest.approx(20.0)
    assert made["meta"]["cuts"] == [[pytest.approx(10.0), pytest.approx(86400.0)]]
    assert made["tiles"]["lived_s"] == pytest.approx(20.0)
    assert made["tiles"]["wall_s"] == pytest.approx(86420.0)


def test_a_short_pause_is_not_cut() -> None:
    axis = Axis([(100.0, 200.0), (202.0, 300.0)])
    assert axis.cuts == []
    assert axis.length == 200.0
    assert axis.place(202.0) == 102.0


def test_the_causes_add_up_to_how_long_each_attempt_lived(tmp_path: Path) -> None:
    played = Played(tmp_path / "S", ["a", "b", "c", "d"], ranks=2)
    played.attempt(
        0, 0, 0.0, [call(0, 3.0, 4.0), call(2, 7.5, 1.0)], 10.0, idle_s={"start": 1.0, "load": 2.0}
    )
    hung = TaskFailure(task=1, key="b", error=error("hung", kind="timeout"), start=T0 + 3.0)
    usage = [Usage(at=T0 + 2.5, busy_s=0.0, idle_s={"start": 1.0, "load": 1.5}, rss=5_000_000)]
    played.attempt(
        1, 0, 0.0, [], 20.0, usage=usage, reason=Reason.TIMEOUT, state=AttemptState.FAILED,
        by="parent", held=[hung], has_stats=False,
    )  # fmt: skip
    run = read_run(played.view(), "S")
    whole, killed = run.attempts
    assert whole.seconds == pytest.approx(10.0)
    assert whole.spent[Cause.DONE] == pytest.approx(5.0)
    assert killed.seconds == pytest.approx(20.0)
    assert killed.spent[Cause.LOST] == pytest.approx(17.0)
    assert killed.spent[Cause.LOAD] == pytest.approx(1.5)
    assert sum(seconds for _, seconds in decode(facts_of(run))["hours"]) == pytest.approx(30.0)


def test_one_that_was_found_dead_late_lived_until_it_was_last_heard_of(tmp_path: Path) -> None:
    played = Played(tmp_path / "S", ["a", "b"])
    usage = [Usage(at=T0 + 10.0, busy_s=6.0, idle_s={"start": 4.0})]
    played.attempt(
        0, 0, 0.0, [call(0, 4.0, 6.0)], 9000.0, usage=usage, reason=Reason.LOST,
        state=AttemptState.FAILED, by="resume", has_stats=False,
    )  # fmt: skip
    (attempt,) = played.read()
    assert attempt.seconds == pytest.approx(10.0)


def test_a_spool_in_which_nothing_ran_has_a_page_of_its_own(tmp_path: Path) -> None:
    made = Played(tmp_path / "S", ["a", "b"]).facts()
    assert made["tiles"]["total"] == 2
    assert made["attempts"] == []
    assert made["times"] is None


def test_the_median_and_the_percentiles_are_those_of_all_calls() -> None:
    times = times_of([float(number) for number in range(1, 1001)])
    assert times is not None
    assert (times.median, times.least, times.most) == (500.5, 1.0, 1000.0)
    assert times.p90 == pytest.approx(900.1)
    assert times.p99 == pytest.approx(990.01)
    assert sum(times.counts) == times.count == 1000
    assert times.edges[0] == 1.0
    assert times.edges[-1] == 1000.0


@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0], [2.0, 2.0], [0.0, 5.0], [1e-6, 1e6]])
def test_each_call_is_in_one_bar_of_the_histogram(values: list[float]) -> None:
    times = times_of(list(values))
    assert times is not None
    assert sum(times.counts) == len(values)
    assert times.edges == sorted(times.edges)


def test_a_task_that_ran_twice_counts_once_in_the_rate(tmp_path: Path) -> None:
    played = Played(tmp_path / "S", ["a", "b"])
    played.attempt(0, 0, 0.0, [call(0, 1.0, 1.0), call(0, 2.0, 1.0), call(1, 3.0, 1.0)], 5.0)
    made = played.facts()
    assert sum(made["rate"]["counts"]) == 2
    assert len(made["rate"]["counts"]) == POINTS


def test_above_the_limit_ranks_are_drawn_in_bins_and_few_tasks_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "MOST_CALLS", 50)
    played = Played(tmp_path / "S", [f"key-{i}" for i in range(60)], ranks=2)
    for rank in range(2):
        lines = [call(rank + 2 * i, 1.0 + i, 0.5) for i in range(30)]
        lines[-1] = call(58 + rank, 30.0, 0.9, "failed", error=error("no"))
        played.attempt(rank, 0, 0.0, lines, 32.0)
    data = facts_of(read_run(played.view(), "S"))
    made = decode(data)
    assert made["calls"] is None
    assert made["keys"] is None
    assert set(made["bins"]) == {"0", "1"}
    bins = made["bins"]["0"]
    assert len(bins["busy"]) == RANK_BINS
    assert sum(bins["ended"]) == 30
    assert sum(bins["failed"]) == 1
    busy_s = sum(bins["busy"]) / 100 * made["meta"]["length"] / RANK_BINS
    assert busy_s == pytest.approx(29 * 0.5 + 0.9, rel=0.02)
    assert {row["key"] for row in made["failures"]["named"]} == {"key-58", "key-59"}
    assert len(made["slowest"]) == 20


def test_the_longest_calls_come_first_with_what_they_cost(tmp_path: Path) -> None:
    played = Played(tmp_path / "S", [f"t{i}" for i in range(30)])
    played.attempt(0, 0, 0.0, [call(i, 2.0 * i, 0.01 * (i + 1)) for i in range(30)], 62.0)
    rows = played.facts()["slowest"]
    assert [row["task"] for row in rows] == list(range(29, 9, -1))
    assert (rows[0]["key"], rows[0]["cost"], rows[0]["host"]) == ("t29", 30.0, "n1")


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["/bin/gpuspool", "run", "j.py:J", "--ranks", "2"], "gpuspool run j.py:J --ranks 2"),
        (["x", "--arg", "hf_token=abc"], "x --arg hf_token=(not shown)"),
        (["x", "--arg=hf_token=abc"], "x --arg=hf_token=(not shown)"),
        (["x", "--arg=hf_token=a=b=c"], "x --arg=hf_token=(not shown)"),
        (["x", "--api-key", "xyz", "a"], "x --api-key (not shown) a"),
        (["x", "--api-key=xyz", "a"], "x --api-key=(not shown) a"),
        (["x", "--arg", 'auth={"token":"abc"}'], "x --arg auth=(not shown)"),
        (["x", "--args", '{"password":"abc"}'], "x --args (not shown)"),
        (["x", "--arg", 'c={"u": "a?b=c", "password": "abc"}'], "x --arg c=(not shown)"),
        (["x", '{"a": "x=y", "token": "abc"}'], "x (not shown)"),
        (["curl", "-H", "X-Api-Key: abc"], "curl -H X-Api-Key: (not shown)"),
        (["curl", "-H", "Authorization: Bearer abc"], "curl -H Authorization: (not shown)"),
        (["sh", "-c", "a --token abc b"], "sh -c 'a --token' (not shown)"),
        (["sh", "-c", "API_KEY=abc a b"], "sh -c API_KEY=(not shown)"),
        (["x", "--arg", "model=m.pt"], "x --arg model=m.pt"),
        (["sh", "-c", "a b"], "sh -c 'a b'"),
    ],
)
def test_what_is_called_a_secret_is_not_handed_on(argv: list[str], told: str) -> None:
    assert shown.command_text(argv) == told


def test_a_secret_is_hidden_however_deep_it_stands() -> None:
    args = {"password": "abc", "model": "m.pt", "auth": {"token": "x"}, "all": [{"api_key": "y"}],
        "words": ["--token", "abc", "x"]}  # fmt: skip
    assert shown.without_secrets(args) == {
        "password": shown.HIDDEN, "model": "m.pt", "auth": {"token": shown.HIDDEN},
        "all": [{"api_key": shown.HIDDEN}], "words": ["--token", shown.HIDDEN, "x"],
    }  # fmt: skip


def test_no_secret_of_a_command_is_anywhere_in_the_page(tmp_path: Path) -> None:
    words = ["predict", "--token", "abc123", "{input}"]
    job = Job(kind="command", spec=" ".join(words), name="predict", sha256="12", command=words)
    played = Played(tmp_path / "S", ["a"], job=job)
    played.attempt(0, 0, 0.0, [call(0, 1.0, 0.5)], 5.0)
    made = played.facts()
    assert "abc123" not in json.dumps(made)
    assert made["meta"]["job"] == "predict --token (not shown) '{input}'"


def test_only_tasks_that_have_a_call_have_a_key_in_the_page(tmp_path: Path) -> None:
    played = Played(tmp_path / "S", [f"key-{i}" for i in range(1000)])
    played.attempt(0, 0, 0.0, [call(700, 1.0, 0.5), call(20, 2.0, 0.5)], 5.0)
    assert played.facts()["keys"] == ["key-20", "key-700"]


def test_the_script_calls_nothing_that_the_oldest_browser_lacks_and_can_be_read() -> None:
    """The page says itself which browsers show it."""
    for name in ("page.js", "page.css", "page.html"):
        text = Path(facts.__file__).with_name(name).read_text()
        assert [line for line in text.split("\n") if len(line) > 100] == []
        newer = (
            r"\.(findLast|findLastIndex|replaceChildren|at|replaceAll|toSorted)\(|structuredClone"
        )
        assert re.findall(newer, text) == []


HOSTILE = [
    "<img src=x onerror=alert(1)>", "</script><script>alert(1)</script>", "a\u2028b\u2029c",
    "\x1b[31mred\x1b[0m", "\u202egnp.exe", "<!--<script>", "%DATA%%SCRIPT%", "x" * 5000, "{{7*7}}",
]  # fmt: skip


def test_no_text_of_a_spool_stands_in_the_page_as_it_is(tmp_path: Path) -> None:
    played = Played(tmp_path / "S", HOSTILE)
    lines = [call(i, float(i), 0.5, "failed", error=error(key)) for i, key in enumerate(HOSTILE)]
    played.attempt(0, 0, 0.0, lines, 20.0, host="<b>host</b>")
    page = render(facts_of(read_run(played.view(), "</script>"))).decode()
    for text in ("onerror", "alert(1)", "\u202e", "\x1b", "<b>host"):
        assert text not in page.partition('id="data"')[0] + page.partition("</script>\n<script>")[2]
    assert len(re.findall("</script", page)) == 2
    made = decode(data_in(page))
    assert all(ord(letter) >= 32 for key in made["keys"] for letter in key)
    assert "\u202e" not in json.dumps(made, ensure_ascii=False)
    assert "\u2028" not in json.dumps(made, ensure_ascii=False)
    assert max(map(len, made["keys"])) <= 2 * shown.KEY_LETTERS


def test_the_policy_names_the_one_script_and_the_one_style(tmp_path: Path) -> None:
    page = render(facts_of(read_run(Played(tmp_path / "S", ["a"]).view(), "S"))).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy[1]
    assert "http" not in page.replace("http-equiv", "")


def test_a_process_that_is_loaded_and_has_nothing_to_do_is_not_drawn_as_loading(
    tmp_path: Path,
) -> None:
    played = Played(tmp_path / "S", ["a"])
    idle_s = {"start": 1.0, "load": 2.0}
    played.attempt(0, 0, 0.0, [call(0, 50.0, 1.0)], 52.0, idle_s=idle_s)
    (attempt,) = played.read()
    assert [(round(until - T0, 3), cause) for until, cause in attempt.pauses] == [
        (1.0, Cause.START), (3.0, Cause.LOAD), (52.0, Cause.WORK),
    ]  # fmt: skip


def test_what_nobody_can_have_used_makes_no_figure_of_it(tmp_path: Path) -> None:
    played = Played(tmp_path / "S", ["a"])
    usage = [
        Usage(
            at=T0 + 2.0, busy_s=1e308, idle_s={"start": 1e308, "load": -5.0}, gpu=1e308, cpu=-1.0
        ),
        Usage(at=1e308, busy_s=1.0, rss=10**18),
    ]
    played.attempt(
        0, 0, 0.0, [call(0, 1.0, 1.0)], 9.0, usage=usage, reason=Reason.CRASH,
        state=AttemptState.FAILED, by="parent", has_stats=False,
    )  # fmt: skip
    made = played.facts()
    assert sum(seconds for _, seconds in made["hours"]) == pytest.approx(9.0, abs=0.1)
    assert made["tiles"]["gpu_mean"] is None
    assert made["used"]["cpu"] is None
