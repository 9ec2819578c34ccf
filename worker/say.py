"""What a worker itself says in its log. A log that takes no more words must not cost anybody a
task.
"""

from __future__ import annotations

import contextlib


def say(text: str) -> None:
    """One line, or several, at once; where the log cannot be written, silence."""
    with contextlib.suppress(Exception):  # whatever the job put in the place of stdout may raise
        print(text, flush=True)
