"""Takes the pictures of docs/report.md: `python scripts/report_pictures.py [FOLDER]`.

A real run of four ranks, with a task that hangs, two crashes and tasks that fail, is made for it,
stopped half way and gone on with. What no laptop runs in a minute is made by hand: 100,000 and a
million tasks on 64 ranks of eight hosts with GPUs, with times as they are drawn from a seed. Each
page is opened in the browser of the tests. Without FOLDER the pictures go to docs/, and those that
docs/report.md does not show go nowhere; with it all go there.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

import msgspec  # noqa: E402
from chromium import Browser, start_browser  # noqa: E402
from played import T0, Played, error  # noqa: E402
from spooling import JOB as BASE  # noqa: E402

import gpuspool  # noqa: E402
from gpuspool.spool.codec import seal_lines, unseal  # noqa: E402
from gpuspool.spool.records import Closing, JournalLine, Usage  # noqa: E402

GPUSPOOL = str(Path(sys.executable).with_name("gpuspool"))

JOB = """
import os, random, signal, time


class Embed:
    batch_size = 4

    def __init__(self, ctx):
        time.sleep(0.8)

    def __call__(self, tasks, ctx):
        for task in tasks:
            number = int(task.payload)
            time.sleep(random.uniform(0.02, 0.07))
            if number in (120, 260) and not os.path.exists(f"seen-{number}"):
                open(f"seen-{number}", "w").close()
                os.kill(os.getpid(), signal.SIGSEGV)
            if number == 200:
                time.sleep(1000)
            if number in (33, 77, 301):
                raise ValueError(f"no letters in sequence {number}")
        return [{"norm": 1.0} for _ in tasks]
"""

# What docs/report.md shows, and which part of each page: (from, height) in pixels.
IN_DOCS = {"report-light": (0, 1060), "report-dark": (690, 1060), "report-million": (755, 720)}


def run_with_trouble(home: Path) -> Path:
    """A run that is stopped half way, goes on, and has had a hang, two crashes and failures."""
    (home / "embed.py").write_text(JOB)
    (home / "sequences").write_text("".join(f"{number}\n" for number in range(400)))
    command = [GPUSPOOL, "run", "embed.py:Embed", "--lines", "sequences", "--ranks", "4"]
    command += ["--task-timeout", "3s", "--quiet"]
    first = subprocess.Popen(command, cwd=home)
    try:
        first.wait(5.0)
    except subprocess.TimeoutExpired:
        first.send_signal(signal.SIGINT)
        first.wait()
    subprocess.run(command, cwd=home, check=False)
    return home / "spool-Embed"


def large_run(root: Path, n_tasks: int, ranks: int, median_s: float) -> Path:
    """A run of so many tasks on ranks of eight hosts, by hand."""
    draw = random.Random(4)
    keys = [f"images/train/{i % 1000:04d}/{draw.getrandbits(40):010x}.jpg" for i in range(n_tasks)]
    job = msgspec.structs.replace(BASE, spec="embed.py:Embed", name="Embed")
    made = Played(root, keys, ranks=ranks, job=job)
    lived: list[tuple[int, list[JournalLine], list[Usage], float, dict[str, float]]] = []
    for rank in range(ranks):
        lived.append((rank, *_rank(range(rank, n_tasks, ranks), draw, rank // 8, median_s)))
    last = max(end for _, _, _, end, _ in lived) + 0.4
    for host in range((ranks + 7) // 8):
        made.start(host, 2.0 * host, f"gpu{host:02d}", slots=8)
    for rank, lines, usage, _, idle_s in lived:
        name = made.attempt(
            rank, 0, 2.0 * (rank // 8) + 0.2, [], last, epoch=rank // 8, host=f"gpu{rank // 8:02d}",
            device=str(rank % 8), usage=usage, idle_s=idle_s,
        )  # fmt: skip
        # All lines at once: one by one they would take minutes.
        with open(made.layout.journal(name), "ab") as journal:
            journal.write(b"".join(seal_lines(lines)))
        _tell_stats(made, name, lines, last - 2.0 * (rank // 8) - 0.2, idle_s)
    for host in range((ranks + 7) // 8):
        made.end(host, last + 0.2)
    return root


def _rank(
    tasks: range, draw: random.Random, host: int, median_s: float
) -> tuple[list[JournalLine], list[Usage], float, dict[str, float]]:
    """A rank's lines in its journal and in usage/, when it ended, and where its time went."""
    began = 2.0 * host + 0.2
    now = began + draw.uniform(9, 14)
    idle_s = {"start": 2.0, "load": now - began - 2.0, "inputs": 0.0, "publish": 0.0}
    busy, told, memory = 0.0, began + 10.0, draw.uniform(28e9, 33e9)
    lines: list[JournalLine] = []
    usage: list[Usage] = []
    for index in tasks:
        pause = median_s * abs(draw.gauss(0.02, 0.01))
        if draw.random() < 0.002:
            pause += draw.uniform(0.5, 4.0)
        seconds = draw.lognormvariate(0.0, 0.55) * median_s * (12 if draw.random() < 0.0005 else 1)
        idle_s["inputs"] += 0.8 * pause
        idle_s["publish"] += 0.2 * pause
        now += pause
        has_failed = draw.random() < 40 / max(len(tasks) * 64, 40)
        failure = error(
            "cannot identify image file", type="UnidentifiedImageError", where="embed.py:41"
        )
        lines.append(
            JournalLine(
                task=index,
                round=0,
                state="failed" if has_failed else "complete",
                start=T0 + now,
                seconds=round(seconds, 6),
                error=failure if has_failed else None,
            )
        )
        now += seconds
        busy += seconds
        while now > told:
            is_warm = told > began + idle_s["load"] + 2.0
            usage.append(
                Usage(
                    at=T0 + told,
                    done=len(lines),
                    busy_s=busy,
                    idle_s=dict(idle_s),
                    rss=3_100_000_000,
                    cpu=draw.uniform(0.8, 1.4),
                    gpu=min(100.0, draw.gauss(88, 6)) if is_warm else 2.0,
                    gpu_mem=int(memory if is_warm else 1e9),
                    gpu_mem_total=80_000_000_000,
                )
            )
            told += 10.0 if told < began + 600 else 60.0
    return lines, usage, now, idle_s


def _tell_stats(
    made: Played, name: str, lines: list[JournalLine], seconds: float, idle_s: dict[str, float]
) -> None:
    """Say in the closing what the attempt would have told of itself."""
    path = made.layout.orphans(name)
    closing = unseal(path.read_bytes().rstrip(b"\n"), Closing)
    assert closing.stats is not None
    busy = sum(line.seconds for line in lines)
    work = seconds - busy - sum(idle_s.values())
    stats = msgspec.structs.replace(
        closing.stats, done=len(lines), seconds=seconds, busy_s=busy,
        idle_s={**idle_s, "work": work},
        peak_memory_bytes=3_300_000_000, peak_device_memory_bytes=31_000_000_000,
    )  # fmt: skip
    size = made.layout.journal(name).stat().st_size
    told = msgspec.structs.replace(closing, stats=stats, journal_bytes=size)
    path.write_bytes(b"".join(seal_lines([told])))


def take(browser: Browser, spool: Path, name: str, folder: Path | None, *, dark: bool) -> None:
    """Take the picture of a page, of the part that docs shows or of all of it."""
    path = gpuspool.report(spool)
    assert path is not None
    page = browser.open(path, width=1140, height=900, dark=dark)
    assert not page.said, page.said
    if folder is not None:
        page.picture(folder / f"{name}.png", whole=True)
    elif name in IN_DOCS:
        top, height = IN_DOCS[name]
        clip = {"x": 0, "y": top, "width": 1140, "height": height}
        page.picture(ROOT / "docs" / f"{name}.png", whole=True, clip=clip)
    page.close()
    print(f"{name}: the page has {path.stat().st_size / 1e6:.2f} MB")


def main() -> None:
    folder = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else None
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home, start_browser(Path(home) / "browser") as browser:
        # The page names the spool as it is seen from here.
        os.chdir(home)
        trouble = run_with_trouble(Path(home))
        take(browser, trouble, "report-light", folder, dark=False)
        large = large_run(Path(home) / "spool-Images", 100_000, 64, 0.2)
        take(browser, large, "report-dark", folder, dark=True)
        million = large_run(Path(home) / "spool-Million", 1_000_000, 64, 0.2)
        take(browser, million, "report-million", folder, dark=False)
        if folder is not None:
            take(browser, trouble, "trouble-dark", folder, dark=True)
            take(browser, large, "large-light", folder, dark=False)


if __name__ == "__main__":
    main()
