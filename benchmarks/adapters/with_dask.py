"""dask.distributed: a local cluster of processes with one thread each. It keeps nothing."""

import json
import logging
import sys

import work
from dask.distributed import Client, LocalCluster

if __name__ == "__main__":
    bench, _, workers, folder = sys.argv[1:]
    tasks = work.lines(folder)
    cluster = LocalCluster(
        n_workers=int(workers), threads_per_worker=1,
        dashboard_address=None, silence_logs=logging.ERROR,
        local_directory=folder,
    )  # fmt: skip
    with cluster, Client(cluster) as client:
        results = client.gather(client.map(work.of(bench), tasks, pure=False))
    print(json.dumps({"done": len(results)}))
