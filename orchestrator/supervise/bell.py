"""What wakes the orchestrator: a published file, the end of a process, a signal, or time. It
decides nothing.

One pipe carries the first and third, a pidfd for each process the second, so the loop sleeps in one
poll(2). The only file that imports watchdog. On network file systems inotify sees nothing of other
hosts: there the bell is a poll. A run of a few tasks is over before watchdog would have started, so
at first the folders' times are looked at instead.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gpuspool.spool.file_system import file_system_type, is_network

QUIET_S = 1.0  # with inotify: progress, deadlines and what no event told
NETWORK_S = 2.0  # without: a listing of a few folders each time
EARLY_S = 0.25  # in this time watchdog is not started,
EARLY_LOOK_S = (
    0.003  # and so often the times of the folders are looked at; what those miss is seen when it is
)
LONGEST_S = 86400.0  # poll(2) counts milliseconds in an int
BLIND_S = (
    0.2  # where the kernel has no pidfd (before 5.3): how late the end of a process may be seen
)


class Bell:
    """Wakes who waits, until closed; of published files it hears once it watches. `poll_s` above 0:
    it polls.
    """

    def __init__(self, root: Path, poll_s: float) -> None:
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._pidfds: dict[int, int | None] = {}
        self._observer: Any = None
        self._folders: list[Path] = []
        self._times: list[int] = []
        self._watch_at = 0.0
        is_far = is_network(file_system_type(root))
        self.quiet_s = poll_s or (NETWORK_S if is_far else QUIET_S)
        self._is_poll = bool(poll_s) or is_far
        self._old_wakeup = -1
        if threading.current_thread() is threading.main_thread():
            self._old_wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)

    def watch_soon(self, folders: Iterable[Path]) -> None:
        """Ring for every file that is published in these folders from now on; inotify is asked only
        in a while.
        """
        if not self._is_poll:
            self._folders, self._watch_at = list(folders), time.monotonic() + EARLY_S
            self._has_changed()

    def _has_changed(self) -> bool:
        known, self._times = self._times, []
        for folder in self._folders:
            with contextlib.suppress(OSError):
                self._times.append(os.stat(folder).st_mtime_ns)
        return known != self._times

    def watch(self, folders: Iterable[Path]) -> None:
        """Ring for every file that is published in these folders from now on, where inotify can
        tell.
        """
        if self._is_poll:
            return
        import logging

        from watchdog.events import (
            FileCreatedEvent,
            FileMovedEvent,
            FileSystemEvent,
            FileSystemEventHandler,
        )
        from watchdog.observers import Observer

        bell = self
        logging.getLogger("watchdog").addHandler(
            logging.NullHandler()
        )  # it warns of events while it is closed

        class Handler(FileSystemEventHandler):
            def on_any_event(self, event: FileSystemEvent) -> None:  # noqa: ARG002
                bell.ring()

        try:
            observer = Observer()
            for folder in folders:
                observer.schedule(
                    Handler(), str(folder), event_filter=[FileCreatedEvent, FileMovedEvent]
                )
            observer.start()
        except (OSError, RuntimeError):  # no inotify instance, watch or thread left: a poll will do
            return
        self._observer = observer

    @property
    def has_observer(self) -> bool:
        return self._observer is not None

    def ring(self) -> None:
        """Wake the waiter; from any thread."""
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._writer, b"!")

    def wait(self, timeout_s: float, pids: Iterable[int]) -> None:
        """Sleep until something happens, one of these processes ends, or the time is over; or less
        than that.
        """
        timeout_s = min(timeout_s, LONGEST_S)
        pids, until = set(pids), time.monotonic() + timeout_s
        while self._folders:
            now = time.monotonic()
            if now >= self._watch_at:
                folders, self._folders = self._folders, []
                return self.watch(folders)
            if (
                now >= until
                or self._sleep(min(EARLY_LOOK_S, until - now), pids)
                or self._has_changed()
            ):
                return None
        self._sleep(timeout_s, pids)
        return None

    def _sleep(self, timeout_s: float, pids: set[int]) -> bool:
        """Whether anything but time woke it."""
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        for pid in self._pidfds.keys() - pids:
            self._drop(pid)
        for pid in pids:
            fd = self._pidfd(pid)
            if fd is None:
                timeout_s = min(timeout_s, BLIND_S)
            else:
                poll.register(fd, select.POLLIN)
        woken = bool(poll.poll(max(timeout_s, 0) * 1000))
        with contextlib.suppress(BlockingIOError):
            while os.read(self._reader, 4096):
                pass
        return woken

    def _pidfd(self, pid: int) -> int | None:
        if pid not in self._pidfds:
            self._pidfds[pid] = None
            with contextlib.suppress(OSError, AttributeError):
                self._pidfds[pid] = os.pidfd_open(pid)
        return self._pidfds[pid]

    def _drop(self, pid: int) -> None:
        fd = self._pidfds.pop(pid)
        if fd is not None:
            os.close(fd)

    def close(self) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(self._old_wakeup)
        if self._observer is not None:
            self._observer.stop()
            self._observer.join()
        for pid in list(self._pidfds):
            self._drop(pid)
        os.close(self._reader)
        os.close(self._writer)
