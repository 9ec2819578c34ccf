"""Rulings: what becomes of tasks that failed without a verdict, on spools made by hand."""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import wait_until
from spooling import (
    A0,
    A1,
    B0,
    C0,
    begin,
    close,
    finish,
    indices,
    intend,
    make_spool,
    take,
    task,
    verdicts,
    view_of,
)

from gpuspool.orchestrator.supervise.opinions import (
    EXCUSED_AT_ONCE,
    EXCUSED_FOR_EACH,
    NEWS_S,
    unproved_pause_s,
)
from gpuspool.orchestrator.supervise.rulings import Judge
from gpuspool.spool.death import Crashed, Death, TimedOut, Witness
from gpuspool.spool.identity import myself
from gpuspool.spool.journal import JournalWriter
from gpuspool.spool.layout import Layout, attempt_name
from gpuspool.spool.mending import mend_claims
from gpuspool.spool.records import Error, JournalLine, place_name
from gpuspool.spool.states import ErrorKind, LineState
from gpuspool.spool.sweep import stranded_tasks, sweep
from gpuspool.spool.view import View

# The device of every intent that `spooling` publishes.
DEVICE = place_name(myself().host, "", "0")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return make_spool(tmp_path / "s", 8)


def attempt(layout: Layout, name: str, stop: int, manifest: str = "rank-0000") -> JournalWriter:
    """An open attempt that claimed up to `stop`; returns its journal."""
    intend(layout, name)
    journal = begin(layout, name)
    take(layout, name, stop, manifest)
    return journal


def hold(
    journal: JournalWriter,
    index: int,
    word: str = "no",
    round_: int = 0,
    kind: ErrorKind = ErrorKind.EXCEPTION,
    signal: str = "",
) -> None:
    """A task fails: its attempt lets go of it without a verdict."""
    error = Error(kind=kind, type="ValueError", message=word, signal=signal)
    line = task(index, round=round_)
    journal.append(
        JournalLine(task=index, round=round_, state=LineState.HELD, error=error, line=line)
    )


def rule(view: View, epoch: int = 0) -> list[int]:
    """Rule about what can be ruled now; returns the tasks that fail by it."""
    judge = Judge(view.refresh(), epoch, max_crashes=2)
    if not judge.look(frozenset({DEVICE}), frozenset(), is_somebody_free=True):
        return []
    return [failure.task for failure in judge.publish()]


def test_a_failure_waits_until_its_process_has_shown_what_it_is_worth(layout: Layout) -> None:
    journal = attempt(layout, A0, 4)
    hold(journal, 1)
    view = view_of(layout)
    assert rule(view) == []
    assert view.rulings == {}, "it may complete another task"
    finish(journal, 2)
    assert rule(view) == []
    [ruling] = view.rulings
    [again] = view.manifests[ruling].tasks()
    assert again == task(1, failed_in=((A0, DEVICE),))
    assert view.unruled() == []


def test_a_task_fails_by_the_ruling_that_knows_of_two_proved_failures(layout: Layout) -> None:
    """The link of the ruling is the verdict, and the copy for people follows."""
    first = attempt(layout, A0, 4)
    hold(first, 1, "first")
    finish(first, 2)
    view = view_of(layout)
    rule(view)
    second = attempt(layout, B0, 1, "ruling-01")
    hold(second, 1, "second")
    take(layout, B0, 5)
    finish(second, 4)
    assert verdicts(view.refresh()) == "--c-c---"
    assert rule(view) == [1]
    assert verdicts(view) == "-fc-c---"
    [failure] = view.rulings["ruling-02"].failures
    assert failure.error.message == "second"
    assert failure.error.attempts == [A0, B0]
    assert failure.error.tries == 2
    record = json.loads(layout.failed_task("t1").read_bytes())
    assert record["error"]["message"] == "second"


def test_what_failed_without_a_verdict_is_neither_stranded_nor_an_orphan(layout: Layout) -> None:
    journal = attempt(layout, A0, 8)
    hold(journal, 1)
    finish(journal, 0)
    view = view_of(layout)
    assert stranded_tasks(view) == []
    close(view, A0)
    left = {line.task for line in view.refresh().manifests[f"{A0}.orphans"].tasks()}
    assert left == {2, 3, 4, 5, 6, 7}
    assert view.unruled() == [(1, 0)]


def test_a_task_that_was_ruled_is_swept_if_the_claim_on_it_is_lost(layout: Layout) -> None:
    """The attempt in which it failed lives on, and still holds a claim on its first line."""
    first = attempt(layout, A0, 8)
    hold(first, 1)
    finish(first, 0)
    view = view_of(layout)
    rule(view)
    attempt(layout, B0, 1, "ruling-01")
    close(view.refresh(), B0)
    layout.orphans(B0).write_bytes(layout.orphans(B0).read_bytes().partition(b"\n")[0] + b"\n")
    assert [line.task for line in stranded_tasks(view_of(layout))] == [1]


def test_a_crash_is_an_opinion_and_the_task_runs_alone_from_then_on(layout: Layout) -> None:
    journal = attempt(layout, A0, 4)
    journal.append(JournalLine(task=1, round=0, state=LineState.STARTED))
    view = view_of(layout)
    close(view, A0, witness=Witness(-11, max_crashes=2))
    assert view.refresh().unruled() == [(1, 0)]
    assert rule(view) == []
    assert view.rulings == {}, "a later process of this rank may show whether the rank is in order"
    later = attempt_name(0, 1)
    finish(attempt(layout, later, 8), 5)
    rule(view)
    [again] = view.manifests["ruling-01"].tasks()
    assert again.careful
    assert again.failed_in == ((A0, DEVICE),)


def test_a_rank_that_another_place_has_got_proves_nothing_of_the_first(layout: Layout) -> None:
    """The first parent has gone, and with it the place where the task took its process along."""
    journal = attempt(layout, A0, 4)
    journal.append(JournalLine(task=1, round=0, state=LineState.STARTED))
    view = view_of(layout)
    close(view, A0, witness=Witness(-11, max_crashes=2))
    intend(layout, A1, epoch=1, device="another")
    journal = begin(layout, A1)
    take(layout, A1, 8)
    finish(journal, 5)
    assert rule(view) == []
    assert view.unruled() == [], "it is not waited for what can never come"
    journal = attempt(layout, B0, 1, "ruling-01")
    hold(journal, 1)
    take(layout, B0, 2, f"{A0}.orphans")
    finish(journal, 2)
    assert rule(view) == [], "only one place has confirmed it"


def test_what_no_place_can_prove_just_now_is_tried_ever_more_seldom(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that is left is bad, but for a long task in hand: each try costs a fresh process."""
    now = [1000.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], time=time.time)
    monkeypatch.setattr("gpuspool.orchestrator.supervise.rulings.time", clock)
    attempt(layout, attempt_name(9, 0), 8)
    for rank in range(6):
        name = attempt_name(rank, 0)
        intend(layout, name)
        hold(begin(layout, name), 1)
        close(view_of(layout), name)
    judge = Judge(view_of(layout), 0, max_crashes=2)

    def is_due(is_somebody_free: bool) -> bool:
        judge.look(frozenset({DEVICE}), frozenset(), is_somebody_free)
        return bool(judge._findings)

    assert is_due(is_somebody_free=False), "where others complete tasks, a place may be proved"
    assert not is_due(is_somebody_free=True)
    now[0] += unproved_pause_s(6) - 0.1
    assert not is_due(is_somebody_free=True)
    now[0] += 0.2
    assert is_due(is_somebody_free=True)
    pauses = [unproved_pause_s(opinions) for opinions in (2, 3, 4, 5, 20)]
    assert pauses == [0.0, 1.0, 2.0, 4.0, NEWS_S]


def test_what_failed_before_this_start_is_no_late_opinion(layout: Layout) -> None:
    """A job was broken, and was fixed: its tasks must be tried before they fail."""
    everything = 8
    for number in range(2):
        name = attempt_name(0, number)
        intend(layout, name)
        journal = begin(layout, name)
        if number == 0:
            take(layout, name, everything)
        for index in range(everything):
            hold(journal, index)
        close(view_of(layout), name)
    view = view_of(layout)
    assert rule(view, epoch=1) == []
    assert len(view.manifests["ruling-01"]) == everything, "each is tried again"


def test_after_a_power_cut_a_task_that_was_ruled_is_offered_once(layout: Layout) -> None:
    """The cut took the claims back, and left the journal: what failed there was claimed there."""
    journal = attempt(layout, A0, 4)
    hold(journal, 3)
    finish(journal, 0, 1, 2)
    view = view_of(layout)
    close(view, A0)
    rule(view)
    layout.claim("rank-0000", 0).unlink()
    view = view_of(layout)
    assert view.chains["rank-0000"].next == 0
    mend_claims(view)
    sweep(view)
    offered: list[int] = []
    for name, chain in view_of(layout).chains.items():
        offered += indices(view.manifests[name].tasks(chain.next))
    assert sorted(offered) == [3, 4, 5, 6, 7]


def test_a_process_that_broke_by_use_is_known_by_a_task_that_completes_elsewhere(
    layout: Layout,
) -> None:
    """It completed one task, and failed the next; nothing is known of it yet."""
    first = attempt(layout, A0, 4)
    finish(first, 0)
    hold(first, 1)
    hold(first, 2)
    close(view_of(layout), A0)
    view = view_of(layout)
    judge = Judge(view, 0, max_crashes=2)
    judge.look(frozenset({DEVICE}), frozenset(), is_somebody_free=True)
    judge.publish()
    assert not judge.do_processes_break
    second = attempt(layout, B0, 1, "ruling-01")
    finish(second, 1)
    view.refresh()
    judge.look(frozenset({DEVICE}), frozenset(), is_somebody_free=True)
    assert judge.do_processes_break


def test_only_time_tells_where_the_one_proof_is_of_a_process_that_had_just_broken(
    layout: Layout,
) -> None:
    """Its place completed others afterwards, but by a fresh process; an outage may be on."""
    first = attempt(layout, A0, 3)
    finish(first, 0)
    hold(first, 1)
    first.append(JournalLine(task=2, round=0, state=LineState.STARTED))
    close(view_of(layout), A0, witness=Witness(-11, max_crashes=2))
    finish(attempt(layout, A1, 8), 1, 3, 4, 5, 6, 7)
    view = view_of(layout)
    judge = Judge(view, 0, max_crashes=2)
    place = frozenset({DEVICE})
    assert judge.look(place, frozenset(), is_somebody_free=True)
    assert judge.is_last
    assert judge.do_processes_break
    for number, name in enumerate((B0, C0), start=1):
        judge.publish()
        hold(attempt(layout, name, 1, f"ruling-{number:02}"), 2)
        view.refresh()
        is_ruled = judge.look(place, frozenset(), is_somebody_free=True)
        assert is_ruled == (name == B0)
    assert judge.old_in_s > 0, "it will fail later, if nothing completes until then"


def test_a_task_is_told_to_have_failed_as_it_did_where_others_complete(layout: Layout) -> None:
    """What a place says of it that completes nothing is true by chance."""
    first = attempt(layout, A0, 8)
    hold(first, 1, "the task's own")
    finish(first, 0, 2, 3, 4, 5, 6, 7)
    view = view_of(layout)
    rule(view)
    hold(attempt(layout, B0, 1, "ruling-01"), 1, "a sick device's")
    assert rule(view) == [1]
    [failure] = view.rulings["ruling-02"].failures
    assert failure.error.message == "the task's own"
    assert failure.error.rank == 0
    assert failure.error.attempts == [A0, B0]
    assert failure.error.attempt == A0
    assert json.loads(layout.failed_task("t1").read_bytes())["attempt"] == A0


def test_a_task_goes_to_others_at_once_if_its_rank_waits_for_what_they_make_of_it(
    layout: Layout,
) -> None:
    """Else the ruling waits for the rank to prove itself, and the rank for the ruling."""
    journal = attempt(layout, A0, 2)
    journal.append(JournalLine(task=1, round=0, state=LineState.STARTED))
    close(view_of(layout), A0, witness=Witness(-11, max_crashes=2))
    judge = Judge(view_of(layout), 0, max_crashes=2)
    place = frozenset({DEVICE})
    assert not judge.look(place, frozenset(), True), "the rank's next process may prove itself"
    assert judge.look(place, frozenset(), True, without_news=frozenset({0}))
    judge.publish()
    [again] = view_of(layout).manifests["ruling-01"].tasks()
    assert again.task == 1


def test_what_broke_after_it_had_completed_tasks_is_known_from_a_fresh_view_too(
    layout: Layout,
) -> None:
    """The closing that tells of a crash is read before the journal that tells what came before."""
    journal = attempt(layout, A0, 4)
    finish(journal, 0)
    journal.append(JournalLine(task=1, round=0, state=LineState.STARTED))
    close(view_of(layout), A0, witness=Witness(-11, max_crashes=2))
    finish(attempt(layout, B0, 8), 1)
    judge = Judge(view_of(layout), 0, max_crashes=2)
    judge.look(frozenset({DEVICE}), frozenset(), is_somebody_free=True)
    assert judge.do_processes_break


def test_a_failure_whose_line_is_gone_is_ruled_about_once(layout: Layout) -> None:
    """The journal was damaged after it was read: a manifest still describes the task."""
    journal = attempt(layout, A0, 4)
    hold(journal, 1)
    finish(journal, 0)
    view = view_of(layout)
    layout.journal(A0).write_bytes(b"")
    judge = Judge(view, 0, max_crashes=2)
    assert judge.look(frozenset({DEVICE}), frozenset(), is_somebody_free=True)
    assert judge.publish() == []
    assert indices(view.manifests["ruling-01"].tasks()) == [1]
    assert not judge.look(frozenset({DEVICE}), frozenset(), is_somebody_free=True)


@pytest.mark.parametrize(
    ("death", "failed"),
    [(TimedOut("stacks"), [1]), (Crashed(Witness(-11, max_crashes=5)), [])],
    ids=["time-out", "crash"],
)
def test_more_crashes_may_be_allowed_and_two_time_outs_are_enough(
    layout: Layout, death: Death, failed: list[int]
) -> None:
    judge = Judge(view_of(layout), 0, max_crashes=5)
    for rank, manifest, stop in ((0, "rank-0000", 2), (1, "ruling-01", 1)):
        name = attempt_name(rank, 0)
        journal = attempt(layout, name, stop, manifest)
        journal.append(JournalLine(task=1, round=0, state=LineState.STARTED))
        view = view_of(layout)
        close(view, name, death=death)
        finish(attempt(layout, attempt_name(rank, 1), 3 + rank), 2 + rank)
        judge = Judge(view.refresh(), 0, max_crashes=5)
        assert judge.look(frozenset({DEVICE}), frozenset(), is_somebody_free=True)
        if rank == 0:
            judge.publish()
    assert [failure.task for failure in judge.publish()] == failed


def test_what_a_file_system_in_trouble_kept_from_running_is_no_opinion(layout: Layout) -> None:
    """Neither by itself, however often, nor beside the one opinion that there is."""
    first = attempt(layout, A0, 4)
    hold(first, 1, kind=ErrorKind.IO)
    finish(first, 2)
    second = attempt(layout, B0, 8)
    hold(second, 1, kind=ErrorKind.IO)
    finish(second, 5)
    view = view_of(layout)
    judge = Judge(view, 0, max_crashes=2)
    assert not judge.look(frozenset({DEVICE}), frozenset(), is_somebody_free=True), "it waits"
    assert judge.excused == [(1, 0)]
    is_ruled = wait_until(
        lambda: judge.look(frozenset({DEVICE}), frozenset(), is_somebody_free=True)
    )
    assert is_ruled
    assert judge.publish() == []
    [ruling] = view.refresh().rulings
    [again] = view.manifests[ruling].tasks()
    assert again.failed_in == ((A0, ""), (B0, ""))
    hold(first, 1)
    finish(first, 3)
    assert rule(view) == [], "one opinion is not enough"
    hold(second, 1)
    finish(second, 6)
    assert rule(view) == [1]


def test_of_many_that_wait_for_a_file_system_few_are_tried_until_one_completes(
    tmp_path: Path,
) -> None:
    """Each try leaves files behind, and a mount may be away for hours."""
    layout = make_spool(tmp_path / "s", 100)
    journal = attempt(layout, A0, 100)
    for index in range(90):
        hold(journal, index, kind=ErrorKind.IO)
    finish(journal, 90)
    view = view_of(layout)
    judge = Judge(view, 0, max_crashes=2)

    def tried() -> list[int]:
        """What is to be tried again by one ruling."""
        wait_until(lambda: judge.look(frozenset({DEVICE}), frozenset(), is_somebody_free=True))
        judge.publish()
        newest = list(view.refresh().rulings)[-1]
        return [line.task for line in view.manifests[newest].tasks()]

    first = tried()
    assert len(first) == EXCUSED_AT_ONCE
    second = attempt(layout, B0, len(first), "ruling-01")
    finish(second, *first)
    view.refresh()
    again = tried()
    assert len(again) >= len(first) * EXCUSED_FOR_EACH
    assert not set(again) & set(first)


@pytest.mark.parametrize(("signal", "failed"), [("SIGKILL", []), ("SIGSEGV", [1])])
def test_commands_that_somebody_killed_count_as_workers_do_that_somebody_killed(
    layout: Layout, signal: str, failed: list[int]
) -> None:
    for name, stop, done in ((A0, 4, 2), (B0, 8, 5)):
        journal = attempt(layout, name, stop)
        hold(journal, 1, kind=ErrorKind.EXIT, signal=signal)
        finish(journal, done)
    judge = Judge(view_of(layout), 0, max_crashes=3)
    assert judge.look(frozenset({DEVICE}), frozenset(), is_somebody_free=True)
    assert [failure.task for failure in judge.publish()] == failed


@pytest.mark.parametrize("kind", [ErrorKind.GPU_OOM, ErrorKind.HOST_OOM])
def test_a_task_is_too_large_once_a_fresh_process_had_no_memory_for_it(
    layout: Layout, kind: ErrorKind
) -> None:
    """What two processes had left after other tasks is no measure."""
    first, second = attempt(layout, A0, 3), attempt(layout, B0, 6)
    finish(first, 0)
    hold(first, 1, kind=kind)
    finish(first, 2)
    view = view_of(layout)
    rule(view)
    finish(second, 3)
    take(layout, B0, 1, "ruling-01")
    hold(second, 1, kind=kind)
    finish(second, 4, 5)
    assert rule(view) == []
    fresh = attempt(layout, attempt_name(2, 0), 1, "ruling-02")
    hold(fresh, 1, kind=kind)
    take(layout, attempt_name(2, 0), 8)
    finish(fresh, 6)
    assert rule(view) == [1]
