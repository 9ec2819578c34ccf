"""A small kill storm, as `make torture` plays a large one."""

from pathlib import Path

from torture.kill_storm import KILLED, RUNS, row


def test_nothing_is_lost_whoever_is_killed(tmp_path: Path) -> None:
    found = row("small", tmp_path)
    assert found.failures == []
    assert found.is_clean
    assert found.R == 0, "a killed process loses no line that it wrote"
    assert found.cases >= RUNS["small"]
    assert int(found.counts.split()[-2]) >= KILLED["small"]
