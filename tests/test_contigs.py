"""The demo's job on a small part of its data, killed half way.

The sequences and the torch model are real, and the labels are known.
"""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import Box, assert_sound, journal_lines, names, wait_until

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "contigs"
LIMIT = "40"


@pytest.fixture(scope="module")
def data() -> None:
    """The weights and sequences, downloaded if they are not there yet."""
    command = [sys.executable, str(EXAMPLE / "fetch_data.py")]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0 and "could not download" in done.stderr:
        pytest.skip(f"the demo's data cannot be downloaded here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr


def test_forty_contigs_agree_with_the_authors_after_a_kill_half_way(box: Box, data: None) -> None:
    box.run(EXAMPLE / "make_tasks.py", "--limit", LIMIT, "tasks.jsonl", program=(sys.executable,))
    tasks = (box / "tasks.jsonl").read_bytes().count(b"\n")
    command = [
        "run",
        "--ranks",
        "2",
        "--devices",
        "cpu",
        "--tasks",
        "tasks.jsonl",
        f"{EXAMPLE}/classify.py:Contigs",
    ]
    started = box.start(*command)
    wait_until(lambda: journal_lines(box / "spool-Contigs"))
    box.kill_all()
    killed = started.wait()
    assert killed.code in (-signal.SIGKILL, 0)
    before = {line["task"] for line in journal_lines(box / "spool-Contigs")}
    box.run(*command)
    results = box.run("results").out
    compared = box.run(
        EXAMPLE / "compare.py", "--limit", LIMIT, program=(sys.executable,), stdin=results
    )
    assert f"{LIMIT} of {LIMIT} contigs agree" in compared.out
    assert_sound(box, "spool-Contigs", tasks)
    assert len(list((box / "spool-Contigs" / "outputs").rglob("*.npy"))) == tasks
    lines = [line["task"] for line in journal_lines(box / "spool-Contigs")]
    assert sorted(lines) == list(range(tasks)), "nothing that was journaled ran again"
    assert before <= set(lines)
    assert names(box / "spool-Contigs" / "failed-tasks") == []
