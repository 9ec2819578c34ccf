"""A job that changes which devices it sees: told, with the line to remove, before any task counts.

Scripts for one GPU set CUDA_VISIBLE_DEVICES above `import torch`. In a worker that would put every
rank on one card.
"""

import pytest
from helpers import Box, Done, Nvml, names, record

ABOVE_TORCH = """
import os
os.environ["CUDA_VISIBLE_DEVICES"] = "0"
import torch


def embed(task, ctx):
    return 1
"""
IN_A_HELPER = """
import helper


def embed(task, ctx):
    return 1
"""
IN_THE_CONSTRUCTOR = """
import os


class embed:
    def __init__(self, ctx):
        os.environ.update(CUDA_VISIBLE_DEVICES="0")

    def __call__(self, task, ctx):
        return 1
"""
IN_THE_FIRST_CALL = """
import os


def embed(task, ctx):
    ctx.output(task, ".txt").write_text("on the wrong card")
    os.environ["CUDA_VISIBLE_DEVICES"] = "0"
    return 1
"""
IN_THE_FIRST_BATCH = """
import os


class embed:
    batch_size = 3

    def __call__(self, tasks, ctx):
        os.environ["CUDA_VISIBLE_DEVICES"] = "0"
        raise RuntimeError("no such card")
"""
REMOVED = """
import os
os.environ.pop("CUDA_VISIBLE_DEVICES")


def embed(task, ctx):
    return 1
"""
BY_SPEED = """
import os
os.environ.setdefault("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
os.environ["CUDA_DEVICE_ORDER"] = "FASTEST_FIRST"


def embed(task, ctx):
    return 1
"""


ABOVE_HERE = """
import os
os.environ["CUDA_VISIBLE_DEVICES"] = "0"


def embed(task, ctx):
    return 1
"""
KEPT = """
import os
os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0")


def embed(task, ctx):
    return 1
"""
RESTORED = """
import os
kept = os.environ.pop("CUDA_VISIBLE_DEVICES")
os.environ["CUDA_VISIBLE_DEVICES"] = kept


def embed(task, ctx):
    return 1
"""
# What a worker asks of torch, from a card that a test names.
TORCH = """
import os
from types import SimpleNamespace

__version__ = "2"
card = SimpleNamespace(uuid=os.environ["SEES"])
cuda = SimpleNamespace(
    device_count=lambda: 1,
    get_device_name=lambda place: "a card",
    get_device_properties=lambda place: card,
    is_initialized=lambda: False,
)
OutOfMemoryError = type("OutOfMemoryError", (RuntimeError,), {})
"""


def run(box: Box, source: str, code: int, *options: str, visible: str = "2,3") -> Done:
    box.write("job.py", source)
    box.write("helper.py", "import os\n\nos.environ['CUDA_VISIBLE_DEVICES'] = '0'\n")
    command = ["run", "job.py:embed", "--lines", box.lines(8), "--spool", "S", *options]
    env = {"CUDA_VISIBLE_DEVICES": visible}
    return box.run(*command, "--max-restarts", "1", code=code, env=env)


@pytest.mark.parametrize(
    ("source", "line"),
    [
        (ABOVE_TORCH, "job.py:3"),
        pytest.param(IN_A_HELPER, "helper.py:3", marks=pytest.mark.slow),
        (IN_THE_CONSTRUCTOR, "job.py:7"),
        pytest.param(IN_THE_FIRST_CALL, "job.py:7", marks=pytest.mark.slow),
        (IN_THE_FIRST_BATCH, "job.py:9"),
        pytest.param(REMOVED, "job.py:3", marks=pytest.mark.slow),
        (BY_SPEED, "job.py:4"),
    ],
    ids=["above-torch", "helper", "constructor", "call", "batch", "removed", "by-speed"],
)
def test_a_job_that_chooses_its_own_card_is_refused_with_the_line_to_remove(
    box: Box, source: str, line: str
) -> None:
    done = run(box, source, 4)
    assert f"Remove that line, {box / line}" in done.err
    assert box.status("S")["tasks"]["waiting"] == 8
    for path in (box / "S" / "failed").iterdir():
        closing = record(path)
        assert (closing["reason"], closing["error"]["type"]) == ("load", "DevicesChanged")
    # Nothing that a refused call wrote is left, not even hidden.
    assert names(box / "S" / "outputs") == []
    assert not list((box / "S" / "outputs").rglob("*.txt"))
    box.write("job.py", "def embed(task, ctx):\n    return 1\n")
    box.run("resume", "S", "--keep-done", env={"CUDA_VISIBLE_DEVICES": "2,3"})
    assert box.status("S")["tasks"]["complete"] == 8


def test_a_rank_that_would_have_been_put_on_anothers_card_runs_nothing(box: Box) -> None:
    done = run(box, ABOVE_HERE, 0, visible="0,1")
    assert 'CUDA_VISIBLE_DEVICES was "1" for this worker, and the job set it to "0"' in done.err
    assert {result["rank"] for result in box.results("S")} == {0}
    assert "Look at device" not in done.err, "nothing is wrong with the card"


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_command_that_puts_all_ranks_on_one_card_is_warned_of(box: Box, ranks: int) -> None:
    command = ["run", "--lines", box.lines(2), "--spool", "S", "--ranks", str(ranks)]
    words = ["env", "CUDA_VISIBLE_DEVICES=0", "true", "{input}"]
    done = box.run(*command, "--", *words, env={"CUDA_VISIBLE_DEVICES": "2,3"})
    assert ("warning: the command sets CUDA_VISIBLE_DEVICES itself" in done.err) == (ranks == 2)


@pytest.mark.parametrize("source", [KEPT, RESTORED])
def test_a_job_that_leaves_its_card_as_it_was_runs(box: Box, source: str) -> None:
    run(box, source, 0)


def test_a_job_on_the_cpu_may_hide_devices_but_not_take_one(box: Box) -> None:
    run(box, ABOVE_HERE.replace('"0"', '"-1"'), 0, visible="")
    done = run(box, ABOVE_HERE, 4, "--fresh", visible="")
    assert 'the job set it to "0"' in done.err


def test_the_check_can_be_switched_off(box: Box) -> None:
    box.environment["GPUSPOOL_DEVICE_CHECK"] = "off"
    run(box, ABOVE_HERE, 0)
    assert {result["state"] for result in box.results("S")} == {"complete"}


def test_a_card_that_torch_numbers_otherwise_is_refused(box: Box, nvml: Nvml) -> None:
    """The variable is right and torch sees one card, and it is the wrong one."""
    box.write("torch/__init__.py", TORCH)
    for sees, code in (("bbbb", 4), ("aaaa", 0)):
        env = nvml.lists("GPU-aaaa@1", SEES=sees)
        command = ["run", "job.py:embed", "--lines", box.lines(2), "--spool", "S", "--fresh"]
        box.write("job.py", "import torch\ndef embed(task, ctx): return 1\n")
        done = box.run(*command, "--max-restarts", "0", code=code, env=env)
        assert code == 0 or "this worker was given 0 (GPU-aaaa) and sees GPU-bbbb" in done.err
