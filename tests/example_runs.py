"""What the tests of the examples have in common: a run that is killed half way, and goes on.

Most examples use libraries that gpuspool does not need, from the extra `examples`. Their tests are
skipped where these are not installed.
"""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import JOBS, Box, assert_sound, journal_lines, names, wait_until

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
PYTHON = (sys.executable,)


def needs(*libraries: str) -> pytest.MarkDecorator:
    """Skip a test where one of these is not installed. They are not imported, which takes long."""
    missing = [name for name in libraries if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(
        bool(missing), reason=f"not installed, from the extra `examples`: {', '.join(missing)}"
    )


def tiny_model(kind: str, folder: Path) -> Path:
    """Make a tiny model as transformers saves it; jobs/tiny_models.py has the kinds."""
    subprocess.run([*PYTHON, JOBS / "tiny_models.py", kind, folder], check=True)
    return folder


def run_and_kill(box: Box, command: list[str | Path], spool: str, lines: int = 1) -> set[int]:
    """Start a run, and kill all its processes once so many tasks are complete.

    Returns the tasks that were. A fast machine may have done them all by then.
    """
    started = box.start(*command)
    wait_until(lambda: len(journal_lines(box / spool)) >= lines or started.is_over())
    box.kill_all()
    assert started.wait().code in (-signal.SIGKILL, 0)
    return {line["task"] for line in journal_lines(box / spool)}


def kill_and_go_on(
    box: Box, command: list[str | Path], spool: str, tasks: int, lines: int = 1
) -> list[Any]:
    """Kill a run half way, type the same command again, and return the results.

    Every task is complete then, and none was run again that was complete before.
    """
    before = run_and_kill(box, command, spool, lines)
    box.run(*command)
    results = assert_sound(box, spool, tasks)
    done = [line["task"] for line in journal_lines(box / spool)]
    assert sorted(done) == list(range(tasks))
    assert before <= set(done)
    assert names(box / spool / "failed-tasks") == []
    return results
