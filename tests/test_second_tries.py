"""The next command where one was wrong: a fixed job, an edited input, a mistyped line."""

import os
from pathlib import Path

import pytest
from helpers import Box, Done, wait_until, waiting

import gpuspool

RUN = ("run", "job.py:Job", "in/*", "--spool", "S", "--ranks", "1", "-q")
SIZE = "def Job(task, ctx): return len(task.path.read_text())\n"


@pytest.fixture
def inputs(box: Box) -> Box:
    """A box with four input files."""
    for number in range(4):
        box.write(f"in/{number}.txt", "x" * number)
    return box


def said(box: Box, *words: str | Path, code: int = 2) -> str:
    """What a command says on stderr, without a traceback."""
    done: Done = box.run(*words, code=code)
    assert "Traceback" not in done.err
    return done.err


# A fixed job.


@pytest.mark.parametrize(
    "broken", [f"import torhc\n{SIZE}", "def Job(task, ctx): raise ValueError\n"]
)
@pytest.mark.parametrize("again", [RUN, ("resume", "S"), ("retry", "S")])
def test_the_same_command_goes_on_after_the_fix_of_a_job_that_never_worked(
    inputs: Box, broken: str, again: tuple[str, ...]
) -> None:
    inputs.write("job.py", broken)
    before = inputs.run(*RUN, code=4).err
    assert "Go on with the same command" in before
    assert "--keep-done" not in before
    inputs.write("job.py", SIZE)
    assert "the job changed; no task was complete" in said(inputs, *again, code=0)
    assert [result["result"] for result in inputs.results("S")] == [0, 1, 2, 3]


def test_a_fixed_command_that_never_worked_goes_on(inputs: Box) -> None:
    words = ("run", "in/*", "--spool", "S", "--ranks", "1", "-q", "--")
    inputs.run(*words, "wc", "--wrong", "{input}", code=4)
    inputs.run(*words, "wc", "-c", "{input}")


def test_after_failures_of_some_tasks_the_next_command_is_named_with_its_option(
    inputs: Box,
) -> None:
    inputs.write("job.py", "def Job(task, ctx): return 1 / task.path.stat().st_size\n")
    last = said(inputs, *RUN, code=3).splitlines()[-1]
    assert last.endswith("runs it again; after a fix of the job add --keep-done.")
    inputs.write("job.py", SIZE)
    assert "--keep-done goes on" in said(inputs, "retry", "S")
    inputs.run("retry", "S", "--keep-done")


def test_a_task_that_saved_a_part_of_its_work_is_not_given_to_other_code_unasked(
    inputs: Box,
) -> None:
    inputs.write(
        "job.py",
        "import gpuspool\ndef Job(task, ctx):\n"
        "    (ctx.scratch(task) / 'part').touch()\n    raise ValueError\n",
    )
    assert "after a fix of the job add --keep-done" in inputs.run(*RUN, code=4).err
    inputs.write("job.py", SIZE)
    assert "the job changed since" in said(inputs, *RUN)
    inputs.run(*RUN, "--keep-done")


def test_workers_that_live_keep_a_changed_job_from_being_taken_unasked(box: Box) -> None:
    gates = box.job("gates.py")
    box.job("plain.py")
    command = ["run", "gates.py:gated", "--tasks", box.tasks(["wait"]), "--spool", "S"]
    command += ["--arg", f"gate={box / 'gate'}"]
    started = box.start(*command)
    wait_until(lambda: waiting(box))
    started.signal(9)
    started.wait()
    gates.write_text(gates.read_text() + "\n")
    assert "the job changed since" in said(box, *command)
    (box / "gate").touch()
    box.run("wait", "S")


# An edited input.


def test_an_edited_input_is_named_with_what_computes_it_again(inputs: Box) -> None:
    inputs.write("job.py", SIZE)
    inputs.run(*RUN)
    inputs.write("in/2.txt", "longer")
    refusal = said(inputs, *RUN)
    assert "0 new, 0 gone, 1 changed\n  changed: 2.txt\n" in refusal
    assert "`gpuspool redo S 2.txt` computes what changed again" in refusal
    assert "--keep-done leaves the old results as they are" in refusal
    assert "--add" not in refusal
    assert "resume" not in refusal
    warning = said(inputs, *RUN, "--keep-done", code=0)
    assert "warning: 1 input changed after its task had run: 2.txt." in warning
    inputs.run("redo", "S", "2.txt")
    assert inputs.results("S")[2]["result"] == 6
    assert "warning" not in said(inputs, *RUN, code=0)


def test_an_input_of_the_same_size_is_named_until_it_is_redone(inputs: Box) -> None:
    inputs.write("job.py", "def Job(task, ctx): return task.path.read_text()\n")
    inputs.run(*RUN)
    inputs.write("in/1.txt", "y")
    inputs.write("in/3.txt", "yyy")
    warning = said(inputs, *RUN, code=0)
    assert "warning: 2 inputs changed after their tasks had run: 1.txt, 3.txt. What" in warning
    assert "`gpuspool redo S 1.txt 3.txt` does that" in warning
    inputs.run("redo", "S", "1.txt")
    warning = said(inputs, *RUN, code=0)
    assert "1 input changed after its task had run: 3.txt." in warning
    inputs.run("redo", "S", "3.txt")
    assert "warning" not in said(inputs, *RUN, code=0)
    assert [result["result"] for result in inputs.results("S")] == ["", "y", "xx", "yyy"]


def test_an_input_that_was_copied_with_an_old_time_is_named_too(inputs: Box) -> None:
    inputs.write("job.py", SIZE)
    inputs.run(*RUN)
    os.utime(inputs.write("in/1.txt", "longer"), (1, 1))
    assert "run: 1.txt." in said(inputs, *RUN, "--keep-done", code=0)


def test_new_inputs_are_no_reason_to_speak_of_changed_ones(inputs: Box) -> None:
    inputs.write("job.py", SIZE)
    inputs.run(*RUN)
    inputs.write("in/4.txt", "xxxx")
    refusal = said(inputs, *RUN)
    assert "--add takes the new ones into the run, `gpuspool resume" in refusal
    assert "redo" not in refusal
    assert "warning" not in said(inputs, *RUN, "--add", code=0)


def test_files_of_a_second_folder_are_refused_with_the_key_root_that_takes_both(
    inputs: Box,
) -> None:
    inputs.write("job.py", SIZE)
    inputs.run(*RUN)
    inputs.write("more/9.txt", "9")
    refusal = said(inputs, "add", "S", "more/9.txt")
    assert f"is made with --key-root {inputs.home}." in refusal
    command = ("run", "job.py:Job", "in/*", "--spool", "T", "--key-root", str(inputs.home))
    inputs.run(*command)
    inputs.run("add", "T", "more/9.txt")


# Words that were meant otherwise.


def test_a_job_with_two_colons(inputs: Box) -> None:
    inputs.write("job.py", SIZE)
    for job in ("job.py::Job", "job.py:12:Job", "job::Job"):
        where = job.partition(":")[0]
        assert f"write {where}:Job" in said(inputs, "run", job, "in/*")


def test_a_home_folder_in_quotes(inputs: Box) -> None:
    inputs.write("job.py", SIZE)
    inputs.write("list", "~/in/1.txt\n")
    inputs.environment["HOME"] = str(inputs.home)
    inputs.run("run", "~/job.py:Job", "~/in/*.txt", "--spool=~/S", "--out=~/out")
    assert len(inputs.results("S")) == 4
    assert not (inputs / "~").exists()
    inputs.run("status", "~/S")
    inputs.run("run", "job.py:Job", "--files-from=~/list", "--spool", "T", "--key-root=~")
    assert [result["key"] for result in inputs.results("T")] == ["in/1.txt"]
    refusal = said(inputs, "run", "job.py:Job", "~/absent/*.txt", "--spool", "U")
    assert f"{inputs / 'absent'}/*.txt matches no file. Check the path.\n" in refusal
    inputs.write("~/in/7.txt", "7")
    inputs.run("run", "job.py:Job", "~/in/7.txt", "--spool", "V")
    assert [result["key"] for result in inputs.results("V")] == ["7.txt"], "what exists is meant"


def test_a_task_or_an_input_in_the_place_of_the_spool(inputs: Box) -> None:
    inputs.write("job.py", SIZE)
    inputs.run("run", "job.py:Job", "in/*")
    for verb, words in (
        ("redo", ["2.txt"]),
        ("redo", ["2.txt", "3.txt"]),
        ("add", ["in/*"]),
        ("add", ["in/1.txt", "in/2.txt"]),
    ):
        quoted = " ".join(words).replace("in/*", "'in/*'")
        refusal = said(inputs, verb, *words)
        assert f"'{words[0]}' is taken for SPOOL, which comes first: " in refusal
        assert f"`gpuspool {verb} spool-Job {quoted}`" in refusal
    assert "does not exist" in said(inputs, "redo", "spool-Jbo", "2.txt")
    assert "does not exist" in said(inputs, "redo", "spool-Jbo", "--missing-outputs")
    assert "name the tasks by their keys" in said(inputs, "redo", "spool-Job")


def test_a_file_that_is_named_twice_is_one_task(inputs: Box) -> None:
    inputs.write("job.py", SIZE)
    command = ("run", "job.py:Job", "in/*.txt", "in/1.txt", "./in/../in/[12].txt", "--spool", "S")
    inputs.run(*command)
    assert [result["key"] for result in inputs.results("S")] == [f"{i}.txt" for i in range(4)]
    assert "nothing added" in said(inputs, "add", "S", "in/1.txt", "in/1.txt", code=0)


def test_a_command_without_the_dashes(inputs: Box) -> None:
    for command in (
        ("python", "predict.py", "--in", "{input}"),
        ("cp", "{input}", "{output}.copy"),
        ("convert", "-resize", "10", "{input}", "{output}.png"),
    ):
        assert "Put `--` before the command" in said(inputs, "run", "in/*", *command)
    inputs.write("job.py", "def Job(task, ctx): return ctx.args['prompt']\n")
    inputs.run(*RUN, "--arg", "prompt=say {input}")


def test_a_whole_command_in_one_word(inputs: Box) -> None:
    refusal = said(inputs, "run", "in/*", "--", "wc -c {input}")
    assert "Give it without quotes, `-- wc -c {input}`" in refusal
    assert """`-- sh -c '… "$1"' sh {input}`""" in refusal
    assert "is one word" in said(inputs, "run", "in/*", "--", "wc -c", "{input}")
    inputs.write("my tool", "#!/bin/sh\n").chmod(0o755)
    inputs.run("run", "in/*", "--spool", "S", "--", "./my tool", "{input}")


def test_words_of_a_shell_where_there_is_none(inputs: Box) -> None:
    command = ("run", "in/*", "--ranks", "1", "--dry-run", "--")
    warning = said(inputs, *command, "cat", "{input}", "|", "wc", code=0)
    assert "has the word '|', and no shell is involved" in warning
    assert """write `-- sh -c '… "$1"' sh {input}`""" in warning
    for words in (("expr", "{index}", "<", "2"), ("sh", "-c", 'wc < "$1"', "sh", "{input}")):
        assert "no shell is involved" not in said(inputs, *command, *words, code=0)


def test_a_program_that_is_not_there_is_named_without_names_of_ours(inputs: Box) -> None:
    done = inputs.run("run", "in/*", "--spool", "S", "--", "pythn", "{input}", code=4)
    assert "the program 'pythn' of the command cannot be run: No such file" in done.err
    assert "gpuspool.worker" not in done.err
    log = (inputs / "S" / "logs" / "rank-0000.a00.log").read_text()
    assert "gpuspool.worker" not in log


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (("--ranks", "0"), "--ranks 0 is not possible: it must be a whole number of at least 1."),
        (("--retries", "-1"), "--retries -1 is not possible: it must be a whole number of at"),
        (("--lease", "0"), "--lease 0.0 is not possible: it must be a number of at least 1."),
        (("--task-timeout", "0"), "--task-timeout 0.0 is not possible: it must be a number above"),
        (("--max-failed", "x"), "--max-failed x is not possible: it must be a whole number above"),
    ],
)
def test_an_option_that_is_not_possible_is_told_in_words(
    inputs: Box, option: tuple[str, str], says: str
) -> None:
    inputs.write("job.py", SIZE)
    refusal = said(inputs, *RUN, *option)
    assert says in refusal
    assert "$" not in refusal


def test_an_option_of_another_type_is_told_in_words(tmp_path: Path) -> None:
    for option, value in (("ranks", "two"), ("on_parent_exit", "die"), ("keep_going", 3)):
        with pytest.raises(gpuspool.UsageError) as raised:
            gpuspool.run("json:dumps", items=[1], spool=tmp_path / "S", **{option: value})
        assert str(raised.value).startswith(f"--{option.replace('_', '-')} {value} is not possible")
        assert "$" not in str(raised.value)


def test_an_argument_that_is_left_out_is_called_so(inputs: Box) -> None:
    inputs.write("job.py", SIZE)
    inputs.run(*RUN, "--arg", "unit=10")
    assert "--arg unit: 10 before, not given now" in said(inputs, *RUN)
    refusal = said(inputs, *RUN, "--arg", "unit=10", "--arg", "x=null")
    assert "--arg x: not given before, None now" in refusal


def test_a_job_and_its_inputs_in_the_wrong_order(inputs: Box) -> None:
    inputs.write("job.py", SIZE)
    refusal = said(inputs, "run", "in/*", "job.py:Job")
    assert "Put job.py:Job before the inputs: job.py:Job 'in/*'" in refusal
