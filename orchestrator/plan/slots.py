"""Slots: the places in which an orchestrator runs workers.

A slot joins two things that are not one: the rank whose attempts run in it, and the device that
these attempts may see. The loop starts workers in slots, and the decisions about restarts and
devices are made for slots. Built once for each start of an orchestrator, from what
`plan.devices.share_out` shared out.
"""

from __future__ import annotations

import msgspec

from gpuspool.orchestrator.plan.devices import Pool


class Slot(msgspec.Struct, frozen=True):
    """One place for a worker.

    `rank` is the rank whose attempts run here. `device` is what they may see, the value of their
    CUDA_VISIBLE_DEVICES: one or several device tokens joined by commas, "" for the CPU. `uuids`
    tells for each token the UUID of the GPU that is meant, "" where it is not known.
    """

    rank: int
    device: str = ""
    uuids: tuple[str, ...] = ()

    @property
    def device_name(self) -> str:
        """The device as records and messages name it: "cpu" for the CPU."""
        return self.device or "cpu"


def make_slots(devices: list[str], pool: Pool) -> list[Slot]:
    """One slot for each device that was shared out of the pool, rank 0 first."""
    slots = []
    for rank, device in enumerate(devices):
        uuids = tuple(pool.uuids.get(token, "") for token in device.split(","))
        slots.append(Slot(rank, device, uuids if any(uuids) else ()))
    return slots
