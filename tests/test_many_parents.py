"""Several parents of one run at once: what one does to the others, and who sees to what is left.

Most starts are forked from a warm process, so that none costs an interpreter. Processes, pids,
signals and files are real. Where another host is wanted, a start has a host name of its own: then
its pids mean nothing to the others.
"""

import os
import re
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import (
    GPUSPOOL,
    JOBS,
    Box,
    Started,
    assert_sound,
    identities,
    is_alive,
    journal_lines,
    kill,
    limit,
    names,
    record,
    wait_until,
)
from torture.forked import Ended, Server

from gpuspool.spool.layout import Layout


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as one:
        yield one


class Starts:
    """The starts of one run in a box; each is known by its epoch."""

    def __init__(self, box: Box, server: Server) -> None:
        self.box = box
        self.spool = box / "S"
        self.layout = Layout(self.spool)
        self.job = f"{JOBS}/many.py:work"
        self._server = server
        self._pids: dict[int, int] = {}

    def plan(self, *payloads: str) -> None:
        """Say which tasks there are."""
        self.box.tasks(list(payloads))

    def command(self, *options: str) -> list[str]:
        command = ["run", self.job, "--tasks", "tasks.jsonl", "--spool", "S"]
        command += ["--arg", f"folder={self.box.home}"]
        return command + ([] if "--ranks" in options else ["--ranks", "1"]) + [*options]

    def go(self, *words: str, **env: str) -> int:
        """Start a command here; returns its epoch once that is taken."""
        epoch = self._next()
        pid = self._server.start(*words, cwd=self.box.home, env=env)
        wait_until(self.layout.parent(epoch).exists)
        self._pids[epoch] = pid
        return epoch

    def start(self, *options: str, **env: str) -> int:
        return self.go(*self.command(*options), **env)

    def start_at_once(self, count: int, *options: str) -> list[int]:
        """So many starts at the same moment; returns their epochs."""
        first = self._next()
        pids = [
            self._server.start(*self.command(*options), cwd=self.box.home) for _ in range(count)
        ]
        epochs = list(range(first, first + count))
        wait_until(self.layout.parent(epochs[-1]).exists)
        for epoch in epochs:
            self._pids[epoch] = record(self.layout.parent(epoch))["pid"]
        assert sorted(pids) == sorted(self._pids[epoch] for epoch in epochs)
        return epochs

    def bring_job(self) -> Path:
        """From now on the job is a copy that may be changed; returns that."""
        for name in ("gates.py", "plain.py"):
            self.box.job(name)
        job = self.box.job("many.py")
        self.job = f"{job}:work"
        return job

    def start_elsewhere(self, *options: str) -> Started:
        """Start on another host; nothing here can tell which of its processes live."""
        epoch = self._next()
        started = self.box.start(*self.command(*options), program=another_host())
        wait_until(self.layout.parent(epoch).exists)
        return started

    def _next(self) -> int:
        return sum(
            name.endswith(".json") and ".end" not in name for name in names(self.layout.parents)
        )

    def run(self, *words: str, code: int = 0) -> Ended:
        """Run a command here to its end."""
        ended = self._server.wait(self._server.start(*words, cwd=self.box.home))
        assert ended.code == code, f"exit code {ended.code}, expected {code}\n{ended.err}"
        return ended

    def signal(self, epoch: int, number: int) -> None:
        os.kill(self._pids[epoch], number)

    def kill(self, epoch: int) -> None:
        """Kill a parent, and not its workers."""
        self.signal(epoch, signal.SIGKILL)
        assert self._server.wait(self._pids.pop(epoch)).code == -signal.SIGKILL

    def end(self, epoch: int, code: int) -> Ended:
        """Wait for the end of a start."""
        ended = self._server.wait(self._pids.pop(epoch))
        assert ended.code == code, f"exit code {ended.code}, expected {code}\n{ended.err}"
        assert self.parent_end(epoch)["exit_code"] == code
        return ended

    def parent_end(self, epoch: int) -> Any:
        return record(self.layout.parent_end(epoch))

    def open(self) -> None:
        """Let all tasks pass."""
        (self.box / "open").touch()

    def let(self, attempt: str, *calls: int) -> None:
        """Let the tasks of these calls of an attempt pass; the first is 1."""
        for number in calls:
            (self.box / f"{attempt}.{number}").touch()

    def waiting(self) -> list[tuple[int, str]]:
        """(task, attempt) of all that came to the gate so far."""
        path = self.box / "waiting"
        words = map(str.split, path.read_text().splitlines()) if path.exists() else []
        return [(int(task), attempt) for task, attempt in words]

    def wait_for(self, count: int) -> None:
        """Wait until so many tasks have come to the gate."""
        wait_until(lambda: len(self.waiting()) == count)

    def attempts_of(self, epoch: int) -> list[str]:
        """Those that a parent has started."""
        found = []
        for name in names(self.layout.attempts):
            if record(self.layout.attempts / name)["epoch"] == epoch:
                found.append(name.removesuffix(".json"))
        return found

    def pids_of(self, epoch: int) -> list[int]:
        known = identities(self.spool)
        return [known[attempt] for attempt in self.attempts_of(epoch)]

    def told(self, epoch: int) -> str:
        """What a parent has told so far."""
        path = self.layout.events(epoch)
        return path.read_text() if path.exists() else ""

    def ran(self) -> list[int]:
        """The tasks that ran, in order."""
        path = self.box / "ran"
        return sorted(map(int, path.read_text().split())) if path.exists() else []


def another_host() -> tuple[str, ...]:
    """In front of gpuspool: a host name of its own. Skips where this machine does not allow it."""
    command = ("unshare", "--uts", "sh", "-c", 'hostname other && exec "$@"', "sh")
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare(1)")
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not give a process a host name of its own")
    return (*command, GPUSPOOL)


@pytest.fixture
def starts(box: Box, server: Server) -> Iterator[Starts]:
    yield Starts(box, server)
    server.kill_left()


# Beside each other.


def test_starts_at_the_same_moment_make_one_run_and_share_it(starts: Starts) -> None:
    """As the elements of an array: the same words, the same moment, an OUT of their own."""
    starts.plan(*["do"] * 9)
    box = starts.box
    three = [box.start(*starts.command("--out", "out")) for _ in range(3)]
    starts.wait_for(3)
    assert len(names(starts.layout.attempts)) == 3
    starts.open()
    for started in three:
        started.wait(0)
    assert_sound(box, "S", 9)
    assert starts.ran() == list(range(9))
    assert [starts.parent_end(epoch)["exit_code"] for epoch in range(3)] == [0, 0, 0]
    assert [path.name for path in box.home.glob(".S*")] == [], "nothing half made is left"


def test_a_late_start_of_a_finished_run_starts_nobody(starts: Starts) -> None:
    starts.plan("do", "do")
    starts.open()
    starts.end(starts.start(), 0)
    before = names(starts.layout.attempts)
    late = starts.start("--ranks", "2")
    starts.end(late, 0)
    assert names(starts.layout.attempts) == before
    assert_sound(starts.box, "S", 2)


@pytest.mark.parametrize("is_gatherer", [True, False], ids=["the gatherer", "another"])
def test_a_signal_to_one_parent_leaves_the_workers_of_the_other_alone(
    starts: Starts, is_gatherer: bool
) -> None:
    starts.plan(*["do"] * 8)
    stopped, other = starts.start(), starts.start()
    if not is_gatherer:
        stopped, other = other, stopped
    starts.wait_for(2)
    starts.signal(stopped, signal.SIGTERM)
    wait_until(lambda: "SIGTERM received" in starts.told(stopped))
    (own,) = starts.attempts_of(stopped)
    starts.let(own, 1)
    starts.end(stopped, 75)
    starts.open()
    starts.end(other, 0)
    assert_sound(starts.box, "S", 8)
    assert starts.ran() == list(range(8))
    assert names(starts.layout.subdir("stopped")) == [f"{own}.json"]
    assert "SIGTERM" not in starts.told(other)
    assert "draining" not in starts.told(other)


def test_the_time_limit_of_one_parent_is_not_that_of_the_others(starts: Starts) -> None:
    starts.plan(*["do"] * 8)
    other = starts.start()
    limited = starts.start("--time-limit", "1s")
    starts.wait_for(2)
    wait_until(lambda: "the time limit is reached" in starts.told(limited))
    starts.let(*starts.attempts_of(limited), 1)
    starts.end(limited, 75)
    starts.open()
    starts.end(other, 0)
    assert_sound(starts.box, "S", 8)
    assert starts.ran() == list(range(8))


@pytest.mark.parametrize(
    ("how", "why"),
    [("dying", "every rank failed too often"), ("loading", "no rank could load the job")],
)
def test_a_parent_none_of_whose_workers_works_ends_and_the_others_go_on(
    starts: Starts, how: str, why: str
) -> None:
    starts.plan(*["do"] * 8)
    other = starts.start()
    starts.wait_for(1)
    broken = starts.start("--max-restarts", "0", BROKEN=how)
    assert why in starts.end(broken, 4).err
    assert not (starts.spool / "summary.json").exists(), "the run goes on"
    starts.open()
    starts.end(other, 0)
    assert_sound(starts.box, "S", 8)
    assert record(starts.spool / "summary.json")["how"] == "finished"


@pytest.mark.parametrize("whole", [False, True], ids=["the parent alone", "its worker too"])
def test_a_host_that_stood_still_and_was_taken_for_dead_goes_on(
    starts: Starts, whole: bool
) -> None:
    starts.plan(*["do"] * 9)
    lease = ("--lease", limit(1))
    here = starts.start(*lease)
    there = starts.start_elsewhere(*lease)
    starts.wait_for(2)
    stopped = [there.pid, *(starts.pids_of(1) if whole else [])]
    for pid in stopped:
        kill(pid, signal.SIGSTOP)
    wait_until(starts.layout.parent_end(1).exists)
    assert starts.parent_end(1)["how"] == "lost"
    (first,) = starts.attempts_of(1)
    if whole:
        wait_until(lambda: f"{first} ended" in starts.told(here))
    for pid in stopped:
        kill(pid, signal.SIGCONT)
    wait_until(lambda: "others took it for dead" in starts.told(1))
    assert not starts.layout.parent_end(1).exists()
    # What it starts from here on is nobody else's.
    starts.let(first, 1)
    starts.wait_for(3)
    starts.open()
    there.wait(0)
    starts.end(here, 0)
    assert starts.parent_end(1)["how"] == "finished"
    assert_sound(starts.box, "S", 9)
    closed_by_others = names(starts.layout.subdir("failed"))
    assert closed_by_others == ([f"{first}.json"] if whole else [])
    assert len(starts.attempts_of(1)) == 1 + whole


def test_what_a_stopped_parent_lets_lie_others_close_and_it_goes_on_when_it_wakes(
    starts: Starts,
) -> None:
    """As after a Ctrl-Z in the terminal of one of two starts on a host."""
    starts.plan(*["do"] * 6)
    lease = ("--lease", limit(1))
    stopped, other = starts.start(*lease), starts.start(*lease)
    starts.wait_for(2)
    (first,) = starts.attempts_of(stopped)
    (worker,) = starts.pids_of(stopped)
    starts.signal(stopped, signal.SIGSTOP)
    kill(worker)
    wait_until(lambda: f"{first} ended: it died while its parent" in starts.told(other))
    assert not starts.layout.parent_end(stopped).exists(), "it is not taken for dead"
    starts.signal(stopped, signal.SIGCONT)
    wait_until(lambda: len(starts.attempts_of(stopped)) == 2)
    starts.wait_for(3)
    starts.open()
    starts.end(stopped, 0)
    starts.end(other, 0)
    assert_sound(starts.box, "S", 6)
    assert names(starts.layout.subdir("failed")) == [f"{first}.json"]


# Orders for all.


def test_a_drain_stops_all_parents_and_wait_says_so(starts: Starts) -> None:
    starts.plan(*["do"] * 8)
    epochs = [starts.start(), starts.start(), starts.start()]
    starts.wait_for(3)
    starts.run("drain", "S")
    for epoch in epochs:
        wait_until(lambda: "`gpuspool drain` asked for it" in starts.told(epoch))  # noqa: B023
    starts.open()
    for epoch in epochs:
        assert "gpuspool resume S" in starts.end(epoch, 4).err
    assert len(starts.ran()) == 3
    assert "stopped (drained by order)  37 %" in starts.run("wait", "S", code=4).out
    assert record(starts.spool / "summary.json")["how"] == "stopped", "the last one says so"
    starts.end(starts.start(), 0)
    assert_sound(starts.box, "S", 8)
    assert starts.ran() == list(range(8))


def test_too_many_failures_stop_all_parents(starts: Starts) -> None:
    """The gatherer sees it, whoever's worker the task failed in."""
    starts.plan(*["slow"] * 12)
    gatherer = starts.start("--max-failed", "1", "--keep-going")
    starts.wait_for(1)
    other = starts.start("--keep-going")
    starts.wait_for(2)
    (attempt,) = starts.attempts_of(other)
    (starts.box / f"{attempt}.1.fails").touch()
    # It is a verdict once a moment has passed, and another call has ended.
    starts.let(attempt, 1, 2, 3, 4)
    for epoch in (gatherer, other):
        wait_until(lambda: '"draining"' in starts.told(epoch))  # noqa: B023
    starts.open()
    assert "stopped early, since --max-failed is reached" in starts.end(gatherer, 4).err
    assert "1 tasks failed, --max-failed 1" in starts.end(other, 4).err
    assert len(journal_lines(starts.spool)) < 12


def test_changed_code_drains_the_older_parents_and_goes_on(starts: Starts) -> None:
    starts.plan(*["do"] * 6)
    job = starts.bring_job()
    older = [starts.start(), starts.start()]
    starts.wait_for(2)
    job.write_text(job.read_text().replace("return task.payload", "return 'done anew'"))
    starts.run(*starts.command(), code=2)
    newer = starts.start("--keep-done")
    for epoch in older:
        wait_until(lambda: "goes on with changed code" in starts.told(epoch))  # noqa: B023
    for epoch in older:
        starts.let(*starts.attempts_of(epoch), 1)
        starts.end(epoch, 4)
    starts.open()
    starts.end(newer, 0)
    results = assert_sound(starts.box, "S", 6)
    assert Counter(result["result"] for result in results) == {"do": 2, "done anew": 4}
    assert starts.ran() == list(range(6))


def test_a_file_that_the_job_writes_to_is_no_changed_code(starts: Starts) -> None:
    starts.plan(*["do"] * 8)
    written = starts.box.write("waiting", "")
    starts_of_it = [starts.start("--arg", f"notes={written}")]
    starts.wait_for(1)
    starts_of_it.append(starts.start("--arg", f"notes={written}"))
    starts.wait_for(2)
    starts.open()
    for epoch in starts_of_it:
        starts.end(epoch, 0)
    assert_sound(starts.box, "S", 8)
    assert names(starts.layout.control) == ["finished.0001"]


def test_of_several_starts_with_changed_code_none_stops_the_others(starts: Starts) -> None:
    """As the elements of an array whose job was fixed: they come in one after the other."""
    starts.plan(*["do"] * 12)
    job = starts.bring_job()
    older = starts.start()
    starts.wait_for(1)
    job.write_text(job.read_text().replace("return task.payload", "return 'done anew'"))
    newer = starts.start_at_once(3, "--keep-done")
    starts.wait_for(4)
    wait_until(lambda: "goes on with changed code" in starts.told(older))
    starts.let(*starts.attempts_of(older), 1)
    starts.end(older, 4)
    starts.open()
    for epoch in newer:
        starts.end(epoch, 0)
    results = assert_sound(starts.box, "S", 12)
    assert Counter(result["result"] for result in results) == {"do": 1, "done anew": 11}


def test_fresh_is_refused_while_anybody_may_be_there_and_says_on_which_hosts(
    starts: Starts,
) -> None:
    starts.plan(*["do"] * 2)
    here, there = starts.start(), starts.start_elsewhere()
    starts.wait_for(2)
    refused = starts.run(*starts.command("--fresh"), code=6)
    for host in ("other", os.uname().nodename):
        assert f"a gpuspool on host {host}" in refused.err
    starts.open()
    starts.end(here, 0)
    there.wait(0)
    assert_sound(starts.box, "S", 2)


# More work while others are at it.


def test_tasks_are_retried_redone_and_added_while_others_are_at_work(starts: Starts) -> None:
    starts.plan("do", "fail", "slow", "slow", "do")
    first = starts.start("--keep-going")
    starts.wait_for(1)
    # A failure is a verdict once a moment has passed, and another call has ended.
    starts.let(*starts.attempts_of(first), 1, 2, 3, 4)
    starts.wait_for(5)
    wait_until(lambda: len(journal_lines(starts.spool)) == 4)
    (starts.box / "fixed").touch()
    again = starts.go("retry", "S", "--ranks", "1")
    starts.wait_for(6)
    starts.let(*starts.attempts_of(again), 1)
    wait_until(lambda: starts.ran() == [0, 1, 2, 3])
    anew = starts.go("redo", "S", "t0", "--ranks", "1")
    starts.wait_for(7)
    more = starts.box.tasks(["more"], "more.jsonl")
    starts.run("add", "S", "--tasks", more)
    starts.wait_for(8)
    starts.open()
    for epoch in (first, again, anew):
        starts.end(epoch, 0)
    assert_sound(starts.box, "S", 6)
    assert starts.ran() == [0, 0, 1, 2, 3, 4, 5]


# Parents that die.


def test_of_a_parent_that_was_killed_a_neighbour_and_a_later_start_adopt_the_workers(
    starts: Starts,
) -> None:
    """Each of them takes one slot: nobody is started beside them on more cores than were asked."""
    starts.plan(*["do"] * 8)
    killed = starts.start("--ranks", "2")
    starts.wait_for(2)
    neighbour = starts.start()
    starts.wait_for(3)
    orphans = starts.attempts_of(killed)
    pids = starts.pids_of(killed)
    starts.kill(killed)
    wait_until(lambda: starts.told(neighbour).count("outlived its parent") == 2)
    later = starts.start("--ranks", "2")
    wait_until(lambda: starts.told(later).count("outlived its parent") == 2)
    assert starts.attempts_of(later) == []
    assert all(map(is_alive, pids))
    starts.open()
    starts.end(neighbour, 0)
    starts.end(later, 0)
    assert_sound(starts.box, "S", 8)
    assert starts.ran() == list(range(8))
    assert [f"{name}.json" for name in orphans] == names(starts.layout.subdir("complete"))[:2]


@pytest.mark.parametrize("is_gatherer_here", [True, False], ids=["gatherer here", "elsewhere"])
def test_a_slot_that_an_adopted_worker_took_is_filled_once_that_has_died(
    starts: Starts, is_gatherer_here: bool
) -> None:
    starts.plan(*["do"] * 8)
    elsewhere = None
    gatherer = -1
    if is_gatherer_here:
        gatherer = starts.start()
    else:
        elsewhere = starts.start_elsewhere()
    starts.wait_for(1)
    killed = starts.start()
    starts.wait_for(2)
    light = starts.start("--ranks", "2")
    starts.wait_for(4)
    (orphan,) = starts.pids_of(killed)
    starts.kill(killed)
    wait_until(lambda: "outlived its parent" in starts.told(light))
    # Now a slot is free, which the orphan takes.
    own = starts.attempts_of(light)
    kill(starts.pids_of(light)[1])
    wait_until(lambda: f"{own[1]} ended" in starts.told(light))
    assert starts.attempts_of(light) == own
    kill(orphan)
    wait_until(lambda: len(starts.attempts_of(light)) == 3)
    starts.open()
    starts.end(light, 0)
    if elsewhere is None:
        starts.end(gatherer, 0)
    else:
        elsewhere.wait(0)
    assert_sound(starts.box, "S", 8)
    assert starts.ran() == list(range(8))


def test_an_adopted_worker_that_takes_signals_for_itself_hears_of_a_drain_all_the_same(
    starts: Starts,
) -> None:
    starts.plan(*["slow"] * 60)
    killed = starts.start("--grace", "2s", BROKEN="deaf")
    starts.wait_for(1)
    (orphan,) = starts.attempts_of(killed)
    starts.kill(killed)
    heir = starts.start("--grace", "60s")
    wait_until(lambda: "outlived its parent" in starts.told(heir))
    starts.signal(heir, signal.SIGTERM)
    wait_until(lambda: "SIGTERM received" in starts.told(heir))
    starts.open()
    starts.end(heir, 75)
    assert record(starts.layout.status("stopped", orphan))["reason"] == "drained"
    assert len(starts.ran()) < 60


def test_a_parent_whose_adopted_worker_is_at_work_has_something_to_do(starts: Starts) -> None:
    """It stays, where one that has nothing at all leaves as it was told to."""
    starts.plan("do")
    killed = starts.start()
    starts.wait_for(1)
    starts.kill(killed)
    heir = starts.start("--leave-when-idle", "1s")
    wait_until(lambda: "outlived its parent" in starts.told(heir))
    starts.start_elsewhere("--leave-when-idle", "1s").wait(75)
    assert "draining" not in starts.told(heir)
    starts.open()
    starts.end(heir, 0)
    assert_sound(starts.box, "S", 1)
    assert len(names(starts.layout.attempts)) == 1


def test_when_the_gatherer_is_killed_the_next_one_rules(starts: Starts) -> None:
    """A task fails for good by a ruling, which takes a gatherer."""
    starts.plan(*["do"] * 6, "fail", *["do"] * 6)
    gatherer = starts.start()
    starts.wait_for(1)
    heir = starts.start("--ranks", "2")
    starts.wait_for(3)
    workers = starts.pids_of(gatherer)
    starts.kill(gatherer)
    for pid in workers:
        kill(pid)
    starts.open()
    ended = starts.end(heir, 3)
    assert "12 of 13 tasks complete, 1 failed" in ended.err
    states = Counter(result["state"] for result in starts.box.results("S"))
    assert states == {"complete": 12, "failed": 1}
    assert any(name.startswith("ruling-") for name in names(starts.layout.manifests))
    assert starts.box.problems("S") == []


def test_after_the_crash_of_another_host_its_run_is_finished_and_can_be_made_anew(
    starts: Starts,
) -> None:
    """Once a lease has proved it, nobody else has to wait for that proof again."""
    starts.plan(*["do"] * 4)
    lease = limit(1)
    crashed = starts.start_elsewhere("--lease", lease)
    starts.wait_for(1)
    (worker,) = starts.pids_of(0)
    kill(crashed.pid)
    kill(worker)
    crashed.wait(-signal.SIGKILL)
    starts.open()
    starts.end(starts.start("--lease", lease), 0)
    assert_sound(starts.box, "S", 4)
    assert names(starts.layout.beats) == []
    starts.run(*starts.command("--fresh"))
    assert_sound(starts.box, "S", 4)


def test_whoever_waits_for_the_tasks_of_a_silent_host_is_told_so(starts: Starts) -> None:
    """Nothing else would tell why nothing goes on, from the crash of that host to its lease."""
    starts.plan("do", "do")
    lease = limit(3)
    crashed = starts.start_elsewhere("--lease", lease)
    starts.wait_for(1)
    here = starts.start("--lease", lease)
    starts.wait_for(2)
    (worker,) = starts.pids_of(0)
    kill(crashed.pid)
    kill(worker)
    crashed.wait(-signal.SIGKILL)
    starts.open()
    done = starts.end(here, 0)
    told = [line for line in done.err.splitlines() if "has not been heard of for" in line]
    assert len(told) == 1, done.err
    assert f"pid {crashed.pid} on host other" in told[0]
    assert_sound(starts.box, "S", 2)


def test_a_start_anew_waits_until_it_is_proved_that_another_host_has_crashed(
    starts: Starts,
) -> None:
    starts.plan("do", "do")
    crashed = starts.start_elsewhere("--lease", limit(1))
    starts.wait_for(1)
    (worker,) = starts.pids_of(0)
    starts.open()
    kill(crashed.pid)
    kill(worker)
    done = starts.run(*starts.command("--fresh"))
    assert "a gpuspool on host other, rank-0000.a00" in done.err
    assert_sound(starts.box, "S", 2)
    assert (starts.box / "S.old-1").is_dir()


def test_outputs_that_were_moved_are_used_once_it_is_proved_that_nobody_writes_to_the_old_ones(
    starts: Starts,
) -> None:
    starts.plan("do", "do")
    crashed = starts.start_elsewhere("--lease", limit(1), "--out", "out")
    starts.wait_for(1)
    (worker,) = starts.pids_of(0)
    starts.open()
    kill(crashed.pid)
    kill(worker)
    (starts.box / "out").rename(starts.box / "moved")
    starts.run("resume", "S", "--out-moved-to", "moved", "--ranks", "1")
    assert_sound(starts.box, "S", 2)


def test_a_host_that_was_suspended_and_taken_for_dead_works_on_beside_the_others(
    starts: Starts,
) -> None:
    starts.plan(*["do"] * 8)
    lease = limit(1)
    suspended = starts.start_elsewhere("--lease", lease)
    starts.wait_for(1)
    (theirs,) = starts.attempts_of(0)
    (worker,) = starts.pids_of(0)
    for pid in (suspended.pid, worker):
        kill(pid, signal.SIGSTOP)
    other = starts.start("--lease", lease)
    wait_until(lambda: f"{theirs} ended" in starts.told(other))
    for pid in (suspended.pid, worker):
        kill(pid, signal.SIGCONT)
    wait_until(lambda: len(starts.attempts_of(0)) == 2)
    starts.wait_for(3)
    starts.open()
    starts.end(other, 0)
    suspended.wait(0)
    assert_sound(starts.box, "S", 8)
    assert len(journal_lines(starts.spool)) == 8, "each is counted once"


# How much they read.


def test_only_the_gatherer_reads_everything_again_and_again(starts: Starts) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    starts.plan(*["do"] * 8)
    traces = []
    started = []
    for number in range(2):
        traces.append(starts.box / f"trace{number}")
        strace = ("strace", "-q", "-e", "trace=openat", "-o", str(traces[-1]), GPUSPOOL)
        started.append(starts.box.start(*starts.command("--ranks", "3"), program=strace))
        starts.wait_for(3 * (number + 1))

    def opens(trace: Path) -> int:
        """How many files and folders of the spool a parent has opened."""
        return len(re.findall(r"/S/.*= \d", trace.read_text()))

    before = [opens(trace) for trace in traces]
    wait_until(lambda: opens(traces[0]) - before[0] > 40)
    assert (opens(traces[1]) - before[1]) * 4 < opens(traces[0]) - before[0]
    starts.open()
    for one in started:
        one.wait(0)
    assert_sound(starts.box, "S", 8)
