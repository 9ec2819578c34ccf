"""What an attempt tells of itself in its closing record."""

from __future__ import annotations

import os
import sys

from gpuspool.spool import __version__
from gpuspool.spool.records import Stats
from gpuspool.worker.devices import Device, peak_memory_bytes, torch_version
from gpuspool.worker.doing import Doing
from gpuspool.worker.execute import Executor
from gpuspool.worker.resources import peak_resident_bytes


def final_stats(doing: Doing, device: Device, executor: Executor | None) -> Stats:
    """The record of an attempt that ends. executor: None where the job was never loaded."""
    spent = doing.clocks.spent()
    return Stats(
        done=doing.complete,
        failed=doing.failed,
        seconds=spent.seconds,
        busy_s=spent.busy_s,
        idle_s=spent.idle_s,
        ready=executor is not None,
        device=os.environ.get("CUDA_VISIBLE_DEVICES", "") or "cpu",
        device_name=device.name,
        device_uuid=device.uuid,
        peak_memory_bytes=peak_resident_bytes(),
        peak_device_memory_bytes=peak_memory_bytes(),
        batch_size=None if executor is None else executor.batch_size,
        oom_halvings=0 if executor is None else executor.oom_halvings,
        splits=0 if executor is None else executor.splits,
        wrong_lengths=0 if executor is None else executor.call.wrong_lengths,
        left_behind=0 if executor is None else executor.call.outputs.left_behind,
        versions=_versions(),
    )


def _versions() -> dict[str, str]:
    """What ran this attempt; torch only where the job uses it."""
    versions = {"gpuspool": __version__, "python": sys.version.split()[0]}
    torch = torch_version()
    if torch:
        versions["torch"] = torch
    return versions
