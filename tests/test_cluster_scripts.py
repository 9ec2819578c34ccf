"""The batch scripts that the pages on clusters show are bash, and do what these say of them."""

import re
import signal
import subprocess
from pathlib import Path

import pytest
from helpers import Box, wait_until

DOCS = Path(__file__).resolve().parent.parent / "docs"
BLOCKS = [
    (page, block)
    for page in ("slurm.md", "clusters.md")
    for block in re.findall(r"```bash\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
]


@pytest.mark.parametrize(("page", "script"), BLOCKS, ids=lambda value: value[:12])
def test_every_script_is_bash(page: str, script: str) -> None:
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def grid_engine(box: Box, ends_with: str) -> Path:
    """The script for Grid Engine, of which gpuspool says which signals came, then ends so."""
    (script,) = [block for _, block in BLOCKS if "#$ -t" in block]
    gpuspool = box.write(
        "gpuspool",
        "#!/bin/bash\n"
        "trap 'echo USR2 >> heard' USR2\n"
        "echo > ready\n"
        "until [ -e gate ]; do sleep 0.01; done\n"
        f"{ends_with}\n",
    )
    gpuspool.chmod(0o755)
    return box.write("job.sh", script.replace("/shared/venv/bin/gpuspool", str(gpuspool)))


@pytest.mark.parametrize(
    ("ends_with", "code"),
    [("exit 0", 0), ("exit 3", 3), ("exit 4", 4), ("exit 75", 99), ("kill -9 $$", 137)],
)
def test_grid_engine_is_told_99_where_it_shall_requeue(box: Box, ends_with: str, code: int) -> None:
    (box / "gate").touch()
    box.run(grid_engine(box, ends_with), program=("bash",), code=code)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_notice_of_grid_engine_is_passed_on_and_waited_for(
    box: Box, number: signal.Signals
) -> None:
    job = box.start(grid_engine(box, "exit 75"), program=("bash",))
    wait_until((box / "ready").exists)
    job.signal(number)
    wait_until((box / "heard").exists)
    job.signal(number)
    wait_until(lambda: (box / "heard").read_text() == "USR2\nUSR2\n")
    assert not job.is_over()
    (box / "gate").touch()
    job.wait(99)
