"""All that only a machine with a GPU can show, in at most eight minutes: `make gpu`.

Prints one table of what was tried, what came of it and the figures, and writes the same as JSON.
Each step is a process with a time limit of its own, which is killed with all that it has started
when the limit is over, so a card that hangs costs the step that met it and no other. Where there is
no GPU that is said, and nothing is tried.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import gpu, gpu_reports, gpu_rows, timed
from benchmarks.gpu_rows import FAILED, NOT_RUN, Row
from benchmarks.peers import HERE

ROOT = HERE.parent

# The whole takes at most this.
WHOLE_S = 480.0
# So long NVML may take to tell whether there is a GPU. A driver that is sick may never answer.
ASKING_S = 20.0
# So long what a step has started may take to go once it was killed. What hangs in the driver may
# never go: it is named, and left.
END_S = 5.0

# The variable by which the processes of a step are known, whatever session they moved to.
MARK = "GPU_CHECKS"


class CannotAsk(Exception):
    """Nobody can tell whether there is a GPU; the message says why."""


@dataclass(frozen=True)
class Step:
    """name: as `--only` takes it. argv: a command, which is given the file for its rows by `--rows`
    or, if it is pytest, by a variable. is_needed: without it the others make no sense.
    """

    name: str
    argv: tuple[str, ...]
    limit_s: float
    is_needed: bool = False


def _script(name: str, *options: str) -> tuple[str, ...]:
    return (sys.executable, str(HERE / name), *options, "--rows", "{rows}")


# One test may take a minute, so that one that hangs leaves time for the others. Most take some ten
# seconds, nearly all of it the import of torch in each worker.
PYTEST = (
    sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/test_gpu.py",
    "-p", "benchmarks.gpu_reports", "--timeout", "60",
)  # fmt: skip


def all_steps(*, is_tiny: bool) -> tuple[Step, ...]:
    """The steps in their order. is_tiny: on the CPU, to see that the scripts work."""
    tiny = ("--tiny",) if is_tiny else ()
    seconds = "2" if is_tiny else "12"
    return (
        Step("look", _script("gpu_look.py"), 35.0, is_needed=True),
        Step("tests", PYTEST, 210.0),
        Step("usage", _script("gpu_usage.py", *tiny), 60.0),
        Step("bench", _script("gpu.py", *tiny, "--seconds", seconds), 130.0),
    )


def run_steps(steps: Sequence[Step], folder: Path, whole_s: float = WHOLE_S) -> list[Row]:
    """Run one step after the other, print their rows as they end, and return all."""
    until = time.monotonic() + whole_s
    print(gpu_rows.HEAD, flush=True)
    found: list[Row] = []
    reason = ""
    for step in steps:
        limit_s = min(step.limit_s, until - END_S - time.monotonic())
        if reason or limit_s <= 0:
            rows = [Row(step.name, NOT_RUN, reason or "the time for the whole was over")]
        else:
            rows = run_step(step, folder, limit_s)
        for row in rows:
            print(row.line(), flush=True)
        found.extend(rows)
        if step.is_needed and not all(row.result == gpu_rows.PASSED for row in rows):
            reason = f"needs what {step.name} tried"
    return found


def run_step(step: Step, folder: Path, limit_s: float) -> list[Row]:
    """Run a step for at most so long, and kill what is left of it. What it has printed is in the
    folder, in `NAME.log`.
    """
    rows, log = folder / f"{step.name}.rows", folder / f"{step.name}.log"
    # The folder may hold those of an earlier call.
    rows.unlink(missing_ok=True)
    argv = [word.replace("{rows}", str(rows)) for word in step.argv]
    mark = folder / step.name
    environment = {
        **os.environ, MARK: str(mark), gpu_reports.VARIABLE: str(rows), "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    began = time.monotonic()
    said = ""
    left: list[int] = []
    with open(log, "wb") as out:
        process = subprocess.Popen(
            argv, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=out,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        code = process.wait(limit_s)
        if code:
            said = f"exit code {code}: {_end_of(log)}"
    except subprocess.TimeoutExpired:
        said = f"stopped after its {limit_s:.0f} s: {_end_of(log)}"
    finally:
        # Also after a Ctrl-C, which the step, in a session of its own, has not got.
        left = timed.kill_marked(mark, MARK, END_S)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(0.1)
    found = gpu_rows.read(rows)
    if not said and not found:
        said = f"it ended without a row: {_end_of(log)}"
    # A step may fail beside its rows, and does not always come to write one.
    if said and not any(row.result == FAILED for row in found):
        seconds = round(time.monotonic() - began, 1)
        found.append(Row(f"the step {step.name}", FAILED, said, seconds))
    if left:
        told = f"could not be killed: {', '.join(map(str, left))}"
        found.append(Row(f"the processes of {step.name}", FAILED, told))
    return found


def _end_of(log: Path) -> str:
    """The end of what a step has printed, in one line."""
    return _in_one_line(log.read_text(errors="replace"))


def _in_one_line(text: str) -> str:
    """The end of a text."""
    return " ".join(text[-200:].split())


def card_name(patience_s: float = ASKING_S) -> str | None:
    """The name of the first GPU, "" where there is none, None where NVML answers too late.

    Raises CannotAsk where nobody can tell.
    """
    ask = "from benchmarks import gpu; found = gpu.find_gpu(); print(found[0] if found else '')"
    process = subprocess.Popen(
        [sys.executable, "-c", ask], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        said, errors = process.communicate(timeout=patience_s)
    except subprocess.TimeoutExpired:
        # What hangs in the driver may not go, so its end is not waited for without end.
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=END_S)
        return None
    if process.returncode:
        raise CannotAsk(
            f"whether there is a GPU could not be asked (exit code {process.returncode}): "
            f"{_in_one_line(errors)}"
        )
    return said.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--logs", type=Path, help="keep what the steps print in this folder")
    names = [step.name for step in all_steps(is_tiny=False)]
    parser.add_argument("--only", nargs="+", choices=names, help="these steps alone")
    parser.add_argument(
        "--tiny", action="store_true", help="a tiny model on the CPU, to see that the steps work"
    )
    options = parser.parse_args()
    began = time.monotonic()
    try:
        card = card_name()
    except CannotAsk as error:
        print(f"{error}\nNothing was tried. Try nvidia-smi.")
        return 1
    if card is None:
        print(
            f"NVML does not answer within {ASKING_S:.0f} s, so nothing was tried. Try nvidia-smi."
        )
        return 1
    if not card:
        print(gpu.NO_GPU)
        return 0
    steps = [
        step
        for step in all_steps(is_tiny=options.tiny)
        if options.only is None or step.name in options.only
    ]
    print(f"{card}, {time.strftime('%Y-%m-%d')}\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="gpu-checks-") as temporary:
        folder = Path(temporary).resolve() if options.logs is None else options.logs.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        rows = run_steps(steps, folder, WHOLE_S - (time.monotonic() - began))
    seconds = round(time.monotonic() - began, 1)
    n_failed = sum(row.result == FAILED for row in rows)
    n_not_run = sum(row.result == NOT_RUN for row in rows)
    print(f"\n{len(rows)} rows, {n_failed} failed, {n_not_run} not run, in {seconds:.0f} s")
    if options.json is not None:
        whole = {
            "device": card, "date": time.strftime("%Y-%m-%d"), "seconds": seconds,
            "rows": [asdict(row) for row in rows],
        }  # fmt: skip
        options.json.write_text(json.dumps(whole, indent=1) + "\n")
    return int(n_failed + n_not_run > 0)


if __name__ == "__main__":
    sys.exit(main())
