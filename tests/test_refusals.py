"""Bad input: one paragraph that says what, where and what next, an exit code, no traceback; and
nothing is lost.
"""

import os
import stat
import subprocess
from pathlib import Path

import pytest
from helpers import GPUSPOOL, JOBS, MARK, PATIENCE_S, Box, Done, names, tree

PLAIN = f"{JOBS}/plain.py"
DOUBLE = f"{PLAIN}:double"
UUIDS = {"CUDA_VISIBLE_DEVICES": "GPU-aaaa,GPU-bbbb", "GPUSPOOL_DEVICE_CHECK": "off"}


def refused(box: Box, *args: str | Path, says: str, code: int = 2, **settings: object) -> Done:
    """Run a command that is refused before it changes anything."""
    before = tree(box.home)
    done = box.run(*args, code=code, **settings)
    assert_one_paragraph(done)
    assert says in done.err
    assert tree(box.home) == before, "a refused command leaves everything as it was"
    return done


def assert_one_paragraph(done: Done) -> None:
    assert done.out == ""
    assert done.err.endswith("\n")
    usage, _, message = done.err.rpartition("\n\n")
    assert usage == "" or usage.startswith("Usage: "), (
        "only the usage of a command may stand before the paragraph"
    )
    assert message.startswith(("gpuspool: ", "Error: "))
    assert "Traceback" not in done.err


def test_a_job_that_is_not_there(box: Box) -> None:
    lines = box.lines(2)
    refused(
        box,
        "run",
        "absent.py:f",
        "--lines",
        lines,
        says=f"job file {box / 'absent.py'}: No such file",
    )
    refused(
        box,
        "run",
        "no.such.module:f",
        "--lines",
        lines,
        says="module no.such.module cannot be found",
    )
    refused(box, "run", "json:dumps2", "--lines", lines, says="has no dumps2")
    refused(box, "run", "math:sqrt", "--lines", lines, says="cannot be found as Python source")
    refused(box, "run", "--lines", lines, says="JOB is missing")
    refused(box, "run", PLAIN, "--lines", lines, says="is not file.py:Name")
    refused(
        box,
        "run",
        f"{PLAIN}:doubel",
        "--lines",
        lines,
        says="Did you mean double? It has: Add, Batches, Outer, describe, double",
    )
    refused(box, "run", "--lines", lines, "--", says="there is no command after `--`")


def test_a_job_file_that_cannot_be_taken(box: Box) -> None:
    lines = box.lines(2)
    box.write("broken.py", "def f(task, ctx:\n")
    refused(box, "run", "broken.py:f", "--lines", lines, says="does not parse")
    box.write("gpuspool.py", "def f(task, ctx): pass\n")
    refused(box, "run", "gpuspool.py:f", "--lines", lines, says="cannot be named 'gpuspool'")
    refused(
        box, "run", "gpuspool.spool.state:f", "--lines", lines, says="cannot be named 'gpuspool'"
    )
    box.write("open.py", "def f(task, ctx): pass\n").chmod(0o666)
    refused(box, "run", "open.py:f", "--lines", lines, says="may be written by everybody")
    (box / "folder.py").mkdir()
    refused(box, "run", "folder.py:f", "--lines", lines, says="Is a directory")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (
            "raise ZeroDivisionError('at import')\ndef job(task, ctx): pass\n",
            "ZeroDivisionError: at import",
        ),
        (
            "class job:\n    def __init__(self, ctx):\n        raise KeyError('in init')\n",
            "KeyError: 'in init'",
        ),
        ("import no_such_module\ndef job(task, ctx): pass\n", "No module named 'no_such_module'"),
        ("import sys\nsys.exit(7)\ndef job(task, ctx): pass\n", "SystemExit: 7"),
        ("job = 5\n", "job.py:job is not callable"),
        (
            "class job:\n    batch_size = 0\n    def __call__(self, tasks, ctx): pass\n",
            "batch_size is 0",
        ),
    ],
)
def test_a_job_that_does_not_load_ends_the_run_at_once(box: Box, source: str, says: str) -> None:
    """The traceback that is shown is that of the user's own lines."""
    box.write("job.py", source)
    done = box.run("run", "job.py:job", "--lines", box.lines(5), "--ranks", "2", code=4)
    assert says in done.err
    assert "no rank could load the job job.py:job" in done.err
    assert "gpuspool resume spool-job" in done.err
    if "Traceback" in done.err:
        assert f'File "{box / "job.py"}", line' in done.err
        assert "worker/job.py" not in done.err
    assert names(box / "spool-job" / "failed") == names(box / "spool-job" / "attempts")


def test_a_job_that_did_not_load_can_be_fixed(box: Box) -> None:
    command = ["run", "job.py:job", "--lines", box.lines(5)]
    box.write("job.py", "def job(task, ctx): return task.payload\nimport absent\n")
    box.run(*command, code=4)
    assert box.status("spool-job")["state"] == "stopped"
    assert box.status("spool-job")["tasks"]["failed"] == 0
    box.write("job.py", "def job(task, ctx): return task.payload\n")
    box.run(*command)
    assert [result["result"] for result in box.results("spool-job")] == ["0", "1", "2", "3", "4"]


def test_inputs_that_cannot_be_taken(box: Box) -> None:
    box.write("in/a", "1")
    box.write("bad", '1\n2\n{"payload": \n')
    box.write("twice", '{"payload": 1, "key": "k"}\n{"payload": 2, "key": "k"}\n')
    refused(box, "run", DOUBLE, "nothing/*.fasta", says="nothing/*.fasta matches no file")
    refused(box, "run", DOUBLE, "in/a", "absent", says="absent matches no file")
    refused(
        box, "run", DOUBLE, "in", says="input in is a folder. Name its files with a glob: 'in/**/*'"
    )
    refused(box, "run", DOUBLE, says="name the inputs in one way")
    refused(box, "run", DOUBLE, "in/a", "--lines", "bad", says="name the inputs in one way")
    refused(
        box, "run", DOUBLE, "--files-from", "absent", says="absent cannot be read: No such file"
    )
    refused(box, "run", DOUBLE, "--files-from", "bad", says="input 1: No such file")
    refused(box, "run", DOUBLE, "--lines", "in", says="in cannot be read: Is a directory")
    refused(box, "run", DOUBLE, "--tasks", "bad", says="bad, line 3")
    refused(box, "run", DOUBLE, "--tasks", "twice", says="lines 1 and 2 have the same key 'k'")
    refused(box, "run", DOUBLE, "in/a", "--arg", "novalue", says="--arg novalue: write KEY=VALUE")


def test_a_job_that_cannot_be_run_is_refused_before_its_inputs_are_read(box: Box) -> None:
    """The inputs come from a pipe whose writer has not begun, as `find | gpuspool run` may."""
    reader, writer = os.pipe()
    done = subprocess.run(
        [GPUSPOOL, "run", "absent.py:f", "--files-from", "-"],
        stdin=reader,
        capture_output=True,
        text=True,
        cwd=box.home,
        timeout=PATIENCE_S,
        check=False,
    )
    os.close(writer)
    os.close(reader)
    assert done.returncode == 2
    assert "job file" in done.stderr


@pytest.mark.parametrize("key", ["../x", "/etc/x", "a\\u0000b"])
def test_a_hostile_key(box: Box, key: str) -> None:
    box.write("hostile", f'{{"payload": 1, "key": "{key}"}}\n')
    refused(box, "run", DOUBLE, "--tasks", "hostile", says="hostile, line 1: the key")


@pytest.mark.parametrize(
    "verb", ["status", "resume", "verify", "results", "failed", "drain", "wait", "logs", "retry"]
)
def test_a_verb_on_what_is_not_a_spool(box: Box, verb: str) -> None:
    box.write("folder/data", "precious")
    refused(box, verb, "folder", says=f"{box / 'folder'} is not a spool")
    refused(box, verb, "absent", says=f"{box / 'absent'} does not exist")
    refused(box, verb, "folder/data", says="is not a spool: it is no folder")
    refused(box, verb, says="SPOOL is not given and there is not just one ./spool-*")


def test_a_spool_of_another_format(box: Box) -> None:
    box.run("run", DOUBLE, "--lines", box.lines(2), "--spool", "S")
    (box / "S" / "FORMAT").write_text("gpuspool 3\n")
    for command in (
        ["status", "S"],
        ["resume", "S"],
        ["run", DOUBLE, "--lines", "lines", "--spool", "S"],
    ):
        done = refused(box, *command, says="its FORMAT says", code=5)
        assert "gpuspool 3" in done.err
    (box / "S" / "FORMAT").write_text("gpuspool 2\n")
    (box / "S" / "run.json").write_text("{}")
    (box / "S" / "job" / "run.json").write_text("{}")
    for command in (
        ["status", "S"],
        ["resume", "S"],
        ["run", DOUBLE, "--lines", "lines", "--spool", "S"],
    ):
        refused(box, *command, says="run.json is missing or cannot be read", code=5)


def test_a_folder_that_is_not_ours_is_never_taken_for_a_spool(box: Box) -> None:
    box.write("folder/data", "precious")
    box.write("file", "precious")
    box.lines(2)
    says = f"{box / 'folder'} is there, holds something and is no spool"
    refused(box, "run", DOUBLE, "--lines", "lines", "--spool", "folder", says=says)
    refused(box, "run", DOUBLE, "--lines", "lines", "--spool", "file", says="cannot be made")


def test_fresh_renames_no_folder_that_is_not_a_spool(box: Box) -> None:
    box.write("folder/data", "precious")
    box.write("file", "precious")
    box.lines(2)
    refused(box, "run", DOUBLE, "--lines", "lines", "--spool", "folder", "--fresh", says="folder")
    refused(box, "run", DOUBLE, "--lines", "lines", "--spool", "file", "--fresh", says="file")


def test_a_spool_half_created_by_something_else(box: Box) -> None:
    """Only `cp` or a full disk can make one: ours appear by one rename."""
    box.write("S/FORMAT", "gpuspool 1\n")
    box.lines(2)
    refused(box, "resume", "S", says="run.json is missing", code=5)
    refused(box, "status", "S", says="run.json is missing", code=5)
    done = refused(
        box, "run", DOUBLE, "--lines", "lines", "--spool", "S", says=str(box / "S"), code=None
    )
    assert done.code in (2, 5)
    box.run("run", DOUBLE, "--lines", "lines", "--spool", "S", "--fresh")
    assert (box / "S.old-1" / "FORMAT").exists()


def test_what_a_killed_creation_left_beside_is_no_hindrance(box: Box) -> None:
    box.run("run", DOUBLE, "--lines", box.lines(2), "--spool", "S")
    os.rename(box / "S", box / ".S.123.0.abcd")
    box.run("run", DOUBLE, "--lines", "lines", "--spool", "S")
    assert len(box.results("S")) == 2


def test_a_spool_where_none_can_be_written(box: Box) -> None:
    box.write("file", "")
    box.lines(2)
    for spool in ("file/below", "/proc/spool", "/proc/a/b/spool"):
        refused(box, "run", DOUBLE, "--lines", "lines", "--spool", spool, says="cannot be made")


def test_a_refused_spool_leaves_out_untouched(box: Box) -> None:
    """Else the next try, with a better --spool, would be refused because OUT is not empty."""
    box.lines(2)
    command = ["run", f"{PLAIN}:write", "--lines", "lines", "--out", "out"]
    refused(box, *command, "--spool", "/proc/spool", says="cannot be made")
    box.run(*command, "--spool", "S")
    assert names(box / "out") == ["t0.txt", "t1.txt"]


def test_an_output_folder_with_something_in_it(box: Box) -> None:
    box.write("out/old", "precious")
    box.write("file", "precious")
    command = ["run", f"{PLAIN}:write", "--lines", box.lines(2)]
    refused(box, *command, "--out", "file", says="is not a folder")
    refused(box, *command, "--out", "out", says="out is not empty")
    box.run(*command, "--out", "out", "--overwrite")
    assert names(box / "out") == ["t0.txt", "t1.txt"]
    assert (box / "out.old-1" / "old").read_text() == "precious"
    box.run(*command, "--out", "out")


def test_two_runs_never_share_an_output_folder(box: Box) -> None:
    command = ["run", f"{PLAIN}:write", "--lines", box.lines(2), "--out", "out"]
    box.run(*command, "--spool", "A")
    refused(box, *command, "--spool", "B", says="out is not empty")
    box.run(*command, "--spool", "A")


def test_devices_that_cannot_be_had(box: Box) -> None:
    command = ["run", DOUBLE, "--lines", box.lines(2)]
    refused(box, *command, "--ranks", "3", says="--ranks 3, but 2 device(s)", env=UUIDS)
    refused(box, *command, "--devices", "GPU-cccc", says="names no device that", env=UUIDS)
    refused(box, *command, "--devices", "0", says="names no device that", env=UUIDS)
    refused(box, *command, "--gpus-per-rank", "3", says="does not divide", env=UUIDS)


@pytest.mark.parametrize(
    "options",
    [
        ["--ranks", "0"],
        ["--ranks", "-1"],
        ["--ranks", "two"],
        ["--ranks-per-gpu", "0"],
        ["--gpus-per-rank", "0"],
        ["--retries", "-1"],
        ["--max-crashes", "0"],
        ["--grace", "soon"],
        ["--grace", "-5"],
        ["--lease", "0"],
        ["--seed", "x"],
        ["--no-such-option"],
    ],
)
def test_options_that_cannot_be_taken(box: Box, options: list[str]) -> None:
    refused(box, "run", DOUBLE, "--lines", box.lines(2), *options, says="")


def test_unknown_verbs_and_python_options(box: Box) -> None:
    refused(box, "rnu", "S", says="No such command 'rnu'")
    done = box.python(
        f"import gpuspool\ntry:\n    gpuspool.run({DOUBLE!r}, items=[1], rnaks=2)\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
    )
    assert done.out.startswith("UsageError unknown option rnaks. There are: ")
    assert names(box.home) == ["script.py"]


def test_results_that_are_not_json_fail_their_tasks_alone(box: Box) -> None:
    tasks = box.tasks(["list", "object", "tuple", "inf"])
    done = box.run("run", f"{JOBS}/odd.py:returns", "--tasks", tasks, code=3)
    assert_one_paragraph(done)
    assert "2 of 4 tasks complete, 2 failed" in done.err
    states = [result["state"] for result in box.results("spool-returns")]
    assert states == ["complete", "failed", "complete", "failed"]


def test_a_spool_that_everybody_may_write_runs_no_code(box: Box) -> None:
    command = ["run", DOUBLE, "--lines", box.lines(2), "--spool", "S"]
    box.run(*command)
    for name in (".", "run.json", "job"):
        path = box / "S" / name
        mode = path.stat().st_mode
        path.chmod(mode | stat.S_IWOTH)
        refused(box, *command, says="may be written by everybody")
        refused(box, "resume", "S", says="may be written by everybody")
        assert box.status("S")["state"] == "complete", "reading verbs accept it"
        path.chmod(mode)
    box.run(*command)


def test_an_unknown_task_has_no_log(box: Box) -> None:
    box.run("run", DOUBLE, "--lines", box.lines(2), "--spool", "S")
    refused(box, "logs", "S", "--task", "nobody", says="has no task 'nobody'")


def test_debug_shows_where_an_error_came_from(box: Box) -> None:
    for extra, env in ((["--debug"], {}), ([], {"GPUSPOOL_DEBUG": "1"})):
        done = box.run("status", "absent", *extra, code=1, env=env)
        assert "Traceback" in done.err
        assert "UsageError" in done.err


def test_no_secret_of_the_environment_reaches_a_file(box: Box) -> None:
    env = {"SECRET_TOKEN": "hunter2hunter2", "HF_TOKEN": "hf_hunter2"}
    box.run("run", DOUBLE, "--lines", box.lines(4), "--spool", "S", env=env)
    assert not [
        name
        for name, data in tree(box / "S").items()
        if data and (b"hunter2" in data or MARK.encode() in data)
    ]


def test_control_characters_in_messages_are_escaped(box: Box) -> None:
    done = box.run("status", "a\x1b[31mred", code=2)
    assert "\x1b" not in done.err
    assert "\\x1b[31mred" in done.err


def test_an_out_that_is_not_empty_is_refused_with_what_it_holds(box: Box) -> None:
    command = ["run", f"{JOBS}/plain.py:double", "--lines", box.lines(2), "--out", "out"]
    box.run(*command, "--spool", "A")
    says = "out is not empty: it has the mark of another run, the hidden file .gpuspool. Name"
    refused(box, *command, "--spool", "B", says=says)
    box.write("out/a.txt", "")
    refused(box, *command, "--spool", "B", says="out is not empty: it holds a.txt. Name")
