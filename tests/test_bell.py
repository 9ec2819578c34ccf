"""What wakes the orchestrator. Each wait here is for an hour: that it returns is the test."""

import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import pytest

from gpuspool.orchestrator.supervise.bell import Bell
from gpuspool.spool.publish import publish, ring

HOUR_S = 3600.0


@pytest.fixture
def bell(tmp_path: Path) -> Iterator[Bell]:
    with closing(Bell(tmp_path, 0.0)) as bell:
        yield bell


@pytest.fixture
def early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpuspool.orchestrator.supervise.bell.EARLY_S", HOUR_S)


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpuspool.orchestrator.supervise.bell.EARLY_S", 0.0)


def wait(bell: Bell, act: threading.Timer) -> None:
    act.start()
    bell.wait(HOUR_S, [])
    act.join()


@pytest.mark.usefixtures("early")
def test_at_first_a_published_file_rings_without_an_observer(bell: Bell, tmp_path: Path) -> None:
    (tmp_path / "control").mkdir()
    bell.watch_soon([tmp_path, tmp_path / "control", tmp_path / "missing"])
    for folder in (tmp_path, tmp_path / "control"):
        wait(bell, threading.Timer(0.05, publish, (folder / "file", b"")))
        assert (folder / "file").exists()
    wait(bell, threading.Timer(0.05, ring, (tmp_path,)))
    assert not bell.has_observer


@pytest.mark.usefixtures("early")
def test_what_is_published_before_the_first_wait_is_not_missed(bell: Bell, tmp_path: Path) -> None:
    os.utime(
        tmp_path, (0, 0)
    )  # some kernels give what happens within some milliseconds the same time
    bell.watch_soon([tmp_path])
    publish(tmp_path / "file", b"")
    bell.wait(HOUR_S, [])


@pytest.mark.usefixtures("early")
def test_at_first_the_end_of_a_process_and_a_ring_are_heard_too(bell: Bell, tmp_path: Path) -> None:
    bell.watch_soon([tmp_path])
    with subprocess.Popen([sys.executable, "-c", "pass"]) as child:
        bell.wait(HOUR_S, [child.pid])
        assert child.wait() == 0
    wait(bell, threading.Timer(0.05, bell.ring))
    bell.wait(0.0, [])


@pytest.mark.usefixtures("late")
def test_later_an_observer_hears_what_is_published(bell: Bell, tmp_path: Path) -> None:
    bell.watch_soon([tmp_path])
    bell.wait(HOUR_S, [])
    assert bell.has_observer, "and whoever waits looks around, for what came between"
    wait(bell, threading.Timer(0.05, publish, (tmp_path / "file", b"")))
    assert (tmp_path / "file").exists()


@contextmanager
def no_more_threads() -> Iterator[None]:
    usual = threading.stack_size(1 << 46)  # more than there are addresses
    try:
        yield
    finally:
        threading.stack_size(usual)


@contextmanager
def no_more_descriptors() -> Iterator[None]:
    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, usual[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, usual)


@pytest.mark.usefixtures("late")
@pytest.mark.parametrize("shortage", [no_more_threads, no_more_descriptors])
def test_where_there_can_be_no_observer_the_bell_is_a_poll(
    bell: Bell, tmp_path: Path, shortage: Callable[[], AbstractContextManager[None]]
) -> None:
    """As on a node whose users have used up fs.inotify.max_user_instances."""
    import watchdog.observers  # noqa: F401 - it is there, but cannot begin

    bell.watch_soon([tmp_path])
    with shortage():
        bell.wait(HOUR_S, [])
    assert not bell.has_observer
    wait(bell, threading.Timer(0.05, bell.ring))


def test_who_polls_watches_nothing(tmp_path: Path) -> None:
    with closing(Bell(tmp_path, 0.01)) as bell:
        bell.watch_soon([tmp_path])
        bell.wait(bell.quiet_s, [])
        assert not bell.has_observer
