"""Commands: what their placeholders become, which are refused, and what becomes of their stdout."""

import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import Box, assert_sound, journal_lines, wait_until

from gpuspool.orchestrator.plan.jobs import parse_job
from gpuspool.spool.errors import UsageError

PRINT_ALL = 'printf "%s\\n" "$@"'


def args_of(box: Box, *words: str, inputs: tuple[str, ...] = ("in/*",)) -> list[list[str]]:
    """Run a command that prints its arguments; returns those of each task."""
    box.run("run", *inputs, "--capture", "--spool", "S", "--", "sh", "-c", PRINT_ALL, "sh", *words)
    return [result["result"].split("\n") for result in assert_sound(box, "S", 1)]


def refusal(*words: str) -> str:
    with pytest.raises(UsageError) as refused:
        parse_job(None, [*words])
    return str(refused.value)


# Placeholders.


def test_the_parts_of_a_path(box: Box) -> None:
    path = box.write("in/a b.tar.gz", "x")
    words = ["{name}", "{stem}", "{suffix}", "{parent}", "{parent}/{stem}.out", "--x={name}"]
    found = ["a b.tar.gz", "a b.tar", ".gz", str(path.parent), f"{path.parent}/a b.tar.out"]
    assert args_of(box, *words) == [[*found, "--x=a b.tar.gz"]]


def test_a_line_has_the_parts_of_a_path(box: Box) -> None:
    box.write("urls", "https://example.org/x/y.tgz\n")
    words = ["{name}", "{stem}", "{suffix}", "{parent}"]
    found = ["y.tgz", "y", ".tgz", "https://example.org/x"]
    assert args_of(box, *words, inputs=("--lines", "urls")) == [found]


def test_a_name_alone_lies_in_the_current_folder(box: Box) -> None:
    box.write("lines", ".x\n")
    words = ["{parent}/{name}", "{stem}", "[{suffix}]"]
    assert args_of(box, *words, inputs=("--lines", "lines")) == [["./.x", ".x", "[]"]]


def test_what_is_no_placeholder_stays_as_it_was_typed(box: Box) -> None:
    box.write("in/{index}", "x")
    words = [
        "{print $1}",
        '{"a": {"b": 1}}',
        '{"index":{index}}',
        "${HOME}",
        "${name}",
        "$x{key}",
        "%{http_code}",
        "{}",
        "{a,b}",
        "{1..3}",
        "{{print}}",
        "{{key}}",
        "{{{key}}}",
        "{ key }",
        "{{.Name}}",
    ]
    expected = [*words]
    expected[2] = '{"index":0}'
    # What an input is called is no placeholder either.
    expected[5] = "$x{index}"
    expected[10:13] = ["{print}", "{key}", "{{key}}"]
    assert args_of(box, *words) == [expected]


def test_a_doubled_brace_is_no_output(box: Box) -> None:
    script = 'printf "%s" "$2" > "$1"'
    box.write("in/a", "x")
    words = ["sh", "{output}-{stem}.txt", "{{output}}"]
    box.run("run", "in/*", "--spool", "S", "--", "sh", "-c", script, *words)
    assert (box / "S/outputs/a-a.txt").read_text() == "{output}"


@pytest.mark.parametrize(
    ("name", "near"), [("outptu", "output"), ("INPUT", "input"), ("inputs", "input"), ("idx", "")]
)
def test_a_placeholder_that_there_is_not_is_refused(name: str, near: str) -> None:
    said = refusal("cp", "{input}", f"{{{name}}}.txt")
    assert f"the command has {{{name}}}, and there is no such placeholder." in said
    assert (f"Is {{{near}}} meant?" in said) == bool(near)
    assert f"write {{{{{name}}}}}" in said


def test_nothing_is_made_where_a_placeholder_is_refused(box: Box) -> None:
    box.write("a", "x")
    # Its input is not even read.
    done = box.run("run", "absent", "--spool", "S", "--", "cp", "{input}", "{outptu}", code=2)
    assert "Is {output} meant?" in done.err
    assert not (box / "S").exists()


@pytest.mark.parametrize("words", [("wc", "-l"), ("sh", "-c", "wc ${input}"), ("x", "{device}")])
def test_a_command_that_names_no_task_is_refused(words: tuple[str, ...]) -> None:
    said = refusal(*words)
    assert "would do the same for each" in said
    assert said.count("{input}") >= 2
    assert "{output}" in said


def test_two_outputs_in_one_word_are_refused() -> None:
    assert "has {output} twice" in refusal("tee", "{output}.a,{output}.b")


def test_a_command_of_python_is_a_list_of_words(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is one text\. Give a list of words: \['wc', '{input}'"):
        parse_job(None, "wc {input}")
    job, _ = parse_job(None, [tmp_path / "x.sh", "{input}"])  # type: ignore[list-item]
    assert job.command == [f"{tmp_path}/x.sh", "{input}"]


# What a command prints.


@pytest.mark.parametrize(
    ("printed", "result"),
    [
        ("a\nb\n\n", "a\nb"),
        ("ä\r\n", "ä"),
        ("", ""),
        (" x", " x"),
        ("42\n", "42"),
        ("007\n", "007"),
        ("null\n", "null"),
        ('{"x": [1, null]}\n', {"x": [1, None]}),
        ('[\n  {"loss": NaN}\n]\n', [{"loss": None}]),
        ("{oops}\n", "{oops}"),
        ('{"x": 1}\n{"x": 2}\n', '{"x": 1}\n{"x": 2}'),
        ("[INFO] started\n", "[INFO] started"),
    ],
)
def test_what_a_command_prints_is_its_result(box: Box, printed: str, result: Any) -> None:
    box.write("in/a", printed)
    box.run("run", "in/a", "--capture", "--spool", "S", "--", "cat", "{input}")
    assert [each["result"] for each in assert_sound(box, "S", 1)] == [result]


def test_captured_output_goes_to_the_log_where_the_command_fails(box: Box) -> None:
    script = 'echo "tells $1"; [ "$1" = 1 ]'
    run = ["run", "--lines", box.lines(2), "--keep-going", "--capture", "--spool", "S"]
    box.run(*run, "--", "sh", "-c", script, "sh", "{input}", code=3)
    log = (box / "S/logs/rank-0000.a00.log").read_text()
    assert "tells 0" in log
    assert "tells 1" not in log
    assert [each["result"] for each in box.results("S")] == [None, "tells 1"]


def test_what_no_result_can_hold_fails_the_task_and_says_where_to_write_it(box: Box) -> None:
    # More than a pipe holds, and more than a result may have: the command must not wait for us.
    script = {
        "long": "import sys; sys.stdout.write('x' * 3_000_000)",
        "bytes": r"import sys; sys.stdout.buffer.write(b'ok \xff')",
        "most": "import sys; sys.stdout.write('x' * (1024 * 1024 - 2))",
    }
    for name, text in script.items():
        box.write(f"in/{name}.py", text)
    inputs = [f"in/{name}.py" for name in script]
    run = ["run", *inputs, "--keep-going", "--capture", "--spool", "S"]
    box.run(*run, "--", sys.executable, "{input}", code=3)
    long, not_text, most = box.results("S")
    assert (long["error"]["kind"], not_text["error"]["kind"]) == ("result", "result")
    assert "more than 1048576 bytes; write them to {output}" in long["error"]["message"]
    assert "not UTF-8, at byte 3; write it to {output}" in not_text["error"]["message"]
    assert len(most["result"]) == 1024 * 1024 - 2


def test_a_process_left_behind_does_not_keep_a_command_from_ending(box: Box) -> None:
    # It has the command's stdout, and says nothing until the run is over.
    script = '(until [ -e gate ]; do sleep 0.01; done; echo late) & echo "early $1"'
    run = ["run", "--lines", box.lines(2), "--capture", "--spool", "S"]
    box.run(*run, "--", "sh", "-c", script, "sh", "{input}")
    box.write("gate", "")
    assert [each["result"] for each in assert_sound(box, "S", 2)] == ["early 0", "early 1"]


def test_a_command_may_close_its_stdout_and_go_on(box: Box) -> None:
    script = 'echo "$1"; exec >&-; touch closed; until [ -e gate ]; do sleep 0.01; done; touch "$2"'
    run = ["run", "--lines", box.lines(1), "--capture", "--spool", "S"]
    started = box.start(*run, "--", "sh", "-c", script, "sh", "{input}", "{output}.txt")
    wait_until((box / "closed").exists)
    assert not journal_lines(box / "S")
    box.write("gate", "")
    started.wait(0)
    assert [each["result"] for each in assert_sound(box, "S", 1)] == ["0"]


def test_capture_belongs_to_the_job(box: Box) -> None:
    run = ["run", "--lines", box.lines(2), "--spool", "S"]
    box.run(*run, "--", "echo", "{input}")
    assert [each["result"] for each in box.results("S")] == [None, None]
    done = box.run(*run, "--capture", "--", "echo", "{input}", code=2)
    assert "- echo {input}\n+ --capture -- echo {input}" in done.err
    box.run(*run, "--fresh", "--capture", "--", "echo", "{input}")
    box.run("redo", "S", "t1")
    assert [each["result"] for each in assert_sound(box, "S", 2)] == ["0", "1"]


def test_capture_is_for_commands(box: Box) -> None:
    box.write("job.py", "def f(task, ctx):\n    return 1\n")
    run = ["run", "job.py:f", "--lines", box.lines(1), "--capture"]
    assert "leave --capture away" in box.run(*run, code=2).err


def test_python_captures_too(box: Box) -> None:
    script = """
import json
import gpuspool

report = gpuspool.run(
    items=[{"x": 1}, {"x": 2}], command=["echo", "{input}"], capture=True, spool="S", quiet=True
)
print(json.dumps([json.loads(bytes(each.result)) for each in report.results()]))
"""
    assert box.python(script).record() == [{"x": 1}, {"x": 2}]
