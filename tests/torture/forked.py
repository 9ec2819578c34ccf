"""The command line in forked children of a warm process: `gpuspool run` at no interpreter's cost.

A `Server` is one process that has imported everything. For each command it forks a child, which
sets up what a fresh process would have (session, folder, environment, descriptors, signals) and
calls `gpuspool.orchestrator.cli.main.main`; there `subprocess.Popen` of `python -P -m
gpuspool.worker` is replaced by a fork that calls `gpuspool.worker.__main__.main`. Nothing else is
replaced: processes, pids, signals, locks and files are real, and each can be killed like any other.

The server is a subreaper, so whatever a command leaves behind is found below the server and reaped
there, whoever its parent was. `left` lists it and `kill_left` ends it. All of it dies with the
server, and the server dies with its user. One server runs one case at a time; for two at a time
make two.

`run` is the short form, with one server for the whole process. A server may be started with an
LD_PRELOAD library, the one of `faults.py`: a `plan` then tells its `faults_arm` what to do, by the
role of each process: "parent", "r1.a0".
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

# How long one command may take before it counts as hung, on a machine that is busy with others.
PATIENCE_S = 200.0
# How long a killed process may take to be gone. After that something is wrong with the machine.
GONE_S = 60.0
FOREIGN = ("GPUSPOOL_", "SLURM_", "CUDA_", "HIP_", "OMP_", "PYTEST_", "PYTHON", "LD_PRELOAD")
PR_SET_CHILD_SUBREAPER = 36

# What `faults_arm` of the preloaded library is told in the process of each role.
Plan = Mapping[str, str]


@dataclass(frozen=True)
class Ended:
    """A command that ended. code: -N for signal N. left: the pids that were alive afterwards.

    hung: the patience was over before it ended.
    """

    code: int
    out: str
    err: str
    seconds: float
    hung: bool = False
    left: list[int] = field(default_factory=list)


class Server:
    """One warm process below which commands run, one case at a time."""

    def __init__(self, preload: Path | None = None, within: Sequence[str | Path] = ()) -> None:
        """within: in front of its command, as of unshare(1): all its commands run in there."""
        ours, theirs = socket.socketpair()
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)
        }
        environment |= {"NO_COLOR": "1", "CUDA_VISIBLE_DEVICES": ""}
        if preload is not None:
            environment["LD_PRELOAD"] = str(preload)
        self._folder = tempfile.TemporaryDirectory(prefix="forked-")
        self._numbers = itertools.count()
        self._started: dict[int, tuple[Path, float]] = {}
        self._process = subprocess.Popen(
            [*within, sys.executable, "-P", __file__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=environment,
        )
        theirs.close()
        self._file = ours.makefile("rw")
        ours.close()

    def start(
        self,
        *args: str | Path,
        cwd: Path,
        env: Mapping[str, str | None] | None = None,
        plan: Plan | None = None,
    ) -> int:
        """Start a command in the background; returns its pid, which `wait` takes.

        A variable that is None is unset.
        """
        stem = Path(self._folder.name, str(next(self._numbers)))
        began = time.monotonic()
        request = {
            "args": [*map(str, args)],
            "cwd": str(cwd),
            "env": dict(env or {}),
            "plan": dict(plan or {}),
        }
        pid = int(self._ask("start", **request, stem=str(stem)))
        self._started[pid] = stem, began
        return pid

    def wait(self, pid: int, patience_s: float = PATIENCE_S) -> Ended:
        """Wait for a started command. After `patience_s` all below this server is killed."""
        answer = self._ask("wait", pid=pid, patience_s=patience_s)
        stem, began = self._started.pop(pid)
        said = {}
        for name in ("out", "err"):
            path = stem.with_suffix(f".{name}")
            said[name] = path.read_text(errors="replace")
            path.unlink()
        return Ended(**said, seconds=time.monotonic() - began, **answer)

    def run(
        self,
        *args: str | Path,
        cwd: Path,
        env: Mapping[str, str | None] | None = None,
        patience_s: float = PATIENCE_S,
        plan: Plan | None = None,
        keep: bool = False,
    ) -> Ended:
        """Run a command to its end. What outlives it is killed.

        keep: leave that alive, for a resume that adopts it.
        """
        ended = self.wait(self.start(*args, cwd=cwd, env=env, plan=plan), patience_s)
        if not keep:
            self.kill_left()
        return ended

    def left(self) -> list[int]:
        """The pids of all that lives below this server."""
        return list(self._ask("left"))

    def kill_left(self) -> None:
        """Kill everything below this server with SIGKILL; returns once all of it is gone."""
        self._ask("kill_left")

    def close(self) -> None:
        """End the server, and everything below it."""
        with contextlib.suppress(OSError):
            self._file.close()
        self._process.wait()
        self._folder.cleanup()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, what: str, **fields: Any) -> Any:
        self._file.write(json.dumps({"what": what, **fields}) + "\n")
        self._file.flush()
        line = self._file.readline()
        assert line, "the fork server died; its traceback is on stderr"
        return json.loads(line)


_server: Server | None = None


def run(
    *args: str | Path,
    cwd: Path,
    env: Mapping[str, str | None] | None = None,
    patience_s: float = PATIENCE_S,
    plan: Plan | None = None,
) -> Ended:
    """Run a command with this process's own server, and kill what it leaves."""
    global _server
    if _server is None:
        _server = Server()
        atexit.register(_server.close)
    return _server.run(*args, cwd=cwd, env=env, patience_s=patience_s, plan=plan)


# From here on: what happens in the server and below it.


def _serve(channel: socket.socket) -> None:
    """Answer requests until the user is gone."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    # Blocked, so that sigtimedwait may wait for it.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    _warm_up()
    # The exit codes of the commands that were started and not waited for.
    codes: dict[int, int | None] = {}
    file = channel.makefile("rw")
    for line in file:
        request = json.loads(line)
        what = request.pop("what")
        if what == "start":
            answer: Any = _start(**request)
            codes[answer] = None
        elif what == "wait":
            answer = _wait(codes, **request)
        elif what == "left":
            _reap(codes)
            answer = _living()
        else:
            answer = _kill_left(codes)
        file.write(json.dumps(answer) + "\n")
        file.flush()
    _kill_left(codes)


def _warm_up() -> None:
    """Import what a parent and a worker import, the late imports too."""
    for name in (
        "gpuspool.orchestrator.cli.main",
        "gpuspool.orchestrator.api.runs",
        "gpuspool.worker.__main__",
        "watchdog.events",
        "watchdog.observers",
    ):
        importlib.import_module(name)


def _start(args: list[str], cwd: str, env: dict[str, str | None], plan: Plan, stem: str) -> int:
    """Fork the parent of a run."""

    def command() -> None:
        from gpuspool.orchestrator.cli.main import main

        _fork_workers(plan)
        main(args)

    environment = {
        name: value for name, value in {**os.environ, **env}.items() if value is not None
    }
    environment.pop("LD_PRELOAD", None)
    outputs = [
        os.open(f"{stem}.{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND) for name in ("out", "err")
    ]
    pid = _fork(command, "parent", plan, ["gpuspool", *args], cwd, environment, outputs)
    for fd in outputs:
        os.close(fd)
    return pid


def _fork(
    function: Callable[[], Any],
    role: str,
    plan: Plan,
    argv: list[str],
    cwd: str,
    environment: Mapping[str, str],
    outputs: list[int],
    stdin: int | None = None,
) -> int:
    """Run a function in a child that looks like a fresh process; returns its pid.

    stdin: a descriptor, None for /dev/null.
    """
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        _become_fresh(argv, cwd, environment, outputs, stdin)
        if plan:
            ctypes.CDLL(None).faults_arm(plan.get(role, "").encode())
        _finish(function)
    finally:
        os._exit(70)


def _become_fresh(
    argv: list[str], cwd: str, environment: Mapping[str, str], outputs: list[int], stdin: int | None
) -> None:
    """Set up session, descriptors, signals, folder, environment and streams.

    They are left as exec(2) and the interpreter would leave them.
    """
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY) if stdin is None else stdin, 0)
    for fd in (1, 2):
        os.dup2(outputs[fd - 1], fd)
    os.closerange(3, 4096)
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE}:
        signal.signal(
            number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        )
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = argv
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(
        2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False
    )
    atexit._clear()


def _finish(function: Callable[[], Any]) -> NoReturn:
    """Call the function, and end as an interpreter ends."""
    code: object = 1
    try:
        code = function()
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001 - what an interpreter would print
        traceback.print_exc()
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    atexit._run_exitfuncs()
    os._exit(int(code or 0) & 0xFF)


class Forked:
    """A worker that was forked, with the part of a Popen that `supervise.launch` uses: its stdin is
    a pipe.
    """

    def __init__(
        self, plan: Plan, argv: list[str], cwd: str, env: Mapping[str, str], stdout: Any
    ) -> None:
        from gpuspool.worker.__main__ import main

        self.args, self.returncode = argv, None
        role = f"r{argv[argv.index('--rank') + 1]}.a{argv[argv.index('--attempt') + 1]}"
        log = stdout if isinstance(stdout, int) else stdout.fileno()
        reader, writer = os.pipe()
        self.pid = _fork(main, role, plan, argv[3:], cwd, env, [log, log], reader)
        os.close(reader)
        # It ends with the parent.
        self.stdin = open(writer, "wb", buffering=0)  # noqa: SIM115

    returncode: int | None

    def poll(self) -> int | None:
        return self._wait(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self._wait(0 if deadline is None else os.WNOHANG)) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            time.sleep(0.002)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _wait(self, options: int) -> int | None:
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, options)
            except ChildProcessError:
                pid, status = self.pid, 0
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


def _fork_workers(plan: Plan) -> None:
    """In the parent of a run: from now on workers are forked, not executed.

    Everything else is started as always.
    """
    real = subprocess.Popen

    def popen(argv: Any, **settings: Any) -> Any:
        if not isinstance(argv, list) or argv[1:4] != ["-P", "-m", "gpuspool.worker"]:
            return real(argv, **settings)
        known = {"stdin", "bufsize", "stdout", "stderr", "cwd", "env", "start_new_session"}
        assert settings.keys() <= known, (
            f"torture/forked.py cannot start workers with {settings.keys() - known}"
        )
        assert settings["stdin"] == subprocess.PIPE
        return Forked(plan, argv, settings["cwd"], settings["env"], settings["stdout"])

    subprocess.Popen = popen  # type: ignore[misc,assignment]


def _wait(codes: dict[int, int | None], pid: int, patience_s: float) -> dict[str, Any]:
    began = time.monotonic()
    hung = False
    _reap(codes)
    while codes[pid] is None:
        if not hung and time.monotonic() - began > patience_s:
            hung = True
            _kill_left(codes)
        signal.sigtimedwait([signal.SIGCHLD], 0.05)
        _reap(codes)
    return {"code": codes.pop(pid), "hung": hung, "left": _living()}


def _reap(codes: dict[int, int | None]) -> None:
    """Collect every child that ended, and keep the exit codes that are asked for.

    Pids are used again, so no others may be kept.
    """
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid in codes and codes[pid] is None:
                codes[pid] = os.waitstatus_to_exitcode(status)


def _living() -> list[int]:
    """The pids below this process, whatever their depth; zombies do not count."""
    children: dict[int, list[tuple[int, bytes]]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                state, parent = (
                    Path("/proc", name, "stat").read_bytes().rpartition(b")")[2].split()[:2]
                )
                children.setdefault(int(parent), []).append((int(name), state))
    found: list[int] = []
    below = [os.getpid()]
    while below:
        for pid, state in children.get(below.pop(), ()):
            below.append(pid)
            if state not in b"ZX":
                found.append(pid)
    return sorted(found)


def _kill_left(codes: dict[int, int | None]) -> None:
    """SIGKILL parents and children until nobody is left. A fork bomb would need more than this."""
    deadline = time.monotonic() + GONE_S
    while pids := _living():
        assert time.monotonic() < deadline, f"these processes cannot be killed: {pids}"
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        signal.sigtimedwait([signal.SIGCHLD], 0.01)
        _reap(codes)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
