"""Proof of death: by the process table on this host, by a beat that stands still elsewhere."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from helpers import wait_until
from spooling import A0, begin, dead_process, intend, make_spool, view_of

from gpuspool.spool.codec import encode
from gpuspool.spool.identity import identity_of, is_here, liveness, myself
from gpuspool.spool.journal import start_journal
from gpuspool.spool.layout import Layout
from gpuspool.spool.liveness import FailureDetector, LeaseWatch
from gpuspool.spool.publish import replace
from gpuspool.spool.records import Identity, ParentBeat
from gpuspool.spool.states import Life

# A lease that is over before anybody looks again.
MOMENT_S = 1e-6


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def who_is(process: subprocess.Popen[bytes]) -> Identity:
    who = identity_of(process.pid)
    assert who is not None
    return who


def test_this_process_is_alive_and_here() -> None:
    assert myself().pid == os.getpid()
    assert is_here(myself())
    assert liveness(myself()) is Life.ALIVE


def test_a_running_child_is_alive(child: subprocess.Popen[bytes]) -> None:
    assert liveness(who_is(child)) is Life.ALIVE


def test_a_process_that_was_killed_and_reaped_is_dead(child: subprocess.Popen[bytes]) -> None:
    who = who_is(child)
    child.kill()
    child.wait()
    assert liveness(who) is Life.DEAD
    assert identity_of(child.pid) is None


def test_a_zombie_is_dead(child: subprocess.Popen[bytes]) -> None:
    who = who_is(child)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert identity_of(child.pid) == who, "it still has a place in the process table"
    assert liveness(who) is Life.DEAD


def test_another_process_with_the_same_pid_is_not_meant(child: subprocess.Popen[bytes]) -> None:
    who = who_is(child)
    assert liveness(msgspec.structs.replace(who, pid_start=who.pid_start - 2)) is Life.DEAD
    assert liveness(msgspec.structs.replace(who, pid_start=who.pid_start + 2)) is Life.DEAD


@pytest.mark.parametrize("field", ["boot_id", "host", "pid_ns"])
def test_of_another_boot_host_or_namespace_nothing_is_known(field: str) -> None:
    for who in (myself(), dead_process()):
        elsewhere = msgspec.structs.replace(who, **{field: "another"})
        assert not is_here(elsewhere)
        assert liveness(elsewhere) is Life.ELSEWHERE


def test_a_command_name_that_looks_like_a_stat_line_changes_nothing() -> None:
    script = "open('/proc/self/comm', 'w').write('a) Z 1 (b'); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert liveness(who_is(process)) is Life.ALIVE
        process.kill()


@pytest.mark.parametrize("pid", [2**22 + 1, 2**40, 2**80])
def test_what_is_no_number_of_a_process_is_dead(pid: int) -> None:
    """Damage may make such a number of one in orchestrator.json."""
    assert liveness(msgspec.structs.replace(myself(), pid=pid)) is Life.DEAD


def verdicts(watch: LeaseWatch, beats: object, start: int, stop: int, name: str = "a") -> set[bool]:
    """What the watch says in looks every 10 s, from second `start` to second `stop`."""
    return {watch.is_expired(name, beats, now=now) for now in range(start, stop + 1, 10)}


def test_a_beat_that_stands_still_for_a_lease_has_expired() -> None:
    watch = LeaseWatch(120.0)
    assert verdicts(watch, 7, 1000, 1120) == {False}
    assert verdicts(watch, 7, 1130, 5000) == {True}


def test_a_lease_begins_when_the_beat_is_first_seen_and_anew_when_it_moves() -> None:
    watch = LeaseWatch(120.0)
    assert verdicts(watch, 7, 10**6, 10**6 + 110) == {False}
    assert verdicts(watch, 8, 10**6 + 120, 10**6 + 240) == {False}
    assert watch.is_expired("a", 8, now=10**6 + 241)
    assert not watch.is_expired("a", 9, now=10**6 + 600), "it came back"
    assert not watch.is_expired("a", 8, now=10**6 + 900), (
        "any change is a life sign, also a beat that goes back"
    )


def test_a_parents_beat_vouches_for_its_child() -> None:
    watch = LeaseWatch(120.0)
    assert verdicts(watch, (7, 1), 0, 100) == {False}
    assert verdicts(watch, (7, 2), 110, 230) == {False}
    assert watch.is_expired("a", (7, 2), now=231.0)


def test_one_lease_says_nothing_of_another() -> None:
    watch = LeaseWatch(120.0)
    verdicts(watch, 1, 0, 500)
    assert not watch.is_expired("b", 1, now=500.0)
    assert watch.is_expired("a", 1, now=500.0)


def test_no_beat_at_all_expires_too() -> None:
    watch = LeaseWatch(120.0)
    assert verdicts(watch, (None, None), 0, 120) == {False}
    assert watch.is_expired("a", (None, None), now=121.0)


def test_time_in_which_nobody_looked_counts_for_little() -> None:
    """A host that was suspended saw nothing; those that it watches must get time to beat."""
    watch = LeaseWatch(120.0)
    assert verdicts(watch, 7, 0, 60) == {False}
    assert not watch.is_expired("a", 7, now=10_000.0)
    assert verdicts(watch, 7, 10_000, 10_020) == {False}
    assert verdicts(watch, 7, 10_030, 10_100) == {True}


# Attempts, by what they left in a spool.


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases may be shorter than three beats."""
    monkeypatch.setattr("gpuspool.spool.liveness.BEATS", 0)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return make_spool(tmp_path / "s", 4)


def test_an_attempt_that_lives_is_no_orphan(layout: Layout) -> None:
    intend(layout, A0, parent=dead_process())
    begin(layout, A0)
    detector = FailureDetector(view_of(layout))
    assert (detector.life(A0), detector.parent_life(A0)) == (Life.ALIVE, Life.DEAD)
    assert not detector.is_orphan(A0)


def test_a_dead_attempt_is_left_to_its_live_parent(layout: Layout) -> None:
    """The parent alone knows how it ended."""
    intend(layout, A0)
    assert start_journal(layout, A0, dead_process()) is not None
    detector = FailureDetector(view_of(layout))
    assert (detector.life(A0), detector.parent_life(A0)) == (Life.DEAD, Life.ALIVE)
    assert not detector.is_orphan(A0)


def test_a_dead_attempt_of_a_dead_parent_is_an_orphan(layout: Layout) -> None:
    intend(layout, A0, parent=dead_process())
    assert start_journal(layout, A0, dead_process()) is not None
    assert FailureDetector(view_of(layout)).is_orphan(A0)


@pytest.mark.parametrize("is_parent_dead", [True, False])
def test_an_attempt_that_never_began_is_as_dead_as_its_parent(
    layout: Layout, is_parent_dead: bool
) -> None:
    intend(layout, A0, parent=dead_process() if is_parent_dead else myself())
    detector = FailureDetector(view_of(layout))
    assert detector.life(A0) == (Life.DEAD if is_parent_dead else Life.ALIVE)
    assert detector.is_orphan(A0) == is_parent_dead


@pytest.mark.usefixtures("short")
def test_an_attempt_elsewhere_is_dead_once_no_beat_moved_for_a_lease(layout: Layout) -> None:
    """The lease here is over after a few looks, unless a beat moved in between."""
    elsewhere = msgspec.structs.replace(dead_process(), boot_id="another")
    intent = intend(layout, A0, parent=elsewhere)
    assert start_journal(layout, A0, elsewhere) is not None
    detector = FailureDetector(view_of(layout), MOMENT_S)
    for beat in range(3):
        path = layout.parent_heartbeat(intent.epoch, elsewhere.host, elsewhere.pid)
        replace(path, encode(ParentBeat(beat=beat, at=1.0)))
        assert detector.life(A0) is Life.ELSEWHERE, "its parent's beat vouches for it"
    wait_until(lambda: detector.life(A0) is Life.DEAD)
    newcomer = FailureDetector(view_of(layout))
    assert newcomer.life(A0) is Life.ELSEWHERE, "it has seen nothing yet"


@pytest.mark.usefixtures("short")
def test_an_orphan_elsewhere_is_found_after_one_lease(layout: Layout) -> None:
    """Attempt and parent are watched over the same lease, not over one after the other."""
    elsewhere = msgspec.structs.replace(dead_process(), boot_id="another")
    intend(layout, A0, parent=elsewhere)
    assert start_journal(layout, A0, elsewhere) is not None
    detector = FailureDetector(view_of(layout), MOMENT_S)
    looks = 1
    while not detector.is_orphan(A0):
        looks += 1
    assert 1 < looks < 10


def test_a_lease_that_is_asked_for_is_never_shorter_than_three_beats(layout: Layout) -> None:
    """Else a resume with a short lease would take workers for dead between two of their beats."""
    elsewhere = msgspec.structs.replace(dead_process(), boot_id="another")
    intend(layout, A0, parent=elsewhere)
    assert start_journal(layout, A0, elsewhere) is not None
    detector = FailureDetector(view_of(layout), MOMENT_S)
    assert {detector.life(A0) for _ in range(100)} == {Life.ELSEWHERE}
    assert detector.lease_s(A0) == 30.0
