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


class TakenSlots:
    """The slots of one parent that attempts of others take, as of the last look.

    A slot that an attempt took stays its own until the attempt is closed, whatever else becomes
    free meanwhile.
    """

    def __init__(self, view: View, others: Others, slots: Sequence[Slot]) -> None:
        self._view = view
        self._others = others
        self._slots = slots
        # attempt -> the numbers of the slots that it takes, in the order in which it took them.
        self._taken: dict[str, list[int]] = {}

    @property
    def beside_first(self) -> frozenset[int]:
        """The numbers of the slots that attempts take beside their first one.

        An attempt that uses several GPUs is in the way of each slot that has one of them.
        """
        return frozenset(number for slots in self._taken.values() for number in slots[1:])

    def look(self, attempts: Iterable[str], busy: Collection[int]) -> dict[str, int]:
        """The first slot of each attempt that takes any: attempt -> the number of the slot.

        attempts: the open ones that this parent did not start. busy: the numbers of the slots that
        run attempts of its own. Raises OSError.
        """
        self._taken = {attempt: self._taken.get(attempt, []) for attempt in attempts}
        taken = {*busy, *(number for slots in self._taken.values() for number in slots)}
        for attempt, slots in self._taken.items():
            for in_the_way in self._slots_in_the_way(attempt):
                free = [number for number in in_the_way if number not in taken]
                # One slot is enough for each device, although several may share it.
                if free and not set(in_the_way) & set(slots):
                    slots.append(free[0])
                    taken.add(free[0])
        self._taken = {attempt: slots for attempt, slots in self._taken.items() if slots}
        return {attempt: slots[0] for attempt, slots in self._taken.items()}

    def _slots_in_the_way(self, attempt: str) -> Iterator[list[int]]:
        """For each device of an attempt, the numbers of the slots that must leave it alone."""
        intent = self._view.intents.get(attempt)
        if intent is None:
            return
        for names in _names_of_devices(intent.device, intent.device_uuids):
            slots = [slot for slot in self._slots if _has(slot, names)]
            yield [slot.number for slot in slots if self._is_taken(slot, attempt, intent)]

    def _is_taken(self, slot: Slot, attempt: str, intent: Intent) -> bool:
        """Whether an attempt takes a slot with a device of the same name."""
        if intent.job_id != slot.job_id:
            return False
        if slot.device:
            return self._others.may_live_here(attempt)
        return self._others.is_adopted(attempt)


def _has(slot: Slot, names: set[str]) -> bool:
    """Whether a slot has a device with one of these names."""
    return any(names & other for other in _names_of_devices(slot.device_name, slot.uuids))


def _names_of_devices(device: str, uuids: Sequence[str]) -> list[set[str]]:
    """The names of each device of an attempt or a slot.

    A device may be named by its index there, and by its UUID here.
    """
    pairs = itertools.zip_longest(device.split(","), uuids, fillvalue="")
    return [set(pair) - {""} for pair in pairs]
