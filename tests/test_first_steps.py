"""The README's job for GPUs, and the page of the first hour; test_pages.py types the rest."""

import importlib.util
import re
from pathlib import Path

from helpers import Box, names

ROOT = Path(__file__).resolve().parent.parent


def test_the_readmes_job_for_gpus_needs_nothing_but_torch(box: Box) -> None:
    page = (ROOT / "README.md").read_text()
    section = page.partition("## A job for GPUs\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    box.write("embed.py", blocks[0])
    # What an environment looks like in which only torch was installed.
    box.write("bare/numpy.py", "raise ModuleNotFoundError('no numpy here', name='numpy')\n")
    box.python(
        "import os, torch\n"
        "torch.jit.script(torch.nn.Linear(4, 3)).save('model.pt')\n"
        "os.makedirs('images')\n"
        "for n in range(40): torch.save(torch.ones(4) * n, f'images/{n}.pt')\n"
    )
    words = re.findall(r"^\$ (gpuspool run embed.*)$", section, re.MULTILINE)[0].split()[1:]
    command = [word.strip("'") for word in words]
    box.run(*command, env={"PYTHONPATH": str(box / "bare")})
    assert len(names(box / "spool-Embed" / "outputs")) == 40
    sizes = {path.stat().st_size for path in (box / "spool-Embed" / "outputs").glob("*.vec")}
    assert max(sizes) < 4096


def test_the_page_of_the_first_hour_has_the_commands_of_its_script() -> None:
    file = ROOT / "scripts" / "first_hour.py"
    spec = importlib.util.spec_from_file_location("first_hour", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (ROOT / "docs" / "first-hour.md").read_text()
    for _, commands, _ in module.STEPS:
        for command in commands:
            assert f"\n$ {command}\n" in page, command
    assert "\nTraceback" not in page, "what a program of ours would print"
