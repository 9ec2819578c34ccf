"""joblib with its Memory cache: one folder a task, looked up before each call when the program runs
again.
"""

import json
import sys

import work
from joblib import Memory, Parallel, delayed

if __name__ == "__main__":
    bench, _, workers, folder = sys.argv[1:]
    task = Memory(f"{folder}/memory", verbose=0).cache(work.of(bench))
    results = Parallel(n_jobs=int(workers))(delayed(task)(line) for line in work.lines(folder))
    print(json.dumps({"done": len(results)}))
