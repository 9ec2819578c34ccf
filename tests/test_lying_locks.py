"""Runs where file locks are granted to everybody, or to nobody since there are none.

The lock of a spool saves work, and what keeps it right is link(2). Here flock(2) lies or fails in
every process of a run, by a library in front of libc's (`tests/torture/faults.c`).
"""

from __future__ import annotations

import errno
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from helpers import Box, assert_sound, journal_lines, kill, limit, names, wait_until
from slurm.cluster import POLL_S, Cluster
from test_many_parents import Starts
from test_slurm_runs import LEASE, calls, command, submit, worker_on
from torture.faults import NoCompiler, library
from torture.forked import Plan, Server

LIE = "action=lie"
LACK = f"action=fail\nerrno={errno.ENOLCK}"
LACK_OTHERWISE = f"action=fail\nerrno={errno.EOPNOTSUPP}"
every_kind = pytest.mark.parametrize(
    "kind", [LIE, LACK, LACK_OTHERWISE], ids=["lie", "ENOLCK", "EOPNOTSUPP"]
)
lies_and_lacks = pytest.mark.parametrize("kind", [LIE, LACK], ids=["lie", "ENOLCK"])


def faulty(box: Box, kind: str) -> dict[str, str]:
    """Variables for processes whose locks in the box's folder are of this kind."""
    try:
        preload = library()
    except NoCompiler as reason:
        pytest.skip(str(reason))
    faults = f"under={box / 'S'}\nclass=lock\nn=1\nmany=0\n{kind}\nrecord={noted(box)}\n"
    return {"LD_PRELOAD": str(preload), "FAULTS": faults}


def noted(box: Box) -> Path:
    """Where calls are noted. The job's folder is no place for it: there it would pass for code."""
    return box.home.with_name("calls")


def n_spoiled(box: Box) -> int:
    """How many calls of flock(2) have lied or failed."""
    return sum(" ! " in line for line in noted(box).read_text().splitlines())


class FaultyServer(Server):
    """A server below which the locks of parents are of one kind."""

    def __init__(self, variables: dict[str, str]) -> None:
        super().__init__(Path(variables["LD_PRELOAD"]))
        self._faults = {"parent": variables["FAULTS"]}

    def start(
        self,
        *args: str | Path,
        cwd: Path,
        env: Mapping[str, str | None] | None = None,
        plan: Plan | None = None,
    ) -> int:
        return super().start(*args, cwd=cwd, env=env, plan=plan or self._faults)


@pytest.fixture
def starts(box: Box, kind: str) -> Iterator[Starts]:
    variables = faulty(box, kind)
    box.environment.update(variables)
    with FaultyServer(variables) as server:
        yield Starts(box, server)


@every_kind
def test_starts_at_the_same_moment_share_one_run(starts: Starts) -> None:
    # With fewer, two seldom want the same epoch.
    starts.plan(*["do"] * 24)
    epochs = starts.start_at_once(8)
    starts.wait_for(8)
    starts.open()
    for epoch in epochs:
        starts.end(epoch, 0)
    assert_sound(starts.box, "S", 24)
    assert starts.ran() == list(range(24))
    assert [len(starts.attempts_of(epoch)) for epoch in epochs] == [1] * 8
    assert n_spoiled(starts.box) >= 8


@lies_and_lacks
def test_a_dead_worker_a_requeue_and_a_crashed_host_lose_nothing(starts: Starts) -> None:
    starts.plan(*["do"] * 12)
    first = starts.start("--lease", limit(1))
    crashed = starts.start_elsewhere("--lease", limit(1))
    requeued = starts.start()
    starts.wait_for(3)
    for pid in (*starts.pids_of(first), *starts.pids_of(1), crashed.pid):
        kill(pid)
    starts.signal(requeued, signal.SIGTERM)
    wait_until(lambda: "SIGTERM received" in starts.told(requeued))
    starts.let(*starts.attempts_of(requeued), 1)
    starts.end(requeued, 75)
    again = starts.start("--lease", limit(1))
    starts.wait_for(5)
    starts.open()
    for epoch in (first, again):
        starts.end(epoch, 0)
    assert_sound(starts.box, "S", 12)
    assert starts.ran() == list(range(12)), "nothing is lost, and nothing ran to its end twice"
    assert len(journal_lines(starts.spool)) == 12


@pytest.mark.parametrize("slurm", [{"nodes": 2}], indirect=True)
def test_elements_of_an_array_share_a_run_of_which_a_node_crashes(box: Box, slurm: Cluster) -> None:
    variables = faulty(box, LIE)
    preload, box.environment["FAULTS"] = variables["LD_PRELOAD"], variables["FAULTS"]
    run = command(box, 80, 0.01, *LEASE)
    run = run.replace(f"--lines {box.lines(80)}", f"--tasks {box.tasks(['wait'] * 80)}")
    job = submit(box, slurm, f"env LD_PRELOAD={preload} {run}", "--array=0-3", "--requeue")
    wait_until(lambda: len({attempt for _, _, attempt in calls(box)}) == 4)
    kill(worker_on(box, slurm, "n1"))
    slurm.run("scontrol", "requeue", f"{job}_0", code=0)
    slurm.crash("n2")
    slurm.declare_down("n2")
    box.write("notes.gate", "")
    wait_until(lambda: box.status("S")["state"] == "complete", poll=POLL_S)
    assert_sound(box, "S", 80)
    assert len(journal_lines(box / "S")) == 80, "nothing ran to its end twice"
    assert names(box / "S" / "failed-tasks") == []
    assert n_spoiled(box) >= 4
    slurm.run("scancel", job)
