"""A command that is forked from a warm process is what an executed one is."""

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import warm
from helpers import (
    Box,
    Started,
    is_alive,
    kill,
    newest_parent,
    start_gated,
    story,
    wait_until,
    waiting,
)


@pytest.fixture(autouse=True)
def forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here commands are forked even if all other tests are to execute them."""
    monkeypatch.delenv("GPUSPOOL_TESTS_EXECUTE", raising=False)


def what_is_seen(started: Started, home: Path) -> dict[str, Any]:
    """What other processes see of a command."""
    pid = started.pid
    process = Path("/proc", str(pid))
    status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines())
    files = []
    for file in (process / "fd").iterdir():
        # One that is closed meanwhile is none of what it keeps.
        with contextlib.suppress(FileNotFoundError):
            files.append(os.readlink(file))
    return {
        "folder": os.readlink(process / "cwd").removeprefix(str(home)),
        "streams": [os.readlink(process / "fd" / number)[-5:] for number in "012"],
        "sockets": sum(file.startswith("socket:") for file in files),
        "signals": [status[name] for name in ("SigBlk", "SigIgn", "SigCgt")],
        "rest": [status[name] for name in ("Umask", "NoNewPrivs", "Threads")],
        "limits": (process / "limits").read_text(),
        "group": [os.getpgid(pid), os.getsid(pid), os.getpriority(os.PRIO_PROCESS, pid)],
    }


@pytest.fixture
def both(tmp_path: Path) -> Iterator[list[Box]]:
    """A box that forks, and one that executes."""
    boxes = []
    for forks in (True, False):
        (home := tmp_path / f"{forks}").mkdir()
        boxes.append(Box(home, forks=forks))
    yield boxes
    for one in boxes:
        one.kill_all()


def test_a_forked_command_looks_like_an_executed_one(both: list[Box]) -> None:
    started = [start_gated(box, ["wait"])[0] for box in both]
    assert [isinstance(one.process, warm.Child) for one in started] == [True, False]
    for box, one in zip(both, started, strict=True):
        wait_until(partial(waiting, box))
        assert one.pid in box.processes()
        assert len(box.processes()) == 2, "the parent and its worker"
    # Each goes on to set itself up, its watchers above all, while its worker is at work.
    homes = [box.home for box in both]
    wait_until(lambda: what_is_seen(started[0], homes[0]) == what_is_seen(started[1], homes[1]))
    argv = [newest_parent(box / "S")["argv"] for box in both]
    assert argv[0][:3] == argv[1][:3]
    for box in both:
        (box / "gate").touch()
    # The last line tells how long it took.
    told = [one.wait(0).err.splitlines()[:-1] for one in started]
    assert told[0] == told[1]
    assert [box.processes() for box in both] == [[], []]


def test_what_a_forked_command_starts_finds_what_that_of_an_executed_one_finds(
    both: list[Box],
) -> None:
    found = []
    for box in both:
        box.write(
            "job.py",
            "import os, signal, sys\n"
            "def tell(task, ctx):\n"
            "    handlers = [repr(signal.getsignal(number))[:9] for number in range(1, 32)]\n"
            "    return {**os.environ, 'path': sys.path, 'handlers': handlers}\n",
        )
        box.run("run", "job.py:tell", "--lines", box.lines(1), "--spool", "S", env={"A": "\udcff"})
        [result] = box.results("S")
        text = json.dumps(result["result"]).replace(str(box.home), "HOME")
        found.append({**json.loads(text), "GPUSPOOL_ATTEMPT": ""})
    assert found[0] == found[1]


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM, None])
def test_a_forked_command_that_ended_waits_to_be_reaped_and_tells_how_it_ended(
    box: Box, ending: signal.Signals | None
) -> None:
    started, _ = start_gated(box, ["wait"])
    assert isinstance(started.process, warm.Child)
    wait_until(lambda: waiting(box))
    assert not started.is_over()
    if ending is None:
        (box / "gate").touch()
    else:
        kill(started.pid, ending)
        wait_until(lambda: ending == signal.SIGKILL or '"draining"' in story(box / "S"))
        (box / "gate").touch()
    wait_until(lambda: not is_alive(started.pid))
    assert Path("/proc", str(started.pid)).exists(), "nobody reaped it"
    # Some of its threads may be left for a moment.
    wait_until(started.is_over)
    started.wait({None: 0, signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 0}[ending])
    assert not Path("/proc", str(started.pid)).exists()


def test_what_a_command_inherits_is_what_the_test_has_now(box: Box) -> None:
    box.write("job.py", "import os\ndef umask(task, ctx): return os.umask(0)\n")
    command = ["run", "job.py:umask", "--lines", box.lines(1), "--spool"]
    before = os.umask(0o077)
    try:
        box.run(*command, "S")
        os.umask(0o027)
        box.run(*command, "T")
    finally:
        os.umask(before)
    assert [box.results(spool)[0]["result"] for spool in "ST"] == [0o077, 0o027]


def test_an_error_that_nobody_expected_ends_it_as_an_interpreter_does(both: list[Box]) -> None:
    box, executing = both
    words = ["status", "--debug", "nowhere"]
    done = [one.run(*words, code=1) for one in (box, executing)]
    last = [one.err.splitlines()[-1].replace(str(box.home.parent), "") for one in done]
    assert "Traceback" in done[0].err
    assert last[0].replace("True", "False") == last[1]


@pytest.mark.parametrize("variable", ["PYTHONUTF8", "LC_ALL", "TZ", "LD_LIBRARY_PATH"])
def test_what_a_start_reads_is_never_forked(box: Box, variable: str) -> None:
    started = box.start(
        "--version", env={variable: "C"} if variable == "LC_ALL" else {variable: "1"}
    )
    assert not isinstance(started.process, warm.Child)
    assert isinstance(box.start("--version", env={"GPUSPOOL_RANKS": "1"}).process, warm.Child)


def test_one_variable_has_all_commands_executed(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUSPOOL_TESTS_EXECUTE", "1")
    assert not isinstance(box.start("--version").process, warm.Child)
