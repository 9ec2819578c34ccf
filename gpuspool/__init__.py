"""A file-queue batch orchestrator for GPU jobs: no server, nothing lost, `ls` shows it.

Start a run: `run`, `resume`, `join`, `retry`, `redo`, `add`, `drain`; on a cluster `submit`,
`resubmit`. Look at it: `status`, `explain`, `wait`, `results`, `failed`, `logs`, `verify`;
`doctor`. Hand it on: `report`, `export`, `stack`. They return `Report`, `Submission`, `Result`,
`Findings` and `Check`; their options are those of `RunOptions` and `StartOptions`. What goes wrong
is a `GpuspoolError`.

In a job: `Task` and `Context` for annotations, `NotDone` and `Restart`. For programs that had a
coordinator of processes: `GPUProcessCoordinator`. docs/python-api.md describes all of it.

Importing this package imports nothing heavy: a job that wants `Task` for its annotations does not
load the orchestrator. Each name is imported from its module when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gpuspool.spool import __version__

if TYPE_CHECKING:
    from gpuspool.orchestrator.api.exporting import export, stack
    from gpuspool.orchestrator.api.handing_on import report
    from gpuspool.orchestrator.api.reading import (
        doctor,
        explain,
        failed,
        logs,
        results,
        status,
        verify,
        wait,
    )
    from gpuspool.orchestrator.api.report import Report
    from gpuspool.orchestrator.api.runs import add, drain, join, redo, resume, retry, run
    from gpuspool.orchestrator.api.submitting import Submission, resubmit, submit
    from gpuspool.orchestrator.export.stack import Stacked
    from gpuspool.orchestrator.gpu_coordinator import GPUProcessCoordinator
    from gpuspool.orchestrator.plan.options import RunOptions, StartOptions
    from gpuspool.orchestrator.report.results import Result, ResultState
    from gpuspool.orchestrator.report.verify import Findings
    from gpuspool.orchestrator.supervise.doctor import Check
    from gpuspool.spool.errors import (
        AttemptError,
        CommandFailed,
        CommandOutOfMemory,
        Damaged,
        DeviceError,
        DevicesChanged,
        FolderGone,
        GpuspoolError,
        Incomplete,
        JobDamaged,
        OrchestratorLive,
        OutputError,
        ResultError,
        SpoolError,
        SyncError,
        TaskError,
        Unusable,
        UsageError,
    )
    from gpuspool.spool.states import RunState
    from gpuspool.worker.context import Context, NotDone, Restart, Task

__all__ = [
    "AttemptError",
    "Check",
    "CommandFailed",
    "CommandOutOfMemory",
    "Context",
    "Damaged",
    "DeviceError",
    "DevicesChanged",
    "Findings",
    "FolderGone",
    "GPUProcessCoordinator",
    "GpuspoolError",
    "Incomplete",
    "JobDamaged",
    "NotDone",
    "OrchestratorLive",
    "OutputError",
    "Report",
    "Restart",
    "Result",
    "ResultError",
    "ResultState",
    "RunOptions",
    "RunState",
    "SpoolError",
    "Stacked",
    "StartOptions",
    "Submission",
    "SyncError",
    "Task",
    "TaskError",
    "Unusable",
    "UsageError",
    "__version__",
    "add",
    "doctor",
    "drain",
    "explain",
    "export",
    "failed",
    "join",
    "logs",
    "redo",
    "report",
    "resubmit",
    "results",
    "resume",
    "retry",
    "run",
    "stack",
    "status",
    "submit",
    "verify",
    "wait",
]

# Where the names are defined that are not errors. A test compares this with the imports above.
_HOMES = {
    "Check": "gpuspool.orchestrator.supervise.doctor",
    "Context": "gpuspool.worker.context",
    "Findings": "gpuspool.orchestrator.report.verify",
    "GPUProcessCoordinator": "gpuspool.orchestrator.gpu_coordinator",
    "Report": "gpuspool.orchestrator.api.report",
    "Result": "gpuspool.orchestrator.report.results",
    "ResultState": "gpuspool.orchestrator.report.results",
    "RunOptions": "gpuspool.orchestrator.plan.options",
    "RunState": "gpuspool.spool.states",
    "StartOptions": "gpuspool.orchestrator.plan.options",
    "Stacked": "gpuspool.orchestrator.export.stack",
    "Submission": "gpuspool.orchestrator.api.submitting",
    "Task": "gpuspool.worker.context",
    "NotDone": "gpuspool.worker.context",
    "Restart": "gpuspool.worker.context",
    "doctor": "gpuspool.orchestrator.api.reading",
    "drain": "gpuspool.orchestrator.api.runs",
    "explain": "gpuspool.orchestrator.api.reading",
    "export": "gpuspool.orchestrator.api.exporting",
    "stack": "gpuspool.orchestrator.api.exporting",
    "failed": "gpuspool.orchestrator.api.reading",
    "logs": "gpuspool.orchestrator.api.reading",
    "report": "gpuspool.orchestrator.api.handing_on",
    "results": "gpuspool.orchestrator.api.reading",
    "resume": "gpuspool.orchestrator.api.runs",
    "join": "gpuspool.orchestrator.api.runs",
    "retry": "gpuspool.orchestrator.api.runs",
    "resubmit": "gpuspool.orchestrator.api.submitting",
    "submit": "gpuspool.orchestrator.api.submitting",
    "add": "gpuspool.orchestrator.api.runs",
    "redo": "gpuspool.orchestrator.api.runs",
    "run": "gpuspool.orchestrator.api.runs",
    "status": "gpuspool.orchestrator.api.reading",
    "verify": "gpuspool.orchestrator.api.reading",
    "wait": "gpuspool.orchestrator.api.reading",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, and keep it."""
    if name not in __all__:
        raise AttributeError(f"module 'gpuspool' has no attribute {name!r}")
    home = _HOMES.get(name, "gpuspool.spool.errors")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, those too that were not used yet."""
    return sorted(__all__)
