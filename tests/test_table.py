"""What `gpuspool status` draws: it fits whatever there is, it adds up, and its command works."""

import random
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from gpuspool.orchestrator.report.table import list_lines, one_line_of, table_lines
from gpuspool.orchestrator.text.printable import one_line, shell_word
from gpuspool.orchestrator.text.words import quoted_path

STATES = ("complete", "failed", "running", "silent", "stopped")


def rank(number: int, **more: Any) -> dict[str, Any]:
    """A rank that runs a task on the CPU of one host, unless `more` says otherwise."""
    row = {
        "rank": number, "attempt": f"rank-{number:04d}.a00", "epoch": 0, "state": "running",
        "device": "cpu", "host": "n1", "pid": 9, "task": number, "key": f"t{number}", "in_hand": 1,
        "task_since": 1.0, "task_s": 12.0, "timeout_in_s": None, "beat_age_s": 1.0,
        "silent_s": None, "done": 5, "failed": 0, "is_proved_alive": True, "restarts": 0,
        "times_longest": None, "restart_cause": None, "ended": None, "note": "", "trouble": 0,
    }  # fmt: skip
    return {**row, **more}


def parent(epoch: int, **more: Any) -> dict[str, Any]:
    row = {
        "epoch": epoch, "state": "live", "silent_s": None, "host": f"n{epoch}", "pid": 100 + epoch,
        "job": f"1_{epoch}", "command": "run", "slots": ["0"], "since": time.time(),
        "exit_code": None, "ended_at": None, "message": None, "is_draining": False,
        "slots_waiting": 0, "is_stopped": False,
    }  # fmt: skip
    return {**row, **more}


def run_of(ranks: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """What `status` tells of a running run with these ranks."""
    complete = sum(row["done"] for row in ranks)
    failed = sum(row["failed"] for row in ranks)
    tasks = {
        "total": complete + failed + len(ranks) + 10, "complete": complete, "failed": failed,
        "running": sum(row["in_hand"] for row in ranks), "waiting": 10,
    }  # fmt: skip
    now = {
        "spool": "/s/spool-x", "job": "job.py:work", "state": "running", "says": "running",
        "next": "gpuspool status --watch spool-x", "epoch": 0, "is_draining": False,
        "ending": None, "message": None, "began_at": 1.0, "ended_at": None, "elapsed_s": 63.0,
        "left_s": 75.0, "tasks_per_s": 2.9, "parents": [parent(0)], "left_alone": 0,
        "tasks": tasks, "doubtful": 0, "excused": 0, "ran_twice": 0, "damage": [], "ranks": ranks,
    }  # fmt: skip
    return {**now, **more}


def test_of_a_damage_the_file_and_the_byte_are_kept() -> None:
    found = [
        f"/s/spool-x/journal/rank-0001.a{number:02d}.jsonl, byte 1234: no checksum, {'x' * 80}"
        for number in range(3)
    ]
    lines = [line for line in table_lines(run_of([], damage=found)) if line.startswith("damaged: ")]
    start = "damaged: journal/rank-0001.a02.jsonl, byte 1234: no checksum, xx"
    assert lines[2].startswith(start)
    assert lines[2].endswith("x…")
    narrow = table_lines(run_of([], damage=found), 40)
    assert "damaged: …rank-0001.a02.jsonl, byte 1234" in narrow


def test_one_worker_that_goes_on_is_one() -> None:
    text = "\n".join(table_lines(run_of([], left_alone=1), 400))
    assert "1 worker goes on although what started it is gone: `gpuspool drain` stops it" in text


def test_a_run_is_drawn_like_this() -> None:
    ranks = [
        rank(0, device="GPU-0000aaaa", key="0252.jpg", in_hand=32, done=46, failed=1),
        rank(1, device="GPU-0000bbbb", state="restarting", task=None, key=None, in_hand=0,
             task_s=None, done=1016, note="1 restart: crash"),
    ]  # fmt: skip
    assert table_lines(run_of(ranks)) == [
        "job.py:work  running  98 % after 1:03, 1:15 left, 2.9 tasks/s",
        "1,062 complete, 1 failed, 32 running, 10 waiting of 1,075  on n1",
        "rank  state       device    done  failed   for  task          note",
        "   0  running     …00aaaa     46       1  0:12  0252.jpg +31",
        "   1  restarting  …00bbbb  1,016       0                      1 restart: crash",
        " sum                       1,062       1        32 running",
        "next: gpuspool status --watch spool-x",
    ]


def words(draw: random.Random, most: int) -> str:
    """Some text as a key, a host or a path may be."""
    alphabet = draw.choice(
        ["abcdefgh", "漢字かな", "\x1b[31m\u202e\n\t", "a/b/é", "e\u0301👩\u200d🚀", "\udc80 '\"$x"]
    )
    return "".join(draw.choice(alphabet) for _ in range(draw.randrange(1, most)))


def hostile(draw: random.Random) -> dict[str, Any]:
    token = ",".join(f"GPU-{draw.getrandbits(144):036x}" for _ in range(draw.choice([1, 8])))
    ranks = [
        rank(
            number,
            state=draw.choice(["running", "restarting", "silent", "publishing"]),
            device=draw.choice(["cpu", token, None]),
            host=draw.choice([words(draw, 60), None]),
            key=draw.choice([words(draw, 200), None]),
            in_hand=draw.choice([0, 1, 10**6]),
            task_s=draw.choice([None, 5.0, 1e7]),
            done=draw.randrange(10**6),
            note=draw.choice(["", "3 restarts: out of memory", words(draw, 99)]),
            trouble=draw.randrange(4),
        )
        for number in range(draw.choice([0, 1, 2, 8, 64]))
    ]
    parents = [
        parent(
            epoch, host=words(draw, 60), job=words(draw, 60), slots=["0"] * draw.randrange(9),
            state=draw.choice(["live", "silent", "dead"]), since=draw.choice([None, 1e300, 1e9]),
        )
        for epoch in range(draw.choice([0, 1, 2, 64]))
    ]  # fmt: skip
    return run_of(
        ranks, parents=parents, job=words(draw, 300), state=draw.choice(STATES),
        next=f"gpuspool status --watch {shell_word('/' + words(draw, 300))}",
        message=draw.choice([None, words(draw, 300)]), left_alone=draw.choice([0, 2]),
        damage=[words(draw, 300)] * draw.choice([0, 1, 50]), doubtful=draw.choice([0, 7]),
        elapsed_s=draw.choice([None, 1e8]), spool=f"/{words(draw, 300)}",
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(40))
def test_every_line_fits_and_is_safe_whatever_there_is(seed: int) -> None:
    draw = random.Random(seed)
    now = hostile(draw)
    for columns, most_lines in [(80, None), (200, None), (80, 24), (40, 10), (7, None), (80, 3)]:
        lines = table_lines(now, columns, most_lines)
        assert max(map(cell_len, lines), default=0) <= columns
        assert all(one_line(line) == line for line in lines)
        assert most_lines is None or len(lines) <= most_lines
    assert one_line(one_line_of(now)) == one_line_of(now)
    lines = list_lines([now, {"spool": f"/s/{words(draw, 300)}", "error": words(draw, 300)}])
    assert max(map(cell_len, lines)) <= 80
    assert len(lines) == 3


def test_the_widest_run_that_was_seen_fits() -> None:
    """It was 92 cells wide, with 64 ranks, tokens of 40 characters and keys of 200."""
    ranks = [
        rank(number, device=f"MIG-{number:036d}", host=f"{number:02d}{'x' * 58}", key="k" * 200,
             note="time-out in 5 s")
        for number in range(64)
    ]  # fmt: skip
    lines = table_lines(run_of(ranks, job="j" * 300))
    assert max(map(len, lines)) <= 80
    for number in range(64):
        [row] = [line for line in lines if line.startswith(f"{number:4d}  ")]
        assert f"{number:02d}" in row.split()[2], "a device is told by its end"
        assert "kkk…kkk" in row
        assert "time-out in" in row


def test_what_all_ranks_have_is_said_once() -> None:
    alike = table_lines(run_of([rank(0), rank(1)]))
    assert alike[1].endswith("  on n1, cpu")
    assert not re.search("device|host", alike[2])
    differ = table_lines(run_of([rank(0), rank(1, host="n2.site.org")]))
    assert differ[1].endswith("  on cpu")
    assert "host" in differ[2]
    assert "n2 " in differ[4]


def test_hosts_that_only_their_domains_tell_apart_keep_them() -> None:
    lines = table_lines(run_of([rank(0, host="n1.a.org"), rank(1, host="n1.b.org")]))
    assert "n1.a.org" in lines[3]
    assert "n1.b.org" in lines[4]


def test_the_sums_are_the_heads_counts_and_it_is_said_why_rows_do_not_add_up() -> None:
    now = run_of([rank(0, done=200, failed=3), rank(1, done=200)])
    lines = table_lines(now)
    assert lines[-2].split() == ["sum", "400", "3", "2", "running"]
    now["tasks"].update(complete=388, failed=5)
    lines = table_lines(now)
    [sums] = [line for line in lines if line.startswith(" sum")]
    assert sums.split() == ["sum", "388", "5", "2", "running"]
    text = " ".join(lines[lines.index(sums) + 1 :])
    assert "the ranks have done 12 more: so many times a task was done again" in text
    assert "of 2 failed tasks it is not known which rank had it" in text


def test_twenty_finished_of_twenty_are_100_percent_though_ten_failed() -> None:
    now = run_of([rank(0, done=10, failed=10, task=None, key=None, in_hand=0, task_s=None)])
    now["tasks"].update(total=20, running=0, waiting=0)
    assert "  100 % after 1:03" in table_lines(now)[0]
    now["tasks"].update(total=2000, complete=1989)
    assert "  99 %" in table_lines(now)[0], "one is left"


def test_a_task_without_a_known_key_has_the_name_that_logs_takes() -> None:
    lines = table_lines(run_of([rank(0, task=80, key=None)]))
    assert lines[3].endswith("  #80")


def test_ranks_in_trouble_are_shown_first_where_lines_are_few() -> None:
    ranks = [rank(number) for number in range(64)]
    ranks[40].update(state="silent", note="silent 62 s", trouble=2)
    ranks[50].update(note="1 restart: crash", trouble=1)
    lines = table_lines(run_of(ranks), most_lines=12)
    assert len(lines) == 12
    shown = [line.split()[0] for line in lines[3:9]]
    assert shown == ["40", "50", "0", "1", "2", "3"]
    assert lines[9] == "… and 58 more ranks: 58 running"
    assert lines[10].startswith(" sum  ")
    assert lines[11].startswith("next: ")


def test_a_rank_that_runs_a_task_is_not_hidden_behind_those_that_do_not() -> None:
    nothing = {"task": None, "key": None, "in_hand": 0, "task_s": None}
    ranks = [rank(number, state="idle", **nothing) for number in range(64)]
    ranks[7].update(state="complete", ended="finished", note="1 restart: crash")
    ranks[8].update(state="complete", ended="failed", note="crash", trouble=1)
    ranks[20].update(note="1 restart: crash", trouble=1)
    ranks[30] = rank(30)
    ranks[31] = rank(31, state="publishing", note="1 restart: crash", trouble=1)
    ranks[40].update(state="silent", note="silent 62 s", trouble=2)
    ranks[50].update(state="loading")
    lines = table_lines(run_of(ranks), most_lines=13)
    shown = [line.split()[0] for line in lines[3:10]]
    assert shown == ["40", "31", "30", "50", "20", "0", "1"]
    assert lines[10] == "… and 57 more ranks: 55 idle, 2 complete"


def numbers_in(text: str) -> set[str]:
    return set(re.findall(r"[\d.,:]*\d", text))


@pytest.mark.parametrize("columns", range(16, 121))
@pytest.mark.parametrize("size", ["small", "large"])
def test_a_table_that_is_too_wide_loses_whole_columns_and_no_number(
    size: str, columns: int
) -> None:
    is_large = size == "large"
    ranks = [
        rank(60 + number, device=f"GPU-deadbeef-{number:04}", host=f"longnodename-a{number}.site",
             state="publishing" if is_large else "running", done=1234567 if is_large else 7,
             failed=12345 if is_large else 0, task_s=36050.0 if is_large else 5.0,
             in_hand=512 if is_large else 1, key=f"images/train-{number}.jpg",
             note=("", "silent 12345 s", "time-out in 58 s")[number] if is_large else "")
        for number in range(3)
    ]  # fmt: skip
    now = run_of(ranks)
    whole = table_lines(now, 300)
    at = next(at for at, line in enumerate(whole) if line.lstrip().startswith("rank"))
    names = whole[at].split()
    numbers = numbers_in(" ".join(whole[at:]))
    table = [line for line in table_lines(now, columns) if re.match(r"rank| *6\d  | sum", line)]
    assert len(table) == 5
    assert max(map(len, table)) <= columns
    shown = table[0].split()
    assert shown[:2] == ["rank", "state"]
    assert [name for name in names if name in shown] == shown, "a name is whole"
    # Of keys, devices and hosts the beginning is cut; any other number stands in the whole table.
    if not {"device", "host", "task"} & set(shown):
        assert numbers_in(" ".join(table)) <= numbers
    # What is of less use is not there unless all that is of more use is.
    by_use = ["rank", "state", "done", "failed", "note", "for", "task", "host", "device"]
    if not is_large:
        by_use = [name for name in by_use if name not in ("failed", "note")] + ["failed"]
    assert set(shown) == set(by_use[: len(shown)])
    if "task" in shown:
        assert f"{now['tasks']['running']:,} running" in table[-1]


def test_what_is_left_out_of_a_narrow_table_of_parents_is_whole_columns() -> None:
    parents = [parent(epoch, pid=4194304 + epoch, slots=["cpu"] * 8) for epoch in range(3)]
    parents[1].update(state="silent", silent_s=12345.0)
    shown = []
    for columns in (80, 40, 30, 25):
        lines = table_lines(run_of([rank(0)], parents=parents), columns)
        at = next(at for at, line in enumerate(lines) if line.startswith("parent"))
        shown.append(lines[at].split())
        assert "silent 12345 s" in lines[at + 1]
    assert shown == [
        ["parent", "state", "host", "job", "pid", "since", "slots"],
        ["parent", "state", "host", "job"],
        ["parent", "state", "host"],
        ["parent", "state"],
    ]


def test_a_list_in_a_narrow_window_keeps_states_and_spools() -> None:
    runs = [run_of([rank(0, done=1234567, failed=89)], spool="/s/spool-twelve")]
    names = [list_lines(runs, columns)[0].split() for columns in (60, 40, 30, 24)]
    assert names[0] == ["state", "done", "failed", "time", "spool"]
    assert names[1:] == [["state", "done", "failed", "time", "spool"], ["state", "done", "spool"],
                         ["state", "done", "spool"]]  # fmt: skip


def test_the_rest_of_the_ranks_is_counted_in_whole_numbers() -> None:
    ranks = [rank(number, state="idle" if number % 2 else "running") for number in range(64)]
    for columns in range(24, 60):
        lines = table_lines(run_of(ranks), columns, 14)
        [line] = [line for line in lines if line.startswith("… and ")]
        # In a narrow window the head takes more lines, so that more ranks are counted.
        n_more = int(line.split()[2])
        whole = f"… and {n_more} more ranks: 32 idle, {n_more - 32} running"
        assert numbers_in(line) <= numbers_in(whole), (columns, line)


@pytest.mark.parametrize("columns", [200, 80, 60, 40, 30])
def test_a_damage_is_told_by_its_file_and_byte(columns: int) -> None:
    spool = f"/{'deep/' * 20}spool-x"
    path = f"{spool}/journal/rank-0001.a02.jsonl"
    bytes_ = [0, 21816, 43632]
    damage = [f"{path}, byte {at}: the line does not end with its checksum" for at in bytes_]
    lines = table_lines(run_of([rank(0)], spool=spool, damage=damage), columns)
    told = [line for line in lines if line.startswith("damaged: ")]
    assert [line.partition(", byte ")[2].partition(":")[0] for line in told] == [
        "0",
        "21816",
        "43632",
    ]
    assert all("02.jsonl, byte " in line for line in told)
    if columns >= 60:
        assert all(line.startswith("damaged: journal/rank-0001.a02.jsonl, byte ") for line in told)
    if columns == 200:
        assert told[0].endswith(": the line does not end with its checksum")


def test_what_is_no_place_in_a_file_is_told_as_far_as_it_fits() -> None:
    found = table_lines(run_of([rank(0)], damage=["/elsewhere/x is gone"]))
    assert "damaged: /elsewhere/x is gone" in found


@pytest.mark.parametrize("ending", ["finished", "drained", "stopped"])
def test_what_a_start_said_at_its_end_is_not_told_where_it_does_not_hold_any_more(
    ending: str,
) -> None:
    """A run was finished, and then a damage took what some of its tasks had."""
    now = run_of([rank(0)], state="stopped", says="stopped", ending=ending)
    now["message"] = "51 of 67 tasks complete, 16 failed, in 7.3 s."
    assert not [line for line in table_lines(now) if "51 of 67" in line]
    now["ending"] = "stuck"
    assert now["message"] in table_lines(now)


def test_parents_in_trouble_are_shown_first_and_the_rest_counted() -> None:
    parents = [parent(epoch) for epoch in range(64)]
    parents[30].update(state="silent", silent_s=62.0)
    lines = table_lines(run_of([rank(0)], parents=parents))
    assert re.match(r" *30  silent 62 s  n30 +1_30  130  \d\d:\d\d:\d\d  0$", lines[3])
    assert lines[10] == "… and 57 more parents: 57 live"
    assert "parent" not in "".join(table_lines(run_of([rank(0)]))), "one that is live"


@pytest.mark.parametrize(
    "name",
    [
        "spool-x", "a b", "it's", "$HOME", "-x", "ä 漢字", "new\nline", "\x1b[31m", "\udcff",
        'q"', "back\\slash", "'" * 5, "#", "~", "a;b|c&(d)<e>*?[f]!",
    ],
)  # fmt: skip
@pytest.mark.parametrize("is_long", [False, True])
def test_the_command_works_when_it_is_copied(name: str, is_long: bool, tmp_path: Path) -> None:
    program = tmp_path / "gpuspool"
    program.write_text('#!/bin/sh\nprintf "%s\\0" "$@"\n')
    program.chmod(0o755)
    path = f"/{'d 漢' * 70}/{name}" if is_long else name
    now = run_of([rank(0)], next=f"gpuspool logs {quoted_path(path)} --last 20")
    lines = table_lines(now)
    at = next((at for at, line in enumerate(lines) if line.startswith("next:")), None)
    if at is None:
        assert is_long, "one that is left out"
        assert not path.isprintable(), "and cannot be written in several lines"
        return
    command = "\n".join(lines[at:]).removeprefix("next:").strip()
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, check=True,
        env={"PATH": f"{tmp_path}:/bin:/usr/bin", "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    typed = f"./{path}" if path.startswith("-") else path
    told = [word.decode(errors="surrogateescape") for word in done.stdout.split(b"\0")[:-1]]
    assert told == ["logs", typed, "--last", "20"]


def test_several_runs_have_a_line_each() -> None:
    ended = run_of([rank(0)], state="complete", says="complete", ended_at=time.time() - 7200)
    bad = {"spool": "/s/spool-bad", "error": "/s/spool-bad/run.json is missing"}
    names, first, second, third = list_lines([run_of([rank(0)]), ended, bad])
    assert names.split() == ["state", "done", "failed", "time", "spool"]
    assert re.fullmatch(r"running +31 % +0 +1:03  spool-x", first)
    assert re.fullmatch(r"complete +31 % +0 +2 h ago  spool-x", second)
    assert re.fullmatch(r"cannot be read +spool-bad: run.json is missing", third)
    assert list_lines([]) == []
