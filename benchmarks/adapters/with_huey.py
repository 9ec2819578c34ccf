"""huey on SQLite: the tasks are queued, then its consumer runs them in processes until all have a
result.

Run again, nothing is queued that was queued before: the consumer goes on with what the queue holds.
A task that was taken out of the queue and not finished is gone; then the wait ends once the queue
is empty and nothing has changed.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import huey_tasks
import work

POLL_S = 0.02
UNCHANGED_S = 2.0


def queue(bench, folder):
    queued = Path(folder, "queued")
    if queued.exists():
        return
    task = huey_tasks.TASKS[work.of(bench).__name__]
    for line in work.lines(folder):
        task(line)
    queued.touch()


def wait(n, longest_s):
    """Until there are n results, or nothing is left that could give one."""
    huey, before, since = huey_tasks.huey, -1, time.monotonic()
    while (done := huey.result_count()) < n:
        if done != before or huey.pending_count():
            before, since = done, time.monotonic()
        if time.monotonic() - since > UNCHANGED_S + longest_s:
            break
        time.sleep(POLL_S)
    return done


def main():
    bench, n, workers, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
    queue(bench, folder)
    consumer = Path(sys.executable).with_name("huey_consumer")
    flags = ["-w", workers, "-k", "process", "-d", "0.01", "-m", "0.01", "-c", "1", "-n", "-q"]
    process = subprocess.Popen([sys.executable, consumer, "huey_tasks.huey", *flags])
    done = wait(n, max(float(line.split()[1]) for line in work.lines(folder)))
    process.kill()
    process.wait()
    print(json.dumps({"done": done}))


main()
