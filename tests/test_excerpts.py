"""What is shown of a traceback: the user's frames, in few lines, and nothing a terminal obeys."""

import traceback

import pytest

from gpuspool.orchestrator.text.excerpts import LINE_SHOWN, MOST_LINES, excerpt, source_line

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
    assert lines[:3] == [
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
