"""Libraries that the job may have imported: they are used if it has, and never imported for it."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType


def imported(name: str) -> ModuleType | None:
    """The module of this name where this process has imported it, else None.

    Another thread may be in the middle of importing it. That is waited for: until then the module
    stands in `sys.modules`, and half of its names are missing.
    """
    if name not in sys.modules:
        return None
    try:
        return importlib.import_module(name)
    except ImportError:
        # The other thread's import failed, and so did this one.
        return None
