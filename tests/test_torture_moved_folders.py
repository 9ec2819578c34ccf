"""A few folders that go away, as `make torture` plays a hundred."""

from pathlib import Path

import pytest
from torture.moved_folders import CASES, SMALL, all_cases, choose, row


@pytest.mark.slow
def test_nothing_is_told_complete_that_is_not_there(tmp_path: Path) -> None:
    found = row("small", tmp_path)
    assert found.failures == []
    assert found.is_clean
    assert found.R == 0


def test_the_whole_row_meets_every_way_in_which_a_folder_goes() -> None:
    assert len(SMALL) == CASES["small"]
    cases = choose("full", can_mount=True)
    assert len(set(cases)) == CASES["full"]
    ways = {(case.folder, case.way, case.who) for case in all_cases(can_mount=True)}
    assert {(case.folder, case.way, case.who) for case in cases} == ways
