"""Which devices a run may use, and which of them each rank may see.

A device token is an opaque string, never a number: "0", "GPU-1b2c…", "MIG-3d4e…". The pool is all
tokens that a run may use: those of --devices, else of the inherited CUDA_VISIBLE_DEVICES (or
HIP_VISIBLE_DEVICES, or the places in ROCR_VISIBLE_DEVICES), else of what NVML lists (MIG instances
where they are enabled), else none, which means the CPU. A device is what one rank may see: the
value of its CUDA_VISIBLE_DEVICES, one or several tokens of the pool joined by commas, or "" for the
CPU.

Tasks are never run on the CPU by mistake: where something promises GPUs and none is found, the run
is refused. A GPU that is lost is left out and named. What was chosen, and why, is one line that
every start of a run says. Called to plan a run, and by `GPUProcessCoordinator`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from gpuspool.orchestrator.plan.nvml import Card, Listing, list_cards
from gpuspool.spool.errors import UsageError

# What a rank on the CPU may see.
CPU = ""

# The value of --devices that means what is used without that option.
AUTO = "auto"

# Entries of CUDA_VISIBLE_DEVICES with which schedulers and container runtimes say "no device".
# HTCondor says it by the number 10000.
HIDDEN = ("-1", "NoDevFiles", "void", "none", "10000")

# Variables that name the devices of this process, in the order in which they win.
VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")

# AMD's runtime applies this variable below the others: they count the devices that it leaves, from
# 0, whatever their numbers in here.
ROCR = "ROCR_VISIBLE_DEVICES"

# Variables with which a scheduler or container runtime lists the devices that it gives. The list
# "0" is the device 0.
LISTS = (
    "SLURM_STEP_GPUS",
    "SLURM_JOB_GPUS",
    "NVIDIA_VISIBLE_DEVICES",
    "_CONDOR_AssignedGPUs",
    "SGE_HGR_gpu",
    "ZE_AFFINITY_MASK",
    "GPU_DEVICE_ORDINAL",
)

# Variables with which a scheduler tells how many devices it gives: "2" or "a100:2".
COUNTS = (
    "SLURM_GPUS_ON_NODE",
    "SLURM_GPUS_PER_NODE",
    "SLURM_GPUS_PER_TASK",
    "SLURM_GPUS",
    "PBS_NGPUS",
)

# Torque names the devices of a job in a file, one a line.
GPU_FILE = "PBS_GPUFILE"

# What Nvidia's container runtime is told with this variable besides a list. "all" promises nothing:
# it stands in Nvidia's images, also where they run on a host without a GPU.
CONTAINER = "NVIDIA_VISIBLE_DEVICES"
CONTAINER_NONE = ("void", "none")
CONTAINER_ALL = "all"

# With this order CUDA numbers devices by their place on the bus, as nvidia-smi and schedulers do.
ORDER = "CUDA_DEVICE_ORDER"
BY_BUS = "PCI_BUS_ID"


class Pool(msgspec.Struct, frozen=True):
    """The tokens that ranks may be given, none for the CPU, and why it is these.

    uuids: the UUID of each token that is an index, as far as it is known, for workers to compare
    with what they see. models: what kinds of devices this host has, as far as NVML tells.
    """

    tokens: list[str]
    why: str
    uuids: dict[str, str] = msgspec.field(default_factory=dict)
    models: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"devices: {', '.join(self.tokens) or 'cpu'} ({self.why})"

    @property
    def in_words(self) -> str:
        """What ranks are given: "cpu: no GPU found", "NVIDIA H100 0, 1: listed by NVML"."""
        devices = ", ".join(self.tokens) or "cpu"
        if self.models:
            devices = f"{' / '.join(self.models)} {devices}"
        return f"{devices}: {self.why}"


def share_out(
    pool: Pool, ranks: int | None, ranks_per_gpu: int = 1, gpus_per_rank: int = 1
) -> list[str]:
    """The device of each rank, in order of rank. Raises UsageError where they do not add up.

    ranks: how many were asked for, None for as many as there is room for.
    """
    if ranks_per_gpu > 1 and gpus_per_rank > 1:
        raise UsageError("--ranks-per-gpu and --gpus-per-rank exclude each other.")
    if not pool.tokens:
        return [CPU] * (ranks or 1)
    groups = _group(pool.tokens, gpus_per_rank)
    most = len(groups) * ranks_per_gpu
    if ranks is None:
        ranks = most
    _refuse_more_ranks(ranks, most, pool)
    # In turn, so that each device gets its second rank only once every device has its first.
    return [groups[rank % len(groups)] for rank in range(ranks)]


def _refuse_more_ranks(ranks: int, most: int, pool: Pool) -> None:
    """Raise UsageError for more ranks than there is room for."""
    if ranks > most:
        raise UsageError(
            f"--ranks {ranks}, but {len(pool.tokens)} device(s) ({','.join(pool.tokens)}) give "
            f"{most}. Ask for at most {most}, or put several ranks on each device with "
            f"--ranks-per-gpu. The {pool}."
        )


def _group(tokens: list[str], gpus_per_rank: int) -> list[str]:
    """The devices that consecutive tokens of the pool make. Raises UsageError for a remainder."""
    if len(tokens) % gpus_per_rank:
        raise UsageError(
            f"--gpus-per-rank {gpus_per_rank} does not divide the {len(tokens)} devices "
            f"{','.join(tokens)}."
        )
    starts = range(0, len(tokens), gpus_per_rank)
    return [",".join(tokens[start : start + gpus_per_rank]) for start in starts]


def find_pool(devices: str | None, environment: Mapping[str, str] = os.environ) -> Pool:
    """The devices that a run may use. Raises UsageError.

    devices: what the user asked for, as in --devices. environment: where the inherited variables
    are looked up.
    """
    pool = _find_pool(devices, environment)
    if not pool.tokens:
        return pool
    models = {card.model for card in list_cards().cards if card.model and not card.trouble}
    return msgspec.structs.replace(pool, models=tuple(sorted(models)))


def _find_pool(devices: str | None, environment: Mapping[str, str]) -> Pool:
    inherited = _inherited(environment)
    if devices is None or devices == AUTO:
        if inherited is None:
            return _found(environment)
        return inherited
    if devices == "cpu":
        return Pool([], "--devices cpu")
    wanted = _tokens(devices)
    # Whoever started us, mostly a scheduler, has shared the devices of this host out with that
    # variable. A job that takes others disturbs its neighbours, and where the system fences devices
    # off it finds none. A token is compared as it is written, so "0" is not taken for the
    # "GPU-1b2c…" that it may be: two ways to name one device could give it to two ranks.
    if inherited is not None:
        _refuse_outside(wanted, inherited)
    uuids = _uuids_of_indices(wanted, environment)
    _, repeats = _apart_from_repeats(wanted, uuids)
    if repeats:
        raise UsageError(
            f"--devices {devices}: {', '.join(repeats)} names a device that stands there already. "
            "For several ranks on a device say --ranks-per-gpu."
        )
    return Pool(wanted, "--devices", uuids)


def _tokens(devices: str) -> list[str]:
    """The entries of --devices. Raises UsageError."""
    tokens = [token.strip() for token in devices.split(",")]
    if "" in tokens or len(set(tokens)) < len(tokens):
        raise UsageError(f"--devices {devices}: an empty or repeated entry.")
    return tokens


def _refuse_outside(wanted: list[str], inherited: Pool) -> None:
    """Raise UsageError for a token that whoever started us has not given to us."""
    outside = [token for token in wanted if token not in inherited.tokens]
    if not outside:
        return
    remedy = f"Name entries of that list ({','.join(inherited.tokens)}), as they stand there."
    if not inherited.tokens:
        remedy = "Unset that variable if you may use the devices all the same."
    raise UsageError(
        f"--devices {outside[0]} names no device that this process was given: {inherited.why}. "
        f"{remedy}"
    )


def _inherited(environment: Mapping[str, str]) -> Pool | None:
    """The devices that an inherited variable names; None where none is set."""
    for name in VISIBLE:
        value = environment.get(name)
        if value is None:
            continue
        tokens = _visible(value)
        if not tokens:
            return Pool([], f'{name}="{value}" hides all devices{_though(environment)}')
        uuids = _uuids_of_indices(tokens, environment)
        tokens, repeats = _apart_from_repeats(tokens, uuids)
        why = f"{name}={value}"
        if repeats:
            why += f"; left out, since it names a device again: {', '.join(repeats)}"
        return Pool(tokens, why, uuids)
    value = environment.get(ROCR)
    if value is None:
        return None
    places = [str(place) for place in range(len(_visible(value)))]
    if not places:
        return Pool([], f'{ROCR}="{value}" hides all devices{_though(environment)}')
    return Pool(places, f"places in {ROCR}={value}")


def _apart_from_repeats(tokens: list[str], uuids: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """The first token of each device, and those that name one again: two ranks would share it.

    uuids: of tokens that are indices, as far as that is known.
    """
    first: dict[str, str] = {}
    repeats: list[str] = []
    for token in tokens:
        device = uuids.get(token, token)
        if device in first:
            repeats.append(token)
        else:
            first[device] = token
    return list(first.values()), repeats


def _visible(value: str) -> list[str]:
    """The tokens of an inherited variable.

    CUDA ignores whatever follows the first entry that names no device, and so do we.
    """
    tokens: list[str] = []
    for entry in value.split(","):
        token = entry.strip()
        if token in ("", *HIDDEN):
            break
        tokens.append(token)
    return tokens


def _though(environment: Mapping[str, str]) -> str:
    promise = _promise(environment)
    if promise:
        return f", although {promise} promises some"
    return ""


def _uuids_of_indices(tokens: list[str], environment: Mapping[str, str]) -> dict[str, str]:
    """The UUIDs of the tokens that are indices, as far as NVML's numbers are CUDA's here."""
    if not any(token.isdigit() for token in tokens):
        return {}
    by_place = _by_place(list_cards(), environment)
    return {str(place): card.uuid for place, card in enumerate(by_place) if card.uuid}


def _by_place(listing: Listing, environment: Mapping[str, str]) -> list[Card]:
    """The cards in the order in which CUDA numbers them; empty where nobody can tell.

    CUDA gives no number to some cards that NVML lists (one that is lost), and MIG changes what is
    counted. Then a number may mean another card.
    """
    if environment.get(ORDER, BY_BUS) != BY_BUS:
        return []
    for card in listing.cards:
        if card.trouble or card.is_mig or card.bus is None:
            return []
    return sorted(listing.cards, key=lambda card: card.bus or ())


def _found(environment: Mapping[str, str]) -> Pool:
    """What NVML lists. Raises UsageError where there should be a GPU and NVML lists none."""
    listing = list_cards()
    container = environment.get(CONTAINER, "")
    if listing.cards and container in CONTAINER_NONE:
        return Pool([], f"{CONTAINER}={container}: this container was given no device")
    # No GPU may mean two things: a host without any, on which a run on the CPU is what everybody
    # expects, or a host whose driver broke. On the second a run that falls back to the CPU would
    # take days for what takes hours, and nobody would notice before. So whatever tells of GPUs that
    # NVML does not list is a reason to refuse.
    if not listing.cards:
        _refuse_broken_driver(listing)
        _refuse_broken_promise(listing, environment)
        return Pool([], _why_cpu(listing))
    return _listed(listing, environment)


def _listed(listing: Listing, environment: Mapping[str, str]) -> Pool:
    """The pool of the cards that can be used. Raises UsageError where there is none."""
    by_place = _by_place(listing, environment)
    left_out = [f"{card.name}: {card.trouble}" for card in listing.cards if card.trouble]
    # Many libraries read CUDA_VISIBLE_DEVICES as numbers, so tokens are numbers where these surely
    # mean the same card to NVML and to CUDA; else UUIDs, which always do. A card without a UUID can
    # only have a number.
    is_by_bus = list(listing.cards) == by_place
    has_uuids = all(card.uuid for card in by_place)
    uuids: dict[str, str] = {}
    tokens: list[str] = []
    if by_place and (is_by_bus or not has_uuids):
        tokens = [str(place) for place in range(len(by_place))]
        uuids = {str(place): card.uuid for place, card in enumerate(by_place) if card.uuid}
    else:
        for card in listing.cards:
            if card.trouble:
                continue
            if card.is_mig:
                tokens += card.instances
            elif card.uuid:
                tokens.append(card.uuid)
            else:
                left_out.append(f"{card.name}: it has no UUID, and no number is sure to mean it")
    tokens = _given_to_container(tokens, uuids, environment.get(CONTAINER, ""))
    if not tokens:
        raise UsageError(
            f"No GPU of this host can be used: {'; '.join(left_out)}. Look at nvidia-smi, or say "
            "--devices cpu."
        )
    why = "listed by NVML"
    if left_out:
        why += f"; left out: {'; '.join(left_out)}"
    return Pool(tokens, why, uuids)


def _given_to_container(tokens: list[str], uuids: Mapping[str, str], given: str) -> list[str]:
    """Of these tokens those that the container was given, where it was given a list of UUIDs.

    A privileged container sees the devices of its neighbours too.
    """
    entries = [entry.strip() for entry in given.split(",")]
    if not all(entry.startswith(("GPU-", "MIG-")) for entry in entries):
        return tokens
    return [token for token in tokens if token in entries or uuids.get(token) in entries]


def _refuse_broken_driver(listing: Listing) -> None:
    """Raise UsageError where there is a driver that does not answer."""
    if listing.trouble and not listing.is_absent:
        raise UsageError(
            f"NVML, the library behind nvidia-smi, cannot be used: {listing.trouble}. Look at "
            "nvidia-smi on this host, or say --devices cpu."
        )


def _refuse_broken_promise(listing: Listing, environment: Mapping[str, str]) -> None:
    """Raise UsageError where a scheduler or the device files tell of a GPU."""
    nvml = "NVML shows none"
    if listing.trouble:
        nvml = f"NVML shows none ({listing.trouble})"
    promise = _promise(environment)
    if promise:
        raise UsageError(
            f"{promise} promises GPUs, but CUDA_VISIBLE_DEVICES is not set and {nvml}. Look at "
            "nvidia-smi on this node, name them with --devices, or say --devices cpu."
        )
    if any(Path("/dev").glob("nvidia[0-9]*")):
        raise UsageError(
            f"/dev/nvidia* exists, but {nvml}. Look at nvidia-smi, or say --devices cpu."
        )


def _promise(environment: Mapping[str, str]) -> str:
    """The variable, with its value, that promises GPUs; "" where none does."""
    for name in LISTS:
        value = environment.get(name, "").strip()
        if value != CONTAINER_ALL and _visible(value):
            return f"{name}={value}"
    for name in COUNTS:
        value = environment.get(name, "").strip()
        if value.rpartition(":")[2] not in ("", "0"):
            return f"{name}={value}"
    listed = environment.get(GPU_FILE, "")
    try:
        if listed and Path(listed).read_bytes().strip():
            return f"{GPU_FILE}={listed}"
    except OSError:
        return ""
    return ""


def _why_cpu(listing: Listing) -> str:
    """Why a run that was not told otherwise is on the CPU."""
    why = "no GPU found"
    if listing.trouble and not listing.is_absent:
        why += f" (NVML: {listing.trouble})"
    if Path("/dev/kfd").exists():
        # Also a laptop's small graphics has this file, so it is no reason to refuse.
        why += "; for AMD's GPUs set HIP_VISIBLE_DEVICES or --devices"
    return why
