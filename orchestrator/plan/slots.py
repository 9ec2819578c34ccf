"""Slots: the places in which an orchestrator runs workers.

A slot joins two things that are not one: the rank whose attempts run in it, and the device that
these attempts may see. The loop starts workers in slots, and the decisions about restarts and
devices are made for slots. Built once for each start of an orchestrator, from what
`plan.devices.assign` shared out.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec


class Slot(msgspec.Struct, frozen=True):
    """One place for a worker.

    `rank` is the rank whose attempts run here. `device` is what they may see, the value of their
    CUDA_VISIBLE_DEVICES: one or several device tokens joined by commas, "" for the CPU.
    """

    rank: int
    device: str = ""

    @property
    def device_name(self) -> str:
        """The device as records and messages name it: "cpu" for the CPU."""
        return self.device or "cpu"


def make_slots(devices: Iterable[str]) -> list[Slot]:
    """One slot for each device that was shared out; ranks count from 0 in that order."""
    return [Slot(rank, device) for rank, device in enumerate(devices)]
