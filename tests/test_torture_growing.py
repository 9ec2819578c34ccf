"""A few runs that grow, as `make torture` plays two hundred."""

from pathlib import Path

import pytest
from torture.growing import CASES, row


@pytest.mark.slow
def test_nothing_is_lost_of_what_is_added_redone_and_not_done(tmp_path: Path) -> None:
    found = row("small", tmp_path)
    assert found.failures == []
    assert found.is_clean
    assert found.R == 0
    assert found.cases == len(CASES["small"])
