"""A share of the torture row "error sweep", and that it would see what an error breaks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from torture.error_sweep import ERRNOS, SHARE, is_loud, row, tracebacks, ways
from torture.faults import Fault, NoCompiler, Scene, library
from torture.forked import Ended, Server

FAULT = Fault("parent", "mkdir", 1, "fail", "ENOSPC", many=0)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    try:
        preload = library()
    except NoCompiler as reason:
        pytest.skip(str(reason))
    with Server(preload) as server:
        yield Scene("parent", tmp_path / "scene", server)


@pytest.mark.slow
def test_whatever_call_fails_the_run_goes_on_or_says_why_and_can_be_run_again(
    tmp_path: Path, scene: Scene
) -> None:
    done = row("small", tmp_path)
    assert done.is_clean, "\n".join([*done.notes, *done.failures])
    assert done.cases >= 10


def test_a_call_that_fails_is_not_done(scene: Scene) -> None:
    ended = scene.play(FAULT)
    assert ended.code != 0
    assert "No space left on device" in ended.err
    assert (scene.hit() or "").startswith("mkdir 1 ")
    assert not scene.spool.exists()


def test_a_call_may_be_done_and_reported_as_failed(scene: Scene) -> None:
    scene.play(Fault("parent", "rename", 1, "did", "EIO"))
    assert (scene.hit() or "").startswith("rename 1 .S.")
    assert (scene.spool / "run.json").exists()


def test_a_write_may_be_cut_short(scene: Scene) -> None:
    record = scene.home / "cut"
    text = (
        f"under={scene.place}\nrecord={record}\n"
        + Fault("parent", "write", 1, "half", "ENOSPC", 2).text
    )
    scene.server.run(
        "run",
        "job.py:work",
        "--tasks",
        "tasks.jsonl",
        "--spool",
        scene.spool,
        cwd=scene.home,
        plan={"parent": text},
    )
    assert [
        line.rpartition(" ! ")[2] for line in record.read_text().splitlines() if " ! " in line
    ] == ["half", "fail"]


def test_a_failure_is_loud_only_with_an_errno_and_a_path(scene: Scene) -> None:
    where = scene.spool / "run.json"
    said = {
        "went wrong": False,
        "No space left on device": False,
        f"went wrong: {where}": False,
        f"No space left on device: {where}": True,
        f"errno 28 at {where}": True,
    }
    assert {text: is_loud(scene, FAULT, Ended(1, "", text, 0.0)) for text in said} == said


def test_a_traceback_is_seen(scene: Scene) -> None:
    shown = "Traceback (most recent call last):\n  File …\nOSError: [Errno 5] …\n"
    assert tracebacks(scene, Ended(1, "", "gpuspool: no\n", 0.0)) == []
    assert tracebacks(scene, Ended(0, "", "", 0.0), Ended(1, "", f"before\n{shown}", 0.0)) != []


def test_each_class_of_calls_gets_every_errno_once_and_for_good() -> None:
    for call in SHARE:
        fails = {(error, many != 1) for action, error, many in ways(call) if action == "fail"}
        assert fails == {(error, lasts) for error in ERRNOS for lasts in (False, True)}
