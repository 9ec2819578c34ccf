"""Which devices there are, and which of them each rank may see. Tokens are opaque strings, never
numbers.

The pool: --devices, else the inherited CUDA_VISIBLE_DEVICES (HIP_VISIBLE_DEVICES), else what NVML
lists (MIG instances where enabled), else the CPU. The only file that imports NVML.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpuspool.spool.errors import UsageError

CPU = ""  # what a CPU rank may see
HIDDEN = ("-1", "NoDevFiles", "void", "none")  # values of the variable that mean no device
PROMISES = ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "SLURM_GPUS_ON_NODE")


def assign(
    devices: str | None,
    ranks: int | None,
    ranks_per_gpu: int,
    gpus_per_rank: int,
    environment: Mapping[str, str] = os.environ,
) -> list[str]:
    """For each rank the value of its CUDA_VISIBLE_DEVICES, "" on the CPU. Raises UsageError."""
    if ranks_per_gpu > 1 and gpus_per_rank > 1:
        raise UsageError("--ranks-per-gpu and --gpus-per-rank exclude each other.")
    pool = find_pool(devices, environment)
    if not pool:
        return [CPU] * (ranks or 1)
    groups = [",".join(pool[i : i + gpus_per_rank]) for i in range(0, len(pool), gpus_per_rank)]
    if len(pool) % gpus_per_rank:
        raise UsageError(
            f"--gpus-per-rank {gpus_per_rank} does not divide the {len(pool)} devices {','.join(pool)}."
        )
    most = len(groups) * ranks_per_gpu
    if ranks is not None and ranks > most:
        raise UsageError(
            f"--ranks {ranks}, but {len(pool)} device(s) ({','.join(pool)}) give {most}. Ask for at most {most}, "
            "or put several ranks on each device with --ranks-per-gpu."
        )
    return [groups[rank % len(groups)] for rank in range(most if ranks is None else ranks)]


def find_pool(devices: str | None, environment: Mapping[str, str]) -> list[str]:
    """The tokens that ranks may be given; empty for the CPU. Raises UsageError."""
    inherited = _inherited(environment)
    if devices is None:
        return inherited if inherited is not None else _found(environment)
    if devices == "cpu":
        return []
    wanted = [token.strip() for token in devices.split(",")]
    if "" in wanted or len(set(wanted)) < len(wanted):
        raise UsageError(f"--devices {devices}: an empty or repeated entry.")
    if inherited is not None:
        outside = [token for token in wanted if token not in inherited]
        if outside:
            raise UsageError(
                f"--devices {outside[0]} is outside the inherited CUDA_VISIBLE_DEVICES={','.join(inherited)}. "
                "Name entries of that list, as they stand there."
            )
    return wanted


def _inherited(environment: Mapping[str, str]) -> list[str] | None:
    value = environment.get("CUDA_VISIBLE_DEVICES", environment.get("HIP_VISIBLE_DEVICES"))
    if value is None:
        return None
    tokens: list[str] = []
    for token in value.split(","):
        if token.strip() in ("", *HIDDEN):
            break  # CUDA ignores everything behind the first entry that names nothing
        tokens.append(token.strip())
    return tokens


def _found(environment: Mapping[str, str]) -> list[str]:
    tokens = _nvml_tokens()
    promise = next((name for name in PROMISES if environment.get(name, "0") not in ("", "0")), None)
    if not tokens and promise:
        raise UsageError(
            f"{promise}={environment[promise]} promises GPUs, but neither CUDA_VISIBLE_DEVICES nor NVML shows one. "
            "Look at nvidia-smi on this node, or say --devices cpu."
        )
    if not tokens and any(Path("/dev").glob("nvidia[0-9]*")):
        raise UsageError(
            "/dev/nvidia* exists, but NVML shows no GPU. Look at nvidia-smi, or say --devices cpu."
        )
    return tokens


def _nvml() -> Any:
    """The initialised NVML module, None where there is no driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def _nvml_tokens() -> list[str]:
    nvml = _nvml()
    if nvml is None:
        return []
    tokens: list[str] = []
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        tokens += _mig_tokens(nvml, handle) or [str(nvml.nvmlDeviceGetUUID(handle))]
    return tokens


def _mig_tokens(nvml: Any, handle: Any) -> list[str]:
    tokens = []
    try:
        if nvml.nvmlDeviceGetMigMode(handle)[0] != nvml.NVML_DEVICE_MIG_ENABLE:
            return []
        for slot in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            tokens.append(
                str(nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, slot)))
            )
    except nvml.NVMLError:
        pass  # no MIG on this GPU, or no more instances
    return tokens


def near_cpus(tokens: str) -> set[int]:
    """The cores next to a rank's first GPU that this process may use; empty where NVML does not
    tell.
    """
    nvml = None if tokens == CPU else _nvml()
    if nvml is None:
        return set()
    first = tokens.split(",")[0]
    try:
        by_index = first.isdigit()
        handle = (
            nvml.nvmlDeviceGetHandleByIndex(int(first))
            if by_index
            else nvml.nvmlDeviceGetHandleByUUID(first)
        )
        words = nvml.nvmlDeviceGetCpuAffinity(handle, ((os.cpu_count() or 1) + 63) // 64)
    except nvml.NVMLError:
        return set()
    near = {
        64 * place + bit for place, word in enumerate(words) for bit in range(64) if word >> bit & 1
    }
    return near & os.sched_getaffinity(0)


def environment_for(tokens: str, ranks: int, environment: Mapping[str, str]) -> dict[str, str]:
    """What must stand in a rank's environment before its interpreter starts."""
    changed = {"CUDA_VISIBLE_DEVICES": tokens, "PYTHONUNBUFFERED": "1"}
    if "HIP_VISIBLE_DEVICES" in environment:
        changed["HIP_VISIBLE_DEVICES"] = tokens
    if tokens.replace(",", "").isdigit():
        changed["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    if tokens == CPU and "OMP_NUM_THREADS" not in environment:
        changed["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // ranks))
    return changed
