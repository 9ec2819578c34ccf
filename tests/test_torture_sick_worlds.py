"""A few sick worlds on real processes, as `make torture` plays fifty."""

from pathlib import Path

import pytest
from torture import mounts
from torture.sick_worlds import CASES, row


@pytest.mark.slow
def test_no_task_fails_for_what_its_world_does(tmp_path: Path) -> None:
    found = row("small", tmp_path)
    assert found.failures == []
    assert found.is_clean
    assert found.R == 0
    assert found.cases == len(CASES["small"]) - bool(mounts.why_not())
