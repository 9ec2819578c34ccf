"""Our own floor: what a durable run costs at least. A manifest for each of the processes, and
stdlib-json journals.

Each process is an interpreter of its own, since what it may see of the devices must be set before
it starts. It writes one line for each finished task with one write(2) and calls fdatasync(2) once a
second. Run again, the floor skips what the journals tell. No claims, no stealing, no heartbeats, no
restarts, no checksums.
"""

import json
import os
import subprocess
import sys
import time

import work


def done_before(folder):
    """The tasks that any journal tells; a torn last line is none."""
    done = set()
    for name in os.listdir(folder):
        if name.startswith("journal."):
            with open(os.path.join(folder, name), "rb") as file:
                for line in file:
                    if line.endswith(b"\n"):
                        done.add(json.loads(line)["task"])
    return done


def write_manifest(path, tasks):
    with open(path, "w") as file:
        for index, line in tasks:
            file.write(json.dumps({"task": index, "payload": line}) + "\n")
        file.flush()
        os.fsync(file.fileno())


def worker(bench, folder, rank, epoch):
    call = work.of(bench)
    journal = os.open(
        f"{folder}/journal.{epoch}.{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644
    )
    synced = time.monotonic()
    with open(f"{folder}/manifest.{epoch}.{rank}") as file:
        for line in file:
            task = json.loads(line)
            result = call(task["payload"])
            os.write(
                journal, (json.dumps({"task": task["task"], "result": result}) + "\n").encode()
            )
            if time.monotonic() - synced > 1:
                os.fdatasync(journal)
                synced = time.monotonic()
    os.fdatasync(journal)


def main():
    bench, _, workers, folder = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
    done = done_before(folder)
    left = [(index, line) for index, line in enumerate(work.lines(folder)) if index not in done]
    epoch = sum(name.startswith("manifest.") for name in os.listdir(folder))
    processes = []
    for rank in range(workers if left else 0):
        write_manifest(f"{folder}/manifest.{epoch}.{rank}", left[rank::workers])
        command = [sys.executable, __file__, "worker", bench, folder, str(rank), str(epoch)]
        processes.append(subprocess.Popen(command))
    if any([process.wait() for process in processes]):  # noqa: C419 - all of them are waited for
        sys.exit(1)
    print(json.dumps({"done": len(done) + len(left)}))


if sys.argv[1] == "worker":
    worker(*sys.argv[2:])
else:
    main()
