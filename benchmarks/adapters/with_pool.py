"""multiprocessing.Pool, in chunks of 64 where tasks are tiny and one by one where they are not. It
keeps nothing.
"""

import json
import multiprocessing
import sys

import work

if __name__ == "__main__":
    bench, _, workers, folder = sys.argv[1:]
    tasks = work.lines(folder)
    with multiprocessing.Pool(int(workers)) as pool:
        chunk = 64 if bench in ("throughput", "startup") else 1
        done = sum(1 for _ in pool.imap_unordered(work.of(bench), tasks, chunk))
    print(json.dumps({"done": done}))
