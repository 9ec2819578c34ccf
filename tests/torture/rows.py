"""What a row of the torture suite is, and how rows are printed.

Each row module has `row(amount, home) -> Row`: amount "small" takes seconds and is part of the
tests, "full" is what the docs tell of. The letters are the checker's: L lost, D double, C wrong, X
success claimed falsely, R run again.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torture.checker import Counts


@dataclass
class Row:
    """The outcome of one kind of torture. failures: each says what to type to see it again."""

    name: str
    cases: int
    counts: str
    L: int = 0
    D: int = 0
    C: int = 0
    X: int = 0
    R: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether nothing is wrong. R alone is a cost, for which each row has its own limit."""
        return not (self.L or self.D or self.C or self.X or self.failures)

    def add(self, counts: Counts) -> None:
        """Add what the checker counted in one case."""
        for letter in "LDCXR":
            setattr(self, letter, getattr(self, letter) + getattr(counts, letter))

    def line(self) -> str:
        """The one line that is printed when the row ends."""
        letters = f"L {self.L}  D {self.D}  C {self.C}  X {self.X}  R {self.R}"
        verdict = "" if self.is_clean else "  FAILED"
        return f"{self.name}: {self.counts}; {letters}; {self.seconds:.1f} s{verdict}"


def file_system(path: Path) -> str:
    """The type of the file system that holds a path ("ext4"): that of the nearest mount point."""
    best, kind = "", "unknown"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, name = line.split()[:3]
        if path.resolve().is_relative_to(mount) and len(mount) >= len(best):
            best, kind = mount, name
    return kind


def machine(home: Path) -> str:
    """Where the figures come from: cores, Python, kernel and file system."""
    cores = len(os.sched_getaffinity(0))
    python, kernel = platform.python_version(), platform.release()
    return f"{cores} cores, Python {python}, Linux {kernel}, {file_system(home)}"


def table(rows: Sequence[Row]) -> str:
    """All rows as a markdown table."""
    lines = ["| row | counts | L | D | C | X | R | seconds |", "|---|---|---|---|---|---|---|---|"]
    for row in rows:
        cells = (row.name, row.counts, row.L, row.D, row.C, row.X, row.R, f"{row.seconds:.0f}")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)
