"""Where the time of an attempt went, for its closing record."""

from __future__ import annotations

import os
import sys
import time

from gpuspool.spool import __version__
from gpuspool.spool.records import Stats
from gpuspool.worker.beat import Doing
from gpuspool.worker.devices import Device, peak_memory_bytes, torch_version
from gpuspool.worker.execute import Executor
from gpuspool.worker.resources import age_s, peak_resident_bytes


class Statistics:
    """The clocks of one attempt, in seconds."""

    def __init__(self) -> None:
        self._began = time.monotonic() - age_s()
        # From the start of the process to the loading of the job; loading the job; running tasks,
        # with their inputs and outputs.
        self._start_s = 0.0
        self._load_s = 0.0
        self._run_s = 0.0
        # When the job's `close` was called, None where it was not.
        self._closes_at: float | None = None

    def begin_load(self) -> None:
        """The job is loaded from now on."""
        self._start_s = time.monotonic() - self._began

    def end_load(self) -> None:
        """The job is loaded, or has failed to."""
        self._load_s = time.monotonic() - self._began - self._start_s

    def add_run(self, seconds: float) -> None:
        """Tasks were run for so long."""
        self._run_s += seconds

    def begin_close(self) -> None:
        """The job's `close` is called now, and the attempt ends after it."""
        self._closes_at = time.monotonic()

    def final(self, doing: Doing, device: Device, executor: Executor | None) -> Stats:
        """The record. executor: None where the job was never loaded."""
        now = time.monotonic()
        seconds = now - self._began
        call_s = 0.0
        inputs_s = 0.0
        if executor is not None:
            call_s = executor.call.call_s
            inputs_s = executor.call.inputs_s
        idle_s = {
            "start": self._start_s,
            "load": self._load_s,
            "inputs": inputs_s,
            "publish": self._run_s - call_s - inputs_s,
        }
        if self._closes_at is not None:
            idle_s["close"] = now - self._closes_at
        # What is left: claiming, waiting for others and for retries.
        idle_s["work"] = seconds - call_s - sum(idle_s.values())
        return Stats(
            done=doing.complete,
            failed=doing.failed,
            seconds=round(seconds, 3),
            busy_s=round(call_s, 3),
            idle_s={cause: round(spent, 3) for cause, spent in idle_s.items()},
            ready=executor is not None,
            device=os.environ.get("CUDA_VISIBLE_DEVICES", "") or "cpu",
            device_name=device.name,
            device_uuid=device.uuid,
            peak_memory_bytes=peak_resident_bytes(),
            peak_device_memory_bytes=peak_memory_bytes(),
            batch_size=None if executor is None else executor.batch_size,
            oom_halvings=0 if executor is None else executor.oom_halvings,
            splits=0 if executor is None else executor.splits,
            wrong_lengths=0 if executor is None else executor.call.wrong_lengths,
            left_behind=0 if executor is None else executor.call.outputs.left_behind,
            versions=_versions(),
        )


def _versions() -> dict[str, str]:
    """What ran this attempt; torch only where the job uses it."""
    versions = {"gpuspool": __version__, "python": sys.version.split()[0]}
    torch = torch_version()
    if torch:
        versions["torch"] = torch
    return versions
