"""The devices this worker sees.

The only file that imports torch, and only where the job has imported it before: a job without torch
runs without torch. Called while the job is made, when a call fails, and for the statistics.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Sequence
from typing import Any

import msgspec

from gpuspool.spool.errors import DeviceError
from gpuspool.worker.imported import imported

# With the value "off", what torch sees is not compared with what the worker was given.
CHECK_VARIABLE = "GPUSPOOL_DEVICE_CHECK"
# CUDA_SUCCESS, and the codes of a driver that is not used here (NOT_INITIALIZED, DEINITIALIZED,
# INVALID_CONTEXT): these say nothing of a device.
_HEALTHY = (0, 3, 4, 201)
# While a graph is captured nothing may wait for the device, and the driver says so with one of
# these codes. That is the job's own error.
_CAPTURING = range(900, 909)


def is_checking() -> bool:
    """Whether devices are to be compared at all."""
    return os.environ.get(CHECK_VARIABLE) != "off"


class Device(msgspec.Struct, frozen=True):
    """The first device of this worker, as its driver names it; both are empty on the CPU."""

    name: str = ""
    uuid: str = ""


def _torch() -> Any:
    """The module torch where the job has imported it, else None."""
    if "torch" not in sys.modules:
        return None
    import torch

    return torch


def check_devices(tokens: str, uuids: Sequence[str] = ()) -> Device:
    """Compare what torch sees with the device tokens that this worker was given.

    Returns the first device, once it is sure that torch sees as many devices as `tokens` (joined by
    commas) names, and the right ones as far as their UUIDs are known. uuids: those of tokens that
    are indices, "" where it is not known. Without tokens (a CPU rank), without torch, or with
    GPUSPOOL_DEVICE_CHECK=off there is nothing to compare. Raises DeviceError.
    """
    torch = _torch()
    if not tokens or torch is None or not is_checking():
        return Device()
    wanted = tokens.split(",")
    seen = torch.cuda.device_count()
    if seen != len(wanted):
        raise DeviceError(
            f"this worker was given {len(wanted)} device(s) ({tokens}) and torch "
            f"{torch.__version__} sees {seen}. Look at nvidia-smi and at the driver; "
            f"{CHECK_VARIABLE}=off skips this check."
        )
    devices = [_device(torch, place) for place in range(seen)]
    meant = list(uuids) or [""] * len(wanted)
    for device, token, uuid in zip(devices, wanted, meant, strict=True):
        # A token may be the beginning of a UUID.
        start = token if token.startswith("GPU-") else uuid
        if device.uuid and start.startswith("GPU-") and not device.uuid.startswith(start):
            raise DeviceError(
                f"this worker was given {token} ({start}) and sees {device.uuid} ({device.name}). "
                f"Look at CUDA_DEVICE_ORDER and at nvidia-smi; {CHECK_VARIABLE}=off skips this "
                "check."
            )
    return devices[0]


def _device(torch: Any, place: int) -> Device:
    """One device as torch sees it. Old versions of torch do not tell the UUID."""
    name = str(torch.cuda.get_device_name(place))
    uuid = str(getattr(torch.cuda.get_device_properties(place), "uuid", ""))
    if uuid:
        uuid = f"GPU-{uuid}"
    return Device(name, uuid)


# An error of CUDA is either the call's own (an ordinal that is not there, memory that ran out), or
# it spoils the context, and from then on every call in this process fails with it. Types and
# messages do not tell which: torch raises the same AcceleratorError for both. The driver does: to
# wait for the work that was handed to the device fails if, and only if, the context is spoiled.
def find_device_fault() -> str:
    """Look whether the device of this process takes work; says why not, or "" if it does.

    Where the job has not begun to use a device there is nothing to look at. Costs some µs on a
    device that is idle. To be called after user code has raised, in the thread that it ran in.
    """
    driver = _driver()
    code = None if driver is None else _code_of(driver)
    if code is not None:
        if code in _HEALTHY or code in _CAPTURING:
            return ""
        return _words_of(driver, code)
    torch = _torch()
    if torch is None or not torch.cuda.is_initialized():
        return ""
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    return ""


def _driver() -> Any:
    """NVIDIA's driver, where something in this process has loaded it; else None."""
    # Only here: a worker whose job raises nothing does without.
    import ctypes

    try:
        # RTLD_NOLOAD: a process that has not loaded the driver by now has no context.
        return ctypes.CDLL("libcuda.so.1", mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    except OSError:
        return None


def _code_of(driver: Any) -> int | None:
    """What the driver says of this thread's context; None where there is none."""
    import ctypes

    context = ctypes.c_void_p()
    if driver.cuCtxGetCurrent(ctypes.byref(context)) != 0 or not context.value:
        return None
    return int(driver.cuCtxSynchronize())


def _words_of(driver: Any, code: int) -> str:
    """The driver's name for an error and what it says of it; the number alone where it has none."""
    import ctypes

    words = []
    for tell in (driver.cuGetErrorName, driver.cuGetErrorString):
        text = ctypes.c_char_p()
        if tell(code, ctypes.byref(text)) == 0 and text.value:
            words.append(text.value.decode(errors="replace"))
    return ": ".join([f"CUDA error {code}", *words])


def release_memory() -> None:
    """Give back all memory that nobody uses, before something is tried that needs much.

    First the collector: objects that hold each other keep what they hold until it comes by. Then
    the caches of libraries, which keep memory that was freed.
    """
    gc.collect()
    # A cache that cannot be emptied stays: a device in trouble is found by whoever uses it next.
    with contextlib.suppress(Exception):
        torch = _torch()
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.empty_cache()
    with contextlib.suppress(Exception):
        cupy: Any = imported("cupy")
        if cupy is not None:
            cupy.get_default_memory_pool().free_all_blocks()


def peak_memory_bytes() -> int:
    """The most device memory that torch held at once; 0 where it held none."""
    torch = _torch()
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return int(torch.cuda.max_memory_allocated())


def torch_version() -> str:
    """The version of torch, "" where the job does without."""
    torch = _torch()
    if torch is None:
        return ""
    return str(torch.__version__)
