"""Manifests: positions are line numbers; damage costs the line it touches and moves no other."""

import zlib
from pathlib import Path

import msgspec
import pytest
from spooling import (
    A0,
    B0,
    begin,
    close,
    cuts,
    finish,
    flips,
    indices,
    make_spool,
    manifest_bytes,
    sealed_lines,
    take,
    task,
    verdicts,
    view_of,
)

from gpuspool.spool.codec import seal
from gpuspool.spool.layout import Layout
from gpuspool.spool.manifest import (
    Damage,
    Manifest,
    load_manifest,
    publish_manifest,
    publish_orphans,
    publish_ruling,
)
from gpuspool.spool.records import Closing, Ruling, TaskLine
from gpuspool.spool.sweep import sweep

CLOSING = Closing(attempt=A0, state="stopped", reason="drained", by=A0, at=1.0)


def read(data: bytes, name: str = "rank-0000") -> tuple[list[int], list[Damage], Manifest]:
    """(tasks that can be read, damage that is reported, the manifest) of a manifest's bytes."""
    damage: list[Damage] = []
    manifest = Manifest(name, "path", data, damage.append)
    return indices(manifest.tasks()), damage, manifest


def test_a_manifest_gives_back_its_tasks_in_order(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s")
    tasks = [
        task(2),
        task(1, key="a/ä"),
        task(0, round=3, kills=2, careful=True, cost=0.5, failed_in=(("rank-0000.a00", "cpu"),)),
    ]
    assert publish_manifest(layout, "retry-01", tasks)
    manifest = load_manifest(layout, "retry-01", pytest.fail)
    assert manifest is not None
    assert len(manifest) == 3
    assert list(manifest.tasks()) == tasks
    assert list(manifest.tasks(1, 2)) == tasks[1:2]
    assert list(manifest.tasks(2, 99)) == tasks[2:]
    assert manifest.task(1) == tasks[1]
    assert manifest.closing is None


class Key(msgspec.Struct):
    """A part of a TaskLine."""

    key: str


def test_a_manifest_can_be_read_as_records_that_hold_some_of_its_fields() -> None:
    data = manifest_bytes(task(index) for index in range(5))
    for planned in (None, zlib.crc32(data)):
        manifest = Manifest("rank-0000", "path", data, pytest.fail, planned)
        assert manifest.is_as_planned == (planned is not None)
        assert list(manifest.records(Key, 1, 3)) == [Key("t1"), Key("t2")]
        assert list(manifest.records(Key)) == [Key(f"t{index}") for index in range(5)]


def test_every_manifest_is_longest_first(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s")
    tasks = [task(index, cost=cost) for index, cost in enumerate([1.0, 5.0, 1.0, 7.0])]
    assert publish_manifest(layout, "retry-01", tasks)
    assert publish_orphans(layout, CLOSING, tasks)
    for name in ("retry-01", f"{A0}.orphans"):
        manifest = load_manifest(layout, name, pytest.fail)
        assert manifest is not None
        assert indices(manifest.tasks()) == [3, 1, 0, 2]


def test_what_only_few_may_try_stands_behind_what_others_may_try(tmp_path: Path) -> None:
    """Tasks are claimed in order: who may not take the next one gets to none behind it."""
    layout = make_spool(tmp_path / "s")
    once, twice = ((A0, "a"),), ((A0, "a"), (B0, "b"))
    tasks = [
        task(0, cost=9.0, careful=True, failed_in=twice),
        task(1, cost=8.0, careful=True, failed_in=once),
        task(2, cost=1.0, failed_in=twice),
        task(3, cost=2.0, failed_in=once),
        task(4, cost=0.5, careful=True),
    ]
    assert publish_ruling(layout, "ruling-01", Ruling(epoch=0), tasks)
    manifest = load_manifest(layout, "ruling-01", pytest.fail)
    assert manifest is not None
    assert indices(manifest.tasks()) == [4, 3, 2, 1, 0]


def test_a_manifest_without_tasks_has_no_positions() -> None:
    found, damage, manifest = read(b"")
    assert (found, damage, len(manifest)) == ([], [], 0)


def test_a_missing_manifest_is_none(tmp_path: Path) -> None:
    assert load_manifest(make_spool(tmp_path / "s"), "sweep-01", pytest.fail) is None


def test_a_manifest_is_published_once(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s")
    assert publish_manifest(layout, "sweep-01", [task(1)])
    assert not publish_manifest(layout, "sweep-01", [task(2)])
    manifest = load_manifest(layout, "sweep-01", pytest.fail)
    assert manifest is not None
    assert indices(manifest.tasks()) == [1]


def test_a_manifest_cut_at_any_byte_keeps_its_whole_lines() -> None:
    data = manifest_bytes(task(index, key=f"key/{index}") for index in range(5))
    lines = sealed_lines(data)
    for cut in cuts(data):
        found, damage, manifest = read(cut)
        assert found == [index for index, (_, end) in enumerate(lines) if end <= len(cut)]
        assert len(manifest) == sum(at < len(cut) for at, _ in lines)
        assert bool(damage) == (len(cut) not in [0, *(end + 1 for _, end in lines)])


@pytest.mark.parametrize(("block", "split"), [(1, 1), (7, 2), (100, 3), (150, 5), (10_000, 4096)])
def test_a_position_is_found_wherever_the_blocks_part(
    monkeypatch: pytest.MonkeyPatch, block: int, split: int
) -> None:
    monkeypatch.setattr("gpuspool.spool.manifest.BLOCK_BYTES", block)
    monkeypatch.setattr("gpuspool.spool.manifest.SPLIT_LINES", split)
    tasks = [task(index, key="k" * (index * 37 % 101 + 1)) for index in range(20)]
    for name, head in (("rank-0000", b""), (f"{A0}.orphans", seal(CLOSING))):
        data = head + manifest_bytes(tasks)
        for cut in (data, data[:-1]):
            found, _, manifest = read(cut, name)
            assert (found, len(manifest)) == (list(range(20)), 20)
            for start in range(20):
                assert manifest.task(start) == tasks[start]
                assert indices(manifest.tasks(start, start + 6)) == found[start : start + 6]


def test_a_flipped_bit_costs_the_line_it_lies_in() -> None:
    data = manifest_bytes(task(index) for index in range(4))
    lines = sealed_lines(data)
    for at, flipped in flips(data):
        found, damage, manifest = read(flipped)
        touched = set()
        for index, (start, end) in enumerate(lines):
            # The newline in front of a line is the end of another one, and parts both.
            if start - 1 <= at <= end:
                touched.add(index)
        assert {0, 1, 2, 3} - set(found) <= touched
        assert bool(damage) == (found != [0, 1, 2, 3])
        if data[at] != ord("\n") and flipped[at] != ord("\n"):
            for index in found:
                assert manifest.task(index) == task(index)
            assert {one.offset for one in damage} <= {lines[index][0] for index in touched}


def test_a_damaged_line_is_reported_with_its_offset_and_moves_no_other() -> None:
    data = manifest_bytes(task(index) for index in range(4))
    at = sealed_lines(data)[2][0]
    found, damage, manifest = read(data[: at + 9] + b"X" + data[at + 10 :])
    assert found == [0, 1, 3]
    assert len(manifest) == 4
    assert manifest.task(2) is None
    assert manifest.task(3) == task(3)
    assert {(one.path, one.offset) for one in damage} == {("path", at)}
    assert str(damage[0]).startswith(f"path, byte {at}: ")


def test_the_closing_at_the_head_of_orphans_has_no_position(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s")
    assert publish_orphans(layout, CLOSING, [task(7), task(8)])
    another = Closing(attempt=A0, state="failed", reason="lost", by="me")
    assert not publish_orphans(layout, another, [])
    manifest = load_manifest(layout, f"{A0}.orphans", pytest.fail)
    assert manifest is not None
    assert manifest.closing == CLOSING
    assert indices(manifest.tasks()) == [7, 8]
    assert manifest.task(0) == task(7)


def test_a_damaged_closing_costs_no_orphan() -> None:
    head = seal(CLOSING)
    tasks = manifest_bytes([task(7), task(8)])
    for at, flipped in flips(head[:-1]):
        if flipped[at] == ord("\n"):
            continue
        found, damage, manifest = read(flipped + b"\n" + tasks, f"{A0}.orphans")
        assert found == [7, 8]
        assert manifest.closing == (None if damage else CLOSING)
    assert [one.offset for one in read(b"", f"{A0}.orphans")[1]] == [0]


def test_damage_below_a_closing_is_reported_at_its_offset_in_the_file() -> None:
    data = seal(CLOSING) + manifest_bytes([task(7), task(8)])
    at = sealed_lines(data)[2][0]
    found, damage, _ = read(data[:at] + b"?" + data[at + 1 :], f"{A0}.orphans")
    assert found == [7]
    assert [one.offset for one in damage] == [at]


def zero_block(layout: Layout, at: int, size: int) -> None:
    """Overwrite a part of the planned manifest with zeros."""
    path = layout.manifest("rank-0000")
    data = path.read_bytes()
    path.write_bytes(data[:at] + b"\0" * size + data[at + size :])


@pytest.mark.parametrize("at", [0, 4096, 36 * 1024])
def test_a_zeroed_block_loses_no_task_that_can_still_be_read(tmp_path: Path, at: int) -> None:
    """Positions shift where newlines are gone. The sweep finds the tasks that claims then miss."""
    layout = make_spool(tmp_path / "s", 800)
    writer = begin(layout, A0)
    take(layout, A0, 300)
    finish(writer, *range(100))
    zero_block(layout, at, 4096)
    view = view_of(layout)
    close(view, A0)
    sweep(view)
    lines = sealed_lines(manifest_bytes(map(task, range(800))))
    gone = {
        index for index, (start, end) in enumerate(lines) if start - 1 < at + 4096 and end >= at
    }
    offered: set[int] = set()
    for name, manifest in view.manifests.items():
        offered.update(indices(manifest.tasks(view.chains[name].next)))
    assert offered | gone | set(range(100)) == set(range(800))
    assert {index for index, letter in enumerate(verdicts(view)) if letter == "f"} <= gone
    assert any(damage.path == str(layout.manifest("rank-0000")) for damage in view.damage)


def test_a_task_is_found_by_its_number_whatever_payloads_look_like() -> None:
    tasks = [task(5), task(1, payload=msgspec.Raw(b'"{\\"task\\":2,"')), task(2), task(22)]
    for head in (b"", seal(CLOSING)):
        name = f"{A0}.orphans" if head else "rank-0000"
        data = head + b"".join(map(seal, tasks))
        _, _, manifest = read(data, name)
        assert [manifest.find(one.task, TaskLine) for one in tasks] == tasks
        assert manifest.find(3, TaskLine) is None
        _, _, damaged = read(
            data.replace(b'{"task":22,"key":"t22"', b'{"task":22,"key":"t23"'), name
        )
        assert damaged.find(22, TaskLine) is None
        assert damaged.find(2, TaskLine) == tasks[2]
    # The last line may have no end.
    assert read(data[:-1], name)[2].find(22, TaskLine) is None


def test_all_lines_of_a_task_are_found_with_their_positions() -> None:
    tasks = [task(5), task(1), task(5, round=1), task(55), task(2, key="t5")]
    for head in (b"", seal(CLOSING)):
        name = f"{A0}.orphans" if head else "rank-0000"
        data = head + b"".join(map(seal, tasks))
        _, _, manifest = read(data, name)
        assert list(manifest.lines_of(5, TaskLine)) == [(0, tasks[0]), (2, tasks[2])]
        assert list(manifest.lines_of(6, TaskLine)) == []
        with_key = list(manifest.lines_with(b'"key":"t5"', TaskLine))
        assert with_key == [tasks[0], tasks[2], tasks[4]]
        assert list(manifest.lines_with(b"}", TaskLine)) == tasks
        assert list(manifest.lines_with(b"nowhere", TaskLine)) == []
        _, _, damaged = read(data.replace(b'"round":1', b'"round":2'), name)
        assert list(damaged.lines_of(5, TaskLine)) == [(0, tasks[0])]
