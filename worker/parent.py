"""The process that started this worker: whether it is there, and what follows if it is not."""

from __future__ import annotations

import os

from gpuspool.spool.records import Intent
from gpuspool.worker.drain import Drain


class Parent:
    """The parent that an intent names. Every method is cheap and safe from any thread."""

    def __init__(self, intent: Intent, drain: Drain) -> None:
        self.pid = intent.parent.pid
        self._is_needed = intent.options.on_parent_exit == "stop"
        self._drain = drain

    def is_there(self) -> bool:
        """Whether it lives: the kernel gives a process another parent once its own has died."""
        return os.getppid() == self.pid

    def drain_if_gone(self) -> None:
        """Drain if the parent is gone and the run was started with `--on-parent-exit stop`."""
        if self._is_needed and not self.is_there():
            self._drain.request()
