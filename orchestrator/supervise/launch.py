"""Starting and ending the processes of attempts on this host.

A worker leads a session and a process group of its own: a Ctrl-C at the terminal reaches only the
parent, and killing a worker takes the job's children (data loaders, commands) along. Its device
variables stand in its environment before its interpreter starts, since libraries read them when
they are imported. Its output goes to the attempt's log.

Called by `children.py` for the loop, and by the seed API's coordinator.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from gpuspool.orchestrator.plan.devices import CPU
from gpuspool.orchestrator.plan.encoding import interpreter
from gpuspool.orchestrator.plan.environment import environment_for, group_variables
from gpuspool.orchestrator.plan.nvml import cores_near
from gpuspool.orchestrator.plan.slots import Slot
from gpuspool.orchestrator.supervise.opinions import PATIENCE
from gpuspool.orchestrator.text.printable import recordable
from gpuspool.spool.codec import decode, seal_pretty
from gpuspool.spool.cores import usable_cores
from gpuspool.spool.errors import EXIT_UNSEEN, Damaged
from gpuspool.spool.identity import myself
from gpuspool.spool.layout import attempt_name
from gpuspool.spool.open_folder import folder_id, out_of
from gpuspool.spool.processes import MARK, mark_of, run_mark
from gpuspool.spool.publish import Owners, open_to_append, publish, read_bytes
from gpuspool.spool.records import Heartbeat, Intent, Job, Options
from gpuspool.spool.states import JobKind
from gpuspool.spool.trust import Trust
from gpuspool.spool.view import View

# Added to a worker's oom_score_adj: to the kernel's out-of-memory killer it looks as if it held
# three tenths of the memory more than it does, so it dies rather than the small parent.
OOM_SCORE = 300
OOM_SCORE_MOST = 1000

# The environment variables that an intent records, for whoever asks later what a worker saw. The
# others may hold secrets.
RECORDED = (
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "SLURM_JOB_ID",
)


class Orders(msgspec.Struct, frozen=True):
    """What all attempts of one epoch are told alike.

    world_size: how many slots there are. trusted: the numbers of the users whose files count as
    this user's own.
    """

    epoch: int
    job: Job
    options: Options
    world_size: int
    trusted: Sequence[int] = ()


class Child:
    """One worker that this process started, and which therefore is its to wait for."""

    def __init__(self, attempt: str, process: subprocess.Popen[bytes]) -> None:
        self.attempt = attempt
        self.pid = process.pid
        self._process = process
        # When it was first seen to have ended, on the monotonic clock; None while it runs.
        self.ended_at: float | None = None
        # Kept here, since `Popen` takes an exit code that was lost for 0.
        self._exit_code: int | None = None

    def nudge(self) -> None:
        """Tell the worker that there is news in the spool. Harmless, whatever became of it."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            # A pipe that is full holds nudges enough.
            with contextlib.suppress(OSError):
                self._process.stdin.write(b"!")

    def peek_exit_code(self) -> int | None:
        """The exit code, -N for signal N, or None while it runs. Changes nothing: no process is
        reaped, none is killed.

        EXIT_UNSEEN where somebody else has waited for the process, so that nobody knows.
        """
        if self._exit_code is not None:
            return self._exit_code
        try:
            flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
            status = os.waitid(os.P_PID, self.pid, flags)
        except ChildProcessError:
            # The kernel has reaped it by itself, where SIGCHLD is ignored, or a handler of the
            # calling program has. A lost status is never a success.
            return EXIT_UNSEEN
        if status is None:
            return None
        if status.si_code == os.CLD_EXITED:
            return status.si_status
        return -status.si_status

    def exit_code(self) -> int | None:
        """The exit code as `peek_exit_code` gives it; a worker that has ended is reaped.

        Its process group is killed before: until the leader is reaped its pid, which names the
        group, can belong to nobody else. Where somebody else has reaped it, the group is left
        alone: what it left is found by its mark.
        """
        # Looking does not reap, so between the look and the kill the pid is still taken by the dead
        # leader. In the other order the kernel could give it to a new process in between, and the
        # kill would hit a stranger's group.
        code = self.peek_exit_code()
        if code is None or self._exit_code is not None:
            return code
        if code != EXIT_UNSEEN:
            kill_group(self.pid)
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._exit_code = code
        self.ended_at = time.monotonic()
        return code


def kill_group(pid: int) -> None:
    """SIGKILL the whole process group that a worker leads; that it is gone already is fine."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def launch(
    view: View,
    slot: Slot,
    rank: int,
    orders: Orders,
    patience: int = PATIENCE,
    is_doubted: bool = False,
    **variables: str,
) -> Child | None:
    """Start the next attempt of a rank in a slot; it ends after so many failures in a row.

    `is_doubted`: as in an intent. `variables` are added to its environment.

    The intent is published first, so that no process of the run is ever unknown to the spool. If
    the process then cannot be started, the intent stays behind and counts as a dead attempt.
    Returns None where another parent has started that attempt. Raises OSError.
    """
    # Of two parents that launch the same attempt one links the intent, and the other has started
    # nothing. The process comes last: once it runs, all that must be known of it is
    # on disk, even if this process dies at once.
    number = view.next_number(rank)
    attempt = attempt_name(rank, number)
    argv = _argv(view, rank, number)
    near = _cores_near(slot)
    foreign: dict[str, str] = {}
    # A program that spawns functions may well have made its own workers a group by these variables.
    if orders.job.kind is not JobKind.CALL:
        foreign = group_variables(os.environ)
    cores = usable_cores() // orders.world_size
    if near:
        cores = min(cores, len(near))
    folder = folder_id(view.layout.root)
    environment = {name: text for name, text in os.environ.items() if name not in foreign}
    environment.update(environment_for(slot.device, cores, os.environ))
    environment[MARK] = mark_of(run_mark(view.run.id, folder), attempt)
    environment.update(variables)
    intent = Intent(
        attempt=attempt,
        epoch=orders.epoch,
        device=slot.device_name,
        world_size=orders.world_size,
        local_rank=slot.number,
        # For people alone; the path of a spool may not be UTF-8.
        argv=[recordable(word) for word in argv],
        parent=myself(),
        job=_with_code(view, rank, number, orders),
        options=orders.options,
        environment={name: environment[name] for name in RECORDED if name in environment},
        device_uuids=list(slot.uuids),
        withheld=foreign,
        at=time.time(),
        trusted=list(orders.trusted),
        patience=patience,
        is_doubted=is_doubted,
        folder=folder,
        out_folder=_out_folder(view),
        job_id=slot.job_id,
    )
    if not publish(view.layout.intent(attempt), seal_pretty(intent)):
        return None
    child = Child(attempt, _start(view, attempt, argv, environment))
    _offer_to_oom_killer(child.pid)
    _warn_of_cpu_limit(child.pid)
    _keep_near_device(child.pid, near)
    return child


def _with_code(view: View, rank: int, number: int, orders: Orders) -> Job:
    """The job, with the code that the rank's attempt before this one ran in this epoch.

    So what a worker found while it worked holds for the one that follows it.
    """
    previous = attempt_name(rank, number - 1) if number else None
    intent = view.intents.get(previous) if previous else None
    if previous is None or intent is None or intent.epoch != orders.epoch:
        return orders.job
    code = intent.job.code
    # What a worker will run is taken from nobody else's file. Whose the record is that it names,
    # the worker asks itself.
    owners: Owners = {}
    data = read_bytes(view.layout.heartbeat(previous), owners=owners) or b""
    trust = Trust(orders.trusted)
    if all(trust.covers(uid, view.layout.root) for uid in owners):
        with contextlib.suppress(Damaged):
            code = decode(data, Heartbeat).code or code
    return msgspec.structs.replace(orders.job, code=code)


def _out_folder(view: View) -> str:
    """Which folder OUT is; "" where it is none now, which the worker will find out too."""
    with contextlib.suppress(OSError):
        return folder_id(out_of(view.layout, view.run))
    return ""


def _argv(view: View, rank: int, number: int) -> list[str]:
    argv = [*interpreter(), "-m", "gpuspool.worker"]
    argv += ["--spool", str(view.layout.root)]
    argv += ["--rank", str(rank), "--attempt", str(number)]
    return argv


def _start(
    view: View, attempt: str, argv: list[str], environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start the process in the folder from which the run was submitted, while there is one."""
    folder = view.run.submit_dir
    if not Path(folder).is_dir():
        folder = str(view.layout.root)
    log = open_to_append(view.layout.log(attempt))
    try:
        process = subprocess.Popen(
            argv,
            # For nudges; the worker leaves /dev/null there before it runs any code of the job.
            stdin=subprocess.PIPE,
            bufsize=0,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
    finally:
        os.close(log)
    if process.stdin is not None:
        os.set_blocking(process.stdin.fileno(), False)
    return process


def _warn_of_cpu_limit(pid: int) -> None:
    """Let a worker hear by SIGXCPU, a second before, that it reaches its limit on CPU time.

    With `ulimit -t` both limits are the same, and the kernel sends SIGKILL, which tells nothing.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    if hard != resource.RLIM_INFINITY and soft in (hard, resource.RLIM_INFINITY):
        with contextlib.suppress(OSError):
            resource.prlimit(pid, resource.RLIMIT_CPU, (max(1, hard - 1), hard))


def _offer_to_oom_killer(pid: int) -> None:
    """Where memory runs out, let a worker die rather than its parent, which would restart it."""
    path = Path(f"/proc/{pid}/oom_score_adj")
    with contextlib.suppress(OSError, ValueError):
        score = min(int(path.read_text()) + OOM_SCORE, OOM_SCORE_MOST)
        path.write_text(str(score))


def _cores_near(slot: Slot) -> set[int]:
    """The cores next to the first GPU of a slot that this process may use.

    Empty for the CPU, and where NVML does not tell.
    """
    if slot.device == CPU:
        return set()
    first, _, _ = slot.device.partition(",")
    if slot.uuids and slot.uuids[0]:
        first = slot.uuids[0]
    return cores_near(first) & os.sched_getaffinity(0)


def _keep_near_device(pid: int, near: set[int]) -> None:
    """Let a worker run on the cores next to its GPU only, where NVML tells which these are."""
    if near:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(pid, near)
