"""What wakes the loop: a published file, the end of a process, a signal, or time. It decides
nothing.

One pipe carries published files and signals, a pidfd for each process tells of its end, so the loop
sleeps in one poll(2). A ring may be missed, and may come for nothing: whenever the loop wakes it
looks at everything, and it wakes now and then without a ring.

Published files are heard by inotify, through watchdog; this is the only file that imports it. On
network file systems inotify sees nothing of other hosts, so there the bell is a poll: every wait
ends after `quiet_s`. A run of a few tasks is over before watchdog would have started, so at first
the times of the folders are looked at instead.
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

# How long a wait without an event lasts where inotify works: progress, deadlines and what no event
# tells of can wait for a second.
QUIET_S = 1.0

# The same span on a network, where each look costs the server a listing of some folders.
NETWORK_S = 2.0

# Watchdog is not started before this: importing it and starting its threads takes a twentieth of a
# second of CPU, which a short run should not pay for. On a slow or busy machine even two tasks that
# do nothing take most of a second.
EARLY_S = 1.0

# Until then the times of the folders are looked at this often at first. Two files that are
# published within one tick of the kernel's clock may ring once; what the first ring showed late is
# seen then.
EARLY_LOOK_S = 0.003

# Later they are looked at more rarely: what is seen late by this part of the time that has passed
# makes no run noticeably longer, and all looks together cost less than watchdog.
EARLY_LATENESS = 0.02

# The longest wait that is passed on: poll(2) counts milliseconds in an int.
LONGEST_S = 86400.0

# Where the kernel has no pidfd (before 5.3), the end of a process is seen this late at most.
BLIND_S = 0.2

# How much is read from the pipe at once. Each ring is one byte; all that wait are one ring.
PIPE_BYTES = 4096


class Bell:
    """Wakes the thread that waits on it, until it is closed.

    `root` is the spool, by whose file system it is chosen how to hear. With `poll_s` above 0 the
    bell polls. `quiet_s` is the longest wait that makes sense where no observer tells of published
    files.
    """

    def __init__(self, root: Path, poll_s: float) -> None:
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._pidfds: dict[int, int | None] = {}
        self._observer: Any = None
        # The folders whose times are looked at until an observer watches them; then none.
        self._folders: list[Path] = []
        self._times: list[int] = []
        self._began = 0.0
        is_far = is_network(file_system_type(root))
        self.quiet_s = poll_s or (NETWORK_S if is_far else QUIET_S)
        self._is_poll = poll_s > 0 or is_far
        self._old_wakeup = -1
        if _is_main_thread():
            self._old_wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)

    def watch_soon(self, folders: Iterable[Path]) -> None:
        """Ring for every file that is published in these folders from now on.

        For EARLY_S by looking at the folders' times while somebody waits, then by inotify.
        """
        if not self._is_poll:
            self._folders = list(folders)
            self._began = time.monotonic()
            self._has_changed()

    def _has_changed(self) -> bool:
        """Whether a folder has changed since the last call."""
        known = self._times
        self._times = []
        for folder in self._folders:
            with contextlib.suppress(OSError):
                self._times.append(os.stat(folder).st_mtime_ns)
        return known != self._times

    def watch(self, folders: Iterable[Path]) -> None:
        """Ring for every file that is published in these folders from now on, by inotify.

        Where no inotify instance, watch or thread is left the bell stays a poll, and `has_observer`
        stays False.
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
        # Watchdog logs a warning for events that come while it is closed.
        logging.getLogger("watchdog").addHandler(logging.NullHandler())

        class Handler(FileSystemEventHandler):
            def on_any_event(self, event: FileSystemEvent) -> None:  # noqa: ARG002
                bell.ring()

        wanted = [FileCreatedEvent, FileMovedEvent]
        try:
            observer = Observer()
            for folder in folders:
                observer.schedule(Handler(), str(folder), event_filter=wanted)
            observer.start()
        except (OSError, RuntimeError):
            return
        self._observer = observer

    @property
    def has_observer(self) -> bool:
        """Whether inotify tells of published files."""
        return self._observer is not None

    def ring(self) -> None:
        """Wake the waiting thread; may be called from any thread."""
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._writer, b"!")

    def wait(self, timeout_s: float, pids: Iterable[int]) -> None:
        """Sleep until something happens, one of these processes ends, or the time is over.

        It may return sooner than that. It always does when watching by inotify begins, so that the
        caller looks for what came in between.
        """
        timeout_s = min(timeout_s, LONGEST_S)
        if self._folders:
            self._wait_early(timeout_s, set(pids))
        else:
            self._sleep(timeout_s, set(pids))

    def _wait_early(self, timeout_s: float, pids: set[int]) -> None:
        """Wait as `wait` does, without an observer; make one once it is time for that."""
        # When the time for inotify has come, this returns even though nothing rang. A file may have
        # been published after the last look at the folders and before the observer began to watch
        # them; nobody would ever ring for it. The caller's next look finds it.
        until = time.monotonic() + timeout_s
        while True:
            now = time.monotonic()
            if now >= self._began + EARLY_S:
                folders = self._folders
                self._folders = []
                self.watch(folders)
                return
            look_s = max(EARLY_LOOK_S, EARLY_LATENESS * (now - self._began))
            if now >= until or self._sleep(min(look_s, until - now), pids):
                return
            if self._has_changed():
                return

    def _sleep(self, timeout_s: float, pids: set[int]) -> bool:
        """Sleep in poll(2); whether anything but time ended it. Rings that wait are used up."""
        # A pidfd is kept from one sleep to the next, which spares two system calls for each process
        # at each look. It must go once nobody asks for its process any more: each one takes up a
        # descriptor, and a run may start thousands of attempts.
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
        is_woken = bool(poll.poll(max(timeout_s, 0) * 1000))
        with contextlib.suppress(BlockingIOError):
            while os.read(self._reader, PIPE_BYTES):
                pass
        return is_woken

    def _pidfd(self, pid: int) -> int | None:
        """The descriptor that tells of the end of a process; None where there can be none."""
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
        """Stop hearing, and give back what was there for signals before."""
        if _is_main_thread():
            signal.set_wakeup_fd(self._old_wakeup)
        if self._observer is not None:
            self._observer.stop()
            self._observer.join()
        for pid in list(self._pidfds):
            self._drop(pid)
        os.close(self._reader)
        os.close(self._writer)


def _is_main_thread() -> bool:
    """Whether this thread may set handlers and wake-ups for signals."""
    return threading.current_thread() is threading.main_thread()
