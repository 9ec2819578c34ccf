"""Crash states: the model of the disk, the recorder, and whether the harness sees what it is there
to see.
"""

import dataclasses
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import Box, names, record, story, tree
from torture.crash_recordings import FAST_S, HERE, TASKS, record_run
from torture.crash_states import (
    DIRECTED,
    OF_READERS,
    SEED,
    STATES,
    TURN_OF,
    Lanes,
    directed_cases,
    find_planted,
    row,
    states_of,
)
from torture.losses import TURNS
from torture.planted import BUGS
from torture.promises import broken_promises
from torture.recording import NotRecorded, missing_strace, prove
from torture.recording import record as record_calls
from torture.replay import ROOT, Moment, Names, Op, Record, Sync, Write
from torture.two_epochs import SPOOL

MISSING = missing_strace()
needs_strace = pytest.mark.skipif(
    MISSING is not None, reason=f"calls cannot be recorded: {MISSING}"
)
SEEDS = range(60)
# The inodes of two files.
F = 1
G = 2


@pytest.fixture(scope="module")
def lanes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lanes]:
    one = Lanes(tmp_path_factory.mktemp("lanes"))
    yield one
    one.close()


def trees(
    *ops: Op, cut: float = 100, turns: tuple[str, ...] = tuple(TURNS)
) -> list[dict[str, bytes | None]]:
    """What may be on disk after these calls, in an empty folder at first."""
    moment = Moment(Record(Path("/home"), {ROOT: {}}, {}, list(ops)), cut)
    return [
        TURNS[turn](moment, random.Random(f"{turn} {seed}")).tree()
        for turn in turns
        for seed in SEEDS
    ]


def make(at: int, name: str, inode: int) -> Names:
    return Names(at, at, ROOT, ((name, inode),))


def test_what_was_synced_is_there_whatever_happens() -> None:
    found = trees(
        make(0, "f", F), Write(1, 1, F, 0, b"abc"), Sync(2, 2, F), Sync(3, 3, ROOT), make(4, "g", G)
    )
    assert {tree["f"] for tree in found} == {b"abc"}
    assert {"g" in tree for tree in found} == {True, False}


def test_data_that_was_not_synced_may_be_missing_torn_or_zeroed() -> None:
    found = {
        tree["f"] for tree in trees(make(0, "f", F), Sync(1, 1, ROOT), Write(2, 2, F, 0, b"abc"))
    }
    assert {b"", b"a", b"ab", b"abc", b"\0\0\0", b"a\0c", b"ab\0"} <= found
    assert all(len(data) == 3 or b"abc".startswith(data) for data in found if data is not None)


def test_what_was_appended_after_a_sync_leaves_the_rest_alone() -> None:
    calls = [
        make(0, "f", F),
        Sync(1, 1, ROOT),
        Write(2, 2, F, 0, b"abc"),
        Sync(3, 3, F),
        Write(4, 4, F, 3, b"def"),
    ]
    found = {tree["f"] for tree in trees(*calls)}
    assert {b"abc", b"abcd", b"abcdef", b"abc\0\0\0"} <= found
    assert all(data is not None and data.startswith(b"abc") for data in found)


def test_of_two_names_that_were_not_synced_any_may_be_missing() -> None:
    found = [set(tree) for tree in trees(make(0, "f", F), make(1, "g", G))]
    assert all(names in found for names in (set(), {"f"}, {"g"}, {"f", "g"}))


def test_a_rename_is_one_step_and_a_synced_name_goes_with_nothing_less() -> None:
    rename = Names(5, 5, ROOT, (("new", None), ("f", G)))
    calls = [
        make(0, "f", F),
        Write(1, 1, F, 0, b"old"),
        Sync(2, 2, F),
        make(3, "new", G),
        Sync(4, 4, ROOT),
    ]
    found = trees(*calls, rename, turns=("killed", "bare", "mixed"))
    assert {frozenset(tree) for tree in found} == {frozenset({"f", "new"}), frozenset({"f"})}
    assert {tree["f"] for tree in found if "new" in tree} == {b"old"}


@pytest.mark.parametrize(
    "sync", [Sync(2, 3, F), Sync(5, 20, F)], ids=["begun before the write had ended", "not over"]
)
def test_a_sync_covers_only_what_it_must(sync: Sync) -> None:
    calls = [make(0, "f", F), Sync(0, 0, ROOT), Write(1, 4, F, 0, b"abc"), sync]
    assert b"" in {tree["f"] for tree in trees(*calls, cut=10) if "f" in tree}


def test_a_name_below_a_folder_that_is_lost_is_lost() -> None:
    inner = -3
    calls = [Names(0, 0, ROOT, (("d", inner),)), Names(1, 1, inner, (("f", F),)), Sync(2, 2, inner)]
    assert {frozenset(tree) for tree in trees(*calls)} == {frozenset(), frozenset({"d", "d/f"})}


def test_a_state_becomes_a_folder_that_names_itself_where_it_named_another(tmp_path: Path) -> None:
    calls = [make(0, "f", F), make(1, "same", F), Write(2, 2, F, 0, f"in {tmp_path}/one".encode())]
    moment = Moment(Record(tmp_path / "one", {ROOT: {}}, {}, calls), 100)
    moment.seen().write(tmp_path / "two", tmp_path / "one")
    expected = f"in {tmp_path}/two".encode()
    assert tree(tmp_path / "two") == {"f": expected, "same": expected}
    assert (tmp_path / "two" / "f").samefile(tmp_path / "two" / "same")


PROGRAM = """
import os
os.mkdir("d")
fd = os.open("d/hidden", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
os.write(fd, b"first, ")
os.link("d/hidden", "d/file")
os.unlink("d/hidden")
os.write(fd, b"second")
os.fsync(fd)
os.fsync(os.open("d", os.O_RDONLY))
os.rename("old", "new")
os.write(os.open("cut", os.O_WRONLY | os.O_TRUNC), b"new")
os.pwrite(os.open("new", os.O_WRONLY), b"O", 0)
with open("spared/x", "a") as file:
    file.write("x")
try:
    os.mkdir("d")
except FileExistsError:
    os._exit(0)
"""


@needs_strace
def test_every_call_is_recorded_and_told_apart(box: Box) -> None:
    box.write("old", "old\n")
    box.write("cut", "a longer text")
    (box / "spared").mkdir()
    found = record_calls(box, [sys.executable, "-c", PROGRAM], spared="spared")
    assert tree(box.home) == {
        "d": None, "d/file": b"first, second", "new": b"Old\n", "cut": b"new",
        "spared": None, "spared/x": b"x",
    }  # fmt: skip
    last = Moment(found, float("inf"))
    bare = TURNS["bare"](last, random.Random()).tree()
    assert bare == {"old": b"old\n", "cut": b"a longer text", "spared": None, "spared/x": b"x"}
    named = last.state(
        last.names, {inode: before for inode, (before, _) in last.data.items()}
    ).tree()
    assert named["d/file"] == b"first, second", "its data was synced, its folder's name was not"


@needs_strace
def test_a_record_that_lacks_a_call_is_refused(box: Box) -> None:
    box.write("old", "old\n")
    box.write("cut", "a longer text")
    (box / "spared").mkdir()
    found = record_calls(box, [sys.executable, "-c", PROGRAM], spared="spared")
    changes = [op for op in found.ops if not isinstance(op, Sync)]
    assert len(changes) > 8
    for missing in changes:
        # A name that comes and goes is not missed at the end.
        if isinstance(missing, Names) and missing.changes[0][0] == "hidden":
            continue
        with pytest.raises(NotRecorded):
            prove(dataclasses.replace(found, ops=[op for op in found.ops if op is not missing]))


@needs_strace
def test_what_a_call_unknown_to_the_recorder_does_is_refused(box: Box) -> None:
    source = "import os; os.symlink('x', 'y')"
    with pytest.raises(NotRecorded, match="symlink"):
        record_calls(box, [sys.executable, "-c", source], spared="spared")


@needs_strace
def test_what_is_recorded_has_a_steal_an_adoption_and_closings(tmp_path: Path) -> None:
    found = record_run(tmp_path, "adopted", "work", pace_s=10 * FAST_S)
    spool = found.record.home / SPOOL
    assert found.steals > 0
    assert '"event":"adopted"' in story(spool)
    closings = [record(spool / "failed" / name)["by"] for name in names(spool / "failed")]
    # By the resume, unless an idle worker on a busy machine was faster.
    assert len(closings) == 2
    assert len(found.lines()) >= TASKS
    assert len(found.record.cuts()) > 10 * TASKS


@pytest.mark.slow
@needs_strace
def test_a_few_states_of_a_run_recover(tmp_path: Path) -> None:
    found = row("small", tmp_path)
    assert found.is_clean, "\n".join(found.failures)
    assert found.cases == STATES["small"]["adopted"]
    assert found.R == 0


@pytest.mark.slow
@needs_strace
@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_flagged(lanes: Lanes, bug: str) -> None:
    assert find_planted(lanes, bug, SEED) is not None


@pytest.mark.slow
@needs_strace
@pytest.mark.parametrize("bug", [bug for bug in BUGS if bug != OF_READERS])
def test_a_planted_bug_breaks_promises(tmp_path: Path, bug: str) -> None:
    planted = record_run(
        tmp_path, "whole", "work", program=(sys.executable, HERE / "planted.py", bug)
    )
    assert len(broken_promises(planted)) >= TASKS


@pytest.mark.slow
@needs_strace
def test_without_a_bug_the_same_states_show_nothing(lanes: Lanes) -> None:
    found = record_run(lanes.base, "whole", "work")
    assert broken_promises(found) == []
    for turn in sorted(set(TURN_OF.values())):
        states = states_of(found.record, directed_cases(found, turn, SEED), DIRECTED // 20)
        assert [
            verdict.problems for verdict in lanes.recover(found, states) if verdict.problems
        ] == []
