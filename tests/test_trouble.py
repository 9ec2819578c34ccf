"""A file system in trouble fails no task, however the job puts it; what is the task's own stays the
task's own.
"""

import errno
import os
from pathlib import Path

import pytest
from helpers import JOBS, Box, assert_sound, journal_lines, names, record, tree, wait_until
from spooling import close_dead

from gpuspool.spool.errors import Unusable
from gpuspool.spool.layout import OUT_MARK
from gpuspool.spool.view import open_view
from gpuspool.worker.trouble import find_excuse, raise_trouble


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_never_a_tasks_fault_even_behind_another_exception(
    tmp_path: Path, number: int
) -> None:
    full = OSError(number, "full", "/somewhere/x.npy")
    for error in (
        full,
        raised(RuntimeError("cannot save"), full),
        raised(ValueError(), raised(KeyError(), full)),
    ):
        raise_trouble(error, [tmp_path])
        excuse = find_excuse(error)
        assert excuse is not None
        assert (excuse.errno, excuse.filename) == (number, "/somewhere/x.npy")


@pytest.mark.parametrize(
    "error",
    [ValueError("bad"), OSError(errno.EIO, "a bad input"), FileNotFoundError("x"), KeyError()],
)
def test_where_the_output_folder_takes_data_the_task_is_to_blame(
    tmp_path: Path, error: Exception
) -> None:
    raise_trouble(error, [tmp_path])
    raise_trouble(error, [])
    assert list(tmp_path.iterdir()) == []


def test_an_output_folder_that_takes_no_data_is_to_blame(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="gone"):
        raise_trouble(ValueError("bad"), [tmp_path / "gone"])


def test_a_process_without_descriptors_is_unusable(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match="file descriptors"):
        raise_trouble(
            raised(RuntimeError("loader"), OSError(errno.EMFILE, "Too many open files")), [tmp_path]
        )


def test_a_job_that_wraps_a_full_disk_stops_the_run_and_goes_on_later(box: Box) -> None:
    command = [
        "run",
        f"{JOBS}/harsh.py:wraps_a_full_disk",
        "--tasks",
        box.tasks(list("abcdefgh")),
        "--spool",
        "S",
    ]
    command += ["--arg", f"gate={box / 'gate'}", "--max-restarts", "0"]
    done = box.run(*command, code=4)
    assert "No space left on device" in done.err
    assert names(box / "S" / "failed-tasks") == []
    assert record(box / "S" / "failed" / "rank-0000.a00.json")["reason"] == "failures"
    (box / "gate").touch()
    box.run(*command)
    assert_sound(box, "S", 8)


def test_a_job_that_closes_its_stdout_loses_nothing_but_its_words(box: Box) -> None:
    box.write("job.py", "import os\ndef f(task, ctx):\n    os.close(1)\n    return 1\n")
    command = ["run", "job.py:f", "--tasks", box.tasks(["a", "b"]), "--spool", "S", "--keep-going"]
    assert "1 failed" in box.run(*command, code=3).err, (
        "the second call raises, since there is nothing to close"
    )
    assert [result["state"] for result in box.results("S")] == ["complete", "failed"]
    assert names(box / "S" / "attempts") == ["rank-0000.a00.json"]


def test_a_job_may_put_anything_in_the_place_of_stdout(box: Box) -> None:
    command = [
        "run",
        f"{JOBS}/harsh.py:replaces_stdout",
        "--lines",
        box.lines(2),
        "--spool",
        "S",
        "--ranks",
        "1",
    ]
    box.run(*command, "--retries", "1", "--keep-going", code=3)
    assert names(box / "S" / "attempts") == ["rank-0000.a00.json"]
    assert [result["error"]["kind"] for result in box.results("S")] == ["exception"] * 2


def test_a_job_reads_as_it_runs_also_once_its_file_has_changed(box: Box) -> None:
    """For tracebacks, and for torch.jit.script and whoever else asks for its source."""
    box.job("plain.py")
    box.job("harsh.py")
    command = ["run", "harsh.py:changes_its_file", "--lines", box.lines(1), "--spool", "S"]
    box.run(*command, "--keep-going", code=3)
    (result,) = box.results("S")
    assert result["error"]["message"] == "def changes_its_file(task, ctx):"
    assert "inspect.getsource(changes_its_file)" in result["error"]["traceback"]


def test_a_worker_that_was_closed_meanwhile_fails_no_task(box: Box) -> None:
    """Whoever closed it may have removed what it wrote: the error may be of that making."""
    box.job("plain.py")
    gates = box.job("gates.py").read_text()
    once = (
        "\ndef once(task, ctx):\n"
        "    first = not Path('first').exists()\n    Path('first').touch()\n"
        "    pass_gate(ctx.args['gate'])\n    if first:\n        raise ValueError\n"
    )
    box.write("job.py", gates + once)
    command = [
        "run",
        "job.py:once",
        "--lines",
        box.lines(1),
        "--spool",
        "S",
        "--arg",
        f"gate={box / 'gate'}",
    ]
    started = box.start(*command, "--ranks", "1", "--poll", "1d")
    wait_until(lambda: (box / "first").exists())
    close_dead(open_view(box / "S"), "rank-0000.a00", by="resume")
    (box / "gate").touch()
    started.wait(0)
    assert_sound(box, "S", 1)
    assert "failed" not in [line["state"] for line in journal_lines(box / "S")]


def test_of_outputs_in_each_others_way_one_fails_and_the_run_comes_to_its_end(box: Box) -> None:
    tasks = [{"payload": "bare", "key": key} for key in ("a", "a/b", "c/d", "c")]
    command = [
        "run",
        f"{JOBS}/odd.py:writes",
        "--tasks",
        box.tasks(tasks),
        "--spool",
        "S",
        "--ranks",
        "1",
    ]
    done = box.run(*command, "--keep-going", code=3)
    assert "2 of 4 tasks complete, 2 failed" in done.err
    failed = {
        result["key"]: result["error"] for result in box.results("S") if result["state"] == "failed"
    }
    assert {key: error["kind"] for key, error in failed.items()} == {"a/b": "output", "c": "output"}
    assert all("was there first" in error["message"] for error in failed.values())
    kept = {name: data for name, data in tree(box / "S" / "outputs").items() if name != OUT_MARK}
    assert kept == {"a": b"bare", "c": None, "c/d": b"bare"}
    assert names(box / "S" / "attempts") == ["rank-0000.a00.json"]


def test_a_log_that_cannot_be_written_costs_no_task(box: Box) -> None:
    """/dev/full takes no byte: every print of job and worker fails."""
    box.write("job.py", "def f(task, ctx):\n    print('hello', flush=True)\n    return 1\n")
    box.write(
        "full.py", "import os\nos.dup2(os.open('/dev/full', os.O_WRONLY), 1)\nfrom job import f\n"
    )
    command = [
        "run",
        "full.py:f",
        "--tasks",
        box.tasks(["a", "b", "c"]),
        "--spool",
        "S",
        "--max-restarts",
        "0",
    ]
    done = box.run(*command, code=4)
    assert "No space left on device" in done.err
    assert names(box / "S" / "failed-tasks") == []


def test_a_file_is_missed_for_its_mount_only_where_that_is_gone(tmp_path: Path) -> None:
    """As a job says it, by an error that names the file, or as a command does, by none."""
    here, gone = tmp_path / "here", tmp_path / "gone"
    here.mkdir()
    (tmp_path / "link").symlink_to(gone / "data.txt")
    missing = FileNotFoundError(errno.ENOENT, "No such file or directory", str(gone / "x"))
    status = ValueError("exit code 1")
    mounts = ["/proc", str(gone), f"{gone}-too"]
    for path in (gone / "data.txt", tmp_path / "link"):
        for error in (status, OSError(errno.ENOENT, "none", str(path))):
            assert f"mounted there any more: '{gone}'" in str(
                find_excuse(error, [str(path)], mounts)
            )
    assert find_excuse(missing, [], mounts) is not None
    # Missing where nothing was ever mounted, or what is mounted still.
    for path in (here / "x", Path("/proc/nothing")):
        assert find_excuse(status, [str(path)], mounts) is None
    assert find_excuse(missing, [], []) is None
    # On another host the same name may be that of a plain folder.
    gone.mkdir()
    assert find_excuse(missing, [], mounts) is not None
    (gone / "something").touch()
    assert find_excuse(missing, [], mounts) is None


def test_an_input_that_was_missing_and_is_there_again_lies_on_a_mount_that_came_back(
    tmp_path: Path,
) -> None:
    there = str(tmp_path / "data.txt")
    Path(there).touch()
    mounts = [str(tmp_path)]
    missed = FileNotFoundError(errno.ENOENT, "No such file or directory", there)
    assert find_excuse(missed, [there], mounts) is missed
    assert find_excuse(missed, [there], mounts, may_be_back=False) is None
    assert find_excuse(missed, [there], []) is None
    assert find_excuse(missed, [], mounts) is None
    # What a job says that takes its input for a folder, or renames it into a folder that is not.
    for error in (
        NotADirectoryError(errno.ENOTDIR, "Not a directory", there),
        FileNotFoundError(errno.ENOENT, "none", there, None, "missing/x"),
    ):
        assert find_excuse(error, [there], mounts) is None


@pytest.mark.parametrize("name", ["a/\0b", "a/\ud800b", "a/" + "n" * 5000])
def test_an_input_may_have_a_name_that_no_file_has(name: str) -> None:
    assert find_excuse(ValueError(name), [name], ["/"]) is None
    assert find_excuse(OSError(errno.EIO, "bad", name), [name], ["/"]) is None


def test_a_job_may_fail_in_a_folder_that_was_removed(tmp_path: Path) -> None:
    """Relative paths lead nowhere from there, which is no trouble with any disk."""
    home = Path.cwd()
    folder = tmp_path / "cwd"
    folder.mkdir()
    os.chdir(folder)
    try:
        folder.rmdir()
        error = FileNotFoundError(errno.ENOENT, "No such file or directory", "weights.pt")
        raise_trouble(error, [], out=tmp_path)
        assert find_excuse(error, ["a.txt"], ["/proc"]) is None
    finally:
        os.chdir(home)
