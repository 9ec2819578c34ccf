"""The theory of blame in simulated worlds: no good task fails and no healthy device is given up,
whatever goes wrong.
"""

import pytest
from worlds import Outcome, World, is_over_when_it_begins, play


def judge(world: World, outcome: Outcome) -> None:
    """Nothing good failed, nothing healthy was given up, and everything has its verdict."""
    told = f"seed {world.seed}, {world.kind}: {outcome}"
    healthy = outcome.given_up - world.sick.keys()
    assert not healthy, told
    assert outcome.how in ("finished", "broken"), told
    if is_over_when_it_begins(world, outcome):
        return
    assert not outcome.failed - world.bad, told
    if outcome.how == "broken":
        assert not outcome.complete, told
        return
    assert not outcome.complete & world.bad, told


@pytest.mark.parametrize("block", range(5))
def test_no_good_task_fails_and_no_healthy_device_is_given_up(block: int) -> None:
    for seed in range(10 * block, 10 * block + 10):
        judge(*play(seed))
