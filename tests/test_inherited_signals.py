"""What a run inherits of whoever starts it, by exec or in a Python program: signals that are
ignored, blocked or handled, and closed descriptors, change no verdict.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
from helpers import GPUSPOOL, JOBS, Box, journal_lines, record, wait_until, waiting

from gpuspool.spool import signals
from gpuspool.spool.errors import EXIT_UNSEEN
from gpuspool.worker import starting

# Exec keeps what is ignored or blocked. Python itself would set some of it back at its start.
IGNORE_ALL = (
    "import os, signal, sys\n"
    "for n in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:\n"
    "    if n < 32: signal.signal(n, signal.SIG_IGN)\n"
    "signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())\n"
    "os.execvp(sys.argv[1], sys.argv[1:])\n"
)
IGNORE_CHILDREN = (
    "import os, signal, sys\n"
    "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
    "os.execvp(sys.argv[1], sys.argv[1:])\n"
)


def failing(box: Box) -> list[str]:
    """A run of four commands, each of which fails."""
    words = ["--lines", box.lines(4), "--spool", "S", "--keep-going", "--", "false", "{input}"]
    return ["run", *words]


def under(script: str) -> tuple[str, ...]:
    return (sys.executable, "-c", script, GPUSPOOL)


@pytest.mark.parametrize("start", [IGNORE_CHILDREN, IGNORE_ALL], ids=["SIGCHLD", "all"])
def test_a_failed_command_fails_whatever_is_ignored(box: Box, start: str) -> None:
    done = box.run(*failing(box), program=under(start), code=3)
    assert "4 failed" in done.err
    assert [line["state"] for line in journal_lines(box / "S")] == ["failed"] * 4


@pytest.mark.parametrize("start", [IGNORE_CHILDREN, IGNORE_ALL], ids=["SIGCHLD", "all"])
def test_a_failed_command_of_a_job_fails_whatever_is_ignored(box: Box, start: str) -> None:
    job = f"{JOBS}/stops.py:fails_in_child"
    command = ["run", job, "--lines", box.lines(2), "--spool", "S", "--keep-going"]
    box.run(*command, program=under(start), code=3)
    errors = [line["error"]["type"] for line in journal_lines(box / "S")]
    assert errors == ["CalledProcessError"] * 2


def test_a_crash_of_a_worker_is_seen_whatever_is_ignored(box: Box) -> None:
    command = ["run", f"{JOBS}/stops.py:crashes", "--tasks", box.tasks([7]), "--spool", "S"]
    box.run(*command, "--max-crashes", "1", program=under(IGNORE_ALL), code=3)
    [result] = box.results("S")
    assert result["error"]["exit_code"] == 7


def test_what_a_job_starts_ignores_and_blocks_nothing(box: Box) -> None:
    job = f"{JOBS}/stops.py:shows_signals"
    command = ["run", job, "--lines", box.lines(1), "--spool", "S"]
    box.run(*command, program=under(IGNORE_ALL))
    [result] = box.results("S")
    seen = json.loads(result["result"])
    # The script is Python, which ignores these two itself; and nohup(1)'s SIGHUP stays ignored.
    allowed = {signal.SIGPIPE, signal.SIGXFSZ, signal.SIGHUP}
    ignored = {number for number in range(1, 65) if seen["ignored"] >> (number - 1) & 1}
    # These two belong to the C library: no program can set them through it.
    allowed |= {32, 33}
    assert ignored <= allowed
    assert seen["blocked"] == []
    assert seen["fds"] == ["0", "1", "2", "3"], "3 is the listing itself"


def test_a_run_under_blocked_signals_hears_of_a_stop(box: Box) -> None:
    job = f"{JOBS}/gates.py:gated"
    command = ["run", job, "--tasks", box.tasks(["wait", "go"]), "--spool", "S"]
    command += ["--arg", f"gate={box / 'gate'}"]
    started = box.start(*command, program=under(IGNORE_ALL))
    wait_until(lambda: waiting(box))
    started.signal(signal.SIGTERM)
    wait_until(lambda: "SIGTERM received" in started.err)
    (box / "gate").touch()
    started.wait(75)


PROGRAM = """
import os, signal, sys, threading
import gpuspool

def reap(number, frame):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass

def go():
    options = {{"max_crashes": 1, "keep_going": True, "quiet": True}}
    report = gpuspool.run({job!r}, items={items!r}, spool="S", **options)
    print(report.exit_code, report.counts["complete"], report.counts["failed"])

if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, {handler})
    if {in_thread}:
        thread = threading.Thread(target=go)
        thread.start()
        thread.join()
    else:
        go()
        assert signal.getsignal(signal.SIGCHLD) == {handler}
"""


@pytest.mark.parametrize("in_thread", [False, True])
@pytest.mark.parametrize("handler", ["signal.SIG_IGN", "reap"])
@pytest.mark.parametrize(("job", "items"), [("fails_in_child", [1, 2]), ("crashes", [0])])
def test_a_program_with_its_own_sigchld_is_told_of_every_failure(
    box: Box, handler: str, in_thread: bool, job: str, items: list[int]
) -> None:
    """One with a crash by exit code 0: the status that would be read where it was lost."""
    source = PROGRAM.format(
        job=f"{JOBS}/stops.py:{job}", items=items, handler=handler, in_thread=in_thread
    )
    done = box.python(source)
    assert done.out.split() == ["3", "0", str(len(items))]


@pytest.mark.parametrize("streams", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_descriptors_reach_no_file_of_the_spool(box: Box, streams: str) -> None:
    job = f"{JOBS}/stops.py:shows_signals"
    lines = box.lines(2)
    script = f'exec "$0" run {job} --lines {lines} --spool S {streams}'
    box.run(GPUSPOOL, program=("sh", "-c", script))
    assert box.problems("S") == []
    for result in box.results("S"):
        assert json.loads(result["result"])["fds"] == ["0", "1", "2", "3"]
    assert record(box / "S" / "summary.json")["exit_code"] == 0


def test_a_status_that_was_lost_is_no_success() -> None:
    old = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert starting.run(["true"], is_literal=True).status == EXIT_UNSEEN
    finally:
        signal.signal(signal.SIGCHLD, old)
    assert starting.run(["true"], is_literal=True).status == 0
    assert starting.run(["sh", "-c", "exit 3"], is_literal=True).status == 3
    assert starting.run(["sh", "-c", "kill -USR1 $$"], is_literal=True).status == -signal.SIGUSR1


def test_a_handler_of_the_program_is_called_once_the_run_is_over() -> None:
    calls: list[int] = []
    old = signal.signal(signal.SIGCHLD, lambda number, frame: calls.append(number))
    try:
        with signals.children_can_be_awaited():
            pid = os.fork()
            if pid == 0:
                os._exit(5)
            assert os.waitpid(pid, 0)[1] == 5 << 8
            assert calls == []
        assert calls == [signal.SIGCHLD]
    finally:
        signal.signal(signal.SIGCHLD, old)


@pytest.mark.skipif(shutil.which("perl") is None, reason="perl is not there")
def test_as_perl_starts_it(box: Box) -> None:
    start = ("perl", "-e", '$SIG{CHLD}="IGNORE"; exec @ARGV', GPUSPOOL)
    box.run(*failing(box), program=start, code=3)


SEED = """
import signal
import gpuspool
from pathlib import Path

def work(rank, world_size, results, text):
    results.put(text)

if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    coordinator = gpuspool.GPUProcessCoordinator(2, "out")
    coordinator.spawn_workers(work, ("x",))
    for worker in coordinator.workers.values():
        worker.join()
    print([worker.exitcode for worker in coordinator.workers.values()])
"""


def test_workers_of_the_coordinator_can_be_awaited(box: Box) -> None:
    assert box.python(SEED).out.strip() == "[0, 0]"
    assert Path(box / "out").is_dir()
