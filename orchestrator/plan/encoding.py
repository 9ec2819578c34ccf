"""The encoding in which Python reads the names of files: UTF-8, as in the records of a spool.

Where the locale is another one (`LC_ALL=en_US.ISO-8859-1`), Python takes the bytes of a name for
other characters, and a name that is UTF-8 could not be recorded, or would be recorded as another.
So the command line starts itself again in Python's UTF-8 mode, and workers follow it. A program
that calls gpuspool cannot be started again, and is told what to do.
"""

from __future__ import annotations

import contextlib
import os
import sys

from gpuspool.spool.errors import UsageError


def is_utf8() -> bool:
    """Whether this process reads the names of files as UTF-8."""
    return sys.getfilesystemencoding() == "utf-8"


def start_again_in_utf8() -> None:
    """Execute the program that this process runs once more, in UTF-8 mode, if that is needed.

    Returns where it is not, and where it cannot be done.
    """
    if is_utf8() or not sys.executable:
        return
    with contextlib.suppress(OSError):
        os.execv(sys.executable, [sys.orig_argv[0], "-X", "utf8", *sys.orig_argv[1:]])


def refuse_other_encoding() -> None:
    """Raise UsageError where this process reads the names of files in another encoding."""
    if not is_utf8():
        raise UsageError(
            f"this Python reads the names of files as {sys.getfilesystemencoding()}, since the "
            "locale says so, and a spool holds UTF-8. Start it with `python -X utf8`, or set "
            "PYTHONUTF8=1."
        )


def interpreter() -> list[str]:
    """The command that starts this Python, in UTF-8 mode if this one is; more options may follow.

    -P keeps the current folder off its sys.path: modules of a job's folder must not hide ours.
    """
    mode = ["-X", "utf8"] if sys.flags.utf8_mode else []
    return [sys.executable, *mode, "-P"]
