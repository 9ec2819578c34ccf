"""Turns on a device that several processes use: one of them may ask for it alone.

Out of memory is the fault of a task only if nobody else was on its device at that moment. So a
worker that is to find out asks for a turn. The others finish the call that they are in, give cached
memory back, and wait before their next call until the turn is over. What they hold for good, their
models, stays on the device.

Two locks for each device say all of this:

- *the room*: shared while a process runs calls; exclusive during a turn;
- *the gate*: exclusive for whoever waits for a turn or has it. Before each call a process looks
  whether the gate is free, which is one system call. If it is not, the process leaves the room and
  waits at the gate. So no turn waits for ever because others come and go.

The kernel gives both back when a process ends, however it ends. They are locks of the process
(POSIX), which children that the job forks do not share. Their file is on this host, in /dev/shm,
since devices are: it is empty, and named by user and device. Where there is no such folder there
are no turns: then a task that is run once more is alone in its own process only.

Called by the executor, in the main thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from gpuspool.spool.publish import remove_quietly
from gpuspool.worker.devices import release_memory

# Where the files of locks are: gone with the host, and never on a network.
FOLDER = Path("/dev/shm")
# The bytes of a file that the two locks are on.
_GATE = 0
_ROOM = 1
# A look for the end of somebody's call, or turn, is one system call; calls on devices take longer.
PAUSE_S = 0.02


class Turns:
    """This process's place on its devices."""

    def __init__(self, devices: str, folder: Path = FOLDER) -> None:
        """devices: tokens, joined by commas; "" for a process without any."""
        self._locks: list[int] = []
        self._paths: list[Path] = []
        # Whether this process is in the room, so that others must wait for it.
        self._is_in = False
        for token in sorted(set(filter(None, devices.split(",")))):
            digest = hashlib.sha256(token.encode()).hexdigest()[:16]
            path = folder / f"gpuspool-{os.getuid()}-{digest}"
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            try:
                self._locks.append(os.open(path, flags, 0o600))
            except OSError:
                self._give_up()
                return
            self._paths.append(path)

    def enter(self, is_over: Callable[[], bool]) -> bool:
        """Before a call: be in the room, and wait first while somebody has or wants a turn.

        False: there is somebody, and waiting became vain (`is_over`). Without a device it is true
        at once.
        """
        while self._locks:
            if self._is_gate_free():
                if self._is_in or self._take_all(_ROOM, fcntl.LOCK_SH):
                    self._is_in = bool(self._locks)
                    return True
            else:
                self.leave()
            if is_over():
                return False
            time.sleep(PAUSE_S)
        return True

    def leave(self) -> None:
        """There is nothing to run for a while: nobody shall wait for this process.

        Memory that nobody uses is given back: others on the device may need it.
        """
        if not self._locks or not self._is_in:
            return
        self._is_in = False
        release_memory()
        self._drop(_ROOM)

    def begin(self, is_over: Callable[[], bool]) -> bool:
        """Wait until no other process is in the room. To be followed by `end`.

        False: waiting became vain before that. Without a device nobody else is there.
        """
        if not self._locks:
            return True
        self._is_in = False
        self._drop(_ROOM)
        for lock in (_GATE, _ROOM):
            while self._locks and not self._take_all(lock, fcntl.LOCK_EX):
                if is_over():
                    return False
                time.sleep(PAUSE_S)
        return True

    def end(self) -> None:
        """The turn is over, or is not wanted any more."""
        self._drop(_ROOM)
        self._drop(_GATE)

    def close(self) -> None:
        """Nothing is run any more. The last process on the devices removes the files.

        One that has opened them meanwhile goes on with files that have no name, and so out of step
        with those that come later: a turn may then be had beside others, which is as before there
        were turns.
        """
        self.leave()
        if self._locks and all(self._take_all(lock, fcntl.LOCK_EX) for lock in (_GATE, _ROOM)):
            for path in self._paths:
                remove_quietly(path)
        for descriptor in self._locks:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._give_up()

    def _is_gate_free(self) -> bool:
        """A look that leaves nothing behind."""
        if not self._take_all(_GATE, fcntl.LOCK_SH):
            return False
        self._drop(_GATE)
        return True

    def _take_all(self, place: int, how: int) -> bool:
        """Take a lock on all devices, or on none."""
        for descriptor in self._locks:
            try:
                fcntl.lockf(descriptor, how | fcntl.LOCK_NB, 1, place)
            except BlockingIOError:
                self._drop(place)
                return False
            except OSError:
                # No locks here, or the job has closed our descriptors: it is as if there were no
                # device that others use.
                self._give_up()
                return True
        return True

    def _drop(self, place: int) -> None:
        for descriptor in self._locks:
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, place)
            except OSError:
                self._give_up()
                return

    def _give_up(self) -> None:
        self._locks = []
        self._is_in = False
