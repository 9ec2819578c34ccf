"""Start a command, time it, and leave nothing of it behind.

Every process of a command carries BENCH_FOLDER in its environment, and so do its children, whatever
session they move to. By this mark the daemons of a peer, and nobody else's, are found and killed at
the end.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers import HERE

MARK = "BENCH_FOLDER"
POLL_S = 0.002
NOISE = ("GPUSPOOL_", "SLURM_", "CUDA_", "HIP_", "OMP_", "PYTHON", "RAY_", "DASK_", "HQ_")


@dataclass(frozen=True)
class Ended:
    """A command that ended. seconds: wall; cpu_s: its own and its reaped children's; peak_mb: its
    largest process's.
    """

    code: int
    seconds: float
    cpu_s: float
    peak_mb: float
    out: str
    err: str

    @property
    def last_line(self) -> str:
        return self.out.strip().rpartition("\n")[2]

    def complaint(self) -> str:
        """The end of what the command wrote, in one line."""
        return " ".join((self.err.strip() or self.out.strip())[-240:].split())


def environment(folder: Path, bin_folder: str) -> dict[str, str]:
    """A clean one: no GPU, no variable that changes what a peer does, adapters importable
    everywhere.

    The command's own folder comes first on PATH, as in an activated venv.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(NOISE)}
    ours = {
        MARK: str(folder),
        "PYTHONPATH": str(HERE / "adapters"),
        "HOME": str(folder),
        "LC_ALL": "C.UTF-8",
    }
    return {
        **kept,
        **ours,
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "CUDA_VISIBLE_DEVICES": "",
        "NO_COLOR": "1",
    }


class Running:
    """A command in a session of its own, its output in files beside the folder.

    variables: of its environment, beside those of `environment` or in their place.
    """

    def __init__(self, argv: Sequence[str], folder: Path, **variables: str) -> None:
        self.folder = folder
        self._stem = folder / "said"
        with open(f"{self._stem}.out", "wb") as out, open(f"{self._stem}.err", "wb") as err:
            self.began = time.perf_counter()
            self._process = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=folder,
                env=environment(folder, os.path.dirname(argv[0])) | variables,
                start_new_session=True,
            )
        self.pid = self._process.pid

    def wait(self, patience_s: float) -> Ended | None:
        """How it ended, or None once the patience is over. Nothing of it is left."""
        pidfd = os.pidfd_open(self.pid)
        try:
            select.select([pidfd], [], [], max(0.0, self.began + patience_s - time.perf_counter()))
            return self._reap(os.WNOHANG)
        finally:
            os.close(pidfd)
            self.kill_and_reap()

    def seconds_so_far(self) -> float:
        """How long ago it was started."""
        return time.perf_counter() - self.began

    def is_over(self) -> bool:
        """Whether it has ended. This does not reap it."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _reap(self, flags: int) -> Ended | None:
        pid, status, usage = os.wait4(self.pid, flags)
        seconds = time.perf_counter() - self.began
        if pid == 0:
            return None
        code = self._process.returncode = os.waitstatus_to_exitcode(status)
        out, err = (
            Path(f"{self._stem}.{kind}").read_text(errors="replace") for kind in ("out", "err")
        )
        return Ended(
            code, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, out, err
        )

    def said(self) -> str:
        """The end of what it wrote to stderr so far, in one line."""
        return " ".join(Path(f"{self._stem}.err").read_text(errors="replace")[-240:].split())

    def kill_and_reap(self) -> None:
        """Kill all its processes at once, as a power cut would."""
        kill_marked(self.folder)
        with contextlib.suppress(ChildProcessError):
            self._reap(0)


def marked(folder: Path, variable: str = MARK) -> list[int]:
    """The live processes that carry this folder's mark, in this variable."""
    mark = f"{variable}={folder}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError):
            if (
                mark in Path("/proc", entry, "environ").read_bytes().split(b"\0")
                and _state(int(entry)) not in "ZX"
            ):
                found.append(int(entry))
    return found


def kill_marked(folder: Path, variable: str = MARK, patience_s: float = math.inf) -> list[int]:
    """SIGKILL every process that carries this folder's mark, until none is found or the patience is
    over; returns what is still there then.
    """
    until = time.monotonic() + patience_s
    while pids := marked(folder, variable):
        if time.monotonic() > until:
            break
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_S)
    return pids


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def run(argv: Sequence[str], folder: Path, patience_s: float, **variables: str) -> Ended | None:
    """Run a whole command; None if it did not end in time."""
    return Running(argv, folder, **variables).wait(patience_s)


def wait_until(condition: Callable[[], bool], patience_s: float, poll_s: float = POLL_S) -> bool:
    """Wait for a condition; returns whether it became true in time."""
    deadline = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(poll_s)
    return True


@contextlib.contextmanager
def fresh(folder: Path) -> Iterator[Path]:
    """An empty folder. Afterwards it is removed, and what bears its mark is killed."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        kill_marked(folder)
        shutil.rmtree(folder, ignore_errors=True)
