"""Finding and killing what an attempt started, whatever became of its process group.

A worker and all that it starts bear a mark in their environment: `<run id>.<folder>/<attempt>`,
where the folder is that of the spool, as device and inode. It is there since a copy of a spool has
attempts with the same names.

Some programs have no environment that others can read: one that shows a title of its own in ps
(setproctitle, as the processes of vLLM do) writes it over the memory in which the kernel looks for
the environment. They are known by the log of their attempt, which stdout or stderr still leads to.
What has neither is not found: a program with a title that redirected both.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Container, Iterator
from pathlib import Path

from gpuspool.spool.layout import parse_log
from gpuspool.spool.open_folder import folder_id

# The environment variable that holds the mark.
MARK = "GPUSPOOL_ATTEMPT"


def run_mark(run_id: str, folder: str) -> str:
    """The part of the mark that all attempts of the run in this very spool folder share.

    folder: the spool, as `open_folder.folder_id` tells it.
    """
    return f"{run_id}.{folder}"


def is_marked(run: str, attempt: str) -> bool:
    """Whether this process was started as this attempt of a run, or bears no mark at all.

    What stands last in the environment is its own; marks of runs around it stand before.
    """
    marks = os.environ.get(MARK, "").split()
    return not marks or marks[-1] == f"{run}/{attempt}"


def mark_of(run: str, attempt: str) -> str:
    """What one attempt finds in its environment; `run` is what `run_mark` gave.

    That is its own mark behind those of this process: a run that a task of another run started
    belongs to that task, and must end with it.
    """
    outer = os.environ.get(MARK, "").split()
    return " ".join([*outer, f"{run}/{attempt}"])


def kill_marked(marked_run: str, attempts: Container[str], spare: Container[int] = ()) -> int:
    """SIGKILL what these attempts of a run started, but for the spared pids; returns how many.

    It finds what a job started in a session of its own, which no process group reaches.
    """
    count = 0
    for pid in _pids():
        if pid not in spare and _is_marked(pid, marked_run, attempts):
            count += 1
            _kill(pid)
    return count


def kill_descendants(pid: int) -> int:
    """SIGKILL the children of a process, and theirs, with any environment; returns how many."""
    parents: dict[int, int] = {}
    for child in _pids():
        with contextlib.suppress(OSError):
            stat = Path(f"/proc/{child}/stat").read_bytes()
            parents[child] = int(stat.rpartition(b")")[2].split()[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    for child in found - {pid}:
        _kill(child)
    return len(found) - 1


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _kill(pid: int) -> None:
    """SIGKILL; a process that has gone already is fine, and so is one of another user."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def _is_marked(pid: int, marked_run: str, attempts: Container[str]) -> bool:
    """Whether a process of this user belongs to one of these attempts of a run.

    What is gone has nothing to tell, and what others may not look into is not ours.
    """
    try:
        if os.stat(f"/proc/{pid}").st_uid != os.geteuid():
            return False
        marks = _marks(pid, marked_run)
        return any(run == marked_run and attempt in attempts for run, attempt in marks)
    except OSError:
        return False


def _marks(pid: int, marked_run: str) -> Iterator[tuple[str, str]]:
    """(run, attempt) for every attempt that a process belongs to. Raises OSError.

    marked_run: the run that is asked about; an attempt that a log tells of is said to be of it if
    the log lies in its spool.
    """
    begin = f"{MARK}=".encode()
    for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
        if entry.startswith(begin):
            for mark in entry[len(begin) :].decode(errors="replace").split():
                run, _, attempt = mark.partition("/")
                yield run, attempt
    for stream in (1, 2):
        # A process may have closed one of them, and a log may have been removed.
        with contextlib.suppress(OSError):
            log = Path(os.readlink(f"/proc/{pid}/fd/{stream}"))
            logged = parse_log(log.name)
            if logged and marked_run.endswith(f".{folder_id(log.parent.parent)}"):
                yield marked_run, logged
