"""The child: one process that runs tasks on the device it was given. Users import `Context` and
`Task`.
"""

from gpuspool.worker.context import Context, Task

__all__ = ["Context", "Task"]
