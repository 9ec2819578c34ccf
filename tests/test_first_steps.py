"""What the README and the page of the first hour tell people to type, typed."""

import importlib.util
import os
import re
from pathlib import Path

from helpers import GPUSPOOL, Box

ROOT = Path(__file__).resolve().parent.parent


def test_the_first_job_of_the_readme(box: Box) -> None:
    page = (ROOT / "README.md").read_text()
    section = page.partition("## A first job\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```console\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 3
    path = f"{Path(GPUSPOOL).parent}:{os.environ['PATH']}"
    told = ""
    for block in blocks:
        lines = re.sub(r"^(gpuspool: |5050).*\n", "", block, flags=re.MULTILINE)
        script = re.sub(r"^\$ ", "", lines, flags=re.MULTILINE)
        done = box.run("-c", script, program=("bash",), env={"PATH": path}, code=0)
        told += done.out + done.err
    assert "200 of 200 tasks complete" in told
    assert "\n5050\n" in told
    assert '"result":{"lines":99}' in told


def test_the_page_of_the_first_hour_has_the_commands_of_its_script() -> None:
    file = ROOT / "scripts" / "first_hour.py"
    spec = importlib.util.spec_from_file_location("first_hour", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (ROOT / "docs" / "first-hour.md").read_text()
    for _, commands in module.STEPS:
        for command in commands:
            assert f"\n$ {command}\n" in page, command
    assert "Traceback" not in page
