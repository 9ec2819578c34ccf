"""Spools that real earlier versions made, of format 1: `tests/data/format-1` tells which. They are
read by every verb, and any start goes on with them; nothing that was done is lost.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from helpers import Box, tree

from gpuspool.spool.layout import rank_of

DATA = Path(__file__).resolve().parent / "data" / "format-1"
# The first days of the format are read by `make torture` alone.
VERSIONS = (pytest.param("early", marks=pytest.mark.slow), "late")
SPOOLS = ("finished", "killed", "drained", "failed", "command")

# What the old workers were waiting for when they were killed.
GO = {"GO": "1"}


@pytest.fixture(params=VERSIONS)
def project(box: Box, request: pytest.FixtureRequest) -> Box:
    """A project folder with the spools of one old version, below another path than it had."""
    with tarfile.open(DATA / f"{request.param}.tar.gz") as archive:
        archive.extractall(box.home, filter="data")
    for path in (box / "project").iterdir():
        path.rename(box / path.name)
    return box


def said(box: Box, spool: str) -> list[Any]:
    """What the old version's own `results` said."""
    return [json.loads(line) for line in (box / f"said-{spool}.jsonl").read_text().splitlines()]


def format_of(box: Box, spool: str) -> str:
    return (box / spool / "FORMAT").read_text()


@pytest.mark.parametrize("spool", SPOOLS)
def test_results_are_those_that_the_old_version_told(project: Box, spool: str) -> None:
    told = [
        {name: new[name] for name in old}
        for old, new in zip(said(project, spool), project.results(spool), strict=True)
    ]
    before = said(project, spool)
    for row, old in zip(told, before, strict=True):
        if len((old["error"] or {}).get("attempts", [])) > 1:
            # The old version named the last attempt in which a task failed, and not that of which
            # the error tells.
            assert row["rank"] == rank_of(row["attempt"]) == old["error"]["rank"]
            old |= {name: row[name] for name in ("rank", "attempt", "code") if name in old}
    assert told == before


@pytest.mark.parametrize("spool", SPOOLS)
def test_every_verb_that_looks_reads_the_spool_and_writes_nothing(project: Box, spool: str) -> None:
    before = tree(project / spool)
    old = said(project, spool)
    n_failed = sum(result["state"] == "failed" for result in old)
    n_complete = sum(result["state"] == "complete" for result in old)

    assert f"{n_complete} complete, {n_failed} failed" in project.run("status", spool).out
    assert len(project.run("results", spool).out.splitlines()) == len(old)
    failed = project.run("failed", spool).out
    assert [result["key"] in failed for result in old if result["state"] == "failed"] == (
        [True] * n_failed
    )
    for result in old:
        state = project.run("explain", spool, f"#{result['index']}").out.split("\n")[0]
        assert result["key"] in state
        assert ("failed" in state, "complete" in state) == (
            result["state"] == "failed",
            result["state"] == "complete",
        )
    project.run("explain", spool, "rank", "0")
    printed = project.run("logs", spool).out
    assert spool == "command" or "counted" in printed
    verified = project.run("verify", spool)
    assert f"{n_complete} complete, {n_failed} failed of {len(old)}" in verified.out
    assert "earlier version" in verified.out + verified.err

    assert tree(project / spool) == before


@pytest.mark.parametrize("spool", SPOOLS)
def test_an_attempt_is_ready_before_it_ends(project: Box, spool: str) -> None:
    for rank in (0, 1):
        steps = project.run("explain", spool, f"rank {rank}", "--json").out
        at: dict[str, dict[str, float]] = {}
        for step in json.loads(steps)["steps"]:
            at.setdefault(step["attempt"], {})[step["what"]] = step["at"]
        for whats in at.values():
            names = list(whats)
            assert "ended" not in whats or names.index("ended") == len(names) - 1, at


def test_whether_workers_of_another_host_live_is_not_claimed(project: Box) -> None:
    said = project.run("explain", "killed", "rank", "0").out
    assert "is not known" in said
    assert "go on without it" not in said


@pytest.mark.parametrize("spool", ["killed", "drained"])
def test_a_resume_does_what_was_left_and_keeps_what_was_done(project: Box, spool: str) -> None:
    old = {result["key"]: result for result in said(project, spool)}
    done = project.run("resume", spool, code=3, env=GO)
    assert "earlier version made this spool" in done.err
    assert format_of(project, spool) == "gpuspool 2\n"
    new = {result["key"]: result for result in project.results(spool)}
    for key, result in old.items():
        if result["state"] == "complete":
            assert new[key]["attempt"] == result.get("attempt", new[key]["attempt"]), "not again"
            assert new[key]["result"] == result["result"]
    lines = (project / {"killed": "held", "drained": "stopped"}[spool]).read_text().splitlines()
    states = {line: new[f"t{number}"]["state"] for number, line in enumerate(lines)}
    assert states == {line: "failed" if line.startswith("bad") else "complete" for line in lines}
    assert not project.problems(spool)
    # What was given out was done by nobody twice.
    again = project.run("resume", spool, code=3)
    assert "earlier version" not in again.err


def test_failed_tasks_get_another_round(project: Box) -> None:
    project.run("retry", "failed", code=3)
    assert format_of(project, "failed") == "gpuspool 2\n"
    states = [result["state"] for result in project.results("failed")]
    assert states == [result["state"] for result in said(project, "failed")]
    assert "round 2" in project.run("explain", "failed", "t1").out
    assert not project.problems("failed")


def test_a_changed_job_is_refused_before_the_spool_is_touched(project: Box) -> None:
    job = project / "count.py"
    job.write_text(job.read_text().replace('raise ValueError(f"{line} is no text")', "pass"))
    run = ["run", "count.py:Count", "--lines", "stopped", "--spool", "drained"]
    before = tree(project / "drained")
    assert "--keep-done" in project.run(*run, code=2).err
    assert tree(project / "drained") == before
    project.run(*run, "--keep-done", code=None, env=GO)
    states = {result["key"]: result["state"] for result in project.results("drained")}
    assert states["t9"] == "complete"
    assert not project.problems("drained")


def test_a_task_is_done_again_and_another_one_added(project: Box) -> None:
    n_before = len(project.results("failed"))
    project.write("later", "one more\n")
    project.run("add", "failed", "--lines", "later", "--key-field", "x", code=2)
    lines = project / ("more" if n_before == 9 else "failing")
    project.write("longer", lines.read_text() + "one more\n")
    project.run("add", "failed", "--lines", "longer")
    assert format_of(project, "failed") == "gpuspool 1\n", "whoever only adds converts nothing"
    project.run("redo", "failed", "t0", code=3)
    results = {result["key"]: result for result in project.results("failed")}
    assert len(results) == n_before + 1
    assert results[f"t{n_before}"]["result"] == {"letters": len("one more")}
    assert results["t0"]["state"] == "complete"
    assert not project.problems("failed")


def test_a_command_is_tried_again(project: Box) -> None:
    project.run("retry", "command", code=3)
    states = [result["state"] for result in project.results("command")]
    assert states == [result["state"] for result in said(project, "command")]
    assert not project.problems("command")


def test_wait_returns_once_the_dead_of_another_host_are_proved_dead(project: Box) -> None:
    assert "stopped" in project.run("wait", "killed", code=4).out
    assert project.run("wait", "finished").out
    project.run("wait", "failed", code=3)


def test_a_drain_of_what_has_ended_converts_nothing(project: Box) -> None:
    assert "nothing" in project.run("drain", "drained").err
    assert format_of(project, "drained") == "gpuspool 1\n"
    assert not project.problems("drained")


def test_a_fresh_start_keeps_the_old_spool_as_it_is(project: Box) -> None:
    before = tree(project / "failed")
    run = ["run", "count.py:Count", "--lines", "failing", "--spool", "failed", "--fresh"]
    project.run(*run, code=3)
    assert tree(project / "failed.old-1") == before
    assert format_of(project, "failed") == "gpuspool 2\n"


def test_several_starts_on_an_old_spool_are_one_run(project: Box) -> None:
    starts = [project.start("resume", "drained", env=GO) for _ in range(3)]
    assert {one.wait(None).code for one in starts} <= {3, 75}
    assert format_of(project, "drained") == "gpuspool 2\n"
    states = [result["state"] for result in project.results("drained")]
    assert states.count("failed") == 2
    assert states.count("complete") == 8
    assert not project.problems("drained")
