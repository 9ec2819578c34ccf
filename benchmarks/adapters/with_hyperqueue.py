"""HyperQueue by its Python wheel, whose local cluster keeps nothing: `true` for tiny tasks, else
task.sh.
"""

import json
import os
import sys
from pathlib import Path

from hyperqueue import Job, LocalCluster
from hyperqueue.cluster import WorkerConfig

HERE = Path(__file__).resolve().parent

if __name__ == "__main__":
    bench, _, workers, folder = sys.argv[1:]
    tiny = bench in ("throughput", "startup")
    with open(f"{folder}/lines") as file:
        tasks = file.read().splitlines()
    environment = {name: os.environ[name] for name in ("BENCH_FOLDER", "PATH", "LC_ALL")}
    with LocalCluster(worker_config=WorkerConfig(cores=int(workers))) as cluster:
        client, job = cluster.client(), Job(max_fails=None)
        for line in tasks:
            job.program(
                ["true"] if tiny else [f"{HERE}/task.sh", line],
                env=environment,
                stdout=None,
                stderr=None,
            )
        client.wait_for_jobs([client.submit(job)])
    print(json.dumps({"done": len(tasks)}))
