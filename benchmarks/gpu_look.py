"""Whether torch can use the first GPU at all, and what that is: the first step of `make gpu`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import gpu_rows

WHAT = "torch uses the card"


def look() -> gpu_rows.Row:
    """One product of matrices on the card, and the versions."""
    import torch

    start = time.perf_counter()
    if not torch.cuda.is_available():
        why = f"torch {torch.__version__} is not built for GPUs, or finds no driver that it knows"
        return gpu_rows.Row(WHAT, gpu_rows.FAILED, why)
    eye = torch.eye(512, device="cuda:0")
    difference = float((eye @ eye - eye).abs().max())
    memory = torch.cuda.get_device_properties(0).total_memory
    figure = f"torch {torch.__version__}, CUDA {torch.version.cuda}, {memory / 2**30:.0f} GiB"
    result = gpu_rows.PASSED if difference == 0.0 else gpu_rows.FAILED
    seconds = round(time.perf_counter() - start, 1)
    return gpu_rows.Row(WHAT, result, figure, seconds, {"memory_bytes": float(memory)})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, required=True, help="the file that takes the row")
    options = parser.parse_args()
    gpu_rows.plan(options.rows, WHAT)
    row = look()
    gpu_rows.add(options.rows, row)
    return 0 if row.result == gpu_rows.PASSED else 1


if __name__ == "__main__":
    sys.exit(main())
