"""All verbs tell one verdict, and tell what the world did from what is wrong."""

from __future__ import annotations

import itertools
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import JOBS, Box, half_done, names, record
from spooling import (
    A0,
    A1,
    B0,
    begin,
    close,
    dead_process,
    finish,
    intend,
    make_spool,
    take,
    task,
    view_of,
    write_claim,
)

import gpuspool
from gpuspool.orchestrator.api.reading import LONGEST_LOOK_S, SHORTEST_LOOK_S, pause_s
from gpuspool.orchestrator.text.words import count_of
from gpuspool.spool.journal import start_journal
from gpuspool.spool.layout import Layout, rank_name
from gpuspool.spool.manifest import publish_manifest, publish_orphans
from gpuspool.spool.records import Closing, Error, JournalLine, TaskFailure
from gpuspool.spool.states import AttemptState, ErrorKind, LineState, Reason

# All verbs, one verdict.

# What may have happened to a spool of five tasks, of which 0 is complete, 1 has failed by its line,
# 2 by the closing of its attempt, 3 is an orphan, and 4 was never claimed.
Change = Callable[[Layout], None]


def base_spool(root: Path) -> Layout:
    layout = make_spool(root, 5)
    intend(layout, A0, parent=dead_process())
    writer = start_journal(layout, A0, dead_process())
    assert writer is not None
    take(layout, A0, 4)
    finish(writer, 0)
    error = Error(kind=ErrorKind.EXCEPTION, type="E", message="m")
    writer.append(JournalLine(task=1, round=0, state=LineState.FAILED, error=error))
    failure = TaskFailure(task=2, round=0, key="t2", error=error)
    closing = Closing(
        attempt=A0, state=AttemptState.FAILED, reason=Reason.CRASH, by="test", failures=[failure]
    )
    assert publish_orphans(layout, closing, [task(3)])
    return layout


def lose_line(index: int) -> Change:
    def change(layout: Layout) -> None:
        for path in layout.manifests.glob("*.jsonl"):
            data = path.read_bytes()
            path.write_bytes(data.replace(b'"key":"t%d"' % index, b'"key":"x%d"' % index))

    change.__name__ = f"lose_line_{index}"
    return change


def lose_the_planned_manifest(layout: Layout) -> None:
    layout.manifest(rank_name(0)).unlink()


def lose_the_orphans(layout: Layout) -> None:
    layout.orphans(A0).write_bytes(b"\n")


def spoil_the_journal(layout: Layout) -> None:
    path = layout.journal(A0)
    path.write_bytes(path.read_bytes().replace(b'"task":1', b'"task":7'))


def an_error_of_a_later_version(layout: Layout) -> None:
    """Its line counts, since its checksum is right; but what it says of the error is not known."""
    path = layout.journal(A0)
    data = path.read_bytes().replace(b'"kind":"exception"', b'"kind":"melted"')
    lines = [_sealed(line) for line in data.splitlines()]
    path.write_bytes(b"".join(lines))


def _sealed(line: bytes) -> bytes:
    body = line[: line.rindex(b',"crc"')]
    return b'%b,"crc":"%08x"}\n' % (body, zlib.crc32(body))


def retry(layout: Layout) -> None:
    assert publish_manifest(layout, "retry-01", [task(1, round=1), task(2, round=1)])


def fail_again(layout: Layout) -> None:
    writer = start_journal(layout, A1, dead_process())
    assert writer is not None
    error = Error(kind=ErrorKind.EXCEPTION, type="E", message="again")
    writer.append(JournalLine(task=1, round=1, state=LineState.FAILED, error=error))


def complete_elsewhere(layout: Layout) -> None:
    writer = start_journal(layout, B0, dead_process())
    assert writer is not None
    finish(writer, 2, 3, 4)


def a_claim_is_emptied(layout: Layout) -> None:
    write_claim(layout, rank_name(0), 0, b"")


CHANGES = [
    lose_line(0), lose_line(1), lose_line(2), lose_line(4), lose_the_planned_manifest,
    lose_the_orphans, spoil_the_journal, an_error_of_a_later_version, retry, fail_again,
    complete_elsewhere, a_claim_is_emptied,
]  # fmt: skip
FAMILY = [changes for size in range(3) for changes in itertools.permutations(CHANGES, size)]


def ids(changes: tuple[Change, ...]) -> str:
    return "-".join(change.__name__ for change in changes) or "unchanged"


def assert_all_agree(root: Path) -> tuple[int, int, int]:
    """Ask every verb of the Python API; returns the counts that all of them tell."""
    results = list(gpuspool.results(root))
    states = [str(result.state) for result in results]
    assert len(states) == 5
    counts = (states.count("complete"), states.count("failed"), states.count("missing"))
    stand = gpuspool.status(root)
    tasks = stand["tasks"]
    assert (tasks["complete"], tasks["failed"], tasks["waiting"] + tasks["running"]) == counts
    failed = gpuspool.failed(root)
    assert [one.index for one in failed] == [one.index for one in results if one.state == "failed"]
    assert all(one.error is not None for one in failed)
    found = gpuspool.verify(root)
    assert found.counts == {"total": 5, "complete": counts[0], "failed": counts[1]}
    waited = gpuspool.wait(root)
    assert (waited["state"], waited["tasks"]) == (stand["state"], tasks)
    expected = "stopped"
    if counts[2] == 0:
        expected = "complete" if counts[1] == 0 else "failed"
    assert stand["state"] == expected
    return counts


@pytest.mark.parametrize("first", [None, *CHANGES], ids=lambda one: getattr(one, "__name__", "-"))
def test_all_verbs_tell_one_verdict(first: Change | None, tmp_path: Path) -> None:
    """On a spool to which anything happened, alone, and before or after anything else."""
    family = [changes for changes in FAMILY if changes[:1] == (() if first is None else (first,))]
    for number, changes in enumerate(family):
        layout = base_spool(tmp_path / f"s{number}")
        for change in changes:
            # What an earlier change took away cannot be changed any more.
            try:
                change(layout)
            except FileNotFoundError:
                continue
        try:
            assert_all_agree(layout.root)
        except AssertionError as error:
            raise AssertionError(ids(changes)) from error


@pytest.mark.parametrize(
    ("changes", "state", "code"),
    [
        ((), "stopped", 4),
        ((lose_line(4), complete_elsewhere), "failed", 3),
        ((lose_line(3), lose_line(4)), "failed", 3),
        ((an_error_of_a_later_version, lose_line(3), lose_line(4)), "failed", 3),
        ((retry, complete_elsewhere, lose_line(1)), "failed", 3),
    ],
    ids=lambda value: ids(value) if isinstance(value, tuple) else None,
)
def test_the_command_line_tells_the_verdict_of_the_python_api(
    box: Box, changes: tuple[Change, ...], state: str, code: int
) -> None:
    layout = base_spool(box / "S")
    for change in changes:
        change(layout)
    complete, failed, missing = assert_all_agree(layout.root)
    assert box.run("status", "S", "--json").record()["state"] == state
    counts = f"\n{complete} complete, {failed} failed, 0 running, {missing} waiting of 5"
    assert counts in box.run("status", "S").out
    assert counts in box.run("wait", "S", code=code).out
    states = [result["state"] for result in box.run("results", "S").records()]
    assert (states.count("failed"), states.count("missing")) == (failed, missing)
    assert len(box.run("failed", "S", "--json").records()) == failed
    last = box.run("verify", "S", code=None).out.splitlines()[-1]
    assert last.endswith(f"; {complete} complete, {failed} failed of 5")


def test_an_unreadable_task_may_complete_as_long_as_somebody_lives(tmp_path: Path) -> None:
    """The orchestrator does not end before that, so `wait` and `status` must not either."""
    layout = make_spool(tmp_path / "s", 1)
    intend(layout, A0)
    writer = begin(layout, A0)
    take(layout, A0, 1)
    lose_line(0)(layout)
    assert gpuspool.status(layout.root)["state"] == "running"
    assert gpuspool.wait(layout.root, timeout_s=0)["state"] == "running"
    finish(writer, 0)
    assert gpuspool.status(layout.root)["state"] == "complete"


def test_a_complete_task_whose_line_says_too_much_is_complete(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 1)
    writer = begin(layout, A0)
    finish(writer, 0)
    path = layout.journal(A0)
    data = path.read_bytes().replace(b'"seconds":0.25', b'"seconds":"a quarter"')
    path.write_bytes(b"".join(map(_sealed, data.splitlines())))
    (result,) = gpuspool.results(layout.root)
    assert (result.state, result.value()) == ("complete", None)
    assert result.error is not None
    assert result.error.type == "LineUnreadable"


# failed-tasks/.


def failed_files(spool: Path) -> list[str]:
    return [name for name in names(spool / "failed-tasks") if name.endswith(".json")]


def lose_failed_tasks(spool: Path) -> None:
    """What a worker leaves that dies between a line and its file, and a power cut of some."""
    for number, name in enumerate(failed_files(spool)):
        path = spool / "failed-tasks" / name
        if number % 3 == 0:
            path.unlink()
        elif number % 3 == 1:
            path.write_bytes(b"")


def test_failed_tasks_are_made_again_by_whoever_starts_next(box: Box) -> None:
    command: list[str | Path] = ["run", f"{JOBS}/gates.py:gated", "--spool", "S", "--tasks"]
    command += [box.tasks(["bad"] * 7 + ["a"]), "--arg", f"gate={box / 'gate'}"]
    box.run(*command, code=3)
    folder = box / "S" / "failed-tasks"
    before = {name: record(folder / name) for name in failed_files(box / "S")}
    assert len(before) == 7
    lose_failed_tasks(box / "S")
    box.run(*command, code=3)
    after = {name: record(folder / name) for name in failed_files(box / "S")}
    for one in (*before.values(), *after.values()):
        del one["at"]
    assert after == before


def test_a_failed_task_of_a_closing_is_made_again(box: Box) -> None:
    tasks = box.tasks(["die"])
    command = ["run", f"{JOBS}/harsh.py:leaves_a_daemon", "--tasks", tasks, "--spool", "S"]
    command += ["--arg", "children=children"]
    box.run(*command, code=3)
    path = box / "S" / "failed-tasks" / "t0.json"
    before = record(path)
    path.write_bytes(b"")
    box.run(*command, code=3)
    assert record(path) == before


def test_whoever_closes_a_dead_worker_makes_the_file_that_it_owed(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 3)
    intend(layout, A0)
    writer = start_journal(layout, A0, dead_process())
    assert writer is not None
    take(layout, A0, 3)
    finish(writer, 0)
    error = Error(kind=ErrorKind.EXCEPTION, type="E", message="m")
    writer.append(JournalLine(task=1, round=0, state=LineState.FAILED, error=error))
    close(view_of(layout), A0)
    assert names(layout.failed_tasks) == ["t1.json"]
    told = record(layout.failed_task("t1"))
    assert (told["key"], told["task"], told["attempt"]) == ("t1", 1, A0)
    assert told["error"]["message"] == "m"


def test_no_file_is_made_for_what_was_retried_or_is_complete_now(box: Box) -> None:
    command: list[str | Path] = ["run", f"{JOBS}/gates.py:gated", "--spool", "S", "--tasks"]
    command += [box.tasks(["bad", "bad", "a"]), "--arg", f"gate={box / 'gate'}"]
    box.run(*command, code=3)
    box.run("retry", "S", code=3)
    folder = box / "S" / "failed-tasks"
    lose_failed_tasks(box / "S")
    box.run(*command, code=3)
    assert [record(folder / name)["round"] for name in failed_files(box / "S")] == [1, 1]
    assert names(folder / "round-0") == ["t0.json", "t1.json"]


# verify: notes and problems.


def claims_in(spool: Path) -> list[Path]:
    return sorted((spool / "claims").rglob("0*"))


def empty_the_last_claim(spool: Path) -> None:
    claims_in(spool)[-1].write_bytes(b"")


def zero_a_claim(spool: Path) -> None:
    path = claims_in(spool)[1]
    path.write_bytes(bytes(len(path.read_bytes())))


def cut_a_claim(spool: Path) -> None:
    path = claims_in(spool)[0]
    path.write_bytes(path.read_bytes()[:-5])


def lose_a_claim(spool: Path) -> None:
    claims_in(spool)[-2].unlink()


def lose_the_last_claims(spool: Path) -> None:
    for path in claims_in(spool)[-3:]:
        path.unlink()


def tear_the_journal(spool: Path) -> None:
    path = spool / "journal" / "rank-0000.a00.jsonl"
    os.truncate(path, path.stat().st_size - 7)


def zero_the_end_of_the_journal(spool: Path) -> None:
    path = spool / "journal" / "rank-0000.a00.jsonl"
    data = path.read_bytes()
    path.write_bytes(data[:-300] + bytes(300))


def zero_a_hole_in_the_journal(spool: Path) -> None:
    path = spool / "journal" / "rank-0000.a00.jsonl"
    data = path.read_bytes()
    path.write_bytes(data[:-500] + bytes(300) + data[-200:])


POWER_CUTS = [
    empty_the_last_claim, zero_a_claim, cut_a_claim, lose_a_claim, lose_the_last_claims,
    tear_the_journal, zero_the_end_of_the_journal, zero_a_hole_in_the_journal,
]  # fmt: skip


@pytest.mark.parametrize("cut", POWER_CUTS, ids=lambda cut: cut.__name__)
def test_what_a_power_cut_leaves_is_no_problem(box: Box, cut: Callable[[Path], None]) -> None:
    """Neither before the run goes on, since that deals with it, nor afterwards, for ever."""
    command = half_done(box)
    cut(box / "S")
    assert box.problems("S") == []
    box.run(*command)
    assert [result["state"] for result in box.results("S")] == ["complete"] * 40
    done = box.run("verify", "S")
    assert done.out.splitlines()[-1] == "0 problems; 40 complete, 0 failed of 40"


def flip_a_bit_of_a_claim(spool: Path) -> None:
    path = claims_in(spool)[1]
    path.write_bytes(path.read_bytes().replace(b'"attempt"', b'"attemqt"'))


def flip_a_bit_of_a_line(spool: Path) -> None:
    path = spool / "journal" / "rank-0000.a00.jsonl"
    data = bytearray(path.read_bytes())
    data[-300] ^= 1
    path.write_bytes(data)


def zero_what_was_synced(spool: Path) -> None:
    path = spool / "manifests" / "rank-0000.jsonl"
    data = path.read_bytes()
    path.write_bytes(bytes(100) + data[100:])


def zero_the_first_line_of_the_journal(spool: Path) -> None:
    """It was synced before the job was loaded."""
    path = spool / "journal" / "rank-0000.a00.jsonl"
    path.write_bytes(bytes(20) + path.read_bytes()[20:])


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_bit_of_a_claim,
        flip_a_bit_of_a_line,
        zero_what_was_synced,
        zero_the_first_line_of_the_journal,
    ],
    ids=lambda damage: damage.__name__,
)
def test_what_no_power_cut_leaves_is_a_problem(box: Box, damage: Callable[[Path], None]) -> None:
    half_done(box)
    damage(box / "S")
    assert box.problems("S") != []


# verify: outputs.


def published(box: Box, suffix: str = ".txt") -> Path:
    """The outputs of a finished run of one task, whose output has 4 bytes."""
    box.write(
        "job.py",
        "def f(task, ctx):\n"
        f"    path = ctx.output(task, {suffix!r})\n"
        "    if task.payload == 'folder':\n"
        "        path.mkdir()\n"
        "        (path / 'a').write_text('ab')\n"
        "        (path / 'b').write_text('ab')\n"
        "    else:\n"
        "        path.write_text('abcd')\n",
    )
    tasks = box.tasks(["file", "folder"])
    box.run("run", "job.py:f", "--tasks", tasks, "--spool", "S", "--ranks", "1")
    assert box.problems("S") == []
    return box / "S" / "outputs"


def empty(path: Path) -> None:
    path.write_bytes(b"")


def grow(path: Path) -> None:
    path.write_bytes(b"abcde")


def into_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def into_a_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def into_a_dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def into_a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "change",
    [empty, grow, Path.unlink, into_a_folder, into_a_link, into_a_dangling_link, into_a_fifo],
    ids=lambda change: change.__name__,
)
def test_an_output_that_is_not_what_was_published_is_named(
    box: Box, change: Callable[[Path], None]
) -> None:
    path = published(box) / "t0.txt"
    change(path)
    done = box.run("verify", "S", code=5)
    (problem,) = box.problems("S")
    assert f"task 0 (t0): its output {path} " in problem
    assert f"problem: {problem}" in done.out


def lose_a_file(folder: Path) -> None:
    (folder / "a").unlink()


def into_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_bytes(b"a")


@pytest.mark.parametrize(
    "change", [lose_a_file, into_a_file, shutil.rmtree], ids=lambda change: change.__name__
)
def test_an_output_folder_that_is_not_what_was_published_is_named(
    box: Box, change: Callable[[Path], None]
) -> None:
    path = published(box) / "t1.txt"
    change(path)
    (problem,) = box.problems("S")
    assert f"task 1 (t1): its output {path} " in problem


# What a run was, stays told.


def test_a_finished_run_that_is_run_again_keeps_its_summary(box: Box) -> None:
    command = ["run", f"{JOBS}/plain.py:double", "--lines", box.lines(5), "--spool", "S"]
    box.run(*command)
    path = box / "S" / "summary.json"
    before = path.read_bytes()
    box.run(*command)
    box.run("resume", "S")
    box.run("retry", "S")
    assert path.read_bytes() == before


def test_a_run_that_went_on_has_a_new_summary(box: Box) -> None:
    command: list[str | Path] = ["run", f"{JOBS}/gates.py:gated", "--spool", "S", "--tasks"]
    command += [box.tasks(["bad", "a"]), "--arg", f"gate={box / 'gate'}"]
    box.run(*command, code=3)
    before = record(box / "S" / "summary.json")
    box.run("retry", "S", code=3)
    after = record(box / "S" / "summary.json")
    assert (before["epoch"], after["epoch"]) == (0, 1)
    assert after["at"] > before["at"]
    path = box / "S" / "summary.json"
    path.write_bytes(b"{")
    box.run("resume", "S", code=3)
    assert record(path)["tasks"] == after["tasks"], "a damaged one is made again"


# Small things.


def test_one_is_not_many() -> None:
    assert [count_of(count, "task") for count in range(3)] == ["0 tasks", "1 task", "2 tasks"]
    assert count_of(1, "task is", "tasks are") == "1 task is"
    assert count_of(2, "task is", "tasks are") == "2 tasks are"


def test_wait_looks_seldom_once_it_has_waited_long() -> None:
    pauses = [pause_s(waited_s) for waited_s in (0.0, 1.0, 10.0, 3600.0)]
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (SHORTEST_LOOK_S, LONGEST_LOOK_S)


@pytest.mark.parametrize("verb", ["run", "resume", "retry"])
def test_a_spool_whose_path_is_not_utf_8_goes_on(box: Box, verb: str) -> None:
    folder = box.home / os.fsdecode(b"d\xff")
    folder.mkdir()
    command: list[str | Path] = ["run", f"{JOBS}/gates.py:gated", "--spool", folder / "S"]
    command += ["--tasks", box.tasks(["a", "bad"]), "--arg", f"gate={box / 'gate'}"]
    box.run(*command, code=3)
    if verb == "run":
        (folder / "S" / "journal" / "rank-0000.a00.jsonl").write_bytes(b"")
        (folder / "S" / "manifests" / "rank-0000.a00.orphans.jsonl").unlink()
        words = command
    else:
        words = [verb, folder / "S"]
    done = box.run(*words, code=3)
    assert "Traceback" not in done.err
    assert "1 of 2 tasks complete, 1 failed" in done.err
    assert record(folder / "S" / "summary.json")["tasks"]["failed"] == 1
