"""The devices this worker sees. The only file that imports torch, and only where the job did so
before.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import msgspec

from gpuspool.spool.errors import DeviceError as DeviceError

CHECK_VARIABLE = "GPUSPOOL_DEVICE_CHECK"


class Device(msgspec.Struct, frozen=True):
    name: str = ""
    uuid: str = ""


def _torch() -> Any:
    """torch where the job has imported it, else None."""
    if "torch" not in sys.modules:
        return None
    import torch

    return torch


def check_devices(tokens: str) -> Device:
    """Name and UUID of the first device, once it is sure that torch sees as many as `tokens` names,
    and the right one.

    Without tokens (a CPU rank), without torch, or with GPUSPOOL_DEVICE_CHECK=off there is nothing
    to compare. Raises DeviceError.
    """
    torch = _torch()
    if not tokens or torch is None or os.environ.get(CHECK_VARIABLE) == "off":
        return Device()
    wanted = tokens.split(",")
    seen = torch.cuda.device_count()
    if seen != len(wanted):
        raise DeviceError(
            f"this worker was given {len(wanted)} device(s) ({tokens}) and torch {torch.__version__} sees {seen}. "
            f"Look at nvidia-smi and at the driver; {CHECK_VARIABLE}=off skips this check."
        )
    name = str(torch.cuda.get_device_name(0))
    uuid = str(getattr(torch.cuda.get_device_properties(0), "uuid", ""))
    if wanted[0].startswith("GPU-") and uuid and not f"GPU-{uuid}".startswith(wanted[0]):
        raise DeviceError(f"this worker was given {wanted[0]} and sees GPU-{uuid} ({name})")
    return Device(name, f"GPU-{uuid}" if uuid else "")


def is_device_oom(error: BaseException) -> bool:
    """Whether this is torch's own out-of-memory error, by its type."""
    torch = _torch()
    if torch is None:
        return False
    kind = getattr(torch, "OutOfMemoryError", None) or torch.cuda.OutOfMemoryError
    return isinstance(error, kind)


def is_device_broken(error: BaseException) -> bool:
    """Whether this is torch's error of a device that takes no more work in this process (2.8 and
    newer tell).
    """
    kind = getattr(_torch(), "AcceleratorError", None)
    return kind is not None and isinstance(error, kind)


def release_memory() -> None:
    """Give cached device memory back before a smaller batch is tried."""
    torch = _torch()
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def peak_memory_bytes() -> int:
    """The most device memory that torch held at once, 0 where it held none."""
    torch = _torch()
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return int(torch.cuda.max_memory_allocated())


def torch_version() -> str | None:
    torch = _torch()
    return None if torch is None else str(torch.__version__)
