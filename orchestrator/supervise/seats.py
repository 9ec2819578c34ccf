"""Which slots are taken by attempts that this parent did not start.

A slot stays empty while another attempt uses its device: one that outlived its parent and that this
parent has adopted, or, of a GPU, one of another parent on this host. Such an attempt takes a slot
until it is closed. On the CPU only what was adopted does: parents that share a host share its cores
as their users want. In another job of a scheduler the same token names another device, so attempts
of other jobs take no slot here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from gpuspool.orchestrator.plan.slots import Slot
from gpuspool.orchestrator.supervise.others import Others
from gpuspool.spool.records import Intent
from gpuspool.spool.view import View


class Seats:
    """The slots of one parent, and which of them others take."""

    def __init__(self, view: View, others: Others, slots: Sequence[Slot]) -> None:
        self._view = view
        self._others = others
        self._slots = slots
        # attempt -> the number of the slot that it takes.
        self._seats: dict[str, int] = {}

    def look(self, attempts: Iterable[str], busy: Collection[int]) -> dict[str, int]:
        """attempt -> the number of the slot that it takes, of those of these open attempts that
        take one. busy: the slots that run attempts of this parent's own. Raises OSError.
        """
        open_attempts = list(attempts)
        self._seats = {
            attempt: number
            for attempt, number in self._seats.items()
            if attempt in set(open_attempts)
        }
        taken = {*busy, *self._seats.values()}
        for attempt in open_attempts:
            if attempt in self._seats:
                continue
            number = self._free_slot(attempt, taken)
            if number is not None:
                self._seats[attempt] = number
                taken.add(number)
        return self._seats

    def _free_slot(self, attempt: str, taken: Collection[int]) -> int | None:
        intent = self._view.intents.get(attempt)
        if intent is None:
            return None
        for slot in self._slots:
            if slot.number not in taken and self._is_in_the_way(attempt, intent, slot):
                return slot.number
        return None

    def _is_in_the_way(self, attempt: str, intent: Intent, slot: Slot) -> bool:
        if intent.job_id != slot.job_id:
            return False
        theirs = _names(intent.device, intent.device_uuids)
        if theirs.isdisjoint(_names(slot.device_name, slot.uuids)):
            return False
        if slot.device:
            return self._others.is_here(attempt)
        return self._others.is_adopted(attempt)


def _names(device: str, uuids: Iterable[str]) -> set[str]:
    """All that the devices of an attempt or a slot are called: one may be named by its index there,
    and by its UUID here.
    """
    return {*device.split(","), *uuids} - {""}
