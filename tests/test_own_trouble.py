"""Whose trouble it is: a task's own is not taken for the disk's, nor the disk's for a task's."""

import ctypes
import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import Box, assert_sound, journal_lines, names, record, wait_until
from spooling import view_of
from torture import mounts

from gpuspool.spool.errors import EXIT_CANNOT_CLOSE
from gpuspool.spool.exits import describe_exit
from gpuspool.spool.layout import Layout
from gpuspool.spool.sweep import stranded_tasks

needs_mounts = pytest.mark.skipif(bool(mounts.why_not()), reason=mounts.why_not() or "-")
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root mounts")


# A job may end its process with any exit code, so also with those that workers have.


@pytest.mark.parametrize("code", [0, 1, 4, 74, 75, 76])
def test_whatever_code_a_job_exits_with_its_task_is_blamed(box: Box, code: int) -> None:
    box.write(
        "job.py",
        "import os\n"
        "def f(task, ctx):\n"
        "    if task.index == 1:\n"
        f"        os._exit({code})\n"
        "    return 1\n",
    )
    box.run("run", "job.py:f", "--lines", box.lines(4), "--spool", "S", "--ranks", "1", code=3)
    results = box.results("S")
    assert [result["state"] for result in results] == ["complete", "failed", "complete", "complete"]
    assert (results[1]["error"]["kind"], results[1]["error"]["exit_code"]) == ("lost", code)


@pytest.mark.parametrize("code", [4, 74, 76])
def test_whatever_code_a_command_exits_with_its_task_fails_with_it(box: Box, code: int) -> None:
    script = f'test "$1" != 1 || exit {code}'
    command = ["--spool", "S", "--ranks", "1", "--", "sh", "-c", script, "sh", "{input}"]
    box.run("run", "--lines", box.lines(3), *command, code=3)
    results = box.results("S")
    assert [result["state"] for result in results] == ["complete", "failed", "complete"]
    assert (results[1]["error"]["kind"], results[1]["error"]["exit_code"]) == ("exit", code)


def test_a_job_that_exits_while_it_is_made_is_no_disk_in_trouble(box: Box) -> None:
    box.write("job.py", "import os\nos._exit(74)\ndef f(task, ctx): return 1\n")
    command = ["run", "job.py:f", "--lines", box.lines(2), "--spool", "S", "--ranks", "1"]
    done = box.run(*command, "--max-restarts", "0", code=4)
    assert "exit code 74" in done.err
    assert record(box / "S" / "failed" / "rank-0000.a00.json")["reason"] == "crash"


# Starts a worker with all signals blocked, as a job may leave them.
BLOCKED = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
os.execv(sys.executable, [sys.executable, "-P", "-m", "gpuspool.worker", *sys.argv[1:]])
"""


@as_root
def test_a_worker_that_cannot_write_says_so_by_a_signal_of_its_own(box: Box) -> None:
    """Its spool is on a file system that an error has made read-only."""
    box.write("job.py", "def f(task, ctx): return 1\n")
    mounted = box / "disk"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", mounted], check=True)
    try:
        box.run("run", "job.py:f", "--lines", box.lines(1), "--spool", "disk/S", "--ranks", "1")
        attempts = mounted / "S" / "attempts"
        shutil.copy(attempts / "rank-0000.a00.json", attempts / "rank-0000.a01.json")
        subprocess.run(["mount", "-o", "remount,ro", mounted], check=True)
        words = ["--spool", mounted / "S", "--rank", "0", "--attempt", "1"]
        ended = subprocess.run(
            [sys.executable, "-P", "-c", BLOCKED, *words],
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        subprocess.run(["umount", mounted], check=True)
    assert ended.returncode == EXIT_CANNOT_CLOSE, ended.stdout + ended.stderr
    assert "Read-only file system" in ended.stdout + ended.stderr
    assert describe_exit(ended.returncode) == "it could not write how it ended"


# A path belongs to the folder that it lies in, not to one whose name begins alike.


@pytest.mark.parametrize("where", ["S-weights.txt", "Sweights", "S/outputs/weights.txt"])
def test_a_file_that_a_job_misses_is_its_own_wherever_it_would_lie(box: Box, where: str) -> None:
    box.write(
        "job.py",
        "class Job:\n"
        "    def __init__(self, ctx):\n"
        f"        open({str(box / where)!r})\n"
        "    def __call__(self, task, ctx): return 1\n",
    )
    command = ["run", "job.py:Job", "--lines", box.lines(2), "--spool", "S", "--ranks", "1"]
    done = box.run(*command, code=4)
    assert "FileNotFoundError" in done.err
    assert "open(" in done.err, "the traceback is there"
    assert names(box / "S" / "attempts") == ["rank-0000.a00.json"], "no restart helps"
    assert record(box / "S" / "failed" / "rank-0000.a00.json")["reason"] == "load"


@pytest.mark.parametrize(
    "raises",
    [
        "open(ctx.output(task).parent / ('n' * 300), 'w')",
        "open(ctx.output(task).parent / 'missing' / 'file')",
        "open('/proc/self/mem', 'rb').read(1)",
        "open('/proc/self/nosuch/input')",
        "open('/dev/null/x')",
        "os.rename('/proc/self/a', ctx.output(task))",
        "raise_(OSError(errno.ESTALE, 'stale', 'lines'))",
        "raise_(OSError(errno.EIO, 'a bad sector', __file__))",
        "raise_(OSError(errno.ENOTCONN, 'a socket of its own'))",
        "raise_(OSError(errno.ETIMEDOUT, 'a server of its own', 7))",
        "raise_(OSError(errno.EROFS, 'Read-only', b'/usr/x'))",
    ],
)
def test_an_error_of_the_system_in_a_healthy_folder_fails_its_task_alone(
    box: Box, raises: str
) -> None:
    box.write(
        "job.py",
        "import errno, os\n"
        "def raise_(error): raise error\n"
        "def f(task, ctx):\n"
        "    if task.index == 1:\n"
        f"        {raises}\n"
        "    return 1\n",
    )
    command = ["run", "job.py:f", "--lines", box.lines(3), "--spool", "S", "--ranks", "1"]
    box.run(*command, "--keep-going", code=3)
    states = [result["state"] for result in box.results("S")]
    assert states == ["complete", "failed", "complete"]
    assert box.results("S")[1]["error"]["kind"] == "exception"
    assert names(box / "S" / "attempts") == ["rank-0000.a00.json"]


@pytest.fixture
def dead_mount(tmp_path: Path) -> Iterator[Path]:
    """A FUSE mount whose server is gone: whatever is done there fails with ENOTCONN."""
    if os.getuid() != 0 or not Path("/dev/fuse").exists():
        pytest.skip("needs root and /dev/fuse")
    folder = tmp_path / "dead"
    folder.mkdir()
    fuse = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    mounted = libc.mount(b"none", os.fsencode(folder), b"fuse", 0, options)
    number = ctypes.get_errno()
    os.close(fuse)
    if mounted != 0:
        pytest.skip(f"cannot mount FUSE here: {os.strerror(number)}")
    try:
        yield folder
    finally:
        libc.umount2(os.fsencode(folder), 2)


READS = """
class Job:
    def __call__(self, task, ctx):
        {read}
        return 1
"""


@pytest.mark.parametrize(
    "read",
    [
        "open(task.path).read()",
        # What read(2) raises names no file.
        "raise OSError(107, 'Transport endpoint is not connected')",
        "\n        try:\n            open(task.path)\n        except OSError as error:\n"
        "            raise RuntimeError('cannot decode') from error",
    ],
)
def test_inputs_on_a_mount_whose_server_is_gone_fail_no_task(
    box: Box, dead_mount: Path, read: str
) -> None:
    box.write("job.py", READS.format(read=read))
    tasks = box.tasks([{"path": str(dead_mount / f"{index}.txt")} for index in range(3)])
    command = ["run", "job.py:Job", "--tasks", tasks, "--spool", "S", "--ranks", "1"]
    done = box.run(*command, "--max-restarts", "0", code=4)
    assert "Transport endpoint is not connected" in done.err
    assert names(box / "S" / "failed-tasks") == []
    assert record(box / "S" / "failed" / "rank-0000.a00.json")["reason"] == "failures"
    ctypes.CDLL(None).umount2(os.fsencode(dead_mount), 2)
    for index in range(3):
        (dead_mount / f"{index}.txt").write_text("back again")
    box.write("job.py", READS.format(read="open(task.path).read()"))
    box.run(*command, "--keep-done")
    assert_sound(box, "S", 3)


def test_loads_that_read_from_a_dead_mount_fail_no_task(box: Box, dead_mount: Path) -> None:
    box.write(
        "job.py",
        "class Job:\n"
        "    batch_size = 2\n"
        "    def load(self, task): return open(task.path).read()\n"
        "    def __call__(self, tasks, ctx): return [1 for task in tasks]\n",
    )
    tasks = box.tasks([{"path": str(dead_mount / f"{index}.txt")} for index in range(3)])
    command = ["run", "job.py:Job", "--tasks", tasks, "--spool", "S", "--ranks", "1"]
    box.run(*command, "--max-restarts", "0", code=4)
    assert names(box / "S" / "failed-tasks") == []


@needs_mounts
@pytest.mark.parametrize("job", ["raises", "fails", "writes nothing"])
def test_inputs_whose_mount_went_away_wait_for_it_while_all_others_complete(
    box: Box, job: str
) -> None:
    """The error says only that there is no such file; where nothing is mounted any more says why.

    No input is missing for the others, so each process goes on to prove that it is in order.
    """
    here, there = box / "here", box / "there"
    (box / "data").mkdir()
    for number in range(8):
        (box / "data" / f"{number}.txt").write_text("x")
    for point in (here, there):
        point.mkdir()
        mounts.call("mount", "--bind", box / "data", point)
    box.write(
        "job.py",
        "import os, time\n"
        "def f(task, ctx):\n"
        "    while not os.path.exists('gate'): time.sleep(0.02)\n"
        "    open(task.path)\n",
    )
    inputs = [here / "*.txt", there / "*.txt", "--spool", "S", "--ranks", "2"]
    script = "while ! [ -e gate ]; do sleep 0.02; done; "
    script += 'cp "$1" "$2"' if job == "fails" else 'if [ -e "$1" ]; then cp "$1" "$2"; fi'
    if job == "raises":
        started = box.start("run", "job.py:f", *inputs)
    else:
        words = ["sh", "-c", script, "sh", "{input}", "{output}.txt"]
        started = box.start("run", *inputs, "--", *words)
    try:
        wait_until(lambda: names(box / "S" / "journal"))
        mounts.call("umount", "--lazy", here)
        (box / "gate").touch()
        wait_until(lambda: "nothing is mounted there any more" in started.err)
        wait_until(lambda: len(completed(box / "S")) == 8)
        wait_until(lambda: box.status("S")["excused"] == 8)
        assert box.status("S")["doubtful"] == 8
        told = box.run("status", "S").out
        assert "8 tasks have failed somewhere, with no verdict yet; 8 of them for a file" in told
        mounts.call("mount", "--bind", box / "data", here)
        started.wait(0)
    finally:
        for point in (here, there):
            mounts.call("umount", "--lazy", point, ok=(0, 1, 32))
    assert_sound(box, "S", 16)
    assert names(box / "S" / "failed-tasks") == []


@needs_mounts
def test_a_task_that_fills_a_disk_of_its_own_waits_and_names_it(box: Box) -> None:
    """Other tasks complete meanwhile, in the same process."""
    box.write(
        "job.py",
        "def f(task, ctx):\n"
        "    with open('scratch/big', 'wb') as file:\n"
        "        file.write(bytes(2_000_000 if task.index == 1 else 10))\n",
    )
    with mounts.mounted(mounts.Tmpfs, box / "scratch", 1_000_000, 10):
        command = ["run", "job.py:f", "--lines", box.lines(6), "--spool", "S", "--ranks", "1"]
        started = box.start(*command)
        wait_until(lambda: "No space left on device" in started.err)
        wait_until(lambda: len(completed(box / "S")) == 5)
        mounts.call("mount", "-o", "remount,size=4000000", box / "scratch")
        started.wait(0)
    assert_sound(box, "S", 6)
    assert names(box / "S" / "attempts") == ["rank-0000.a00.json"]


@needs_mounts
def test_a_task_that_waited_for_a_disk_is_nobody_elses_when_its_own_process_takes_it_again(
    box: Box,
) -> None:
    """That process has it in hand, though it failed there before: no idle one runs it beside."""
    box.write(
        "job.py",
        "import errno, os, pathlib, time\n"
        "def f(task, ctx):\n"
        "    if task.index: return\n"
        "    if not os.path.exists('once'):\n"
        "        pathlib.Path('once').write_text(ctx.attempt)\n"
        "        raise OSError(errno.ENOSPC, 'full', '/scratch/x')\n"
        "    with open('again', 'a') as file: file.write(ctx.attempt + '\\n')\n"
        "    while not os.path.exists('gate'): time.sleep(0.02)\n",
    )
    command = ["run", "job.py:f", "--lines", box.lines(2), "--spool", "S", "--ranks", "1"]
    started = box.start(*command)
    wait_until((box / "again").exists)
    assert stranded_tasks(view_of(Layout(box / "S"))) == []
    (box / "gate").touch()
    started.wait(0)
    assert (box / "again").read_text() == "rank-0000.a00\n"
    assert_sound(box, "S", 2)


@needs_mounts
def test_a_script_without_its_interpreter_fails_though_it_is_told_as_a_missing_input(
    box: Box,
) -> None:
    with mounts.mounted(mounts.Tmpfs, box / "scripts", 1_000_000, 100):
        for number in range(8):
            script = box / "scripts" / f"{number}.sh"
            script.write_text("#!/nowhere/sh\n" if number == 3 else "#!/bin/sh\nexit 0\n")
            script.chmod(0o755)
        inputs = ["scripts/*.sh", "--spool", "S", "--ranks", "2"]
        box.run("run", *inputs, "--", "{input}", code=3)
    assert [result["key"] for result in box.results("S") if result["state"] == "failed"] == ["3.sh"]


def test_an_exception_that_was_returned_is_excused_as_one_that_was_raised(
    box: Box, dead_mount: Path
) -> None:
    box.write(
        "job.py",
        "class Job:\n"
        "    batch_size = 4\n"
        "    def __call__(self, tasks, ctx):\n"
        "        bad = ValueError('no image')\n"
        "        return [bad if task.payload['path'] else 1 for task in tasks]\n",
    )
    payloads: list[Any] = [{"path": ""} for _ in range(7)]
    payloads.append({"path": str(dead_mount / "x")})
    command = ["run", "job.py:Job", "--tasks", box.tasks(payloads), "--spool", "S", "--ranks", "2"]
    started = box.start(*command)
    wait_until(lambda: "no task is to blame: [Errno 107]" in started.err)
    wait_until(lambda: len(completed(box / "S")) == 7)
    started.signal(signal.SIGTERM)
    started.wait(75)


def completed(spool: Path) -> list[int]:
    return [line["task"] for line in journal_lines(spool) if line["state"] == "complete"]


@as_root
def test_an_out_that_became_read_only_fails_no_task_that_writes_beside_its_output(box: Box) -> None:
    """The error names a file in OUT that was never asked for, and a look there confirms it."""
    box.write(
        "job.py",
        "import pathlib, subprocess\n"
        "def f(task, ctx):\n"
        f"    out = pathlib.Path({str(box / 'disk' / 'out')!r})\n"
        "    if not pathlib.Path('once').exists():\n"
        "        subprocess.run(['mount', '-o', 'remount,ro', out.parent], check=True)\n"
        "        pathlib.Path('once').touch()\n"
        "    (out / f'.{task.key}.lock').touch()\n"
        "    return 1\n",
    )
    mounted = box / "disk"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", mounted], check=True)
    try:
        command: list[Any] = ["run", "job.py:f", "--lines", box.lines(3), "--spool", "S"]
        command += ["--out", mounted / "out", "--ranks", "1"]
        done = box.run(*command, "--max-restarts", "0", code=4)
        assert os.strerror(errno.EROFS) in done.err
        assert names(box / "S" / "failed-tasks") == []
        subprocess.run(["mount", "-o", "remount,rw", mounted], check=True)
        box.run(*command)
        assert_sound(box, "S", 3)
    finally:
        subprocess.run(["umount", mounted], check=True)
