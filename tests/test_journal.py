"""Journals: every whole line is read; a damaged one costs itself alone, and its place is told."""

import errno
import os
import random
import resource
import signal
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spooling import (
    A0,
    begin,
    dead_process,
    finish,
    flips,
    hidden_files,
    make_spool,
    python,
    race,
    read_journal,
    sealed_lines,
)

from gpuspool.spool.codec import decode
from gpuspool.spool.identity import myself
from gpuspool.spool.journal import (
    CHUNK_BYTES,
    JournalReader,
    JournalWriter,
    link_empty_journal,
    start_journal,
)
from gpuspool.spool.layout import Layout
from gpuspool.spool.manifest import Damage
from gpuspool.spool.records import JournalBrief, JournalHead, JournalLine
from gpuspool.spool.states import LineState


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return make_spool(tmp_path / "s", 1000)


def written(layout: Layout, tasks: int) -> bytes:
    """The bytes of a journal with so many lines, which is removed again."""
    writer = begin(layout, A0)
    for index in range(tasks):
        start = 1.7e9 + index
        line = JournalLine(task=index, round=0, state="complete", start=start, seconds=0.012)
        writer.append(line)
    data = layout.journal(A0).read_bytes()
    layout.journal(A0).unlink()
    return data


def read(layout: Layout, data: bytes) -> tuple[list[int], list[Damage]]:
    """(tasks of the lines that can be read, damage that is reported) of a journal's bytes."""
    layout.journal(A0).write_bytes(data)
    lines, damage = read_journal(layout, A0)
    return [decode(line, JournalBrief).task for _, line in lines], damage


def start_and_tell(root: Path) -> bool:
    """Start the attempt A0 if nobody else has."""
    return start_journal(Layout(root), A0, myself()) is not None


def write_beyond_a_limit(root: Path) -> list[str]:
    """Append to a journal that has room for its head and 500 bytes, until long after that.

    The limit is lifted once it was met, so that later lines would fit. Returns what was raised, by
    which line, and in the end by `check`.
    """
    writer = begin(Layout(root), A0)
    raised = []
    limit = Layout(root).journal(A0).stat().st_size + 500
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    for index in range(20):
        try:
            finish(writer, index)
        except OSError as error:
            raised.append(f"{index}: {error.errno}")
            unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    try:
        writer.check()
    except OSError as error:
        raised.append(f"check: {error.errno}")
    return raised


def test_what_was_appended_is_read_in_order_with_its_offset(layout: Layout) -> None:
    writer = begin(layout, A0)
    finish(writer, 5, 3)
    finish(writer, 4, round_=1, state="failed")
    lines, damage = read_journal(layout, A0)
    data = layout.journal(A0).read_bytes()
    assert damage == []
    briefs = [decode(line, JournalBrief) for _, line in lines]
    assert [(one.task, one.state) for one in briefs] == [
        (5, "complete"),
        (3, "complete"),
        (4, "failed"),
    ]
    assert all(data[at : at + len(line) + 1] == line + b"\n" for at, line in lines)


def test_a_journal_says_first_whose_it_is(layout: Layout) -> None:
    begin(layout, A0)
    reader = JournalReader(layout, A0, pytest.fail)
    assert list(reader.read(JournalBrief)) == []
    assert isinstance(reader.head, JournalHead)
    assert reader.head.attempt == A0
    assert (reader.head.pid, reader.head.boot_id) == (os.getpid(), myself().boot_id)


def test_a_journal_is_started_once(layout: Layout) -> None:
    begin(layout, A0)
    before = layout.journal(A0).read_bytes()
    assert start_journal(layout, A0, dead_process()) is None
    assert not link_empty_journal(layout, A0)
    assert layout.journal(A0).read_bytes() == before
    assert hidden_files(layout.root) == []


def test_of_processes_that_start_one_attempt_exactly_one_succeeds(layout: Layout) -> None:
    assert sorted(race(start_and_tell, *[(layout.root,)] * 3)) == [False, False, True]
    assert layout.journal(A0).read_bytes().count(b"\n") == 1
    assert hidden_files(layout.root) == []


def test_an_attempt_that_was_kept_from_beginning_cannot_begin(layout: Layout) -> None:
    assert link_empty_journal(layout, A0)
    assert start_journal(layout, A0, dead_process()) is None
    assert read_journal(layout, A0) == ([], [])


def test_a_journal_that_does_not_exist_has_no_lines(layout: Layout) -> None:
    reader = JournalReader(layout, A0, pytest.fail)
    assert list(reader.read(JournalBrief)) == []
    reader.report_torn_tail()


def test_a_journal_cut_at_any_byte_gives_exactly_its_whole_lines(layout: Layout) -> None:
    data = written(layout, 6)
    ends = [end for _, end in sealed_lines(data)]
    for length in range(len(data) + 1):
        tasks, damage = read(layout, data[:length])
        assert tasks == [index for index, end in enumerate(ends[1:]) if end < length]
        assert damage == []


def test_a_torn_tail_is_told_once_the_attempt_is_closed(layout: Layout) -> None:
    data = written(layout, 3)
    for length in range(len(data) + 1):
        layout.journal(A0).write_bytes(data[:length])
        damage: list[Damage] = []
        reader = JournalReader(layout, A0, damage.append)
        list(reader.read(JournalBrief))
        reader.report_torn_tail()
        whole = data[:length].rfind(b"\n") + 1
        if whole == length:
            assert damage == []
        else:
            assert [(one.path, one.offset) for one in damage] == [(str(layout.journal(A0)), whole)]
            assert f"torn line of {length - whole} bytes" in damage[0].reason


def test_a_flipped_bit_costs_the_line_it_lies_in(layout: Layout) -> None:
    data = written(layout, 3)
    lines = sealed_lines(data)
    for at, flipped in flips(data):
        if at % 7:
            continue
        tasks, damage = read(layout, flipped)
        where = next(index for index, (_, end) in enumerate(lines) if at <= end)
        missing = {0, 1, 2} - set(tasks)
        if data[at] == ord("\n"):
            assert missing <= {where - 1, where}, "a newline parts two lines"
        else:
            assert missing <= {where - 1}
            assert tasks == sorted(tasks)
            assert {one.offset for one in damage} <= {lines[where][0], at + 1}
        if missing:
            assert damage or at == len(data) - 1


@pytest.mark.parametrize("block", range(0, 11))
def test_a_zeroed_block_costs_the_lines_it_touches(layout: Layout, block: int) -> None:
    data = written(layout, 900)
    lines = sealed_lines(data)
    start = block * 8192
    stop = min(start + 8192, len(data))
    assert start < len(data)
    tasks, damage = read(layout, data[:start] + b"\0" * (stop - start) + data[stop:])
    touched = {index - 1 for index, (at, end) in enumerate(lines) if at <= stop and end >= start}
    assert tasks == [index for index in range(900) if index not in touched]
    first = next(at for at, end in lines if end >= start)
    if stop < len(data):
        assert [(one.path, one.offset) for one in damage] == [(str(layout.journal(A0)), first)]


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_whatever_bytes_a_journal_holds_no_line_is_made_up(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    layout = Layout(tmp_path_factory.mktemp("s"))
    layout.journals.mkdir()
    whole = written(layout, 12)
    at, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(whole))] * 2)))
    junk = data.draw(st.binary(max_size=30) | st.just(whole[at // 2 : stop // 2]))
    layout.journal(A0).write_bytes(whole[:at] + junk + whole[stop:])
    lines, _ = read_journal(layout, A0)
    assert {line for _, line in lines} <= set(whole.split(b"\n"))


def test_each_reading_gives_what_is_new_and_whole(layout: Layout) -> None:
    data = written(layout, 8)
    rng = random.Random(7)
    path = layout.journal(A0)
    path.write_bytes(b"")
    reader = JournalReader(layout, A0, pytest.fail)
    found: list[int] = []
    at = 0
    while at < len(data):
        step = rng.randint(1, 90)
        with open(path, "ab") as file:
            file.write(data[at : at + step])
        at += step
        new = [line.task for _, line in reader.read(JournalBrief)]
        assert new == [task for task in range(8) if task not in found][: len(new)]
        found += new
        assert len(found) == max(data[:at].count(b"\n") - 1, 0)
    assert found == list(range(8))


def test_a_line_that_is_no_record_of_the_kind_is_told(layout: Layout) -> None:
    damage: list[Damage] = []
    finish(begin(layout, A0), 3)
    [(at, line)] = JournalReader(layout, A0, pytest.fail).read(JournalLine)
    assert line.task == 3
    reader = JournalReader(layout, A0, damage.append)
    assert list(reader.read(JournalHead)) == []
    assert [(one.path, one.offset) for one in damage] == [(reader.path, at)]


def test_a_journal_without_a_readable_head_still_tells_its_tasks(layout: Layout) -> None:
    data = written(layout, 3)
    tasks, damage = read(layout, b"?" + data[1:])
    assert tasks == [0, 1, 2]
    assert [one.offset for one in damage] == [0]
    reader = JournalReader(layout, A0, lambda _: None)
    assert len(list(reader.read(JournalBrief))) == 3
    assert reader.head is None


def test_nothing_follows_a_line_that_was_written_in_part(layout: Layout) -> None:
    raised = race(write_beyond_a_limit, (layout.root,))[0]
    data = layout.journal(A0).read_bytes()
    lines, damage = read_journal(layout, A0)
    assert len(data) == data.index(b"\n") + 1 + 500
    assert not data.endswith(b"\n")
    assert [decode(line, JournalBrief).task for _, line in lines] == list(range(len(lines)))
    first = len(lines)
    error = raised[0].rpartition(" ")[2]
    assert raised == [*(f"{index}: {error}" for index in range(first, 20)), f"check: {error}"]
    assert damage == []


def append_waiting(writer: JournalWriter, *tasks: int) -> None:
    """Append the verdict on these tasks, which need not be written at once."""
    for index in tasks:
        writer.append(JournalLine(task=index, round=0, state="complete"), may_wait=True)


def tasks_of(layout: Layout) -> list[int]:
    """The tasks of the lines that stand in the journal of A0 by now."""
    return [line.task for _, line in JournalReader(layout, A0, pytest.fail).read(JournalBrief)]


def test_lines_that_may_wait_share_a_write_with_the_next_that_may_not(layout: Layout) -> None:
    writer = begin(layout, A0)
    append_waiting(writer, 2, 0)
    assert tasks_of(layout) == []
    finish(writer, 1)
    assert tasks_of(layout) == [2, 0, 1]
    append_waiting(writer, 3)
    writer.flush()
    append_waiting(writer, 4)
    writer.sync_if_dirty()
    assert tasks_of(layout) == [2, 0, 1, 3, 4]


def test_two_threads_write_each_line_once_and_in_order(layout: Layout) -> None:
    writer = begin(layout, A0)
    end = threading.Event()

    def keep_flushing() -> None:
        while not end.is_set():
            writer.flush()

    thread = threading.Thread(target=keep_flushing)
    thread.start()
    append_waiting(writer, *range(5000))
    end.set()
    thread.join()
    writer.flush()
    assert tasks_of(layout) == list(range(5000))


def test_a_journal_is_read_a_chunk_at_a_time_whatever_its_lines(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = written(layout, 40)
    expected = read(layout, data)
    assert len(expected[0]) == 40
    for chunk in (1, 7, 100, 150, 4096):
        monkeypatch.setattr("gpuspool.spool.journal.CHUNK_BYTES", chunk)
        assert read(layout, data) == expected
        assert read(layout, data + b"torn") == expected


def test_a_failed_sync_is_never_tried_again_as_if_it_could_succeed(layout: Layout) -> None:
    """The journal here is a pipe, which takes bytes but cannot be made durable."""
    reader, fd = os.pipe()
    writer = JournalWriter(fd, layout.journal(A0), 0)
    writer.sync_if_dirty()
    finish(writer, 0)
    with pytest.raises(OSError, match="Invalid argument"):
        writer.sync_if_dirty()
    writer.sync_if_dirty()
    with pytest.raises(OSError, match="Invalid argument"):
        writer.check()
    with pytest.raises(OSError, match="Invalid argument"):
        finish(writer, 1)
    os.close(fd)
    with open(reader, "rb") as file:
        assert file.read().count(b"\n") == 1


def test_a_killed_writer_loses_no_line_that_it_had_written(layout: Layout) -> None:
    script = """
import itertools, sys
from spooling import A0, Layout, begin, finish
writer = begin(Layout(sys.argv[1]), A0)
for index in itertools.count():
    finish(writer, index)
    print(index, flush=True)
"""
    with python(script, layout.root) as process:
        assert process.stdout is not None
        for _ in range(100):
            process.stdout.readline()
        process.kill()
        said = 100 + len(process.stdout.readlines())
    lines, damage = read_journal(layout, A0)
    assert damage == []
    assert len(lines) in (said, said + 1)
    assert [decode(line, JournalBrief).task for _, line in lines] == list(range(len(lines)))


def test_a_journal_whose_descriptor_became_stale_is_opened_again(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS, where a server that comes back may not know the handles of before."""
    finish(begin(layout, A0), 0, 1, 2)
    reader = JournalReader(layout, A0, print)
    real_open = os.open
    real_pread = os.pread
    opened = 0

    def count_open(*args: Any, **more: Any) -> int:
        nonlocal opened
        opened += 1
        return real_open(*args, **more)

    def stale_at_first(*args: Any) -> bytes:
        if opened < 2:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return real_pread(*args)

    monkeypatch.setattr(os, "open", count_open)
    monkeypatch.setattr(os, "pread", stale_at_first)
    assert [line.task for _, line in reader.read(JournalBrief)] == [0, 1, 2]


# One task of many.


def test_the_lines_that_name_a_task_are_found_and_no_others(layout: Layout) -> None:
    writer = begin(layout, A0)
    for index in (5, 55, 15, 5):
        writer.append(JournalLine(task=index, round=0, state=LineState.COMPLETE))
    for batch in ([5], [1, 5, 2], [51, 15], [4, 5]):
        writer.append(JournalLine(task=3, round=0, state=LineState.STARTED, batch=batch))
    writer.append(
        JournalLine(
            task=6, round=0, state=LineState.COMPLETE, result=msgspec.Raw(b'{"batch":[5],"task":5}')
        )
    )
    writer.flush()
    whole = [line for _, line in JournalReader(layout, A0, [].append).read(JournalLine)]
    found = [line for _, line in JournalReader(layout, A0, [].append).find(5, JournalLine)]
    named = [line for line in found if line.task == 5 or 5 in line.batch]
    assert named == [line for line in whole if line.task == 5 or 5 in line.batch]
    assert len(named) == 5
    assert len(found) <= len(named) + 1, "a result may look like a batch"
    assert list(JournalReader(layout, A0, [].append).find(7, JournalLine)) == []


@pytest.mark.parametrize("size", [64, 300, CHUNK_BYTES])
def test_a_damaged_line_of_a_task_is_reported_and_costs_itself(
    layout: Layout, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpuspool.spool.journal.CHUNK_BYTES", size)
    writer = begin(layout, A0)
    finish(writer, 1, 2, 1, 3, 1)
    writer.flush()
    path = layout.journal(A0)
    data = path.read_bytes()
    at = data.index(b'{"task":1,')
    path.write_bytes(data[:at] + data[at:].replace(b"complete", b"compleet", 1))
    damage: list[Damage] = []
    reader = JournalReader(layout, A0, damage.append)
    lines = list(reader.find(1, JournalLine))
    assert [line.task for _, line in lines] == [1, 1]
    assert [one.offset for one in damage] == [at]
    assert all(data[found:].startswith(b'{"task":1,') for found, _ in lines)
    assert reader.head is not None
