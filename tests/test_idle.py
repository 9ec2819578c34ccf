"""What an attempt without work does: it waits for a word, and helps where nobody says anything."""

import threading
from pathlib import Path

import pytest
from helpers import names
from spooling import (
    A0,
    B0,
    begin,
    dead_process,
    finish,
    indices,
    intend,
    make_spool,
    say_idle,
    take,
    task,
    view_of,
)

from gpuspool.spool.closing import publish_closing
from gpuspool.spool.journal import JournalWriter, start_journal
from gpuspool.spool.layout import Layout
from gpuspool.spool.manifest import publish_manifest
from gpuspool.spool.publish import publish
from gpuspool.spool.records import Closing, Error, JournalLine
from gpuspool.spool.states import AttemptState, ErrorKind, LineState, Reason
from gpuspool.spool.view import load_run
from gpuspool.worker.drain import Drain
from gpuspool.worker.idle import HELPERS, Idling, Word
from gpuspool.worker.parent import Parent


class Scene:
    """An idle attempt whose parent, which is this process, seems to be gone: it is not ours."""

    def __init__(self, root: Path, *planned: int) -> None:
        self.layout = make_spool(root / "s", *planned)
        intent = intend(self.layout, A0)
        self.journal = begin(self.layout, A0)
        self.drain = Drain()
        run = load_run(self.layout)
        parent = Parent(intent, self.drain)
        self.idling = Idling(self.layout, run, intent, self.journal, self.drain, parent)


def live(layout: Layout, attempt: str, stop: int) -> JournalWriter:
    """An attempt that lives, as this process does; returns its journal after it claimed."""
    intend(layout, attempt)
    journal = begin(layout, attempt)
    take(layout, attempt, stop, number=1)
    return journal


def die(layout: Layout, attempt: str) -> None:
    """An attempt whose process, and whose parent's, are dead; it has claimed two tasks."""
    dead = dead_process()
    intend(layout, attempt, parent=dead)
    assert start_journal(layout, attempt, dead) is not None
    take(layout, attempt, 2)


def test_the_more_ranks_all_parents_have_the_fewer_of_them_read_the_spool_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path, 2)
    assert scene.idling._share_of_help() == 1
    for rank in range(128):
        intend(scene.layout, f"rank-{rank:04d}.a01")
    assert scene.idling._share_of_help() == 1, "without a parent each is alone"
    monkeypatch.setattr(scene.idling, "_is_nudged", lambda: True)
    n_ranks = 129
    assert scene.idling._share_of_help() == (n_ranks / HELPERS) ** 2


def test_the_word_that_all_is_finished_ends_the_wait(tmp_path: Path) -> None:
    scene = Scene(tmp_path, 2)
    publish(scene.layout.finished(0), b"")
    assert scene.idling.wait(1) is Word.FINISHED


def test_without_an_orchestrator_nobody_waits_for_tasks_that_only_one_can_rule_about(
    tmp_path: Path,
) -> None:
    scene = Scene(tmp_path, 2)
    take(scene.layout, A0, 2)
    finish(scene.journal, 0)
    error = Error(kind=ErrorKind.EXCEPTION, type="ValueError", message="no")
    held = JournalLine(task=1, round=0, state=LineState.HELD, error=error, line=task(1))
    scene.journal.append(held)
    assert scene.idling.wait(1) is Word.NOBODY_RULES


def test_a_drain_ends_the_wait(tmp_path: Path) -> None:
    scene = Scene(tmp_path, 2)
    take(scene.layout, A0, 2)
    timer = threading.Timer(0.05, scene.drain.request)
    timer.start()
    assert scene.idling.wait(1) is Word.DRAINED
    timer.join()


def test_another_manifest_ends_the_wait(tmp_path: Path) -> None:
    scene = Scene(tmp_path, 2)
    timer = threading.Timer(0.1, lambda: publish_manifest(scene.layout, "retry-01", []))
    timer.start()
    assert scene.idling.wait(1) is Word.NEW_MANIFEST
    timer.join()


def test_without_a_word_an_attempt_finds_out_itself_that_all_is_finished(tmp_path: Path) -> None:
    scene = Scene(tmp_path, 2)
    take(scene.layout, A0, 2)
    finish(scene.journal, 0, 1)
    assert scene.idling.wait(1) is Word.FINISHED


def test_without_a_word_an_attempt_finds_out_that_it_was_closed(tmp_path: Path) -> None:
    scene = Scene(tmp_path, 2)
    closing = Closing(attempt=A0, state=AttemptState.FAILED, reason=Reason.LOST, by="test")
    assert publish_closing(scene.layout, closing, [])
    assert scene.idling.wait(1) is Word.CLOSED


def test_without_a_word_an_attempt_finds_positions_that_nobody_claimed(tmp_path: Path) -> None:
    scene = Scene(tmp_path, 2)
    take(scene.layout, A0, 1)
    assert scene.idling.wait(1) is Word.OVERLOOKED


def test_a_claim_that_was_lost_offers_nothing_if_what_it_held_is_finished(tmp_path: Path) -> None:
    """A power cut takes back claims, and of journals at most the last second."""
    scene = Scene(tmp_path, 3)
    for stop in (1, 2, 3):
        take(scene.layout, A0, stop)
    finish(scene.journal, 1)
    scene.layout.claim("rank-0000", 1).unlink()
    view = view_of(scene.layout)
    assert view.unclaimed == 2
    assert list(view.chains["rank-0000"].uncovered()) == [1]
    assert scene.idling._help() is not Word.OVERLOOKED
    scene.layout.claim("rank-0000", 2).unlink()
    assert scene.idling._help() is Word.OVERLOOKED


def test_without_a_word_an_attempt_closes_the_dead_and_their_tasks_come_back(
    tmp_path: Path,
) -> None:
    scene = Scene(tmp_path, 2)
    die(scene.layout, B0)
    assert scene.idling.wait(1) is Word.NEW_MANIFEST
    assert names(scene.layout.root / "failed") == [f"{B0}.json"]
    view = view_of(scene.layout)
    assert indices(view.manifests[f"{B0}.orphans"].tasks()) == [0, 1]
    assert view.closed[B0].by == A0


def test_without_a_parent_also_who_may_try_none_of_what_is_left_closes_the_dead(
    tmp_path: Path,
) -> None:
    scene = Scene(tmp_path, 2, 1)
    die(scene.layout, B0)
    assert view_of(scene.layout).unclaimed == 1
    assert scene.idling.wait(1, leaves_doubtful=True) is Word.NEW_MANIFEST
    assert view_of(scene.layout).closed[B0].by == A0
    assert scene.idling.wait(1, leaves_doubtful=True) is Word.OTHERS_HAD_TIME


def test_who_shall_make_room_for_a_fresh_process_waits_for_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path, 1, 1)
    monkeypatch.setattr("gpuspool.worker.idle.time.sleep", pytest.fail)
    assert scene.idling.wait(1, leaves_doubtful=True, needs_fresh=True) is Word.OTHERS_HAD_TIME


def test_without_a_word_an_attempt_publishes_stranded_tasks_again(tmp_path: Path) -> None:
    scene = Scene(tmp_path, 2)
    take(scene.layout, A0, 2)
    finish(scene.journal, 0)
    assert scene.idling.wait(1) is Word.NEW_MANIFEST
    assert indices(view_of(scene.layout).manifests["sweep-01"].tasks()) == [1]


def test_a_journal_that_broke_ends_the_wait(tmp_path: Path) -> None:
    scene = Scene(tmp_path, 2)
    take(scene.layout, A0, 2)
    broken = OSError(5, "broken")
    scene.journal._broken = broken
    with pytest.raises(OSError, match="broken"):
        scene.idling.wait(1)


def test_two_idle_attempts_that_each_hold_a_claim_they_do_not_know_finish_the_run(
    tmp_path: Path,
) -> None:
    """Each link(2) was carried out and told as an error, so nobody runs what the claims hold.

    What the first of them gave out again was claimed like that by the other.
    """
    scene = Scene(tmp_path, 4)
    take(scene.layout, A0, 2, number=1)
    other = live(scene.layout, B0, 4)
    publish_manifest(scene.layout, "sweep-01", [task(0), task(1)])
    take(scene.layout, B0, 2, "sweep-01", number=2)
    say_idle(other, 2)
    assert scene.idling.wait(1) is Word.NEW_MANIFEST
    assert indices(view_of(scene.layout).manifests["sweep-02"].tasks()) == [0, 1, 2, 3]


def test_what_another_attempt_has_in_hand_is_not_given_out_again(tmp_path: Path) -> None:
    scene = Scene(tmp_path, 4)
    take(scene.layout, A0, 2, number=1)
    other = live(scene.layout, B0, 3)
    say_idle(other, 1)
    take(scene.layout, B0, 4, number=2)
    assert scene.idling.wait(1) is Word.NEW_MANIFEST
    assert indices(view_of(scene.layout).manifests["sweep-01"].tasks()) == [0, 1, 2]


def test_an_attempt_says_once_for_all_its_claims_that_it_is_idle(tmp_path: Path) -> None:
    scene = Scene(tmp_path, 2)
    publish(scene.layout.finished(0), b"")
    for claims in (0, 3, 3, 4):
        assert scene.idling.wait(claims) is Word.FINISHED
    lines = scene.layout.journal(A0).read_bytes().splitlines()
    assert [line.count(b'"state":"idle"') for line in lines] == [0, 1, 1, 1]
