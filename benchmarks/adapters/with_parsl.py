"""parsl: the high-throughput executor on this host, with a checkpoint after each task; run again,
it loads them.
"""

import json
import sys

import parsl
import work
from parsl.config import Config
from parsl.dataflow.memoization import BasicMemoizer, get_all_checkpoints
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider

if __name__ == "__main__":
    bench, _, workers, folder = sys.argv[1:]
    executor = HighThroughputExecutor(
        label="here", address="127.0.0.1", max_workers_per_node=int(workers), cores_per_worker=1e-6,
        provider=LocalProvider(init_blocks=1, max_blocks=1), encrypted=False,
    )  # fmt: skip
    memoizer = BasicMemoizer(
        checkpoint_mode="task_exit", checkpoint_files=get_all_checkpoints(f"{folder}/runinfo")
    )
    config = Config(
        executors=[executor], run_dir=f"{folder}/runinfo", memoizer=memoizer,
        retries=2, strategy="none",
    )  # fmt: skip
    with parsl.load(config):
        app = parsl.python_app(work.of(bench), cache=True)
        futures = [app(line) for line in work.lines(folder)]
        done = sum(1 for future in futures if future.result() is None)
    print(json.dumps({"done": done}), flush=True)
