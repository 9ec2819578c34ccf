"""What words of the command line mean: KEY=VALUE, and which spool."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from gpuspool.spool.errors import UsageError
from gpuspool.spool.layout import Layout


def find(spool_dir: str | None) -> Path:
    """The spool that was named, else the only ./spool-* that was not set aside. Raises UsageError."""
    if spool_dir is not None:
        return Path(spool_dir)
    there = (path for path in sorted(Path().glob("spool-*")) if Layout(path).format.exists())
    found = [path for path in there if re.search(r"\.old-\d+$", path.name) is None]
    if len(found) != 1:
        names = ", ".join(map(str, found)) or "none"
        raise UsageError(
            f"SPOOL is not given and there is not just one ./spool-* ({names}). Name one."
        )
    return found[0]


def pair(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"--arg {text}: write KEY=VALUE.")
    try:
        return key, json.loads(value, parse_constant=int)  # NaN and Infinity are no JSON, so words
    except (ValueError, RecursionError):
        return key, value
