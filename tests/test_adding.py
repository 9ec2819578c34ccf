"""Work that grows: what is the same run, what is new in it, and how that is added."""

import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from helpers import Box, journal_lines, names, wait_until
from spooling import A0, A1, B0, begin, finish, intend, make_spool, take, task, view_of

import gpuspool
from gpuspool.orchestrator.plan.adding import add_tasks
from gpuspool.orchestrator.plan.inputs import collect, from_values
from gpuspool.spool.errors import UsageError
from gpuspool.spool.layout import Layout
from gpuspool.spool.manifest import load_manifest, publish_added, publish_orphans
from gpuspool.spool.records import Added, Closing
from gpuspool.spool.states import AttemptState, Reason
from gpuspool.spool.sweep import stranded_tasks
from gpuspool.spool.view import View, load_run

# Copies its input to its output.
COPY = "def Job(task, ctx):\n    ctx.output(task, '.out').write_text(task.path.read_text())\n"


@pytest.fixture
def project(box: Box) -> Path:
    """A folder with a job and ten inputs."""
    box.write("project/job.py", COPY)
    for number in range(10):
        box.write(f"project/data/{number}.txt", f"input {number}\n")
    return box / "project"


def run(box: Box, project: Path, *more: str | Path, code: int = 0) -> str:
    """`gpuspool run` in the project over all its texts; returns stderr."""
    command = ["run", "job.py:Job", "**/*.txt", "--spool", "S", "--ranks", "1", "-q", *more]
    return box.run(*command, cwd=project, code=code).err


def outputs(spool: Path) -> list[str]:
    return names(spool / "outputs")


# The same run.


def test_the_same_inputs_in_another_order_are_the_same_run(box: Box, project: Path) -> None:
    files = sorted(map(str, (project / "data").iterdir()))
    listed, backwards = (
        box.write("list", "\n".join(files)),
        box.write("tsil", "\n".join(files[::-1])),
    )
    run_it = ("run", "job.py:Job", "--spool", "S", "--ranks", "1", "--files-from")
    box.run(*run_it, listed, cwd=project)
    assert "10 of 10" in box.run(*run_it, backwards, cwd=project).err


def test_lines_in_another_order_are_the_same_run_and_a_line_more_is_new(box: Box) -> None:
    box.write("job.py", "def Job(task, ctx): return task.payload\n")
    first = box.write("first", "a\nb\nb\nc\n")
    other = box.write("other", "c\nb\na\nb\n")
    more = box.write("more", "b\nb\nb\na\nc\n")
    command = ("run", "job.py:Job", "--spool", "S", "--ranks", "1", "--lines")
    box.run(*command, first)
    box.run(*command, other)
    assert "1 new, 0 gone, 0 changed" in box.run(*command, more, code=2).err
    box.run(*command, more, "--add")
    assert [result["result"] for result in box.results("S")] == ["a", "b", "b", "c", "b"]
    assert [result["key"] for result in box.results("S")] == ["t0", "t1", "t2", "t3", "t4"]


def test_keys_that_look_as_if_they_counted_say_which_task_is_meant(box: Box) -> None:
    """In another order, a task called t3 was new where it was not the fourth."""
    box.write("job.py", "def Job(task, ctx): return task.payload\n")
    listed = [f'{{"key":"t{number}","payload":{number // 2}}}' for number in range(5)]
    command = ("run", "job.py:Job", "--ranks", "1", "--tasks")
    for spool, first, other in (("S", listed, listed[::-1]), ("T", listed[::-1], listed)):
        box.run(*command, box.write("first", "\n".join(first)), "--spool", spool)
        again = box.run(*command, box.write("other", "\n".join(other)), "--spool", spool)
        assert "0 of 5 tasks left" in again.err
    changed = box.write("changed", '{"key":"t2","payload":7}\n')
    assert "0 new, 0 gone, 1 changed" in box.run(*command, changed, "--spool", "S", code=2).err


@pytest.mark.parametrize("verb", ["run", "retry"])
def test_a_project_that_was_moved_goes_on_and_reads_its_inputs_where_they_are(
    box: Box, project: Path, verb: str
) -> None:
    box.write(
        "project/job.py", "def Job(task, ctx): return int(task.path.read_text().split()[1])\n"
    )
    box.write("project/data/3.txt", "input x\n")
    run(box, project, "--out", "results", code=3)
    moved = box / "elsewhere" / "project"
    moved.parent.mkdir()
    project.rename(moved)
    box.write("elsewhere/project/data/3.txt", "input 3\n")
    if verb == "run":
        run(box, moved, "--out", "results", code=3)
    box.run("retry", "S", "--out-moved-to", "results", cwd=moved)
    assert [result["result"] for result in box.results(moved / "S")] == list(range(10))


def test_a_project_that_is_reached_by_a_link_is_the_same_run(box: Box, project: Path) -> None:
    run(box, project, "--out", "results")
    (box / "link").symlink_to(project)
    assert "10 of 10" in run(box, box / "link", "--out", box / "link" / "results")


def test_what_a_run_published_is_none_of_its_inputs(box: Box, project: Path) -> None:
    box.write("project/job.py", COPY.replace("'.out'", "'.txt'"))
    for more in ((), ("--out", "results", "--spool", "T")):
        run(box, project, *more)
        said = run(box, project, *more)
        assert "10 of 10" in said
        assert "left out" in said


def test_a_folder_of_outputs_that_is_named_itself_is_an_input(box: Box, project: Path) -> None:
    run(box, project, "--out", "results")
    command = ("run", "job.py:Job", "results/*.out", "--spool", "T", "--ranks", "1")
    assert "10 of 10" in box.run(*command, cwd=project).err


# What is new.


def test_new_inputs_are_refused_with_their_counts_and_added_where_that_is_asked(
    box: Box, project: Path
) -> None:
    run(box, project)
    for number in range(10, 14):
        box.write(f"project/data/{number}.txt", "new\n")
    said = run(box, project, code=2)
    assert "4 new, 0 gone, 0 changed" in said
    assert "--add" in said
    assert "14 of 14" in run(box, project, "--add")
    assert "14 of 14" in run(box, project), "the same command goes on"
    assert "14 of 14" in run(box, project, "--add"), "nothing is new"
    assert names(project / "S" / "manifests") == [
        "added-01.jsonl",
        "rank-0000.a00.orphans.jsonl",
        "rank-0000.a01.orphans.jsonl",
        "rank-0000.jsonl",
    ]
    assert len(outputs(project / "S")) == 14
    assert gpuspool.verify(project / "S").problems == []
    assert [result["index"] for result in box.results(project / "S")] == list(range(14))


def test_keys_do_not_change_when_a_neighbour_is_added(box: Box, project: Path) -> None:
    command = ("run", "job.py:Job", "--spool", "S", "--ranks", "1", "--add")
    box.run(*command, "data/[0-4].txt", cwd=project)
    box.write("project/data/more/0.txt", "deeper")
    box.run(*command, "data/**/*.txt", cwd=project)
    assert outputs(project / "S")[:3] == ["0.txt.out", "1.txt.out", "2.txt.out"]
    assert (project / "S" / "outputs" / "more" / "0.txt.out").read_text() == "deeper"
    assert len(box.results(project / "S")) == 11


def test_a_key_root_may_be_named_and_holds_all_inputs(box: Box, project: Path) -> None:
    command = ("run", "job.py:Job", "data/0.txt", "--spool", "S", "--ranks", "1")
    said = box.run(*command, "--key-root", "data/more", cwd=project, code=2).err
    assert "does not lie below it" in said
    box.run(*command, "--key-root", ".", cwd=project)
    assert outputs(project / "S") == ["data"]
    box.write("project/other/0.txt", "other")
    assert box.run("add", "S", "other/0.txt", cwd=project).err.startswith("gpuspool: 1 task added")
    box.run("resume", "S", cwd=project)
    assert outputs(project / "S") == ["data", "other"]


@pytest.mark.parametrize("key_root", [(), ("--key-root", ".")])
def test_files_beside_the_folder_that_keys_are_relative_to_are_not_added(
    box: Box, project: Path, key_root: tuple[str, ...]
) -> None:
    """They were looked for in that folder, or passed for files of the same name there."""
    command = ("run", "job.py:Job", "data/*.txt", "--spool", "S", "--ranks", "1")
    box.run(*command, cwd=project)
    box.write("project/other/0.txt", "input 0\n")
    box.write("project/other/new.txt", "new")
    said = box.run("add", "S", "other/*.txt", *key_root, cwd=project, code=2).err
    assert f"{project}/other/0.txt does not lie below {project}/data" in said
    said = box.run(*command, "other/*.txt", "--add", *key_root, cwd=project, code=2).err
    assert "does not lie below" in said
    assert len(box.results(project / "S")) == 10
    # A folder that was moved is told by the files in it, or by the user.
    (project / "data").rename(project / "moved")
    box.write("project/moved/more/10.txt", "input 10\n")
    said = box.run("add", "S", "moved/more/10.txt", cwd=project, code=2).err
    assert "say with --key-root where it is now" in said
    box.run("add", "S", "moved/more/10.txt", "--key-root", "moved", cwd=project)
    assert "11 of 11" in box.run(*command[:2], "moved/**/*.txt", *command[3:], cwd=project).err


def test_other_files_of_the_same_names_and_sizes_are_another_run(box: Box, project: Path) -> None:
    """They passed for the finished ones: "10 of 10 tasks complete", and nothing was computed."""
    box.write("project/next/0.txt", "other 0\n")
    command = ("run", "job.py:Job", "--spool", "S", "--ranks", "1")
    box.run(*command, "data/*.txt", cwd=project)
    for more in ("--dry-run", "-q"):
        said = box.run(*command, "next/0.txt", more, cwd=project, code=2).err
        assert f"{project}/next/0.txt is another file than {project}/data/0.txt" in said
        assert "--spool S-next" in said
    # The user may say that they are the same.
    assert "10 of 10" in box.run(*command, "next/0.txt", "--key-root", "next", cwd=project).err


def test_a_project_that_was_copied_goes_on_with_its_own_files(box: Box, project: Path) -> None:
    run(box, project)
    copy = box / "copy"
    shutil.copytree(project, copy)
    box.write("copy/data/3.txt", "input x\n")
    assert "1 input changed after its task had run: 3.txt" in run(box, copy)
    box.run("redo", "S", "3.txt", cwd=copy)
    assert (copy / "S/outputs/3.txt.out").read_text() == "input x\n"


def test_what_is_no_file_keeps_its_payload_in_a_run_of_files(box: Box, project: Path) -> None:
    box.write("project/job.py", "def Job(task, ctx): return task.payload\n")
    run(box, project)
    gpuspool.add(project / "S", items=["a line"])
    box.run("resume", "S", cwd=project)
    assert box.results(project / "S")[-1]["result"] == "a line"


def test_another_file_of_one_key_is_refused_in_a_run_that_began_without_files(
    box: Box, project: Path
) -> None:
    empty = box.write("empty", "")
    box.run("run", "job.py:Job", "--files-from", empty, "--spool", "S", cwd=project)
    box.write("project/other/0.txt", "input 0\n")
    box.run("add", "S", "data/0.txt", cwd=project)
    assert "nothing added" in box.run("add", "S", "data/0.txt", cwd=project).err
    said = box.run("add", "S", "other/0.txt", cwd=project, code=2).err
    assert "the key '0.txt' of a new task is that of task 0" in said


def test_finished_inputs_that_are_gone_do_not_matter_and_unfinished_ones_do(
    box: Box, project: Path
) -> None:
    run(box, project)
    (project / "data" / "0.txt").unlink()
    assert "10 of 10" in run(box, project)


def test_an_input_of_another_size_is_refused_only_where_it_is_finished(
    box: Box, project: Path
) -> None:
    box.write(
        "project/job.py", "def Job(task, ctx): return int(task.path.read_text().split()[1])\n"
    )
    box.write("project/data/3.txt", "input three\n")
    run(box, project, code=3)
    box.write("project/data/3.txt", "input 3 mended\n")
    assert "gpuspool retry" in run(box, project, code=3)
    box.run("retry", "S", cwd=project)
    box.write("project/data/5.txt", "input 5 in another size\n")
    assert "0 new, 0 gone, 1 changed\n  changed: 5.txt" in run(box, project, code=2)
    assert "10 of 10" in run(box, project, "--keep-done")


def test_a_payload_that_changed_under_one_key_is_refused(box: Box) -> None:
    box.write("job.py", "def Job(task, ctx): return task.payload\n")
    before = box.write("before", '{"key": "a", "payload": {"x": 1, "y": 2}}\n')
    same = box.write("same", '{"payload": {"y": 2,   "x": 1}, "key": "a", "cost": 7}\n')
    now = box.write("now", '{"key": "a", "payload": {"x": 2, "y": 2}}\n')
    command = ("run", "job.py:Job", "--spool", "S", "--ranks", "1", "--tasks")
    box.run(*command, before)
    box.run(*command, same)
    assert "1 changed" in box.run(*command, now, "--add", code=2).err


def test_a_key_that_the_run_has_for_another_task_is_refused(box: Box) -> None:
    box.write("job.py", "def Job(task, ctx): return task.payload\n")
    box.run("run", "job.py:Job", "--lines", box.lines(3), "--spool", "S", "--ranks", "1")
    with pytest.raises(UsageError, match="of task 2 of the run"):
        gpuspool.add(box / "S", tasks=str(box.write("more", '{"key": "t2", "payload": 9}\n')))
    assert len(box.results("S")) == 3


def test_two_tasks_that_are_added_never_get_one_key(box: Box) -> None:
    """A key that counts, and one that was given and looks like it."""
    box.write("job.py", "def Job(task, ctx): return task.payload\n")
    box.run("run", "job.py:Job", "--lines", box.lines(2), "--spool", "S", "--ranks", "1")
    more = box.write("more", '{"key": "t3", "payload": "a"}\n{"payload": "b"}\n')
    assert "'t3'" in box.run("add", "S", "--tasks", more, code=2).err
    assert len(box.results("S")) == 2


# Adding.


def test_tasks_that_are_added_to_a_live_run_are_done_by_it(box: Box) -> None:
    box.write(
        "job.py",
        "import pathlib, time\n"
        "def Job(task, ctx):\n"
        "    while not pathlib.Path('go').exists():\n"
        "        time.sleep(0.01)\n"
        "    return task.payload\n",
    )
    command = ("run", "job.py:Job", "--lines", box.lines(4), "--spool", "S", "--ranks", "2")
    live = box.start(*command)
    wait_until(lambda: names(box / "S" / "journal"))
    assert "the live run takes them" in box.run("add", "S", "--lines", box.lines(9)).err
    box.write("go", "")
    live.wait(0)
    assert len(box.results("S")) == 9


def test_two_who_add_at_once_add_each_task_once(box: Box) -> None:
    layout = make_spool(box / "s", 2)
    several = [from_values([f"x{n}" for n in range(start, start + 20)]) for start in (0, 5, 10, 3)]
    views = [view_of(layout) for _ in several]
    threads = [
        threading.Thread(target=add_tasks, args=pair) for pair in zip(views, several, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    view = view_of(layout)
    payloads = [json.loads(bytes(one.payload)) for one in view.planned_tasks()]
    added = [payload for payload in payloads if isinstance(payload, str)]
    assert sorted(added, key=lambda word: int(word[1:])) == [f"x{n}" for n in range(30)]
    assert view.ledger.tasks == 32
    assert sorted(one.task for one in view.planned_tasks()) == list(range(32))


def test_nothing_is_added_to_another_run_that_is_at_the_same_place_by_now(box: Box) -> None:
    box.write("job.py", "def Job(task, ctx): return task.payload\n")
    command = ("run", "job.py:Job", "--lines", box.lines(2), "--spool", "S", "--ranks", "1")
    box.run(*command)
    view = view_of(Layout(box / "S"))
    box.run(*command, "--fresh")
    with pytest.raises(UsageError, match="replaced by another run"):
        add_tasks(view, from_values(["new"]))
    assert names(box / "S" / "manifests")[0] == "rank-0000.a00.orphans.jsonl"


def added(layout: Layout, name: str, first: int, count: int) -> None:
    tasks = [task(index) for index in range(first, first + count)]
    assert publish_added(layout, name, Added(first=first, tasks=count, cost=count), tasks)


def test_a_view_takes_in_what_was_added_and_finished_since_it_listed_the_manifests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker may be faster than a look at the spool."""
    layout = make_spool(tmp_path / "s", 2)
    intend(layout, A0)
    journal = begin(layout, A0)
    view = view_of(layout)
    read_intents = View._read_intents

    def meanwhile(self: View) -> None:
        if "added-01.jsonl" not in names(layout.manifests):
            added(layout, "added-01", 2, 3)
            finish(journal, 3)
        read_intents(self)

    monkeypatch.setattr(View, "_read_intents", meanwhile)
    view.refresh()
    assert view.ledger.tasks == 5
    assert view.ledger.complete[3]
    assert view.damage == []


def test_what_was_added_is_read_in_order_and_one_that_is_lost_costs_its_own_tasks(
    tmp_path: Path,
) -> None:
    layout = make_spool(tmp_path / "s", 2)
    for number in range(1, 12):
        added(layout, f"added-{number:02d}", number + 1, 1)
    assert view_of(layout).ledger.tasks == 13
    layout.manifest("added-05").unlink()
    view = view_of(layout)
    assert view.ledger.tasks == 13
    assert view.ledger.unreadable == {6}
    layout.manifest("added-07").write_bytes(b"garbage\n")
    assert view_of(layout).ledger.tasks == 13
    assert view_of(layout).ledger.unreadable == {6, 8}


class Meanwhile:
    """A listener of a view, in whose presence something happens while a journal is read."""

    def __init__(self, attempt: str, happen: Callable[[], None]) -> None:
        self._attempt = attempt
        self._happen = happen

    def take(self, attempt: str, at: int, task: int, start: float, seconds: float) -> int:
        if attempt == self._attempt:
            self._happen()
        return 0

    def put_off(self, attempt: str, tasks: int, start: float, seconds: float) -> None:
        pass

    def rest(self, attempt: str) -> None:
        pass

    def failed(self, attempt: str, at: int, error: msgspec.Raw) -> None:
        pass

    def split(self, attempt: str, at: int) -> None:
        pass


def test_who_looks_for_added_tasks_once_more_takes_in_no_closing(tmp_path: Path) -> None:
    """The journal of that attempt was read before, and without its last lines."""
    layout = make_spool(tmp_path / "s", 2)
    for attempt in (A0, B0):
        intend(layout, attempt)
    first, second = begin(layout, A0), begin(layout, B0)
    take(layout, A0, 2)
    finish(second, 7)
    second.flush()

    def end_first() -> None:
        finish(first, 0, 1)
        first.flush()
        closing = Closing(attempt=A0, state=AttemptState.COMPLETE, reason=Reason.FINISHED, by=A0)
        assert publish_orphans(layout, closing, [])

    view = View(layout, load_run(layout))
    view.listener = Meanwhile(B0, end_first)
    assert stranded_tasks(view.refresh()) == []
    view.listener = None
    assert view.refresh().ledger.n_complete == 2


def test_a_task_that_no_run_has_is_damage(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 2)
    intend(layout, A1)
    finish(begin(layout, A1), 7)
    view = view_of(layout)
    [damage] = view.damage
    assert damage.reason == "task 7 is none of this run's"
    added(layout, "added-01", 2, 1)
    assert view.refresh().damage == [damage], "told once, however many tasks the run has by now"


def test_added_tasks_come_in_the_order_of_a_planned_manifest(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 1)
    listed = tmp_path / "tasks"
    listed.write_text("".join(f'{{"payload": "x{n}", "cost": {n}}}\n' for n in range(1, 5)))
    add_tasks(view_of(layout), collect(tasks=str(listed)))
    manifest = load_manifest(layout, "added-01", pytest.fail)
    assert manifest is not None
    assert [one.cost for one in manifest.tasks()] == [4.0, 3.0, 2.0, 1.0]
    assert os.listdir(layout.manifests).count("added-01.jsonl") == 1


# Inputs that go away.


def test_inputs_whose_folder_is_moved_near_the_end_of_a_run_are_waited_for(
    box: Box, project: Path
) -> None:
    """Nothing else is left that could prove that the fault is not theirs."""
    box.write(
        "project/job.py",
        "import pathlib, time\n"
        "def Job(task, ctx):\n"
        "    while task.key > '5' and not pathlib.Path('gate').exists(): time.sleep(0.01)\n"
        "    return len(task.path.read_text())\n",
    )
    command = ["run", "job.py:Job", "data/*.txt", "--spool", "S", "--ranks", "2"]
    live = box.start(*command, cwd=project)
    wait_until(lambda: journal_lines(project / "S"))
    (project / "data").rename(project / "away")
    (project / "gate").touch()
    wait_until(lambda: "the folder of the inputs is not there any more" in live.err)
    (project / "away").rename(project / "data")
    live.wait(0)
    assert [result["result"] for result in box.results(project / "S")] == [8] * 10
