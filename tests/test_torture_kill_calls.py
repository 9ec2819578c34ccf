"""A share of the torture row "kill at every file-system call", and that it would see what a kill
breaks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from torture.faults import TASKS, Fault, NoCompiler, Scene, library
from torture.forked import Server
from torture.kill_calls import play, row


@pytest.fixture
def server() -> Iterator[Server]:
    try:
        preload = library()
    except NoCompiler as reason:
        pytest.skip(str(reason))
    with Server(preload) as server:
        yield server


def test_whatever_call_a_process_is_killed_at_the_run_goes_on(
    tmp_path: Path, server: Server
) -> None:
    done = row("small", tmp_path)
    assert done.is_clean, "\n".join([*done.notes, *done.failures])
    assert done.cases >= 10


@pytest.mark.parametrize("action", ["before", "after"])
def test_a_kill_comes_just_before_or_just_after_its_call(
    tmp_path: Path, server: Server, action: str
) -> None:
    scene = Scene("parent", tmp_path / "scene", server)
    ended = scene.play(Fault("parent", "rename", 1, action))
    assert ended.code == -9
    hit = scene.hit()
    assert hit is not None
    assert hit.startswith("rename 1 .S.")
    assert (scene.spool / "run.json").exists() == (action == "after")


def test_a_run_that_was_killed_and_not_resumed_is_seen_as_lost(
    tmp_path: Path, server: Server
) -> None:
    scene = Scene("parent", tmp_path / "scene", server)
    scene.play(Fault("parent", "rename", 1, "after"))
    counts = scene.judge()
    assert (counts.L, counts.X) == (TASKS, 1)


def test_a_number_beyond_the_last_call_is_no_case(tmp_path: Path, server: Server) -> None:
    verdict = play(
        Scene("worker", tmp_path / "scene", server), Fault("worker", "link", 1000, "before")
    )
    assert verdict.hit is None
    assert verdict.problems == []


def test_a_command_that_never_ends_is_killed_and_called_hung(
    tmp_path: Path, server: Server
) -> None:
    (tmp_path / "job.py").write_text("import time\ndef f(task, ctx):\n    time.sleep(1000)\n")
    (tmp_path / "lines").write_text("0\n")
    ended = server.run(
        "run", "job.py:f", "--lines", "lines", "--spool", "S", cwd=tmp_path, patience_s=1.0
    )
    assert ended.hung
    assert server.left() == []


def test_what_outlives_its_parent_is_found_and_ended(tmp_path: Path, server: Server) -> None:
    (tmp_path / "job.py").write_text("import time\ndef f(task, ctx):\n    time.sleep(1000)\n")
    (tmp_path / "lines").write_text("0\n")
    spool = tmp_path / "S"
    # The parent dies when it writes down that it started its first worker.
    plan = {"parent": f"under={spool / 'events'}\nclass=create\nn=3\nmany=1\naction=before\n"}
    ended = server.run(
        "run", "job.py:f", "--lines", "lines", "--spool", spool, cwd=tmp_path, plan=plan, keep=True
    )
    assert ended.code == -9
    assert len(ended.left) == 1
    server.kill_left()
    assert server.left() == []
