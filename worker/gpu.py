"""How busy this worker's devices are and how full, as NVML tells. For people, in usage/.

The only file of the worker that imports NVML, and only where the worker has a GPU and its job is
made: before that the worker loads nothing that a job may want to load first.

NVML may not be there (the device is AMD's), may not tell (a MIG instance does not say how busy it
is), may fail, and, with a card that fell off its bus, may never come back. None of that may hurt
the work. So it is asked in a thread of its own, which is waited for only for a moment; as long as
it has not come back nothing is told, and nobody else asks.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

# An answer takes some ms, the first one some hundred. Whoever asks has to make the journal durable
# each second, and waits no longer than this.
PATIENCE_S = 0.5


class Reading(msgspec.Struct, frozen=True):
    """busy: in percent, the mean of all devices. used, total: memory in bytes, the sum of all.

    By whoever uses them. None where one of the devices does not tell.
    """

    busy: float | None = None
    used: int | None = None
    total: int | None = None


NOTHING = Reading()


def names_of(device: str, uuids: Sequence[str], first: str) -> list[str]:
    """What NVML knows the devices of a worker by; [] where one of them is not known, or none is.

    device: the tokens, joined by commas. uuids: those of tokens that are indices, "" where it is
    not known. first: the UUID of the first device, as the job's own libraries see it; "" where they
    do not tell.
    """
    if device in ("", "cpu"):
        return []
    names: list[str] = []
    for place, token in enumerate(device.split(",")):
        name = token
        if token.isdecimal():
            name = uuids[place] if place < len(uuids) else ""
        # A token may be the beginning of a UUID, and a number may mean anything elsewhere.
        if place == 0 and first.startswith(name):
            name = first or name
        names.append(name)
    return names if all(names) else []


class Gpus:
    """The devices of one worker. One thread calls `read`."""

    def __init__(self) -> None:
        self._asking: threading.Thread | None = None
        self._answer = NOTHING
        # Whether NVML cannot be had at all, and whether it was begun with.
        self._is_absent = False
        self._is_begun = False

    def read(self, names: Sequence[str]) -> Reading:
        """What NVML tells of these devices now; nothing where it does not come back in time."""
        is_asking = self._asking is not None and self._asking.is_alive()
        if not names or self._is_absent or is_asking:
            return NOTHING
        self._answer = NOTHING
        thread = threading.Thread(target=self._ask, args=(names,), name="gpuspool-gpu", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            # There is no thread to be had.
            return NOTHING
        self._asking = thread
        thread.join(PATIENCE_S)
        return NOTHING if thread.is_alive() else self._answer

    def _ask(self, names: Sequence[str]) -> None:
        # Whatever goes wrong, in NVML or in what the job has put in the place of its bindings,
        # costs these figures alone.
        with contextlib.suppress(Exception):
            try:
                import pynvml
            except ImportError:
                self._is_absent = True
                return
            if not self._is_begun:
                try:
                    pynvml.nvmlInit()
                except pynvml.NVMLError_LibraryNotFound:
                    self._is_absent = True
                    return
                self._is_begun = True
            try:
                self._answer = _look_at(pynvml, names)
            except pynvml.NVMLError:
                # A device is lost, or the job has ended NVML. The next one begins anew.
                self._is_begun = False


def _look_at(nvml: Any, names: Sequence[str]) -> Reading:
    """Ask for all devices. Raises NVMLError where one is not there."""
    devices = [nvml.nvmlDeviceGetHandleByUUID(name.encode()) for name in names]
    busy = _of_all(nvml, lambda one: nvml.nvmlDeviceGetUtilizationRates(one).gpu, devices)
    used = _of_all(nvml, lambda one: nvml.nvmlDeviceGetMemoryInfo(one).used, devices)
    total = _of_all(nvml, lambda one: nvml.nvmlDeviceGetMemoryInfo(one).total, devices)
    mean = None if busy is None else round(busy / len(devices), 1)
    return Reading(mean, used, total)


def _of_all(nvml: Any, ask: Callable[[Any], int], devices: Sequence[Any]) -> int | None:
    """The sum of what all devices say; None where one does not tell."""
    try:
        return sum(int(ask(device)) for device in devices)
    except nvml.NVMLError:
        return None
