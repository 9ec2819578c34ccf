"""How a run is begun and left: from where the job is imported, who listens, what is in the way."""

import os
import pty
import signal
import sys
from pathlib import Path

import pytest
from helpers import (
    GPUSPOOL,
    JOBS,
    Box,
    assert_sound,
    kill,
    names,
    record,
    start_gated,
    tree,
    wait_until,
    waiting,
)
from spooling import begin, intend, make_spool, take, view_of

from gpuspool.orchestrator.report.verify import verify

DOUBLE = f"{JOBS}/plain.py:double"
EXTENDED = "from pkgutil import extend_path\n__path__ = extend_path(__path__, __name__)\n"


@pytest.mark.parametrize("stderr", ["2>/dev/full", "2>&-", "2> >(:)"])
def test_a_run_goes_on_where_nobody_listens(box: Box, stderr: str) -> None:
    """A message about a worker that died is not the run."""
    tasks = box.tasks(["a", "die", "b"])
    command = f"{GPUSPOOL} run {JOBS}/harsh.py:leaves_a_daemon --tasks {tasks} --spool S"
    command += " --arg children=children"
    box.run("-c", f"{command} {stderr}", program=("bash",), code=3)
    assert [result["state"] for result in box.results("S")] == ["complete", "failed", "complete"]
    assert record(box / "S" / "summary.json")["exit_code"] == 3
    assert box.processes() == []


def test_a_run_goes_on_when_its_terminal_goes_away(box: Box) -> None:
    ours, theirs = pty.openpty()
    command = [
        GPUSPOOL,
        "run",
        f"{JOBS}/gates.py:gated",
        "--tasks",
        box.tasks(["wait", "a"]),
        "--spool",
        "S",
    ]
    command += ["--arg", f"gate={box / 'gate'}", "--ranks", "1"]
    text = " ".join(command)
    started = box.start("-c", f"exec {text} 2>{os.ttyname(theirs)}", program=("sh",))
    wait_until(lambda: waiting(box))
    os.close(theirs)
    os.close(ours)
    (worker,) = box.status("S")["ranks"]
    kill(worker["pid"])
    (box / "gate").touch()
    started.wait(0)
    assert_sound(box, "S", 2)


def test_the_new_code_is_for_workers_too_that_outlived_their_parent(box: Box) -> None:
    box.job("plain.py")
    gates = box.job("gates.py")
    payloads = ["wait", "wait", *"abcdefgh"]
    command = [
        "run",
        "gates.py:gated",
        "--tasks",
        box.tasks(payloads),
        "--arg",
        f"gate={box / 'gate'}",
    ]
    started = box.start(*command, "--ranks", "2")
    wait_until(lambda: len(waiting(box)) == 2)
    started.signal(signal.SIGKILL)
    started.wait()
    gates.write_text(
        gates.read_text().replace("return task.payload", "return task.payload.upper()")
    )
    again = box.start(*command, "--keep-done", "--ranks", "2")
    wait_until(lambda: "stops for the new code" in again.err)
    (box / "gate").touch()
    again.wait(0)
    found = [result["result"] for result in assert_sound(box, "spool-gated", 10)]
    assert found == ["wait", "wait", *"ABCDEFGH"], "what was in hand was finished as it was begun"


def test_a_moved_project_runs_with_what_lies_beside_it_now(box: Box) -> None:
    box.write("a/helper.py", "SAYS = 'old'\n")
    box.write("a/job.py", "import os, signal, helper\ndef f(task, ctx):\n    return helper.SAYS\n")
    command = ["run", "job.py:f", "--spool", "S", "--lines", "lines"]
    box.lines(3, "a/lines")
    started = box.start(*command, "--time-limit", "0", cwd=box / "a")
    started.wait(75)
    os.rename(box / "a", box / "b")
    box.write("b/helper.py", "SAYS = 'new'\n")
    box.run(*command, cwd=box / "b")
    assert {result["result"] for result in assert_sound(box, "b/S", 3)} == {"new"}


def test_wait_returns_once_a_run_of_the_python_api_has_ended(box: Box) -> None:
    """Its process may live on, as a notebook's does; and who comes next finds the lock free."""
    done = box.python(
        f"""
import gpuspool, subprocess
job = {f"{JOBS}/plain.py:double"!r}
report = gpuspool.run(job, items=[1, 2], spool="S", time_limit_s=0, quiet=True)
print(report.exit_code, gpuspool.status("S")["state"])
print(subprocess.run([{GPUSPOOL!r}, "wait", "S"], capture_output=True).returncode)
print(subprocess.run([{GPUSPOOL!r}, "resume", "S", "-q"], capture_output=True).returncode)
"""
    )
    assert done.out.splitlines() == ["75 stopped", "4", "0"]


def test_retry_may_follow_wait_at_once(box: Box) -> None:
    """Every task has a verdict before the orchestrator has seen its workers off."""
    box.write(
        "job.py",
        "import atexit, time\natexit.register(time.sleep, 0.5)\n"
        "def f(task, ctx):\n    return 1 / 0\n",
    )
    command = ["run", "job.py:f", "--lines", box.lines(1), "--spool", "S", "--keep-going"]
    started = box.start(*command)
    wait_until(lambda: (box / "S" / "parents" / "0000.json").exists())
    box.run("wait", "S", code=3)
    box.run("retry", "S", code=3)
    started.wait(3)


@pytest.mark.parametrize(
    "call", ["gpuspool.run(f, items=[1], spool=f'S-{time.time()}')", "spawn()"]
)
def test_a_script_that_starts_a_run_wherever_it_is_imported_starts_one(box: Box, call: str) -> None:
    done = box.python(
        f"""
import time, gpuspool
def f(*args): pass
def spawn():
    c = gpuspool.GPUProcessCoordinator(1, f"O-{{time.time()}}")
    c.spawn_workers(f)
    print(c.wait_for_completion())
print({call})
"""
    )
    assert len([name for name in names(box.home) if name.startswith(("S-", "O-"))]) == 1
    said = done.out + "".join(path.read_text() for path in box.home.glob("O-*/**/logs/*.log"))
    assert "if __name__ == '__main__'" in said


def test_a_job_object_is_imported_with_what_it_was_imported_with(box: Box) -> None:
    box.write("scripts/other.py", "ONE = 1\n")
    box.write(
        "scripts/helper.py",
        "import other\ndef f(task, ctx):\n    return task.payload + other.ONE\n",
    )
    box.write(
        "scripts/go.py",
        "import gpuspool, helper\nprint(gpuspool.run(helper.f, items=[1], quiet=True).ok)\n",
    )
    assert box.run("scripts/go.py", program=(sys.executable,)).out == "True\n"


def test_a_job_of_a_script_of_a_package_may_import_relatively(box: Box) -> None:
    box.write("pk/__init__.py", "")
    box.write("pk/one.py", "ONE = 1\n")
    script = """
import gpuspool
from .one import ONE
def f(task, ctx):
    return task.payload + ONE
if __name__ == "__main__":
    print([r.value() for r in gpuspool.run(f, items=[1], quiet=True).results()])
"""
    box.write("pk/script.py", script)
    assert box.run("-m", "pk.script", program=(sys.executable,)).out == "[2]\n"


def test_no_code_of_a_package_runs_in_the_orchestrator(box: Box) -> None:
    box.write(
        "pk/__init__.py", "import os, sys\nif 'GPUSPOOL_ATTEMPT' not in os.environ: sys.exit(0)\n"
    )
    box.write("pk/helper.py", "import pk.m\ndef name():\n    return pk.m.__name__\n")
    box.write("pk/m.py", "def f(task, ctx):\n    import pk.helper\n    return pk.helper.name()\n")
    box.run("run", "pk.m:f", "--lines", box.lines(2), "--spool", "S")
    assert [result["result"] for result in assert_sound(box, "S", 2)] == ["pk.m", "pk.m"]


@pytest.mark.parametrize(
    "files",
    [
        {"ns/sub/mod.py": ""},
        {"reg/__init__.py": "", "reg/inner/mod.py": ""},
        {"a/pk/__init__.py": EXTENDED, "b/pk/__init__.py": EXTENDED, "b/pk/mod.py": ""},
    ],
    ids=["namespace", "namespace in a package", "pkgutil"],
)
def test_a_job_is_found_in_packages_of_any_kind(box: Box, files: dict[str, str]) -> None:
    for name, text in files.items():
        box.write(name, text or "def f(task, ctx):\n    return __name__\n")
    last = next(name for name, text in files.items() if name.endswith("mod.py"))
    module = last.removesuffix(".py").removeprefix("b/").replace("/", ".")
    env = {"PYTHONPATH": f"{box / 'a'}:{box / 'b'}"}
    box.run("run", f"{module}:f", "--lines", box.lines(1), "--spool", "S", env=env)
    assert [result["result"] for result in assert_sound(box, "S", 1)] == [module]


def test_a_module_is_not_a_package(box: Box) -> None:
    for name in ("a.py", "b.py"):
        box.write(name, "def f(task, ctx):\n    return __name__\n")
    assert (
        "cannot be found"
        in box.run("run", "a.b:f", "--lines", box.lines(1), "--spool", "S", code=2).err
    )


def test_a_job_object_may_come_from_a_module_that_no_import_finds(box: Box) -> None:
    box.write("far/away.py", "def f(task, ctx):\n    return task.payload + 1\n")
    done = box.python(
        """
import gpuspool, importlib.util, sys
spec = importlib.util.spec_from_file_location("away", "far/away.py")
sys.modules["away"] = away = importlib.util.module_from_spec(spec)
spec.loader.exec_module(away)
print(gpuspool.run(away.f, items=[1], quiet=True).ok)
"""
    )
    assert done.out == "True\n"


def test_an_output_folder_that_holds_an_input_is_not_moved_aside(box: Box) -> None:
    box.write("data/a.txt", "a")
    before = tree(box / "data")
    command = [
        "run",
        f"{JOBS}/plain.py:describe",
        "data/*.txt",
        "--out",
        "data",
        "--spool",
        "S",
        "--overwrite",
    ]
    assert "holds the input" in box.run(*command, code=2).err
    assert tree(box / "data") == before
    assert not (box / "S").exists()


def test_a_payload_that_is_not_a_file_is_in_no_output_folder(box: Box) -> None:
    box.write("out/old", "old")
    box.run("run", DOUBLE, "--lines", box.lines(2), "--out", "out", "--overwrite", "--spool", "S")
    assert names(box / "out.old-1") == ["old"]


def test_a_job_file_may_have_dots_in_its_name(box: Box) -> None:
    box.write("job.v2.py", "def f(task, ctx):\n    return __name__\n")
    box.run("run", "job.v2.py:f", "--lines", box.lines(1), "--spool", "S")
    assert [result["result"] for result in assert_sound(box, "S", 1)] == ["job.v2"]


def test_a_run_that_goes_on_is_no_problem_to_verify(tmp_path: Path) -> None:
    """What it claims and closes after the view was taken."""
    layout = make_spool(tmp_path / "s", 4)
    intend(layout, "rank-0000.a00")
    begin(layout, "rank-0000.a00")
    view = view_of(layout)
    take(layout, "rank-0000.a00", 2)
    assert not [text for text in verify(view).problems if "chain" in text or "claim" in text]


def test_a_folder_that_is_gone_at_the_end_costs_a_run_nothing(box: Box) -> None:
    (box / "gone").mkdir()
    started, _ = start_gated(box, ["wait"], spool=str(box / "S"))
    wait_until(lambda: waiting(box))
    box.kill_all()
    started.wait()
    box.write("go.sh", f"cd gone && rmdir ../gone && exec {GPUSPOOL} resume {box / 'S'}\n")
    (box / "gate").touch()
    box.run("go.sh", program=("sh",))
    assert record(box / "S" / "summary.json")["exit_code"] == 0


def test_words_that_are_not_utf8_are_refused_or_escaped(box: Box) -> None:
    odd = os.fsdecode(b"\xff")
    box.write("a.txt", "a")
    assert (
        "not UTF-8"
        in box.run("run", "a.txt", "--spool", "S", "--", "echo", odd, "{input}", code=2).err
    )
    assert not [name for name in os.listdir(box.home) if "S." in name or name == "S"]
    box.run("run", DOUBLE, "--lines", box.lines(1, odd), "--spool", "T")
    assert record(box / "T" / "run.json")["argv"][-3] == "\\udcff", "only a person reads it"


def test_words_that_are_not_json_stay_words(box: Box) -> None:
    command = ["run", f"{JOBS}/plain.py:describe", box.write("a.txt", "a"), "--spool", "S"]
    box.run(*command, "--arg", "x=NaN", "--arg", "y=-Infinity", "--arg", "z=1e3")
    (result,) = box.results("S")
    assert result["result"]["ctx"][4] == {"x": "NaN", "y": "-Infinity", "z": 1000.0}


def test_a_reader_that_has_seen_enough_ends_results(box: Box) -> None:
    box.run("run", DOUBLE, "--lines", box.lines(20_000), "--spool", "S")
    done = box.run(
        "-c", f"{GPUSPOOL} results S | head -1; echo ${{PIPESTATUS[0]}}", program=("bash",)
    )
    assert done.out.splitlines()[1:] == ["141"]
    assert done.err == ""


def test_no_stdin_is_refused(box: Box) -> None:
    done = box.run(
        "-c", f"{GPUSPOOL} run {DOUBLE} --lines - --spool S <&-", program=("sh",), code=2
    )
    assert "there is no stdin" in done.err


@pytest.mark.parametrize("head", [b"\xef\xbb\xbf", b"# -*- coding: latin-1 -*-\n"])
def test_a_job_file_may_have_any_encoding_that_python_reads(box: Box, head: bytes) -> None:
    says = "\xe9".encode("latin-1" if b"latin" in head else "utf-8")
    (box / "job.py").write_bytes(head + b"def f(task, ctx):\n    return '" + says + b"'\n")
    box.run("run", "job.py:f", "--lines", box.lines(1), "--spool", "S")
    assert [result["result"] for result in assert_sound(box, "S", 1)] == ["\xe9"]


def test_a_job_that_everybody_may_write_is_resumed_by_nobody(box: Box) -> None:
    job = box.job("plain.py")
    box.run("run", "plain.py:double", "--lines", box.lines(1), "--spool", "S")
    job.chmod(0o666)
    for command in (["resume", "S"], ["run", "plain:double", "--lines", "lines", "--spool", "T"]):
        assert "may be written by everybody" in box.run(*command, code=2).err


def test_a_dry_run_tells_a_new_spool_from_one_to_go_on_with(box: Box) -> None:
    command = ["run", DOUBLE, "--lines", box.lines(1), "--spool", "S"]
    assert "would make" in box.run(*command, "--dry-run").err
    box.run(*command)
    assert "would go on" in box.run(*command, "--dry-run").err
    assert "would make" in box.run(*command, "--dry-run", "--fresh").err


@pytest.mark.parametrize("option", ["--poll", "--stall-timeout", "--time-limit"])
def test_times_without_end_are_refused_and_long_ones_taken(box: Box, option: str) -> None:
    command = ["run", DOUBLE, "--lines", box.lines(1), "--spool", "S", option]
    assert "longer than 3650 days" in box.run(*command, "200000d", code=2).err
    box.run(*command, "3000d")
