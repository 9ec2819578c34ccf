"""Text that may have come from anywhere, made safe for a terminal.

Keys, paths and messages of errors reach a terminal through here: an escape sequence in the name of
an input could otherwise change what the person in front of it sees.
"""

from __future__ import annotations

import re

# All control characters of ASCII and Latin-1 but newline and tab.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """The text with its control characters, other than newline and tab, escaped as \\x1b."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
