"""The devices this worker sees.

The only file that imports torch, and only where the job has imported it before: a job without torch
runs without torch. Called while the job is made, when a call fails, and for the statistics.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import msgspec

from gpuspool.spool.errors import DeviceError

# With the value "off", what torch sees is not compared with what the worker was given.
CHECK_VARIABLE = "GPUSPOOL_DEVICE_CHECK"


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


def check_devices(tokens: str) -> Device:
    """Compare what torch sees with the device tokens that this worker was given.

    Returns the first device, once it is sure that torch sees as many devices as `tokens` (joined by
    commas) names, and the right one. Without tokens (a CPU rank), without torch, or with
    GPUSPOOL_DEVICE_CHECK=off there is nothing to compare. Raises DeviceError.
    """
    torch = _torch()
    if not tokens or torch is None or os.environ.get(CHECK_VARIABLE) == "off":
        return Device()
    wanted = tokens.split(",")
    seen = torch.cuda.device_count()
    if seen != len(wanted):
        raise DeviceError(
            f"this worker was given {len(wanted)} device(s) ({tokens}) and torch "
            f"{torch.__version__} sees {seen}. Look at nvidia-smi and at the driver; "
            f"{CHECK_VARIABLE}=off skips this check."
        )
    name = str(torch.cuda.get_device_name(0))
    uuid = str(getattr(torch.cuda.get_device_properties(0), "uuid", ""))
    if not uuid:
        return Device(name)
    uuid = f"GPU-{uuid}"
    if wanted[0].startswith("GPU-") and not uuid.startswith(wanted[0]):
        raise DeviceError(f"this worker was given {wanted[0]} and sees {uuid} ({name})")
    return Device(name, uuid)


def is_device_oom(error: BaseException) -> bool:
    """Whether this is torch's own out-of-memory error, by its type."""
    torch = _torch()
    if torch is None:
        return False
    kind = getattr(torch, "OutOfMemoryError", None) or torch.cuda.OutOfMemoryError
    return isinstance(error, kind)


def is_device_broken(error: BaseException) -> bool:
    """Whether this is torch's error of a device that takes no more work in this process.

    torch has such a type since 2.8; of older versions nobody can tell.
    """
    kind = getattr(_torch(), "AcceleratorError", None)
    return kind is not None and isinstance(error, kind)


def release_memory() -> None:
    """Give cached device memory back, before a smaller batch is tried."""
    torch = _torch()
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


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
