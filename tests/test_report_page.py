"""The page of a run in a real browser: what it draws, what it says when it is asked, and what it
does not do. `tests/chromium.py` drives the browser.
"""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import Browser, Page, find_chromium, shared_browser
from helpers import JOBS, Box, check_line, names, wait_until
from played import T0, Played, batch, call, error

import gpuspool
from gpuspool.spool.records import TaskFailure, Usage
from gpuspool.spool.states import AttemptState, Reason

pytestmark = pytest.mark.skipif(
    find_chromium() is None, reason="there is no chromium here: apt-get install chromium"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One for all tests, also for those in other processes of one run of pytest."""
    root = tmp_path_factory.getbasetemp()
    if root.name.startswith("popen-"):
        root = root.parent
    with shared_browser(root / "chromium") as found:
        yield found


def open_page(browser: Browser, spool: Path, **settings: Any) -> Page:
    """Make the page of a spool and look at it."""
    path = gpuspool.report(spool)
    assert path == spool / "report.html"
    return browser.open(path, **settings)


def assert_quiet(page: Page) -> None:
    """Nothing was said, nothing asked for, and nothing taken for markup."""
    assert page.said == []
    assert page.requests == []
    assert page.js("document.querySelectorAll('img, iframe, object, embed, form, a').length") == 0
    assert page.js("document.scripts.length") == 2


def view_of(page: Page) -> Any:
    """What the timeline shows: from `low` to `high` seconds, and where."""
    return json.loads(page.js("document.getElementById('timeline').dataset.view"))


def point_at(page: Page, rank: int, seconds: float) -> str:
    """Point at a moment on the axis, in the lane of a rank; returns what the page says to that."""
    page.js("document.getElementById('timeline').scrollIntoView({block: 'center'})")
    box = page.js(BOX)
    view = view_of(page)
    lane = view["ranks"].index(rank)
    x = (
        box["left"]
        + view["left"]
        + (seconds - view["low"]) / (view["high"] - view["low"]) * view["width"]
    )
    y = box["top"] + (lane + 0.5) * view["lane"] - view["scroll"]
    page.move_to(x, y)
    text: str = page.js(
        "document.getElementById('tip').hidden ? '' : document.getElementById('tip').innerText"
    )
    return text


# Where the timeline lies in the window.
BOX = """(() => {
  const {left, top} = document.getElementById('timeline').getBoundingClientRect();
  return {left, top};
})()"""

# The ranks in whose lanes anything is drawn.
DRAWN = """(() => {
  const canvas = document.getElementById('timeline');
  const view = JSON.parse(canvas.dataset.view);
  const ratio = canvas.width / canvas.clientWidth;
  const all = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  return view.ranks.filter((rank, lane) => {
    const y = Math.floor((lane + 0.5) * view.lane * ratio);
    const from = 4 * (y * canvas.width + Math.ceil(view.left * ratio));
    const row = all.slice(from, from + 4 * Math.floor(view.width * ratio));
    const colours = new Set();
    for (let at = 0; at < row.length; at += 4) {
      if (row[at + 3]) colours.add(row.slice(at, at + 3).join());
    }
    return colours.size >= 2;
  });
})()"""


def assert_every_rank_is_drawn(page: Page, ranks: list[int]) -> None:
    assert view_of(page)["ranks"] == ranks
    assert page.js(DRAWN) == ranks


def hours(page: Page) -> dict[str, float]:
    """Seconds by cause, as the bar has them."""
    found: dict[str, float] = page.js(
        "Object.fromEntries([...document.querySelectorAll('[data-cause]')]"
        ".map((one) => [one.dataset.cause, Number(one.dataset.seconds)]))"
    )
    return found


def bar_widths(page: Page) -> dict[str, float]:
    """The width of each part of the bar, as a share of all of it."""
    widths: list[float] = page.js(
        "[...document.querySelectorAll('#hours > div')]"
        ".map((one) => one.getBoundingClientRect().width)"
    )
    return dict(zip(hours(page), (width / sum(widths) for width in widths), strict=True))


def journal_of(spool: Path, attempt: str) -> list[Any]:
    lines = (spool / "journal" / f"{attempt}.jsonl").read_bytes().split(b"\n")[1:-1]
    return [check_line(line) for line in lines]


def first_moment(spool: Path) -> float:
    """When the first process of a run began, by what those that ended told."""
    closings = [
        json.loads((spool / "manifests" / name).read_text().partition("\n")[0])
        for name in names(spool / "manifests")
        if ".orphans." in name
    ]
    return min(one["at"] - one["stats"]["seconds"] for one in closings)


def test_a_finished_run_as_its_journals_tell_it(box: Box, browser: Browser) -> None:
    lines = box.tasks([*range(12), "fail", *range(5)])
    spool = box / "S"
    box.run(
        "run", f"{JOBS}/napping.py:Nap", "--tasks", lines, "--ranks", "2", "--spool", "S", code=3
    )
    page = open_page(browser, spool)
    assert_every_rank_is_drawn(page, [0, 1])
    text = page.text()
    assert "17 of 18 tasks complete, 1 failed" in text
    assert "gpuspool retry" in text
    assert "it was told to: <img src=x onerror=alert(1)>" in text

    # Each call that is wide enough to be pointed at is told as its journal has it.
    origin = first_moment(spool)
    keys = {result["index"]: result["key"] for result in box.results("S")}
    pointed = 0
    for rank in range(2):
        laid = -1.0
        for line in journal_of(spool, f"rank-{rank:04d}.a00"):
            if line["state"] != "complete":
                laid = -1.0
                continue
            start = line["start"] if laid < line["start"] else laid
            laid = start + line["seconds"]
            told = point_at(page, rank, start + line["seconds"] / 2 - origin)
            assert told.split("\n")[0] == keys[line["task"]], (told, line)
            assert f"task #{line['task']}: complete" in told
            assert f"attempt rank-{rank:04d}.a00" in told
            pointed += 1
    assert pointed == 17
    assert_quiet(page)


def test_the_bar_of_hours_is_how_long_the_attempts_lived(box: Box, browser: Browser) -> None:
    lines = box.tasks(["crash", *range(60)])
    box.run(
        "run", f"{JOBS}/napping.py:Nap", "--tasks", lines, "--ranks", "2", "--spool", "S", code=3
    )
    spool = box / "S"
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    ticks = os.sysconf("SC_CLK_TCK")
    lived = 0.0
    for name in names(spool / "journal"):
        journal = (spool / "journal" / name).read_bytes()
        began = booted + check_line(journal.partition(b"\n")[0])["pid_start"] / ticks
        orphans = spool / "manifests" / name.replace(".jsonl", ".orphans.jsonl")
        closing = json.loads(orphans.read_text().partition("\n")[0])
        lived += closing["at"] - began
    page = open_page(browser, spool)
    seconds = hours(page)
    assert sum(seconds.values()) == pytest.approx(lived, rel=0.01)
    assert {"done", "start", "load", "lost", "work"} <= seconds.keys()
    for cause, share in bar_widths(page).items():
        # Each part is at least 2 pixels wide.
        assert share == pytest.approx(seconds[cause] / lived, abs=0.02), cause
    assert "restarts after a failure" in page.text()
    assert_quiet(page)


def test_a_run_that_is_drained_and_one_that_is_killed(box: Box, browser: Browser) -> None:
    spool = box / "S"
    payloads: list[Any] = [*range(6), "wait", "wait", *range(6)]
    command = ["run", f"{JOBS}/napping.py:Nap", "--tasks", box.tasks(payloads), "--ranks", "2"]
    command += ["--spool", "S", "--arg", f"gate={box / 'gate'}"]
    started = box.start(*command)
    wait_until(lambda: len(names(spool / "heartbeat")) == 2)
    wait_until(lambda: gpuspool.status(spool)["tasks"]["running"] >= 2)
    page = open_page(browser, spool)
    assert_every_rank_is_drawn(page, [0, 1])
    text = page.text()
    assert "running" in text
    assert "The run was under way when this page was made" in text
    assert_quiet(page)
    page.close()

    box.kill_all()
    page = open_page(browser, spool)
    assert_every_rank_is_drawn(page, [0, 1])
    assert "stopped (killed)" in page.text()
    assert "gpuspool resume" in page.text()
    assert_quiet(page)
    page.close()

    started = box.start(*command)
    wait_until(lambda: (box / "S" / "attempts" / "rank-0001.a01.json").exists())
    box.run("drain", "S")
    (box / "gate").touch()
    started.wait(4)
    page = open_page(browser, spool)
    assert_every_rank_is_drawn(page, [0, 1])
    assert "stopped (drained by order)" in page.text()
    assert box.problems("S") == []
    assert_quiet(page)


def test_a_run_of_several_hosts_with_gpus_and_a_hang(tmp_path: Path, browser: Browser) -> None:
    played = Played(tmp_path / "S", [f"images/{i}.png" for i in range(12)], ranks=3)
    for host in range(3):
        played.start(host, 0.1 * host, f"gpu{host}")
        usage = [
            Usage(at=T0 + at, busy_s=at - 2.0, idle_s={"start": 1.0, "load": 1.0},
                  rss=2_000_000_000, cpu=1.0, gpu=80.0 + host, gpu_mem=30_000_000_000,
                  gpu_mem_total=80_000_000_000)
            for at in (4.0, 8.0, 12.0)
        ]  # fmt: skip
        lines = [call(host + 3 * i, 2.0 + 2.5 * i, 2.4) for i in range(3)]
        if host < 2:
            lines.append(call(host + 9, 9.6, 2.4))
            played.attempt(
                host, 0, 0.2, lines, 14.0, epoch=host, host=f"gpu{host}", usage=usage,
                idle_s={"start": 1.0, "load": 0.8},
            )  # fmt: skip
            continue
        hung = TaskFailure(
            task=11, key="images/11.png", start=T0 + 9.6,
            error=error("took longer than 5 s", kind="timeout", type="TaskTimeout"),
        )  # fmt: skip
        played.attempt(
            host, 0, 0.2, lines, 14.6, epoch=host, host="gpu2", usage=usage, reason=Reason.TIMEOUT,
            state=AttemptState.FAILED, by="parent", lost=[hung], has_stats=False,
        )  # fmt: skip
    page = open_page(browser, played.root, dark=True)
    assert_every_rank_is_drawn(page, [0, 1, 2])
    text = page.text()
    assert "on 3 ranks of 3 hosts" in text
    assert "NVIDIA H100" in text
    assert "GPU use" in text
    assert "of 240 GB on all devices together" in text
    told = point_at(page, 2, 12.0)
    assert told.split("\n")[0] == "images/11.png"
    assert "died in it, 5.00 s" in told
    assert "host gpu2" in told
    assert "between calls: load" in point_at(page, 0, 1.5)
    assert_quiet(page)


def test_hostile_names_are_text(tmp_path: Path, browser: Browser) -> None:
    keys = [
        "<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "sep\u2028and\u2029",
        "\x1b[31mred\x1b[0m", "\u202egnp.exe", "<!--<script>", "%DATA%",
        "'\"><svg onload=alert(3)>", "javascript:alert(4)",
    ]  # fmt: skip
    played = Played(tmp_path / "S", keys)
    lines = [
        call(
            i, 1.0 + i, 0.9, "failed" if i % 2 else "complete", error=error(key) if i % 2 else None
        )
        for i, key in enumerate(keys)
    ]
    played.attempt(0, 0, 0.0, lines, 12.0, host="<script>alert(5)</script>", device="<b>0</b>")
    page = open_page(browser, played.root)
    for number, key in enumerate(
        ["<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>"]
    ):
        told = point_at(page, 0, 1.4 + number)
        assert told.split("\n")[0] == key
        assert "host <script>alert(5)</script>, device <b>0</b>" in told
    assert point_at(page, 0, 3.4).split("\n")[0] == "sep\\u2028and\\u2029"
    assert point_at(page, 0, 4.4).split("\n")[0] == "\\x1b[31mred\\x1b[0m"
    assert point_at(page, 0, 5.4).split("\n")[0] == "\\u202egnp.exe"
    page.js("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert "'\"><svg onload=alert(3)>" in page.text()
    assert_quiet(page)
    assert page.js("document.querySelectorAll('svg, b b, script[src]').length") == 0


def test_nothing_has_run_yet(tmp_path: Path, browser: Browser) -> None:
    page = open_page(browser, Played(tmp_path / "S", ["a", "b"]).root)
    assert "Nothing has run yet" in page.text()
    assert "0 of 2 tasks complete" in page.text()
    assert_quiet(page)


def test_processes_that_completed_nothing(tmp_path: Path, browser: Browser) -> None:
    played = Played(tmp_path / "S", ["a", "b"], ranks=2)
    for rank in range(2):
        played.attempt(
            rank, 0, 0.0, [], 3.0, reason=Reason.LOAD, state=AttemptState.FAILED,
            idle_s={"start": 1.0, "load": 2.0},
        )  # fmt: skip
    page = open_page(browser, played.root)
    assert_every_rank_is_drawn(page, [0, 1])
    assert "the job does not load" in page.text()
    assert hours(page) == {"start": pytest.approx(2.0), "load": pytest.approx(4.0)}
    assert_quiet(page)


def test_clocks_that_jump_leave_no_overlap(tmp_path: Path, browser: Browser) -> None:
    played = Played(tmp_path / "S", [f"t{i}" for i in range(8)])
    lines = [*batch([0, 1, 2, 3], 4000.0, 2.0), *batch([4, 5, 6, 7], 10.0, 2.0)]
    played.attempt(0, 0, 3999.0, lines, 13.0, lived_s=6.0)
    page = open_page(browser, played.root)
    view = view_of(page)
    assert view["high"] < 10.0
    seen = []
    for number in range(8):
        seen.append(point_at(page, 0, view["high"] - 5.0 + 0.25 + 0.5 * number).split("\n")[0])
    assert seen == [f"t{i}" for i in range(8)]
    assert "was set back by" in page.text()
    assert_quiet(page)


def test_what_began_behind_a_cut_is_said_to_have_begun_then(
    tmp_path: Path, browser: Browser
) -> None:
    played = Played(tmp_path / "S", ["a", "b"])
    played.attempt(
        0, 0, 0.0, [call(0, 1.0, 5.0)], 10.0, reason=Reason.DRAINED, state=AttemptState.STOPPED
    )
    played.attempt(0, 1, 86410.0, [call(1, 86410.0, 5.0)], 86420.0, epoch=1)
    page = open_page(browser, played.root)
    shown = page.js(
        "['attempts', 'slowest'].map((id) => [...document.querySelectorAll(`#${id} tbody tr`)]"
        ".map((row) => [row.cells[0].innerText, row.cells[id === 'attempts' ? 4 : 8].innerText]))"
    )
    days = f"new Date({(T0 + 86410.0) * 1000}).getDate()"
    second = page.js(days)
    assert page.js(f"new Date({T0 * 1000}).getDate()") != second
    for rows, name in zip(shown, ("rank-0000.a01", "b"), strict=True):
        began = dict(rows)[name]
        assert int(began.split()[0].split("-")[2]) == second
    assert f"-{second:02d} " in point_at(page, 0, 10.001)
    assert_quiet(page)


def test_the_tiles_say_what_they_are_in_words_that_fit(tmp_path: Path, browser: Browser) -> None:
    played = Played(tmp_path / "S", ["a", "b"])
    played.attempt(0, 0, 0.0, [call(0, 10.0, 3600.0), call(1, 3620.0, 3500.0)], 7200.0)
    text = open_page(browser, played.root).text()
    assert "rank on 1 host" in text
    assert "1.00 /h" in text
    assert "the rank-hours" in text


def test_the_wheel_and_the_keys_lead_to_a_task(tmp_path: Path, browser: Browser) -> None:
    played = Played(tmp_path / "S", [f"t{i}" for i in range(4000)], ranks=2)
    for rank in range(2):
        lines = [call(rank + 2 * i, 5.0 + 0.5 * i, 0.45) for i in range(2000)]
        played.attempt(rank, 0, 0.0, lines, 1010.0)
    page = open_page(browser, played.root)
    middle = 5.0 + 0.5 * 700 + 0.2
    point_at(page, 1, middle)
    whole = view_of(page)["high"]
    box = page.js(BOX)
    view = view_of(page)
    x = box["left"] + view["left"] + middle / whole * view["width"]
    y = box["top"] + 1.5 * view["lane"]
    for _ in range(20):
        page.wheel(x, y, -120)
    view = wait_until(lambda: (now := view_of(page)) and now["high"] - now["low"] < 5.0 and now)
    assert view["low"] < middle < view["high"]
    assert point_at(page, 1, middle).split("\n")[0] == "t1401"

    page.js("document.getElementById('timeline').focus()")
    said = "document.getElementById('said').textContent"
    page.press(".", ".")
    page.wait(f"{said}.startsWith('t1403;')")
    page.press(",", ",")
    page.press(",", ",")
    page.wait(f"{said}.startsWith('t1399;')")
    page.press("ArrowUp")
    page.wait(f"{said}.includes('rank 0, attempt')")
    page.press("0", "0")
    assert view_of(page)["high"] == pytest.approx(whole)
    page.press("+", "+")
    assert view_of(page)["high"] - view_of(page)["low"] == pytest.approx(whole / 2)
    page.press("Escape")
    assert page.js("document.getElementById('tip').hidden")
    assert_quiet(page)


def test_more_ranks_than_fit_are_all_there_to_scroll_to(tmp_path: Path, browser: Browser) -> None:
    played = Played(tmp_path / "S", [f"t{i}" for i in range(216)], ranks=216)
    for rank in range(216):
        played.attempt(rank, 0, 0.0, [call(rank, 1.0, 3.0)], 5.0)
    page = open_page(browser, played.root)
    assert len(view_of(page)["ranks"]) == 216
    page.js("document.querySelector('.lanes').scrollTop = 1e9")
    page.wait("JSON.parse(document.getElementById('timeline').dataset.view).scroll > 0")
    assert point_at(page, 215, 2.0).split("\n")[0] == "t215"
    assert_quiet(page)


def test_a_page_is_printed_light_and_whole(tmp_path: Path, browser: Browser) -> None:
    played = Played(tmp_path / "S", ["a", "b"])
    played.attempt(0, 0, 0.0, [call(0, 1.0, 3.0), call(1, 4.0, 1.0)], 5.0)
    page = open_page(browser, played.root, dark=True)
    background = "getComputedStyle(document.body).backgroundColor"
    assert page.js(background) == "rgb(18, 23, 29)"
    assert page.pdf().startswith(b"%PDF")
    page.call("Emulation.setEmulatedMedia", media="print")
    assert page.js(background) == "rgb(255, 255, 255)"
    assert page.js("getComputedStyle(document.querySelector('.tools')).display") == "none"
    assert_quiet(page)
