"""What is told of a command that failed: its exit status, and the end of what it wrote."""

import json
import threading
from pathlib import Path

import pytest
from helpers import Box, is_alive, wait_until

from gpuspool.worker import starting


def failures(box: Box, command: list[str], code: int = 3) -> tuple[str, dict[str, object]]:
    """Run a command for one line; what was told on stderr, and the error of its task."""
    where = ("--lines", box.lines(1), "--spool", "S", "--ranks", "1", "--keep-going")
    # A shell takes one more word for its $0.
    done = box.run("run", *where, "--", *command, "{key}", code=code)
    [path] = (box / "S" / "failed-tasks").glob("*.json")
    return done.err, json.loads(path.read_text())["error"]


def test_the_end_of_stderr_is_told(box: Box) -> None:
    script = "print('x' * 9000)\nprint('progress')\nraise ValueError('bad input ' + '{input}')\n"
    told, error = failures(box, ["python", "-c", script])
    assert error["message"] == "python: exit code 1: ValueError: bad input 0"
    assert str(error["traceback"]).startswith("Traceback (most recent call last):\n")
    assert str(error["traceback"]).endswith("ValueError: bad input 0\npython: exit code 1\n")
    assert "task t0 failed on rank 0: CommandFailed: python: exit code 1: ValueError: bad" in told
    assert "CommandFailed: python: exit code 1: ValueError: bad input 0" in told.splitlines()[-1]


def test_all_that_it_wrote_stands_in_the_log(box: Box) -> None:
    script = "echo to stdout; echo to stderr >&2; exit 4"
    failures(box, ["sh", "-c", script])
    [log] = (box / "S" / "logs").glob("*.log")
    assert "to stdout\n" in log.read_text()
    assert "to stderr\n" in log.read_text()


def test_stdout_is_told_where_stderr_is_empty(box: Box) -> None:
    _, error = failures(box, ["sh", "-c", "echo first; echo no such model; exit 4"])
    assert error["message"] == "sh: exit code 4: no such model"
    assert error["traceback"] == "first\nno such model\nsh: exit code 4\n"


def test_a_command_that_says_nothing_has_its_status(box: Box) -> None:
    _, error = failures(box, ["sh", "-c", "exit 5"])
    assert error["message"] == "sh: exit code 5"
    assert "traceback" not in error


def test_a_command_that_a_signal_killed_says_so_with_its_last_words(box: Box) -> None:
    _, error = failures(box, ["sh", "-c", "echo about to crash >&2; kill -SEGV $$"])
    assert error["message"] == "sh: killed by SIGSEGV: about to crash"
    assert error["signal"] == "SIGSEGV"


@pytest.mark.parametrize("command", [["./{input}.sh"], ["no-such-program", "{input}"]])
def test_a_command_that_is_not_there_is_named(box: Box, command: list[str]) -> None:
    where = ("--lines", box.lines(1), "--spool", "S", "--ranks", "1")
    done = box.run("run", *where, "--", *command, code=None)
    assert done.code in (3, 4)
    assert "No such file or directory" in done.err
    assert command[0].replace("{input}", "0") in done.err


def test_a_progress_bar_is_told_as_it_stood_last(capfd: pytest.CaptureFixture[str]) -> None:
    script = r"printf '1 %%\r50 %%\rdied at 51 %%\n' >&2; exit 1"
    assert starting.run(["sh", "-c", script], is_literal=True) == (1, "died at 51 %")


def test_of_much_text_the_end_is_kept_in_whole_lines(capfd: pytest.CaptureFixture[str]) -> None:
    script = "i=0; while [ $i -lt 3000 ]; do echo line $i >&2; i=$((i+1)); done; exit 1"
    ended = starting.run(["sh", "-c", script], is_literal=True)
    lines = ended.said.splitlines()
    assert lines[-1] == "line 2999"
    assert all(line.startswith("line ") for line in lines)
    assert len(lines) > 100
    assert len(ended.said) <= starting.SAID_BYTES
    assert len(capfd.readouterr().err.splitlines()) == 3000


def test_what_a_command_leaves_running_may_go_on_to_write(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    go, gone = tmp_path / "go", tmp_path / "gone"
    child = f"while [ -d {tmp_path} ] && ! [ -e {go} ]; do :; done; echo late >&2 && touch {gone}"
    assert starting.run(["sh", "-c", f"({child}) & echo early >&2"], is_literal=True).status == 0
    go.touch()
    wait_until(gone.exists)
    told = ""

    def is_told() -> bool:
        nonlocal told
        told += capfd.readouterr().err
        return "early" in told and "late" in told

    wait_until(is_told)


def test_a_kernel_without_pidfd_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("os.pidfd_open", refuse)
    assert starting.run(["sh", "-c", "echo bad >&2; exit 3"], is_literal=True) == (3, "bad")
    assert starting.run(["sh", "-c", "exec 2>&-; sleep 0.1; exit 3"], is_literal=True).status == 3


def test_a_command_that_has_ended_is_not_run_again_for_want_of_a_thread(tmp_path: Path) -> None:
    """One would have read what a process that it left behind may write yet."""
    usual = threading.stack_size(1 << 47)  # no address space has so much
    try:
        with pytest.raises(RuntimeError):
            threading.Thread(target=print).start()
        loop = f"while ! [ -e {tmp_path}/go ]; do sleep 0.01; done"
        script = f"({loop}) & echo $! > {tmp_path}/pid; exit 3"
        assert starting.run(["sh", "-c", script], is_literal=True).status == 3
    finally:
        threading.stack_size(usual)
        (tmp_path / "go").touch()
    # It must have seen that before the folder goes.
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not is_alive(pid))
