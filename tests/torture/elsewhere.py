"""The first process of another host, or of an odd environment. hosts.py starts this script."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

MS_BIND, PR_SET_CHILD_SUBREAPER = 0x1000, 36


def be_host(spool: str, lock: str, *command: str) -> int:
    """Be the first process of that host: run the command and reap whatever ends.

    Returns the command's exit code.
    """
    socket.sethostname("another-host")
    target = os.fsencode(Path(spool, "orchestrator.lock"))
    if ctypes.CDLL(None, use_errno=True).mount(os.fsencode(lock), target, None, MS_BIND, None):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), spool)
    first, code = subprocess.Popen(command).pid, 0
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.wait()
            code = os.waitstatus_to_exitcode(status) if pid == first else code
    return code & 0xFF


def be_reaper(*command: str) -> int:
    """Run the command, then stay; orphans become children of this process and remain zombies."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    subprocess.Popen(command).wait()
    while True:
        signal.pause()


if __name__ == "__main__":
    sys.exit({"host": be_host, "reaper": be_reaper}[sys.argv[1]](*sys.argv[2:]))
