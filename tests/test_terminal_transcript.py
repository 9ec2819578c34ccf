"""What two pages show of runs was drawn by scripts/terminal_transcript.py, which works."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from helpers import Box
from stages import STAGES
from terminal import cells

from gpuspool.orchestrator.cli.watch import WATCH
from gpuspool.orchestrator.report.picture import picture

ROOT = Path(__file__).resolve().parent.parent
FIRST = ROOT / "docs" / "status.md"
EVERY = ROOT / "docs" / "status-states.md"
# scripts is a folder of the checkout, and no installed package.
sys.path.append(str(ROOT / "scripts"))

from terminal_transcript import END, FEW, RANKS, SIZES, START, drawn, real_run, why_not  # noqa: E402
from terminal_transcript import picture as svg_of  # noqa: E402


def drawn_on(page: Path) -> dict[tuple[str, int, int], list[str]]:
    """The tables of a page, by state, ranks and columns."""
    text = page.read_text().partition(START)[2].partition(END)[0]
    found = {}
    for how in STAGES:
        part = text.partition(f"## {how.capitalize()}\n")[2].partition("## ")[0]
        for ranks, columns, table in re.findall(
            r"(\d+) ranks, (\d+)×\d+:\n\n```text\n(.*?)\n```", part, re.DOTALL
        ):
            found[how, int(ranks), int(columns)] = table.split("\n")
    return found


def test_a_page_shows_every_state_at_every_size() -> None:
    tables = drawn_on(EVERY)
    wanted = {(how, ranks, size[0]) for how in STAGES for ranks in RANKS for size in SIZES}
    assert set(tables) == wanted
    heights = dict(SIZES)
    for (_, _, columns), lines in tables.items():
        assert len(lines) < heights[columns]
        assert max(map(cells, lines)) <= columns


def test_the_first_page_shows_a_few_of_them() -> None:
    every, few = drawn_on(EVERY), drawn_on(FIRST)
    assert set(few) == {(how, ranks, SIZES[0][0]) for how, ranks in FEW}
    assert few == {case: every[case] for case in few}


@pytest.mark.parametrize("page", [FIRST, EVERY], ids=lambda page: page.name)
def test_the_pages_name_no_folder_of_whoever_ran_the_script(page: Path) -> None:
    text = page.read_text()
    assert "/tmp" not in text
    assert str(ROOT) not in text


@pytest.mark.parametrize(("how", "size"), [("trouble", SIZES[0]), ("finished", SIZES[1])])
def test_tmux_shows_the_table_as_it_was_drawn(box: Box, how: str, size: tuple[int, int]) -> None:
    if why_not():
        pytest.skip(why_not())
    columns, lines = size
    shown = drawn(box, 64, how, columns, lines).split("\n")
    now = box.run("status", "--json", f"spool-{how}-64").record()
    if WATCH in now["next"]:
        now["next"] = ""
    expected = [row.text for row in picture(now, columns, lines - 1)]
    assert len(shown) == len(expected)
    # Only what tells of the time may differ.
    without_times = [re.sub(r"\d+", "", line).split() for line in shown]
    assert without_times == [re.sub(r"\d+", "", line).split() for line in expected]


def test_the_picture_of_a_table_shows_trouble_in_red_and_loads_nothing(box: Box) -> None:
    if why_not():
        pytest.skip(why_not())
    svg = svg_of(drawn(box, 8, "trouble", *SIZES[0], coloured=True), SIZES[0][0])
    for drawing in (svg, (ROOT / "docs" / "status.svg").read_text()):
        [style] = re.findall(r'class="status-(r\d+)"[^>]*>[^<]*lost', drawing)
        [red, green, blue] = re.findall(rf"\.status-{style} {{ *fill: #(..)(..)(..)", drawing)[0]
        assert int(red, 16) > 1.5 * max(int(green, 16), int(blue, 16))
        assert re.findall(r"https?://[^\"' )<]+", drawing) == ["http://www.w3.org/2000/svg"]


def test_tmux_shows_a_run_with_its_messages_above_its_table(box: Box) -> None:
    if why_not():
        pytest.skip(why_not())
    lines = real_run(box, 80, 24).split("\n")
    said = next(at for at, line in enumerate(lines) if "ended: killed by SIGKILL" in line)
    table = next(at for at, line in enumerate(lines) if line.lstrip().startswith("rank "))
    assert said < table
