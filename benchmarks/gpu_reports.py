"""A plugin of pytest that writes the tests of a session as rows of `make gpu`, each at its end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks import gpu_rows

# The file to write to.
VARIABLE = "GPU_ROWS"
# Of what went wrong the table shows so many characters.
SHOWN = 100


def _file() -> Path:
    return Path(os.environ[VARIABLE])


def words(nodeid: str) -> str:
    """The name of a test as a sentence has it."""
    return nodeid.rpartition("::")[2].removeprefix("test_").replace("_", " ")


def pytest_collection_finish(session: pytest.Session) -> None:
    gpu_rows.plan(_file(), *(words(item.nodeid) for item in session.items))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    # What goes wrong before or after the call is the test's too.
    if report.when == "call" or not report.passed:
        gpu_rows.add(
            _file(),
            gpu_rows.Row(
                words(report.nodeid), report.outcome, _why(report), round(report.duration, 1)
            ),
        )


def _why(report: pytest.TestReport) -> str:
    """The last line of what went wrong, "" where nothing did."""
    if report.passed:
        return ""
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])[:SHOWN]
    crash = getattr(report.longrepr, "reprcrash", None)
    text = str(report.longrepr) if crash is None else crash.message
    return " ".join(text.split())[:SHOWN]
