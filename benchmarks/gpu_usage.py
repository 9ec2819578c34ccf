"""What usage/ of a spool tells of a GPU while a load runs, against what NVML says beside it.

A worker beats each second here, and with each beat tells how busy and how full its card is. Beside
it this process asks NVML ten times a second. Each line of the worker's is held against what was
seen within half a second of it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import gpu, gpu_rows, timed
from benchmarks.gpu_rows import FAILED, PASSED, SKIPPED, Row

LINES, BUSY, MEMORY, SMI = (
    "usage/ tells of the card while a load runs",
    "how busy usage/ says the card is",
    "how full usage/ says the card is",
    "how much memory nvidia-smi says the card has",
)

# More tasks than any card does before enough was told.
TASKS = {"full": 400_000, "tiny": 60_000}
# The load goes on until so many lines, one a second, have told of the card.
WANTED_LINES = {"full": 12, "tiny": 4}
# It takes some ten seconds until a worker has loaded its model.
PATIENCE_S = 40.0

# So far apart two looks may be and still be of the same moment.
NEAR_S = 0.5
# Of so many lines the means may be compared.
ENOUGH_LINES = 3
# NVML's figure is that of its last sample, of a sixth of a second to a second; the mean of some ten
# of them may be off by this, in points of percent.
BUSY_POINTS = 10.0
# What is taken grows and shrinks by what torch caches: in parts of the whole memory.
MEMORY_PART = 0.02

# What a start that was stopped ends with.
STOPPED = 75
# So long it may take to finish the batch in hand, and to end.
END_S = 10.0
# So often is looked whether enough was told.
SAMPLE_S = 0.2
GIB = 2**30


def run_load(home: Path, size: str, visible: str, sampler: gpu.Busy) -> tuple[Path, str]:
    """Run the load under gpuspool; its spool, and what went wrong ("" for nothing)."""
    folder = home / "load"
    folder.mkdir()
    (folder / "trace").mkdir()
    (folder / "lines").write_text("".join(f"{seed}\n" for seed in range(TASKS[size])))
    argv = [
        str(Path(sys.executable).with_name("gpuspool")), "run", f"{gpu.JOB}:Encoder",
        "--lines", f"{folder}/lines", "--arg", f"size={size}", "--spool", f"{folder}/spool",
        "--lease", "12s", "-q",
    ]  # fmt: skip
    variables = {"CUDA_VISIBLE_DEVICES": visible}
    if size == "tiny":
        # That one is on the CPU, and the card only in name.
        variables["GPUSPOOL_DEVICE_CHECK"] = "off"
    spool = folder / "spool"
    with sampler:
        load = timed.Running(argv, folder, **variables)
        is_told = timed.wait_until(
            lambda: load.is_over() or len(told(spool)) >= WANTED_LINES[size], PATIENCE_S, SAMPLE_S
        )
        if not load.is_over():
            os.kill(load.pid, signal.SIGINT)
        ended = load.wait(load.seconds_so_far() + END_S)
    if ended is None:
        return spool, f"the load did not end within {END_S:.0f} s of its SIGINT"
    if ended.code not in (0, STOPPED):
        return spool, f"the load ended with {ended.code}: {ended.complaint()}"
    return spool, "" if is_told else f"too little was told in {PATIENCE_S:.0f} s"


def told(spool: Path) -> list[dict[str, Any]]:
    """The lines of all attempts that tell of a card."""
    lines = [
        json.loads(line)
        for path in sorted((spool / "usage").glob("*.jsonl"))
        for line in path.read_bytes().split(b"\n")[:-1]
        if line
    ]
    return [line for line in lines if line.get("gpu_mem") is not None]


def compare(lines: list[dict[str, Any]], sampler: gpu.Busy, smi_bytes: float | None) -> list[Row]:
    """The rows, of what was told and what was seen beside it."""
    count = len(lines)
    rows = [
        Row(LINES, PASSED if count >= ENOUGH_LINES else FAILED, f"{count} lines", None,
            {"lines": float(count)})
    ]  # fmt: skip
    if count < ENOUGH_LINES:
        return rows
    rows.append(_busy(lines, sampler))
    rows.append(_memory(lines, sampler))
    total = float(lines[-1]["gpu_mem_total"])
    if smi_bytes is None:
        rows.append(Row(SMI, SKIPPED, "there is no nvidia-smi"))
    else:
        is_near = abs(total - smi_bytes) <= MEMORY_PART * total
        figure = f"{smi_bytes / GIB:.1f} GiB; usage/ says {total / GIB:.1f} GiB"
        values: dict[str, float | None] = {"smi_bytes": smi_bytes, "told_bytes": total}
        rows.append(Row(SMI, PASSED if is_near else FAILED, figure, None, values))
    return rows


def _busy(lines: list[dict[str, Any]], sampler: gpu.Busy) -> Row:
    pairs = [
        (line["gpu"], seen)
        for line in lines
        if line.get("gpu") is not None
        and (seen := sampler.between(line["at"] - NEAR_S, line["at"] + NEAR_S)) is not None
    ]
    if not pairs:
        return Row(BUSY, SKIPPED, "the card does not tell how busy it is")
    mine, beside = (statistics.fmean(column) for column in zip(*pairs, strict=True))
    is_near = abs(mine - beside) <= BUSY_POINTS
    figure = f"{mine:.1f} %; NVML beside it {beside:.1f} %, the means of {len(pairs)} moments"
    values: dict[str, float | None] = {"told_percent": mine, "seen_percent": beside}
    return Row(BUSY, PASSED if is_near else FAILED, figure, None, values)


def _memory(lines: list[dict[str, Any]], sampler: gpu.Busy) -> Row:
    pairs = [
        (line["gpu_mem"], seen)
        for line in lines
        if (seen := sampler.used_at(line["at"], NEAR_S)) is not None
    ]
    if not pairs:
        return Row(MEMORY, FAILED, "NVML told nothing beside it")
    mine, beside = (statistics.median(column) for column in zip(*pairs, strict=True))
    is_near = abs(mine - beside) <= MEMORY_PART * lines[-1]["gpu_mem_total"]
    figure = f"{mine / GIB:.2f} GiB; NVML beside it {beside / GIB:.2f} GiB, medians"
    values: dict[str, float | None] = {"told_bytes": mine, "seen_bytes": beside}
    return Row(MEMORY, PASSED if is_near else FAILED, figure, None, values)


def smi_memory(visible: str) -> float | None:
    """The memory of a card in bytes, as nvidia-smi has it; None where that is not there."""
    query = ["nvidia-smi", "-i", visible, "--query-gpu=memory.total"]
    try:
        done = subprocess.run(
            [*query, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=10
        )
        return float(done.stdout.split()[0]) * 2**20
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError):
        return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, required=True, help="the file that takes the rows")
    parser.add_argument(
        "--tiny", action="store_true", help="a tiny model on the CPU, to see that the script works"
    )
    options = parser.parse_args()
    found = gpu.find_gpu()
    if found is None:
        print(gpu.NO_GPU)
        return 0
    gpu_rows.plan(options.rows, LINES, BUSY, MEMORY, SMI)
    size, visible = "tiny" if options.tiny else "full", gpu.first_visible()
    sampler = gpu.Busy(found[1])
    with tempfile.TemporaryDirectory(prefix="benchmarks-gpu-usage-") as temporary:
        spool, trouble = run_load(Path(temporary).resolve(), size, visible, sampler)
        rows = compare(told(spool), sampler, smi_memory(visible))
    if trouble:
        rows.append(Row(LINES, FAILED, trouble))
    gpu_rows.add(options.rows, *rows)
    return int(any(row.result == FAILED for row in rows))


if __name__ == "__main__":
    sys.exit(main())
