"""Outputs that are asked for where nobody would publish them, and what is no output.

No task is told complete whose output is not there whole, and none of this is taken for trouble with
the disk.
"""

import os
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import Box, names, tree, wait_until
from spooling import A0, A1, hidden_files

from gpuspool.spool.errors import OutputError
from gpuspool.spool.layout import OUT_MARK
from gpuspool.worker.context import Task
from gpuspool.worker.outputs import Outputs, _refuse_namesake


@pytest.fixture
def out(tmp_path: Path) -> Path:
    path = tmp_path / "out"
    path.mkdir()
    return path


def in_call(out: Path, attempt: str = A0) -> Outputs:
    outputs = Outputs(out, attempt)
    outputs.in_hand = range(100)
    return outputs


def a_task(index: int = 0, key: str = "") -> Task:
    return Task(index=index, key=key or f"t{index}", payload=None, cost=1.0)


def run_job(box: Box, source: str, count: int, *more: str | Path, code: int | None) -> list[Any]:
    """Run `job.py:Job` over so many lines on one rank; returns the results."""
    box.write("job.py", source)
    box.run(
        *("run", "job.py:Job", "--lines", box.lines(count), "--spool", "S", "--ranks", "1"),
        *more,
        code=code,
    )
    return box.results("S")


def published(box: Box) -> list[str]:
    return names(box / "S" / "outputs")


# Asked for elsewhere.


@pytest.mark.parametrize("batch", ["", "    batch_size = 1\n"])
def test_a_task_cannot_ask_for_the_output_of_the_task_before(box: Box, batch: str) -> None:
    one = "tasks[0]" if batch else "tasks"
    results = run_job(
        box,
        "class Job:\n"
        "    last = None\n"
        f"{batch}"
        "    def __call__(self, tasks, ctx):\n"
        f"        last, self.last = self.last, {one}\n"
        "        if last is not None:\n"
        "            ctx.output(last, '.txt').write_text('late')\n"
        f"        return {'[None]' if batch else None}\n",
        8,
        "--keep-going",
        code=3,
    )
    assert [result["state"] for result in results] == ["complete"] + ["failed"] * 7
    assert {result["error"]["kind"] for result in results[1:]} == {"output"}
    assert "outside of its call" in results[1]["error"]["message"]
    assert hidden_files(box / "S" / "outputs") == [OUT_MARK]


def test_a_load_that_asks_for_outputs_fails_its_task_and_drops_no_other(box: Box) -> None:
    """One call raises, whatever the others asked for ahead of theirs."""
    results = run_job(
        box,
        "class Job:\n"
        "    batch_size = 2\n"
        "    def __init__(self, ctx):\n"
        "        self.ctx = ctx\n"
        "    def load(self, task):\n"
        "        if task.index % 4 == 3:\n"
        "            self.ctx.output(task, '.txt').write_text('ahead')\n"
        "    def __call__(self, tasks, ctx):\n"
        "        if any(task.index == 4 for task in tasks):\n"
        "            raise ValueError\n"
        "        for task in tasks:\n"
        "            ctx.output(task, '.txt').write_text('in time')\n"
        "        return [None for task in tasks]\n",
        8,
        code=3,
    )
    failed = {r["index"]: r["error"]["kind"] for r in results if r["state"] == "failed"}
    assert failed == {3: "output", 4: "exception", 7: "output"}
    assert published(box) == ["t0.txt", "t1.txt", "t2.txt", "t5.txt", "t6.txt"]


def test_a_batch_cannot_ask_for_a_task_that_is_not_in_it(box: Box) -> None:
    results = run_job(
        box,
        "class Job:\n"
        "    batch_size = 2\n"
        "    first = None\n"
        "    def __call__(self, tasks, ctx):\n"
        "        self.first = self.first or tasks[0]\n"
        "        ctx.output(self.first, '.txt').write_text('mine')\n"
        "        return [None for task in tasks]\n",
        4,
        "--keep-going",
        code=3,
    )
    assert [result["state"] for result in results] == ["complete"] * 2 + ["failed"] * 2
    assert published(box) == ["t0.txt"]


@pytest.mark.parametrize("words", ["'.txt'", "task.key, '.txt'", "[task], '.txt'"])
def test_who_asks_without_a_task_is_told_how_to_ask(box: Box, words: str) -> None:
    job = f"def Job(task, ctx): ctx.output({words})\n"
    [result] = run_job(box, job, 1, "--keep-going", code=3)
    assert result["error"]["type"] == "TypeError"
    assert "ctx.output(task, '.npy')" in result["error"]["message"]


def test_a_constructor_has_no_task_to_ask_for(box: Box) -> None:
    box.write(
        "job.py",
        "from gpuspool import Task\n"
        "class Job:\n"
        "    def __init__(self, ctx):\n"
        "        ctx.output(Task(0, 't0', None, 1.0), '.txt').write_text('early')\n"
        "    def __call__(self, task, ctx): return 1\n",
    )
    command = ["run", "job.py:Job", "--lines", box.lines(2), "--spool", "S", "--ranks", "1"]
    assert "outside of its call" in box.run(*command, code=4).err
    assert hidden_files(box / "S" / "outputs") == [OUT_MARK]


def test_a_thread_that_outlives_its_call_cannot_ask(box: Box) -> None:
    results = run_job(
        box,
        "import threading\n"
        "said = []\n"
        "class Job:\n"
        "    def __call__(self, task, ctx):\n"
        "        def late():\n"
        "            done.wait()\n"
        "            try:\n"
        "                ctx.output(task, '.txt').write_text('late')\n"
        "                said.append('written')\n"
        "            except Exception as error:\n"
        "                said.append(type(error).__name__)\n"
        "        if task.index:\n"
        "            self.done.set()\n"
        "            self.thread.join()\n"
        "            return said\n"
        "        self.done = done = threading.Event()\n"
        "        self.thread = threading.Thread(target=late)\n"
        "        self.thread.start()\n",
        2,
        code=0,
    )
    assert results[1]["result"] == ["OutputError"]
    assert published(box) == []


def test_a_process_that_the_job_forked_cannot_ask_and_may_be_handed_a_path(box: Box) -> None:
    """What it asks for its parent never hears of, and so nobody would publish it."""
    results = run_job(
        box,
        "import os\n"
        "class Job:\n"
        "    def __call__(self, task, ctx):\n"
        "        path = ctx.output(task, '.parent')\n"
        "        pid = os.fork()\n"
        "        if pid == 0:\n"
        "            path.write_text('by the child')\n"
        "            try:\n"
        "                ctx.output(task, '.child').write_text('lost')\n"
        "            except Exception as error:\n"
        "                os._exit(7 if type(error).__name__ == 'OutputError' else 8)\n"
        "            os._exit(0)\n"
        "        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])\n",
        2,
        code=0,
    )
    assert [result["result"] for result in results] == [7, 7]
    assert published(box) == ["t0.parent", "t1.parent"]
    assert hidden_files(box / "S" / "outputs") == [OUT_MARK]


def test_what_a_thread_writes_after_a_failed_call_does_not_reach_the_next_try(out: Path) -> None:
    outputs = in_call(out)
    first = outputs.path(a_task(), ".txt")
    outputs.discard()
    second = outputs.path(a_task(), ".txt")
    assert first != second
    second.write_text("whole")
    first.write_text("late")
    assert outputs.publish([0]) == {0: [("t0.txt", 5)]}
    assert (out / "t0.txt").read_text() == "whole"


def test_verify_names_what_was_written_too_late(box: Box) -> None:
    box.write(
        "job.py",
        "import atexit\n"
        "def f(task, ctx):\n"
        "    path = ctx.output(task, '.txt')\n"
        "    path.write_text('in time')\n"
        "    atexit.register(path.write_text, 'too late')\n",
    )
    box.run("run", "job.py:f", "--lines", box.lines(2), "--spool", "S", "--ranks", "1")
    done = box.run("verify", "S")
    assert "2 hidden files or folders" in done.out + done.err
    assert box.problems("S") == []
    assert published(box) == ["t0.txt", "t1.txt"]


# What is no output.


def fifo(path: Path, other: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path, other: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        # Its address takes 108 bytes at most.
        listening.bind(f"/proc/self/fd/{os.open(path.parent, os.O_PATH)}/{path.name}")


def device(path: Path, other: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root makes devices")
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 7))


def link_elsewhere(path: Path, other: Path) -> None:
    path.symlink_to(other)


def link_to_nothing(path: Path, other: Path) -> None:
    path.symlink_to("nowhere")


def hard_link(path: Path, other: Path) -> None:
    os.link(other, path)


ODD = [fifo, unix_socket, device, link_elsewhere, link_to_nothing, hard_link]


@pytest.mark.parametrize("is_inside", [False, True], ids=["alone", "in a folder"])
@pytest.mark.parametrize("make", ODD)
def test_what_is_no_file_of_its_own_fails_its_task(
    out: Path, tmp_path: Path, make: Callable[[Path, Path], None], is_inside: bool
) -> None:
    other = tmp_path / "input"
    other.write_text("an input")
    outputs = in_call(out)
    path = outputs.path(a_task(), ".d")
    if is_inside:
        (path / "sub").mkdir(parents=True)
        (path / "whole").write_text("whole")
        path = path / "sub" / "odd"
    make(path, other)
    outputs.path(a_task(1), ".d").write_text("whole")
    said = outputs.publish([0, 1])
    assert isinstance(said[0], OutputError)
    assert said[1] == [("t1.d", 5)]
    assert tree(out) == {"t1.d": b"whole"}
    assert other.read_text() == "an input"


def test_a_fifo_holds_up_no_worker_and_fails_its_task_alone(box: Box) -> None:
    results = run_job(
        box,
        "import os\n"
        "class Job:\n"
        "    def __call__(self, task, ctx):\n"
        "        path = ctx.output(task, '.txt')\n"
        "        if task.index == 1:\n"
        "            os.mkfifo(path)\n"
        "        else:\n"
        "            path.write_text('whole')\n",
        3,
        "--keep-going",
        code=3,
    )
    assert [result["state"] for result in results] == ["complete", "failed", "complete"]
    assert results[1]["error"]["kind"] == "output"
    assert "a fifo" in results[1]["error"]["message"]
    assert len(names(box / "S" / "attempts")) == 1


def test_links_that_leave_an_output_folder_fail_it_however_they_are_written(out: Path) -> None:
    for index, target in enumerate(["..", "../../x", str(out), "sub/../../y", "me"]):
        outputs = in_call(out)
        folder = outputs.path(a_task(index), ".d")
        (folder / "sub").mkdir(parents=True)
        (folder / "me").symlink_to(target)
        assert isinstance(outputs.publish([index])[index], OutputError), target
    assert tree(out) == {}


def test_an_output_that_nobody_may_read_fails_its_task(box: Box) -> None:
    """Root may read it, so the task is complete there."""
    results = run_job(
        box,
        "class Job:\n"
        "    def __call__(self, task, ctx):\n"
        "        path = ctx.output(task, '.txt')\n"
        "        path.write_text('whole')\n"
        "        path.chmod(0)\n",
        1,
        code=0 if os.getuid() == 0 else 3,
    )
    if os.getuid() != 0:
        assert results[0]["error"]["kind"] == "output"


@pytest.mark.parametrize("make", [fifo, device, link_elsewhere, link_to_nothing])
def test_something_odd_at_the_final_name_fails_the_task_and_stays(
    out: Path, tmp_path: Path, make: Callable[[Path, Path], None]
) -> None:
    other = tmp_path / "other"
    other.write_text("somebody's")
    make(out / "t0.txt", other)
    outputs = in_call(out)
    outputs.path(a_task(), ".txt").write_text("whole")
    said = outputs.publish([0])[0]
    assert isinstance(said, OutputError)
    assert "was there first" in str(said)
    assert os.path.lexists(out / "t0.txt")
    assert hidden_files(out) == []


# Names.


@pytest.fixture
def blind_folder(tmp_path: Path) -> Any:
    """A folder on a file system that does not tell upper case from lower case."""
    if os.getuid() != 0:
        pytest.skip("only root mounts")
    image = tmp_path / "image"
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(32 << 20)
    try:
        subprocess.run(["mkfs.ext4", "-q", "-O", "casefold", image], check=True)
        subprocess.run(["mount", "-o", "loop", image, mounted], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no ext4 with casefold here: {error}")
    try:
        folder = mounted / "out"
        folder.mkdir()
        subprocess.run(["chattr", "+F", folder], check=True)
        yield folder
    finally:
        subprocess.run(["umount", mounted], check=True)


def test_names_that_a_file_system_does_not_tell_apart_are_not_taken_for_one_task(
    blind_folder: Path,
) -> None:
    outputs = in_call(blind_folder)
    for index, key in enumerate(["Cat", "cat", "\u00e9t\u00e9", "e\u0301te\u0301"]):
        outputs.path(a_task(index, key), ".txt").write_text(key)
        outputs.path(a_task(index, key), ".d").mkdir()
    said = outputs.publish(range(4))
    assert isinstance(said[1], OutputError)
    assert "does not tell its name from 'Cat.txt'" in str(said[1])
    assert isinstance(said[0], list)
    assert isinstance(said[2], list)
    assert isinstance(said[3], OutputError)
    again = in_call(blind_folder, A1)
    again.path(a_task(0, "Cat"), ".txt").write_text("Cat")
    assert again.publish([0]) == {0: [("Cat.txt", 3)]}, "the same task may run twice"


def test_a_key_whose_folder_has_too_long_a_name_fails_its_task_alone(box: Box) -> None:
    keys = ["good", "k" * 256 + "/a", "a/" + "\u00e4" * 128, "/".join(["d" * 200] * 21), "last"]
    box.write("job.py", "def f(task, ctx):\n    ctx.output(task, '.txt').write_text('x')\n")
    tasks = box.tasks([{"key": key, "payload": None} for key in keys])
    command = ["run", "job.py:f", "--tasks", tasks, "--spool", "S", "--ranks", "1"]
    box.run(*command, code=3)
    results = box.results("S")
    assert [r["state"] for r in results] == ["complete", *["failed"] * 3, "complete"]
    assert {r["error"]["kind"] for r in results[1:4]} == {"output"}
    assert published(box) == ["good.txt", "last.txt"]


def test_the_name_that_was_there_first_is_told(out: Path) -> None:
    """What the test above shows, for machines without such a file system: the look itself."""
    for name in ("Cat.txt", "\u00e9t\u00e9", "own"):
        (out / name).touch()
    for name in ("cat.txt", "e\u0301te\u0301"):
        with pytest.raises(OutputError, match="does not tell its name from"):
            _refuse_namesake(out / name)
    _refuse_namesake(out / "own")
    _refuse_namesake(out / "a listing may be old")


@pytest.mark.skipif(os.getuid() != 0, reason="only root mounts")
def test_a_folder_that_cannot_be_made_on_a_sick_file_system_fails_no_task(out: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", out], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro", out], check=True)
        outputs = in_call(out)
        with pytest.raises(OSError, match="Read-only"):
            outputs.path(a_task(0, "a/b"), ".txt")
        assert outputs.trouble is not None
    finally:
        subprocess.run(["umount", out], check=True)


def test_a_run_goes_on_while_its_outputs_are_looked_at(box: Box) -> None:
    """`verify` of a live run takes no hidden output for one that was forgotten."""
    box.write(
        "job.py",
        "import pathlib, time\n"
        "def f(task, ctx):\n"
        "    ctx.output(task, '.txt').write_text('x')\n"
        "    pathlib.Path('begun').touch()\n"
        "    while not pathlib.Path('gate').exists():\n"
        "        time.sleep(0.01)\n",
    )
    started = box.start("run", "job.py:f", "--lines", box.lines(1), "--spool", "S")
    wait_until(lambda: (box / "begun").exists())
    done = box.run("verify", "S", code=None)
    assert "hidden" not in done.out + done.err
    (box / "gate").touch()
    started.wait(0)
