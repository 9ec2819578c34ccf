"""The rule of claims in virtual time: how near a whole run comes to the arithmetic bound."""

import sys
from pathlib import Path

import numpy as np
import pytest

# benchmarks is a folder of the checkout, and no installed package.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks.simulate import guided, lognormal, simulate, skewed

SKEW = skewed()


@pytest.mark.parametrize(("ranks", "most"), [(2, 1.02), (8, 1.05)])
def test_skewed_tasks_whose_costs_are_known_end_together(ranks: int, most: float) -> None:
    assert simulate(SKEW, [1.0] * ranks, costs=SKEW).ratio <= most


@pytest.mark.parametrize("ranks", [2, 8])
def test_without_costs_hardly_anybody_waits_longer_than_with_guided_self_scheduling(
    ranks: int,
) -> None:
    """Guided self-scheduling keeps the list's order. Here every fourth task comes from its end."""
    ours = simulate(SKEW, [1.0] * ranks).makespan_s
    assert ours <= 1.05 * guided(SKEW, ranks)


def test_costs_in_any_unit_do() -> None:
    plain, scaled = (simulate(SKEW, [1.0] * 4, costs=SKEW * unit).ratio for unit in (1.0, 1e9))
    assert scaled == pytest.approx(plain, abs=0.01)


@pytest.mark.parametrize("are_known", [False, True])
def test_a_slow_rank_is_robbed_in_time(are_known: bool) -> None:
    tasks = lognormal(20_000, 0.020, 1.2)
    costs = tasks if are_known else None
    assert simulate(tasks, [1.0] * 7 + [0.25], costs=costs).ratio <= 1.02


def test_a_rank_that_comes_late_finds_work_and_delays_nobody() -> None:
    assert (
        simulate(lognormal(20_000, 0.020, 1.2), [1.0] * 8, starts=[0.0] * 7 + [20.0]).ratio <= 1.02
    )


def test_many_ranks_share_the_tail_and_claims_are_rare() -> None:
    outcome = simulate(lognormal(200_000, 0.020, 1.2), [1.0] * 64)
    assert outcome.ratio <= 1.02
    assert outcome.claims < outcome.tasks / 15


def test_claims_of_tiny_tasks_are_next_to_none() -> None:
    outcome = simulate(np.full(1_000_000, 5e-6), [1.0] * 2)
    assert outcome.claims < 500
