"""`gpuspool` as a forked child of a warm process, so that a test pays no start of an interpreter.

Half of what a short command costs is the start of an interpreter and its imports. The warm process
has done both. For each command it forks a child, which gets the descriptors, the folder, the
environment and the words of the command, and calls `main` as the installed program does. The child
is a real process: signals reach it, it stays a zombie until it is waited for, it ends as an
interpreter ends, and the workers that it starts are executed.

What an interpreter reads when it starts cannot be given to it later: `start` returns None where a
command differs there. What /proc shows as a child's environment and words are the warm process's.
conftest.py names the tests that always execute the program. With GPUSPOOL_TESTS_EXECUTE=1 all do.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROGRAM = Path(sys.executable).with_name("gpuspool")
# Read by an interpreter, its libraries or the dynamic loader when they start.
READ_AT_THE_START = ("PYTHON", "LD_", "LC_", "LANG", "GLIBC_", "MALLOC_", "TZ")
# The environment of the warm processes. A command's must not differ in what a start reads.
AT_THE_START = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("PYTHON", "PYTEST_", "GPUSPOOL_"))
}
# A request is one datagram, and the kernel takes those of some 200 KB.
MOST_BYTES = 100_000
# What else a process inherits and a test may have changed: lines of /proc/PID/status, and files
# beside it.
INHERITED = ("Umask:", "Uid:", "Gid:", "Groups:", "NoNewPrivs:", "SigBlk:", "SigIgn:", "Cpus_all")
INHERITED_FILES = ("limits", "cgroup", "oom_score_adj")


class Child:
    """A command that was forked, with the part of a Popen that the tests use."""

    def __init__(self, server: _Server, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._server = server
        self._pidfd = os.pidfd_open(pid)

    def has_ended(self) -> bool:
        """Whether it has; this reaps nobody."""
        return self.returncode is not None or self._ends_within(0)

    def poll(self) -> int | None:
        if self.returncode is None and self._ends_within(0):
            self.returncode = self._server.ask({"reap": self.pid})
            os.close(self._pidfd)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self._ends_within(timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired("gpuspool", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        # It keeps its pid until it is reaped, so no other process can be hit.
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _ends_within(self, seconds: float | None) -> bool:
        return bool(select.select([self._pidfd], [], [], seconds)[0])


class _Server:
    """The warm process, as the tests' process sees it. It ends when its socket is closed."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=AT_THE_START,
            )

    def ask(self, request: Mapping[str, Any], streams: tuple[int, ...] = ()) -> int:
        with self._turn:
            socket.send_fds(self._socket, [json.dumps(request).encode()], streams)
            return int(self._socket.recv(20))

    def close(self) -> None:
        self._socket.close()
        self.process.wait()


# The warm processes, by what their children inherit.
_servers: dict[str, _Server] = {}


def start(
    words: list[str], folder: Path, environment: Mapping[str, str], streams: tuple[int, int, int]
) -> Child | None:
    """Start `gpuspool`; None where it has to be executed.

    streams: the descriptors of its stdin, stdout and stderr, which are no terminals.
    """
    request = {"words": words, "folder": str(folder), "environment": dict(environment)}
    differing = {name for name, _ in environment.items() ^ AT_THE_START.items()}
    if (
        os.environ.get("GPUSPOOL_TESTS_EXECUTE")
        or len(json.dumps(request)) > MOST_BYTES
        or any(name.startswith(READ_AT_THE_START) for name in differing)
        # Where it is another one the program executes itself once more.
        or sys.getfilesystemencoding() != "utf-8"
    ):
        return None
    inherited = _inherited()
    if inherited not in _servers:
        _servers[inherited] = _Server()
    server = _servers[inherited]
    return Child(server, server.ask(request, streams))


def stop() -> None:
    """End the warm processes."""
    while _servers:
        _servers.popitem()[1].close()


def _inherited() -> str:
    """What a child of this process inherits, as far as a test may have changed it."""
    thread = Path("/proc/thread-self")
    lines = (thread / "status").read_text().splitlines()
    return "\n".join(
        [
            *(os.readlink(space) for space in sorted((thread / "ns").iterdir())),
            *((thread / name).read_text() for name in INHERITED_FILES),
            *(line for line in lines if line.startswith(INHERITED)),
            f"{os.getpgrp()} {os.getsid(0)} {os.getpriority(os.PRIO_PROCESS, 0)}",
        ]
    )


# From here on: what happens in the warm process and below it.


def _serve(channel: socket.socket) -> bool:
    """Answer requests until the tests are gone. Returns True in a child, ready to call `main`."""
    while True:
        body, streams, _, _ = socket.recv_fds(channel, MOST_BYTES, 3)
        if not body:
            return False
        request = json.loads(body)
        if "reap" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["reap"], 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                channel.close()
                _set_up(**request, streams=streams)
                return True
        for fd in streams:
            os.close(fd)
        channel.send(b"%d" % answer)


def _set_up(words: list[str], folder: str, environment: dict[str, str], streams: list[int]) -> None:
    """Give this process what exec(2) would have given it."""
    for number, fd in enumerate(streams):
        os.dup2(fd, number)
        os.close(fd)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [str(PROGRAM), *words]


if __name__ == "__main__":
    # As for the installed program, and not the folder of the tests.
    sys.path[0] = str(PROGRAM.parent)
    # What most verbs import late; test_imports.py checks that any of it may be the first.
    import gpuspool.orchestrator.api.reading
    import gpuspool.orchestrator.api.runs
    import gpuspool.orchestrator.api.submitting  # noqa: F401
    from gpuspool.orchestrator.cli.main import main

    if _serve(socket.socket(fileno=int(sys.argv[1]))):
        sys.exit(main())
