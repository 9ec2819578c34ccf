"""Inputs as people have them: tables, batch files, arrays, and lists that other programs wrote."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from gpuspool.orchestrator.plan.inputs import collect
from gpuspool.spool.errors import UsageError
from tests.helpers import Box, assert_sound

# Returns what it was given.
JOB = "def echo(task, ctx):\n    return task.payload\n"


def write(path: Path, text: str | bytes) -> str:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def payloads(tasks: Any) -> list[Any]:
    return [json.loads(bytes(task.payload)) for task in tasks]


def keys(tasks: Any) -> list[str]:
    return [task.key for task in tasks]


def refusal(**named: Any) -> str:
    with pytest.raises(UsageError) as refused:
        collect(**named)
    return str(refused.value)


# Tables.


def test_each_row_of_a_table_is_a_task(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", 'id,text\na,"x, ""y"""\nb,007\n')
    assert payloads(collect(csv=table)) == [
        {"id": "a", "text": 'x, "y"'},
        {"id": "b", "text": "007"},
    ]
    assert keys(collect(csv=table)) == ["t0", "t1"]
    assert keys(collect(csv=table, key_field="id")) == ["a", "b"]


def test_a_table_of_windows_has_no_mark_and_no_carriage_returns(tmp_path: Path) -> None:
    text = '\ufeffid,text\r\na,"first\r\nsecond"\r\n\r\nb,ä\r\n'
    table = write(tmp_path / "t.csv", text)
    # A newline in a quoted field is data, and stays as it is.
    assert payloads(collect(csv=table)) == [
        {"id": "a", "text": "first\r\nsecond"},
        {"id": "b", "text": "ä"},
    ]


def test_a_compressed_list_is_refused_by_its_name(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv.gz", gzip.compress(b"id\n1\n"))
    assert f"{table} is compressed" in refusal(csv=table)
    assert f"`gzip -dc {table} | gpuspool" in refusal(csv=table)


def test_capital_letters_in_the_name_of_a_list_mean_the_same(tmp_path: Path) -> None:
    table = write(tmp_path / "T.TSV", "id\ttext\na\tx, y\n")
    assert payloads(collect(csv=table)) == [{"id": "a", "text": "x, y"}]


def test_tabs_separate_the_columns_of_a_tsv(tmp_path: Path) -> None:
    table = write(tmp_path / "t.tsv", "id\ttext\na\tx, y\n")
    assert payloads(collect(csv=table, key_field="id")) == [{"id": "a", "text": "x, y"}]


def test_a_field_may_be_long_and_the_limit_of_others_stays(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    sequence = "ACGT" * 100_000
    table = write(tmp_path / "t.csv", f"id,sequence\na,{sequence}\n")
    [task] = collect(csv=table)
    assert json.loads(bytes(task.payload))["sequence"] == sequence
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "t.csv is empty"),
        ("id,b\n1,2\n3\n", "t.csv, line 3: 1 field, but the header has 2 columns"),
        ('id,b\n1,"2\n3"\n3,4,5\n', "t.csv, line 4: 3 fields"),
        ("id,b,id\n1,2,3\n", "t.csv, line 1: two columns are called 'id'"),
        ("id,,c\n1,2,3\n", "t.csv, line 1: column 2 has no name"),
        ("id;text\n1;2\n", "t.csv, line 1: the columns seem to be separated by ';'"),
        ('id\n"a" b\n', "t.csv, line 2:"),
        ('id\n"a\n', "t.csv, line 2:"),
        (b"id\na\n\xe4\n", "t.csv, line 3, byte 5: not UTF-8"),
        ("id\na\nb\na\n", "t.csv, lines 2 and 4 have the same key 'a'"),
        ("id\na\n../b\n", "t.csv, line 3: the key '../b' has an empty part"),
        ("idd,x\n1,2\n", "t.csv, line 1: there is no column 'id'. There are: 'idd', 'x'. Is 'idd'"),
        ('id,x\n"",2\n', "t.csv, line 2: the key ''"),
    ],
)
def test_a_bad_table_is_refused_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    assert says in refusal(csv=write(tmp_path / "t.csv", text), key_field="id")


# Keys of JSON.


def test_a_batch_file_has_its_own_keys(tmp_path: Path) -> None:
    requests = [{"custom_id": f"request-{i}", "body": {"n": i}} for i in range(3)]
    batch = write(tmp_path / "b.jsonl", "".join(json.dumps(each) + "\n" for each in requests))
    tasks = collect(tasks=batch, key_field="custom_id")
    assert keys(tasks) == ["request-0", "request-1", "request-2"]
    assert payloads(tasks) == requests


def test_the_payload_is_the_whole_object_even_if_it_has_a_payload(tmp_path: Path) -> None:
    value = {"id": 7, "payload": 1, "cost": "high"}
    tasks = collect(tasks=write(tmp_path / "b", json.dumps(value)), key_field="id")
    assert (keys(tasks), payloads(tasks)) == (["7"], [value])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"id": 1.0}', "line 2: the field id is 1.0; a key is a text or a whole number"),
        ('{"id": true}', "line 2: the field id is True"),
        ('{"id": null}', "line 2: the field id is None"),
        ('{"id": ["a"]}', "line 2: the field id is ['a']"),
        ('{"id": {"a": 1}}', "line 2: the field id is {'a': 1}"),
        ('{"ID": 3}', "line 2: there is no field 'id'. There are: 'ID'."),
        ("[1]", "line 2: --key-field id needs an object, and this is [1]"),
        ('{"id": 1}', "lines 1 and 2 have the same key '1'"),
        ('{"id": ""}', "line 2: the key ''"),
    ],
)
def test_what_is_no_key_is_refused_with_its_line(tmp_path: Path, line: str, says: str) -> None:
    batch = write(tmp_path / "b.jsonl", f'{{"id": "1"}}\n{line}\n')
    assert says in refusal(tasks=batch, key_field="id")


def test_an_empty_key_is_no_key(tmp_path: Path) -> None:
    tasks = write(tmp_path / "t", '1\n{"payload": 1, "key": ""}\n')
    assert "t, line 2: the key ''" in refusal(tasks=tasks)


def test_values_of_python_have_keys_too() -> None:
    items = [{"id": "a"}, {"id": 2}]
    assert keys(collect(items=items, key_field="id")) == ["a", "2"]
    assert "item 1: there is no field 'id'" in refusal(items=[{"id": 1}, {}], key_field="id")


def test_options_of_another_list_are_refused(tmp_path: Path) -> None:
    listed = write(tmp_path / "l", "a\n")
    assert "--key-field names" in refusal(lines=listed, key_field="id")
    assert "--key-field names" in refusal(files_from=listed, key_field="id")
    assert "--null says" in refusal(lines=listed, null=True)


# Arrays.


def test_the_items_of_an_array_are_tasks(tmp_path: Path) -> None:
    values: list[Any] = [{"x": [1, "a\n"]}, "b", {"payload": 3, "key": "k", "cost": 2}]
    for indent in (None, 2):
        tasks = collect(tasks=write(tmp_path / "t.json", json.dumps(values, indent=indent)))
        assert payloads(tasks) == [{"x": [1, "a\n"]}, "b", 3]
        assert keys(tasks) == ["t0", "t1", "k"]
        # The spool's lines are lines, however the array was written.
        assert all(line.count(b"\n") == 1 for line in tasks.lines)
    assert len(collect(tasks=write(tmp_path / "t.json", "[]"))) == 0


def test_lines_that_are_arrays_stay_payloads(tmp_path: Path) -> None:
    assert payloads(collect(tasks=write(tmp_path / "t", "[1]\n[2]\n"))) == [[1], [2]]
    assert payloads(collect(tasks=write(tmp_path / "t.jsonl", "[1, 2]\n"))) == [[1, 2]]


def test_a_bad_array_is_refused(tmp_path: Path) -> None:
    said = refusal(tasks=write(tmp_path / "t.json", '[\n  {"x": 1},\n  {"x": }\n]\n'))
    assert "t.json begins as a JSON array: " in said
    said = refusal(tasks=write(tmp_path / "t", "[1]\n[2\n"))
    assert "t, line 2: " in said
    said = refusal(tasks=write(tmp_path / "t.json", '[{"id": 1}, {"id": 1}]'), key_field="id")
    assert "t.json, items 1 and 2 have the same key '1'" in said


# Lists of paths.


def test_paths_that_end_with_zero_bytes(tmp_path: Path) -> None:
    paths = [write(tmp_path / name, "x") for name in ("a\nb", "c\r", "# d")]
    listed = write(tmp_path / "list", "".join(f"{path}\0" for path in paths))
    assert "control characters" in refusal(files_from=listed, null=True)
    listed = write(tmp_path / "list", f"{paths[2]}\0{tmp_path}/c\0")
    assert f"list, entry 2: input {tmp_path}/c: No such file" in refusal(
        files_from=listed, null=True
    )
    listed = write(tmp_path / "list", f"{paths[2]}\0")
    assert payloads(collect(files_from=listed, null=True)) == [{"path": paths[2]}]
    assert "line 1: a zero byte" in refusal(files_from=listed)
    bad = bytes(tmp_path) + b"/\xff"
    Path(bad.decode(errors="surrogateescape")).write_bytes(b"")
    listed = write(tmp_path / "list", bad + b"\0")
    assert "entry 1: input" in refusal(files_from=listed, null=True)


def test_paths_that_windows_listed(tmp_path: Path) -> None:
    paths = [write(tmp_path / name, "x") for name in ("a b", "ä")]
    listed = write(tmp_path / "list", "\ufeff" + "".join(f"{path}\r\n" for path in paths))
    assert payloads(collect(files_from=listed)) == [{"path": path} for path in paths]


def test_a_path_that_is_not_there_is_named_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a", "x")
    said = refusal(files_from=write(tmp_path / "list", f"{path}\n\n{path}b\n"))
    assert f"list, line 3: input {path}b: No such file or directory" in said
    said = refusal(files_from=write(tmp_path / "list", f"# good ones\n{path}\n"))
    assert "list, line 1: input # good ones: No such file or directory" in said
    assert "there are no comments: delete this one" in said
    said = refusal(files_from=write(tmp_path / "list", f"{path}\n{path}\n"))
    assert "list, lines 1 and 2 have the same key 'a'" in said
    said = refusal(files_from=write(tmp_path / "list", f"{tmp_path}\n"))
    assert "list, line 1: input" in said


# Text of other programs.


@pytest.mark.parametrize("source", ["files_from", "lines", "tasks", "csv"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32"])
def test_utf16_is_refused_by_its_name(tmp_path: Path, source: str, encoding: str) -> None:
    mark = b"" if encoding in ("utf-16", "utf-32") else b"\xfe\xff"
    listed = write(tmp_path / "list", mark + "a\nb\n".encode(encoding))
    name = encoding.upper()[:6]
    said = refusal(**{source: listed})
    assert f"list is {name}, and only UTF-8 is read" in said
    assert f"iconv -f {name} -t UTF-8" in said
    # Without the mark it is known by its zero bytes.
    listed = write(tmp_path / "list", "a\nb\n".encode("utf-16-le"))
    assert "line 1: a zero byte" in refusal(**{source: listed})


def test_marks_and_carriage_returns_are_no_data(tmp_path: Path) -> None:
    assert payloads(collect(lines=write(tmp_path / "l", "\ufeffa\r\nb \r\n"))) == ["a", "b "]
    # One is the end of the line; what the line itself ends with stays.
    assert payloads(collect(lines=write(tmp_path / "l", "a\r\r\nb\r\n"))) == ["a\r", "b"]
    # In the middle of a file the mark is a character like others.
    assert payloads(collect(lines=write(tmp_path / "l", "a\n\ufeffb\n"))) == ["a", "\ufeffb"]
    tasks = collect(tasks=write(tmp_path / "t", '\ufeff{"payload": "a\\r", "key": "k"}\r\n2\r\n'))
    assert (keys(tasks), payloads(tasks)) == (["k", "t1"], ["a\r", 2])


# Whole runs.


def test_a_run_over_a_table_goes_on_and_grows(box: Box) -> None:
    box.write("job.py", JOB)
    box.write("t.csv", "id,x\nt0,1\nt1,2\nt2,3\n")
    command = ["run", "job.py:echo", "--csv", "t.csv", "--key-field", "id", "--spool", "S"]
    box.run(*command)
    results = assert_sound(box, "S", 3)
    assert [result["key"] for result in results] == ["t0", "t1", "t2"]
    assert results[0]["result"] == {"id": "t0", "x": "1"}
    # The keys look like those that count tasks; they are the user's all the same.
    box.write("t.csv", "id,x\nt2,3\nt0,1\nt1,2\n")
    box.run(*command)
    box.write("t.csv", "id,x\nt2,3\nt0,1\nt1,4\n")
    assert "0 new, 0 gone, 1 changed" in box.run(*command, code=2).err
    add = ["add", "S", "--csv", "t.csv", "--key-field", "id"]
    assert "the key 't1' of a new task is that of task 1" in box.run(*add, code=2).err
    box.write("t.csv", "id,x\nt2,3\nt0,1\nt1,2\nt3,4\n")
    assert "1 new, 0 gone, 0 changed" in box.run(*command, code=2).err
    box.run(*command, "--add")
    results = assert_sound(box, "S", 4)
    assert results[3]["key"] == "t3"
    assert results[3]["result"] == {"id": "t3", "x": "4"}


def test_rows_without_keys_are_known_by_what_they_say(box: Box) -> None:
    box.write("job.py", JOB)
    box.write("t.csv", "x,y\n1,a\n2,b\n")
    command = ["run", "job.py:echo", "--csv", "t.csv", "--spool", "S"]
    box.run(*command)
    # The same rows in another order, and from another kind of list.
    box.write("t.csv", "y,x\nb,2\na,1\n")
    box.run(*command)
    rows = [{"x": "1", "y": "a"}, {"x": "2", "y": "b"}]
    box.run("run", "job.py:echo", "--tasks", box.tasks(rows), "--spool", "S")
    assert_sound(box, "S", 2)


def test_files_whose_names_look_like_counted_keys_stay_the_same_when_all_is_moved(box: Box) -> None:
    for name in ("t0", "t1"):
        box.write(f"a/in/{name}", name)
    job = box.write("a/job.py", "def size(task, ctx):\n    return len(task.path.read_text())\n")
    box.run("run", "job.py:size", "in/*", "--spool", "S", cwd=job.parent)
    (box / "a").rename(box / "b")
    done = box.run("run", "job.py:size", "in/*", "--spool", "S", cwd=box / "b")
    assert "2 of 2" in done.err or "2 complete" in done.err


def test_standard_input_may_be_any_list(box: Box) -> None:
    box.write("job.py", JOB)
    box.write("in/a", "x")
    stdin = "in/a\0"
    box.run("run", "job.py:echo", "--files-from", "-", "-0", "--spool", "S", stdin=stdin)
    assert_sound(box, "S", 1)
    box.run("run", "job.py:echo", "--csv", "-", "--spool", "T", stdin="x\n1\n2\n")
    assert [result["result"] for result in assert_sound(box, "T", 2)] == [{"x": "1"}, {"x": "2"}]
