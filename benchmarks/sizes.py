"""How large each bench is: the size that figures are told of, and the smoke test's."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Counts of tasks, durations in seconds.

    limit_s: a case that would take longer, by the two before, is not run. settle_s: from the last
    worker's start to the quiet of long tasks. patience_s: how long after the loss of a worker a
    system may be silent.
    """

    throughput: tuple[int, ...] = (10, 100, 1_000, 10_000, 100_000, 1_000_000)
    scan: tuple[int, ...] = (10, 100, 1_000, 10_000, 100_000, 1_000_000)
    limit_s: float = 60.0
    skew: int = 1_600
    skew_mean_s: float = 0.020
    straggler_s: float = 4.0
    skew_workers: tuple[int, ...] = (2, 8)
    recovery: int = 10_000
    recovery_s: float = 0.001
    rank_loss: int = 1_200
    rank_loss_s: float = 0.020
    overhead: tuple[tuple[int, float], ...] = ((4_000, 0.001), (800, 0.010), (80, 0.100))
    latency: int = 40
    idle_ranks: int = 8
    idle_s: float = 10.0
    settle_s: float = 3.0
    patience_s: float = 20.0
    metadata: int = 10_000
    ahead: int = 400
    ahead_s: float = 0.010
    ranks: int = 64
    tasks_a_rank: int = 200
    ranks_s: float = 0.020
    elements: tuple[int, ...] = (1, 2, 4, 9)
    tasks_an_element: int = 600
    elements_s: float = 0.050


FULL = Sizes()
QUICK = Sizes(
    throughput=(100, 1_000), scan=(1_000,), limit_s=20.0, skew=60, skew_mean_s=0.002,
    straggler_s=0.05, skew_workers=(2,), recovery=200, recovery_s=0.002, rank_loss=120,
    rank_loss_s=0.005, overhead=((100, 0.001),),
    latency=2, idle_ranks=2, idle_s=0.5, settle_s=0.2, patience_s=3.0, metadata=200,
    ahead=20, ranks=4, tasks_a_rank=10, ranks_s=0.005,
    elements=(2,), tasks_an_element=10, elements_s=0.020,
)  # fmt: skip
