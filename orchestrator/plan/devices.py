"""Which devices a run may use, and which of them each rank may see.

A device token is an opaque string, never a number: "0", "GPU-1b2c…", "MIG-3d4e…". The pool is all
tokens that a run may use: those of --devices, else of the inherited CUDA_VISIBLE_DEVICES (or
HIP_VISIBLE_DEVICES), else of what NVML lists (MIG instances where they are enabled), else none,
which means the CPU. A device is what one rank may see: the value of its CUDA_VISIBLE_DEVICES, one
or several tokens of the pool joined by commas, or "" for the CPU.

Tasks are never run on the CPU by mistake: where something promises GPUs and none is found, the run
is refused. Called to plan a run, to start workers, and by `GPUProcessCoordinator`. The only file
that imports NVML.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gpuspool.spool.errors import UsageError

# What a rank on the CPU may see.
CPU = ""

# Entries of CUDA_VISIBLE_DEVICES with which schedulers and container runtimes say "no device".
HIDDEN = ("-1", "NoDevFiles", "void", "none")

# Variables with which Slurm tells a job that it was given GPUs.
PROMISES = ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "SLURM_GPUS_ON_NODE")

# NVML tells the cores next to a device as words of this many bits.
AFFINITY_BITS = 64


def assign(
    devices: str | None,
    ranks: int | None,
    ranks_per_gpu: int,
    gpus_per_rank: int,
    environment: Mapping[str, str] = os.environ,
) -> list[str]:
    """The device of each rank, in order of rank. Raises UsageError where they do not add up.

    devices: what the user asked for, as in --devices. ranks: how many were asked for, None for as
    many as there is room for. environment: where the inherited variables are looked up.
    """
    if ranks_per_gpu > 1 and gpus_per_rank > 1:
        raise UsageError("--ranks-per-gpu and --gpus-per-rank exclude each other.")
    pool = find_pool(devices, environment)
    if not pool:
        return [CPU] * (ranks or 1)
    groups = _group(pool, gpus_per_rank)
    most = len(groups) * ranks_per_gpu
    if ranks is None:
        ranks = most
    _refuse_more_ranks(ranks, most, pool)
    # In turn, so that each device gets its second rank only once every device has its first.
    return [groups[rank % len(groups)] for rank in range(ranks)]


def _refuse_more_ranks(ranks: int, most: int, pool: list[str]) -> None:
    """Raise UsageError for more ranks than there is room for."""
    if ranks > most:
        raise UsageError(
            f"--ranks {ranks}, but {len(pool)} device(s) ({','.join(pool)}) give {most}. Ask for "
            f"at most {most}, or put several ranks on each device with --ranks-per-gpu."
        )


def _group(pool: list[str], gpus_per_rank: int) -> list[str]:
    """The devices that consecutive tokens of the pool make. Raises UsageError for a remainder."""
    if len(pool) % gpus_per_rank:
        raise UsageError(
            f"--gpus-per-rank {gpus_per_rank} does not divide the {len(pool)} devices "
            f"{','.join(pool)}."
        )
    starts = range(0, len(pool), gpus_per_rank)
    return [",".join(pool[start : start + gpus_per_rank]) for start in starts]


def find_pool(devices: str | None, environment: Mapping[str, str]) -> list[str]:
    """The tokens that ranks may be given; empty for the CPU. Raises UsageError."""
    inherited = _inherited(environment)
    if devices is None:
        if inherited is None:
            return _found(environment)
        return inherited
    if devices == "cpu":
        return []
    wanted = _tokens(devices)
    # Whoever started us, mostly a scheduler, has shared the devices of this host out with that
    # variable. A job that takes others disturbs its neighbours, and where the system fences devices
    # off it finds none. A token is compared as it is written, so "0" is not taken for the
    # "GPU-1b2c…" that it may be: two ways to name one device could give it to two ranks.
    if inherited is not None:
        _refuse_outside(wanted, inherited)
    return wanted


def _tokens(devices: str) -> list[str]:
    """The entries of --devices. Raises UsageError."""
    tokens = [token.strip() for token in devices.split(",")]
    if "" in tokens or len(set(tokens)) < len(tokens):
        raise UsageError(f"--devices {devices}: an empty or repeated entry.")
    return tokens


def _refuse_outside(wanted: list[str], inherited: list[str]) -> None:
    """Raise UsageError for a token that whoever started us has not given to us."""
    outside = [token for token in wanted if token not in inherited]
    if outside:
        raise UsageError(
            f"--devices {outside[0]} is outside the inherited "
            f"CUDA_VISIBLE_DEVICES={','.join(inherited)}. Name entries of that list, as they "
            "stand there."
        )


def _inherited(environment: Mapping[str, str]) -> list[str] | None:
    """The tokens of the inherited variable; None where it is not set.

    CUDA ignores whatever follows the first entry that names no device, and so do we.
    """
    value = environment.get("CUDA_VISIBLE_DEVICES", environment.get("HIP_VISIBLE_DEVICES"))
    if value is None:
        return None
    tokens: list[str] = []
    for entry in value.split(","):
        token = entry.strip()
        if token in ("", *HIDDEN):
            break
        tokens.append(token)
    return tokens


def _found(environment: Mapping[str, str]) -> list[str]:
    """What NVML lists. Raises UsageError where there should be a GPU and NVML lists none."""
    tokens = _nvml_tokens()
    # No GPU may mean two things: a host without any, on which a run on the CPU is what everybody
    # expects, or a host whose driver broke. On the second a run that falls back to the CPU would
    # take days for what takes hours, and nobody would notice before. So whatever tells of GPUs that
    # NVML does not list is a reason to refuse.
    if not tokens:
        _refuse_broken_promise(environment)
    return tokens


def _refuse_broken_promise(environment: Mapping[str, str]) -> None:
    """Raise UsageError where Slurm or the device files tell of a GPU."""
    for name in PROMISES:
        value = environment.get(name, "0")
        if value not in ("", "0"):
            raise UsageError(
                f"{name}={value} promises GPUs, but neither CUDA_VISIBLE_DEVICES nor "
                "NVML shows one. Look at nvidia-smi on this node, or say --devices cpu."
            )
    if any(Path("/dev").glob("nvidia[0-9]*")):
        raise UsageError(
            "/dev/nvidia* exists, but NVML shows no GPU. Look at nvidia-smi, or say --devices cpu."
        )


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
        instances = _mig_tokens(nvml, handle)
        if instances:
            tokens += instances
        else:
            tokens.append(str(nvml.nvmlDeviceGetUUID(handle)))
    return tokens


def _mig_tokens(nvml: Any, handle: Any) -> list[str]:
    """The MIG instances of one GPU; none where MIG is off.

    NVML raises an error for a GPU that knows no MIG, and for the first place that holds no
    instance; both mean that there are no more.
    """
    tokens: list[str] = []
    try:
        if nvml.nvmlDeviceGetMigMode(handle)[0] != nvml.NVML_DEVICE_MIG_ENABLE:
            return []
        for place in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            instance = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, place)
            tokens.append(str(nvml.nvmlDeviceGetUUID(instance)))
    except nvml.NVMLError:
        return tokens
    return tokens


def near_cpus(device: str) -> set[int]:
    """The cores next to the first GPU of a device that this process may use.

    Empty for the CPU, and where NVML does not tell.
    """
    if device == CPU:
        return set()
    nvml = _nvml()
    if nvml is None:
        return set()
    n_cpus = os.cpu_count() or 1
    n_words = (n_cpus + AFFINITY_BITS - 1) // AFFINITY_BITS
    first, _, _ = device.partition(",")
    try:
        handle = _handle(nvml, first)
        words = nvml.nvmlDeviceGetCpuAffinity(handle, n_words)
    except nvml.NVMLError:
        return set()
    return _bits(words) & os.sched_getaffinity(0)


def _bits(words: Iterable[int]) -> set[int]:
    """The places of all bits that are set, counted from the lowest bit of the first word."""
    places: set[int] = set()
    for number, word in enumerate(words):
        first = AFFINITY_BITS * number
        for bit in range(AFFINITY_BITS):
            if word >> bit & 1:
                places.add(first + bit)
    return places


def _handle(nvml: Any, token: str) -> Any:
    """What NVML calls the device of a token, an index or a UUID. Raises NVMLError."""
    if token.isdigit():
        return nvml.nvmlDeviceGetHandleByIndex(int(token))
    return nvml.nvmlDeviceGetHandleByUUID(token)


def environment_for(device: str, ranks: int, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that must be set before a rank's interpreter starts.

    Later is too late: the user's code, or a library that it imports, may initialise CUDA at once.
    ranks: how many ranks share this host's cores. environment: what the orchestrator inherited.
    """
    changed = {"CUDA_VISIBLE_DEVICES": device, "PYTHONUNBUFFERED": "1"}
    if "HIP_VISIBLE_DEVICES" in environment:
        changed["HIP_VISIBLE_DEVICES"] = device
    if device.replace(",", "").isdigit():
        # By default CUDA numbers devices by their speed, while nvidia-smi and schedulers number
        # them by their place on the bus.
        changed["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    if device == CPU and "OMP_NUM_THREADS" not in environment:
        share = len(os.sched_getaffinity(0)) // ranks
        changed["OMP_NUM_THREADS"] = str(max(1, share))
    return changed
