"""How an attempt died: what this process knows of it, gathered as `Evidence`.

Gathering is all that is done here. What the evidence means is `classify`'s to say, a pure function
of spool with the table above it, and what follows for the tasks is decided where the attempt is
closed. Called by `Workers.close`, once for each attempt that is proved dead.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from gpuspool.orchestrator.supervise.children import Children
from gpuspool.orchestrator.supervise.interventions import Interventions
from gpuspool.spool.death import Crashed, Evidence, classify
from gpuspool.spool.layout import rank_of
from gpuspool.spool.oom import OomWatch
from gpuspool.spool.states import Life
from gpuspool.spool.timeouts import read_stacks
from gpuspool.spool.view import View

# An attempt that dies sooner than this and finished nothing may owe it to its device. Loading a
# large model takes about as long; what dies later has shown that the device works.
FAST_S = 60.0


class Forensics:
    """Gathers the evidence of deaths in one epoch.

    It remembers which ranks died fast on which device: two of them on one device, while a worker on
    another lives, tell of the device and of no task. `life` says whether an open attempt lives.
    """

    def __init__(
        self,
        view: View,
        children: Children,
        interventions: Interventions,
        life: Callable[[str], Life],
        max_crashes: int,
    ) -> None:
        self._view = view
        self._children = children
        self._interventions = interventions
        self._life = life
        self._max_crashes = max_crashes
        self._oom = OomWatch()
        self._fast_deaths: dict[str, set[int]] = {}

    def look_at_memory(self) -> None:
        """Note what the kernel killed for want of memory since the last call.

        Call it often: a kill explains only a death of the next few seconds.
        """
        self._oom.look(time.monotonic())

    def examine(self, attempt: str) -> Evidence:
        """What is known of an attempt that is proved dead."""
        code = self._children.exit_code(attempt)
        evidence = Evidence(
            stacks=read_stacks(self._view.layout, attempt),
            is_overdue=self._interventions.is_overdue(attempt),
            was_told=self._interventions.was_told(attempt),
            never_started=self._children.is_stillborn(attempt),
            exit_code=code,
            max_crashes=self._max_crashes,
        )
        # Only a crash is looked into further. The device comes before the memory, because a fault
        # of the device clears the task of all blame. And a kill for want of memory explains one
        # death, so it must not be spent on one that is explained already: the next attempt that the
        # kernel killed would count as a crash, and its task as a suspect.
        if code is None or not isinstance(classify(evidence), Crashed):
            return evidence
        if self._died_fast(attempt):
            device = self._device(attempt)
            self._fast_deaths.setdefault(device, set()).add(rank_of(attempt))
            if self._is_device_fault(device):
                return msgspec.structs.replace(evidence, is_device_fault=True)
        is_oom = self._oom.explains(code, time.monotonic())
        return msgspec.structs.replace(evidence, is_oom=is_oom)

    def _died_fast(self, attempt: str) -> bool:
        """Whether a child died soon after its start and finished nothing."""
        if self._view.finished_by.get(attempt):
            return False
        return self._children.age_s(attempt) <= FAST_S

    def _is_device_fault(self, device: str) -> bool:
        """Whether several ranks died fast on a device while a worker on another one lives.

        CPU ranks have no device to blame.
        """
        if device == "cpu" or len(self._fast_deaths[device]) < 2:
            return False
        return any(
            self._device(other) != device and self._life(other) is Life.ALIVE
            for other in self._view.open_attempts
        )

    def _device(self, attempt: str) -> str:
        intent = self._view.intents.get(attempt)
        if intent is None:
            return "cpu"
        return intent.device
