"""Copies of `gpuspool doctor` that run on several hosts at once: how they meet, what they measure
of each other, and what is left when some of them are killed.

A host is a mount of its own of one folder (`tests/lagging`), or a process where that is enough.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import Box, Done, Started, limit, tree, wait_until
from lagging import clients
from lagging.clients import Lag, mounted
from torture import mounts

import gpuspool
from gpuspool.orchestrator.supervise.doctor import LEFTOVER_S, Check
from gpuspool.orchestrator.supervise.hosts.contest import ROUNDS, Race
from gpuspool.orchestrator.supervise.hosts.lags import Lags, Seen
from gpuspool.orchestrator.supervise.hosts.meeting import Member
from gpuspool.orchestrator.supervise.hosts.signs import KINDS
from gpuspool.orchestrator.supervise.hosts.together import expected_by_slurm
from gpuspool.orchestrator.supervise.hosts.verdict import WORDS, Report, checks_of, settings_of

LAG_S = 1.0
STEP = {"SLURM_JOB_ID": "17", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}


@pytest.fixture
def folder(box: Box) -> Path:
    path = box / "shared"
    path.mkdir()
    return path


def start(box: Box, *folders: Path, options: tuple[str, ...] = (), **more: Any) -> list[Started]:
    """Start one copy for each folder, which are one folder to their hosts."""
    words = options or ("--hosts", str(len(folders)))
    return [box.start("doctor", path, *words, **more) for path in folders]


def ends(started: list[Started], code: int = 0) -> tuple[Done, list[Done]]:
    """How the copy that tells ended, and all others."""
    done = [one.wait() for one in started]
    told = "\n".join(f"exit code {one.code}\n{one.err}\n{one.out}" for one in done)
    assert {one.code for one in done} == {code}, told
    telling = [one for one in done if one.out]
    assert len(telling) == 1
    return telling[0], [one for one in done if not one.out]


def states(done: Done) -> dict[str, str]:
    """The state of each check in what a copy tells as JSON."""
    return {check["name"]: check["state"] for check in done.record()["checks"]}


def meeting_of(folder: Path) -> Path | None:
    """Where copies meet that have found each other."""
    return next((path.parent.parent for path in folder.glob(".*/table/roster")), None)


# Two hosts.

SEATS = {"0", "1"}


@pytest.fixture
def two_hosts(folder: Path, tmp_path: Path) -> Iterator[list[Path]]:
    """One folder as two hosts see it, each of which keeps its locks to itself."""
    why = mounts.why_not() or clients.why_not()
    if why:
        pytest.skip(why)
    lag = Lag(LAG_S, 1.5 * LAG_S, 2 * LAG_S, is_open_fresh=True, locks="local")
    with mounted(folder, tmp_path / "a", lag) as a, mounted(folder, tmp_path / "b", lag) as b:
        yield [a, b]


def test_two_hosts_tell_how_late_they_see_each_other(
    box: Box, folder: Path, two_hosts: list[Path]
) -> None:
    started = start(box, *two_hosts, options=("--hosts", "2", "--json"))
    told, others = ends(started)
    found = told.record()
    assert found["is_fit"]
    assert len(found["hosts"]) == 2
    details = {check["name"]: check["detail"] for check in found["checks"]}
    late = {
        kind: float(match[1])
        for kind in WORDS
        if (match := re.search(r"within ([\d.]+) s", details[kind]))
    }
    # The round trip is as long as the mount believes what it saw, less the moment that lay between
    # the last look and the change. A copy that was not scheduled just then makes that longer.
    assert late["size"] > 0.5 * LAG_S
    assert late["look-up"] > 0.75 * LAG_S
    assert late["listing"] > LAG_S
    assert late["beat"] > LAG_S
    assert f"{ROUNDS} rounds of link(2), one winner each" in details["race"]
    assert states(told)["lock seen"] == "warning"
    assert "is granted to others too" in details["lock seen"]
    assert found["settings"] == []
    assert "tells what all have found" in others[0].err
    assert tree(folder) == {}


def test_copies_that_see_through_one_client_say_that_nothing_was_learned(
    box: Box, folder: Path
) -> None:
    told, _ = ends(start(box, folder, folder, folder, options=("--hosts", "3", "--json")))
    assert states(told)["hosts"] == "warning"
    assert {state for name, state in states(told).items() if name not in ("hosts", "space")} == {
        "ok"
    }
    assert len(told.record()["hosts"]) == 1
    assert tree(folder) == {}


def test_the_last_line_tells_the_verdict_and_what_to_set(
    box: Box, folder: Path, tmp_path: Path
) -> None:
    why = mounts.why_not() or clients.why_not()
    if why:
        pytest.skip(why)
    # One of the hosts sees the folder as a file system of its own, on which it would trust inotify.
    with mounted(folder, tmp_path / "a", Lag(0, 0, 0)) as a:
        told, _ = ends(start(box, a, folder))
    assert told.out.splitlines()[-1].endswith("is fit for a spool on 2 hosts, with --poll 2s")


# How they meet.


def test_slurm_says_how_many_there_are_in_a_step() -> None:
    found = expected_by_slurm(STEP)
    assert found is not None
    assert found.count == 2
    again = expected_by_slurm({**STEP, "SLURM_RESTART_COUNT": "1"})
    assert again is not None
    assert again.key != found.key
    # Old versions name the tasks of the step alone.
    older = {**STEP, "SLURM_NTASKS": "3"}
    del older["SLURM_STEP_NUM_TASKS"]
    found = expected_by_slurm(older)
    assert found is not None
    assert found.count == 3


def test_a_batch_script_is_alone_however_many_tasks_it_asked_for() -> None:
    assert expected_by_slurm({"SLURM_JOB_ID": "17", "SLURM_NTASKS": "4"}) is None
    assert expected_by_slurm({}) is None


def test_the_tasks_of_one_step_meet_and_those_of_another_do_not(box: Box, folder: Path) -> None:
    for step in ("0", "1"):
        env = {**STEP, "SLURM_STEP_ID": step}
        told, _ = ends(start(box, folder, folder, options=("--json",), env=env))
        assert states(told)["hosts"] == "warning"
    stray = {**STEP, "SLURM_STEP_ID": "2"}
    alone = box.start("doctor", folder, "--wait", "1s", "--json", env=stray)
    ends(start(box, folder, folder, options=("--json",), env=STEP))
    assert states(alone.wait(1))["hosts"] == "problem"


def test_who_is_one_too_many_finds_another_meeting(box: Box, folder: Path) -> None:
    done = [one.wait(0) for one in start(box, *[folder] * 4, options=("--hosts", "2", "--json"))]
    assert sum(1 for one in done if one.out) == 2
    assert tree(folder) == {}


def test_others_who_never_come_are_waited_for_and_told(box: Box, folder: Path) -> None:
    done = box.run("doctor", folder, "--hosts", "2", "--wait", "0.5s", code=1)
    assert "only 1 of 2 came within" in done.out
    assert "is not fit" in done.out.splitlines()[-1]
    assert tree(folder) == {}


def test_variables_say_what_the_options_say(box: Box, folder: Path) -> None:
    env = {"GPUSPOOL_HOSTS": "3", "GPUSPOOL_WAIT": "0.5s"}
    assert "only 1 of 3 came" in box.run("doctor", folder, env=env, code=1).out


def test_fewer_hosts_than_one_are_refused(box: Box) -> None:
    assert "--hosts 0" in box.run("doctor", ".", "--hosts", "0", code=2).err


def test_one_host_is_alone_whatever_slurm_says(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    assert "hosts" not in {check.name for check in gpuspool.doctor(folder, hosts=1)}
    found = {check.name: check for check in gpuspool.doctor(folder, wait_s=0.1)}
    assert found["hosts"].state == "problem"


# What is left.


def test_when_one_is_killed_the_other_says_so_and_leaves_nothing(
    box: Box, folder: Path, two_hosts: list[Path]
) -> None:
    killed, other = start(box, *two_hosts, options=("--hosts", "2", "--wait", limit(3)))
    wait_until(lambda: meeting_of(folder))
    killed.signal(signal.SIGKILL)
    killed.wait(-signal.SIGKILL)
    assert "not been heard of for" in other.wait(1).out
    assert tree(folder) == {}


def test_one_that_is_stopped_leaves_nothing_and_the_other_does_not_wait(
    box: Box, folder: Path, two_hosts: list[Path]
) -> None:
    stopped, other = start(box, *two_hosts)
    # Once both talk, both know that they have met.
    wait_until(
        lambda: {path.name.split(".")[1] for path in folder.glob(".*/table/word.*")} == SEATS
    )
    stopped.signal(signal.SIGTERM)
    stopped.wait(130)
    done = other.wait(1)
    assert "given up" in done.out, done.out + done.err
    assert tree(folder) == {}


def test_one_that_is_stopped_while_it_waits_leaves_nothing(box: Box, folder: Path) -> None:
    waiting = box.start("doctor", folder, "--hosts", "2")
    wait_until(lambda: list(folder.glob(".*/table/beat.*")))
    waiting.signal(signal.SIGTERM)
    waiting.wait(130)
    assert tree(folder) == {}


def kill_both(box: Box, folder: Path, two_hosts: list[Path]) -> Path:
    """Let a meeting of two begin and kill both; returns what they left."""
    started = start(box, *two_hosts)
    left = wait_until(lambda: meeting_of(folder))
    assert left is not None
    for one in started:
        one.signal(signal.SIGKILL)
    for one in started:
        one.wait(-signal.SIGKILL)
    return left


def test_a_meeting_of_the_dead_keeps_nobody_from_meeting(
    box: Box, folder: Path, two_hosts: list[Path]
) -> None:
    left = kill_both(box, folder, two_hosts)
    # So does one at which the dead had not found each other yet.
    for path in (left / "table").iterdir():
        if path.name.partition(".")[0] not in ("member", "beat"):
            path.unlink()
    ends(start(box, folder, folder))
    assert tree(folder) == {}
    kill_both(box, folder, two_hosts)
    ends(start(box, folder, folder))


def test_what_the_dead_have_left_is_removed_after_a_day(
    box: Box, folder: Path, two_hosts: list[Path]
) -> None:
    left = kill_both(box, folder, two_hosts)
    (folder / ".gpuspool-doctor-of-somebody-elses").write_text("a file")
    box.run("doctor", folder)
    assert left.exists()
    then = time.time() - LEFTOVER_S - 60
    for path in (left, *left.iterdir()):
        os.utime(path, (then, then))
    box.run("doctor", folder)
    assert list(tree(folder)) == [".gpuspool-doctor-of-somebody-elses"]


# The verdict, of reports that were made up.


def report(seat: int, kind: str = "nfs4", **changes: Any) -> Report:
    """What one of two hosts reports where all is well."""
    other = 1 - seat
    seen = [Seen(kind.kind, seat, other, [0.02, 0.02]) for kind in KINDS]
    told = ["" if number % 2 == seat else "EEXIST" for number in range(4)]
    fields = {
        "member": Member(f"n{seat + 1}", f"boot-{seat}", 100, 40, kind),
        "checks": [Check("link", "ok", "fine"), Check("space", "ok", f"{seat + 1} GiB free")],
        "lags": Lags(seen, {}),
        "race": Race(told, [number % 2 for number in range(4)]),
        "lock": "held" if seat == 0 else "refused",
    }
    return Report(**{**fields, **changes})


def late(seat: int, kind: str, seconds: float, of: str = "nfs4") -> Report:
    """A report in which one kind of sign was seen so late at each step."""
    one = report(seat, of)
    for seen in one.lags.seen:
        if seen.kind == kind:
            seen.seconds = [seconds, seconds]
    return one


def found_in(*reports: Report) -> dict[str, Check]:
    return {check.name: check for check in checks_of(reports)}


def bad_in(*reports: Report) -> dict[str, str]:
    """The states of the checks that are not fine."""
    return {name: one.state for name, one in found_in(*reports).items() if one.state != "ok"}


def test_each_kind_of_sign_has_its_words() -> None:
    assert [kind.kind for kind in KINDS] == list(WORDS)


def test_two_hosts_that_see_all_at_once_need_no_settings() -> None:
    both = [report(0), report(1)]
    assert bad_in(*both) == {}
    assert settings_of(both) == []
    assert found_in(*both)["race"].detail.endswith("one winner each (n1 2, n2 2)")


def test_a_lease_is_asked_for_where_beats_are_late() -> None:
    assert settings_of([late(0, "beat", 30.0), report(1)]) == []
    both = [report(0), late(1, "beat", 60.0)]
    assert bad_in(*both) == {}
    assert settings_of(both) == ["--lease", "150s"]


def test_a_poll_is_asked_for_where_the_type_does_not_tell_that_others_write() -> None:
    both = [report(0, "nfs4"), report(1, "zfs")]
    assert bad_in(*both) == {}
    assert settings_of(both) == ["--poll", "2s"]


@pytest.mark.parametrize("kind", WORDS)
def test_what_is_late_is_no_place_for_a_spool_if_gpuspool_believes_it_at_once(kind: str) -> None:
    assert bad_in(late(0, kind, 3.0, of="zfs"), report(1, "zfs")) == {kind: "problem"}
    assert bad_in(late(0, kind, 3.0), report(1)) == {}
    # Once, it may have been a busy machine.
    once = late(0, kind, 3.0, of="zfs")
    next(seen for seen in once.lags.seen if seen.kind == kind).seconds.append(0.02)
    assert bad_in(once, report(1, "zfs")) == {}


@pytest.mark.parametrize("kind", WORDS)
def test_what_is_later_than_gpuspool_waits_is_no_place_for_a_spool(kind: str) -> None:
    assert bad_in(report(0), late(1, kind, 80.0)) == {kind: "problem"}


def test_what_is_never_seen_is_told_with_its_hosts() -> None:
    missed = report(0)
    missed.lags.seen[1].is_missed = True
    found = found_in(missed, report(1))["listing"]
    assert found.state == "problem"
    assert found.detail.startswith("n2 never saw it of n1")


def test_a_name_whose_file_is_not_whole_is_no_place_for_a_spool() -> None:
    torn = report(0)
    torn.lags.gaps["look-up"] = 2
    assert bad_in(torn, report(1)) == {"look-up": "problem"}
    missing = report(0)
    missing.lags.gaps["replace"] = 2
    assert bad_in(missing, report(1)) == {}
    assert "2 looks saw no file" in found_in(missing, report(1))["replace"].detail


def test_a_race_that_two_win_is_no_place_for_a_spool() -> None:
    cheated = report(1)
    cheated.race.told[2] = ""
    found = found_in(report(0), cheated)["race"]
    assert found.state == "problem"
    assert found.detail == "link(2) gave the name of round 2 to several: n1, n2"


def test_a_race_of_which_each_sees_another_winner_is_no_place_for_a_spool() -> None:
    other = report(1)
    other.race.owners[2] = 1
    assert "to several: n1, n2" in found_in(report(0), other)["race"].detail


def test_a_name_that_one_never_sees_is_no_place_for_a_spool() -> None:
    blind = report(1)
    blind.race.owners[2] = None
    found = found_in(report(0), blind)["race"]
    assert (found.state, found.detail.endswith("is not seen by all")) == ("problem", True)


def test_a_name_that_nobody_gets_is_told_with_the_error() -> None:
    both = [report(0), report(1)]
    for one in both:
        one.race.told[2] = "EMLINK"
        one.race.owners[2] = None
    found = found_in(*both)["race"]
    assert found.state == "problem"
    assert found.detail == "link(2) made the name of round 2 for nobody, and told EMLINK"


def test_a_winner_whose_reply_was_lost_is_seen_through() -> None:
    unlucky = report(0)
    unlucky.race.told[2] = "EEXIST"
    found = found_in(unlucky, report(1))["race"]
    assert found.state == "ok"
    assert "1 winner was told an error" in found.detail


def test_a_loser_who_is_told_another_error_is_no_place_for_a_spool() -> None:
    strange = report(1)
    strange.race.told[2] = "EPERM"
    found = found_in(report(0), strange)["race"]
    assert found.state == "problem"
    assert "EPERM" in found.detail


def test_a_race_is_judged_by_the_rounds_that_all_have_run() -> None:
    short = report(1)
    del short.race.told[3:], short.race.owners[3:]
    assert found_in(report(0), short)["race"].detail.startswith("3 rounds")


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ("held", "granted", "a flock(2) that n1 holds is granted to others too (n2)"),
        ("held", "ENOLCK", "others get no flock(2): ENOLCK (n2)"),
        ("ENOLCK", "ENOLCK", "n1 gets no flock(2): ENOLCK"),
    ],
)
def test_a_lock_that_keeps_nobody_out_is_warned_of(first: str, second: str, words: str) -> None:
    both = [report(0, lock=first), report(1, lock=second)]
    assert bad_in(*both) == {"lock seen": "warning"}
    assert found_in(*both)["lock seen"].detail.startswith(words)


def test_what_one_host_alone_found_is_told_with_its_name() -> None:
    low = Check("space", "warning", "1 MiB free")
    one = report(1, checks=[Check("link", "ok", "fine"), low])
    found = found_in(report(0), one)
    assert (found["space"].state, found["space"].detail) == ("warning", "n2: 1 MiB free")
    everywhere = [report(seat, checks=[low]) for seat in range(2)]
    assert found_in(*everywhere)["space"] == low
