"""The job of the row "soak": `job.work`, and the deed that a payload's "do" names.

Deeds whose names end in "-once" leave a mark in `--arg marks=FOLDER` first, and are not done if it
is there. What is leaked stays leaked as long as the worker lives.
"""

import ctypes
import os
import resource
import signal
import subprocess
import time
from pathlib import Path

# The worker's limit of descriptors, so that it runs out of them quickly.
DESCRIPTORS = 256
# How many bytes are asked for at a time.
PIECE = 16 << 20
LEAKED = []


def eat_memory():
    """Eat memory until the kernel kills this process."""
    while True:
        LEAKED.append(bytearray(os.urandom(4096)) * (PIECE // 4096))


def leak_descriptors():
    """Open descriptors until there are no more; raises that error."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
    while True:
        LEAKED.append(open(os.devnull, "rb"))  # noqa: SIM115 - that is the point


def leak_quietly():
    try:
        leak_descriptors()
    except OSError:
        return


def crash():
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.kill(os.getpid(), signal.SIGSEGV)


def say_no():
    raise ValueError("this task cannot be done")


def start_child(**settings):
    LEAKED.append(subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL, **settings))


DEEDS = {
    "oom": eat_memory,
    "descriptors": leak_descriptors,
    "crash": crash,
    "quit": lambda: os._exit(3),
    "raise": say_no,
    "hang": lambda: time.sleep(1000),
    # A PyDLL keeps the interpreter's lock in its calls.
    "hang-in-c": lambda: ctypes.PyDLL(None).sleep(1000),
    "child": start_child,
    "session": lambda: start_child(start_new_session=True),
    "daemon": lambda: subprocess.run(
        ["sh", "-c", "setsid sleep 1000 &"], check=True, stdin=subprocess.DEVNULL
    ),
}


def work(task, ctx):
    """Do the deed, then the work; "descriptors-late" is done after it."""
    # It lies beside this file.
    from job import work as plain

    deed, once, _ = task.payload.get("do", "").partition("-once")
    mark = Path(ctx.args["marks"], str(task.index))
    is_due = not (once and mark.exists())
    if once:
        mark.touch()
    if is_due and deed in DEEDS:
        DEEDS[deed]()
    result = plain(task, ctx)
    if is_due and deed == "descriptors-late":
        leak_quietly()
    return result
