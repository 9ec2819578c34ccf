"""Text that may have come from anywhere, made safe for a terminal."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """The text with its control characters, other than newline and tab, escaped."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
