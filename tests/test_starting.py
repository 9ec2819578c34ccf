"""Where a process cannot be started: whose fault that is, and what becomes of the tasks."""

import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import GPUSPOOL, Box, Started, assert_sound, journal_lines, names, wait_until, waiting

from gpuspool.worker.starting import NotStartable, find_program, has_no_room, run

JOB = """
import multiprocessing
import os
import subprocess
import threading
import time


def _gate(task, ctx):
    if task.index == 0:
        with open(ctx.args["gate"] + ".waiting", "a") as file:
            file.write("0\\n")
        while not os.path.exists(ctx.args["gate"]):
            time.sleep(0.01)


def command(task, ctx):
    _gate(task, ctx)
    subprocess.run(["true"], check=True)


def wrapped(task, ctx):
    _gate(task, ctx)
    try:
        subprocess.run(["true"], check=True)
    except OSError as error:
        raise RuntimeError("the tool failed") from error


def forked(task, ctx):
    _gate(task, ctx)
    process = multiprocessing.get_context("fork").Process(target=int)
    process.start()
    process.join()
    assert process.exitcode == 0


def thread(task, ctx):
    _gate(task, ctx)
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()


class Batched:
    batch_size = 3

    def __call__(self, tasks, ctx):
        return [command(task, ctx) for task in tasks]


class Loading:
    def load(self, task):
        if task.index:
            subprocess.run(["true"], check=True)

    def __call__(self, task, ctx):
        _gate(task, ctx)
        subprocess.run(["true"], check=True)
"""


class Pids:
    """A group of processes that can be kept from becoming more."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.program = ("sh", "-c", 'echo $$ > "$0" && exec "$@"', f"{path}/cgroup.procs")

    def forbid(self) -> None:
        """There are fewer now than would have to be there for another one."""
        now = int((self._path / "pids.current").read_text())
        (self._path / "pids.max").write_text(str(now - 1))

    def allow(self) -> None:
        (self._path / "pids.max").write_text("max")


@pytest.fixture
def pids(box: Box) -> Iterator[Pids]:
    """Made below the group of this process, v1 or v2. Its processes are the box's."""
    path = None
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        top = Path("/sys/fs/cgroup", controllers if controllers == "pids" else "")
        if controllers in ("pids", "") and path is None:
            try:
                path = top / group[1:] / f"starting-{os.getpid()}-{box.home.name}"
                path.mkdir()
            except OSError:
                path = None
            else:
                if not (path / "pids.max").exists():
                    path.rmdir()
                    path = None
    if path is None:
        pytest.skip("no pids cgroup can be made below our own (needs root)")
    yield Pids(path)
    box.kill_all()
    wait_until(lambda: not (path / "cgroup.procs").read_text())
    path.rmdir()


def log_of(box: Box) -> str:
    logs = box / "S" / "logs"
    return "".join((logs / name).read_text() for name in names(logs))


def starve(box: Box, pids: Pids, started: Started) -> None:
    """From the first task on no process can be started, until a worker has met that."""
    wait_until(lambda: waiting(box))
    pids.forbid()
    (box / "gate").touch()
    wait_until(lambda: "no task is to blame" in log_of(box))
    pids.allow()
    started.wait(0)


@pytest.mark.parametrize("name", ["command", "wrapped", "forked", "thread", "Batched", "Loading"])
def test_no_task_fails_where_no_process_can_be_started(box: Box, pids: Pids, name: str) -> None:
    job = box.write("job.py", JOB)
    command = ["run", f"{job}:{name}", "--lines", box.lines(6), "--spool", "S"]
    command += ["--arg", f"gate={box / 'gate'}"]
    starve(box, pids, box.start(*command, program=(*pids.program, GPUSPOOL)))
    assert_sound(box, "S", 6)


def test_no_command_fails_where_no_process_can_be_started(box: Box, pids: Pids) -> None:
    gate = box / "gate"
    script = f"echo 0 >> {gate}.waiting; until [ -e {gate} ]; do :; done"
    command = ["run", "--lines", box.lines(6), "--spool", "S", "--", "sh", "-c", script, "{index}"]
    starve(box, pids, box.start(*command, program=(*pids.program, GPUSPOOL)))
    assert_sound(box, "S", 6)


def test_a_drain_ends_the_wait_for_processes(box: Box, pids: Pids) -> None:
    job = box.write("job.py", JOB)
    command = ["run", f"{job}:command", "--lines", box.lines(2), "--spool", "S"]
    command += ["--arg", f"gate={box / 'gate'}"]
    started = box.start(*command, program=(*pids.program, GPUSPOOL))
    wait_until(lambda: waiting(box))
    pids.forbid()
    (box / "gate").touch()
    wait_until(lambda: "no task is to blame" in log_of(box))
    started.signal(15)
    started.wait(75)
    assert journal_lines(box / "S") == []
    pids.allow()
    box.run(*command)
    assert_sound(box, "S", 2)


def make_missing(path: Path) -> None:
    path.unlink()


def make_plain(path: Path) -> None:
    path.chmod(0o644)


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("spoil", [make_missing, make_plain, make_folder])
def test_no_task_fails_for_a_program_that_is_not_there(
    box: Box, spoil: Callable[[Path], None]
) -> None:
    """The run ends with the reason, and the same command goes on once it is."""
    tool = box.write("tool", "#!/bin/sh\nexit 0\n")
    tool.chmod(0o755)
    spoil(tool)
    command = ["run", "--lines", box.lines(4), "--spool", "S", "--", str(tool), "{index}"]
    done = box.run(*command, code=4)
    assert str(tool) in done.err
    assert journal_lines(box / "S") == []
    if tool.is_dir():
        tool.rmdir()
    tool.write_text("#!/bin/sh\nexit 0\n")
    tool.chmod(0o755)
    box.run(*command)
    assert_sound(box, "S", 4)


def test_no_task_fails_for_a_name_that_is_in_no_folder_of_the_path(box: Box) -> None:
    command = ["run", "--lines", box.lines(4), "--spool", "S", "--", "no-such-command", "{index}"]
    assert "no-such-command" in box.run(*command, code=4).err
    assert journal_lines(box / "S") == []


def test_no_task_fails_for_a_program_that_goes_away_or_cannot_be_executed(box: Box) -> None:
    """A file without a first line that names its interpreter, and not of the machine's form."""
    tool = box.write("tool", "\0not a program")
    tool.chmod(0o755)
    command = ["run", "--lines", box.lines(4), "--spool", "S", "--max-restarts", "0"]
    command += ["--", str(tool), "{index}"]
    assert str(tool) in box.run(*command, code=4).err
    assert journal_lines(box / "S") == []


def test_a_program_that_goes_away_in_the_middle_is_waited_for(box: Box) -> None:
    tool = box.write("tool", '#!/bin/sh\n[ "$1" != 2 ] || mv "$0" "$0.away"\n')
    tool.chmod(0o755)
    command = ["run", "--lines", box.lines(6), "--spool", "S", "--max-restarts", "0"]
    started = box.start(*command, "--", str(tool), "{index}")
    wait_until(lambda: "no task is to blame" in log_of(box))
    assert {line["state"] for line in journal_lines(box / "S")} == {"complete"}
    tool.with_name("tool.away").write_text("#!/bin/sh\n")
    tool.with_name("tool.away").rename(tool)
    started.wait(0)
    assert_sound(box, "S", 6)


def test_a_task_fails_whose_own_words_name_a_program_that_is_not_there(box: Box) -> None:
    command = ["run", "--tasks", box.tasks(["true", "no-such-command"]), "--spool", "S"]
    box.run(*command, "--", "{input}", code=3)
    assert [result["state"] for result in box.results("S")] == ["complete", "failed"]


def test_a_task_fails_whose_words_are_too_long(box: Box) -> None:
    command = ["run", "--tasks", box.tasks(["x" * 200_000, "x"]), "--spool", "S"]
    box.run(*command, "--", "true", "{input}", code=3)
    assert [result["state"] for result in box.results("S")] == ["failed", "complete"]


def test_a_program_that_is_being_written_is_waited_for(box: Box) -> None:
    tool = box / "tool"
    shutil.copy(shutil.which("true") or "", tool)
    with open(tool, "r+b"):
        started = box.start(
            "run", "--lines", box.lines(2), "--spool", "S", "--", str(tool), "{index}"
        )
        wait_until(lambda: "no task is to blame" in log_of(box))
    started.wait(0)
    assert_sound(box, "S", 2)


def test_what_is_found_and_what_is_not(tmp_path: Path) -> None:
    find_program("true")
    find_program(shutil.which("true") or "")
    for name in ("no-such-command", str(tmp_path), str(tmp_path / "nothing")):
        with pytest.raises(NotStartable) as raised:
            find_program(name)
        assert raised.value.filename == name
    with pytest.raises(NotStartable):
        run([str(tmp_path)], is_literal=True)
    with pytest.raises(PermissionError) as plain:
        run([str(tmp_path)], is_literal=False)
    assert not isinstance(plain.value, NotStartable)


def test_an_eagain_of_something_else_is_no_want_of_processes() -> None:
    """Of a socket; a thread that is started twice, and one that was never made."""
    left, right = socket.socketpair()
    left.setblocking(False)
    with pytest.raises(BlockingIOError) as raised:
        left.recv(1)
    assert not has_no_room(raised.value)
    thread = threading.Thread(target=int)
    thread.start()
    with pytest.raises(RuntimeError) as twice:
        thread.start()
    assert not has_no_room(twice.value)

    class Careless(threading.Thread):
        def __init__(self) -> None:
            """It forgets to call that of its parent."""

    with pytest.raises(RuntimeError) as careless:
        Careless().start()
    assert not has_no_room(careless.value)
    thread.join()
    left.close()
    right.close()
