"""Proof of death: by the process table on this host, by a beat that stands still elsewhere."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from helpers import wait_until
from spooling import (
    A0,
    B0,
    admit,
    begin,
    dead_process,
    elsewhere,
    intend,
    make_spool,
    say_ended,
    view_of,
)

from gpuspool.spool import identity
from gpuspool.spool.beats import Beat
from gpuspool.spool.codec import pretty
from gpuspool.spool.identity import identity_of, is_here, liveness, myself
from gpuspool.spool.journal import start_journal
from gpuspool.spool.layout import Layout, epoch_name
from gpuspool.spool.liveness import MAX_GAP_COUNTED, BeatWatch, FailureDetector
from gpuspool.spool.parents import LOST
from gpuspool.spool.publish import publish
from gpuspool.spool.records import Identity, ParentEnd
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
        elsewhere = msgspec.structs.replace(who, **{"machine": "", field: "another"})
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
    """Damage may make such a number of one in a record."""
    assert liveness(msgspec.structs.replace(myself(), pid=pid)) is Life.DEAD


def look(watch: BeatWatch, number: int | None, start: int, stop: int) -> list[float]:
    """For how long the beat of `A0` has stood still, in looks every 10 s."""
    stood: list[float] = []
    for now in range(start, stop + 1, 10):
        watch.take({} if number is None else {A0: number}, now)
        stood.append(watch.still_s(A0))
    return stood


def test_a_beat_that_stands_still_is_seen_to(layout: Layout) -> None:
    watch = BeatWatch(layout, 120.0)
    assert look(watch, 7, 1000, 1120)[-1] == 120.0
    assert look(watch, 7, 1130, 1130) == [130.0]


def test_a_lease_begins_when_the_beat_is_first_seen_and_anew_when_it_moves(layout: Layout) -> None:
    watch = BeatWatch(layout, 120.0)
    assert look(watch, 7, 10**6, 10**6 + 110)[-1] == 110.0
    assert look(watch, 8, 10**6 + 120, 10**6 + 240)[-1] == 120.0
    assert look(watch, 9, 10**6 + 250, 10**6 + 250) == [0.0]


def test_a_listing_that_is_older_than_another_is_no_sign_of_life(layout: Layout) -> None:
    """While a file is renamed a listing may show its old name, or none."""
    watch = BeatWatch(layout, 120.0)
    look(watch, 7, 0, 50)
    assert look(watch, 6, 60, 60) == [60.0]
    assert look(watch, None, 70, 70) == [70.0]
    assert look(watch, 7, 80, 80) == [80.0]


def test_one_lease_says_nothing_of_another(layout: Layout) -> None:
    watch = BeatWatch(layout, 120.0)
    look(watch, 1, 0, 500)
    watch.take({A0: 1, B0: 1}, 501.0)
    assert (watch.still_s(A0), watch.still_s(B0)) == (501.0, 0.0)


def test_no_beat_at_all_stands_still_from_the_first_question_on(layout: Layout) -> None:
    watch = BeatWatch(layout, 120.0)
    look(watch, None, 0, 100)
    assert watch.still_s(B0) == 0.0
    watch.take({}, 110.0)
    assert watch.still_s(B0) == 10.0


def test_time_in_which_nobody_looked_counts_for_little(layout: Layout) -> None:
    """A host that was suspended saw nothing; those that it watches must get time to beat."""
    watch = BeatWatch(layout, 120.0)
    assert look(watch, 7, 0, 60)[-1] == 60.0
    watch.take({A0: 7}, 10_000.0)
    assert watch.still_s(A0) == 60.0 + MAX_GAP_COUNTED * 120.0


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
    assert not detector.is_dead_orphan(A0)


def test_a_dead_attempt_is_left_to_its_live_parent(layout: Layout) -> None:
    """The parent alone knows how it ended."""
    intend(layout, A0)
    assert start_journal(layout, A0, dead_process()) is not None
    detector = FailureDetector(view_of(layout))
    assert (detector.life(A0), detector.parent_life(A0)) == (Life.DEAD, Life.ALIVE)
    assert not detector.is_dead_orphan(A0)


def test_a_dead_attempt_of_a_dead_parent_is_an_orphan(layout: Layout) -> None:
    intend(layout, A0, parent=dead_process())
    assert start_journal(layout, A0, dead_process()) is not None
    assert FailureDetector(view_of(layout)).is_dead_orphan(A0)


@pytest.mark.parametrize("is_parent_dead", [True, False])
def test_an_attempt_that_never_began_is_as_dead_as_its_parent(
    layout: Layout, is_parent_dead: bool
) -> None:
    intend(layout, A0, parent=dead_process() if is_parent_dead else myself())
    detector = FailureDetector(view_of(layout))
    assert detector.life(A0) == (Life.DEAD if is_parent_dead else Life.ALIVE)
    assert detector.is_dead_orphan(A0) == is_parent_dead


@pytest.mark.usefixtures("short")
def test_an_attempt_elsewhere_is_dead_once_no_beat_moved_for_a_lease(layout: Layout) -> None:
    """The lease here is over after a few looks, unless a beat moved in between."""
    elsewhere = msgspec.structs.replace(dead_process(), host="elsewhere", boot_id="another")
    intent = intend(layout, A0, parent=elsewhere)
    assert start_journal(layout, A0, elsewhere) is not None
    detector = FailureDetector(view_of(layout), MOMENT_S)
    beat = Beat(layout, epoch_name(intent.epoch))
    for _ in range(3):
        beat.move()
        assert detector.life(A0) is Life.ELSEWHERE, "its parent's beat vouches for it"
    wait_until(lambda: detector.life(A0) is Life.DEAD)
    newcomer = FailureDetector(view_of(layout))
    assert newcomer.life(A0) is Life.ELSEWHERE, "it has seen nothing yet"


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("has_begun", [True, False])
def test_an_attempt_elsewhere_is_left_to_a_parent_of_its_own_host(
    layout: Layout, has_begun: bool
) -> None:
    """Its own parent was killed, which that one has proved and said at once."""
    parent, neighbour = elsewhere(0), elsewhere(1)
    admit(layout, 0, parent)
    admit(layout, 1, neighbour)
    intend(layout, A0, epoch=0, parent=parent)
    if has_begun:
        assert start_journal(layout, A0, elsewhere(2)) is not None
    detector = FailureDetector(view_of(layout), MOMENT_S)
    beat = Beat(layout, epoch_name(1))
    beat.move()
    say_ended(layout, 0, LOST)
    for _ in range(10):
        beat.move()
        assert detector.life(A0) is Life.ELSEWHERE
    assert detector.parent_life(A0) is Life.DEAD
    wait_until(lambda: detector.life(A0) is Life.DEAD)


@pytest.mark.usefixtures("short")
def test_a_parent_of_another_boot_or_container_vouches_for_nobody(layout: Layout) -> None:
    parent = elsewhere(0)
    admit(layout, 0, parent)
    admit(layout, 1, msgspec.structs.replace(elsewhere(1), boot_id="the next"))
    admit(layout, 2, msgspec.structs.replace(elsewhere(2), pid_ns="pid:[7]"))
    intend(layout, A0, epoch=0, parent=parent)
    say_ended(layout, 0, LOST)
    detector = FailureDetector(view_of(layout), MOMENT_S)
    detector.look()
    assert detector.life(A0) is Life.DEAD


@pytest.mark.usefixtures("short")
def test_an_orphan_elsewhere_is_found_after_one_lease(layout: Layout) -> None:
    """Attempt and parent are watched over the same lease, not over one after the other."""
    elsewhere = msgspec.structs.replace(dead_process(), host="elsewhere", boot_id="another")
    intend(layout, A0, parent=elsewhere)
    assert start_journal(layout, A0, elsewhere) is not None
    detector = FailureDetector(view_of(layout), MOMENT_S)
    looks = 1
    while not detector.is_dead_orphan(A0):
        looks += 1
    assert 1 < looks < 10


def test_a_lease_that_is_asked_for_is_never_shorter_than_three_beats(layout: Layout) -> None:
    """Else a resume with a short lease would take workers for dead between two of their beats."""
    elsewhere = msgspec.structs.replace(dead_process(), host="elsewhere", boot_id="another")
    intend(layout, A0, parent=elsewhere)
    assert start_journal(layout, A0, elsewhere) is not None
    detector = FailureDetector(view_of(layout), MOMENT_S)
    assert {detector.life(A0) for _ in range(100)} == {Life.ELSEWHERE}
    assert detector.lease_s(A0) == 90.0


def test_the_attempts_of_a_parent_that_has_ended_are_nobodys(layout: Layout) -> None:
    """Whatever its process does now: a program that calls the Python API lives on."""
    intend(layout, A0)
    detector = FailureDetector(view_of(layout))
    assert detector.parent_life(A0) is Life.ALIVE
    end = ParentEnd(how="drained", exit_code=75, at=1.0)
    assert publish(layout.parent_end(0), pretty(end))
    detector.look()
    assert detector.parent_life(A0) is Life.DEAD


def test_what_ran_before_the_machine_was_booted_is_dead_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gpuspool.spool.identity._machine", lambda: "this one")
    before = msgspec.structs.replace(myself(), boot_id="before that", machine="this one")
    assert liveness(before) is Life.DEAD
    for other in (
        msgspec.structs.replace(before, machine="that one"),
        msgspec.structs.replace(before, machine=""),
        msgspec.structs.replace(before, host="elsewhere"),
    ):
        assert liveness(other) is Life.ELSEWHERE


@pytest.mark.parametrize("name", ["localhost", "localhost.localdomain", "n1"])
def test_the_id_of_a_machine_without_a_name_counts_for_nothing(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Each of several clones of it would take the others for dead."""
    here = identity.HOST_PID_NS
    monkeypatch.setattr("os.readlink", lambda _: here)
    monkeypatch.setattr("os.uname", lambda: SimpleNamespace(nodename=name))
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda _: b"0123456789abcdef\n")
    identity._machine.cache_clear()
    try:
        assert bool(identity._machine()) == (name == "n1")
    finally:
        identity._machine.cache_clear()


def test_a_container_does_not_take_the_id_of_its_image_for_the_machines(tmp_path: Path) -> None:
    """Containers of one image on two hosts may have one host name and one machine id."""
    script = "from gpuspool.spool.identity import myself; print(repr(myself().machine))"
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and "unshare" in done.stderr:
        pytest.skip(f"no pid namespaces here: {done.stderr}")
    assert done.stdout == "''\n"
