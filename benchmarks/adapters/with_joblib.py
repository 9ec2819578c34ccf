"""joblib with its default backend (loky) and batching. It keeps nothing."""

import json
import sys

import work
from joblib import Parallel, delayed

if __name__ == "__main__":
    bench, _, workers, folder = sys.argv[1:]
    task = work.of(bench)
    results = Parallel(n_jobs=int(workers))(delayed(task)(line) for line in work.lines(folder))
    print(json.dumps({"done": len(results)}))
