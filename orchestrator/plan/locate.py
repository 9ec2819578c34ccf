"""Which spool is meant where the user names none."""

from __future__ import annotations

import os
import re
from pathlib import Path

from gpuspool.spool.errors import UsageError
from gpuspool.spool.layout import Layout

# The end of the name of a spool that --fresh has moved aside.
ASIDE = re.compile(r"\.old-\d+$")


def find_spool(spool: str | os.PathLike[str] | None) -> Path:
    """The spool that was named, else the only ./spool-* that was not moved aside.

    Raises UsageError where none is named and there is not exactly one.
    """
    if spool is not None:
        return Path(spool)
    found = _spools_here()
    if len(found) != 1:
        names = ", ".join(map(str, found)) or "none"
        raise UsageError(
            f"SPOOL is not given and there is not just one ./spool-* ({names}). Name one."
        )
    return found[0]


def _spools_here() -> list[Path]:
    """The spools in the current folder that were not moved aside, by name."""
    found: list[Path] = []
    for path in sorted(Path().glob("spool-*")):
        is_spool = Layout(path).format.exists()
        is_aside = ASIDE.search(path.name) is not None
        if is_spool and not is_aside:
            found.append(path)
    return found
