"""Nudges: the parent's word, through a pipe, that there is news in the spool.

A worker with nothing to do would have to look again and again whether there is a new manifest, and
on a network file system eight such workers keep a server busy with nothing. Its parent looks
anyway, once for all of them, and writes a byte into the pipe that is the worker's stdin when it
finds something new. A nudge is a hint and no more: whoever gets one looks for himself, and whoever
gets none looks too, only seldom. If the parent dies the pipe ends, which is a nudge as well.
"""

from __future__ import annotations

import contextlib
import os
import select
import stat

from gpuspool.spool.publish import out_of_the_way

# So much is read at once; how many nudges there were is no matter.
PIPE_BYTES = 4096


class Nudges:
    """The reading end of the pipe. Used by the main thread."""

    def __init__(self, fd: int | None) -> None:
        """fd: None where there is no pipe, so that nobody will nudge."""
        self._fd = fd

    @property
    def are_promised(self) -> bool:
        """Whether there is a parent that nudges."""
        return self._fd is not None

    def wait(self, seconds: float) -> bool:
        """Wait for a nudge, at most so long; whether there was one. To be asked if promised."""
        assert self._fd is not None
        readable, _, _ = select.select([self._fd], [], [], seconds)
        if not readable:
            return False
        with contextlib.suppress(BlockingIOError):
            if not os.read(self._fd, PIPE_BYTES):
                # The parent is gone.
                os.close(self._fd)
                self._fd = None
        return True


def nudges_of_stdin() -> Nudges:
    """Take the pipe that the parent gave as stdin, and leave /dev/null there for the job.

    To be called before any code of the job runs.
    """
    try:
        is_pipe = stat.S_ISFIFO(os.fstat(0).st_mode)
    except OSError:
        return Nudges(None)
    if not is_pipe:
        return Nudges(None)
    fd = out_of_the_way(os.dup(0))
    os.set_blocking(fd, False)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return Nudges(fd)
