"""Starting and ending the processes of ranks on this host.

A worker is a session and process group of its own: a Ctrl-C at the terminal reaches only the
parent, and killing it takes the job's children (data loaders, commands) along. Its device variables
stand in its environment before its interpreter starts; its output goes to the attempt's log.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from gpuspool.orchestrator.plan.devices import environment_for, near_cpus
from gpuspool.spool.codec import seal_pretty
from gpuspool.spool.identity import myself
from gpuspool.spool.layout import attempt_name
from gpuspool.spool.processes import MARK, mark_of, run_mark
from gpuspool.spool.publish import FILE_MODE, publish
from gpuspool.spool.records import Intent, Job, Options
from gpuspool.spool.view import View

OOM_SCORE = 300  # as if a worker had 3/10 of the memory more than it has
RECORDED = (
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "HIP_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "SLURM_JOB_ID",
)


class Child:
    """One worker that this process started."""

    def __init__(self, attempt: str, process: subprocess.Popen[bytes]) -> None:
        self.attempt = attempt
        self.pid = process.pid
        self._process = process

    def exit_code(self) -> int | None:
        """None while it runs; else -N for signal N. Its group is killed before its pid is given
        back.
        """
        if self._process.returncode is None:
            with contextlib.suppress(
                ChildProcessError
            ):  # where SIGCHLD is ignored the kernel has reaped it
                if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                    return None
                kill_group(self.pid)
        return self._process.wait()


def open_log(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, FILE_MODE)


def _offer_to_oom_killer(pid: int) -> None:
    """Where memory runs out, a worker shall die rather than the orchestrator, which restarts it and
    is small.
    """
    path = Path(f"/proc/{pid}/oom_score_adj")
    with contextlib.suppress(OSError, ValueError):
        path.write_text(str(min(int(path.read_text()) + OOM_SCORE, 1000)))


def kill_group(pid: int) -> None:
    """SIGKILL the whole group of a worker; that it is gone already is fine."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def launch(
    view: View,
    rank: int,
    epoch: int,
    tokens: str,
    job: Job,
    options: Options,
    world_size: int,
    **variables: str,
) -> Child:
    """Publish the intent, then start the process, with `variables` added to its environment. Raises
    OSError.
    """
    number = view.next_number(rank)
    attempt = attempt_name(rank, number)
    argv = [
        sys.executable,
        "-P",
        "-m",
        "gpuspool.worker",
        "--spool",
        str(view.layout.root),
        "--rank",
        str(rank),
    ]
    argv += ["--attempt", str(number)]
    mark = {MARK: mark_of(run_mark(view.layout.root, view.run.id), attempt)}
    environment = {
        **os.environ,
        **environment_for(tokens, world_size, os.environ),
        **mark,
        **variables,
    }
    intent = Intent(
        attempt=attempt,
        epoch=epoch,
        device=tokens or "cpu",
        world_size=world_size,
        argv=argv,
        parent=myself(),
        job=job,
        options=options,
        environment={name: environment[name] for name in RECORDED if name in environment},
        at=time.time(),
    )
    if not publish(view.layout.intent(attempt), seal_pretty(intent)):
        raise FileExistsError(f"{attempt} was started by somebody else just now")
    folder = view.run.submit_dir if Path(view.run.submit_dir).is_dir() else str(view.layout.root)
    with open(view.layout.log(attempt), "ab", buffering=0, opener=open_log) as log:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
    _offer_to_oom_killer(process.pid)
    cpus = near_cpus(tokens)
    if cpus:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(process.pid, cpus)
    return Child(attempt, process)
