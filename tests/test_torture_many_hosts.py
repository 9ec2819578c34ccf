"""One run on several hosts to which anything happens, as `make torture` plays a hundred.

Whether somebody was taken over who was in order is looked up in what was done to the hosts: that
this finds what it shall is tested on closings made by hand.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import Box, record, seal, wait_until
from torture import machines
from torture.machines import Boot, Command, Machine
from torture.many_hosts import LEASE_S, Silence, Trial, has_clocks, row

ATTEMPT = "rank-0000.a00"


@pytest.mark.slow
def test_several_hosts_work_on_one_run_whatever_happens_to_them(tmp_path: Path) -> None:
    if reason := machines.why_not() or has_clocks():
        pytest.skip(reason)
    found = row("small", tmp_path)
    assert found.failures == []
    assert found.is_clean
    assert found.cases == 1
    assert " 0 takeovers" not in found.counts, "a host crashes, and one stands still"


# Machines.


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    if reason := machines.why_not() or has_clocks():
        pytest.skip(reason)
    (tmp_path / "home").mkdir()
    environment = Box(tmp_path / "home").environment
    one = Machine("h7", tmp_path / "home" / "h7", environment, uptime_s=10**6, skew_s=3600)
    one.start()
    yield one
    one.stop()


def test_a_machine_has_a_name_processes_and_clocks_of_its_own(
    tmp_path: Path, machine: Machine
) -> None:
    home = tmp_path / "home"
    (home / "job.py").write_text(
        "import os, time\n"
        "def look(task, ctx):\n"
        "    return [os.uname().nodename, time.time(), time.monotonic()]\n"
    )
    (home / "lines").write_text("one\n")
    began = time.time(), time.monotonic()
    command = machine.run("run", "job.py:look", "--lines", "lines", "--spool", "S")
    wait_until(lambda: command.code is not None)
    assert command.code == 0, command.err
    [line] = [
        json.loads(line)
        for line in (home / "S" / "journal" / f"{ATTEMPT}.jsonl").read_text().splitlines()
        if '"complete"' in line
    ]
    name, wall, monotonic = line["result"]
    assert name == "h7"
    assert wall >= began[0] + 3600
    assert monotonic >= began[1] + 10**6
    parent = record(home / "S" / "parents" / "0000.json")
    assert (parent["host"], parent["boot_id"], parent["pid"]) == ("h7", machine.boot.id, 2)


def test_a_machine_stands_still_goes_on_and_loses_its_power(
    tmp_path: Path, machine: Machine
) -> None:
    home = tmp_path / "home"
    (home / "job.py").write_text(
        "import time\n"
        "def count(task, ctx):\n"
        "    while True:\n"
        "        with open('count', 'a') as file:\n"
        "            file.write('.')\n"
        "        time.sleep(0.001)\n"
    )
    (home / "lines").write_text("one\n")
    command = machine.run("run", "job.py:count", "--lines", "lines", "--spool", "S")

    def count() -> int:
        return (home / "count").stat().st_size if (home / "count").exists() else 0

    wait_until(count)
    assert [name for name, _ in machine.workers()] == [ATTEMPT]
    os.kill(command.pid, 0)
    machine.freeze()
    before = count()
    until = time.monotonic() + 0.1
    wait_until(lambda: time.monotonic() > until)
    assert count() == before
    machine.thaw()
    wait_until(lambda: count() > before)
    [(began, ended)] = machine.boot.stops
    assert ended >= began + 0.1
    processes = machine.boot.processes()
    machine.crash()
    assert [pid for pid in processes if Path(f"/proc/{pid}").exists()] == []
    assert command.code == -9
    boot = machine.boot
    machine.start()
    assert machine.boot.id != boot.id


# Takeovers.


class Forged(Trial):
    """A trial that was not played. An attempt of its first machine was closed at 100 s."""

    def __init__(self, home: Path) -> None:
        super().__init__(0, home)
        self.boot = Boot("one", None, 0, "")  # type: ignore[arg-type]
        self._machines[0].boots.append(self.boot)
        self._lease_s = LEASE_S
        command = Command([], home / "h0" / "0", self.boot)
        command.stem.with_suffix(".pid").write_text("2\n")
        self._machines[0].commands.append(command)
        (self._spool / "attempts").mkdir(parents=True)
        intent = {"parent": {"boot_id": "one", "pid": 2}}
        (self._spool / "attempts" / f"{ATTEMPT}.json").write_text(json.dumps(intent))
        self.write("journal", {"boot_id": "one", "attempt": ATTEMPT})
        self.close(by="resume", state="failed")

    def write(self, folder: str, head: dict[str, object], ending: str = "") -> Path:
        path = self._spool / folder / f"{ATTEMPT}{ending}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(seal(head))
        return path

    def close(self, by: str, state: str) -> None:
        head: dict[str, object] = {"attempt": ATTEMPT, "by": by, "state": state, "reason": "lost"}
        os.utime(self.write("manifests", head, ".orphans"), (100.0, 100.0))

    def lose_parent(self) -> None:
        """Its parent was killed at 90 s."""
        self._silences.append(Silence(self._machines[0].commands[0], 90.0))

    def forget_the_journal(self) -> None:
        """Its process had not begun when it was closed."""
        (self._spool / "journal" / f"{ATTEMPT}.jsonl").write_bytes(b"")

    def was_taken_for_dead(self) -> None:
        """Its parent says that it found itself taken for dead."""
        for folder in ("parents", "events"):
            (self._spool / folder).mkdir()
        parent = {"epoch": 0, "boot_id": "one", "pid": 2}
        (self._spool / "parents" / "0000.json").write_text(json.dumps(parent))
        event = {"event": "taken_for_dead"}
        (self._spool / "events" / "0000.jsonl").write_text(json.dumps(event) + "\n")

    def begin(self, task: int) -> None:
        (self._executions / f"{ATTEMPT}.3").write_text(json.dumps({"task": task}) + "\n")

    def n_false(self) -> int:
        self._judge_takeovers(self._closings())
        assert len(self.outcome.failures) == self.outcome.false
        return self.outcome.false


def nothing(trial: Forged) -> None:
    pass


def stood_still_for_a_moment(trial: Forged) -> None:
    trial.boot.stops.append((98.5, 99.5))


def stood_still_long_before(trial: Forged) -> None:
    trial.boot.stops.append((10.0, 20.0))


def crashed_afterwards(trial: Forged) -> None:
    trial.boot.crashed_at = 101.0


def had_not_begun(trial: Forged) -> None:
    trial.forget_the_journal()


def was_stopped_though_others_were_told(trial: Forged) -> None:
    elsewhere = Boot("two", None, 0, "")  # type: ignore[arg-type]
    trial._told[Command([], trial._box.home / "h1" / "0", elsewhere)] = 90.0
    trial.close(by="parent", state="stopped")


def was_stopped_before_it_was_told(trial: Forged) -> None:
    trial._told[trial._machines[0].commands[0]] = 110.0
    trial.close(by="parent", state="stopped")


def lost_its_parent(trial: Forged) -> None:
    trial.lose_parent()
    trial.begin(next(task for task in range(trial.outcome.tasks) if task not in trial._holding))


@pytest.mark.parametrize(
    "happen",
    [
        nothing,
        stood_still_for_a_moment,
        stood_still_long_before,
        crashed_afterwards,
        lost_its_parent,
        had_not_begun,
        was_stopped_though_others_were_told,
        was_stopped_before_it_was_told,
    ],
)
def test_who_was_closed_though_nobody_had_harmed_it_was_taken_over_falsely(
    tmp_path: Path, happen: Callable[[Forged], None]
) -> None:
    trial = Forged(tmp_path / "home")
    happen(trial)
    assert trial.n_false() == 1


def was_killed(trial: Forged) -> None:
    trial._killed.add(ATTEMPT)


def stood_still(trial: Forged) -> None:
    trial.boot.stops.append((96.0, 102.0))


def crashed(trial: Forged) -> None:
    trial.boot.crashed_at = 99.0


def lost_its_parent_and_held_the_lock(trial: Forged) -> None:
    trial.lose_parent()
    trial.begin(min(trial._holding))


def closed_itself(trial: Forged) -> None:
    trial.close(by=ATTEMPT, state="complete")


def was_drained(trial: Forged) -> None:
    trial._drains.append(90.0)
    trial.close(by="parent", state="stopped")


def was_told_to_stop(trial: Forged) -> None:
    trial._told[trial._machines[0].commands[0]] = 90.0
    trial.close(by="parent", state="stopped")


def lost_its_parent_before_it_began(trial: Forged) -> None:
    trial.forget_the_journal()
    trial.lose_parent()


@pytest.mark.parametrize(
    "happen",
    [
        was_killed,
        stood_still,
        crashed,
        lost_its_parent_and_held_the_lock,
        closed_itself,
        was_drained,
        was_told_to_stop,
        lost_its_parent_before_it_began,
    ],
)
def test_who_was_harmed_or_stopped_was_not_taken_over_falsely(
    tmp_path: Path, happen: Callable[[Forged], None]
) -> None:
    trial = Forged(tmp_path / "home")
    happen(trial)
    assert trial.n_false() == 0


@pytest.mark.parametrize("seconds", [0.0, LEASE_S / 2])
def test_a_parent_that_was_taken_for_dead_though_it_beat_was_taken_over_falsely(
    tmp_path: Path, seconds: float
) -> None:
    trial = Forged(tmp_path / "home")
    trial.was_taken_for_dead()
    trial.boot.stops.append((95.0, 95.0 + seconds))
    trial._judge_lost_parents()
    assert trial.outcome.false == 1


def test_a_parent_that_stood_still_may_be_taken_for_dead(tmp_path: Path) -> None:
    trial = Forged(tmp_path / "home")
    trial.was_taken_for_dead()
    trial.boot.stops.append((95.0, 95.0 + 2 * LEASE_S))
    trial._judge_lost_parents()
    assert trial.outcome.false == 0
