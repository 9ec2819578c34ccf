"""What the worker itself says in its log. A log that takes no more words must cost no task."""

from __future__ import annotations

import contextlib


def say(text: str) -> None:
    """Print one line or several, at once. Where the log cannot be written, say nothing."""
    # A job may put anything in the place of stdout, so anything may be raised here.
    with contextlib.suppress(Exception):
        print(text, flush=True)
