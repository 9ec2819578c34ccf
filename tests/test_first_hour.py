"""What people meet in their first hour: words that are nearly right, and what a message says."""

import sys

import pytest
from helpers import JOBS, Box, interrupt_twice, start_gated, wait_until, waiting

PLAIN = JOBS / "plain.py"


def test_a_name_that_a_job_file_does_not_have_is_answered_with_the_nearest_of_its_own(
    box: Box,
) -> None:
    box.write(
        "job.py",
        "import time\nfrom pathlib import Path\nLIMIT = 3\n"
        "class Embed:\n    pass\ndef helper(task, ctx):\n    return 1\n",
    )
    said = box.run("run", "job.py:embd", "--lines", box.lines(1), code=2).err
    assert "job.py has no embd. Did you mean Embed? It has: Embed, helper." in said
    said = box.run("run", "job.py:Zzz", "--lines", "lines", code=2).err
    assert "job.py has no Zzz. It has: Embed, helper." in said
    box.write("empty.py", "import time\n")
    said = box.run("run", "empty.py:Job", "--lines", "lines", code=2).err
    assert "It defines no class and no function." in said


@pytest.mark.parametrize(
    ("asked", "written", "ending"),
    [
        ("''", "str(path) + '.npy'", "'.npy'"),
        ("'.vec'", "str(path) + '.npz'", "'.vec.npz'"),
        ("'.txt'", "path.with_suffix('.png')", "'.png'"),
        ("''", "path.with_suffix('.parquet')", "'.parquet'"),
    ],
)
def test_a_file_beside_the_one_that_was_asked_for_is_named(
    box: Box, asked: str, written: str, ending: str
) -> None:
    box.write(
        "job.py",
        f"def job(task, ctx):\n    path = ctx.output(task, {asked})\n"
        f"    open({written}, 'w').write('x')\n",
    )
    box.run("run", "job.py:job", "--lines", box.lines(1), "--spool", "S", "--keep-going", code=3)
    [result] = box.results("S")
    assert f"a file that ends in {ending} was written beside it" in result["error"]["message"]
    assert f"Ask for ctx.output(task, {ending})" in result["error"]["message"]
    assert [path.name for path in (box / "S" / "outputs").iterdir()] == [".gpuspool"]


def test_a_second_output_is_not_taken_for_one_that_went_astray(box: Box) -> None:
    box.write(
        "job.py",
        "def job(task, ctx):\n    ctx.output(task, '')\n    ctx.output(task, '.a').touch()\n",
    )
    box.run("run", "job.py:job", "--lines", box.lines(1), "--spool", "S", "--keep-going", code=3)
    assert box.results("S")[0]["error"]["message"].endswith("to the path it gave")


def test_a_job_that_parses_arguments_sees_none_of_ours(box: Box) -> None:
    box.write(
        "job.py",
        "import argparse, sys\nparser = argparse.ArgumentParser()\n"
        "parser.add_argument('--rank', type=int, default=7)\n"
        "options = parser.parse_args()\n"
        "def job(task, ctx):\n    return [sys.argv, options.rank]\n",
    )
    box.run("run", "job.py:job", "--lines", box.lines(1), "--spool", "S")
    assert box.results("S")[0]["result"] == [[str(box / "job.py")], 7]


def test_a_program_of_the_seed_api_finds_its_own_arguments(box: Box) -> None:
    box.write(
        "program.py",
        "import sys\nfrom gpuspool import GPUProcessCoordinator\n"
        "SIZE = sys.argv[1]\n"
        "def work(rank, world_size, queue):\n    open(SIZE, 'w').write(sys.argv[2])\n"
        "if __name__ == '__main__':\n\n"
        "    workers = GPUProcessCoordinator(1, 'out')\n    workers.spawn_workers(work)\n"
        "    workers.wait_for_completion()\n",
    )
    box.run("program.py", "large", "second", program=(sys.executable,))
    assert (box / "large").read_text() == "second"


def test_a_pickled_class_of_another_script_is_explained(box: Box) -> None:
    net = "import pickle\nclass Net:\n    pass\n"
    box.write("train.py", f"{net}pickle.dump(Net(), open('n', 'wb'))\n")
    box.run("train.py", program=(sys.executable,))
    job = net + "{}class Job:\n    def __init__(self, ctx):\n"
    job += "        self.net = pickle.load(open('n', 'rb'))\n"
    job += "    def __call__(self, task, ctx):\n        return type(self.net).__name__\n"
    box.write("job.py", job.format(""))
    said = box.run("run", "job.py:Job", "--lines", box.lines(1), code=4).err
    assert "`import __main__; __main__.Net = Net` before loading" in said, said
    # What it says helps.
    box.write("job.py", job.format("import __main__; __main__.Net = Net\n"))
    box.run("run", "job.py:Job", "--lines", "lines", "--spool", "S")
    assert box.results("S")[0]["result"] == "Net"


def test_the_first_ctrl_c_tells_of_the_second(box: Box) -> None:
    run, _ = start_gated(box, ["wait"])
    wait_until(lambda: waiting(box))
    interrupt_twice(run, "a second Ctrl-C kills them at once")
    run.wait(130)


def test_logs_of_a_rank_that_never_started_are_refused(box: Box) -> None:
    box.run("run", f"{PLAIN}:double", "--lines", box.lines(4), "--ranks", "2", "--spool", "S")
    said = box.run("logs", "S", "--rank", "99", code=2).err
    assert "has no log of rank 99. Ranks that have started: 0 to 1." in said
    assert box.run("logs", "S", "--rank", "1").out.startswith("==> rank-0001.a00 <==")


def test_the_last_lines_of_logs(box: Box) -> None:
    box.write("job.py", "def job(task, ctx):\n    print('line', task.payload, 'ä' * 3000)\n")
    box.run("run", "job.py:job", "--lines", box.lines(100), "--ranks", "1", "--spool", "S")
    whole = box.run("logs", "S").out.splitlines()
    assert len(whole) == 101
    assert box.run("logs", "S", "-n", "3").out.splitlines() == [whole[0], *whole[-3:]]
    assert box.run("logs", "S", "-n", "0").out.splitlines() == whole[:1]
    assert box.run("logs", "S", "-n", "5000").out.splitlines() == whole


def test_whose_log_follows_stands_on_a_line_of_its_own(box: Box) -> None:
    box.write("job.py", "def job(task, ctx):\n    print(task.key, end='')\n    1 / 0\n")
    box.run("run", "job.py:job", "--lines", box.lines(1), "--ranks", "2", "--spool", "S", code=4)
    for whose in ([], ["--task", "t0"]):
        told = box.run("logs", "S", *whose).out
        assert told.count("<==") > 1, told
        assert told.count("<==") == told.count("\n==>") + 1, told


def test_logs_that_are_followed_end_with_the_run(box: Box) -> None:
    box.write(
        "job.py",
        "import os, time\ndef job(task, ctx):\n    print('said', task.payload)\n"
        "    while task.payload == '1' and not os.path.exists('gate'):\n        time.sleep(0.01)\n",
    )
    run = box.start("run", "job.py:job", "--lines", box.lines(3), "--ranks", "1", "--spool", "S")
    wait_until(lambda: (box / "S" / "logs" / "rank-0000.a00.log").exists())
    logs = box.start("logs", "S", "-f", "--last", "1")
    output = box.home.parent / f"{box.home.name}-cli" / "1.out"
    wait_until(lambda: "said 1" in output.read_text())
    assert not logs.is_over()
    box.write("gate", "")
    run.wait(0)
    told = logs.wait(0).out.splitlines()
    assert told[0] == "==> rank-0000.a00 <=="
    assert told[-1] == "said 2"


def test_doctor_looks_at_the_current_folder(box: Box) -> None:
    assert box.run("doctor").out.splitlines()[-1] == ". is fit for a spool on this host alone"
