"""The other parents of a run as one of them sees them, and who does what one of all has to do."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
from spooling import (
    A0,
    admit,
    dead_process,
    elsewhere,
    intend,
    living_process,
    make_spool,
    say_ended,
    view_of,
    watch_opens,
)

from gpuspool.orchestrator.supervise.company import Company
from gpuspool.spool.layout import Layout, epoch_name
from gpuspool.spool.liveness import LOOKS_A_LEASE, PARENT_LOOKS_A_LEASE, FailureDetector
from gpuspool.spool.parents import LOST
from gpuspool.spool.records import Identity
from gpuspool.spool.states import Life

LEASE_S = 120.0
OURS = 4


class Clock:
    """The clock by which leases are counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        clock = SimpleNamespace(monotonic=lambda: self.now)
        monkeypatch.setattr("gpuspool.spool.liveness.time", clock)

    def let_a_lease_pass(self, look: Callable[[], object]) -> None:
        for _ in range(LOOKS_A_LEASE + 2):
            self.now += LEASE_S / LOOKS_A_LEASE
            look()


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return make_spool(tmp_path / "s", 4)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def living() -> Iterator[Callable[[], Identity]]:
    """Makes processes that live as long as the test."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(living_process())


def company_of(layout: Layout, epoch: int = OURS) -> Company:
    return Company(layout, FailureDetector(view_of(layout), LEASE_S), epoch)


def looked(company: Company) -> Company:
    company.look()
    return company


def test_before_the_first_look_a_parent_is_alone(layout: Layout) -> None:
    company = company_of(layout)
    assert company.is_alone
    assert company.is_gatherer
    assert company.newest == OURS


def test_of_all_parents_that_may_be_alive_the_oldest_gathers(
    layout: Layout, living: Callable[[], Identity]
) -> None:
    for epoch in (0, 2, OURS, 6):
        admit(layout, epoch, living())
    gatherers = [
        epoch for epoch in (0, 2, OURS, 6) if looked(company_of(layout, epoch)).is_gatherer
    ]
    assert gatherers == [0]
    company = looked(company_of(layout))
    assert (company.others, company.newest, company.is_alone) == ([0, 2, 6], 6, False)
    say_ended(layout, 0)
    assert not looked(company).is_gatherer
    say_ended(layout, 2)
    assert looked(company).is_gatherer
    assert not company.is_alone
    say_ended(layout, 6)
    assert looked(company).is_alone
    assert company.newest == 6


def test_who_was_killed_here_gathers_no_more(layout: Layout) -> None:
    admit(layout, 0, dead_process())
    company = looked(company_of(layout))
    assert company.is_gatherer
    assert company.is_alone


def test_who_is_elsewhere_gathers_as_long_as_its_beat_has_not_stood_still_for_a_lease(
    layout: Layout, clock: Clock
) -> None:
    admit(layout, 0, elsewhere())
    company = company_of(layout)
    company.look()
    beats = iter(range(1000))

    def look_while_it_beats() -> None:
        layout.beat(epoch_name(0), next(beats)).touch()
        company.look()
        assert not company.is_gatherer

    clock.let_a_lease_pass(look_while_it_beats)
    clock.let_a_lease_pass(company.look)
    assert company.is_gatherer
    assert company.is_alone
    layout.beat(epoch_name(0), next(beats)).touch()
    company.look()
    assert company.is_gatherer, "who was proved dead once is not judged again"


def test_who_is_quiet_for_half_a_lease_is_named_once_until_it_beats(
    layout: Layout, clock: Clock
) -> None:
    admit(layout, 6, elsewhere())
    company = company_of(layout)
    company.look()
    named: list[int] = []

    def look() -> None:
        company.look()
        named.extend(quiet.epoch for quiet in company.newly_quiet())
        if named:
            # Time stands still from then on, so that the lease does not end.
            clock.now -= LEASE_S / LOOKS_A_LEASE

    for number in range(2):
        layout.beat(epoch_name(6), number).touch()
        look()
        assert named == [], "it has just beaten"
        clock.let_a_lease_pass(look)
        assert named == [6]
        assert company.others == [6], "half a lease proves nothing"
        named.clear()


def test_who_lives_here_and_does_nothing_is_no_gatherer(
    layout: Layout, clock: Clock, living: Callable[[], Identity]
) -> None:
    """As one that was stopped by Ctrl-Z: what it has started is still its own."""
    admit(layout, 0, living())
    layout.beat(epoch_name(0), 7).touch()
    company = company_of(layout)
    assert not looked(company).is_gatherer
    clock.let_a_lease_pass(company.look)
    assert company.is_gatherer
    assert company.others == [0]
    layout.beat(epoch_name(0), 7).rename(layout.beat(epoch_name(0), 8))
    clock.now += LEASE_S / LOOKS_A_LEASE
    assert not looked(company).is_gatherer, "it goes on"


def test_who_was_taken_for_dead_and_is_there_takes_that_back(
    layout: Layout, living: Callable[[], Identity]
) -> None:
    admit(layout, 0, living())
    admit(layout, OURS, elsewhere())
    other, ours = company_of(layout, 0), company_of(layout)
    say_ended(layout, OURS, LOST)
    assert looked(other).is_alone
    assert looked(ours).was_taken_for_dead
    assert looked(other).others == [OURS]
    assert not looked(ours).was_taken_for_dead, "it is said once"


def test_who_cannot_take_back_that_it_was_lost_says_so_once(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    admit(layout, OURS, elsewhere())
    say_ended(layout, OURS, LOST)
    company = company_of(layout)
    with monkeypatch.context() as patch:
        # As on a file system that is mounted read-only by now.
        patch.setattr("gpuspool.orchestrator.supervise.company.remove_quietly", lambda _: None)
        told = [looked(company).was_taken_for_dead for _ in range(3)]
    assert told == [True, False, False]
    looked(company)
    assert not layout.parent_end(OURS).exists()


def test_who_has_ended_does_not_take_that_back(layout: Layout) -> None:
    admit(layout, OURS, elsewhere())
    say_ended(layout, OURS)
    assert not looked(company_of(layout)).was_taken_for_dead
    assert layout.parent_end(OURS).exists()


def test_a_lease_is_never_shorter_than_some_beats_of_the_other_one(
    layout: Layout, clock: Clock
) -> None:
    """It may have been told a longer one, and beats accordingly."""
    admit(layout, 0, elsewhere(), lease_s=100 * LEASE_S)
    company = company_of(layout)
    company.look()
    for _ in range(5):
        clock.let_a_lease_pass(company.look)
    assert not company.is_gatherer


def test_whose_record_cannot_be_read_may_be_alive_for_a_lease(layout: Layout, clock: Clock) -> None:
    layout.parent(1).write_bytes(b"damaged")
    company = looked(company_of(layout))
    assert company.others == [1]
    clock.let_a_lease_pass(company.look)
    assert company.is_alone


@pytest.mark.parametrize("how", ["killed", "ended"])
def test_the_loss_of_a_parent_of_this_host_is_told_once(
    layout: Layout, living: Callable[[], Identity], how: str
) -> None:
    with living_process() as other:
        admit(layout, 2, other)
        admit(layout, 6, living())
        company = looked(company_of(layout))
        assert not company.has_lost_a_neighbour
        if how == "ended":
            say_ended(layout, 2)
            company.look()
    if how == "killed":
        company.look()
    assert company.has_lost_a_neighbour
    assert company.others == [6]
    assert not looked(company).has_lost_a_neighbour


def test_the_loss_of_a_parent_elsewhere_is_none_of_a_neighbour(
    layout: Layout, clock: Clock
) -> None:
    """What it started lives there, and nobody here can adopt it."""
    admit(layout, 2, elsewhere())
    admit(layout, 3, elsewhere(1))
    company = looked(company_of(layout))
    say_ended(layout, 3)
    assert looked(company).others == [2]
    assert not company.has_lost_a_neighbour

    def look() -> None:
        company.look()
        assert not company.has_lost_a_neighbour

    clock.let_a_lease_pass(look)
    assert company.is_alone


def test_a_parent_that_comes_later_is_seen(layout: Layout, living: Callable[[], Identity]) -> None:
    company = looked(company_of(layout))
    admit(layout, 9, living())
    assert looked(company).others == [9]
    assert company.newest == 9
    assert company.is_gatherer


# How little a look lists.


def test_a_glance_lists_the_parents_only_where_beats_tell_of_one(
    layout: Layout, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    admit(layout, 0, elsewhere())
    layout.beat(epoch_name(0), 0).touch()
    company = company_of(layout)
    company.glance()
    opened = watch_opens(monkeypatch)

    def is_listed() -> bool:
        """Whether the next listing of the beats makes it list the parents."""
        opened.clear()
        clock.now += LEASE_S / LOOKS_A_LEASE
        assert company.glance()
        return str(layout.parents) in opened

    assert not company.glance(), "the beats were listed just now"
    assert not is_listed()
    admit(layout, 9, elsewhere(9))
    layout.beat(epoch_name(9), 0).touch()
    assert is_listed()
    assert company.others == [0, 9]
    assert not is_listed()
    layout.beat(epoch_name(9), 0).unlink()
    say_ended(layout, 9)
    assert is_listed()
    assert company.others == [0]


def test_a_glance_lists_the_parents_some_times_in_a_lease_whatever_beats_tell(
    layout: Layout, clock: Clock, living: Callable[[], Identity]
) -> None:
    """Who was wrongly taken for dead finds nothing in beats/ that tells of it."""
    admit(layout, 0, living())
    admit(layout, OURS, elsewhere())
    company = company_of(layout)
    company.glance()
    say_ended(layout, OURS, LOST)
    company.glance()
    assert not company.was_taken_for_dead
    clock.now += LEASE_S / PARENT_LOOKS_A_LEASE
    company.glance()
    assert company.was_taken_for_dead


def test_a_parent_of_this_host_that_was_killed_is_missed_at_once(layout: Layout) -> None:
    with living_process() as other:
        admit(layout, 0, other)
        company = company_of(layout)
        company.glance()
        assert not company.is_gatherer
    company.glance()
    assert company.is_gatherer
    assert company.has_lost_a_neighbour


def test_a_parent_of_this_host_that_came_and_was_killed_unseen_is_missed_once(
    layout: Layout,
) -> None:
    company = looked(company_of(layout))
    admit(layout, 6, dead_process())
    assert looked(company).has_lost_a_neighbour
    assert not looked(company).has_lost_a_neighbour


def test_who_was_taken_for_dead_and_beats_again_is_believed_when_beats_are_listed(
    layout: Layout, clock: Clock
) -> None:
    admit(layout, 0, elsewhere())
    layout.beat(epoch_name(0), 3).touch()
    company = company_of(layout)
    company.glance()
    say_ended(layout, 0, LOST)
    clock.let_a_lease_pass(company.glance)
    assert company.is_gatherer
    layout.parent_end(0).unlink()
    layout.beat(epoch_name(0), 4).touch()
    clock.now += LEASE_S / LOOKS_A_LEASE
    company.glance()
    assert company.others == [0]


def test_what_a_parent_starts_that_has_just_woken_is_not_dead_by_the_beats_of_before(
    layout: Layout, clock: Clock
) -> None:
    sleeper = elsewhere()
    admit(layout, 0, sleeper)
    layout.beat(epoch_name(0), 3).touch()
    view = view_of(layout)
    detector = FailureDetector(view, LEASE_S)
    company = Company(layout, detector, OURS)
    company.look()
    clock.let_a_lease_pass(company.look)
    assert layout.parent_end(0).exists()
    layout.beat(epoch_name(0), 3).rename(layout.beat(epoch_name(0), 4))
    layout.parent_end(0).unlink()
    intend(layout, A0, epoch=0, parent=sleeper)
    view.refresh()
    assert detector.life(A0) is Life.ELSEWHERE


def test_who_is_seen_to_beat_is_not_dead_because_others_say_so(
    layout: Layout, clock: Clock
) -> None:
    admit(layout, 0, elsewhere())
    layout.beat(epoch_name(0), 3).touch()
    detector = FailureDetector(view_of(layout), LEASE_S)
    say_ended(layout, 0, LOST)
    detector.look_anew()
    assert detector.epoch_life(0) is Life.DEAD
    layout.beat(epoch_name(0), 3).rename(layout.beat(epoch_name(0), 4))
    clock.now += LEASE_S / LOOKS_A_LEASE
    assert detector.epoch_life(0) is Life.ELSEWHERE


def test_who_is_seen_to_beat_vouches_for_its_host_whatever_others_say(
    layout: Layout, clock: Clock
) -> None:
    for epoch in (0, 1):
        admit(layout, epoch, elsewhere(epoch))
        say_ended(layout, epoch, LOST)
    layout.beat(epoch_name(1), 3).touch()
    intend(layout, A0, epoch=0, parent=elsewhere(0))
    detector = FailureDetector(view_of(layout), LEASE_S)
    detector.look_anew()
    assert detector.life(A0) is Life.DEAD
    layout.beat(epoch_name(1), 3).rename(layout.beat(epoch_name(1), 4))
    clock.now += LEASE_S / LOOKS_A_LEASE
    assert detector.life(A0) is Life.ELSEWHERE
