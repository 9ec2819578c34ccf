"""From what the user names to tasks: keys, costs, payloads, and each refusal before anything is
written.
"""

import io
import json
import os
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import JOBS, Box

from gpuspool.orchestrator.plan.create import plan
from gpuspool.orchestrator.plan.inputs import collect, from_values
from gpuspool.spool.codec import seal
from gpuspool.spool.errors import UsageError
from gpuspool.spool.records import TaskLine


def write(path: Path, text: str | bytes = "x") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def payloads(tasks: list[TaskLine]) -> list[Any]:
    return [json.loads(bytes(task.payload)) for task in tasks]


def test_files_cost_their_size_and_keep_their_order(tmp_path: Path) -> None:
    paths = [write(tmp_path / "b", "12345"), write(tmp_path / "a", ""), write(tmp_path / "c", "1")]
    tasks = [*collect(paths)]
    assert [(task.task, task.key, task.cost) for task in tasks] == [
        (0, "b", 5.0),
        (1, "a", 0.0),
        (2, "c", 1.0),
    ]
    assert payloads(tasks) == [{"path": path} for path in paths]


def test_keys_are_paths_below_the_common_parent(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / name) for name in ("data/cat/1.jpg", "data/dog/1.jpg", "data/dog/x/1.jpg")
    ]
    assert [task.key for task in collect(paths)] == ["cat/1.jpg", "dog/1.jpg", "dog/x/1.jpg"]
    assert [task.key for task in collect(paths[1:2])] == ["1.jpg"]


def test_relative_paths_are_stored_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "in" / "a")
    monkeypatch.chdir(tmp_path)
    assert payloads([*collect(["in/../in/a"])]) == [{"path": str(tmp_path / "in" / "a")}]


def test_globs_match_files_alone_sorted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("in/b.txt", "in/a.txt", "in/sub/c.txt", "in/d.md", "in/folder.txt/e"):
        write(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert [task.key for task in collect(["in/*.txt"])] == ["a.txt", "b.txt"]
    assert [task.key for task in collect(["in/**/*.txt"])] == ["a.txt", "b.txt", "sub/c.txt"]


def test_a_glob_that_matches_nothing_is_told_apart_from_one_that_matches_what_is_left_out(
    box: Box,
) -> None:
    box.write("in/a.txt", "a")
    box.write("in/S/FORMAT", "gpuspool 1\n")
    (box / "in/S/manifests").mkdir()
    box.write("in/S/logs/b.txt", "b")
    job = ["run", f"{JOBS}/plain.py:double", "--spool", "T", "--dry-run"]
    told = box.run(*job, "in/**/*.txt", "typo/*.txt", code=2).err
    assert "typo/*.txt matches no file" in told
    told = box.run(*job, "in/**/*.txt", "in/*/logs/*.txt", code=2).err
    assert "matches only files in spools" in told


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a[1]*.txt")
    write(tmp_path / "a1.txt")
    assert payloads([*collect([path])]) == [{"path": path}]


def test_files_from_a_list(tmp_path: Path) -> None:
    paths = [write(tmp_path / "with space"), write(tmp_path / "b*")]
    listed = write(tmp_path / "list", "\n".join(paths) + "\n\n")
    assert payloads([*collect(files_from=listed)]) == [{"path": path} for path in paths]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("a\n", ["a"]),
        ("a\nb", ["a", "b"]),
        ("a\n\nb\n", ["a", "", "b"]),
        ("a\r\nb\r\n", ["a", "b"]),
    ],
)
def test_each_line_is_a_task(tmp_path: Path, text: str, expected: list[str]) -> None:
    tasks = [*collect(lines=write(tmp_path / "lines", text))]
    assert payloads(tasks) == expected
    assert [task.key for task in tasks] == [f"t{i}" for i in range(len(expected))]


def test_lines_of_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO("ä\n".encode())))
    assert payloads([*collect(lines="-")]) == ["ä"]


def test_task_lines_are_values_or_say_more(tmp_path: Path) -> None:
    text = '{"x": 1}\n\n{"payload": [1], "key": "a/b", "cost": 2.5}\n'
    text += '{"payload": {"payload": 0}}\nnull\n" "\n'
    tasks = [*collect(tasks=write(tmp_path / "t", text))]
    assert payloads(tasks) == [{"x": 1}, [1], {"payload": 0}, None, " "]
    assert [(task.key, task.cost) for task in tasks] == [
        ("t0", 1.0), ("a/b", 2.5), ("t2", 1.0), ("t3", 1.0), ("t4", 1.0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"payload": 1', "line 2"),
        ("not json", "line 2"),
        ('{"payload": 1, "kost": 2}', "kost"),
        ('{"payload": 1, "cost": -1}', "cost -1"),
        ('{"payload": 1, "cost": "much"}', "line 2"),
        ('{"payload": 1, "key": 7}', "line 2"),
        ("NaN", "line 2"),
        ('{"payload": 1, "cost": 1e308}', "cost 1e+308"),
        pytest.param("[" * 101 + "]" * 101, "nests deeper than 100", id="deep"),
        pytest.param(
            "[" * 200_000 + "]" * 200_000,
            "line 2: maximum recursion depth exceeded",
            id="bottomless",
        ),
    ],
)
def test_a_bad_task_line_is_refused_with_its_number(tmp_path: Path, line: str, says: str) -> None:
    with pytest.raises(UsageError, match="line 2") as refused:
        collect(tasks=write(tmp_path / "t", f"1\n{line}\n3\n"))
    assert says in str(refused.value)


HOSTILE = [
    "../x",
    "a/../b",
    "/etc/x",
    "a//b",
    "a/",
    ".",
    "..",
    "a/./b",
    "a\0b",
    "a\nb",
    "a\x7f",
    ".gpuspool",
    "a\x85",
]


@pytest.mark.parametrize("key", [*HOSTILE, ".gpuspool-rank-0000.a00-1", "x/.gpuspoolx"])
def test_a_hostile_key_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(UsageError, match=r"t, line 2: the key .*Nothing was run"):
        collect(tasks=write(tmp_path / "t", "1\n" + json.dumps({"payload": 1, "key": key}) + "\n"))


@pytest.mark.parametrize(
    "key", ["a b", "ä/ö", ".hidden", "%2e", "-rf", "a..b", "x" * 300, "a=b,c~d[1]"]
)
def test_an_unusual_key_is_fine(tmp_path: Path, key: str) -> None:
    line = json.dumps({"payload": 1, "key": key})
    assert [task.key for task in collect(tasks=write(tmp_path / "t", line + "\n"))] == [key]


def test_two_tasks_with_one_key_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="t, lines 1 and 2 have the same key 't1'"):
        collect(tasks=write(tmp_path / "t", '{"payload": 1, "key": "t1"}\n2\n'))


def test_a_folder_is_refused_with_a_glob_to_use(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a")
    with pytest.raises(
        UsageError, match=r"is a folder\. Name its files with a glob: '.*/in/\*\*/\*'"
    ):
        collect([str(tmp_path / "in")])


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="matches no file"):
        collect([str(tmp_path / "*.fasta")])
    with pytest.raises(UsageError, match="matches no file"):
        collect([str(tmp_path / "absent")])
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        collect(files_from=str(tmp_path / "absent"))
    with pytest.raises(UsageError, match="No such file or directory"):
        collect(files_from=write(tmp_path / "list", str(tmp_path / "absent")))
    os.symlink(tmp_path / "absent", tmp_path / "dangling")
    with pytest.raises(UsageError, match="No such file or directory"):
        collect([str(tmp_path / "dangling")])


def test_what_is_not_utf8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="byte 2: not UTF-8"):
        collect(lines=write(tmp_path / "lines", b"a\n\xff\n"))
    named = os.fsencode(tmp_path) + b"/\xff"
    with open(named, "wb"), pytest.raises(UsageError, match="its name is not UTF-8"):
        collect([os.fsdecode(named)])


def test_inputs_are_named_in_one_way(tmp_path: Path) -> None:
    path = write(tmp_path / "a", "1\n")
    with pytest.raises(UsageError, match=r"\(0 of them were given\)"):
        collect([])
    with pytest.raises(UsageError, match=r"\(2 of them were given\)"):
        collect([path], lines=path)


def test_values_of_python(tmp_path: Path) -> None:
    inputs = from_values(x for x in ([1, "a"], {"b": None}, 2.5))
    tasks = list(inputs)
    assert inputs.lines == [seal(task) for task in tasks]
    assert (tasks[2].key, tasks[2].cost, list(inputs.costs)) == ("t2", 1.0, [1.0] * 3)
    assert payloads(tasks) == [[1, "a"], {"b": None}, 2.5]
    deep: list[Any] = []
    for _ in range(200):
        deep = [deep]
    for bad in (object(), deep):
        with pytest.raises(UsageError, match="item 1 "):
            from_values([1, bad])


def test_the_plan_gives_each_task_once_longest_first() -> None:
    costs = [1.0, 9.0, 2.0, 8.0, 3.0, 7.0]
    planned = [[costs[index] for index in part] for part in plan(costs, 2)]
    assert sorted(cost for part in planned for cost in part) == sorted(costs)
    assert all(a >= b for part in planned for a, b in pairwise(part))
    assert [sum(part) for part in planned] == [15.0, 15.0]


def test_tasks_of_one_cost_are_dealt_out_in_turn() -> None:
    assert [list(part) for part in plan([1.0] * 7, 3)] == [[0, 3, 6], [1, 4], [2, 5]]
    assert [list(part) for part in plan([], 2)] == [[], []]
    assert [len(part) for part in plan([1.0], 3)] == [1, 0, 0]


def test_tasks_of_one_cost_stay_in_their_order_among_others() -> None:
    assert [list(part) for part in plan([1.0, 5.0, 1.0, 1.0], 1)] == [[1, 0, 2, 3]]
