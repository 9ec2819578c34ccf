"""Task outputs: whole or not there, the first one kept, nothing left of what lost or failed."""

import os
from pathlib import Path

import pytest
from helpers import tree
from spooling import A0, A1, B0, hidden_files, race, together

from gpuspool.spool.errors import OutputError
from gpuspool.worker.context import Task
from gpuspool.worker.outputs import Outputs


def a_task(index: int = 0, key: str = "") -> Task:
    return Task(index=index, key=key or f"t{index}", payload=None, cost=1.0)


def outputs_of(out: Path, attempt: str) -> Outputs:
    """The outputs of an attempt that is in a call with tasks 0 to 99."""
    outputs = Outputs(out, attempt)
    outputs.in_hand = range(100)
    return outputs


@pytest.fixture
def out(tmp_path: Path) -> Path:
    path = tmp_path / "out"
    path.mkdir()
    return path


def publish_in_step(out: Path, attempt: str, tasks: int) -> list[object]:
    """Publish a file and a folder for each task, in step with another attempt; returns what was
    said of them.
    """
    outputs, said = outputs_of(out, attempt), []
    for index in range(tasks):
        outputs.path(a_task(index), ".txt").write_text(f"{attempt}\n" * 50)
        folder = outputs.path(a_task(index), ".d")
        folder.mkdir()
        for name in ("a", "b"):
            (folder / name).write_text(f"{attempt}\n" * 50)
        together()
        said.append(outputs.publish([index])[index])
    return said


def test_an_output_is_hidden_until_it_is_published_whole(out: Path) -> None:
    outputs = outputs_of(out, A0)
    path = outputs.path(a_task(3), ".npy")
    assert path.parent == out
    assert path.name.startswith(".")
    assert path.name.endswith(".npy"), "np.save and others choose by it"
    path.write_bytes(b"12345")
    assert not (out / "t3.npy").exists()
    assert outputs.publish([3]) == {3: [("t3.npy", 5)]}
    assert tree(out) == {"t3.npy": b"12345"}


def test_the_same_question_has_the_same_answer(out: Path) -> None:
    outputs = outputs_of(out, A0)
    assert outputs.path(a_task(), ".a") == outputs.path(a_task(), ".a")
    assert outputs.path(a_task(), ".a") != outputs.path(a_task(), ".b")
    assert outputs.path(a_task(0), ".a") != outputs.path(a_task(1), ".a")
    assert outputs_of(out, A1).path(a_task(), ".a") != outputs.path(a_task(), ".a")


def test_several_outputs_of_a_task_are_told_in_the_order_they_were_asked_for(out: Path) -> None:
    outputs = outputs_of(out, A0)
    for suffix in (".z", "", ".a"):
        outputs.path(a_task(), suffix).write_text(suffix * 2)
    assert outputs.publish([0]) == {0: [("t0.z", 4), ("t0", 0), ("t0.a", 4)]}
    assert tree(out) == {"t0": b"", "t0.a": b".a.a", "t0.z": b".z.z"}


def test_tasks_that_asked_for_nothing_are_not_told_of(out: Path) -> None:
    outputs = outputs_of(out, A0)
    outputs.path(a_task(1), "").write_text("x")
    assert outputs.publish([0, 1, 2]) == {1: [("t1", 1)]}
    assert outputs.publish([0, 1, 2]) == {}


def test_the_first_output_stays_and_the_losers_is_gone(out: Path) -> None:
    first, second = outputs_of(out, A0), outputs_of(out, B0)
    for outputs, text in ((first, "first"), (second, "the second")):
        outputs.path(a_task(), ".txt").write_text(text)
    assert first.publish([0]) == {0: [("t0.txt", 5)]}
    assert second.publish([0]) == {0: [("t0.txt", 5)]}, "the size is that of what exists"
    assert tree(out) == {"t0.txt": b"first"}


def test_an_output_may_be_a_folder(out: Path) -> None:
    outputs = outputs_of(out, A0)
    path = outputs.path(a_task(), "")
    (path / "sub").mkdir(parents=True)
    (path / "a").write_text("123")
    (path / "sub" / "b").write_text("4567")
    assert outputs.publish([0]) == {0: [("t0", 7)]}
    assert tree(out) == {"t0": None, "t0/a": b"123", "t0/sub": None, "t0/sub/b": b"4567"}


def test_the_first_folder_stays_and_the_losers_is_gone(out: Path) -> None:
    for attempt in (A0, A1):
        outputs = outputs_of(out, attempt)
        path = outputs.path(a_task(), ".d")
        path.mkdir()
        (path / attempt).write_text(attempt)
        assert outputs.publish([0]) == {0: [("t0.d", len(A0))]}
    assert tree(out) == {"t0.d": None, f"t0.d/{A0}": A0.encode()}


def test_an_empty_folder_that_came_first_stays_empty(out: Path) -> None:
    first, second = outputs_of(out, A0), outputs_of(out, A1)
    first.path(a_task(), ".d").mkdir()
    assert first.publish([0]) == {0: [("t0.d", 0)]}
    path = second.path(a_task(), ".d")
    path.mkdir()
    (path / "late").write_text("late")
    assert second.publish([0]) == {0: [("t0.d", 0)]}
    assert tree(out) == {"t0.d": None}


def test_of_two_attempts_that_publish_at_once_one_wins_whole(out: Path) -> None:
    said = race(publish_in_step, (out, A0, 15), (out, B0, 15))
    size = 50 * len(f"{A0}\n")
    for index in range(15):
        expected = [(f"t{index}.txt", size), (f"t{index}.d", 2 * size)]
        assert said[0][index] == said[1][index] == expected
        text = (out / f"t{index}.txt").read_text()
        assert text in (f"{A0}\n" * 50, f"{B0}\n" * 50)
        assert len({path.read_text() for path in (out / f"t{index}.d").iterdir()}) == 1
    assert hidden_files(out) == []
    assert len(os.listdir(out)) == 30


def test_an_output_that_was_not_written_is_missed_and_its_siblings_go(out: Path) -> None:
    outputs = outputs_of(out, A0)
    outputs.path(a_task(0), ".a").write_text("written")
    outputs.path(a_task(0), ".d").mkdir()
    outputs.path(a_task(0), ".never")
    outputs.path(a_task(1), ".a").write_text("fine")
    published = outputs.publish([0, 1])
    assert isinstance(published[0], OutputError)
    assert "'.never'" in str(published[0])
    assert published[1] == [("t1.a", 4)]
    assert tree(out) == {"t1.a": b"fine"}


def test_discarded_outputs_leave_nothing_and_may_be_written_again(out: Path) -> None:
    outputs = outputs_of(out, A0)
    outputs.path(a_task(0), ".a").write_text("half")
    outputs.path(a_task(0), ".never")
    folder = outputs.path(a_task(1), ".d")
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "file").write_text("half")
    outputs.path(a_task(2), ".a").write_text("kept")
    outputs.discard([0, 1, 7])
    assert outputs.publish([0, 1]) == {}
    outputs.path(a_task(0), ".a").write_text("whole")
    assert outputs.publish([0, 2]) == {0: [("t0.a", 5)], 2: [("t2.a", 4)]}
    assert tree(out) == {"t0.a": b"whole", "t2.a": b"kept"}


def test_a_key_with_slashes_makes_folders(out: Path) -> None:
    outputs = outputs_of(out, A0)
    for index, key in enumerate(["cat/1.jpg", "dog/1.jpg", "a/b/c/ä 1", "cat/2.jpg"]):
        outputs.path(a_task(index, key), ".npy").write_text(key)
    published = outputs.publish(range(4))
    assert [published[index] for index in range(4)] == [
        [("cat/1.jpg.npy", 9)],
        [("dog/1.jpg.npy", 9)],
        [("a/b/c/ä 1.npy", 10)],
        [("cat/2.jpg.npy", 9)],
    ]
    assert (out / "a" / "b" / "c" / "ä 1.npy").read_text() == "a/b/c/ä 1"
    assert hidden_files(out) == []


@pytest.mark.parametrize("suffix", ["/x", "../x", "a/b", "/", "a\0b"])
def test_a_suffix_that_leads_elsewhere_is_refused(out: Path, suffix: str) -> None:
    outputs = outputs_of(out, A0)
    with pytest.raises(ValueError, match="suffix"):
        outputs.path(a_task(), suffix)
    assert outputs.publish([0]) == {}
    assert tree(out) == {}


def test_a_name_that_no_file_system_takes_is_refused_at_once(out: Path) -> None:
    outputs = outputs_of(out, A0)
    outputs.path(a_task(0, "k" * 251), ".npy").write_text("fits")
    assert outputs.publish([0]) == {0: [("k" * 251 + ".npy", 4)]}
    for key in ("k" * 252, "ä" * 126, "k" * 256 + "/a", "a/" + "ä" * 128 + "/b"):
        with pytest.raises(OutputError, match="255 bytes"):
            outputs.path(a_task(1, key), ".npy")


def test_an_output_that_is_a_link_to_nowhere_is_missed(out: Path) -> None:
    outputs = outputs_of(out, A0)
    outputs.path(a_task(), ".a").symlink_to(out / "nowhere")
    assert isinstance(outputs.publish([0])[0], OutputError)
    assert tree(out) == {}


@pytest.mark.parametrize("suffix", ["\udcff", "\ud800.npy"])
def test_a_suffix_that_no_journal_can_hold_is_refused(out: Path, suffix: str) -> None:
    with pytest.raises(ValueError, match="not UTF-8"):
        outputs_of(out, A0).path(a_task(), suffix)
    assert tree(out) == {}


@pytest.mark.parametrize("is_folder", [True, False])
def test_another_tasks_output_in_the_way_fails_the_task_and_stays(
    out: Path, is_folder: bool
) -> None:
    """The attempt goes on: every other attempt would meet the same."""
    outputs = outputs_of(out, A0)
    if is_folder:
        outputs.path(a_task(), ".d").mkdir()
        (out / "t0.d").write_text("somebody else's")
    else:
        outputs.path(a_task(), ".d").write_text("ours")
        (out / "t0.d").mkdir()
        (out / "t0.d" / "file").write_text("somebody else's")
    before = (out / "t0.d").stat()
    said = outputs.publish([0])[0]
    assert isinstance(said, OutputError)
    assert f"{out / 't0.d'} was there first" in str(said)
    assert (out / "t0.d").stat() == before
    assert hidden_files(out) == []


def test_a_file_where_a_folder_should_be_made_fails_the_task(out: Path) -> None:
    outputs = outputs_of(out, A0)
    outputs.path(a_task(0, "a"), "").write_text("a")
    outputs.publish([0])
    with pytest.raises(OutputError, match=r"a was there first.* cannot hold 'c'"):
        outputs.path(a_task(1, "a/b/c"), "")
    assert outputs.trouble is None
    assert tree(out) == {"a": b"a"}


def test_no_two_outputs_of_one_folder_are_written_under_one_hidden_name(out: Path) -> None:
    outputs = outputs_of(out, A0)
    outputs.path(a_task(1, "a"), "11.txt").write_text("a's")
    outputs.path(a_task(11, "b"), "1.txt").write_text("b's")
    outputs.publish([1, 11])
    assert tree(out) == {"a11.txt": b"a's", "b1.txt": b"b's"}


def test_links_within_a_folder_are_published_with_it(out: Path) -> None:
    outputs = outputs_of(out, A0)
    folder = outputs.path(a_task(), ".d")
    (folder / "step-3").mkdir(parents=True)
    (folder / "step-3" / "file").write_text("four")
    (folder / "latest").symlink_to("step-3")
    (folder / "step-3" / "up").symlink_to("../other")
    os.link(folder / "step-3" / "file", folder / "other")
    said = outputs.publish([0])[0]
    assert isinstance(said, list)
    assert said[0][0] == "t0.d"
    assert (out / "t0.d" / "latest" / "file").read_text() == "four"
    assert (out / "t0.d" / "latest" / "up").read_text() == "four"
