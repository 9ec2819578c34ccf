"""gpuspool as people call it from Python: scripts of their own, run as they would run them."""

import sys

from helpers import JOBS, MARK, Box, assert_sound, names, record, wait_until

PLAIN = f"{JOBS}/plain.py"


def test_a_string_job_over_items_and_what_the_report_tells(box: Box) -> None:
    done = box.python(
        f"""
import json, signal, gpuspool

handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)]
report = gpuspool.run({f"{PLAIN}:double"!r}, items=(str(i) for i in range(5)), spool="S", ranks=2)
assert handlers == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)]
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
print(json.dumps([report.ok, report.exit_code, report.counts, good.value(), bad.state, bad.error.type, bad.value()]))
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

report = gpuspool.run({f"{PLAIN}:describe"!r}, [pathlib.Path("in/a.txt"), "in/b*"], spool=pathlib.Path("S"), seed=3,
                      args={{"deep": [1, {{"x": None}}]}}, quiet=True)
print(json.dumps([result.value() for result in report.results()]))
report = gpuspool.run(command=["sh", "-c", 'cat "$0" > "$1"', "{{input}}", "{{output}}"], inputs=["in/*"], out="out",
                      quiet=True)
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
    reports[name] = gpuspool.run({f"{PLAIN}:double"!r}, items=["1", "2", "3"], spool=name, quiet=True)

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
print(sorted(sys.modules.keys() & {"torch", "rich", "watchdog", "click", "filelock", "gpuspool.orchestrator", "gpuspool.worker.job"}))
print(gpuspool.Context.__name__, gpuspool.Task.__name__, gpuspool.__version__)
try:
    gpuspool.absent
except AttributeError as error:
    print(error)
"""
    )
    assert done.out.splitlines() == [
        "[]", "Context Task 0.1.0", "module 'gpuspool' has no attribute 'absent'",
    ]  # fmt: skip
    assert MARK not in done.out
