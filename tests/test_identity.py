"""Proof of death: by the process table on this host, by a beat that stands still for one elsewhere."""

import os
import subprocess
import sys
from collections.abc import Iterator

import msgspec
import pytest
from spooling import dead_process

from spool.identity import ALIVE, DEAD, ELSEWHERE, LeaseWatch, identity_of, is_here, liveness, myself
from spool.records import Identity


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
    assert liveness(myself()) == ALIVE


def test_a_running_child_is_alive(child: subprocess.Popen[bytes]) -> None:
    assert liveness(who_is(child)) == ALIVE


def test_a_process_that_was_killed_and_reaped_is_dead(child: subprocess.Popen[bytes]) -> None:
    who = who_is(child)
    child.kill()
    child.wait()
    assert liveness(who) == DEAD
    assert identity_of(child.pid) is None


def test_a_zombie_is_dead(child: subprocess.Popen[bytes]) -> None:
    who = who_is(child)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert identity_of(child.pid) == who, "it still has a place in the process table"
    assert liveness(who) == DEAD


def test_another_process_with_the_same_pid_is_not_meant(child: subprocess.Popen[bytes]) -> None:
    who = who_is(child)
    assert liveness(msgspec.structs.replace(who, pid_start=who.pid_start - 1)) == DEAD
    assert liveness(msgspec.structs.replace(who, pid_start=who.pid_start + 1)) == DEAD


@pytest.mark.parametrize("field", ["boot_id", "host", "pid_ns"])
def test_of_another_boot_host_or_namespace_nothing_is_known(field: str) -> None:
    for who in (myself(), dead_process()):
        elsewhere = msgspec.structs.replace(who, **{field: "another"})
        assert not is_here(elsewhere)
        assert liveness(elsewhere) == ELSEWHERE


def test_a_command_name_that_looks_like_a_stat_line_changes_nothing() -> None:
    script = "open('/proc/self/comm', 'w').write('a) Z 1 (b'); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert liveness(who_is(process)) == ALIVE
        process.kill()


def test_a_beat_that_stands_still_for_a_lease_has_expired() -> None:
    watch = LeaseWatch(120.0)
    assert not watch.is_expired("a", 7, now=1000.0)
    assert not watch.is_expired("a", 7, now=1120.0)
    assert watch.is_expired("a", 7, now=1120.1)
    assert watch.is_expired("a", 7, now=5000.0)


def test_a_lease_begins_when_the_beat_is_first_seen_and_anew_when_it_moves() -> None:
    watch = LeaseWatch(120.0)
    assert not watch.is_expired("a", 7, now=10**6)
    assert not watch.is_expired("a", 8, now=10**6 + 119)
    assert not watch.is_expired("a", 8, now=10**6 + 239)
    assert watch.is_expired("a", 8, now=10**6 + 239.5)
    assert not watch.is_expired("a", 9, now=10**6 + 600), "it came back"
    assert not watch.is_expired("a", 8, now=10**6 + 900), "any change is a life sign, also a beat that goes back"


def test_a_parents_beat_vouches_for_its_child() -> None:
    watch = LeaseWatch(120.0)
    assert not watch.is_expired("a", (7, 1), now=0.0)
    assert not watch.is_expired("a", (7, 2), now=100.0)
    assert not watch.is_expired("a", (7, 2), now=219.0)
    assert watch.is_expired("a", (7, 2), now=221.0)


def test_one_lease_says_nothing_of_another() -> None:
    watch = LeaseWatch(120.0)
    watch.is_expired("a", 1, now=0.0)
    assert not watch.is_expired("b", 1, now=500.0)
    assert watch.is_expired("a", 1, now=500.0)


def test_no_beat_at_all_expires_too() -> None:
    watch = LeaseWatch(120.0)
    assert not watch.is_expired("a", (None, None), now=0.0)
    assert watch.is_expired("a", (None, None), now=121.0)
