"""The judge of the torture suite catches everything that it counts: each is planted in a spool made
by hand.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import JOBS, Box, seal
from torture.checker import Counts, changed, check, look, nonce_of
from torture.job import body, payloads, value
from torture.rows import Row, table

TASKS = 6
A0, A1, B0 = "rank-0000.a00", "rank-0000.a01", "rank-0001.a00"


class Forged:
    """A finished spool of two ranks as the format says it is, written without any of the product's
    code.
    """

    def __init__(self, home: Path) -> None:
        self.spool, self.executions = home / "S", home / "E"
        self.out = self.spool / "outputs"
        for folder in (self.spool / "manifests", self.spool / "journal", self.out, self.executions):
            folder.mkdir(parents=True)
        (self.spool / "run.json").write_text(json.dumps({"out": None}))
        (self.out / ".gpuspool").write_text("0123456789abcdef\n")
        for rank, attempt in enumerate((A0, B0)):
            tasks = range(rank, TASKS, 2)
            self.manifest(
                f"rank-000{rank}",
                *({"task": t, "key": f"t{t}", "payload": {"n": t}} for t in tasks),
            )
            self.journal(attempt, *map(self.line, tasks))
            for task in tasks:
                self.output(task)
                self.began(task, attempt, at=100.0)
        self.summary(complete=TASKS, exit_code=0)

    def manifest(self, name: str, *records: dict[str, Any]) -> None:
        (self.spool / "manifests" / f"{name}.jsonl").write_bytes(b"".join(map(seal, records)))

    def journal(self, attempt: str, *records: dict[str, Any]) -> None:
        """Append lines; a new journal begins with its identity."""
        with open(self.spool / "journal" / f"{attempt}.jsonl", "ab") as file:
            head = [] if file.tell() else [{"host": "here", "pid": 1, "attempt": attempt}]
            file.writelines(map(seal, [*head, *records]))

    def line(self, task: int, nonce: str | None = None, **more: Any) -> dict[str, Any]:
        result = {"value": value(task), "nonce": nonce or f"first-{task}"}
        size = len(body(f"t{task}") + f"nonce first-{task}\n".encode())
        record = {
            "task": task,
            "round": 0,
            "state": "complete",
            "start": 100.0,
            "seconds": 0.5,
            "result": result,
        }
        return record | {"outputs": [[f"t{task}.txt", size]]} | more

    def output(self, task: int, name: str | None = None, nonce: str | None = None) -> Path:
        path = self.out / (name or f"t{task}.txt")
        path.write_bytes(body(f"t{task}") + f"nonce {nonce or f'first-{task}'}\n".encode())
        return path

    def began(self, task: int, attempt: str, at: float, nonce: str | None = None) -> None:
        with open(self.executions / f"{attempt}.17", "a") as file:
            file.write(
                json.dumps({"task": task, "nonce": nonce or f"first-{task}", "at": at}) + "\n"
            )

    def drop_line(self, task: int) -> None:
        """As if the journal had never said anything about this task."""
        path = self.spool / "journal" / f"{A0 if task % 2 == 0 else B0}.jsonl"
        kept = [
            line
            for line in path.read_bytes().splitlines(True)
            if f'"task":{task},'.encode() not in line
        ]
        path.write_bytes(b"".join(kept))

    def summary(self, complete: int, exit_code: int) -> None:
        record = {"exit_code": exit_code, "tasks": {"total": TASKS, "complete": complete}}
        (self.spool / "summary.json").write_text(json.dumps(record))

    def parent(self, epoch: int, pid: int, at: float, named: str | None = None) -> None:
        self.record(f"parents/{named or f'{epoch:04d}'}.json", epoch=epoch, at=at, **process(pid))

    def end(self, epoch: int, at: float, how: str = "finished") -> None:
        self.record(f"parents/{epoch:04d}.end.json", how=how, exit_code=0, at=at)

    def intent(self, attempt: str, epoch: int, pid: int, at: float) -> None:
        self.record(f"attempts/{attempt}.json", epoch=epoch, at=at, parent=process(pid))

    def closing(self, attempt: str, at: float, by: str | None = None) -> None:
        record = {"attempt": attempt, "state": "complete", "by": by or attempt, "at": at}
        self.manifest(f"{attempt}.orphans", record)

    def record(self, name: str, **fields: Any) -> None:
        (self.spool / name).parent.mkdir(exist_ok=True)
        (self.spool / name).write_text(json.dumps(fields))

    def told(self) -> list[dict[str, Any]]:
        return [
            {"index": t, "state": "complete", "result": self.line(t)["result"]}
            for t in range(TASKS)
        ]

    def check(self, **more: Any) -> Counts:
        return check(self.spool, TASKS, executions=self.executions, **more)


def process(pid: int, host: str = "here") -> dict[str, Any]:
    return {"host": host, "boot_id": "b", "pid_ns": "pid:[1]", "pid": pid, "pid_start": 7}


@pytest.fixture
def forged(tmp_path: Path) -> Forged:
    return Forged(tmp_path)


@pytest.fixture
def cooperated(forged: Forged) -> Forged:
    """Two parents: the first has ended, and the other was killed."""
    forged.parent(0, pid=11, at=90.0)
    forged.parent(1, pid=12, at=91.0)
    forged.intent(A0, epoch=0, pid=11, at=92.0)
    forged.intent(B0, epoch=1, pid=12, at=93.0)
    forged.closing(A0, at=110.0)
    forged.end(0, at=111.0)
    return forged


def letters(counts: Counts) -> str:
    """ "L D" where one lost and one double were found; the notes must be as many as the counts."""
    assert len(counts.notes) == counts.L + counts.D + counts.C + counts.X + counts.R, counts.notes
    return " ".join(letter for letter in "LDCXR" for _ in range(getattr(counts, letter)))


def fail_line(task: int, round_: int = 0) -> dict[str, Any]:
    return {"task": task, "round": round_, "state": "failed", "error": {"kind": "exception"}}


def lines(records: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def test_nothing_is_found_where_nothing_is_wrong(forged: Forged) -> None:
    counts = forged.check(claimed_ok=True, looks=[look(forged.out)], told=lines(forged.told()))
    assert letters(counts) == ""
    assert counts.is_clean
    assert (counts.complete, counts.failed, counts.executions, counts.again) == (
        TASKS,
        [],
        TASKS,
        0,
    )


def test_a_task_without_any_line_is_lost(forged: Forged) -> None:
    forged.drop_line(3)
    forged.summary(complete=TASKS - 1, exit_code=4)
    assert letters(forged.check()) == "L"


def test_a_torn_or_flipped_line_is_no_line(forged: Forged) -> None:
    path = forged.spool / "journal" / f"{A0}.jsonl"
    data = path.read_bytes()
    forged.summary(complete=TASKS - 1, exit_code=4)
    path.write_bytes(data[:-1])
    assert letters(forged.check()) == "L"
    path.write_bytes(data.replace(b'"task":2', b'"task":3'))
    assert letters(forged.check()) == "L"


def test_a_complete_task_without_its_output_is_lost(forged: Forged) -> None:
    (forged.out / "t4.txt").unlink()
    assert letters(forged.check()) == "L X"


def test_a_failure_on_record_is_not_lost(forged: Forged) -> None:
    forged.drop_line(2)
    forged.drop_line(3)
    forged.journal(A0, fail_line(2))
    forged.manifest(
        f"{B0}.orphans", {"attempt": B0, "state": "failed", "lost": [{"task": 3, "error": {}}]}
    )
    for task in (2, 3):
        (forged.out / f"t{task}.txt").unlink()
    forged.summary(complete=4, exit_code=3)
    counts = forged.check()
    assert letters(counts) == ""
    assert counts.failed == [2, 3]


def test_a_failure_of_an_earlier_round_is_no_verdict(forged: Forged) -> None:
    forged.drop_line(2)
    forged.journal(A0, fail_line(2))
    forged.manifest("retry-01", {"task": 2, "key": "t2", "payload": 2, "round": 1})
    forged.summary(complete=TASKS - 1, exit_code=4)
    assert letters(forged.check()) == "L"
    forged.journal(A1, fail_line(2, round_=1))
    assert letters(forged.check()) == ""


def test_a_line_from_before_a_redo_is_no_verdict(forged: Forged) -> None:
    redo = {"task": 2, "key": "t2", "payload": 2, "round": 1, "redo": True}
    forged.manifest("retry-01", redo)
    forged.summary(complete=TASKS - 1, exit_code=4)
    assert letters(forged.check()) == "L"
    forged.output(2, nonce="again")
    forged.began(2, A1, at=900.0, nonce="again")
    forged.journal(A1, {**forged.line(2, nonce="again"), "round": 1})
    assert [forged.check().L, forged.check().R] == [0, 0]


def test_an_unreadable_task_is_lost_unless_the_test_destroyed_it(forged: Forged) -> None:
    forged.drop_line(5)
    forged.manifest(
        "rank-0001", {"task": 1, "key": "t1", "payload": 1}, {"task": 3, "key": "t3", "payload": 3}
    )
    forged.summary(complete=TASKS - 1, exit_code=3)
    assert letters(forged.check()) == "L"
    counts = forged.check(unreadable_ok=True)
    assert letters(counts) == ""
    assert counts.unreadable == [5]
    forged.drop_line(1)
    assert letters(forged.check(unreadable_ok=True)) == "L"


def test_an_output_that_changed_between_two_looks_is_double(forged: Forged) -> None:
    before = look(forged.out)
    forged.began(1, B0, at=99.0, nonce="other-1")
    forged.output(1, nonce="other-1")
    assert changed(before, look(forged.out)) == ["t1.txt"]
    assert letters(forged.check(looks=[before])) == "D"


def test_an_output_that_was_replaced_by_equal_bytes_is_double(forged: Forged) -> None:
    before = look(forged.out)
    path = forged.out / "t1.txt"
    copy = forged.out / "copy"
    copy.write_bytes(path.read_bytes())
    copy.rename(path)
    assert letters(forged.check(looks=[before])) == "D"


@pytest.mark.parametrize("name", [".gpuspool-rank-0000.a00-2.txt", "t2.txt.1", "t2"])
def test_a_hidden_or_second_output_is_double(forged: Forged, name: str) -> None:
    forged.output(2, name=name)
    assert letters(forged.check()) == "D"


def test_a_foreign_file_in_out_is_nobodys(forged: Forged) -> None:
    (forged.out / "README").write_text("notes\n")
    assert letters(forged.check()) == ""


def test_a_task_that_results_tell_twice_is_double(forged: Forged) -> None:
    told = [*forged.told(), forged.told()[3]]
    assert letters(forged.check(told=lines(told))) == "D"


def test_a_task_that_results_do_not_tell_is_lost(forged: Forged) -> None:
    assert letters(forged.check(told=lines(forged.told()[1:]))) == "L X"


def test_results_must_tell_the_first_line(forged: Forged) -> None:
    forged.journal(A1, forged.line(2, nonce="second"))
    forged.began(2, A1, at=99.0, nonce="second")
    counts = forged.check(told=lines(forged.told()))
    assert letters(counts) == ""
    assert (counts.duplicates, counts.again) == (1, 1)
    told = forged.told()
    told[2]["result"]["nonce"] = "second"
    assert letters(forged.check(told=lines(told))) == "C X"


def test_results_must_not_call_complete_what_is_not(forged: Forged) -> None:
    forged.drop_line(2)
    forged.journal(A0, fail_line(2))
    forged.summary(complete=TASKS - 1, exit_code=3)
    assert letters(forged.check(told=lines(forged.told()))) == "X"


def wrong_bytes(forged: Forged) -> None:
    path = forged.out / "t0.txt"
    path.write_bytes(path.read_bytes().replace(b"t0 7", b"t0 8"))


def torn_bytes(forged: Forged) -> None:
    path = forged.out / "t0.txt"
    path.write_bytes(path.read_bytes()[:300])


def empty_output(forged: Forged) -> None:
    (forged.out / "t0.txt").write_bytes(b"")


def output_of_another_task(forged: Forged) -> None:
    (forged.out / "t0.txt").write_bytes((forged.out / "t2.txt").read_bytes())


def wrong_value(forged: Forged) -> None:
    forged.drop_line(0)
    forged.journal(A0, forged.line(0, result={"value": value(1), "nonce": "first-0"}))


def wrong_size(forged: Forged) -> None:
    forged.drop_line(0)
    forged.journal(A0, forged.line(0, outputs=[["t0.txt", 17]]))


def nobodys_output(forged: Forged) -> None:
    forged.output(0, nonce="other-0")


@pytest.mark.parametrize(
    "plant",
    [
        wrong_bytes,
        torn_bytes,
        empty_output,
        output_of_another_task,
        wrong_value,
        wrong_size,
        nobodys_output,
    ],
)
def test_what_the_job_does_not_compute_is_wrong(
    forged: Forged, plant: Callable[[Forged], None]
) -> None:
    plant(forged)
    counts = forged.check()
    assert counts.C >= 1
    assert (counts.L, counts.D, counts.R) == (0, 0, 0)


def test_success_that_is_not_so_is_claimed_falsely(forged: Forged) -> None:
    forged.drop_line(0)
    assert letters(forged.check()) == "L X"
    forged.summary(complete=TASKS, exit_code=4)
    assert letters(forged.check()) == "L X"
    assert letters(forged.check(claimed_ok=True)) == "L X X"
    forged.summary(complete=TASKS - 1, exit_code=4)
    assert letters(forged.check(claimed_ok=True)) == "L X"


def test_success_with_failed_tasks_is_claimed_falsely(forged: Forged) -> None:
    forged.drop_line(0)
    forged.journal(A0, fail_line(0))
    forged.summary(complete=TASKS - 1, exit_code=3)
    assert letters(forged.check()) == ""
    assert letters(forged.check(claimed_ok=True)) == "X"


def test_an_execution_after_the_line_is_run_again(forged: Forged) -> None:
    forged.began(3, A1, at=100.6, nonce="second")
    counts = forged.check()
    assert letters(counts) == "R"
    assert (counts.executions, counts.again) == (TASKS + 1, 1)
    assert counts.is_clean, "R is a cost; each row has its own limit"


def test_an_execution_before_the_line_stood_is_not_run_again(forged: Forged) -> None:
    forged.began(3, A1, at=100.4, nonce="second")
    counts = forged.check()
    assert letters(counts) == ""
    assert counts.again == 1


def test_a_link_in_the_place_of_a_journal_is_not_read(forged: Forged) -> None:
    path = forged.spool / "journal" / f"{A0}.jsonl"
    path.rename(forged.spool / "elsewhere")
    path.symlink_to(forged.spool / "elsewhere")
    forged.summary(complete=3, exit_code=4)
    assert letters(forged.check()) == "L L L"


@pytest.mark.parametrize("job", ["work", "Batched"])
def test_a_real_run_is_judged_clean(box: Box, job: str) -> None:
    (box / "E").mkdir()
    command = [
        "run",
        f"{JOBS.parent}/torture/job.py:{job}",
        "--tasks",
        box.tasks(payloads(30, ms=0, fail=[7])),
    ]
    box.run(*command, "--ranks", "2", "--spool", "S", "--arg", f"executions={box / 'E'}", code=3)
    told = box.run("results", "S").out
    counts = check(box / "S", 30, executions=box / "E", told=told)
    assert counts.notes == []
    assert (counts.complete, counts.failed) == (29, [7])
    assert all(nonce_of(path.read_bytes()) for path in (box / "S" / "outputs").glob("t*"))
    assert check(box / "S", 31).L == 1, "a task more than the run has is missing"


def test_a_row_tells_whether_it_is_clean() -> None:
    rows = [
        Row("kill storm", 2, "2 runs, 11 kills", R=3, seconds=4.4),
        Row("damage", 60, "60 mutations", L=1),
    ]
    assert [row.is_clean for row in rows] == [True, False]
    assert not Row("soak", 1, "", failures=["python -m torture --row soak"]).is_clean
    assert rows[0].line() == "kill storm: 2 runs, 11 kills; L 0  D 0  C 0  X 0  R 3; 4.4 s"
    assert (
        table(rows).splitlines()[2] == "| kill storm | 2 runs, 11 kills | 0 | 0 | 0 | 0 | 3 | 4 |"
    )


def test_parents_that_were_kept_apart_are_in_order(cooperated: Forged) -> None:
    assert letters(cooperated.check(claimed_ok=True)) == ""
    # The attempt of a parent that was killed may be open, and may be closed by anybody.
    cooperated.closing(B0, at=120.0, by="resume")
    cooperated.intent("rank-0001.a01", epoch=1, pid=12, at=121.0)
    # A program may be the parent of one epoch after the other.
    cooperated.parent(2, pid=11, at=112.0)
    assert letters(cooperated.check(claimed_ok=True)) == ""


def second_parent_of_an_epoch(forged: Forged) -> None:
    forged.parent(0, pid=13, at=92.0, named="0002")


def two_epochs_at_a_time(forged: Forged) -> None:
    forged.parent(2, pid=12, at=95.0)


def two_epochs_that_overlap(forged: Forged) -> None:
    forged.parent(2, pid=11, at=110.5)


def attempt_without_a_parent(forged: Forged) -> None:
    forged.intent("rank-0002.a00", epoch=7, pid=11, at=95.0)


def attempt_of_another_parent(forged: Forged) -> None:
    forged.intent("rank-0002.a00", epoch=1, pid=11, at=95.0)


def next_attempt_beside_an_open_one(forged: Forged) -> None:
    forged.intent("rank-0001.a01", epoch=1, pid=12, at=95.0)


def next_attempt_before_the_closing(forged: Forged) -> None:
    forged.intent("rank-0000.a01", epoch=1, pid=12, at=109.0)


def attempt_of_two_processes(forged: Forged) -> None:
    (forged.executions / f"{A0}.18").write_text("")


@pytest.mark.parametrize(
    "plant",
    [
        second_parent_of_an_epoch,
        two_epochs_at_a_time,
        two_epochs_that_overlap,
        attempt_without_a_parent,
        attempt_of_another_parent,
        next_attempt_beside_an_open_one,
        next_attempt_before_the_closing,
        attempt_of_two_processes,
    ],
)
def test_parents_and_attempts_that_were_not_kept_apart_are_double(
    cooperated: Forged, plant: Callable[[Forged], None]
) -> None:
    plant(cooperated)
    assert letters(cooperated.check()) == "D"


def open_attempt_of_an_ended_parent(forged: Forged) -> None:
    forged.end(1, at=200.0)


def attempt_closed_after_its_parents_end(forged: Forged) -> None:
    forged.closing(B0, at=201.0, by="parent")
    forged.end(1, at=200.0)


def end_without_a_parent(forged: Forged) -> None:
    forged.end(5, at=200.0)


@pytest.mark.parametrize(
    "plant",
    [open_attempt_of_an_ended_parent, attempt_closed_after_its_parents_end, end_without_a_parent],
)
def test_a_parent_that_has_not_seen_off_what_it_started_claims_falsely(
    cooperated: Forged, plant: Callable[[Forged], None]
) -> None:
    plant(cooperated)
    assert letters(cooperated.check()) == "X"


def test_a_parent_that_could_not_go_on_claims_nothing(cooperated: Forged) -> None:
    cooperated.end(1, at=200.0, how="failed")
    assert letters(cooperated.check()) == ""


def test_what_other_clocks_say_is_not_compared(cooperated: Forged) -> None:
    next_attempt_before_the_closing(cooperated)
    cooperated.began(3, A1, at=100.6, nonce="second")
    assert letters(cooperated.check()) == "D R"
    assert letters(cooperated.check(has_one_clock=False)) == ""


def test_records_that_the_test_destroyed_are_not_judged(cooperated: Forged) -> None:
    open_attempt_of_an_ended_parent(cooperated)
    assert letters(cooperated.check(unreadable_ok=True)) == ""
