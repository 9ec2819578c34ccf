"""What is shown of a traceback: the user's frames, in few lines, and nothing a terminal obeys."""

import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from gpuspool.orchestrator.text.excerpts import (
    LINE_SHOWN,
    MOST_LINES,
    excerpt,
    log_end,
    source_line,
)
from gpuspool.orchestrator.text.frames import has_own_frame

ROOT = Path(__file__).resolve().parent.parent

OWN = '  File "/home/ada/job.py", line 7, in go\n    value = table[key]\n            ~~~~~^^^^^\n'
LIBRARY = '  File "/opt/lib/python3.11/site-packages/PIL/Image.py", line 3, in open\n    raise X\n'
STANDARD = '  File "/usr/lib/python3.11/json/decoder.py", line 9, in decode\n    raise Y\n'
FROZEN = '  File "<frozen importlib._bootstrap>", line 1, in _gcd_import\n'
OURS = '  File "/work/gpuspool/worker/call.py", line 5, in call\n    return f()\n'
HEAD = "Traceback (most recent call last):\n"


def test_frames_of_libraries_are_counted_where_the_users_own_are_shown() -> None:
    text = f"{HEAD}{OURS}{OWN}{LIBRARY}{STANDARD}{FROZEN}KeyError: 'k'\n"
    assert excerpt(text) == [
        "Traceback (most recent call last):",
        "  … 1 frame of libraries",
        *OWN.splitlines(),
        "  … 3 frames of libraries",
        "KeyError: 'k'",
    ]


def test_where_all_frames_are_of_libraries_the_one_that_raised_stays() -> None:
    text = f"{HEAD}{STANDARD}{LIBRARY}ValueError: v\n"
    assert excerpt(text) == [
        "Traceback (most recent call last):",
        "  … 1 frame of libraries",
        *LIBRARY.splitlines(),
        "ValueError: v",
    ]


def test_each_exception_of_a_chain_has_its_own_frames() -> None:
    middle = "\nDuring handling of the above exception, another exception occurred:\n\n"
    text = f"{HEAD}{LIBRARY}OSError: o\n{middle}{HEAD}{OWN}{LIBRARY}KeyError: 'k'\n"
    lines = excerpt(text)
    assert lines.count("Traceback (most recent call last):") == 2
    assert LIBRARY.splitlines()[0] in lines, "the first has no other frame"
    assert lines.count("  … 1 frame of libraries") == 1
    assert middle.strip() in lines


def test_a_frame_that_is_repeated_keeps_the_word_of_it() -> None:
    repeated = "  [Previous line repeated 990 more times]\n"
    lines = excerpt(f"{HEAD}{OWN}{repeated}{LIBRARY}{repeated}RecursionError: deep\n")
    assert lines.count(repeated.rstrip()) == 1


def test_of_a_long_traceback_both_ends_are_kept() -> None:
    frames = [OWN.replace("line 7", f"line {number}") for number in range(40)]
    lines = excerpt(f"{HEAD}{''.join(frames)}KeyError: 'k'\n")
    assert len(lines) == MOST_LINES
    assert lines[0] == HEAD.rstrip()
    assert "line 0" in lines[1]
    assert lines[-1] == "KeyError: 'k'"
    [gap] = [line for line in lines if "left out" in line]
    assert gap == f"… {1 + 3 * 40 + 1 - MOST_LINES + 1} lines left out"


@pytest.mark.parametrize("n_lines", [MOST_LINES - 1, MOST_LINES, MOST_LINES + 1, MOST_LINES + 2])
def test_other_text_is_cut_at_its_beginning_and_never_by_a_single_line(n_lines: int) -> None:
    lines = excerpt("\n".join(f"said {number}" for number in range(n_lines)))
    if n_lines <= MOST_LINES:
        assert lines == [f"said {number}" for number in range(n_lines)]
    else:
        assert len(lines) == MOST_LINES
        assert lines[0] == f"… {n_lines - MOST_LINES + 1} lines left out"
        assert lines[-1] == f"said {n_lines - 1}"


def test_of_the_stacks_of_a_time_out_the_main_thread_comes_first() -> None:
    own = '  File "/home/ada/job.py", line 7 in go\n'
    idle = '  File "/usr/lib/python3.11/threading.py", line 324 in wait\n'
    text = (
        f"Timeout (0:00:05)!\nThread 0x00007f01 (most recent call first):\n{idle}\n"
        f"Thread 0x00007f02 (most recent call first):\n{idle}{own}\n"
        f"Thread 0x00007f03 (most recent call first):\n{idle}{idle}{own}"
    )
    lines = excerpt(text)
    assert lines[:4] == [
        "Timeout (0:00:05)!",
        "Thread 0x00007f03 (most recent call first):",
        "  … 2 frames of libraries",
        own.rstrip(),
    ]
    assert "Thread 0x00007f02 (most recent call first):" in lines
    assert not any("0x00007f01" in line for line in lines), "it has no frame of the user's"


def test_stacks_without_any_frame_of_the_users_say_where_each_thread_stands() -> None:
    idle = '  File "/usr/lib/python3.11/threading.py", line 324 in wait\n'
    below = '  File "/usr/lib/python3.11/threading.py", line 900 in run\n'
    lines = excerpt(f"Current thread 0x00007f01 (most recent call first):\n{idle}{below}")
    assert lines[1:] == [idle.rstrip(), "  … 1 frame of libraries"]


# A log as a crash leaves it: the main thread calls the job, two others are ours.
IDLE_STACK = (
    '  File "/usr/lib/python3.11/threading.py", line 324 in wait\n'
    '  File "/opt/gpuspool/worker/beat.py", line 112 in run\n'
)
OWN_STACK = (
    '  File "/home/ada/job.py", line 14 in __call__\n'
    '  File "/opt/gpuspool/worker/call.py", line 171 in first\n'
)
CRASH_LOG = (
    "loading\nmodel ready\nFatal Python error: Segmentation fault\n\n"
    f"Thread 0x00007f01 (most recent call first):\n{IDLE_STACK}\n"
    f"Thread 0x00007f02 (most recent call first):\n{IDLE_STACK}\n"
    f"Current thread 0x00007f03 (most recent call first):\n{OWN_STACK}\n"
    f"Extension modules: {', '.join(f'numpy.part{n}' for n in range(99))} (total: 99)\n"
)


def test_of_the_log_of_a_crash_its_name_and_the_frame_that_crashed_are_shown_in_order() -> None:
    """Seen: the frames were cut away, and the names of modules stood above the crash's own."""
    assert log_end(CRASH_LOG, 8) == [
        "loading",
        "model ready",
        "Fatal Python error: Segmentation fault",
        "Current thread 0x00007f03 (most recent call first):",
        '  File "/home/ada/job.py", line 14 in __call__',
        "  … 1 frame of libraries",
    ]
    assert excerpt(CRASH_LOG) == log_end(CRASH_LOG, MOST_LINES)


def test_of_the_log_of_a_crash_the_beginning_of_a_deep_stack_is_shown() -> None:
    deep = "".join(f'  File "/home/ada/net.py", line {n} in forward\n' for n in range(90))
    said = "".join(f"said {n}\n" for n in range(90))
    lines = log_end(said + CRASH_LOG.replace(OWN_STACK, deep), 8)
    assert len(lines) == 8
    assert lines[2] == "Fatal Python error: Segmentation fault"
    assert lines[4:7] == [f'  File "/home/ada/net.py", line {n} in forward' for n in range(3)]
    assert lines[7] == "… 87 lines left out"


def test_a_thread_that_crashed_in_a_library_stands_before_the_users_frames() -> None:
    crashed = CRASH_LOG.replace("Thread 0x00007f02", "Current thread 0x00007f02").replace(
        "Current thread 0x00007f03", "Thread 0x00007f03"
    )
    lines = log_end(crashed, 20)
    assert lines[3].startswith("Current thread 0x00007f02 ")
    assert "threading.py" in lines[4]
    assert lines[6].startswith("Thread 0x00007f03 ")
    assert "job.py" in lines[7]


def test_a_log_with_stacks_of_a_look_and_then_of_a_crash_shows_the_crash() -> None:
    looked = f"Thread 0x00007f03 (most recent call first):\n{OWN_STACK}"
    lines = log_end(looked.replace("line 14", "line 2") + CRASH_LOG, 8)
    assert '  File "/home/ada/job.py", line 14 in __call__' in lines
    assert not any(line.startswith("Thread ") for line in lines)


def test_what_python_and_the_system_write_behind_stacks_stays_behind_them() -> None:
    c_stack = (
        "Current thread's C stack trace (most recent call first):\n"
        '  Binary file "/usr/lib/libc.so.6", at abort+0x1 [0x7f]\n'
    )
    lines = log_end(CRASH_LOG.replace("Extension", f"{c_stack}\nExtension"), 20)
    assert lines[-2:] == c_stack.splitlines()


def test_of_a_log_without_stacks_the_last_lines_are_shown() -> None:
    assert log_end("a\nb\nc\n", 2) == ["b", "c"]
    assert log_end(f"{HEAD}{OWN}KeyError: 'k'\n", 1) == ["KeyError: 'k'"]
    assert log_end("", 8) == log_end("\n", 8) == []


def test_an_exception_that_quotes_the_crash_of_another_process_is_a_traceback() -> None:
    lines = excerpt(f"{HEAD}{OWN}RuntimeError: it crashed:\n{CRASH_LOG}")
    assert lines[:2] == [HEAD.rstrip(), OWN.splitlines()[0]]
    assert "RuntimeError: it crashed:" in lines


def test_what_faulthandler_itself_writes_is_understood() -> None:
    source = (
        "import faulthandler, threading\n"
        "faulthandler.enable()\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "def go():\n"
        "    faulthandler._sigsegv()\n"
        "go()\n"
    )
    crashed = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    lines = log_end(f"said\n{crashed.stderr}", 20)
    assert lines[:2] == ["said", "Fatal Python error: Segmentation fault"]
    assert lines[2].startswith("Current thread 0x")
    assert lines[3:5] == [
        '  File "<string>", line 5 in go',
        '  File "<string>", line 6 in <module>',
    ]


@pytest.mark.parametrize(
    "path",
    [
        "/usr/lib64/python3.12/json/decoder.py",
        "/usr/lib/python3.13t/json/decoder.py",
        "/usr/lib/python311.zip/json/decoder.py",
        "/opt/pypy/lib/pypy3.10/json/decoder.py",
        "/usr/lib64/python3.9/site-packages/torch/nn/module.py",
        "/usr/lib/python3/dist-packages/yaml/__init__.py",
        "<frozen runpy>",
        "<__array_function__ internals>",
        "/opt/gpuspool/worker/call.py",
        str(ROOT / "worker" / "call.py"),
        str(ROOT / "spool" / "view.py"),
    ],
)
def test_a_frame_of_a_library_is_known_by_its_file(path: str) -> None:
    assert not has_own_frame([f'  File "{path}", line 3, in f'])
    assert not has_own_frame([f'  File "{path}", line 3 in f'])


@pytest.mark.parametrize(
    "path", ["/home/ada/job.py", "/home/ada/lib/python/job.py", "<string>", "job.py"]
)
def test_a_frame_of_the_users_own_is_known_by_its_file(path: str) -> None:
    assert has_own_frame([f'  File "{path}", line 3, in f'])


def test_an_escape_sequence_is_shown_and_not_sent() -> None:
    lines = excerpt(f"{HEAD}{OWN}ValueError: \x1b[31mred\u202e\r\nfake\x07\n")
    assert lines[-2:] == ["ValueError: \\x1b[31mred\\u202e\\x0d", "fake\\x07"]


def test_a_line_of_any_length_is_cut() -> None:
    [line] = excerpt("x" * 10_000)
    assert len(line) == LINE_SHOWN


@pytest.mark.parametrize("text", ["", "\n", "  \n\n"])
def test_nothing_is_shown_of_nothing(text: str) -> None:
    assert excerpt(text) == []


def test_the_line_that_raised_is_the_innermost_one_at_its_place() -> None:
    again = OWN.replace("value = table[key]", "value = again[key]")
    assert source_line(f"{HEAD}{OWN}{LIBRARY}{again}K: k\n", "job.py:7") == "value = again[key]"
    assert source_line(f"{HEAD}{OWN}K: k\n", "job.py:70") == ""
    assert source_line(f"{HEAD}{OWN}K: k\n", "") == ""
    without = '  File "/home/ada/job.py", line 7, in go\nKeyError: k\n'
    assert source_line(HEAD + without, "job.py:7") == "", "the file was gone"


def test_what_python_itself_writes_is_understood() -> None:
    def raises() -> None:
        [][1]

    try:
        raises()
    except IndexError as error:
        text = "".join(traceback.format_exception(error))
        line = error.__traceback__.tb_next.tb_lineno  # type: ignore[union-attr]
    assert excerpt(text) == text.rstrip().split("\n")
    assert source_line(text, f"test_excerpts.py:{line}").startswith("[][1]")
