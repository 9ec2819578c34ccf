"""submitit's local executor: a process for each task, at most so many at once; what it leaves are
pickles.
"""

import json
import sys
import time

import submitit
import work

POLL_S = 0.01

if __name__ == "__main__":
    bench, _, workers, folder = sys.argv[1:]
    executor = submitit.LocalExecutor(folder=f"{folder}/submitit")
    executor.update_parameters(timeout_min=60)
    running, done = [], 0
    for line in work.lines(folder):
        while len(running) >= int(workers):
            left = [job for job in running if not job.done()]
            done += len(running) - len(left)
            running = left
            time.sleep(POLL_S if len(running) >= int(workers) else 0)
        running.append(executor.submit(work.of(bench), line))
    for job in running:
        job.result()
    print(json.dumps({"done": done + len(running)}))
