"""What of gpuspool's start-up is imports: a parent and its workers import, and do nothing else.

`libraries`: only those that gpuspool is built on. `modules`: all that it imports itself.
"""

import importlib
import json
import subprocess
import sys

PARENT = {
    "startup_libraries": ("click", "msgspec", "filelock"),
    "startup_modules": (
        "gpuspool.orchestrator.cli.main",
        "gpuspool.orchestrator.api.runs",
        "gpuspool.orchestrator.supervise.loop",
        "gpuspool.orchestrator.supervise.lock",
    ),
}
WORKER = {"startup_libraries": "msgspec", "startup_modules": "gpuspool.worker.attempt"}


def main():
    bench, tasks, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    for name in PARENT[bench]:
        importlib.import_module(name)
    command = [sys.executable, "-P", "-c", f"import {WORKER[bench]}"]
    processes = [subprocess.Popen(command) for _ in range(workers)]
    if any([process.wait() for process in processes]):  # noqa: C419 - all of them are waited for
        sys.exit(1)
    print(json.dumps({"done": tasks}))


main()
