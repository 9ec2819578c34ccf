"""Nudges: an idle worker is told that there is news, and hardly looks by itself."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import Box, assert_sound, start_gated, wait_until, waiting
from spooling import A0, begin, intend, make_spool, task

from gpuspool.spool.identity import myself
from gpuspool.spool.layout import numbered_name
from gpuspool.spool.manifest import publish_manifest
from gpuspool.spool.records import Options
from gpuspool.spool.view import load_run
from gpuspool.worker import idle
from gpuspool.worker.beat import DRAIN_S, Beat
from gpuspool.worker.drain import Drain
from gpuspool.worker.idle import Idling, Word
from gpuspool.worker.modules import Modules
from gpuspool.worker.nudges import UNNUDGED_LOOK_S, Nudges
from gpuspool.worker.parent import Parent
from gpuspool.worker.standing import Standing

WORKER = """
import sys
from gpuspool.worker.nudges import nudges_of_stdin

nudges = nudges_of_stdin()
print(nudges.are_promised, repr(sys.stdin.read()), flush=True)
while nudges.are_promised:
    print(nudges.wait(60), flush=True)
print("over", flush=True)
"""


def test_a_worker_takes_the_pipe_and_leaves_its_job_an_empty_stdin() -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", WORKER], stdin=pipe, stdout=pipe) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"True ''\n"
        worker.stdin.write(b"!!!")
        worker.stdin.flush()
        assert worker.stdout.readline() == b"True\n"
        worker.stdin.close()
        assert worker.stdout.read() == b"True\nover\n"


@pytest.mark.parametrize("stdin", ["/dev/null", "file"])
def test_what_is_no_pipe_promises_nothing(tmp_path: Path, stdin: str) -> None:
    source = tmp_path / "file"
    source.write_text("")
    with open(source if stdin == "file" else stdin) as file:
        done = subprocess.run(
            [sys.executable, "-c", WORKER], stdin=file, capture_output=True, text=True
        )
    assert done.stdout == "False ''\nover\n"


class CountingNudges(Nudges):
    """Counts how often somebody waits for a nudge, and nudges itself at the third time."""

    def __init__(self, reader: int, on_third: threading.Event) -> None:
        super().__init__(reader)
        self.waits = 0
        self._on_third = on_third

    def wait(self, seconds: float) -> bool:
        self.waits += 1
        if self.waits == 3:
            self._on_third.set()
        return super().wait(seconds)


def test_an_idle_worker_finds_a_new_manifest_when_it_is_nudged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the nudge it would look again after minutes."""
    monkeypatch.setattr(idle, "FIRST_PAUSE_S", 1000.0)
    monkeypatch.setattr(idle, "UNNUDGED_LOOK_S", 1000.0)
    monkeypatch.setattr(idle, "SILENCE_S", 1000.0)
    layout = make_spool(tmp_path / "s", 2)
    intent = intend(layout, A0)
    reader, writer = os.pipe2(os.O_NONBLOCK)
    is_waiting = threading.Event()
    nudges = CountingNudges(reader, is_waiting)
    drain = Drain()
    parent = Parent(intent, drain)
    monkeypatch.setattr(parent, "is_there", lambda: True)
    idling = Idling(layout, load_run(layout), intent, begin(layout, A0), drain, parent, nudges)

    def bring_news() -> None:
        is_waiting.wait()
        publish_manifest(layout, numbered_name("sweep", 1), [task(0)])
        os.write(writer, b"!")

    messenger = threading.Thread(target=bring_news)
    messenger.start()
    assert idling.wait(0) is Word.NEW_MANIFEST
    messenger.join()
    os.close(writer)
    os.close(reader)


class Looker:
    """The beat of an attempt, and how often it looked for a drain."""

    def __init__(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, fd: int | None, poll_s: float = 0.0
    ) -> None:
        layout = make_spool(root / "s", 2)
        intent = intend(layout, A0, options=Options(poll_s=poll_s))
        self.looks = 0
        self.beat = Beat(
            layout,
            intent,
            myself(),
            begin(layout, A0),
            Drain(is_published=self._look),
            Standing(layout, A0, lease_s=120),
            Modules(layout, intent.job, "/", []),
            Nudges(fd),
        )
        monkeypatch.setattr(self.beat._parent, "is_there", lambda: True)
        self.now = self.beat._last_look

    def _look(self) -> bool:
        self.looks += 1
        return False

    def looks_within(self, seconds: int) -> int:
        """How often it looks in so many seconds from here."""
        before = self.looks
        for _ in range(seconds):
            self.now += 1
            self.beat._tick(self.now)
        return self.looks - before


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe2(os.O_NONBLOCK)
    yield reader, writer
    os.close(reader)
    os.close(writer)


def test_a_worker_looks_for_a_drain_when_it_is_nudged_and_hardly_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipe: tuple[int, int]
) -> None:
    looker = Looker(tmp_path, monkeypatch, pipe[0])
    assert looker.looks_within(int(UNNUDGED_LOOK_S) - 1) == 0
    os.write(pipe[1], b"!!")
    assert looker.looks_within(1) == 1
    assert looker.looks_within(int(UNNUDGED_LOOK_S)) == 1, "the parent may have been stopped"


def test_without_a_pipe_a_worker_looks_for_a_drain_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Looker(tmp_path, monkeypatch, None).looks_within(100) == 100 / DRAIN_S


def test_a_worker_whose_parent_looks_seldom_looks_for_a_drain_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipe: tuple[int, int]
) -> None:
    looker = Looker(tmp_path, monkeypatch, pipe[0], poll_s=60.0)
    assert looker.looks_within(100) == 100 / DRAIN_S


def test_a_worker_whose_parent_has_died_looks_at_once_and_then_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe2(os.O_NONBLOCK)
    looker = Looker(tmp_path, monkeypatch, reader)
    os.close(writer)
    assert looker.looks_within(1) == 1
    assert looker.looks_within(100) == 100 / DRAIN_S
    os.close(reader)


def test_a_nudge_that_the_beat_has_read_is_one_for_who_waits_too(pipe: tuple[int, int]) -> None:
    nudges = Nudges(pipe[0])
    assert not nudges.wait(0)
    os.write(pipe[1], b"!")
    assert nudges.heard() == 1
    assert nudges.wait(1000)
    assert not nudges.wait(0)


def states(box: Box) -> list[str]:
    return [row["state"] for row in box.status("S")["ranks"]]


def test_where_nothing_tells_of_files_the_next_worker_begins_what_a_dead_one_had(box: Box) -> None:
    """The parent hears by wait(2) that its child died, and nudges the one that waits."""
    options = ["--ranks", "2", "--poll", "60s"]
    started, _ = start_gated(box, ["wait", "go", "go", "go"], *options)
    wait_until(lambda: len(waiting(box)) == 1)
    wait_until(lambda: sorted(states(box)) == ["idle", "running"])
    victim = next(row["pid"] for row in box.status("S")["ranks"] if row["state"] == "running")
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: len(waiting(box)) == 2)
    (box / "gate").touch()
    started.wait(0)
    assert_sound(box, "S", 4)
