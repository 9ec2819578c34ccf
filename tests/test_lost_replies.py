"""Calls that the file system carried out and reported as failed, with real processes.

As on NFS when the reply is lost, and on file systems whose inode numbers tell nothing. The library
`torture/faults.c` spoils the calls.
"""

from __future__ import annotations

import errno
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import Box, assert_sound, journal_lines, wait_until
from torture.faults import NoCompiler, library
from torture.forked import Ended, Server
from torture.job import payloads

TASKS = 24
JOB = Path(__file__).parent / "torture" / "job.py"
# A worker that loses each second reply tries each call twice, a second apart.
PATIENCE_S = 120.0


class Scene:
    """A run of two ranks in which calls are spoiled."""

    def __init__(self, box: Box, server: Server) -> None:
        self.box = box
        self.spool = box / "S"
        self._server = server

    def run(self, faults: str, *roles: str) -> Ended:
        """Run it with these faults in the processes of some roles; lines of `faults_arm`."""
        tasks = self.box.tasks([{"payload": one} for one in payloads(TASKS)])
        executions = self.box / "executions"
        executions.mkdir()
        command = ["run", f"{JOB}:work", "--tasks", tasks, "--ranks", "2", "--spool", self.spool]
        command += ["--arg", f"executions={executions}", "-q"]
        plan = dict.fromkeys(roles, faults)
        return self._server.run(*command, cwd=self.box.home, plan=plan, patience_s=PATIENCE_S)

    def executions(self) -> Counter[int]:
        """How often each task was begun."""
        found: Counter[int] = Counter()
        for path in (self.box / "executions").iterdir():
            found.update(json.loads(line)["task"] for line in path.read_text().splitlines())
        return found


@pytest.fixture
def scene(box: Box) -> Iterator[Scene]:
    try:
        preload = library()
    except NoCompiler as reason:
        pytest.skip(str(reason))
    with Server(preload) as server:
        yield Scene(box, server)


@pytest.mark.parametrize("name", ["EIO", "ESTALE", "ETIMEDOUT", "EINTR", "EEXIST"])
def test_a_claim_that_was_made_and_told_as_an_error_is_known_by_what_it_says(
    scene: Scene, name: str
) -> None:
    """At half of the claims, where inode numbers tell nothing: each task runs once all the same."""
    faults = f"under={scene.spool}/claims\nclass=link\nn=1\nmany=0\nevery=2\naction=did\n"
    faults += f"errno={getattr(errno, name)}\ninodes=lie\n"
    ended = scene.run(faults, "r0.a0", "r1.a0")
    assert (ended.code, ended.hung) == (0, False), ended.err
    assert_sound(scene.box, "S", TASKS)
    assert scene.executions() == Counter(range(TASKS))


@pytest.mark.parametrize("call", ["link", "rename", "mkdir", "create"])
@pytest.mark.parametrize("name", ["EIO", "ESTALE", "EEXIST"])
def test_whatever_call_was_carried_out_and_told_as_an_error_costs_no_task(
    scene: Scene, call: str, name: str
) -> None:
    """Each second call of a worker on its spool, where inode numbers tell nothing."""
    faults = f"under={scene.spool}\nexcept={scene.spool}/outputs\nclass={call}\nn=1\nmany=0\n"
    faults += f"every=2\naction=did\nerrno={getattr(errno, name)}\ninodes=lie\n"
    ended = scene.run(faults, "r0.a0", "r1.a0")
    assert (ended.code, ended.hung) == (0, False), ended.err
    assert_sound(scene.box, "S", TASKS)
    assert scene.executions() == Counter(range(TASKS))


# In its first task, rank 0 makes the claims of calls whose replies were lost: one of its own, and
# one of rank 1 on the same task, which somebody had swept meanwhile.
FORGETFUL = """
import os, time
from pathlib import Path
from gpuspool.spool.claims import ClaimChain
from gpuspool.spool.layout import Layout
from gpuspool.spool.manifest import load_manifest, publish_manifest

OTHER = "rank-0001.a00"

def work(task, ctx):
    layout = Layout(ctx.args["spool"])
    theirs = layout.claims("sweep-01") / f"{0:09}"
    if ctx.attempt != "rank-0000.a00":
        while not theirs.exists():
            time.sleep(0.001)
        return task.index
    if theirs.exists():
        return task.index
    while not layout.journal(OTHER).exists():
        time.sleep(0.001)
    own = load_manifest(layout, "rank-0000", print)
    chain = ClaimChain(layout, "rank-0000", len(own)).advance()
    while (claim := chain.take(ctx.attempt, chain.next + 1)) is None:
        chain.advance()
    publish_manifest(layout, "sweep-01", list(own.tasks(claim.start, claim.stop)))
    ClaimChain(layout, "sweep-01", 1).advance().take(OTHER, 1)
    return task.index
"""


@pytest.mark.parametrize("is_alone", [False, True], ids=["with a parent", "without a parent"])
def test_idle_attempts_that_hold_claims_they_do_not_know_do_not_wait_for_each_other(
    box: Box, is_alone: bool
) -> None:
    box.write("forgetful.py", FORGETFUL)
    command = ["run", "forgetful.py:work", "--lines", box.lines(8), "--ranks", "2", "-q"]
    started = box.start(*command, "--spool", "S", "--arg", f"spool={box / 'S'}")
    if is_alone:
        # Before that, the other one might see that nobody is left to wait for, and end.
        wait_until((box / "S" / "claims" / "sweep-01" / f"{0:09}").exists)
        started.process.kill()
        started.wait(-9)
        wait_until(lambda: not box.processes())
    else:
        started.wait(0)
    assert [result["state"] for result in box.results("S")] == ["complete"] * 8
    assert Counter(line["task"] for line in journal_lines(box / "S")) == Counter(range(8))
