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


def is_this_process(run: str, attempt: str) -> bool:
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
        if pid not in spare and _belongs_to(pid, marked_run, attempts):
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


def _belongs_to(pid: int, marked_run: str, attempts: Container[str]) -> bool:
    """Whether a process of this user belongs to one of these attempts of a run.

    What is gone has nothing to tell, and what others may not look into is not ours.
    """
    try:
        if os.stat(f"/proc/{pid}").st_uid != os.geteuid():
            return False
        marks = _marks(pid)
        if any(run == marked_run and attempt in attempts for run, attempt in marks):
            return True
        return any(_is_of_run(log, marked_run) for log in _logs(pid, attempts))
    except OSError:
        return False


def _marks(pid: int) -> Iterator[tuple[str, str]]:
    """(run, attempt) for every mark in the environment of a process. Raises OSError."""
    begin = f"{MARK}=".encode()
    for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
        if entry.startswith(begin):
            for mark in entry[len(begin) :].decode(errors="replace").split():
                run, _, attempt = mark.partition("/")
                yield run, attempt


def _logs(pid: int, attempts: Container[str]) -> Iterator[Path]:
    """The files with names of logs of these attempts, of any run, that a process writes to."""
    for stream in (1, 2):
        # A process may have closed one of them.
        with contextlib.suppress(OSError):
            log = Path(os.readlink(f"/proc/{pid}/fd/{stream}"))
            if parse_log(log.name) in attempts:
                yield log


# All runs name their attempts alike, so the folder must be looked at, to tell which run it is. That
# may be on a file system whose server is gone, and then whoever looks hangs and cannot even be
# killed. So only a log whose name says that it may be ours is looked at.
def _is_of_run(log: Path, marked_run: str) -> bool:
    """Whether a log lies in the spool of a run."""
    # It may have been removed.
    with contextlib.suppress(OSError):
        return marked_run.endswith(f".{folder_id(log.parent.parent)}")
    return False
