"""What the dead left behind is removed once their attempts are closed."""

import os
from pathlib import Path

import pytest
from helpers import Box, half_done

from gpuspool.spool.layout import hidden_output
from gpuspool.spool.view import open_view

LOST = "rank-0000.a00"


@pytest.fixture
def left_in_out(box: Box) -> Path:
    """An output that a worker of a killed run was writing when it died."""
    half_done(box)
    name = hidden_output(open_view(box / "S").writer(LOST), 20, ".txt")
    path = box / "S" / "outputs" / name
    path.write_text("half of an out")
    return path


def test_whoever_closes_the_dead_removes_what_they_left_in_out(box: Box, left_in_out: Path) -> None:
    # Of the parent nothing is known then, so it counts as alive until a lease is over.
    os.truncate(box / "S" / "parents" / "0000.json", 100)
    box.run("resume", "S")
    assert not left_in_out.exists()
