"""A few disks that go bad half way, as `make torture` plays all of them."""

from pathlib import Path

import pytest
from torture.full_disk import SMALL, row
from torture.mounts import why_not


@pytest.mark.slow
def test_a_run_on_a_bad_disk_ends_loudly_and_goes_on_once_it_is_mended(tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    found = row("small", tmp_path)
    assert found.failures == []
    assert found.is_clean
    assert found.cases == len(SMALL)
