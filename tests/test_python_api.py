"""gpuspool as people call it from Python: scripts of their own, run as they would run them."""

import ast
import errno
import inspect
import os
import pydoc
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from helpers import (
    JOBS,
    MARK,
    Box,
    assert_sound,
    half_done,
    names,
    record,
    start_gated,
    wait_until,
    waiting,
)

import gpuspool
from gpuspool.orchestrator.plan.options import options_of_new_run, options_of_start
from gpuspool.spool.records import Options

PLAIN = f"{JOBS}/plain.py"


def test_a_string_job_over_items_and_what_the_report_tells(box: Box) -> None:
    done = box.python(
        f"""
import json, signal, gpuspool

numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
handlers = [signal.getsignal(number) for number in numbers]
report = gpuspool.run({f"{PLAIN}:double"!r}, items=(str(i) for i in range(5)), spool="S", ranks=2)
assert handlers == [signal.getsignal(number) for number in numbers]
assert signal.set_wakeup_fd(-1) == -1
found = [(result.index, result.key, result.state, result.value()) for result in report.results()]
print(json.dumps([report.ok, report.exit_code, report.counts, str(report.spool), found]))
assert list(report.results()) == list(report.results()), "results can be read more than once"
assert gpuspool.status("S")["state"] == "complete"
assert gpuspool.resume("S", quiet=True).ok
"""
    )
    ok, code, counts, spool, found = done.record()
    assert (ok, code, counts) == (True, 0, {"total": 5, "complete": 5, "failed": 0})
    assert spool == str(box / "S")
    assert found == [[i, f"t{i}", "complete", 2 * i] for i in range(5)]


def test_failed_tasks_raise_nothing(box: Box) -> None:
    done = box.python(
        f"""
import json, gpuspool

job = {f"{PLAIN}:fails_until_fixed"!r}
report = gpuspool.run(job, items=["good", "bad"], args={{"fixed": "fixed"}}, spool="S", quiet=True)
good, bad = report.results()
told = [report.ok, report.exit_code, report.counts]
print(json.dumps([*told, good.value(), bad.state, bad.error.type, bad.value()]))
open("fixed", "w").close()
report = gpuspool.resume("S", retry=True, quiet=True)
print(json.dumps([report.ok, report.exit_code, report.counts]))
"""
    )
    assert done.err == ""
    first, second = done.records()
    assert first == [
        False,
        3,
        {"total": 2, "complete": 1, "failed": 1},
        "good",
        "failed",
        "ValueError",
        None,
    ]
    assert second == [True, 0, {"total": 2, "complete": 2, "failed": 0}]


def test_functions_and_classes_of_the_script_being_run(box: Box) -> None:
    """The workers import the script, so what starts the run stands below `if __name__ ==
    "__main__"`.
    """
    done = box.python(
        """
import gpuspool

def square(task: "gpuspool.Task", ctx: "gpuspool.Context") -> int:
    return task.payload ** 2

class Shout:
    batch_size = 2
    def __call__(self, tasks, ctx):
        return [task.payload.upper() for task in tasks]

if __name__ == "__main__":
    report = gpuspool.run(square, items=[1, 2, 3], ranks=2)
    print([result.value() for result in report.results()], report.spool.name)
    report = gpuspool.run(Shout, items=["a", "b", "c"])
    print([result.value() for result in report.results()], report.spool.name)
"""
    )
    assert done.out.splitlines() == ["[1, 4, 9] spool-square", "['A', 'B', 'C'] spool-Shout"]


def test_objects_of_a_module_beside_the_script(box: Box) -> None:
    box.write("mine.py", "def f(task, ctx):\n    return [task.payload, __name__]\n")
    done = box.python(
        """
import gpuspool, mine
print([result.value() for result in gpuspool.run(mine.f, items=[{"a": 1}]).results()])
"""
    )
    assert done.out == "[[{'a': 1}, 'mine']]\n"


def test_inputs_command_and_options_as_on_the_command_line(box: Box) -> None:
    box.write("in/a.txt", "12")
    box.write("in/b.txt", "1")
    done = box.python(
        f"""
import json, pathlib, gpuspool

report = gpuspool.run(
    {f"{PLAIN}:describe"!r},
    [pathlib.Path("in/a.txt"), "in/b*"],
    spool=pathlib.Path("S"),
    seed=3,
    args={{"deep": [1, {{"x": None}}]}},
    quiet=True,
)
print(json.dumps([result.value() for result in report.results()]))
command = ["sh", "-c", 'cat "$0" > "$1"', "{{input}}", "{{output}}"]
report = gpuspool.run(command=command, inputs=["in/*"], out="out", quiet=True)
print(json.dumps([report.ok, report.spool.name]))
"""
    )
    described, command = done.records()
    assert [told["path"] for told in described] == [
        str(box / "in" / "a.txt"),
        str(box / "in" / "b.txt"),
    ]
    assert described[0]["ctx"][4] == {"deep": [1, {"x": None}]}
    assert record(box / "S" / "run.json")["options"]["seed"] == 3
    assert command == [True, "spool-sh"]
    assert (box / "out" / "a.txt").read_text() == "12"


def test_refusals_are_exceptions_with_an_exit_code(box: Box) -> None:
    done = box.python(
        f"""
import gpuspool

def attempt(*args, **kwargs):
    try:
        print("ran", gpuspool.run(*args, quiet=True, **kwargs).ok)
    except Exception as error:
        print(type(error).__name__, error.exit_code, str(error).splitlines()[0])

job = {f"{PLAIN}:double"!r}
attempt("absent.py:f", items=[1])
attempt(job, items=[object()])
attempt(job, items=[1], args={{"x": object()}})
attempt(job, items=[1], ranks="two")
attempt(job, items=[1], grace_s=float("inf"))
attempt(job)
attempt(job, items=[1], spool="S")
attempt(job, items=[2], spool="S")
try:
    gpuspool.status("nowhere")
except Exception as error:
    print(type(error).__name__, error.exit_code)
"""
    )
    lines = done.out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["UsageError", "2"],
        ["UsageError", "2"],
        ["UsageError", "2"],
        ["UsageError", "2"],
        ["UsageError", "2"],
        ["UsageError", "2"],
        ["ran", "True"],
        ["UsageError", "2"],
        ["UsageError", "2"],
    ]


def test_off_the_main_thread_and_two_at_once(box: Box) -> None:
    """No signal handler can be installed there, and none is needed."""
    done = box.python(
        f"""
import signal, threading, gpuspool

before = signal.getsignal(signal.SIGINT)
reports = {{}}

def go(name):
    job = {f"{PLAIN}:double"!r}
    reports[name] = gpuspool.run(job, items=["1", "2", "3"], spool=name, quiet=True)

threads = [threading.Thread(target=go, args=(name,)) for name in ("A", "B")]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert signal.getsignal(signal.SIGINT) is before
print([reports[name].ok for name in ("A", "B")])
"""
    )
    assert done.out == "[True, True]\n"
    assert_sound(box, "A", 3)
    assert_sound(box, "B", 3)


def test_an_interrupt_in_a_script_drains_and_returns(box: Box) -> None:
    """Ctrl-C at a prompt ends the run, not the program: the report says so."""
    script = box.write(
        "drained.py",
        f"""
import gpuspool
job, args = {f"{JOBS}/gates.py:gated_polite"!r}, {{"gate": {str(box / "gate")!r}}}
report = gpuspool.run(job, items=list(range(4)), args=args, spool="S")
print(report.exit_code, report.ok, report.counts["complete"])
""",
    )
    started = box.start(script, program=(sys.executable,))
    wait_until((box / "gate.waiting").exists)
    started.signal(2)
    assert started.wait(0).out == "75 False 1\n"
    assert names(box / "S" / "stopped") == ["rank-0000.a00.json"]


def test_importing_it_is_cheap_and_lazy(box: Box) -> None:
    done = box.python(
        """
import sys, gpuspool
heavy = {"torch", "rich", "watchdog", "click", "filelock", "msgspec"}
heavy |= {"gpuspool.orchestrator", "gpuspool.worker", "gpuspool.spool.view"}
print(sorted(sys.modules.keys() & heavy))
print(gpuspool.Context.__name__, gpuspool.Task.__name__, gpuspool.__version__)
try:
    gpuspool.absent
except AttributeError as error:
    print(error)
"""
    )
    assert done.out.splitlines() == [
        "[]", "Context Task 0.2.0", "module 'gpuspool' has no attribute 'absent'",
    ]  # fmt: skip
    assert MARK not in done.out


def test_everything_that_is_exported_can_be_used_and_is_shown(box: Box) -> None:
    """The names that type checkers see are those that a program gets and that dir() lists."""
    assert sorted(gpuspool.__all__) == dir(gpuspool)
    for name in gpuspool.__all__:
        assert getattr(gpuspool, name) is not None
    tree = ast.parse(Path(gpuspool.__file__).read_bytes())
    typed = next(node for node in tree.body if isinstance(node, ast.If))
    homes = {
        alias.name: node.module
        for node in typed.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert homes.keys() | {"__version__"} == set(gpuspool.__all__)
    for name, module in homes.items():
        assert gpuspool._HOMES.get(name, "gpuspool.spool.errors") == module, name
    done = box.python("import gpuspool\nprint(dir(gpuspool) == sorted(gpuspool.__all__))\n")
    assert done.out == "True\n", "also before anything was used"


@pytest.mark.parametrize("name", [name for name in gpuspool.__all__ if name != "__version__"])
def test_every_public_name_has_a_docstring_and_stands_in_the_docs(name: str) -> None:
    value = getattr(gpuspool, name)
    assert inspect.getdoc(value), name
    docs = Path(__file__).resolve().parent.parent / "docs"
    pages = "".join((docs / page).read_text() for page in ("python-api.md", "seed-api.md"))
    if name not in ("Task", "Context"):  # docs/jobs.md tells what a job sees of them
        assert f"`{name}" in pages


@pytest.mark.parametrize("name", ["run", "resume", "retry"])
def test_help_shows_every_option_with_its_type_and_meaning(name: str) -> None:
    function = getattr(gpuspool, name)
    text = pydoc.plain(pydoc.render_doc(function))
    fields = [field for field in Options.__struct_fields__ if name == "run" or field != "seed"]
    parameters = inspect.signature(function).parameters
    for field in fields:
        assert f"{field}: " in text.partition("\n    ")[0], "in the signature"
        assert f"\n    {field}: " in text, "in the description"
        assert parameters[field].default is None
        assert parameters[field].kind is inspect.Parameter.KEYWORD_ONLY
    assert "options" not in parameters


def test_the_typed_options_are_those_of_the_record() -> None:
    assert set(gpuspool.RunOptions.__annotations__) == set(Options.__struct_fields__)
    assert set(gpuspool.StartOptions.__annotations__) == set(Options.__struct_fields__) - {"seed"}


def test_what_a_start_is_given_wins_over_the_run_and_that_over_the_default() -> None:
    recorded = options_of_new_run({"retries": 5, "grace_s": 1, "time_limit_s": 60, "seed": 7})
    assert (recorded.retries, recorded.grace_s, recorded.lease_s) == (5, 1.0, 120.0)
    start = options_of_start(recorded, {"retries": 2, "seed": 7})
    assert (start.retries, start.grace_s, start.lease_s) == (2, 1.0, 120.0)
    assert start.seed == 7
    assert start.time_limit_s is None, "a limit is of the start that it was given to"
    assert options_of_start(recorded, {"time_limit_s": 9}).time_limit_s == 9.0
    with pytest.raises(gpuspool.UsageError, match=r"seed=8, but the run was made with 7"):
        options_of_start(recorded, {"seed": 8})


def test_an_attempt_keeps_the_options_that_it_was_started_with(box: Box) -> None:
    command = half_done(box, "--retries", "3", "--grace", "7")
    box.run(*command, "--retries", "1")
    first, second = (record(box / "S" / "attempts" / f"rank-0000.a0{n}.json") for n in (0, 1))
    assert (first["options"]["retries"], first["options"]["grace_s"]) == (3, 7.0)
    assert (second["options"]["retries"], second["options"]["grace_s"]) == (1, 7.0)
    assert record(box / "S" / "run.json")["options"]["retries"] == 3
    box.run("resume", "S")
    with pytest.raises(gpuspool.UsageError, match="seed=1, but the run was made with 0"):
        gpuspool.resume(box / "S", seed=1, quiet=True)  # type: ignore[call-arg]


def test_unknown_options_are_refused_with_those_that_exist(box: Box) -> None:
    box.run("run", f"{PLAIN}:double", "--lines", box.lines(1), "--spool", "S")
    for function in (gpuspool.resume, gpuspool.retry):
        with pytest.raises(gpuspool.UsageError, match=r"unknown option rnaks. There are: ranks, "):
            function(box / "S", rnaks=2)


def test_inputs_are_named_in_one_way_in_python_too() -> None:
    with pytest.raises(gpuspool.UsageError, match=r"in one way.*\(2 of them were given\)"):
        gpuspool.run(f"{PLAIN}:double", [PLAIN], items=[1])


def test_a_dry_run_shows_what_the_start_would_use(box: Box) -> None:
    """Of a spool that is there the options that it was made with, unless others are given."""
    run = ["run", f"{PLAIN}:double", "--lines", box.lines(4), "--spool", "S"]
    box.run(*run, "--ranks", "3", "--devices", "cpu")
    assert "for 4 tasks on 3 ranks" in box.run(*run, "--dry-run").err
    assert "for 4 tasks on 2 ranks" in box.run(*run, "--dry-run", "--ranks", "2").err


def test_failed_and_retry_and_results(box: Box) -> None:
    command = ["run", f"{PLAIN}:fails_until_fixed", "--tasks", box.tasks(["bad", "good", "bad"])]
    box.run(*command, "--arg", f"fixed={box / 'fixed'}", "--spool", "S", code=3)
    found = gpuspool.failed(box / "S")
    assert [(result.index, result.key, result.state) for result in found] == [
        (0, "t0", "failed"), (2, "t2", "failed"),
    ]  # fmt: skip
    assert all(isinstance(result, gpuspool.Result) for result in found)
    assert [result.error and result.error.type for result in found] == ["ValueError"] * 2
    (box / "fixed").touch()
    report = gpuspool.retry(box / "S", quiet=True, devices="cpu")
    assert isinstance(report, gpuspool.Report)
    assert (report.ok, report.counts) == (True, {"total": 3, "complete": 3, "failed": 0})
    assert gpuspool.failed(box / "S") == []
    values = [result.value() for result in gpuspool.results(box / "S")]
    assert values == ["bad", "good", "bad"]


def test_wait_drain_and_status_of_a_live_run(box: Box) -> None:
    started, _ = start_gated(box, ["wait", "wait", "wait"], "--ranks", "1", job="gated_polite")
    wait_until(lambda: waiting(box))
    now = gpuspool.wait(box / "S", timeout_s=0.05)
    assert now["state"] is gpuspool.RunState.RUNNING
    assert gpuspool.status(box / "S")["tasks"]["complete"] == 0
    assert gpuspool.drain(box / "S") == box / "S"
    ended = gpuspool.wait(box / "S", timeout_s=30)
    assert ended["state"] is gpuspool.RunState.STOPPED
    assert ended["tasks"]["complete"] == 1, "the task in hand was finished"
    started.wait(4)
    (box / "gate").touch()
    assert gpuspool.resume(box / "S", quiet=True).ok, "a drain holds for one start"
    assert gpuspool.wait(box / "S")["state"] is gpuspool.RunState.COMPLETE


def test_drain_of_what_is_not_running_drains_no_later_start(box: Box) -> None:
    box.run(*half_done(box))
    gpuspool.drain(box / "S")
    gpuspool.drain(box / "S")
    assert gpuspool.retry(box / "S", quiet=True).ok


def test_logs_of_all_of_one_rank_and_of_one_task(box: Box) -> None:
    run = ["run", f"{PLAIN}:noisy", "--lines", box.lines(6), "--spool", "S", "--ranks", "2"]
    box.run(*run)
    pieces = gpuspool.logs(box / "S")
    assert inspect.isgenerator(pieces)
    whole = "".join(pieces)
    assert whole == box.run("logs", "S").out
    assert [line for line in whole.splitlines() if line.startswith("==>")] == [
        "==> rank-0000.a00 <==", "==> rank-0001.a00 <==",
    ]  # fmt: skip
    one = "".join(gpuspool.logs(box / "S", rank=1))
    assert one.startswith("==> rank-0001.a00 <==")
    assert "rank-0000" not in one
    assert "".join(gpuspool.logs(box / "S", key="t3")) == box.run("logs", "S", "--task", "t3").out
    with pytest.raises(gpuspool.UsageError, match="no task 'nobody'"):
        gpuspool.logs(box / "S", key="nobody")


def test_a_log_of_any_size_comes_in_pieces_of_any_characters(box: Box) -> None:
    box.run("run", f"{PLAIN}:double", "--lines", box.lines(1), "--spool", "S")
    text = "\N{SNOWMAN}ä" * 300_000 + "\n"
    (box / "S" / "logs" / "rank-0000.a00.log").write_text(text)
    pieces = list(gpuspool.logs(box / "S"))
    assert len(pieces) > 2
    assert "".join(pieces[1:]) == text


def test_verify_and_doctor(box: Box) -> None:
    box.run("run", f"{PLAIN}:double", "--lines", box.lines(3), "--spool", "S")
    found = gpuspool.verify(box / "S")
    assert isinstance(found, gpuspool.Findings)
    assert (found.problems, found.notes) == ([], [])
    assert found.counts == {"total": 3, "complete": 3, "failed": 0}
    (box / "S" / "job" / "plain.py").write_text("damaged")
    assert "not the job that the run began with" in gpuspool.verify(box / "S").problems[0]
    checks = gpuspool.doctor(box.home)
    assert all(isinstance(check, gpuspool.Check) for check in checks)
    assert {check.name for check in checks} >= {"exclusive", "link", "rename"}
    with pytest.raises(gpuspool.UsageError, match="is not a folder"):
        gpuspool.doctor(box / "S" / "run.json")


def test_without_a_spool_the_only_one_is_meant(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(box.home)
    with pytest.raises(gpuspool.UsageError, match="not just one"):
        gpuspool.status()
    box.run("run", f"{PLAIN}:double", "--lines", box.lines(3))
    assert gpuspool.status()["state"] is gpuspool.RunState.COMPLETE
    assert gpuspool.wait()["spool"] == str(box / "spool-double")
    assert gpuspool.verify().problems == []
    assert gpuspool.failed() == []
    assert len(list(gpuspool.results())) == 3
    assert "".join(gpuspool.logs()).startswith("==> ")
    assert gpuspool.resume(quiet=True, devices="cpu").ok
    assert gpuspool.retry(quiet=True, devices="cpu").ok
    assert gpuspool.drain() == box / "spool-double"


def test_reading_is_refused_when_it_is_called_and_not_when_it_is_iterated(box: Box) -> None:
    for function in (gpuspool.results, gpuspool.logs, gpuspool.failed):
        with pytest.raises(gpuspool.UsageError, match="does not exist"):
            function(box / "absent")


def test_a_start_that_is_not_admitted_is_an_error_of_its_own(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one holds the lock and does not come to an end."""
    monkeypatch.setattr("gpuspool.orchestrator.supervise.lock.PATIENCE_S", 0.1)
    half_done(box)
    with (
        FileLock(box / "S" / "orchestrator.lock", fallback_to_soft=False),
        pytest.raises(gpuspool.OrchestratorLive, match="was not to be had") as live,
    ):
        gpuspool.resume(box / "S", quiet=True)
    assert live.value.exit_code == 6


def test_a_start_that_cannot_take_its_epoch_holds_no_folder_open(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program goes on, and another start of it may work."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr("gpuspool.orchestrator.api.epoch._take_epoch", full)
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="no space left"):
        gpuspool.run(f"{PLAIN}:double", items=["1"], spool=box / "S", devices="cpu", quiet=True)
    assert sorted(os.listdir("/proc/self/fd")) == before
