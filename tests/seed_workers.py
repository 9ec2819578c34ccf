"""What the workers of test_gpu_coordinator.py do.

The tests import this, and so do the workers, in fresh interpreters.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

CHANGED_BY_THE_PARENT = "no"


def tell(rank, world_size, results_queue, *args):
    """Report everything that a worker can know."""
    results_queue.put(
        {
            "rank": rank,
            "world_size": world_size,
            "args": args,
            "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "order": os.environ.get("CUDA_DEVICE_ORDER"),
            "check": os.environ.get("GPUSPOOL_DEVICE_CHECK"),
            "ids": [os.getpid(), os.getppid(), os.getsid(0)],
            "changed": CHANGED_BY_THE_PARENT,
            "modules": sorted({"pytest", "test_gpu_coordinator"} & sys.modules.keys()),
            "main": Path(sys.modules["__main__"].__file__).parts[-2:],
        }
    )


def wait_for(rank, world_size, results_queue, gate):
    """Report, wait until the file is there, report again."""
    results_queue.put({"rank": rank, "at": "first"})
    while not gate.exists():
        time.sleep(0.005)
    results_queue.put({"rank": rank, "at": "last"})


def end_in_its_way(rank, world_size, results_queue, ways, gate):
    """Report something large, then end as this rank is told to.

    A rank that is to return does so once the gate is there.
    """
    results_queue.put({"rank": rank, "text": str(rank) * 200_000})
    way = ways[rank]
    if way == "return":
        while not gate.exists():
            time.sleep(0.005)
    elif way == "raise":
        raise ValueError(f"rank {rank} raised this")
    elif isinstance(way, tuple):
        sys.exit(*way)
    elif way == "SIGKILL":
        os.kill(os.getpid(), signal.SIGKILL)
    elif way == "abort":
        os._exit(7)


def put_many(rank, world_size, results_queue, count):
    for number in range(count):
        results_queue.put({"rank": rank, "number": number, "text": "x" * 2000})


def put_odd(rank, world_size, results_queue, path):
    """Put values that JSON does not have, then one that nobody can write."""
    import numpy

    results_queue.put(
        {
            1: (path, None),
            "nan": float("nan"),
            "array": numpy.arange(3),
            "scalar": numpy.float64(0.5),
        }
    )
    results_queue.put({"x": [open]})


def be_stuck(rank, world_size, results_queue, deaf):
    """Hang, with a child. A deaf worker ignores SIGTERM, and so does its child."""
    if rank in deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    results_queue.put({"pids": [os.getpid(), child.pid]})
    time.sleep(1000)
