"""Slots: the places in which a parent runs workers.

A slot has a number, which is the `local_rank` of the attempts that run in it, and a device that
these attempts may see. Which rank they are is chosen when the first of them is launched, since
other parents of the run have ranks too (see `supervise.ranks`). The loop starts workers in slots,
and the decisions about restarts and devices are made for slots. Built once for each start, from
what `plan.devices.share_out` shared out.
"""

from __future__ import annotations

import os

import msgspec

from gpuspool.orchestrator.plan.devices import Pool
from gpuspool.spool.records import CPU, place_name


class Slot(msgspec.Struct, frozen=True):
    """One place for a worker.

    `number` counts the slots of a parent from 0; those of other parents, as far as they are known,
    come behind its own. `device` is what attempts here may see, the value of their
    CUDA_VISIBLE_DEVICES: one or several device tokens joined by commas, "" for the CPU. `uuids`
    tells for each token the UUID of the GPU that is meant, "" where it is not known. `host` and
    `job_id`, of a job of a scheduler, tell apart devices that bear the same token.
    """

    number: int
    device: str = ""
    uuids: tuple[str, ...] = ()
    host: str = ""
    job_id: str = ""

    @property
    def device_name(self) -> str:
        """The device as records and messages name it: "cpu" for the CPU."""
        return self.device or CPU

    @property
    def place(self) -> str:
        """The device as the rulings name it: no other host or job has one of this name."""
        return place_name(self.host, self.job_id, self.device_name)


def make_slots(devices: list[str], pool: Pool, job_id: str = "") -> list[Slot]:
    """One slot for each device that was shared out of the pool, in this order."""
    host = os.uname().nodename
    slots = []
    for number, device in enumerate(devices):
        uuids = tuple(pool.uuids.get(token, "") for token in device.split(","))
        slots.append(Slot(number, device, uuids if any(uuids) else (), host, job_id))
    return slots
