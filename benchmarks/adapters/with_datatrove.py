"""datatrove's local executor: one of its tasks, with a marker file once it is complete, for each of
ours.

Its tasks are shards of a pipeline; that is the unit which it runs again or skips.
"""

import json
import sys

import work
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep


class Step(PipelineStep):
    name = "task"

    def __init__(self, bench, folder):
        super().__init__()
        self.bench, self.tasks = bench, work.lines(folder)

    def run(self, data, rank=0, world_size=1):  # noqa: ARG002 - datatrove names them
        work.of(self.bench)(self.tasks[rank])
        yield from ()


if __name__ == "__main__":
    bench, n, workers, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    LocalPipelineExecutor(
        [Step(bench, folder)], tasks=n, workers=workers, logging_dir=f"{folder}/datatrove"
    ).run()
    print(json.dumps({"done": n}))
