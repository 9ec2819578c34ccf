"""From which file system the interpreters of workers read what they import.

To import torch takes some 18,000 calls to the file system. On a disk of this host they cost little;
over a network each may be a round trip to a server that others ask as well.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from gpuspool.spool.errors import UsageError
from gpuspool.spool.file_system import file_system_type, is_network

# "on" or "off": whether the first rank of a start begins alone, whatever the file system is.
VARIABLE = "GPUSPOOL_ONE_FIRST"


def place_on_network() -> tuple[str, str] | None:
    """The interpreter, or its packages, and their type of file system, if that is a network's."""
    for place in (os.path.abspath(sys.executable), sys.prefix):
        kind = file_system_type(Path(os.path.realpath(place)))
        if is_network(kind):
            return place, kind
    return None


def why_one_first() -> str:
    """Why one rank of a start is to import its job before the others begin; "" if it is not.

    Raises UsageError where the variable says something else than "on" or "off".
    """
    asked = os.environ.get(VARIABLE, "")
    if asked == "off":
        return ""
    if asked == "on":
        return f"{VARIABLE}=on"
    if asked:
        raise UsageError(f"{VARIABLE} is {asked!r}; it can be on or off.")
    found = place_on_network()
    return f"{found[0]} lies on {found[1]}" if found else ""
