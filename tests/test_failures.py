"""What `gpuspool failed` tells: each kind of failure once, and nothing that is not so."""

import collections
import re
import shlex
import subprocess
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from helpers import Box
from msgspec import Raw
from msgspec.structs import replace
from spooling import A0, A1, B0, begin, intend, make_spool, task, view_of, watch_opens

import gpuspool
from gpuspool.orchestrator.report.failures import SHOWN, failed_results, group_failures
from gpuspool.orchestrator.report.failures_text import COLUMNS, MOST_WITH_TASKS, failures_text
from gpuspool.orchestrator.report.finding import find_task
from gpuspool.orchestrator.report.naming import Name, Namer, explain_command
from gpuspool.orchestrator.report.ranges import LINES_BYTES, read_lines
from gpuspool.orchestrator.text.cells import width
from gpuspool.orchestrator.text.groups import MOST_GROUPS, how_of
from gpuspool.orchestrator.text.printable import one_line, shell_word
from gpuspool.spool.closing import failures_of
from gpuspool.spool.layout import Layout
from gpuspool.spool.manifest import publish_manifest, publish_ruling
from gpuspool.spool.records import Error, JournalLine, Ruling, TaskFailure, TaskLine
from gpuspool.spool.states import ErrorKind, LineState
from gpuspool.spool.view import View

TRACEBACK = (
    "Traceback (most recent call last):\n"
    '  File "/home/ada/job.py", line 3, in go\n'
    "    return table[task.key]\n"
    "KeyError: 'k'\n"
)


def error(message: str = "it is bad", **more: object) -> Error:
    fields = {"kind": ErrorKind.EXCEPTION, "type": "ValueError", "where": "job.py:3", **more}
    return Error(message=message, **fields)  # type: ignore[arg-type]


def fail(
    layout: Layout, attempt: str, errors: Iterable[tuple[int, Error]], round_: int = 0
) -> None:
    """An attempt says of these tasks that they failed."""
    intend(layout, attempt)
    writer = begin(layout, attempt)
    for index, one in errors:
        line = JournalLine(task=index, round=round_, state=LineState.FAILED, error=one)
        writer.append(line, may_wait=True)
    writer.flush()


def failed_spool(tmp_path: Path, *errors: Error, tasks: list[TaskLine] | None = None) -> View:
    """A view of a run of which each task failed of one of these errors."""
    layout = make_spool(tmp_path / "S", tasks or len(errors))
    fail(layout, A0, enumerate(errors))
    return view_of(layout)


def told(view: View, spool: str = "S") -> list[str]:
    return list(failures_text(group_failures(view, MOST_WITH_TASKS), spool))


def tasks_told(lines: Iterable[str]) -> list[str]:
    """The lines that name a task, without their indents."""
    return [line.strip() for line in lines if re.match(r"    \S.*  #\d+", line)]


# Groups.


def test_twenty_tasks_with_one_message_tell_it_once(box: Box) -> None:
    """Seen: twenty lines that said the same."""
    box.write("job.py", "def job(task, ctx):\n    raise ValueError('no such column: label')\n")
    box.run("run", "job.py:job", "--lines", box.lines(20), "--keep-going", "--spool", "S", code=3)
    out = box.run("failed", "S").out
    lines = out.splitlines()
    assert lines[0] == "20 tasks: exception, ValueError at job.py:2"
    assert lines[1] == "  message: no such column: label"
    # Beside that it stands where Python shows it: as the source of the line, and as its error.
    assert out.count("raise ValueError('no such column: label')") == 1
    assert out.count("ValueError: no such column: label") == 1
    assert len(tasks_told(lines)) == 20
    assert not any("no such column" in line for line in tasks_told(lines))


@pytest.mark.parametrize(
    "message",
    [
        "expected 3 channels, got {index}",
        "cannot open /data/{index}/in.png",
        "loss is 1.{index}e-3 at 0x7f0{index}",
        "{key} is bad",
        "'dir/{key}.png' cannot be read",
    ],
)
def test_messages_that_differ_by_a_number_a_path_or_the_key_are_shown_by_one(
    message: str, tmp_path: Path
) -> None:
    names = "abcdefgh"
    tasks = [task(index, key=f"{name}{name}") for index, name in enumerate(names)]
    messages = [message.format(index=one.task, key=one.key) for one in tasks]
    view = failed_spool(tmp_path, *map(error, messages), tasks=tasks)
    lines = told(view)
    assert lines[1] == f"  such as: {messages[0]}"
    assert len(tasks_told(lines)) == len(names)
    assert not any(other in line for line in lines for other in messages[1:])


def test_messages_that_say_different_things_stand_each_at_its_task(tmp_path: Path) -> None:
    messages = ["too dark", "too bright\n1 task: forged\n    t9  #9", "x" * 500]
    lines = told(failed_spool(tmp_path, *map(error, messages)))
    assert lines[0] == "3 tasks: exception, ValueError at job.py:3"
    assert lines[1:7] == [
        "    t0  #0  0",
        "      too dark",
        "    t1  #1  1",
        "      too bright\\n1 task: forged\\n    t9  #9",
        "    t2  #2  2",
        f"      {'x' * (COLUMNS - 7)}…",
    ]
    assert lines[7].startswith("  next: ")


def test_groups_are_by_kind_type_and_line_the_largest_first(tmp_path: Path) -> None:
    errors = [
        error(where="job.py:9"),
        *[error()] * 3,
        error(kind=ErrorKind.TIMEOUT),
        error(where=""),
    ]
    lines = told(failed_spool(tmp_path, *errors))
    assert [line for line in lines if re.match(r"\d+ task", line)] == [
        "3 tasks: exception, ValueError at job.py:3",
        "1 task: exception, ValueError at job.py:9",
        "1 task: timeout, ValueError at job.py:3",
        "1 task: exception, ValueError",
    ]


def test_of_a_large_group_the_first_tasks_in_input_order_are_shown(tmp_path: Path) -> None:
    count = SHOWN + 5
    layout = make_spool(tmp_path / "S", count)
    fail(layout, A0, ((index, error(f"{index}")) for index in reversed(range(0, count, 2))))
    fail(layout, B0, ((index, error(f"{index}")) for index in reversed(range(1, count, 2))))
    lines = told(view_of(layout))
    assert lines[1] == "  such as: 0"
    assert [line.split()[0] for line in tasks_told(lines)] == [f"t{at}" for at in range(SHOWN)]
    assert "    … and 5 more; `--json` lists all" in lines


def test_of_very_many_groups_the_smaller_ones_are_a_line_each(tmp_path: Path) -> None:
    errors = [error(where=f"job.py:{index}") for index in range(MOST_GROUPS + 7)]
    lines = told(failed_spool(tmp_path, *errors))
    assert len(tasks_told(lines)) == MOST_WITH_TASKS
    assert sum(line.startswith("1 task: ") for line in lines) == MOST_GROUPS
    assert "7 tasks in yet other groups; `--json` lists all" in lines


def test_thousands_have_a_comma(tmp_path: Path) -> None:
    lines = told(failed_spool(tmp_path, *[error()] * 1234))
    assert lines[0].startswith("1,234 tasks: ")
    assert any(line.startswith("    … and 1,") for line in lines)


def test_the_traceback_of_the_first_task_is_shown(tmp_path: Path) -> None:
    others = TRACEBACK.replace("'k'", "'other'")
    lines = told(failed_spool(tmp_path, error(traceback=TRACEBACK), error(traceback=others)))
    assert [line.removeprefix("  | ") for line in lines if line.startswith("  | ")] == (
        TRACEBACK.splitlines()
    )
    assert lines[1] == "  message: it is bad", "the one frame shows the line of source"


def test_the_line_that_raised_stands_first_where_it_is_one_frame_of_several(tmp_path: Path) -> None:
    head, _, rest = TRACEBACK.partition("\n")
    more = '  File "/home/ada/job.py", line 9, in __call__\n    self.go(task)\n'
    lines = told(failed_spool(tmp_path, error(traceback=f"{head}\n{more}{rest}")))
    assert lines[1] == "      return table[task.key]"
    assert lines.count("  |     return table[task.key]") == 1


def lost(**more: object) -> Error:
    return error(kind=ErrorKind.LOST, where="", log_tail="loading\nSegmentation fault", **more)


@pytest.mark.parametrize(
    ("attempts", "more", "named"),
    [
        ([A0, A1], {"attempt": A0, "rank": 0}, A0),
        ([A0, B0], {"attempt": A0, "rank": 0}, A0),
        # As earlier versions wrote them.
        ([A0, B0], {"rank": 0}, A0),
        ([A0, A1], {"rank": 0}, A1),
        ([A0, B0], {}, B0),
    ],
)
def test_the_log_whose_end_is_shown_is_named(
    attempts: list[str], more: dict[str, object], named: str, tmp_path: Path
) -> None:
    """Seen: the end of one attempt's log stood under the name of another one."""
    lines = told(failed_spool(tmp_path, lost(attempts=attempts, **more)))
    assert f"  the end of the log of {named}:" in lines
    assert "  | Segmentation fault" in lines


def test_the_line_of_the_job_that_crashed_is_shown_of_a_real_crash(box: Box) -> None:
    box.write(
        "job.py",
        """
import faulthandler
def job(task, ctx):
    print("ready", flush=True)
    if task.key == "t1":
        faulthandler._sigsegv()
""",
    )
    box.run("run", "job.py:job", "--tasks", box.tasks([0, 1, 2]), "--spool", "S", code=3)
    [result] = [one for one in box.results("S") if one["state"] == "failed"]
    told_of = result["error"]["attempt"]
    assert told_of in result["error"]["attempts"]
    assert result["attempt"] == told_of
    assert f"attempt {told_of}," in result["error"]["message"]
    lines = box.run("failed", "S").out.splitlines()
    at = lines.index(f"  the end of the log of {told_of}:")
    shown = lines[at + 1 :]
    fatal = shown.index("  | Fatal Python error: Segmentation fault")
    assert shown[fatal + 1].startswith("  | Current thread 0x")
    assert any('job.py", line 6 in job' in line for line in shown[fatal + 2 : fatal + 5])
    assert "job.py:6 in job" in box.run("explain", "S", "t1").out


# Tasks, and what they were given.


def test_a_task_is_told_by_key_number_and_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    payloads = [
        b'{"path":"%s/in/a.txt"}' % str(tmp_path).encode(), b'{"path":"/else/b.txt"}',
        b'"https://example.org/x"', b'{"n":[1,2]}', b"null", b'"t5"', b'"a\\nb"',
        b'{"path":"/p","more":1}', b'{"path":3}', b"1e400",
    ]  # fmt: skip
    tasks = [task(index, payload=Raw(payload)) for index, payload in enumerate(payloads)]
    view = failed_spool(tmp_path, *[error()] * len(tasks), tasks=tasks)
    assert tasks_told(told(view)) == [
        "t0  #0  in/a.txt", "t1  #1  /else/b.txt", "t2  #2  https://example.org/x",
        't3  #3  {"n":[1,2]}', "t4  #4", "t5  #5", "t6  #6  a\\nb",
        't7  #7  {"path":"/p","more":1}', 't8  #8  {"path":3}', "t9  #9  1e400",
    ]  # fmt: skip


@pytest.mark.parametrize("key", ["k" * 200, "図" * 60, "a/" * 90 + "end.png", "x\u0301" * 100])
@pytest.mark.parametrize("message", ["m" * 3000, "図" * 500, "one\ntwo"])
def test_no_line_is_wider_than_a_terminal(key: str, message: str, tmp_path: Path) -> None:
    payload = Raw(b'{"path":"/data/%s"}' % key.encode())
    tasks = [task(0, key=key, payload=payload), task(1, key=f"{key}1", payload=payload)]
    errors = [error(message, traceback=f"{TRACEBACK}{message}"), error("other", traceback="")]
    lines = told(failed_spool(tmp_path, *errors, tasks=tasks), "spool-Embed")
    assert max(width(line) for line in lines if not line.startswith("  | ")) <= COLUMNS
    assert "  next: gpuspool explain spool-Embed '#0'" in lines, "a long key is not typed"


@pytest.mark.parametrize(
    "key",
    ["with space", "it's", "-dash", "#5", "7", "rank-0001.a00", "$HOME", "ü", "a*b", "rank 3"],
)
def test_what_is_to_be_typed_can_be_copied_into_a_shell(key: str, box: Box) -> None:
    tasks = box.write("tasks.jsonl", f'{{"payload": 1, "key": "{key}"}}\n')
    box.write("job.py", "def job(task, ctx):\n    print('said it', flush=True)\n    1 / 0\n")
    spool = "my spool"
    box.run("run", "job.py:job", "--tasks", tasks, "--keep-going", "--spool", spool, code=3)
    lines = box.run("failed", spool).out.splitlines()
    commands = [
        shlex.split(line.replace("next:", "     "), comments=True)
        for line in lines
        if "gpuspool " in line
    ]
    assert [words[1] for words in commands] == ["explain", "retry"]
    assert all(words[2] == spool for words in commands)
    word = commands[0][3]
    assert word in (key, "#0")
    assert not word.startswith("-")
    assert commands[1][3:] == []


@pytest.mark.parametrize(
    "name", ["S", "it's", "a b", "e\x1b[31m", "o\u202e'\\", "n\nl\t", "\x9b", "b\udc80\udcff"]
)
def test_a_spool_is_named_so_that_a_shell_finds_it(name: str, tmp_path: Path) -> None:
    word = shell_word(name)
    assert one_line(word) == word
    (tmp_path / name).mkdir()
    command = f"cd {word} && pwd"
    subprocess.run(["bash", "-c", command], cwd=tmp_path, env={"LC_ALL": "C.UTF-8"}, check=True)


def test_a_key_that_no_terminal_can_show_is_not_typed(tmp_path: Path) -> None:
    view = view_of(make_spool(tmp_path / "S", 5))
    for key in ("a\x1bb", "a\udc80", None):
        assert explain_command("S", Namer(view).name_of(4, key)) == "gpuspool explain S '#4'"


def test_a_command_never_means_another_task_whose_key_is_a_number(tmp_path: Path) -> None:
    long = "K" * 99
    tasks = [task(0, key=long), task(1, key="#0"), task(2, key="#2"), task(3, key="#9")]
    view = failed_spool(tmp_path, *[error(where=f"job.py:{n}") for n in range(4)], tasks=tasks)
    lines = told(view)
    asked = [line.partition("explain S ")[2] for line in lines if "explain" in line]
    assert asked == [f"--task={long}", "'#1'", "'#2'", "'#3'"]
    assert find_task(view, long) == 0
    assert [find_task(view, f"#{index}") for index in (1, 2, 3)] == [1, 2, 3]
    assert Namer(view).name_of(0) == Name(long, is_plain=False), "it is looked up"


def test_a_task_of_which_no_line_is_left_has_its_number(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "S", 2)
    layout.manifest("rank-0000").write_bytes(b"")
    lines = told(view_of(layout))
    assert lines[0] == "2 tasks: unreadable, TaskUnreadable"
    assert "    (no readable line has its key)  #0" in lines
    assert "  next: gpuspool explain S '#0'" in lines


@pytest.mark.parametrize("count", [3, 60])
def test_inputs_are_found_wherever_a_task_was_planned_or_added(count: int, tmp_path: Path) -> None:
    """Few are searched for one by one, for many each line is looked at."""
    layout = make_spool(tmp_path / "S", count, count)
    # Each failed on the rank that it was not planned for.
    fail(layout, B0, ((index, error(where=f"{index % 3}")) for index in range(count)))
    fail(layout, A0, ((count + index, error(where=f"{index % 3}")) for index in range(count)))
    told_of = tasks_told(told(view_of(layout)))
    assert len(told_of) == min(2 * count, 3 * SHOWN)
    assert all(re.fullmatch(r"t(\d+)  #\1  \1", line) for line in told_of), told_of


# Verdicts.


def how_counts(view: View) -> dict[tuple[str, str, str], int]:
    """By group, how many tasks failed by what `--json` says of each."""
    errors = [result.error for result in failed_results(view)]
    return collections.Counter(how_of(one) for one in errors if one is not None)


def group_counts(view: View) -> dict[tuple[str, str, str], int]:
    found = group_failures(view, 0)
    assert found.n_tasks == view.ledger.n_failed
    return {how_of(group.first): group.count for group in found.groups}


def test_of_several_failures_the_newest_round_counts_wherever_it_is_told(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "S", 6)
    rounds = [task(index, round=1) for index in range(1, 6)]
    fail(layout, A0, ((index, error(where="old")) for index in range(6)))
    assert publish_manifest(layout, "retry-01", rounds)
    fail(layout, A1, [(1, error(where="new")), (2, error(where="new"))], round_=1)
    ruled = replace(error(where="ruled"), attempts=[A0, A1], attempt=A0)
    failures = [TaskFailure(task=index, round=1, key=f"t{index}", error=ruled) for index in (3, 4)]
    assert publish_ruling(layout, "ruling-01", Ruling(epoch=0, failures=failures), [])
    view = view_of(layout)
    assert view.ledger.verdict(5) is None, "the retry is not over"
    expected = {
        ("exception", "ValueError", where): n for where, n in (("old", 1), ("new", 2), ("ruled", 2))
    }
    assert group_counts(view) == how_counts(view) == expected


def test_which_of_two_lines_of_one_round_counts_does_not_depend_on_which_was_read_first(
    tmp_path: Path,
) -> None:
    layout = make_spool(tmp_path / "S", 1)
    fail(layout, B0, [(0, error(where="B0"))])
    view = view_of(layout)
    fail(layout, A1, [(0, error(where="A1"))])
    fail(layout, A0, [(0, error(where="A0"))])
    for one in (view.refresh(), view_of(layout)):
        assert group_counts(one) == how_counts(one) == {("exception", "ValueError", "B0"): 1}


def test_a_failure_whose_line_is_damaged_since_it_was_read_is_told_as_unreadable(
    tmp_path: Path,
) -> None:
    view = failed_spool(tmp_path, error(), error(), error())
    path = view.layout.journal(A0)
    data = bytearray(path.read_bytes())
    data[view.failed_lines[1].at + 40] ^= 1
    path.write_bytes(data)
    assert group_counts(view) == how_counts(view)
    assert group_counts(view)["unreadable", "LineUnreadable", ""] == 1
    assert any("task 1 was whole" in str(damage) for damage in view.damage)


def test_all_verbs_name_one_attempt_for_a_failure_that_is_not_told_of_the_last(
    tmp_path: Path,
) -> None:
    """Seen: a result of one rank whose error told of another."""
    layout = make_spool(tmp_path / "S", 2)
    for name in (A0, B0):
        intend(layout, name)
        begin(layout, name)
    one = replace(error(), attempts=[A0, B0], attempt=A0, rank=0)
    ruling = Ruling(epoch=0, failures=[TaskFailure(task=0, key="t0", error=one)])
    assert publish_ruling(layout, "ruling-01", ruling, [])
    view = view_of(layout)
    [result] = failed_results(view)
    assert (result.attempt, result.rank) == (A0, 0)
    [copy] = failures_of(view, [], {0})
    assert copy.attempt == A0
    assert [shown.rank for group in group_failures(view, 1).groups for shown in group.shown] == [0]


def test_status_counts_a_failure_at_the_rank_that_failed_names(tmp_path: Path) -> None:
    """A journal, a closing and a ruling may all tell of one round; the journal counts."""
    layout = make_spool(tmp_path / "S", 3)
    fail(layout, B0, [(0, error())])
    intend(layout, A0)
    begin(layout, A0)
    one = replace(error(), attempts=[B0, A0], attempt=A0, rank=0)
    failures = [TaskFailure(task=index, key=f"t{index}", error=one) for index in (0, 1)]
    assert publish_ruling(layout, "ruling-01", Ruling(epoch=0, failures=failures), [])
    view = view_of(layout)
    named = collections.Counter(result.rank for result in failed_results(view))
    assert named == {0: 1, 1: 1}
    rows = gpuspool.status(layout.root)["ranks"]
    assert {row["rank"]: row["failed"] for row in rows} == named


def test_a_ruling_that_names_no_attempt_is_told_all_the_same(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "S", 2)
    ruling = Ruling(epoch=0, failures=[TaskFailure(task=0, key="t0", error=error())])
    assert publish_ruling(layout, "ruling-01", ruling, [])
    view = view_of(layout)
    [result] = failed_results(view)
    assert (result.attempt, result.rank, result.error) == (None, None, error())
    assert failures_of(view, [], {0})
    assert told(view)


def test_nothing_is_said_of_a_run_without_failures(tmp_path: Path) -> None:
    assert told(view_of(make_spool(tmp_path / "S", 3))) == []


# What it costs.


def test_no_journal_is_opened_again_that_tells_of_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = make_spool(tmp_path / "S", 40)
    fail(layout, A0, [])
    fail(layout, B0, ((index, error(where=f"{index % 5}")) for index in range(30)))
    view = view_of(layout)
    opened = watch_opens(monkeypatch)
    assert group_failures(view, MOST_WITH_TASKS).n_tasks == 30
    assert opened == [str(layout.journal(B0))]


def test_failures_are_not_held_together(tmp_path: Path) -> None:
    """Each has a traceback of 16 KiB, and together they are many times what is held."""
    count = 2000
    layout = make_spool(tmp_path / "S", count)
    long = error(traceback="x" * 16_000)
    fail(layout, A0, ((index, replace(long, where=f"{index % 4}")) for index in range(count)))
    view = view_of(layout)
    tracemalloc.start()
    try:
        assert sum(group.count for group in group_failures(view, MOST_WITH_TASKS).groups) == count
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 * LINES_BYTES < count * 16_000 / 20


def lines_read(path: Path, starts: list[int]) -> Iterator[bytes]:
    for lines in read_lines(path, starts):
        yield from lines


def test_lines_are_read_by_their_beginnings_however_long_they_are(tmp_path: Path) -> None:
    sizes = [10, LINES_BYTES - 5, 3, 5 * LINES_BYTES, 1, LINES_BYTES, 70, 0]
    lines = [b"%d" % (number % 10) * size + b"\n" for number, size in enumerate(sizes)]
    path = tmp_path / "file"
    path.write_bytes(b"".join(lines) + b"no end")
    starts = [sum(map(len, lines[:number])) for number in range(len(lines) + 1)]
    assert list(lines_read(path, starts[:-1])) == lines
    assert list(lines_read(path, starts[1::2])) == lines[1::2]
    assert list(lines_read(path, starts)) == lines, "the last one has no end"
    assert list(lines_read(path, [starts[-1], starts[-1] + 1000])) == []
    assert list(lines_read(tmp_path / "none", starts)) == []
