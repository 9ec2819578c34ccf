"""How an attempt died: what this process knows of it, gathered as `Evidence`.

Gathering is all that is done here. What the evidence means is `classify`'s to say, a pure function
of spool with the table above it, and what follows for the tasks is decided where the attempt is
closed. Called by `Workers.close`, once for each attempt that is proved dead.
"""

from __future__ import annotations

import time

import msgspec

from gpuspool.orchestrator.supervise.children import Children
from gpuspool.orchestrator.supervise.interventions import Interventions
from gpuspool.spool.death import Crashed, Evidence, classify
from gpuspool.spool.oom import OomWatch
from gpuspool.spool.timeouts import read_stacks
from gpuspool.spool.view import View


class Forensics:
    """Gathers the evidence of deaths in one epoch."""

    def __init__(
        self, view: View, children: Children, interventions: Interventions, max_crashes: int
    ) -> None:
        self._view = view
        self._children = children
        self._interventions = interventions
        self._max_crashes = max_crashes
        self._oom = OomWatch()

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
        # Only a crash is looked into further. A kill for want of memory explains one death, so it
        # must not be spent on one that is explained already: the next attempt that the kernel
        # killed would count as a crash, and its task as a suspect.
        if code is None or not isinstance(classify(evidence), Crashed):
            return evidence
        is_oom = self._oom.explains(code, time.monotonic())
        return msgspec.structs.replace(evidence, is_oom=is_oom)
