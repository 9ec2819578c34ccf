"""A smoke test of every bench: each works, and what it tells can be true.

Nothing here is about speed: how long something took is never compared with anything.
"""

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from helpers import PATIENCE_S

ROOT = Path(__file__).resolve().parent.parent
# benchmarks is a folder of the checkout, and no installed package.
sys.path.append(str(ROOT))

from benchmarks import peers  # noqa: E402
from benchmarks.__main__ import BENCHES, SLOW  # noqa: E402
from benchmarks.sizes import QUICK  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the smoke test writes: its figures by bench, peer, case and metric, and its texts."""
    home = tmp_path_factory.mktemp("quick")
    command = [
        sys.executable,
        "-m",
        "benchmarks",
        "--quick",
        "--home",
        str(home),
        "--json",
        str(home / "j"),
    ]
    command += ["--table", str(home / "t"), "--plot", str(home / "p.svg")]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=2 * PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads((home / "j").read_text())
    figures = {(f["bench"], f["peer"], f["case"], f["metric"]): f for f in told["figures"]}
    assert sorted(path.name for path in home.iterdir()) == ["j", "p.svg", "t"], (
        "a bench left something behind"
    )
    return {
        "told": told,
        "figures": figures,
        "table": (home / "t").read_text(),
        "plot": (home / "p.svg").read_text(),
    }


def figures_of(
    quick: dict[str, Any], bench: str, peer: str = "gpuspool"
) -> dict[tuple[str, str], Any]:
    return {key[2:]: figure for key, figure in quick["figures"].items() if key[:2] == (bench, peer)}


def medians(quick: dict[str, Any], bench: str, metric: str, peer: str = "gpuspool") -> list[float]:
    return [
        figure["median"]
        for key, figure in figures_of(quick, bench, peer).items()
        if key[1] == metric
    ]


def test_every_bench_gives_figures_for_gpuspool(quick: dict[str, Any]) -> None:
    for bench in BENCHES.keys() - set(SLOW):
        mine = figures_of(quick, bench)
        assert mine, bench
        for key, figure in mine.items():
            assert figure["median"] is not None or "strace is missing" in figure["note"], (
                bench,
                key,
                figure,
            )


def test_every_peer_of_the_smoke_test_gives_figures_for_its_benches(quick: dict[str, Any]) -> None:
    for peer in peers.chosen([], quick=True):
        for bench in set(peer.benches) - set(SLOW):
            assert figures_of(quick, bench, peer.name), (peer.name, bench)
            assert (bench, peer.name, "", "not measured") not in quick["figures"]


def test_throughput_is_told_for_each_size(quick: dict[str, Any]) -> None:
    for peer in ("gpuspool", "our floor", "multiprocessing.Pool"):
        cases = {
            case
            for case, metric in figures_of(quick, "throughput", peer)
            if metric == "whole command"
        }
        assert cases == {f"N={n}" for n in QUICK.throughput}
        assert all(rate > 0 for rate in medians(quick, "throughput", "whole command", peer))


def test_gpuspool_and_the_floor_lose_nothing_when_all_is_killed(quick: dict[str, Any]) -> None:
    for peer in ("gpuspool", "our floor"):
        [before], [lost], [twice] = (
            medians(quick, "recovery", metric, peer)
            for metric in ("done before the kill", "lost", "done twice")
        )
        assert QUICK.recovery / 2 <= before <= QUICK.recovery
        assert lost == 0
        assert twice <= 2, "at most what the two workers had in hand"


def test_a_pool_keeps_nothing(quick: dict[str, Any]) -> None:
    [before] = medians(quick, "recovery", "done before the kill", "multiprocessing.Pool")
    [twice] = medians(quick, "recovery", "done twice", "multiprocessing.Pool")
    assert twice == before > 0


def test_gpuspool_loses_nothing_with_a_worker(quick: dict[str, Any]) -> None:
    assert medians(quick, "rank_loss", "lost") == [0]
    assert medians(quick, "rank_loss", "done twice") <= [1]


def test_no_makespan_is_below_its_bound(quick: dict[str, Any]) -> None:
    peers_with_skew = [peer.name for peer in peers.chosen([], quick=True) if "skew" in peer.benches]
    assert len(peers_with_skew) == 3
    for peer in [*peers_with_skew, "arithmetic, list order", "arithmetic, longest first"]:
        ratios = medians(quick, "skew", "makespan / lower bound", peer)
        assert len(ratios) == len(QUICK.skew_workers)
        assert all(ratio > 0.999 for ratio in ratios)


def test_shares_are_shares(quick: dict[str, Any]) -> None:
    assert all(0 < share <= 100 for share in medians(quick, "overhead", "time inside tasks"))
    assert medians(quick, "scan", "scan", "bare read of gpuspool's journals")


def test_the_table_has_each_figure_and_the_plot_each_system(quick: dict[str, Any]) -> None:
    for bench, peer, *_ in quick["figures"]:
        assert f"### {bench}\n" in quick["table"]
        assert f"| {peer} |" in quick["table"]
    texts = "".join(ElementTree.fromstring(quick["plot"]).itertext())
    for peer in ("gpuspool", "our floor", "multiprocessing.Pool"):
        assert peer in texts


def test_a_run_says_what_it_belongs_to(quick: dict[str, Any]) -> None:
    told = quick["told"]
    assert told["argv"][0] == "--quick"
    assert told["cores"] >= 1
    assert told["peers"]["gpuspool"] == {"version": "", "keeps": "everything", "why_not": ""}
