"""A few stops that everybody gets, as `make torture` plays a hundred."""

from pathlib import Path

import pytest
from torture.stops import CASES, row


@pytest.mark.slow
def test_no_task_fails_for_a_stop_that_everybody_gets(tmp_path: Path) -> None:
    found = row("small", tmp_path)
    assert found.failures == []
    assert found.is_clean
    assert found.cases == CASES["small"]
