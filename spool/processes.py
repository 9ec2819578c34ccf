"""Finding and killing what an attempt started, whatever became of its process group.

A worker and all that it starts bear a mark in their environment: `<run id>.<folder>/<attempt>`,
where the folder is that of the spool, as device and inode. It is there since a copy of a spool has
attempts with the same names.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Container, Iterator
from pathlib import Path

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
    for pid, mark in _marked():
        run, _, attempt = mark.partition("/")
        if run == marked_run and attempt in attempts and pid not in spare:
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


def _marked() -> Iterator[tuple[int, str]]:
    """(pid, mark) for every mark of every process that this user may look into."""
    begin = f"{MARK}=".encode()
    for pid in _pids():
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{pid}").st_uid != os.geteuid():
                continue
            for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                if entry.startswith(begin):
                    for mark in entry[len(begin) :].decode(errors="replace").split():
                        yield pid, mark
