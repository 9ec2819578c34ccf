"""Nudges: an idle worker is told that there is news, and hardly looks by itself."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from helpers import Box, assert_sound, start_gated, wait_until, waiting
from spooling import A0, begin, intend, make_spool, task

from gpuspool.spool.layout import numbered_name
from gpuspool.spool.manifest import publish_manifest
from gpuspool.spool.view import load_run
from gpuspool.worker import idle
from gpuspool.worker.drain import Drain
from gpuspool.worker.idle import Idling, Word
from gpuspool.worker.nudges import Nudges
from gpuspool.worker.parent import Parent

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
    monkeypatch.setattr(idle, "NUDGED_PAUSE_S", 1000.0)
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
