"""Commands of Slurm's that answer as a test wants: too late, wrongly, or after the deed.

A real Slurm is tested elsewhere. What these are for is what a healthy one cannot be made to do.
"""

from __future__ import annotations

import os
from pathlib import Path

from helpers import Box


class Stubs:
    """A folder of small scripts that come first on PATH; each call is noted with its words."""

    def __init__(self, box: Box) -> None:
        self._folder = box.home.parent / "bin"
        self._folder.mkdir()
        self._notes = box.home.parent / "called"
        self._notes.touch()
        self.path = f"{self._folder}:{os.environ['PATH']}"

    def add(self, name: str, script: str) -> None:
        """A command that does what these lines of sh say. It replaces one of the same name."""
        path = self._folder / name
        note = f'printf "%s\\n" "{name} $*" >> {self._notes}'
        new = Path(f"{path}.new")
        new.write_text(f"#!/bin/sh\n{note}\n{script}\n")
        new.chmod(0o755)
        new.rename(path)

    @property
    def calls(self) -> list[str]:
        """What was called so far, in order."""
        return self._notes.read_text().splitlines()

    def called(self, name: str) -> list[str]:
        """The calls of one command, without its name."""
        return [call.partition(" ")[2] for call in self.calls if call.partition(" ")[0] == name]


def failing_stubs(box: Box) -> Stubs:
    """A Slurm for all that the box runs: each command fails until a test says otherwise."""
    stubs = Stubs(box)
    for name in ("squeue", "scontrol", "sbatch", "sinfo"):
        stubs.add(name, "echo no such answer >&2; exit 1")
    box.environment["PATH"] = stubs.path
    return stubs
