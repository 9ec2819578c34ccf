"""The tasks of all benches, the same for every system that runs Python. Imported in each peer's own
interpreter.
"""

import os
import time

_trace = {}


def lines(folder):
    """The tasks, "INDEX SECONDS" each."""
    with open(os.path.join(folder, "lines")) as file:
        return file.read().splitlines()


def noop(_line):
    """Nothing: what is left is what a system costs."""
    return None


def sleeping(line):
    """Sleep as long as the line says, and leave a trace."""
    index, seconds = line.split()
    start = time.time()
    time.sleep(float(seconds))
    note(index, start)


def spinning(line):
    """Keep a core busy as long as the line says, and leave a trace."""
    index, seconds = line.split()
    start = time.time()
    until = start + float(seconds)
    while time.time() < until:
        pass
    note(index, start)


def note(index, start):
    """Leave a trace: what was done, from `start` until now."""
    end, pid = time.time(), os.getpid()
    if pid not in _trace:
        path = os.path.join(os.environ["BENCH_FOLDER"], "trace", str(pid))
        _trace[pid] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    os.write(_trace[pid], f"{index} {start:.6f} {end:.6f} {pid}\n".encode())


def of(bench):
    """The task of a bench."""
    if bench == "overhead":
        return spinning
    return sleeping if bench in ("skew", "recovery", "rank_loss") else noop
