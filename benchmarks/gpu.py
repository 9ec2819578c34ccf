"""What a GPU does under gpuspool, against a bare loop: `python benchmarks/gpu.py`. Where there is
no GPU it says so.

The model is a batched transformer with random weights, large enough that a batch takes tens of
milliseconds. Rates are those of the steady part: from when the last rank has done its first batch
to when the first rank has done its last. GPU busy is NVML's utilization (the part of the time in
which a kernel ran), sampled while that lasts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import gpu_rows, timed, traces
from benchmarks.peers import HERE

RANKS_PER_GPU = (1, 2, 4)
SAMPLE_S = 0.1
PATIENCE_S = 900.0
JOB = HERE / "adapters" / "gpu_job.py"
BATCH = {"full": 64, "tiny": 4}
NO_GPU = "there is no GPU here (NVML finds none that this process may use): nothing was tried"


class Busy:
    """NVML's utilization and used memory of a GPU, sampled by a thread. `between` gives the mean
    utilization of a time span in percent, `used_at` the memory in bytes about a moment.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._samples: list[tuple[float, float]] = []
        self._used: list[tuple[float, int]] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        import pynvml

        while self._handle is not None and not self._end.wait(SAMPLE_S):
            # A MIG instance does not tell how busy it is.
            with contextlib.suppress(pynvml.NVMLError):
                used = pynvml.nvmlDeviceGetMemoryInfo(self._handle).used
                self._used.append((time.time(), used))
                busy = pynvml.nvmlDeviceGetUtilizationRates(self._handle).gpu
                self._samples.append((time.time(), busy))

    def used_at(self, moment: float, near_s: float) -> int | None:
        """What was sampled next to this moment, None where nothing was so near."""
        inside = [(abs(at - moment), used) for at, used in self._used if abs(at - moment) <= near_s]
        return min(inside)[1] if inside else None

    def between(self, start: float, end: float) -> float | None:
        inside = [value for at, value in self._samples if start <= at <= end]
        return sum(inside) / len(inside) if inside else None

    def __enter__(self) -> Busy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def find_gpu() -> tuple[str, Any] | None:
    """Name and NVML handle of the first GPU that this process may use; None where there is none.

    Raises NVMLError where there is a driver that cannot tell.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible == "":
        return None
    try:
        import pynvml
    except ImportError:
        return None
    no_driver = (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded)
    no_such_card = (pynvml.NVMLError_NotFound, pynvml.NVMLError_InvalidArgument)
    try:
        pynvml.nvmlInit()
        token = visible.split(",")[0] if visible else "0"
        by_index = token.isdigit()
        find = pynvml.nvmlDeviceGetHandleByIndex if by_index else pynvml.nvmlDeviceGetHandleByUUID
        handle = find(int(token) if by_index else token)
        return str(pynvml.nvmlDeviceGetName(handle)), handle
    except (*no_driver, *no_such_card):
        return None


def first_visible() -> str:
    """The first token of those that this process may use; without a list it is "0"."""
    return (os.environ.get("CUDA_VISIBLE_DEVICES") or "0").split(",")[0]


def steady(folder: Path, batch: int) -> tuple[float, float, float]:
    """(tasks a second, from, to) of the steady part of a run, by its traces, one for each batch."""
    executions = traces.read_traces(folder)
    pids = {one.pid for one in executions}
    ends = {pid: [one.end for one in executions if one.pid == pid] for pid in pids}
    start, end = (
        max(min(times) for times in ends.values()),
        min(max(times) for times in ends.values()),
    )
    inside = sum(start < one.end <= end for one in executions)
    return (inside * batch / (end - start) if end > start else 0.0), start, end


@contextlib.contextmanager
def folder_in(home: Path, name: str) -> Iterator[Path]:
    with timed.fresh(home / name) as folder:
        (folder / "trace").mkdir()
        yield folder


def measure(argv: list[str], folder: Path, batch: int, handle: Any, visible: str) -> dict[str, Any]:
    """Run one command; its steady rate, how busy the GPU was meanwhile, its whole time, and its
    last line.
    """
    with Busy(handle) as busy:
        ended = timed.Running(argv, folder, CUDA_VISIBLE_DEVICES=visible).wait(PATIENCE_S)
    if ended is None or ended.code:
        raise SystemExit(f"{argv}: {ended and ended.complaint()}")
    rate, start, end = steady(folder, batch)
    return {
        "tasks_per_s": rate, "gpu_busy_percent": busy.between(start, end), "seconds": ended.seconds,
        "said": json.loads(ended.last_line),
    }  # fmt: skip


def bare(home: Path, size: str, seconds: float, handle: Any, visible: str) -> dict[str, Any]:
    """The bare loop, for as many batches as asked for."""
    with folder_in(home, "bare") as folder:
        device = "cuda:0" if visible else "cpu"
        argv = [sys.executable, str(JOB), device, size, str(seconds)]
        return {"what": row_name(0), **measure(argv, folder, BATCH[size], handle, visible)}


def spooled(
    home: Path, size: str, n: int, per_gpu: int, handle: Any, visible: str
) -> dict[str, Any]:
    """As many tasks under gpuspool as the bare loop did."""
    with folder_in(home, "spooled") as folder:
        (folder / "lines").write_text("".join(f"{seed}\n" for seed in range(n)))
        program = str(Path(sys.executable).with_name("gpuspool"))
        ranks = (
            ["--ranks-per-gpu", str(per_gpu)]
            if visible
            else ["--devices", "cpu", "--ranks", str(per_gpu)]
        )
        argv = [
            program,
            "run",
            f"{JOB}:Encoder",
            "--lines",
            f"{folder}/lines",
            "--arg",
            f"size={size}",
            *ranks,
        ]
        found = measure(
            [*argv, "--spool", f"{folder}/spool", "--json", "-q"],
            folder,
            BATCH[size],
            handle,
            visible,
        )
        assert found["said"]["tasks"]["complete"] == n, found
    return {"what": row_name(per_gpu), **found}


def row_name(per_gpu: int) -> str:
    """What a row measures; 0 ranks are those of the bare loop."""
    ranks = f"gpuspool, {per_gpu} rank{'s' if per_gpu > 1 else ''} a GPU"
    return ranks if per_gpu else "bare loop"


def as_row(row: dict[str, Any], base: dict[str, Any]) -> gpu_rows.Row:
    """A figure as `make gpu` shows it, against the bare loop."""
    share = 100 * row["tasks_per_s"] / base["tasks_per_s"] if base["tasks_per_s"] else None
    busy = row["gpu_busy_percent"]
    figure = f"{row['tasks_per_s']:,.0f} tasks/s"
    if row is not base and share is not None:
        figure = f"{share:.1f} % of the bare loop, {figure}"
    if busy is not None:
        figure += f", GPU busy {busy:.1f} %"
    values = {
        "tasks_per_s": row["tasks_per_s"], "of_bare_loop_percent": share, "gpu_busy_percent": busy,
    }  # fmt: skip
    return gpu_rows.Row(row["what"], gpu_rows.MEASURED, figure, round(row["seconds"], 1), values)


def line(row: dict[str, Any], base: float) -> str:
    busy = row["gpu_busy_percent"]
    share = f"{100 * row['tasks_per_s'] / base:.1f} %" if base else "–"
    busy_text = "–" if busy is None else f"{busy:.1f} %"
    return f"| {row['what']} | {row['tasks_per_s']:.1f} | {share} | {busy_text} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--tiny", action="store_true", help="a tiny model on the CPU, to see that the script works"
    )
    parser.add_argument(
        "--seconds", type=float, default=30.0, help="how long the bare loop runs; default 30"
    )
    parser.add_argument("--runs", type=int, default=1, help="repetitions; default 1")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--rows", type=Path, help="add the figures as rows to this file")
    options = parser.parse_args()
    gpu = None if options.tiny else find_gpu()
    if gpu is None and not options.tiny:
        print(NO_GPU)
        return 0
    name, handle = gpu or ("CPU, tiny model", None)
    visible = "" if gpu is None else first_visible()
    gpu_rows.plan(options.rows, *(row_name(per_gpu) for per_gpu in (0, *RANKS_PER_GPU)))
    size, rows = "tiny" if options.tiny else "full", []
    print(
        f"{name}\n\n| what | tasks/s | of the bare loop | GPU busy |\n|---|---|---|---|", flush=True
    )
    with tempfile.TemporaryDirectory(prefix="benchmarks-gpu-") as temporary:
        home = Path(temporary).resolve()
        for _ in range(options.runs):
            first = bare(home, size, options.seconds, handle, visible)
            rows.append(first)
            gpu_rows.add(options.rows, as_row(first, first))
            print(line(first, first["tasks_per_s"]), flush=True)
            for per_gpu in RANKS_PER_GPU:
                rows.append(spooled(home, size, first["said"]["done"], per_gpu, handle, visible))
                gpu_rows.add(options.rows, as_row(rows[-1], first))
                print(line(rows[-1], first["tasks_per_s"]), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps({"device": name, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
