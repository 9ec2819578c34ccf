"""A real Slurm on this one machine, for tests: a controller and nodes with GPUs in name only.

A `Cluster` starts in less than a second and stops at once, so each test has one of its own. The
machine that the tests run on is its login node, where the commands of a test's box reach it. A node
is a slurmd in UTS, pid and mount namespaces of its own, with its own boot id and machine id, so
gpuspool takes it for another host. It shares the file system with the login node. To kill the first
process of a node ends everything on it at once, like a power cut.

Slurm's own plugin gives jobs their GPUs and sets CUDA_VISIBLE_DEVICES, as it does on a real site
that does not confine devices. The GPUs are links to /dev/null, so nothing can compute on them.

Everything runs in one pid namespace, whose first process ends when its input does. So nothing is
left behind, however the tests end. All state lies in one folder. The daemons listen on the loopback
alone, and a munged with a key of this cluster's own keeps other users of the machine out.

What differs from a site: all nodes have one kernel, one page cache and one clock. There is no
accounting, so no sacct. Slurm looks at time limits every 30 s; `expire` saves the minute before. It
does not notice by itself that a node is gone, since that would take it minutes, or else it would be
wrong on a busy machine: `declare_down` tells it.
"""

from __future__ import annotations

import functools
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from helpers import PATIENCE_S, Box, Done, is_alive, kill, wait_until
from torture.hosts import state_of

from slurm.configuration import LOOPBACK, write_configuration

HERE = Path(__file__).resolve().parent
# Each cluster has so many ports: one that it holds to keep others off, the controller's, and one
# for each node. They lie below those that the kernel gives to anybody.
PORTS = 20
FIRST_PORTS = range(21000, 31000, PORTS)
# A look at the state of something in Slurm costs a process, so there are fewer than of a file.
POLL_S = 0.1
# A Unix socket's path has 107 bytes, and Slurm makes some below the folder.
LONGEST_FOLDER = 80
PROGRAMS = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "srun": "slurm-client",
    "munged": "munge",
    "unshare": "util-linux",
    "nsenter": "util-linux",
}
NAMESPACES = ("unshare", "--pid", "--mount", "--fork", "--kill-child")
# The states of a node that serves, without the * of one that does not answer.
SERVING = {"idle", "mixed", "allocated", "completing"}
# Where root's programs lie, which is not on everybody's PATH.
PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


@functools.cache
def why_not() -> str:
    """Why there can be no cluster here; "" if there can."""
    for program, package in PROGRAMS.items():
        if shutil.which(program, path=PATH) is None:
            return f"{program} is not installed (apt-get install {package})"
    if os.geteuid() != 0:
        return "nodes of a Slurm cluster need namespaces, and these need root"
    script = (
        'hostname a && mount -t proc proc /proc && mount --bind "$0" /etc/hosts && '
        'mount --bind "$0" /proc/sys/kernel/random/boot_id'
    )
    done = subprocess.run(
        [*NAMESPACES, "--uts", "sh", "-c", script, __file__],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return f"nodes of a Slurm cluster need namespaces: {done.stderr.strip()}"
    return ""


class Cluster:
    """One Slurm, from `start` to `stop`; `with` does both. Its nodes are n1, n2, …

    All are in the partition main. The partition cpu has a node without GPUs, which is down.
    """

    def __init__(self, box: Box, nodes: int = 3, gpus: int = 3, **settings: str) -> None:
        """
        box: whose commands shall reach this cluster; everything lies in a folder beside its own.
        gpus: how many each node has. settings: lines of slurm.conf that are to be different, as in
        `MaxArraySize="5"`.
        """
        self.folder = box.home.with_name("slurm")
        assert len(str(self.folder)) <= LONGEST_FOLDER, f"{self.folder} is too long for sockets"
        assert nodes <= PORTS - 2
        self.nodes = [f"n{number}" for number in range(1, nodes + 1)]
        self._box = box
        self._gpus = gpus
        self._settings = settings
        self._first: subprocess.Popen[bytes] | None = None
        self._pids: dict[str, int] = {}
        self._conf = self.folder / "slurm.conf"
        # Jobs inherit these too. Workers cannot see the GPUs that they are told to have.
        box.environment.update({"SLURM_CONF": str(self._conf), "GPUSPOOL_DEVICE_CHECK": "off"})

    def __enter__(self) -> Cluster:
        try:
            self.start()
        except BaseException as error:
            self.stop()
            # pytest keeps no folder of a test that never began.
            error.add_note(self._ends_of_logs())
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    # The whole.

    def start(self) -> None:
        """Start everything; returns once all nodes serve."""
        for name in ("run", "log", "state", "gpus"):
            (self.folder / name).mkdir(parents=True)
        held = _hold_ports()
        self._port = held.getsockname()[1] + 1
        write_configuration(self.folder, self.nodes, self._gpus, self._port, self._settings)
        script = ("sh", str(HERE / "cluster.sh"), str(self.folder))
        with open(self.folder / "log" / "cluster", "wb") as log:
            self._first = subprocess.Popen(
                [*NAMESPACES, *self._telling_its_pid("cluster"), *script],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={"PATH": PATH, "SLURM_CONF": f"{self.folder}/daemons.conf"},
                # As long as anything of the cluster runs its ports are held.
                pass_fds=[held.fileno()],
                # Control-C is for the tests, which then stop the cluster.
                start_new_session=True,
            )
        held.close()
        self._learn_pid("cluster")
        self._start_munge()
        self.start_controller()
        for node in self.nodes:
            self._launch_node(node)
        self._wait_until_up(*self.nodes)

    def stop(self) -> None:
        """End everything at once; returns once no process is left."""
        if self._first is None:
            return
        # With it the kernel kills the first process of the namespace, and with that all others.
        self._first.kill()
        assert self._first.stdin is not None
        self._first.stdin.close()
        self._first.wait(PATIENCE_S)
        wait_until(lambda: not any(map(is_alive, self._pids.values())))

    def run(self, *command: str | Path, code: int | None = 0) -> Done:
        """Run a command on the login node to its end and check its exit code.

        It is run in the box's folder, like the box's own commands, but it keeps no files.
        """
        done = subprocess.run(
            [*map(str, command)],
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
            cwd=self._box.home,
            env=self._box.environment,
        )
        assert code is None or done.returncode == code, (
            f"{command}: exit code {done.returncode}, expected {code}\n{done.stderr}{done.stdout}"
        )
        return Done(done.returncode, done.stdout, done.stderr)

    # Jobs.

    def submit(self, *arguments: str | Path) -> str:
        """Submit a job with the arguments of sbatch; returns its id."""
        return self.run("sbatch", "--parsable", *arguments).out.strip()

    def states(self, job: str) -> dict[str, str]:
        """The state of each element of a job, as in {"12_0": "RUNNING"}. Ended ones are told for
        five minutes.
        """
        look = ("squeue", "--noheader", "--states=all", "--array", "--format=%i %T")
        lines = self.run(*look, f"--jobs={job}").out.splitlines()
        return dict(line.split() for line in lines)

    def state(self, job: str) -> str:
        """The state of a job, or of one element of an array ("12_3")."""
        (state,) = self.states(job).values()
        return state

    def wait_for(self, job: str, *states: str) -> None:
        """Wait until a job and all its elements are in one of these states."""
        wait_until(lambda: {*self.states(job).values()} <= {*states}, poll=POLL_S)

    def show(self, job: str) -> dict[str, str]:
        """What `scontrol show job` tells of a job that is no array. Values end at a space."""
        told = self.run("scontrol", "--oneliner", "show", "job", job).out
        return dict(re.findall(r"(\S+?)=(\S*)", told))

    def expire(self, job: str) -> None:
        """Let the time limit of a running job be reached now. Slurm looks every 30 s."""
        self.run("scontrol", "update", f"JobId={job}", "EndTime=now")

    # Faults.

    def crash(self, node: str) -> None:
        """Cut a node's power; returns once nothing runs there. Slurm does not notice by itself."""
        pid = self._pids[node]
        kill(pid)
        # The kernel lets the first process of a pid namespace end after all others.
        wait_until(lambda: not is_alive(pid))

    def declare_down(self, node: str) -> None:
        """Tell Slurm that a node is gone: its jobs are queued again, or end as NODE_FAIL."""
        self.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=crash")

    def restart(self, node: str) -> None:
        """Boot a crashed node, with a new boot id; returns once it serves."""
        self._launch_node(node)
        self._wait_until_up(node)

    def suspend(self, node: str) -> None:
        """Stop everything on a node, as a hypervisor does; returns once all stand still."""
        self._signal_all(node, signal.SIGSTOP)
        # Whoever waits for a child of vfork(2) that was stopped before its exec stays in D. It
        # runs nothing either.
        wait_until(lambda: all(state_of(pid) in "TZXD" for pid in self.processes(node)))

    def resume(self, node: str) -> None:
        """Let everything on a suspended node go on."""
        self._signal_all(node, signal.SIGCONT)

    def stop_controller(self) -> None:
        """End slurmctld in good order; jobs go on, and commands of Slurm fail."""
        pid = self._pids["slurmctld"]
        kill(pid, signal.SIGTERM)
        wait_until(lambda: not is_alive(pid))

    def start_controller(self) -> None:
        """Start slurmctld, with the state that it saved; returns once it answers.

        It knows the state of its nodes some seconds later.
        """
        self._launch("slurmctld", "slurmctld", "-D")
        self._wait_while_alive(self._is_controller_there, "slurmctld")

    # Nodes.

    def on(self, node: str) -> tuple[str, ...]:
        """As the beginning of a command: it is run on that node, in the same folder, as ssh would.

        A signal to it does not reach the command.
        """
        enter = f"exec nsenter --target {self._pids[node]} --uts --pid --mount"
        return ("sh", "-c", f'{enter} env --chdir="$PWD" "$@"', "sh")

    def processes(self, node: str) -> list[int]:
        """The processes on a node, as numbers of the login node, but for its first one."""
        first = self._pids[node]
        namespace = os.readlink(f"/proc/{first}/ns/pid")
        return [pid for pid in _pids() if pid != first and _namespace_of(pid) == namespace]

    def _signal_all(self, node: str, number: int) -> None:
        enter = ("nsenter", "--target", str(self._pids[node]), "--pid")
        # To all in that namespace but its first process, in one step: nobody can be born meanwhile.
        self.run(*enter, "sh", "-c", f"kill -{number} -1")

    # How it is started.

    def _telling_its_pid(self, name: str) -> tuple[str, ...]:
        """As the beginning of a command: its pid can then be learned."""
        return ("sh", str(HERE / "program.sh"), str(self._pid_file(name)))

    def _pid_file(self, name: str) -> Path:
        return self.folder / "run" / f"{name}.pid"

    def _learn_pid(self, name: str) -> None:
        assert self._first is not None
        unshare = self._first
        wait_until(lambda: self._pid_file(name).exists() or unshare.poll() is not None)
        self._pids[name] = int(self._pid_file(name).read_text())

    def _launch(self, name: str, *command: str, within: tuple[str, ...] = ()) -> None:
        """Start a program of the cluster, in more namespaces if asked."""
        self._pid_file(name).unlink(missing_ok=True)
        words = shlex.join([*within, *self._telling_its_pid(name), *command])
        log = shlex.quote(str(self.folder / "log" / name))
        assert self._first is not None
        assert self._first.stdin is not None
        self._first.stdin.write(f"{words} >>{log} 2>&1\n".encode())
        self._first.stdin.flush()
        self._learn_pid(name)

    def _launch_node(self, node: str) -> None:
        (self.folder / "run" / f"{node}.boot_id").write_text(f"{uuid.uuid4()}\n")
        script = ("sh", str(HERE / "node.sh"), str(self.folder), node)
        self._launch(node, *script, within=(*NAMESPACES, "--uts"))

    def _wait_until_up(self, *nodes: str) -> None:
        look = ("sinfo", "--noheader", "--Node", f"--nodes={','.join(nodes)}", "--format=%N %T")

        def are_up() -> bool:
            states = dict(line.split() for line in self.run(*look).out.splitlines())
            return states.keys() == {*nodes} and {*states.values()} <= SERVING

        self._wait_while_alive(are_up, *nodes)

    def _wait_while_alive(self, is_up: Callable[[], bool], *names: str) -> None:
        """Wait until these programs serve. One that cannot start ends, and then so does this."""

        def is_decided() -> bool:
            return is_up() or not all(is_alive(self._pids[name]) for name in names)

        wait_until(is_decided, poll=POLL_S)
        assert is_up(), f"one of {names} ended"

    def _ends_of_logs(self) -> str:
        logs = sorted((self.folder / "log").iterdir())
        return "\n".join(f"{log.name}:\n{log.read_text()[-2000:]}" for log in logs)

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(128))
        options = {
            "key-file": key,
            "socket": self.folder / "munge.sock",
            "pid-file": self.folder / "run" / "munged",
            "log-file": self.folder / "log" / "munged.log",
            "seed-file": self.folder / "munge.seed",
            "num-threads": 2,
        }
        # By force: pytest's folders are closed to others, which munged takes for a mistake.
        words = [f"--{name}={value}" for name, value in options.items()]
        self._launch("munged", "munged", "--foreground", "--force", *words)
        self._wait_while_alive((self.folder / "munge.sock").exists, "munged")

    def _is_controller_there(self) -> bool:
        with socket.socket() as looker:
            return looker.connect_ex((LOOPBACK, self._port)) == 0


def _hold_ports() -> socket.socket:
    """A socket that holds the first port of a cluster's ports, which no other cluster has."""
    for first in FIRST_PORTS:
        held = socket.socket()
        try:
            held.bind((LOOPBACK, first))
        except OSError:
            held.close()
        else:
            return held
    raise RuntimeError(f"the ports {FIRST_PORTS} are all taken")


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _namespace_of(pid: int) -> str:
    """The pid namespace of a process; "" if it is gone."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""
