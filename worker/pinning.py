"""Whether the job left alone the variables that name this worker's devices.

Each worker is given its own device by variables that stand in its environment before its
interpreter starts. A job that sets CUDA_VISIBLE_DEVICES itself, as scripts for one GPU often do
above `import torch`, would put all ranks on one card: everything works, slowly, and nobody sees
why. So what stands there is compared with what was given, after the import, after the construction
and after the first call of the job.

Called by `prepare`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

from gpuspool.spool.errors import DevicesChanged
from gpuspool.worker.devices import CHECK_VARIABLE, is_checking

# The variables that decide which devices a library sees.
NAMES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")

# Values that hide all devices. A job on the CPU may set another one than it was given.
NONE = ("", "-1")


class Pinning:
    """The variables of one worker, and who in this process changed them."""

    def __init__(self, given: Mapping[str, str]) -> None:
        """given: what the parent set, by name."""
        self._given = {name: given.get(name) for name in NAMES}
        # Of each variable that was set or removed, the line that did, as `file:line`.
        self._places: dict[str, str] = {}
        self._putenv = os.putenv
        self._unsetenv = os.unsetenv

    # `os.environ` calls these two functions, by their names in `os`, for each change. While the job
    # is made that is the cheapest place to see who changes a variable, in whatever module. An audit
    # hook would see the same, but stay for the whole life of the process.
    def watch(self) -> None:
        """From now on, note where one of the variables is changed."""
        os.putenv = self._noting(self._putenv)
        os.unsetenv = self._noting(self._unsetenv)

    def unwatch(self) -> None:
        """Note no more."""
        os.putenv = self._putenv
        os.unsetenv = self._unsetenv

    def _noting(self, change: Callable[..., None]) -> Callable[..., None]:
        def noted(name: Any, *value: Any) -> None:
            change(name, *value)
            text = os.fsdecode(name)
            if text in NAMES:
                self._places[text] = _caller(sys._getframe(1))

        return noted

    def check(self) -> None:
        """Raise DevicesChanged where a variable is not what it was."""
        if not is_checking():
            return
        for name, given in self._given.items():
            now = os.environ.get(name)
            if now == given or (given in NONE and now in NONE):
                continue
            raise DevicesChanged(
                f"{_told(name, given)} for this worker, and the job {_change(now)}. Each worker "
                f"sees its own device alone, as cuda:0. {self._advice(name)}, or skip this check "
                f"with {CHECK_VARIABLE}=off."
            )

    def _advice(self, name: str) -> str:
        place = self._places.get(name)
        if place is None:
            return f"Remove what changes {name} in the job"
        return f"Remove that line, {place}"


def _caller(frame: FrameType | None) -> str:
    """The first line outside of the interpreter's own frozen modules, such as `os`."""
    while frame is not None and frame.f_code.co_filename.startswith("<frozen"):
        frame = frame.f_back
    if frame is None:
        return "of an unknown place"
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _told(name: str, given: str | None) -> str:
    if given is None:
        return f"{name} was not set"
    return f'{name} was "{given}"'


def _change(now: str | None) -> str:
    if now is None:
        return "removed it"
    return f'set it to "{now}"'
