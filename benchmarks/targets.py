"""gpuspool's goals, as ratios within one run: each goal that the figures at hand can judge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.peers import PEERS
from benchmarks.report import Figure, number

OURS = "gpuspool"
DURABLE = [peer.name for peer in PEERS if peer.is_durable and (peer.requirements or peer.program)]


@dataclass(frozen=True)
class Target:
    """`value` must be at least (or, for `at_most`, at most) the limit."""

    text: str
    value: float
    limit: float
    at_most: bool = True

    @property
    def is_met(self) -> bool:
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    def line(self) -> str:
        sign = "at most" if self.at_most else "at least"
        verdict = "met" if self.is_met else "MISSED"
        return f"{verdict:7}{self.text}: {number(self.value)} ({sign} {number(self.limit)})"


class Known:
    """The medians of a run, asked for by name."""

    def __init__(self, figures: Sequence[Figure]) -> None:
        self._medians = {(f.bench, f.peer, f.case, f.metric): f.median for f in figures}
        self.figures = figures

    def median(self, bench: str, peer: str, case: str, metric: str) -> float | None:
        return self._medians.get((bench, peer, case, metric))

    def best(self, bench: str, metric: str, peers: Sequence[str], case: str = "") -> float | None:
        """The largest median of these peers, of this case or of any."""
        values = [
            f.median
            for f in self.figures
            if f.bench == bench
            and f.metric == metric
            and f.peer in peers
            and case in ("", f.case)
            and f.median
        ]
        return max(values, default=None)


def targets(figures: Sequence[Figure]) -> Iterator[Target]:
    """In the order of the benches; those without figures are left out."""
    known = Known(figures)
    yield from _throughput(known)
    yield from _startup(known)
    yield from _balance(known)
    yield from _recovery(known)
    yield from _inside(known)
    for figure in figures:
        if (figure.bench, figure.metric) == ("elements", "last task / bound") and figure.median:
            yield Target(f"{figure.case} of a Slurm array over the bound", figure.median, 1.1)


def _throughput(known: Known) -> Iterator[Target]:
    metric = "whole command"
    mine = known.median("throughput", OURS, "N=1000000", metric)
    if mine is None:
        return
    durable = known.best("throughput", metric, DURABLE)
    if durable:
        yield Target(
            "tasks/s at 1M against the best durable peer at any N",
            mine / durable,
            100,
            at_most=False,
        )
    joblib = known.median("throughput", "joblib", "N=1000000", metric)
    if joblib:
        yield Target("tasks/s at 1M against joblib", mine / joblib, 1, at_most=False)
    floor = known.median("throughput", "our floor", "N=1000000", metric)
    if floor:
        yield Target(
            "tasks/s at 1M against our floor (told, no target)", mine / floor, 0, at_most=False
        )
    memory = known.median("throughput", OURS, "N=1000000", "memory of the largest process")
    if memory:
        yield Target("MB of the parent at 1M", memory, 300)


def _startup(known: Known) -> Iterator[Target]:
    mine = known.median("startup", OURS, "2 tasks", "whole command")
    for peer, limit in (("GNU parallel", 1.3), ("our floor", 2.0)):
        theirs = known.median("startup", peer, "2 tasks", "whole command")
        if mine and theirs:
            yield Target(f"start-up of 2 tasks against {peer}", mine / theirs, limit)
    with_torch = known.median("startup_torch", OURS, "2 tasks, torch", "whole command")
    bare = known.median(
        "startup_torch", "import torch, twice at once", "2 tasks, torch", "whole command"
    )
    if with_torch and bare:
        yield Target("s of start-up beyond `import torch`", with_torch - bare, 0.3)


def _balance(known: Known) -> Iterator[Target]:
    for milliseconds, least in (("10", 99.0),):
        inside = known.median("overhead", OURS, f"tasks of {milliseconds} ms", "time inside tasks")
        if inside:
            yield Target(
                f"% of the time inside tasks of {milliseconds} ms", inside, least, at_most=False
            )
    for workers, limit in ((2, 1.02), (8, 1.05)):
        case, metric = f"{workers} workers", "makespan / lower bound"
        costs = known.median("skew", "gpuspool, costs known", case, metric)
        if costs:
            yield Target(f"skew with costs on {workers} workers", costs, limit)
        mine = known.median("skew", OURS, case, metric)
        others = [
            f.median
            for f in known.figures
            if f.bench == "skew"
            and f.case == case
            and f.median
            and not f.peer.startswith((OURS, "arithmetic"))
        ]
        if mine and others:
            yield Target(
                f"skew without costs on {workers} workers against the best peer",
                mine / min(others),
                1.0,
            )
    loss = [
        f
        for f in known.figures
        if f.bench == "rank_loss" and f.peer == OURS and f.unit == "" and f.median
    ]
    for figure in loss:
        yield Target("loss of a rank against the ideal of the rest", figure.median or 0.0, 1.05)


def _recovery(known: Known) -> Iterator[Target]:
    for figure in known.figures:
        limit = {"lost": 0, "done twice": 2}.get(figure.metric)
        if (
            (figure.bench, figure.peer) == ("recovery", OURS)
            and limit is not None
            and figure.values
        ):
            yield Target(f"tasks {figure.metric} after SIGKILL of all", max(figure.values), limit)
    scan = known.median("scan", OURS, "N=1000000", "scan")
    bare = known.median("scan", "bare read of gpuspool's journals", "N=1000000", "scan")
    if scan and bare:
        yield Target(
            "scan of 1M complete tasks against a bare read of the journals", scan / bare, 2.5
        )


def _inside(known: Known) -> Iterator[Target]:
    for figure in known.figures:
        if figure.bench == "ahead" and figure.median:
            yield Target(
                f"times the rate without `load` ahead: {figure.case}",
                figure.median,
                1.8,
                at_most=False,
            )
    limits = {
        ("latency", "median"): 5.0,
        ("idle", "parent's CPU"): 1.0,
        ("idle", "parent's metadata calls"): 5.0,
    }
    for figure in known.figures:
        limit = limits.get((figure.bench, figure.metric))
        if limit is not None and figure.median is not None:
            yield Target(f"{figure.bench}: {figure.metric}, {figure.unit}", figure.median, limit)
