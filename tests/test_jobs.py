"""What jobs may return, write and raise, and what becomes of it."""

import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import JOBS, Box, assert_sound, names, record

from gpuspool.orchestrator.plan.jobs import parse_job
from gpuspool.spool.errors import UsageError

ODD = f"{JOBS}/odd.py"


def run_odd(
    box: Box, name: str, payloads: list[Any], *options: str, code: int = 0
) -> dict[str, Any]:
    """Run a job of odd.py over payloads; returns payload -> result record, of distinct payloads."""
    box.run(
        "run", f"{ODD}:{name}", "--tasks", box.tasks(payloads), "--spool", "S", *options, code=code
    )
    results = box.results("S")
    assert len(results) == len(payloads)
    return {str(payload): result for payload, result in zip(payloads, results, strict=True)}


def test_results_become_json(box: Box) -> None:
    kept = ["list", "nothing", "nan", "array", "tuple", "text", "big"]
    refused = ["inf", "set", "object", "huge"]
    found = run_odd(box, "returns", kept + refused, code=3)
    assert [found[name]["state"] for name in kept] == ["complete"] * len(kept)
    assert found["list"]["result"] == [1, "two", None, {"three": 3.5}]
    assert found["nothing"]["result"] is None
    assert found["nan"]["result"] == {"a": [None, 1.5]}
    assert found["array"]["result"] == {"a": [1.0, 2.0], "b": [3]}
    assert found["tuple"]["result"] == [1, 2]
    assert found["text"]["result"] == "a\nb\u2028 \u00e4 \x00"
    assert len(found["big"]["result"]) == 1024 * 1024 - 2
    for name in refused:
        assert found[name]["state"] == "failed"
        assert found[name]["result"] is None
        assert found[name]["error"]["kind"] == "result"
    assert "ctx.output" in found["huge"]["error"]["message"]
    assert "inf" in found["inf"]["error"]["message"].lower()
    assert names(box / "S" / "failed-tasks") == ["t10.json", "t7.json", "t8.json", "t9.json"]


def test_outputs_of_every_kind(box: Box) -> None:
    kinds = ["several", "bare", "folder", "twice", "suffix", "forgets", "raises", "slash"]
    tasks = [{"payload": kind, "key": f"deep/{kind}"} for kind in kinds]
    box.run("run", f"{ODD}:writes", "--tasks", box.tasks(tasks), "--spool", "S", code=3)
    found = dict(zip(kinds, box.results("S"), strict=True))
    assert [found[kind]["state"] for kind in kinds] == ["complete"] * 5 + ["failed"] * 3
    assert found["several"]["outputs"] == ["deep/several.a", "deep/several.b.npy"]
    assert found["forgets"]["error"]["kind"] == "output"
    assert "'.never'" in found["forgets"]["error"]["message"]
    assert found["raises"]["error"]["kind"] == "exception"
    assert "slash" in found["slash"]["error"]["message"]
    out = box / "S" / "outputs" / "deep"
    expected = ["bare", "folder.d", "several.a", "several.b.npy", "suffix.npy", "twice.t"]
    assert sorted(path.name for path in out.iterdir()) == expected, (
        "nothing is left of tasks that failed"
    )
    assert (out / "folder.d" / "sub" / "x").read_bytes() + (
        out / "folder.d" / "y"
    ).read_bytes() == b"xyy"
    assert (out / "bare").read_bytes() == b"bare"
    assert '["deep/folder.d",3]' in (box / "S" / "journal" / "rank-0000.a00.jsonl").read_text()
    assert not (box / "x").exists()


def test_whatever_user_code_raises_fails_that_task_alone(box: Box) -> None:
    kinds = ["exit", "interrupt", "own", "chained", "bytes", "mute", "nowhere", "none", "more"]
    found = run_odd(box, "raises", kinds, "--keep-going", code=3)
    assert [found[kind]["error"]["type"] for kind in kinds[:7]] == [
        "SystemExit", "KeyboardInterrupt", "Own", "ValueError", "ValueError", "Mute", "Nowhere",
    ]  # fmt: skip
    assert [found[kind]["error"]["kind"] for kind in kinds[:7]] == ["exception"] * 7
    assert [found[kind]["result"] for kind in kinds[7:]] == ["fine", "fine"]
    chained = found["chained"]["error"]["traceback"]
    assert chained.index("KeyError: 'missing'") < chained.index("ValueError: because of another")
    assert f'File "{ODD}"' in chained
    assert "worker/execute.py" not in chained, "our own frames are nothing to the user"
    assert found["bytes"]["error"]["message"] == "name \\udcff of a file"
    assert record(box / "S" / "failed-tasks" / "t2.json")["error"]["message"] == "of my own"
    assert names(box / "S" / "attempts") == ["rank-0000.a00.json"]


def test_a_batch_that_raises_is_split_until_the_bad_task_is_alone(box: Box) -> None:
    payloads = [f"p{i}" for i in range(64)]
    payloads[21] = "raise"
    payloads[37] = "return"
    box.run("run", f"{ODD}:Picky", "--tasks", box.tasks(payloads), "--keep-going", code=3)
    results = box.results("spool-Picky")
    bad = {result["index"]: result["error"] for result in results if result["state"] == "failed"}
    assert {index: error["type"] for index, error in bad.items()} == {
        21: "ValueError",
        37: "OSError",
    }
    assert bad[21]["message"] == "one of 1"
    assert len(names(box / "spool-Picky" / "outputs")) == 62
    assert names(box / "spool-Picky" / "attempts") == ["rank-0000.a00.json"]


def test_a_batch_with_too_few_results_fails_as_a_result(box: Box) -> None:
    box.run("run", f"{ODD}:Short", "--lines", box.lines(10), "--keep-going", code=3)
    kinds = {result["error"]["kind"] for result in box.results("spool-Short")}
    assert kinds == {"result"}


def test_batches_keep_within_their_budget(box: Box) -> None:
    costs = [3, 3, 3, 3, 9, 2, 25, 1, 1, 1, 1, 1, 1]
    tasks = box.tasks([{"payload": None, "cost": cost} for cost in costs])
    box.run("run", f"{ODD}:Budget", "--tasks", tasks)
    for result, cost in zip(box.results("spool-Budget"), costs, strict=True):
        count, total = result["result"]
        assert total <= 10 or count == 1
        assert total >= cost


def test_out_of_device_memory_halves_the_batch_for_good(box: Box) -> None:
    payloads = [f"p{i}" for i in range(40)]
    payloads[5] = "huge"
    box.run("run", f"{ODD}:NoMemory", "--tasks", box.tasks(payloads), "--keep-going", code=3)
    results = box.results("spool-NoMemory")
    assert results[5]["error"]["kind"] == "gpu_oom"
    assert {result["state"] for result in results if result["index"] != 5} == {"complete"}
    stats = record(box / "spool-NoMemory" / "complete" / "rank-0000.a00.json")["stats"]
    assert stats["oom_halvings"] >= 2
    assert stats["batch_size"] < 16
    assert stats["versions"]["torch"]


def test_commands_that_fail_tell_how(box: Box) -> None:
    script = 'case "$1" in kill) kill -9 $$;; out) exit 0;; *) exit "$1";; esac'
    command = ["--spool", "S", "--", "sh", "-c", script, "sh", "{input}"]
    box.run("run", "--lines", "-", *command, code=3, stdin="0\n7\nkill\n0\n")
    results = box.results("S")
    assert [result["state"] for result in results] == ["complete", "failed", "failed", "complete"]
    assert {results[1]["error"]["kind"], results[2]["error"]["kind"]} == {"exit"}
    assert results[1]["error"]["exit_code"] == 7
    assert results[1]["error"]["message"] == "sh: exit code 7"
    assert results[2]["error"]["message"] == "sh: killed by SIGKILL"
    command = ["--spool", "T", "--", "no-such-program", "{input}"]
    missing = box.run("run", "--lines", "-", *command, code=4, stdin="0\n")
    assert "the program 'no-such-program' of the command cannot be run: No such file" in missing.err
    assert box.results("T")[0]["state"] != "failed", "the command is to blame, and not its input"


def test_a_command_that_writes_no_output_fails(box: Box) -> None:
    command = ["--spool", "S", "--keep-going", "--", "test", "{output}.json"]
    box.run("run", "--lines", "-", *command, code=3, stdin="0\n")
    assert box.results("S")[0]["error"]["kind"] == "output"


def test_a_worker_told_to_stop_from_outside_leaves_its_work_to_the_next(box: Box) -> None:
    """A scheduler that signals every process of a job also reaches the workers."""
    payloads = ["go"] * 5 + ["stop"] + ["go"] * 10
    box.run("run", f"{ODD}:stops_politely", "--tasks", box.tasks(payloads))
    results = box.results("spool-stops_politely")
    assert {result["state"] for result in results} == {"complete"}
    assert [result["index"] for result in results if result["result"]] == [5]
    assert names(box / "spool-stops_politely" / "stopped") == ["rank-0000.a00.json"]


def test_the_record_of_an_attempt_tells_what_it_took(box: Box) -> None:
    run_odd(box, "returns", ["list", "tuple", "set"], "--keep-going", code=3)
    closing = record(box / "S" / "complete" / "rank-0000.a00.json")
    assert (closing["attempt"], closing["state"], closing["reason"]) == (
        "rank-0000.a00",
        "complete",
        "finished",
    )
    stats = closing["stats"]
    assert (stats["done"], stats["failed"], stats["device"]) == (2, 1, "cpu")
    assert 0 <= stats["busy_s"] <= stats["seconds"]
    assert stats["peak_memory_bytes"] > 1_000_000
    assert stats["versions"]["python"] == sys.version.split()[0]


def a_function(task: Any, ctx: Any) -> None:
    """A job of this module."""


def test_objects_become_names_that_workers_can_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    job, source = parse_job(a_function)
    assert (job.kind, job.module, job.name) == ("module", "test_jobs", "a_function")
    assert source == Path(__file__).read_bytes()
    with pytest.raises(UsageError, match="defined inside a function"):
        parse_job(lambda task, ctx: None)
    with pytest.raises(UsageError, match="is not a class, a function or"):
        parse_job(3)


@pytest.mark.parametrize(
    "spec", ["job.py", "job.py:", ":name", "job.py:not a name", "job.py:a..b", ""]
)
def test_what_names_no_job_is_refused(spec: str) -> None:
    with pytest.raises(UsageError, match="is not file"):
        parse_job(spec)


def test_the_hash_of_a_job_is_that_of_its_source(tmp_path: Path) -> None:
    one, two = tmp_path / "one.py", tmp_path / "two.py"
    one.write_text("def f(task, ctx): pass\n")
    two.write_text("def f(task, ctx): return 1\n")
    hashes = [parse_job(f"{path}:f")[0].sha256 for path in (one, two)]
    assert hashes[0] != hashes[1]
    two.write_text(one.read_text())
    assert parse_job(f"{two}:f")[0].sha256 == hashes[0]


def test_a_module_that_its_package_imports_is_executed_once(box: Box) -> None:
    """A registry in it would refuse the second time."""
    box.write(
        "pk/registry.py",
        "seen = []\ndef add(name):\n    assert name not in seen\n    seen.append(name)\n",
    )
    box.write("pk/__init__.py", "from pk import m\n")
    box.write(
        "pk/m.py",
        "from pk import registry\nregistry.add('m')\ndef f(task, ctx):\n    return registry.seen\n",
    )
    box.run("run", "pk.m:f", "--lines", box.lines(1), "--spool", "S")
    assert [result["result"] for result in assert_sound(box, "S", 1)] == [["m"]]


@pytest.mark.parametrize("size", ["0.5", "0", "10**19", "'4'"])
def test_a_batch_size_that_is_not_a_number_of_tasks_is_refused(box: Box, size: str) -> None:
    box.write(
        "job.py", f"class Job:\n    batch_size = {size}\n    def __call__(self, tasks, ctx): pass\n"
    )
    done = box.run("run", "job.py:Job", "--lines", box.lines(9), "--spool", "S", code=4)
    assert "it must be a whole number from 1 to 1e+06" in done.err


def test_a_batch_size_may_be_a_number_of_numpy(box: Box) -> None:
    source = """
import numpy
class Job:
    batch_size = numpy.int64(4)
    def __call__(self, tasks, ctx):
        return [len(tasks) <= 4] * len(tasks)
"""
    box.write("job.py", source)
    box.run("run", "job.py:Job", "--lines", box.lines(9), "--spool", "S")
    assert [result["result"] for result in assert_sound(box, "S", 9)] == [True] * 9


def test_a_command_that_somebody_kills_again_and_again_fails_no_task(box: Box) -> None:
    """As of a worker: only at the fifth time it is believed that the task is the reason."""
    kills = 'for n in 1 2; do mkdir "k$1-$n" 2> /dev/null && kill -9 $$; done'
    script = f'if [ "$1" = 4 ] || [ "$1" = 7 ]; then {kills}; fi; exit 0'
    inputs = ["--lines", box.lines(20), "--spool", "S", "--ranks", "2"]
    box.run("run", *inputs, "--", "sh", "-c", script, "sh", "{index}")
    assert_sound(box, "S", 20)
    assert len(list((box / ".").glob("k*"))) == 4
