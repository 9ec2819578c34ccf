"""Which slots are taken by attempts that this parent did not start.

A slot stays empty while another attempt uses its device: one that outlived its parent and that this
parent has adopted, or, of a GPU, one of another parent on this host. Such an attempt takes a slot
until it is closed. On the CPU only what was adopted does: parents that share a host share its cores
as their users want. In another job of a scheduler the same token names another device, so attempts
of other jobs take no slot here.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence

from gpuspool.orchestrator.plan.slots import Slot
from gpuspool.orchestrator.supervise.others import Others
from gpuspool.spool.records import Intent
from gpuspool.spool.view import View


class Seats:
    """The slots of one parent, and which of them others take.

    further: the numbers of the slots that attempts take beside their first one, as of the last
    look. An attempt that uses several GPUs is in the way of each slot that has one of them.
    """

    def __init__(self, view: View, others: Others, slots: Sequence[Slot]) -> None:
        self._view = view
        self._others = others
        self._slots = slots
        # attempt -> the numbers of the slots that it takes.
        self._seats: dict[str, list[int]] = {}

    @property
    def further(self) -> frozenset[int]:
        return frozenset(number for seats in self._seats.values() for number in seats[1:])

    def look(self, attempts: Iterable[str], busy: Collection[int]) -> dict[str, int]:
        """attempt -> the number of the first slot that it takes, of those of these open attempts
        that take one. busy: the slots that run attempts of this parent's own. Raises OSError.
        """
        self._seats = {attempt: self._seats.get(attempt, []) for attempt in attempts}
        taken = {*busy, *(number for seats in self._seats.values() for number in seats)}
        for attempt, seats in self._seats.items():
            for slots in self._slots_in_the_way(attempt):
                free = [number for number in slots if number not in taken]
                if free and not set(slots) & set(seats):
                    seats.append(free[0])
                    taken.add(free[0])
        self._seats = {attempt: seats for attempt, seats in self._seats.items() if seats}
        return {attempt: seats[0] for attempt, seats in self._seats.items()}

    def _slots_in_the_way(self, attempt: str) -> Iterator[list[int]]:
        """For each device of an attempt the numbers of the slots that have it."""
        intent = self._view.intents.get(attempt)
        if intent is None:
            return
        for names in _devices(intent.device, intent.device_uuids):
            slots = [slot for slot in self._slots if _has(slot, names)]
            yield [slot.number for slot in slots if self._is_taken(slot, attempt, intent)]

    def _is_taken(self, slot: Slot, attempt: str, intent: Intent) -> bool:
        """Whether an attempt takes a slot with a device of the same name."""
        if intent.job_id != slot.job_id:
            return False
        if slot.device:
            return self._others.is_here(attempt)
        return self._others.is_adopted(attempt)


def _has(slot: Slot, names: set[str]) -> bool:
    """Whether one of the devices of a slot is called by one of these names."""
    return any(names & other for other in _devices(slot.device_name, slot.uuids))


def _devices(device: str, uuids: Sequence[str]) -> list[set[str]]:
    """All that each device of an attempt or a slot is called: one may be named by its index there,
    and by its UUID here.
    """
    pairs = itertools.zip_longest(device.split(","), uuids, fillvalue="")
    return [set(pair) - {""} for pair in pairs]
