"""Beats: whoever lives renames a file of its own to ever higher numbers, and one listing shows all.

Some calls are reported as failed here although they were carried out, as on a network file system
when the reply is lost.
"""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from helpers import Box, assert_sound, names
from spooling import A0, B0, make_spool
from torture.faults import NoCompiler, library
from torture.forked import Server

from gpuspool.spool.beats import Beat, read_beats, remove_beats
from gpuspool.spool.layout import Layout, epoch_name

PARENT = epoch_name(7)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return make_spool(tmp_path / "s", 1)


def beats_of(layout: Layout) -> list[str]:
    return names(layout.beats)


def lose_reply(monkeypatch: pytest.MonkeyPatch, name: str, number: int = errno.EIO) -> None:
    """Let the next call of a function of `os` be carried out and reported as failed."""
    real = getattr(os, name)

    def call(*args: Any) -> None:
        monkeypatch.setattr(os, name, real)
        done = real(*args)
        if name == "open":
            os.close(done)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, name, call)


# One beat.


def test_nothing_is_there_before_the_first_beat(layout: Layout) -> None:
    Beat(layout, A0)
    assert beats_of(layout) == []


@pytest.mark.parametrize("name", [A0, PARENT])
def test_the_first_beat_makes_an_empty_file_and_each_further_one_renames_it(
    layout: Layout, name: str
) -> None:
    beat = Beat(layout, name)
    beat.move()
    assert beats_of(layout) == [f"{name}.0"]
    made = os.stat(layout.beat(name, 0))
    assert made.st_size == 0
    for number in range(1, 12):
        beat.move()
        assert beats_of(layout) == [f"{name}.{number}"]
        assert os.stat(layout.beat(name, number)).st_ino == made.st_ino
        assert read_beats(layout) == {name: number}


def test_who_ends_leaves_no_file(layout: Layout) -> None:
    beat, other = Beat(layout, A0), Beat(layout, B0)
    beat.end()
    for one in (beat, beat, other):
        one.move()
    beat.end()
    assert read_beats(layout) == {B0: 0}
    beat.end()
    assert read_beats(layout) == {B0: 0}, "to end twice harms nobody"


def test_a_file_that_somebody_removed_is_made_again_with_a_higher_number(layout: Layout) -> None:
    """Whoever took a process for dead removes its beat, and it may be alive."""
    beat = Beat(layout, A0)
    beat.move()
    beat.move()
    layout.beat(A0, 1).unlink()
    beat.move()
    assert beats_of(layout) == [f"{A0}.2"]
    beat.move()
    beat.end()
    assert beats_of(layout) == []


def test_a_beat_that_failed_is_tried_again_with_the_same_number(layout: Layout) -> None:
    beat = Beat(layout, A0)
    aside = layout.root / "aside"
    os.rename(layout.beats, aside)
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            beat.move()
    os.rename(aside, layout.beats)
    beat.move()
    assert read_beats(layout) == {A0: 0}


# Lost replies.


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EEXIST])
def test_a_first_beat_that_was_told_as_failed_is_known_again(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    beat = Beat(layout, A0)
    lose_reply(monkeypatch, "open", number)
    if number == errno.EEXIST:
        beat.move()
    else:
        with pytest.raises(OSError, match=os.strerror(number)):
            beat.move()
        assert read_beats(layout) == {A0: 0}, "it was carried out"
        beat.move()
    assert read_beats(layout) == {A0: 0}
    beat.move()
    assert beats_of(layout) == [f"{A0}.1"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EEXIST])
def test_a_beat_that_was_told_as_failed_leaves_one_file_and_goes_on(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    beat = Beat(layout, A0)
    beat.move()
    lose_reply(monkeypatch, "rename", number)
    with pytest.raises(OSError, match=os.strerror(number)):
        beat.move()
    assert beats_of(layout) == [f"{A0}.1"], "it was carried out"
    beat.move()
    assert beats_of(layout) == [f"{A0}.1"]
    beat.move()
    assert beats_of(layout) == [f"{A0}.2"]


def test_parents_and_workers_whose_beats_are_told_as_failed_see_the_run_to_its_end(
    box: Box,
) -> None:
    """Each second rename of all three processes, with a lease so short that there are many."""
    try:
        preload = library()
    except NoCompiler as reason:
        pytest.skip(str(reason))
    faults = f"under={box / 'S'}/beats\nclass=rename\nn=1\nmany=0\nevery=2\naction=did\n"
    faults += f"errno={errno.EIO}\nrecord={box / 'spoiled'}\n"
    tasks = box.tasks([{"payload": 0.1}] * 8)
    job = box.write("naps.py", "import time\ndef nap(task, ctx):\n    time.sleep(task.payload)\n")
    with Server(preload) as server:
        command = ["run", f"{job}:nap", "--tasks", tasks, "--ranks", "2", "--lease", "1s", "-q"]
        plan = dict.fromkeys(("parent", "r0.a0", "r1.a0"), faults)
        ended = server.run(*command, "--spool", box / "S", cwd=box.home, plan=plan)
    assert (ended.code, ended.hung) == (0, False), ended.err
    assert_sound(box, "S", 8)
    spoiled = [line for line in (box / "spoiled").read_text().splitlines() if " ! did" in line]
    assert any("/beats/0000." in line for line in spoiled)
    assert any("/beats/rank-" in line for line in spoiled)
    assert names(box / "S" / "beats") == [], "whoever has ended is not seen to live"


# All beats.


def test_names_that_are_none_of_ours_are_no_beats(layout: Layout) -> None:
    for name in (
        ".0007.3", "0007", "0007.", "0007.x", "007.1", "0007.1.2", "rank-0000.1", A0, f"{A0}.-1",
        "0007.json", "0007.0000000001", "rank-0000.a00.3.tmp", "٠٠٠٧.1",
    ):  # fmt: skip
        (layout.beats / name).touch()
    (layout.beats / f"{B0}.4").touch()
    assert read_beats(layout) == {B0: 4}


def test_of_two_names_that_a_listing_shows_during_a_rename_the_newer_counts(layout: Layout) -> None:
    for number in (9, 10, 11):
        layout.beat(A0, number).touch()
    assert read_beats(layout) == {A0: 11}


def test_where_there_is_no_folder_nobody_beats(layout: Layout) -> None:
    layout.beats.rmdir()
    assert read_beats(layout) == {}
    remove_beats(layout, {A0})


def test_the_beats_of_the_dead_are_removed_and_no_others(layout: Layout) -> None:
    for name in (A0, B0, PARENT):
        layout.beat(name, 3).touch()
    layout.beat(A0, 2).touch()
    (layout.beats / f"{A0}.note").touch()
    remove_beats(layout, {A0, PARENT, epoch_name(8)})
    assert beats_of(layout) == [f"{A0}.note", f"{B0}.3"]
    remove_beats(layout, set())
    assert read_beats(layout) == {B0: 3}
