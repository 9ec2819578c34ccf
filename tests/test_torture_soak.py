"""A short soak, as `make torture` plays a long one."""

from pathlib import Path

import pytest
from torture.cgroups import why_not
from torture.soak import TASKS, row


@pytest.mark.slow
def test_a_long_night_leaves_no_process_and_blames_only_the_poison(tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    found = row("small", tmp_path)
    assert found.failures == []
    assert found.is_clean
    assert found.R == 0
    assert found.cases == TASKS["small"]
    assert int(found.counts.split()[2]) > 5, "workers died"
