"""Runs that nothing disturbs: each kind of job and of input, and what is told about them."""

import os
import sys

import pytest
from helpers import GPUSPOOL, JOBS, Box, assert_sound, names, record

PLAIN = f"{JOBS}/plain.py"


def test_a_function_over_lines(box: Box) -> None:
    done = box.run("run", f"{PLAIN}:double", "--lines", box.lines(25), "--ranks", "2")
    assert done.out == ""
    assert "25 of 25 tasks complete" in done.err.splitlines()[-1]
    results = assert_sound(box, "spool-double", 25)
    assert [result["result"] for result in results] == [2 * i for i in range(25)]
    assert [result["key"] for result in results] == [f"t{i}" for i in range(25)]
    assert {result["rank"] for result in results} <= {0, 1}
    assert all(
        result["error"] is None and result["seconds"] >= 0 and result["outputs"] == []
        for result in results
    )
    assert box.status("spool-double")["state"] == "complete"
    assert names(box / "spool-double" / "complete") == names(box / "spool-double" / "attempts")
    assert record(box / "spool-double" / "summary.json")["tasks"]["complete"] == 25
    assert names(box / "spool-double" / "control") == ["finished.0000"], (
        "the word that idle ranks waited for"
    )


def test_the_same_command_again_has_nothing_to_do(box: Box) -> None:
    command = ["run", f"{PLAIN}:noted", "--lines", box.lines(10), "--arg", f"notes={box / 'notes'}"]
    box.run(*command)
    before = names(box / "spool-noted" / "attempts")
    assert "10 of 10" in box.run(*command).err
    assert names(box / "spool-noted" / "attempts") == before
    assert sorted(map(int, (box / "notes").read_text().split())) == list(range(10))


def test_a_class_is_made_once_in_each_worker(box: Box) -> None:
    made = box / "made"
    box.run(
        "run",
        f"{PLAIN}:Add",
        "--lines",
        box.lines(40),
        "--ranks",
        "2",
        "--arg",
        "term=100",
        "--arg",
        f"made={made}",
    )
    results = assert_sound(box, "spool-Add", 40)
    assert [result["result"] for result in results] == [100 + i for i in range(40)]
    assert sorted(made.read_text().split()) == [
        name[:-5] for name in names(box / "spool-Add" / "attempts")
    ]


def test_a_batched_class_gets_whole_batches(box: Box) -> None:
    box.run("run", f"{PLAIN}:Batches", "--lines", box.lines(100), "--ranks", "2")
    results = assert_sound(box, "spool-Batches", 100)
    batches = [result["result"][0] for result in results]
    assert [result["result"][1] for result in results] == [str(i) for i in range(100)]
    assert all(index in batch for index, batch in enumerate(batches))
    assert max(map(len, batches)) == 8
    short = {tuple(batch) for batch in batches if len(batch) < 8}
    assert len(short) <= 2, "only the end of each rank's manifest leaves less than a batch"


def test_a_command_with_every_placeholder(box: Box) -> None:
    for name in ("a.txt", "sub dir/b.txt"):
        box.write(f"in/{name}", f"text of {name}")
    script = 'printf "%s|" "$@" > "$0"; cat "$1" >> "$0"'
    words = [
        "{output}.json",
        "{input}",
        "{key}",
        "{index}",
        "{rank}",
        "{device}",
        "x-{index}-{key}",
    ]
    box.run("run", "in/**/*.txt", "--spool", "S", "--", "sh", "-c", script, *words)
    results = assert_sound(box, "S", 2)
    assert [result["outputs"] for result in results] == [["a.txt.json"], ["sub dir/b.txt.json"]]
    for index, result in enumerate(results):
        key = result["key"]
        expected = f"{box / 'in' / key}|{key}|{index}|0|cpu|x-{index}-{key}|text of {key}"
        assert (box / "S" / "outputs" / result["outputs"][0]).read_text() == expected


def test_a_command_is_run_by_no_shell_and_names_the_spool(box: Box) -> None:
    box.run(
        "run",
        "--lines",
        "-",
        "--",
        "touch",
        f"{box / 'made'}-{{input}}",
        stdin="a b; $(false) {key}\n",
    )
    assert names(box.home) == ["made-a b; $(false) {key}", "spool-touch"]
    assert_sound(box, "spool-touch", 1)


def test_a_job_in_a_module_of_a_package(box: Box) -> None:
    box.write("pack/__init__.py", "")
    box.write("pack/base.py", "FACTOR = 3\n")
    box.write(
        "pack/job.py",
        "from . import base\ndef triple(task, ctx):\n    return base.FACTOR * task.payload\n",
    )
    box.run("run", "pack.job:triple", "--tasks", box.tasks([1, 2, 3]))
    assert [result["result"] for result in assert_sound(box, "spool-triple", 3)] == [3, 6, 9]


def test_a_job_sees_its_own_folder_file_and_names(box: Box) -> None:
    """Imports beside the job file work, `__file__` is the original, the folder is the one that
    `run` was typed in.
    """
    box.write("jobs/sibling.py", "VALUE = 'beside'\n")
    box.write(
        "jobs/tells.py",
        "import os, sibling\nclass Outer:\n    class Inner:\n"
        "        def __call__(self, task, ctx):\n"
        "            return [sibling.VALUE, __file__, os.getcwd(), __name__]\n",
    )
    box.run("run", "jobs/tells.py:Outer.Inner", "--lines", box.lines(1), "--spool", "S")
    expected = ["beside", str(box / "jobs" / "tells.py"), str(box.home), "tells"]
    assert box.results("S")[0]["result"] == expected


def test_what_context_and_task_tell(box: Box) -> None:
    box.write("in/cat/1.txt", "12345")
    box.write("in/dog/1.txt", "123")
    args = ["--arg", "n=3", "--arg", "name=some text", "--arg", 'deep={"a": [1, null]}']
    box.run("run", f"{PLAIN}:describe", "in/*/1.txt", "--ranks", "2", *args)
    results = assert_sound(box, "spool-describe", 2)
    for index, (result, key, size) in enumerate(
        zip(results, ["cat/1.txt", "dog/1.txt"], [5, 3], strict=True)
    ):
        told, path = result["result"], str(box / "in" / key)
        assert told["task"] == [index, key, {"path": path}, float(size)]
        assert told["path"] == path
        rank, world_size, attempt, device, arguments, is_draining = told["ctx"]
        assert (rank, world_size, device, is_draining) == (result["rank"], 2, "cpu", False)
        assert attempt.startswith(f"rank-{rank:04d}.a")
        assert arguments == {"n": 3, "name": "some text", "deep": {"a": [1, None]}}
        assert told["cwd"] == str(box.home)


@pytest.mark.parametrize(("tasks", "ranks"), [(1, 1), (7, 1), (2, 4)])
def test_no_more_workers_than_tasks(box: Box, tasks: int, ranks: int) -> None:
    box.run("run", f"{PLAIN}:double", "--lines", box.lines(tasks), "--ranks", str(ranks))
    assert_sound(box, "spool-double", tasks)
    assert len(names(box / "spool-double" / "attempts")) <= min(tasks, ranks)


def test_no_tasks_at_all_is_complete(box: Box) -> None:
    done = box.run(
        "run", f"{PLAIN}:double", "--lines", box.write("empty", ""), "--json", "--ranks", "2"
    )
    assert done.record()["tasks"] == {"total": 0, "complete": 0, "failed": 0}
    assert assert_sound(box, "spool-double", 0) == []
    assert box.status("spool-double")["state"] == "complete"
    assert names(box / "spool-double" / "attempts") == []


def test_seeds_depend_on_the_run_and_the_index_alone(box: Box) -> None:
    def seeds(spool: str, *options: str) -> list[int]:
        box.run("run", f"{PLAIN}:describe", "--lines", "lines", "--spool", spool, *options)
        return [result["result"]["seed"] for result in box.results(spool)]

    box.lines(12)
    alone = seeds("A", "--ranks", "1")
    assert seeds("B", "--ranks", "3") == alone
    assert len(set(alone)) == 12
    assert not set(seeds("C", "--ranks", "2", "--seed", "7")) & set(alone)


def test_what_a_task_prints_is_in_the_log(box: Box) -> None:
    done = box.run("run", f"{PLAIN}:noisy", "--lines", box.lines(4), "--ranks", "2")
    assert "out of" not in done.out + done.err
    whole = box.run("logs", "spool-noisy").out
    assert all(f"{stream} of t{i}\n" in whole for stream in ("out", "err") for i in range(4))
    told = box.run("logs", "spool-noisy", "--task", "t2").out.splitlines()
    assert told[0].startswith("==> rank-000")
    assert sorted(told[1:]) == ["err of t2", "out of t2"]
    one = box.run("logs", "spool-noisy", "--rank", "1").out
    assert "rank-0001" in one
    assert "rank-0000" not in one


def test_json_goes_to_stdout_and_quiet_is_quiet(box: Box) -> None:
    told = box.run("run", f"{PLAIN}:double", "--lines", box.lines(3), "--json", "-q").record()
    assert told["spool"] == str(box / "spool-double")
    assert told["exit_code"] == 0
    assert told["tasks"] == {"total": 3, "complete": 3, "failed": 0}
    assert "3 of 3" in told["message"]
    again = box.run("run", f"{PLAIN}:double", "--lines", "lines", "-q", "--json")
    assert again.err == ""


def test_every_option_is_also_a_variable(box: Box) -> None:
    env = {"GPUSPOOL_RANKS": "2", "GPUSPOOL_SPOOL": "elsewhere/S", "GPUSPOOL_SEED": "5"}
    box.run("run", f"{PLAIN}:double", "--lines", box.lines(8), env=env)
    run = record(box / "elsewhere" / "S" / "run.json")
    assert (run["options"]["ranks"], run["options"]["seed"]) == (2, 5)


def test_a_dry_run_shows_the_plan_and_makes_nothing(box: Box) -> None:
    done = box.run("run", f"{PLAIN}:double", "--lines", box.lines(10), "--ranks", "2", "--dry-run")
    assert "10 tasks on 2 ranks" in done.err
    assert names(box.home) == ["lines"]


def test_outputs_go_where_out_says(box: Box) -> None:
    box.run("run", f"{PLAIN}:write", "--lines", box.lines(3), "--out", "made/here")
    assert names(box / "made" / "here") == ["t0.txt", "t1.txt", "t2.txt"]
    assert (box / "made" / "here" / "t2.txt").read_text() == "t2\n"
    assert [result["outputs"] for result in assert_sound(box, "spool-write", 3)] == [
        [f"t{i}.txt"] for i in range(3)
    ]


def test_a_task_that_fails_its_first_tries_completes(box: Box) -> None:
    """Both tasks wait for their next try at the same time, and the others go on meanwhile.

    One that fails all its tries gets them again in another process before it has failed.
    """
    tasks = box.tasks([2, 0, 6, 0])
    args = ["--arg", f"notes={box / 'notes'}", "--retries", "2"]
    done = box.run("run", f"{PLAIN}:fails_at_first", "--tasks", tasks, *args, code=3)
    assert "3 of 4 tasks complete, 1 failed" in done.err
    first, second, third, fourth = box.results("spool-fails_at_first")
    assert [first["result"], second["result"], fourth["result"]] == [3, 1, 1]
    assert third["state"] == "failed"
    assert third["error"]["tries"] == len(third["error"]["attempts"]) == 2
    assert third["error"]["message"] in ("try 3 of t2", "try 6 of t2"), "by who proved itself"
    order = (box / "notes").read_text().split()
    assert order.index("3") < len(order) - 1, "a task that waits for its next try holds nobody up"
    assert names(box / "spool-fails_at_first" / "failed-tasks") == ["t2.json"]


def test_files_from_stdin_and_lines_from_stdin(box: Box) -> None:
    paths = [str(box.write(f"f{i}", "x" * i)) for i in range(3)]
    box.run(
        "run",
        f"{PLAIN}:describe",
        "--files-from",
        "-",
        "--spool",
        "A",
        stdin="\n".join(paths) + "\n",
    )
    assert [result["result"]["path"] for result in box.results("A")] == paths
    box.run("run", f"{PLAIN}:double", "--lines", "-", "--spool", "B", stdin="1\n2\n")
    assert [result["result"] for result in box.results("B")] == [2, 4]


def test_the_interpreter_that_runs_the_command_runs_the_workers(box: Box) -> None:
    source = "import sys\ndef where(task, ctx):\n    return [sys.executable, sys.flags.safe_path]\n"
    box.write("job.py", source)
    box.run("run", "job.py:where", "--lines", box.lines(1))
    executable, is_safe = box.results("spool-where")[0]["result"]
    assert os.path.realpath(executable) == os.path.realpath(sys.executable)
    assert is_safe


def test_a_terminal_gets_a_table(box: Box) -> None:
    """It tells finished tasks, all tasks and failures. Without a terminal there is none."""
    on_a_terminal = (
        sys.executable,
        "-c",
        "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)",
        GPUSPOOL,
    )
    command = [
        "run",
        f"{PLAIN}:double",
        "--tasks",
        box.tasks([*range(19), "no number"]),
        "--spool",
        "S",
    ]
    done = box.run(*command, program=on_a_terminal, code=3, env={"TERM": "xterm", "COLUMNS": "120"})
    assert "19 of 20" in done.out or "20 of 20" in done.out
    assert "1 failed" in done.out
    assert "19 of 20 tasks complete, 1 failed" in done.out
