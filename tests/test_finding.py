"""Which task, rank or attempt a word means, and what is said of one that means none."""

import time
from pathlib import Path

import msgspec
import pytest
from helpers import JOBS, Box
from spooling import make_spool, task

from gpuspool.orchestrator.report.finding import find_task, is_attempt, nearest, parse_rank
from gpuspool.spool.errors import UsageError
from gpuspool.spool.view import View, load_run, load_view


def view_of(root: Path) -> View:
    return load_view(root, reads_claims=False).refresh_manifests()


def spool_of(root: Path, *payloads: str, keys: tuple[str, ...] = ()) -> View:
    """A spool of tasks with these payloads, which are JSON, and with these keys or t0, t1, …"""
    lines = [
        task(index, payload=msgspec.Raw(payload.encode()), key=key)
        for index, (payload, key) in enumerate(
            zip(payloads, keys or [f"t{index}" for index in range(len(payloads))], strict=True)
        )
    ]
    make_spool(root / "s", lines[::2], lines[1::2])
    return view_of(root / "s")


def test_a_task_is_found_by_its_key_its_number_and_its_input(tmp_path: Path) -> None:
    view = spool_of(tmp_path, '"a"', '{"path":"/in/b.txt"}', '{"n":1}', '"with/slash"')
    for word in ("t1", "#1", "1", "#01", "/in/b.txt", "/in/../in/b.txt"):
        assert find_task(view, word) == 1
    assert find_task(view, "a") == 0
    assert find_task(view, "with/slash") == 3
    for word in ("#4", "4", "n", "t", "", "/in", "in/b.txt", "\udc80"):
        with pytest.raises(UsageError, match="has no task"):
            find_task(view, word)


def test_a_key_wins_over_a_number_and_over_an_input(tmp_path: Path) -> None:
    view = spool_of(tmp_path, '"2"', '"x"', '"#1"', keys=("1", "x", "2"))
    assert find_task(view, "1") == 0
    assert find_task(view, "#1") == 1, "what looks like a number in a list of tasks is one"
    assert find_task(view, "2") == 2
    assert find_task(view, "x") == 1
    assert find_task(view, "#0") == 0


def test_payloads_that_look_like_keys_lead_nowhere(tmp_path: Path) -> None:
    view = spool_of(
        tmp_path, '{"key":"t2"}', '{"path":{"key":"t2"}}', '"t2"', '{"path":7}', '{"other":"deep"}'
    )
    assert find_task(view, "t2") == 2
    with pytest.raises(UsageError, match="has no task"):
        find_task(view, "deep")


@pytest.mark.parametrize("key", ["ä b", 'quo"te', "back\\slash", "漢字", "🚀", "a\tb", "x" * 5000])
def test_keys_of_all_letters_are_found(tmp_path: Path, key: str) -> None:
    view = spool_of(tmp_path, "1", "2", keys=("other", key))
    assert find_task(view, key) == 1


def test_several_tasks_with_one_input_are_named(tmp_path: Path) -> None:
    view = spool_of(tmp_path, *['"same"'] * 7)
    with pytest.raises(UsageError, match=r"7 tasks of .* have the input 'same': t0, .*, …\. Name"):
        find_task(view, "same")


def test_a_file_is_found_as_it_is_typed_wherever_that_is(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.txt", "sub/b.txt"):
        box.write(f"in/{name}", name)
    box.run(
        *("run", f"{JOBS}/plain.py:describe", "in/a.txt", "in/sub/b.txt", "--spool", "S"),
        *("--ranks", "1"),
    )
    view = view_of(box / "S")
    for folder, words in {
        box.home: ("in/sub/b.txt", "./in/sub/b.txt", "sub/b.txt", str(box / "in/sub/b.txt")),
        box / "in": ("sub/b.txt", "in/sub/b.txt"),
        box / "in" / "sub": ("b.txt", "../sub/b.txt"),
    }.items():
        monkeypatch.chdir(folder)
        assert [find_task(view, word) for word in words] == [1] * len(words)
    monkeypatch.chdir(box.home)
    (box / "link").symlink_to("in")
    assert find_task(view, "link/sub/b.txt") == 1
    assert "==> rank-0000.a00 <==" not in box.run("logs", "S", "--task", "#1").out
    for word in ("sub/b.txt", "in/sub/b.txt", "#1", "1"):
        box.run("logs", "S", "--task", word)
    said = box.run("explain", "S", "b.tx", code=2).err
    assert "Did you mean sub/b.txt" in said


def test_inputs_that_were_moved_are_found_where_they_are(tmp_path: Path) -> None:
    spool_of(tmp_path, '{"path":"/old/in/a.txt"}')
    view = View(load_view(tmp_path / "s").layout, load_run(load_view(tmp_path / "s").layout))
    fingerprint = msgspec.structs.replace(view.run.fingerprint, root="/old/in")
    view.use_run(msgspec.structs.replace(view.run, root="/new/in", fingerprint=fingerprint))
    view.refresh_manifests()
    assert find_task(view, "/new/in/a.txt") == 0
    assert find_task(view, "/old/in/a.txt") == 0


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("t39O", ["t395", "t390"]),
        ("T390", ["t390"]),
        ("b.txt", ["sub/b.txt"]),
        ("sub/B.txt", ["sub/b.txt"]),
        ("wholly different", []),
        ("", []),
    ],
)
def test_the_nearest_keys_are_offered(word: str, near: list[str]) -> None:
    keys = ["sub/b.txt", "images/one.png", *(f"t{index}" for index in range(0, 1000, 5))]
    assert nearest(keys, word)[: len(near)] == near
    assert bool(nearest(keys, word)) == bool(near)


def test_to_find_what_is_near_takes_no_time_even_of_a_million_keys() -> None:
    began = time.process_time()
    found = nearest((f"sample-{index:07}-of-many.png" for index in range(1_000_000)), "sample-77")
    assert time.process_time() - began < 20, "letter by letter it would take minutes"
    assert len(found) <= 3


def test_words_for_ranks_and_attempts() -> None:
    for word in ("rank 3", "rank-3", "rank-0003"):
        assert parse_rank(word) == 3
    for word in ("rank", "rank-", "rank x", "rank-0003.a00", "3", "rank 3 ", "rank ٣"):
        assert parse_rank(word) is None
    assert is_attempt("rank-0003.a01")
    assert not is_attempt("rank-0003.a1")
    assert not is_attempt("rank-0003")
