"""What users import: `gpuspool.run`, `resume`, `status`, the types `Context` and `Task` for
annotations, and the seed API's `GPUProcessCoordinator`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpuspool.spool import __version__

if TYPE_CHECKING:
    from gpuspool.orchestrator.api import Report, resume, run, status
    from gpuspool.orchestrator.gpu_coordinator import GPUProcessCoordinator
    from gpuspool.worker.context import Context, Task

__all__ = [
    "Context",
    "GPUProcessCoordinator",
    "Report",
    "Task",
    "__version__",
    "resume",
    "run",
    "status",
]


def __getattr__(name: str) -> Any:
    """Import on first use, so that a job that imports gpuspool for its types does not import the
    orchestrator.
    """
    if name in ("Context", "Task"):
        import gpuspool.worker.context as module
    elif name in ("Report", "resume", "run", "status"):
        import gpuspool.orchestrator.api as module  # type: ignore[no-redef]
    elif name == "GPUProcessCoordinator":
        import gpuspool.orchestrator.gpu_coordinator as module  # type: ignore[no-redef]
    else:
        raise AttributeError(f"module 'gpuspool' has no attribute {name!r}")
    return getattr(module, name)
