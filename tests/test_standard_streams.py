"""All that a verb prints arrives, or the verb ends with an error; and nothing of it harms a
terminal.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from helpers import GPUSPOOL, JOBS, PATIENCE_S, Box
from spooling import A0, B0, begin, intend, make_spool, take, task

from gpuspool.orchestrator.text.printable import one_line, plain_json, printable
from gpuspool.spool.closing import publish_closing
from gpuspool.spool.layout import Layout
from gpuspool.spool.records import Closing, Error, JournalLine, TaskFailure
from gpuspool.spool.states import AttemptState, ErrorKind, LineState, Reason

DOUBLE = f"{JOBS}/plain.py:double"

# Every verb that prints data, in its forms.
PRINTING = [
    "results S",
    "failed S",
    "failed --json S",
    "status S",
    "status --json S",
    "status --watch S",
    "wait S",
    "logs S",
    "logs --task t0 S",
    "verify S",
    "verify --json S",
    "doctor .",
    "doctor --json .",
    "--help",
    "results --help",
    "--version",
    "resume --json S",
]


def close_itself(layout: Layout, attempt: str, **more: Any) -> None:
    closing = Closing(
        attempt=attempt, state=AttemptState.COMPLETE, reason=Reason.FINISHED, by=attempt, **more
    )
    assert publish_closing(layout, closing, [])


def gpuspool(
    box: Box, words: str, redirection: str, *, setup: str = "true", python: bool = False
) -> subprocess.CompletedProcess[bytes]:
    """Run the command line in bash, with its streams redirected."""
    program = f"{sys.executable} -m gpuspool" if python else GPUSPOOL
    return subprocess.run(
        ["bash", "-c", f"{setup}; {program} {words} {redirection}"],
        cwd=box.home,
        env=box.environment,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )


@pytest.fixture
def spool(box: Box) -> Layout:
    """The spool S of `PRINTING`, made by a real run, so that it can be run again."""
    command = ["run", f"{JOBS}/plain.py:noisy", "--tasks", box.tasks(["a", "bad"]), "--spool", "S"]
    box.run(*command, "--keep-going", code=3)
    log = next((box / "S" / "logs").glob("*.log"))
    log.write_bytes(b"hello\n" + log.read_bytes())
    return Layout(box / "S")


@pytest.fixture(params=[False, True], ids=["gpuspool", "python -m gpuspool"])
def python(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.mark.parametrize("words", PRINTING)
def test_a_stdout_that_takes_nothing_is_an_error(box: Box, spool: Layout, words: str) -> None:
    """A full disk, and no stdout at all: exit code 1 with a message, not 0 and not 120."""
    # How a run ended is worth more than that nobody can be told.
    expected = 3 if words.startswith("resume") else 1
    for redirection, what in [(">/dev/full", b"No space left"), (">&-", b"Bad file descriptor")]:
        done = gpuspool(box, words, redirection)
        assert done.returncode == expected, (redirection, done)
        assert b"standard output: " + what in done.stderr
        assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("words", PRINTING)
def test_a_reader_that_went_away_is_141_from_every_verb(
    box: Box, spool: Layout, words: str
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.Popen(
        [GPUSPOOL, *words.split()],
        cwd=box.home,
        env=box.environment,
        stdout=writer,
        stderr=subprocess.PIPE,
    )
    os.close(writer)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == (3 if words.startswith("resume") else 141)
    assert b"standard output" not in err


def test_a_run_whose_json_nobody_gets_is_no_success(box: Box) -> None:
    command = f"run {DOUBLE} --lines {box.lines(2)} --json --spool"
    assert gpuspool(box, f"{command} A", ">/dev/full").returncode == 1
    assert gpuspool(box, f"{command} B", "| true; exit ${PIPESTATUS[0]}").returncode == 141
    assert [box.status(name)["state"] for name in "AB"] == ["complete", "complete"]


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
def test_a_dry_run_that_nobody_hears_is_no_success(box: Box, redirection: str) -> None:
    command = f"run {DOUBLE} --lines {box.lines(2)} --dry-run"
    assert gpuspool(box, command, redirection).returncode == 1
    assert gpuspool(box, command, "").returncode == 0


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
def test_an_error_that_nobody_hears_has_its_exit_code(box: Box, redirection: str) -> None:
    assert gpuspool(box, "no-such-verb", redirection).returncode == 2
    assert gpuspool(box, "status no-such-spool", redirection).returncode == 2


def test_results_into_a_disk_that_fills_are_an_error(box: Box, python: bool) -> None:
    """Also where the very last bytes are those that do not fit."""
    box.run("run", DOUBLE, "--lines", box.lines(60), "--spool", "S")
    whole = gpuspool(box, "results S", "").stdout
    assert len(whole) > 4096
    done = gpuspool(box, "results S", ">out", setup="ulimit -f 4", python=python)
    assert done.returncode == 1
    assert b"standard output: File too large" in done.stderr
    assert (box / "out").read_bytes() == whole[:4096]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a file system")
@pytest.mark.skipif(not shutil.which("mount"), reason="needs mount(8)")
def test_results_into_a_small_file_system_are_an_error(box: Box) -> None:
    box.run("run", DOUBLE, "--lines", box.lines(60), "--spool", "S")
    mount = "mount -t tmpfs -o size=4k none small"
    (box / "small").mkdir()
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], cwd=box.home, check=False).returncode:
        pytest.skip("a file system cannot be mounted here")
    script = f"{mount}; {GPUSPOOL} results S >small/out; echo $? $(stat -c %s small/out)"
    done = box.run("-m", "sh", "-c", script, program=("unshare",))
    assert done.out.split() == ["1", "4096"]
    assert "No space left" in done.err


def test_a_pipe_that_does_not_block_gets_all(box: Box) -> None:
    """Whoever made the pipe may have set it to O_NONBLOCK; then write(2) may say EAGAIN."""
    box.run("run", DOUBLE, "--lines", box.lines(3000), "--spool", "S")
    whole = gpuspool(box, "results S", "").stdout
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writer, False)
    process = subprocess.Popen(
        [GPUSPOOL, "results", "S"], cwd=box.home, env=box.environment, stdout=writer
    )
    os.close(writer)
    with open(reader, "rb") as pipe:
        assert pipe.read() == whole
    assert process.wait(PATIENCE_S) == 0


def test_a_run_without_streams_writes_into_no_file_of_its_own(box: Box) -> None:
    """What is opened first would take their numbers, and what is printed would land in it."""
    command = f"run {DOUBLE} --lines {box.lines(3)} --spool S"
    assert gpuspool(box, command, "<&- >&- 2>&-").returncode == 0
    assert [result["state"] for result in box.results("S")] == ["complete"] * 3
    assert (box / "S" / "orchestrator.lock").read_bytes() == b""
    assert box.problems("S") == []


def test_a_stream_that_cannot_say_a_key_says_it_escaped(box: Box) -> None:
    layout = make_spool(box / "S", [task(0, key="ä中"), task(1)])
    intend(layout, A0)
    writer = begin(layout, A0)
    error = Error(kind=ErrorKind.EXCEPTION, type="Ö", message="ü")
    writer.append(JournalLine(task=0, round=0, state=LineState.FAILED, error=error))
    done = gpuspool(box, "failed S", "", setup="export PYTHONIOENCODING=latin-1")
    assert done.returncode == 0
    assert b"1 task: exception, \xd6\n  message: \xfc\n    \xe4\\u4e2d  #0  0\n" in done.stdout
    # JSON is UTF-8, whatever the terminal is.
    done = gpuspool(box, "results S", "", setup="export PYTHONIOENCODING=latin-1")
    assert json.loads(done.stdout.splitlines()[0])["key"] == "ä中"


# Terminals.

# A control character of C0 and one of C1, a new line that could forge one of ours, and one that
# turns the direction of writing.
NASTY = "a\x1b[31m\x9b2J\n0 problems\r\u202egnp.exe\u2066"
HARMFUL = ["\x1b", "\x9b", "\u202e", "\u2066", "\r", "\x7f"]


def nasty_spool(root: Path) -> Layout:
    """A spool that holds NASTY wherever a foreign text may stand."""
    layout = make_spool(root, [task(0, key="k" + NASTY), task(1, key="l" + NASTY), task(2)])
    intend(layout, A0)
    writer = begin(layout, A0)
    take(layout, A0, 2)
    error = Error(
        kind=ErrorKind.EXCEPTION, type="E" + NASTY, message="m" + NASTY, where="w" + NASTY
    )
    layout.log(A0).write_bytes(NASTY.encode() + b"\n")
    line = JournalLine(
        task=0, round=0, state=LineState.FAILED, error=error, log=(0, len(NASTY.encode()))
    )
    writer.append(line)
    result = msgspec.Raw(msgspec.json.encode({NASTY: "\x7f" + NASTY}))
    writer.append(
        JournalLine(
            task=1, round=0, state=LineState.COMPLETE, result=result, outputs=[("o" + NASTY, 3)]
        )
    )
    loss = TaskFailure(task=0, round=0, key="k" + NASTY, error=error)
    closing = Closing(
        attempt=B0,
        state=AttemptState.FAILED,
        reason=Reason.CRASH,
        by="test" + NASTY,
        failures=[loss],
        error=error,
    )
    intend(layout, B0)
    assert publish_closing(layout, closing, [])
    close_itself(layout, A0)
    return layout


@pytest.mark.parametrize("words", [words for words in PRINTING if not words.startswith("resume")])
def test_nothing_that_harms_a_terminal_is_printed(box: Box, words: str) -> None:
    folder = "S\x1b[31m\u202e\x9b"
    nasty_spool(box / folder)
    arguments = [word.replace("S", folder) if word == "S" else word for word in words.split()]
    arguments = ["k" + NASTY if word == "t0" else word for word in arguments]
    done = box.run(*arguments, code=None)
    assert done.out
    assert [character for character in HARMFUL if character in done.out + done.err] == []
    if not words.startswith("logs"):
        assert "\n0 problems" not in done.out.replace("\n0 problems; ", ""), "no line is forged"


def test_what_a_machine_reads_is_exact(box: Box) -> None:
    nasty_spool(box / "S")
    first, second, _ = box.run("results", "S").records()
    assert first["key"] == "k" + NASTY
    assert first["error"]["message"] == "m" + NASTY
    assert second["result"] == {NASTY: "\x7f" + NASTY}
    assert second["outputs"] == ["o" + NASTY]
    assert box.run("failed", "--json", "S").records() == [first]


@pytest.mark.parametrize(
    "arguments",
    [
        ["status", "no\x1b[31m\u202e"],
        ["logs", "S", "--task", NASTY],
        ["no-verb\x1b\u202e"],
        ["status", "--no-option\x1b\u202e"],
        ["status", "S", "more\x1b\u202e"],
        ["wait", "S", "--timeout", "1\x1b\u202e"],
        ["doctor", "no\x1b\u202e"],
        ["run", "no\x1b\u202e.py:f", "x"],
        ["run", DOUBLE, "no\x1b\u202e"],
        ["run", DOUBLE, "--lines", "f", "--devices", "0\x1b\u202e,0\x1b\u202e"],
        ["run", DOUBLE, "--lines", "f", "--arg", "\x1b\u202e"],
        ["drain", "S\x1b\u202e"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_no_message_harms_a_terminal(box: Box, arguments: list[str]) -> None:
    nasty_spool(box / "S")
    box.write("f", "1\n")
    done = box.run(*arguments, code=2)
    assert [character for character in HARMFUL if character in done.out + done.err] == []
    assert "Traceback" not in done.err


def test_a_traceback_is_safe_too(box: Box) -> None:
    done = box.run("status", "no\x1b[31m\u202e", "--debug", code=1)
    assert "Traceback" in done.err
    assert [character for character in HARMFUL if character in done.err] == []


def test_logs_treat_line_ends_alike(box: Box) -> None:
    """A progress bar that goes back to the start of its line, whether a task is named or not."""
    layout = make_spool(box / "S", 1)
    intend(layout, A0)
    writer = begin(layout, A0)
    text = b"10 %\r20 %\r\n30 %\n"
    layout.log(A0).write_bytes(text)
    writer.append(JournalLine(task=0, round=0, state=LineState.COMPLETE, log=(0, len(text))))
    expected = "==> rank-0000.a00 <==\n10 %\n20 %\n30 %\n"
    assert box.run("logs", "S").out == expected
    assert box.run("logs", "S", "--task", "t0").out == expected


def test_escapes_say_what_was_there() -> None:
    assert printable("a\tb\nc\x1b\x85\u202e\u2028\udc80ä中") == (
        "a\tb\nc\\x1b\\x85\\u202e\\u2028\\udc80ä中"
    )
    assert one_line("a\tb\nc") == "a\\tb\\nc"


def test_plain_json_says_the_same_of_every_character() -> None:
    everything = [chr(number) for number in range(0x11000) if not 0xD800 <= number < 0xE000]
    data = msgspec.json.encode(everything)
    plain = plain_json(data)
    assert json.loads(plain) == everything
    assert printable(plain.decode()) == plain.decode()
