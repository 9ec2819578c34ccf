"""Machines of a cluster, played by namespaces: each runs commands, and can crash, freeze and boot.

A `Machine` has its own host name, process ids, boot id, and clocks: its uptime differs from that of
the others, and its wall clock may be wrong. The spool and all other files are shared, as on a
cluster's file system. The spool's lock may be a file of each machine alone, as on Lustre mounted
with `localflock`: then nothing keeps starts apart.

To crash a machine, its first process is killed, and the kernel ends all others at once, as a power
cut does. To freeze one, all its processes are stopped, as a hypervisor does it, or a laptop's lid.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from helpers import GPUSPOOL, PATIENCE_S, is_alive, kill, wait_until

from torture.faults import library
from torture.hosts import NAMESPACES, SCRIPT, state_of

# A machine has been up for at most so many seconds longer than this one.
MOST_UPTIME_S = 50_000_000


@functools.cache
def why_not() -> str:
    """Why no machine can be played here; "" if one can."""
    if os.geteuid() != 0:
        return "namespaces need root"
    words = [*NAMESPACES, *_clocks(MOST_UPTIME_S), "true"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unshare is not installed"
    return done.stderr.strip()


@functools.cache
def _clocks(uptime_s: int) -> tuple[str, ...]:
    """The options of `unshare` that shift the clocks of a machine; none where the kernel cannot."""
    options = ("--time", "--boottime", str(uptime_s), "--monotonic", str(uptime_s))
    probe = ["unshare", *options, "--fork", "true"]
    done = subprocess.run(probe, stderr=subprocess.DEVNULL, check=False)
    return options if done.returncode == 0 else ()


@dataclass(eq=False)
class Command:
    """A command that was started on a machine."""

    words: list[str]
    stem: Path
    boot: Boot
    started_at: float = field(default_factory=time.time)

    @property
    def name(self) -> str:
        """Its number and its machine, for people."""
        return f"{self.stem.name} on {self.stem.parent.name}"

    @property
    def code(self) -> int | None:
        """Its exit code (-N for signal N), None while it runs."""
        path = self.stem.with_suffix(".code")
        if path.exists():
            return int(path.read_text())
        return -signal.SIGKILL if self.boot.crashed_at is not None else None

    @property
    def inner_pid(self) -> int:
        """The number that its process has on its machine; 0 before it is started."""
        path = self.stem.with_suffix(".pid")
        return int(path.read_text()) if path.exists() else 0

    @property
    def pid(self) -> int:
        """Its process, as seen from here; 0 if it has ended."""
        return self.boot.outer(self.inner_pid) if self.inner_pid else 0

    @property
    def err(self) -> str:
        """What it said on stderr so far."""
        path = self.stem.with_suffix(".err")
        return path.read_text(errors="replace") if path.exists() else ""


@dataclass
class Boot:
    """One boot of a machine, from its first process to a crash."""

    id: str
    first: subprocess.Popen[bytes]
    # The first process, as seen from here, and its pid namespace.
    pid: int
    namespace: str
    crashed_at: float | None = None
    # From when to when it stood still.
    stops: list[tuple[float, float]] = field(default_factory=list)

    def processes(self) -> list[int]:
        """All processes but the first, as seen from here; zombies do not count."""
        pids = (int(name) for name in os.listdir("/proc") if name.isdigit())
        return [
            pid
            for pid in pids
            if pid != self.pid and _namespace_of(pid) == self.namespace and is_alive(pid)
        ]

    def outer(self, pid: int) -> int:
        """The number that one of its processes has here; 0 if there is none."""
        for outer in self.processes():
            try:
                lines = Path(f"/proc/{outer}/status").read_text().splitlines()
            except OSError:
                continue
            numbers = next(line.split() for line in lines if line.startswith("NSpid:"))
            if int(numbers[-1]) == pid:
                return outer
        return 0


class Machine:
    """One machine. It is off until it boots."""

    def __init__(
        self,
        name: str,
        home: Path,
        environment: Mapping[str, str],
        uptime_s: int = 0,
        skew_s: int = 0,
        private_lock_of: Path | None = None,
    ) -> None:
        """home: a folder for its own files, which is made. environment: of its commands. uptime_s:
        for how much longer it seems to be up than this one. skew_s: by how much its wall clock is
        ahead. private_lock_of: the spool whose lock is this machine's own; it must be there.
        """
        self.name = name
        self.commands: list[Command] = []
        self.boots: list[Boot] = []
        self._home = home
        self._environment = dict(environment)
        if skew_s:
            self._environment |= {"LD_PRELOAD": str(library("clock")), "CLOCK_SKEW_S": str(skew_s)}
        self._uptime_s = uptime_s
        self._spool = private_lock_of
        self._frozen_at: float | None = None
        home.mkdir(parents=True)

    @property
    def boot(self) -> Boot:
        """The newest boot."""
        return self.boots[-1]

    @property
    def is_up(self) -> bool:
        return bool(self.boots) and self.boot.crashed_at is None

    @property
    def is_frozen(self) -> bool:
        return self._frozen_at is not None

    @property
    def running(self) -> list[Command]:
        return [command for command in self.commands if command.code is None]

    def start(self) -> None:
        """Boot; returns once commands can be run."""
        boot_id = str(uuid.uuid4())
        path = self._home / f"boot_id.{len(self.boots)}"
        path.write_text(f"{boot_id}\n")
        lock = ""
        if self._spool is not None:
            (self._home / "lock").touch()
            lock = str(self._home / "lock")
        words = ("machine", self.name, str(path), lock, str(self._spool or ""))
        with open(self._home / "machine.err", "ab") as err:
            first = subprocess.Popen(
                [*NAMESPACES, "--kill-child", *_clocks(self._uptime_s), *SCRIPT, *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=err,
                env=self._environment_of_first(),
            )
        assert first.stdout is not None
        assert first.stdout.readline() == b"up\n", f"{self.name} does not boot"
        children = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
        pid = int(children[0])
        self.boots.append(Boot(boot_id, first, pid, _namespace_of(pid)))

    def run(self, *words: str | Path) -> Command:
        """Start gpuspool there, in the background."""
        stem = self._home / f"{len(self.commands)}"
        told = [GPUSPOOL, *map(str, words)]
        command = Command(told, stem, self.boot)
        request = {
            "words": told,
            "env": self._environment,
            "cwd": str(self._home.parent),
            "stem": str(stem),
        }
        assert self.boot.first.stdin is not None
        self.boot.first.stdin.write(json.dumps(request).encode() + b"\n")
        self.boot.first.stdin.flush()
        self.commands.append(command)
        return command

    def workers(self) -> list[tuple[str, int]]:
        """(attempt, its pid as seen from here) of every worker."""
        found = []
        for pid in self.boot.processes():
            try:
                words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            except OSError:
                continue
            if "gpuspool.worker" in words[:4] and "--rank" in words:
                rank, attempt = (
                    int(words[words.index(name) + 1]) for name in ("--rank", "--attempt")
                )
                found.append((f"rank-{rank:04d}.a{attempt:02d}", pid))
        return sorted(found)

    def crash(self) -> None:
        """Cut its power; returns once nothing runs there."""
        boot = self.boot
        kill(boot.pid)
        # The kernel lets the first process of a pid namespace end after all others.
        boot.first.wait(PATIENCE_S)
        boot.crashed_at = time.time()
        self._note_thawed()
        self._close_pipes(boot)

    def freeze(self) -> None:
        """Stop everything; returns once all stand still, even those that have just started."""
        self._frozen_at = time.time()
        wait_until(self._stop_more)

    def _stop_more(self) -> bool:
        moving = [pid for pid in self.boot.processes() if state_of(pid) not in "TZX"]
        for pid in moving:
            kill(pid, signal.SIGSTOP)
        return not moving

    def thaw(self) -> None:
        """Let everything go on."""
        for pid in self.boot.processes():
            kill(pid, signal.SIGCONT)
        self._note_thawed()

    def _note_thawed(self) -> None:
        if self._frozen_at is not None:
            self.boot.stops.append((self._frozen_at, time.time()))
            self._frozen_at = None

    def stop(self) -> None:
        """Switch it off, whatever runs there."""
        if self.is_up:
            self.crash()

    def _environment_of_first(self) -> dict[str, str]:
        # Its own clock does not matter, and its commands get theirs.
        return {name: value for name, value in self._environment.items() if name != "LD_PRELOAD"}

    def _close_pipes(self, boot: Boot) -> None:
        for pipe in (boot.first.stdin, boot.first.stdout):
            assert pipe is not None
            pipe.close()


def _namespace_of(pid: int) -> str:
    """The pid namespace of a process; "" if it is gone."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""
