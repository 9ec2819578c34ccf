"""A few workers that are neither alive nor gone, as `make torture` plays a hundred."""

from pathlib import Path

import pytest
from torture import fuse, mounts
from torture.zombies import PLAYS, row


@pytest.mark.slow
def test_who_stands_still_is_taken_over_once_and_nobody_else(tmp_path: Path) -> None:
    if reason := mounts.why_not() or fuse.why_not():
        pytest.skip(reason)
    found = row("small", tmp_path)
    assert found.failures == []
    assert found.is_clean
    assert found.cases == len(PLAYS["small"])
    assert int(found.counts.split()[0]) > found.cases, "each play takes over several"
