"""What NVML, the library behind nvidia-smi, tells of the GPUs of this host.

`list_cards` never raises: a card that cannot be used is listed with the reason, and so is a driver
that does not answer. What follows from that is decided in `devices.py`. Nothing here needs a CUDA
context. The only file that imports NVML.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import msgspec

# What the driver brings along, and pynvml loads.
LIBRARY = "libnvidia-ml.so.1"

# NVML tells the cores next to a device as words of this many bits.
AFFINITY_BITS = 64


class Card(msgspec.Struct, frozen=True):
    """One GPU.

    index: its number at NVML. trouble: why it cannot be used, "" if it can. uuid: "" where the card
    tells none. bus: its place on the PCI bus (domain, bus, device), None where that is not told.
    is_mig: whether it is divided into MIG instances. instances: their UUIDs. model: what it is sold
    as, "" where it does not tell.
    """

    index: int
    trouble: str = ""
    uuid: str = ""
    bus: tuple[int, int, int] | None = None
    is_mig: bool = False
    instances: tuple[str, ...] = ()
    model: str = ""

    @property
    def name(self) -> str:
        """The card as messages name it."""
        if self.uuid:
            return f"GPU {self.index} ({self.uuid})"
        return f"GPU {self.index}"


class Listing(msgspec.Struct, frozen=True):
    """All GPUs, or why none can be listed.

    trouble: what NVML said instead of listing anything. is_absent: this host has no NVIDIA driver,
    or has one that is not loaded, as hosts without a GPU do.
    """

    cards: tuple[Card, ...] = ()
    trouble: str = ""
    is_absent: bool = False


def list_cards() -> Listing:
    """Every card that NVML counts, in NVML's order."""
    # Hosts without a GPU have no such library, and to find that out takes a fifth of the time that
    # importing pynvml does. Where all is on the CPU neither is needed.
    import ctypes

    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return Listing(trouble=f"{LIBRARY} cannot be loaded", is_absent=True)
    import pynvml

    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded) as error:
        return Listing(trouble=str(error), is_absent=True)
    except pynvml.NVMLError_LibRmVersionMismatch:
        # NVML's own words for this tell nobody what happened.
        return Listing(trouble="version mismatch: the driver was updated and not reloaded")
    except pynvml.NVMLError as error:
        return Listing(trouble=str(error))
    return Listing(tuple(_look_at(pynvml, index) for index in range(count)))


def _look_at(nvml: Any, index: int) -> Card:
    """One card, with its trouble where it has some."""
    uuid = ""
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        uuid = _uuid(nvml, handle)
        bus = _bus(nvml, handle)
        is_mig, instances = _instances(nvml, handle)
    except nvml.NVMLError as error:
        return Card(index, trouble=str(error), uuid=uuid)
    trouble = ""
    if is_mig and not instances:
        trouble = "MIG is enabled and it has no instance"
    return Card(index, trouble, uuid, bus, is_mig, instances, _model(nvml, handle))


def _model(nvml: Any, handle: Any) -> str:
    """What a card is sold as, for people; "" where it does not tell."""
    try:
        return str(nvml.nvmlDeviceGetName(handle))
    except nvml.NVMLError:
        return ""


def _uuid(nvml: Any, handle: Any) -> str:
    """The UUID, "" of a card that has none. Raises NVMLError for a card in trouble."""
    try:
        return str(nvml.nvmlDeviceGetUUID(handle))
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound):
        return ""


def _bus(nvml: Any, handle: Any) -> tuple[int, int, int] | None:
    """The place on the bus. Raises NVMLError for a card in trouble."""
    try:
        pci = nvml.nvmlDeviceGetPciInfo(handle)
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound):
        return None
    return pci.domain, pci.bus, pci.device


def _instances(nvml: Any, handle: Any) -> tuple[bool, tuple[str, ...]]:
    """(whether MIG is enabled, the UUIDs of its instances). Raises NVMLError for a lost card."""
    try:
        mode, _ = nvml.nvmlDeviceGetMigMode(handle)
        if mode != nvml.NVML_DEVICE_MIG_ENABLE:
            return False, ()
        places = nvml.nvmlDeviceGetMaxMigDeviceCount(handle)
    except (
        nvml.NVMLError_NotSupported,
        nvml.NVMLError_FunctionNotFound,
        nvml.NVMLError_InvalidArgument,
    ):
        # A card or a driver from before MIG.
        return False, ()
    found: list[str] = []
    for place in range(places):
        try:
            instance = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, place)
        except nvml.NVMLError_NotFound:
            # Nothing in this place. Where an instance was destroyed there may be others behind it.
            continue
        found.append(str(nvml.nvmlDeviceGetUUID(instance)))
    return True, tuple(found)


def cores_near(token: str) -> set[int]:
    """The cores next to a GPU, named by its index or UUID; empty where NVML does not tell."""
    import pynvml

    n_cpus = os.cpu_count() or 1
    n_words = (n_cpus + AFFINITY_BITS - 1) // AFFINITY_BITS
    try:
        pynvml.nvmlInit()
        handle = _handle(pynvml, token)
        return _bits(pynvml.nvmlDeviceGetCpuAffinity(handle, n_words))
    except pynvml.NVMLError:
        return set()


def _handle(nvml: Any, token: str) -> Any:
    """What NVML calls the device of a token; of a MIG instance, its card. Raises NVMLError."""
    if token.isdigit():
        return nvml.nvmlDeviceGetHandleByIndex(int(token))
    handle = nvml.nvmlDeviceGetHandleByUUID(token.encode())
    if token.startswith("MIG-"):
        return nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
    return handle


def _bits(words: Iterable[int]) -> set[int]:
    """The places of all bits that are set, counted from the lowest bit of the first word."""
    places: set[int] = set()
    for number, word in enumerate(words):
        first = AFFINITY_BITS * number
        for bit in range(AFFINITY_BITS):
            if word >> bit & 1:
                places.add(first + bit)
    return places
