"""How much of the spool a look of one parent reads: the gatherer everything, the others little."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from spooling import (
    A0,
    B0,
    admit,
    intend,
    living_process,
    make_spool,
    say_ended,
    task,
    view_of,
    watch_opens,
)

from gpuspool.orchestrator.supervise.company import Company
from gpuspool.orchestrator.supervise.drain import ASKED, order_drain
from gpuspool.orchestrator.supervise.scope import LIGHT_S, Scope
from gpuspool.spool.codec import encode
from gpuspool.spool.identity import myself
from gpuspool.spool.layout import Layout
from gpuspool.spool.liveness import FailureDetector
from gpuspool.spool.manifest import publish_manifest
from gpuspool.spool.publish import publish, replace
from gpuspool.spool.records import Heartbeat, Identity
from gpuspool.spool.states import Phase
from gpuspool.spool.view import View, read_control

LEASE_S = 120.0
THEIRS = 2
OURS = 4


class Look:
    """A parent beside an older one, which gathers."""

    def __init__(self, layout: Layout, monkeypatch: pytest.MonkeyPatch, **known: bool) -> None:
        self.now = 1000.0
        clock = SimpleNamespace(monotonic=lambda: self.now)
        monkeypatch.setattr("gpuspool.orchestrator.supervise.scope.time", clock)
        self.layout = layout
        self.view: View = view_of(layout)
        self.company = Company(self.view.layout, FailureDetector(self.view), OURS)
        self.company.look()
        self.children = [A0]
        is_watched, is_timed = known.get("is_watched", False), known.get("is_timed", False)
        self._scope = Scope(
            self.view,
            self.company,
            lambda: self.children,
            is_watched=is_watched,
            is_timed=is_timed,
            lease_s=LEASE_S,
        )

    def is_full_look_due(self, has_ended: bool = False, is_draining: bool = False) -> bool:
        self.company.glance()
        return self._scope.is_full_look_due(read_control(self.layout), has_ended, is_draining)

    def read(self, has_free_slot: bool = False, wake_at: float | None = None) -> None:
        """Read all."""
        self.view.refresh()
        self._scope.note_full_look(read_control(self.layout), has_free_slot, wake_at)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return make_spool(tmp_path / "s", 4)


@pytest.fixture
def gatherer(layout: Layout) -> Iterator[Identity]:
    with living_process() as who:
        admit(layout, THEIRS, who)
        yield who


@pytest.fixture
def look(layout: Layout, gatherer: Identity, monkeypatch: pytest.MonkeyPatch) -> Look:
    """That of a parent which has read everything once."""
    one = Look(layout, monkeypatch)
    one.read()
    return one


def test_the_first_look_reads_all(
    layout: Layout, gatherer: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Look(layout, monkeypatch)
    assert look.is_full_look_due()
    look.read()
    assert not look.is_full_look_due()


def test_a_light_look_opens_no_file(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    look.children = []
    for number in range(50):
        intend(look.layout, f"rank-{number:04d}.a00")
    opened = watch_opens(monkeypatch)
    assert not look.is_full_look_due()
    assert set(opened) == {str(look.layout.control)}


def test_the_gatherer_reads_all_at_each_look(look: Look) -> None:
    say_ended(look.layout, THEIRS)
    look.company.look()
    for _ in range(3):
        assert look.is_full_look_due()
        look.read()


def test_who_is_watched_at_a_terminal_reads_all_at_each_look(
    layout: Layout, gatherer: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Look(layout, monkeypatch, is_watched=True)
    look.read()
    assert look.is_full_look_due()


def test_the_end_of_a_child_and_a_drain_are_seen_to(look: Look) -> None:
    assert look.is_full_look_due(has_ended=True)
    assert look.is_full_look_due(is_draining=True)
    assert not look.is_full_look_due()


@pytest.mark.parametrize("word", ["drain", "finished", "leave"])
def test_a_new_word_in_control_is_seen_to_once(look: Look, word: str) -> None:
    publish(getattr(look.layout, word)(THEIRS), b"")
    assert look.is_full_look_due()
    look.read()
    assert not look.is_full_look_due()


def test_an_order_that_was_there_before_is_none(
    layout: Layout, gatherer: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert order_drain(layout, 1, ASKED)
    look = Look(layout, monkeypatch)
    look.read()
    assert not look.is_full_look_due()


def test_the_loss_of_a_neighbour_is_seen_to(look: Look) -> None:
    """What it has started may have to be adopted here."""
    with living_process() as other:
        admit(look.layout, 3, other)
        look.company.look()
        assert not look.is_full_look_due()
    assert look.is_full_look_due()
    look.read()
    assert not look.is_full_look_due()


def test_what_is_due_by_the_clock_is_seen_to(look: Look) -> None:
    look.read(wake_at=look.now + 5)
    assert not look.is_full_look_due()
    look.now += 5
    assert look.is_full_look_due()
    look.read()
    look.now += 1000
    assert not look.is_full_look_due()


def test_limits_of_time_are_seen_to_as_often_as_a_light_look(
    layout: Layout, gatherer: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Look(layout, monkeypatch, is_timed=True)
    look.read()
    assert not look.is_full_look_due()
    look.now += LIGHT_S
    assert look.is_full_look_due()


# New tasks.


def test_whoever_has_a_free_slot_sees_to_a_new_manifest(look: Look) -> None:
    look.read(has_free_slot=True)
    assert not look.is_full_look_due()
    assert publish_manifest(look.layout, "sweep-01", [task(0)])
    assert look.is_full_look_due()
    look.read(has_free_slot=True)
    assert not look.is_full_look_due()


def test_whoever_has_none_leaves_new_manifests_to_its_children(look: Look) -> None:
    assert publish_manifest(look.layout, "sweep-01", [task(0)])
    assert not look.is_full_look_due()


def test_a_manifest_that_comes_while_all_is_read_is_not_overlooked(look: Look) -> None:
    """It came behind the reading of manifests: what there is to do is not done yet."""
    look.view.refresh()
    assert publish_manifest(look.layout, "sweep-01", [task(0)])
    look._scope.note_full_look(read_control(look.layout), True, None)
    assert look.is_full_look_due()


def test_files_that_are_no_manifests_are_none(look: Look) -> None:
    look.read(has_free_slot=True)
    for name in (".sweep-01.jsonl", "notes.jsonl", "sweep-01"):
        (look.layout.manifests / name).touch()
    assert not look.is_full_look_due()


# Children that wait.


def beat(layout: Layout, attempt: str, state: Phase) -> None:
    record = Heartbeat(
        **msgspec.structs.asdict(myself()),
        attempt=attempt,
        beat=1,
        parent="1",
        device="",
        state=state,
        at=1.0,
        job_sha256="",
    )
    replace(layout.heartbeat(attempt), encode(record))


def seconds_until_all_is_read(look: Look, most_s: float) -> float | None:
    """After how many seconds a look reads all, None if none does in so many."""
    began = look.now
    while look.now - began < most_s:
        look.now += LIGHT_S
        if look.is_full_look_due():
            return look.now - began
    return None


def test_children_that_wait_for_a_lease_let_their_parent_read_all_once_in_each(look: Look) -> None:
    """Somebody may have died who holds what they wait for, and nobody may see it."""
    look.children = [A0, B0]
    for attempt in look.children:
        beat(look.layout, attempt, Phase.IDLE)
    for _ in range(3):
        waited_s = seconds_until_all_is_read(look, 3 * LEASE_S)
        assert waited_s is not None
        assert waited_s >= LEASE_S
        look.read()


@pytest.mark.parametrize("state", [Phase.RUNNING, Phase.LOADING, None])
def test_as_long_as_one_child_is_at_work_nobody_waits_for_the_dead(
    look: Look, state: Phase | None
) -> None:
    look.children = [A0, B0]
    beat(look.layout, A0, Phase.IDLE)
    if state is not None:
        beat(look.layout, B0, state)
    assert seconds_until_all_is_read(look, 5 * LEASE_S) is None


def test_light_naps_are_spread_so_that_parents_do_not_look_at_once(look: Look) -> None:
    naps = {look._scope.light_nap_s() for _ in range(100)}
    assert len(naps) > 90
    assert 0.5 * LIGHT_S < min(naps) < LIGHT_S < max(naps) < 1.5 * LIGHT_S
