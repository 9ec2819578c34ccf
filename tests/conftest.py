"""The one fixture of the end-to-end tests: a folder to run commands in.

No process is left behind in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import Box
from hypothesis import settings

# How long one example takes says more of the machine than of the code.
settings.register_profile("gpuspool", deadline=None)
settings.load_profile("gpuspool")


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    home = tmp_path / "home"
    home.mkdir()
    one = Box(home)
    yield one
    one.kill_all()
