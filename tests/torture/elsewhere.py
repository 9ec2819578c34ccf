"""The first process of another host, or of an odd environment.

hosts.py and machines.py start this script.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

BOOT_ID = "/proc/sys/kernel/random/boot_id"
MS_BIND, PR_SET_CHILD_SUBREAPER = 0x1000, 36


def be_host(spool: str, lock: str, *command: str) -> int:
    """Be the first process of that host: run the command and reap whatever ends.

    Returns the command's exit code.
    """
    socket.sethostname("another-host")
    bind(lock, Path(spool, "orchestrator.lock"))
    first, code = subprocess.Popen(command).pid, 0
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.wait()
            code = os.waitstatus_to_exitcode(status) if pid == first else code
    return code & 0xFF


def be_machine(name: str, boot_id: str, lock: str, spool: str) -> int:
    """Be the first process of a machine, until the input ends; start the commands that it tells.

    lock: the file that is the spool's lock on this machine alone, "" where there is none. Each line
    of the input is a JSON object: `words`, `env` to add, `cwd`, and `stem`, whose `.out` and `.err`
    get what the command says, `.pid` its number here, and `.code` its exit code.
    """
    socket.sethostname(name)
    bind(boot_id, BOOT_ID)
    if lock:
        bind(lock, Path(spool, "orchestrator.lock"))
    news, wake = os.pipe()
    for fd in (news, wake):
        os.set_blocking(fd, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    print("up", flush=True)
    stems: dict[int, str] = {}
    while True:
        ready, _, _ = select.select([0, news], [], [])
        if 0 in ready:
            line = sys.stdin.buffer.raw.readline()
            if not line:
                return 0
            pid, stem = start(**json.loads(line))
            stems[pid] = stem
        with contextlib.suppress(BlockingIOError):
            os.read(news, 1000)
        for pid, status in ended():
            if pid in stems:
                write(f"{stems.pop(pid)}.code", f"{os.waitstatus_to_exitcode(status)}\n")


def start(words: list[str], env: dict[str, str], cwd: str, stem: str) -> tuple[int, str]:
    with open(f"{stem}.out", "wb") as out, open(f"{stem}.err", "wb") as err:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            cwd=cwd,
            env={**os.environ, **env},
        )
    # Nobody waits for it by this object.
    process.returncode = 0
    write(f"{stem}.pid", f"{process.pid}\n")
    return process.pid, stem


def ended() -> Iterator[tuple[int, int]]:
    """(pid, status) of each child that has ended, and of each orphan."""
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            yield pid, status


def write(path: str, text: str) -> None:
    """Write a file that is there whole, or not at all."""
    Path(f"{path}.new").write_text(text)
    os.rename(f"{path}.new", path)


def bind(source: str, target: str | Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(os.fsencode(source), os.fsencode(target), None, MS_BIND, None):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), os.fspath(target))


def be_reaper(*command: str) -> int:
    """Run the command, then stay; orphans become children of this process and remain zombies."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    subprocess.Popen(command).wait()
    while True:
        signal.pause()


if __name__ == "__main__":
    roles = {"host": be_host, "machine": be_machine, "reaper": be_reaper}
    sys.exit(roles[sys.argv[1]](*sys.argv[2:]))
