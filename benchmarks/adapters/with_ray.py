"""ray: one remote call a task, on as many CPUs as there are workers. It keeps nothing."""

import json
import logging
import sys

import ray
import work

if __name__ == "__main__":
    bench, _, workers, folder = sys.argv[1:]
    ray.init(
        num_cpus=int(workers), include_dashboard=False,
        log_to_driver=False, logging_level=logging.ERROR,
        object_store_memory=200_000_000,
    )  # fmt: skip
    task = ray.remote(work.of(bench))
    results = ray.get([task.remote(line) for line in work.lines(folder)])
    print(json.dumps({"done": len(results)}))
    sys.stdout.flush()
    ray.shutdown()
