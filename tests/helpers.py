"""Real processes and real files for the end-to-end tests.

A `Box` is the folder of one test, in which the command line is run. Everything that it starts
carries the folder's name in its environment, so `processes` finds all of it, whoever its parent is
by now. What a spool holds is read here by other code than the code under test: `journal_lines`
checks each line by itself.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import warm

import gpuspool
from gpuspool.orchestrator.plan.devices import find_pool
from gpuspool.orchestrator.plan.environment import GROUP, GROUP_PREFIXES
from gpuspool.orchestrator.report.results import Results
from gpuspool.orchestrator.report.verify import verify
from gpuspool.orchestrator.supervise.drain import SAME_SIGNAL_S
from gpuspool.spool.errors import UsageError
from gpuspool.spool.view import open_view

# How long anything may take on a busy machine before a test gives up. It measures nothing: only a
# test that fails waits so long.
PATIENCE_S = 200.0
POLL_S = 0.004
# A pause is at least so many times as long as the look before it.
PAUSES = 4
TESTS = Path(__file__).resolve().parent
JOBS = TESTS / "jobs"
GPUSPOOL = str(Path(sys.executable).with_name("gpuspool"))
MARK = "TEST_HOME"
# What a machine says of its GPUs, its launchers and ours, by the beginnings of names.
OUR_VARIABLES = (
    *("GPUSPOOL_", "CUDA_", "HIP_", "NVIDIA_", "OMP_", "PYTEST_", "PYTHON"),
    *("SLURM_", "SBATCH_", "SALLOC_", "SQUEUE_", "SINFO_"),
    *GROUP,
    *GROUP_PREFIXES,
)

T = TypeVar("T")


def slowness() -> float:
    """How many times longer than on a quiet machine something may take here and now, at least 1.

    It is how many processes want each core. Where the product must judge a process by its silence
    (a stall time-out, a lease), a test asks for this many times as much.
    """
    words = Path("/proc/loadavg").read_text().split()
    wanting = max(float(words[0]), float(words[3].partition("/")[0]))
    return max(1.0, wanting / len(os.sched_getaffinity(0)))


def limit(seconds: float) -> str:
    """A duration for an option by which the product judges silence: so long on a quiet machine."""
    return f"{seconds * slowness():.1f}s"


def wait_until(condition: Callable[[], T], timeout: float = PATIENCE_S, poll: float = POLL_S) -> T:
    """Wait until `condition` returns something true, and return that; fails if it never does.

    A look that takes long is followed by a longer pause: who waits leaves the cores to the others.
    """
    deadline = time.monotonic() + timeout
    while True:
        began = time.thread_time()
        if value := condition():
            return value
        assert time.monotonic() < deadline, f"waited {timeout} s in vain for {condition}"
        time.sleep(max(poll, PAUSES * (time.thread_time() - began)))


@dataclass(frozen=True)
class Done:
    """A command that ended."""

    code: int
    out: str
    err: str

    def records(self) -> list[Any]:
        """Its output as JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]

    def record(self) -> Any:
        """Its output as one JSON value."""
        return json.loads(self.out)


class Started:
    """A command that may still run."""

    def __init__(self, process: subprocess.Popen[bytes] | warm.Child, stem: Path) -> None:
        self.process, self._stem = process, stem

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def err(self) -> str:
        """What it said on stderr so far."""
        return self._stem.with_suffix(".err").read_text(errors="replace")

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def is_over(self) -> bool:
        return self.process.poll() is not None

    def wait(self, code: int | None = None) -> Done:
        """Wait for its end, and check its exit code if one is given (-N for signal N)."""
        status = self.process.wait(PATIENCE_S)
        done = Done(status, self._stem.with_suffix(".out").read_text(errors="replace"), self.err)
        assert code is None or status == code, (
            f"exit code {status}, expected {code}\n{done.err}\n{done.out}"
        )
        return done


class Box:
    """One test's folder, in which commands are run.

    forks: `gpuspool` is forked from a warm process where that makes no difference; see warm.py.
    """

    def __init__(self, home: Path, *, forks: bool = False) -> None:
        self.home = home
        self._forks = forks
        self._started: list[Started] = []
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(OUR_VARIABLES)
        }
        # No GPU is seen, so that tests are the same on every machine. Those about devices change
        # this.
        self.environment = {**kept, MARK: str(home), "NO_COLOR": "1", "CUDA_VISIBLE_DEVICES": ""}

    def __truediv__(self, name: str) -> Path:
        return self.home / name

    def write(self, name: str, text: str) -> Path:
        path = self.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def lines(self, count: int, name: str = "lines") -> str:
        """A file of so many lines, 0, 1, 2, …; returns its name."""
        self.write(name, "".join(f"{i}\n" for i in range(count)))
        return name

    def tasks(self, values: list[Any], name: str = "tasks.jsonl") -> str:
        """A file of one JSON value a line; returns its name."""
        self.write(name, "".join(json.dumps(value) + "\n" for value in values))
        return name

    def job(self, name: str) -> Path:
        """A copy of a job file, for tests that change it."""
        return Path(shutil.copy(JOBS / name, self.home / name))

    def start(
        self,
        *args: str | Path,
        program: tuple[str, ...] = (GPUSPOOL,),
        env: Mapping[str, str | None] | None = None,
        stdin: str | None = None,
        cwd: Path | None = None,
    ) -> Started:
        """Start a command in the background; its output goes to files.

        A variable that is None is not set at all.
        """
        stem = self.home.parent / f"{self.home.name}-cli" / f"{len(self._started)}"
        stem.parent.mkdir(exist_ok=True)
        stem.with_suffix(".in").write_text(stdin or "")
        given = {**self.environment, **(env or {})}
        environment = {name: value for name, value in given.items() if value is not None}
        words, folder = [*map(str, args)], cwd or self.home
        process: subprocess.Popen[bytes] | warm.Child | None = None
        with (
            open(stem.with_suffix(".in"), "rb") as source,
            open(stem.with_suffix(".out"), "wb") as out,
            open(stem.with_suffix(".err"), "wb") as err,
        ):
            if self._forks and program == (GPUSPOOL,):
                streams = (source.fileno(), out.fileno(), err.fileno())
                process = warm.start(words, folder, environment, streams)
            if process is None:
                process = subprocess.Popen(
                    [*program, *words],
                    stdin=source,
                    stdout=out,
                    stderr=err,
                    cwd=folder,
                    env=environment,
                )
        self._started.append(Started(process, stem))
        return self._started[-1]

    def run(self, *args: str | Path, code: int | None = 0, **settings: Any) -> Done:
        """Run `gpuspool` (or another program) to its end and check its exit code."""
        return self.start(*args, **settings).wait(code)

    def python(self, source: str, code: int | None = 0, **settings: Any) -> Done:
        """Run a script with the tests' own interpreter."""
        script = self.write("script.py", source)
        return self.run(script, program=(sys.executable,), code=code, **settings)

    def results(self, spool: str | Path) -> list[Any]:
        """What `gpuspool results` prints, without the cost of a process."""
        view = open_view(self.home / spool)
        return [json.loads(msgspec.json.encode(result)) for result in Results(view)]

    def status(self, spool: str | Path) -> Any:
        """What `gpuspool status --json` prints, without the cost of a process."""
        return gpuspool.status(self.home / spool)

    def problems(self, spool: str | Path) -> list[str]:
        """What `gpuspool verify` complains about, without the cost of a process."""
        return verify(open_view(self.home / spool)).problems

    def processes(self) -> list[int]:
        """The pids of all living processes that this box started, directly or not."""
        # These have no mark that others can read.
        forked = {
            started.pid
            for started in self._started
            if isinstance(started.process, warm.Child) and not started.process.has_ended()
        }
        return [
            pid
            for pid in map(int, filter(str.isdigit, os.listdir("/proc")))
            if pid in forked or self._is_ours(pid)
        ]

    def _is_ours(self, pid: int) -> bool:
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False
        return f"{MARK}={self.home}\0".encode() in environment and pid != os.getpid()

    def kill_all(self, *spared: int) -> None:
        """Kill everything with SIGKILL, but for some pids; returns once all are gone.

        The parents are killed first, so that nobody sees its workers die.
        """

        def is_empty() -> bool:
            pids = [pid for pid in self.processes() if pid not in spared]
            for pid in pids:
                kill(pid)
            return not pids

        for started in self._started:
            started.process.kill()
        wait_until(is_empty)
        for started in self._started:
            started.process.wait(PATIENCE_S)


@dataclass(frozen=True)
class Nvml:
    """The folders of a libnvidia-ml.so.1 of a driver of today, and of one from before MIG."""

    new: Path
    old: Path

    def lists(self, cards: str = "", *, is_old: bool = False, **variables: str | None) -> Any:
        """The environment in which NVML lists these cards. nvml/nvml.c tells how they are written.

        Nothing else tells of devices, unless `variables` do.
        """
        folder = self.old if is_old else self.new
        return {
            "LD_LIBRARY_PATH": str(folder),
            "CUDA_VISIBLE_DEVICES": None,
            "NVML_CARDS": cards,
            **variables,
        }


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Send a signal. It is fine if the process is gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def is_alive(pid: int) -> bool:
    """Whether there is such a process, other than a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in b"ZX"
    except OSError:
        return False


def has_gpu() -> bool:
    """Whether this machine has a GPU, whatever this process may see of it."""
    try:
        return bool(find_pool(None, {}).tokens)
    except UsageError:
        return False


def names(folder: Path) -> list[str]:
    """The names in a folder, as `ls` prints them; none if it does not exist."""
    return (
        sorted(name for name in os.listdir(folder) if not name.startswith("."))
        if folder.is_dir()
        else []
    )


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder, hidden files too: name -> bytes (None for folders)."""
    found = sorted(folder.rglob("*"))
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in found
    }


def count_lines(spool: Path) -> int:
    """How many lines all journals hold, as `cat journal/* | wc -l` counts them."""
    return sum(
        (spool / "journal" / name).read_bytes().count(b"\n") for name in names(spool / "journal")
    )


def check_line(line: bytes) -> Any:
    """The JSON of one sealed line; None if its checksum is wrong."""
    body, _, tail = line.rpartition(b',"crc":"')
    return json.loads(line) if tail == b'%08x"}' % zlib.crc32(body) else None


def journal_lines(spool: Path) -> list[Any]:
    """Every whole line about a finished task, of all journals; each is checked."""
    found = []
    for name in names(spool / "journal"):
        for line in (spool / "journal" / name).read_bytes().split(b"\n")[:-1]:
            record = check_line(line)
            if record is not None and record.get("state") in ("complete", "failed"):
                found.append({**record, "attempt": name.removesuffix(".jsonl")})
    return found


def seal(fields: dict[str, Any]) -> bytes:
    """One line with a right checksum, for tests that forge one."""
    body = json.dumps(
        {name: value for name, value in fields.items() if name != "crc"}, separators=(",", ":")
    )[:-1]
    return b'%b,"crc":"%08x"}\n' % (body.encode(), zlib.crc32(body.encode()))


def seal_pretty(fields: dict[str, Any]) -> bytes:
    """A record for a file that ends with its checksum, with the right one."""
    body = json.dumps(
        {name: value for name, value in fields.items() if name != "crc"}, indent=2
    ).encode()[:-2]
    return b'%b,\n  "crc": "%08x"\n}\n' % (body, zlib.crc32(body))


def record(path: Path) -> Any:
    """The JSON of a file."""
    return json.loads(path.read_bytes())


def identities(spool: Path) -> dict[str, int]:
    """The pid of each attempt, from the first lines of the journals."""
    found = {}
    for name in names(spool / "journal"):
        head = check_line((spool / "journal" / name).read_bytes().partition(b"\n")[0])
        if head is not None:
            found[name.removesuffix(".jsonl")] = head["pid"]
    return found


def assert_sound(box: Box, spool: str | Path, tasks: int) -> list[Any]:
    """Check a finished spool: each result is there once, in order, and `verify` finds nothing."""
    results = box.results(spool)
    assert [result["index"] for result in results] == list(range(tasks))
    assert {result["state"] for result in results} <= {"complete"}
    assert box.problems(spool) == []
    return results


def interrupt_twice(started: Started, told: str) -> None:
    """A Ctrl-C, and once something was told for it another one, as late as a person's is.

    One that came at once would be taken for the first one, passed on.
    """
    began = time.monotonic()
    started.signal(signal.SIGINT)
    wait_until(lambda: told in started.err)
    wait_until(lambda: time.monotonic() > began + 2 * SAME_SIGNAL_S)
    started.signal(signal.SIGINT)


def wait_until_told_to_drain(spool: Path) -> None:
    """Wait until the orchestrator has heard of a drain and told its workers.

    It tells people after that. What a test lets go on before this moment may finish the whole run.
    """
    wait_until(lambda: '"draining"' in story(spool))


def story(spool: Path) -> str:
    """What the parents of a run have told in events/ so far, one epoch after the other."""
    return "".join(path.read_text() for path in sorted((spool / "events").glob("*.jsonl")))


def newest_parent(spool: Path) -> dict[str, Any]:
    """The record of the parent that was admitted last."""
    paths = [path for path in (spool / "parents").glob("*.json") if ".end." not in path.name]
    found: dict[str, Any] = record(max(paths))
    return found


def start_gated(
    box: Box, payloads: list[Any], *options: str, spool: str = "S", job: str = "gated"
) -> tuple[Started, list[str | Path]]:
    """Start a job of gates.py; returns it and its command.

    Tasks whose payload is "wait" wait for the file "gate".
    """
    command: list[str | Path] = ["run", f"{JOBS}/gates.py:{job}", "--tasks", box.tasks(payloads)]
    command += ["--arg", f"gate={box / 'gate'}", "--spool", spool]
    return box.start(*command, *options), command


def waiting(box: Box) -> list[int]:
    """The tasks that came to the gate so far."""
    path = box / "gate.waiting"
    return [int(line.split()[0]) for line in path.read_text().splitlines()] if path.exists() else []


def ran(box: Box) -> list[int]:
    """The tasks that got behind the gate or had none, in order."""
    path = box / "gate.ran"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def half_done(box: Box, *options: str, ranks: int = 1) -> list[str | Path]:
    """A spool S whose processes were all killed half way.

    Tasks 0-19 were complete, and of 20-39 each rank had one in hand.

    Returns its command; the gate is open now.
    """
    payloads = [f"go {i}" for i in range(20)] + ["wait"] * 20
    tasks: list[Any] = [{"payload": payload} for payload in payloads]
    # Every fourth task of a manifest comes from its cheap end. With these costs that is the order
    # in which they stand here. Manifests of three ranks are too short for that.
    if ranks < 3:
        for index, line in enumerate(tasks):
            position = index // ranks
            line["cost"] = 1 + position if position % 4 == 0 else 1000 - position
    started, command = start_gated(box, tasks, "--ranks", str(ranks), *options)
    wait_until(lambda: len(waiting(box)) == ranks and len(journal_lines(box / "S")) == 20)
    box.kill_all()
    started.wait(-signal.SIGKILL)
    (box / "gate").touch()
    return command
