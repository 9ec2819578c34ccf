"""How many calls on the files of its spool a run makes while its ranks rest, by strace.

Several runs rest side by side, since most of the time of this test is waiting.
"""

import shutil
from contextlib import ExitStack

import pytest
from helpers import record, wait_until

from benchmarks.calls import SETTLE_S, Case, Started, calls_of, started

ONE = Case(1, 1, "poll")
EIGHT = Case(1, 8, "poll")
FOUR_OF_TWO = Case(4, 2, "poll")
SPAN_S = 30.0


def n_idle(run: Started) -> int:
    """How many ranks have told that they have nothing to do."""
    found = [record(path) for path in (run.home / "S" / "heartbeat").glob("rank-*.json")]
    return sum(beat["state"] == "idle" for beat in found)


def test_ranks_that_rest_make_few_calls(tmp_path_factory: pytest.TempPathFactory) -> None:
    """At most 5 a second for 8 ranks, and 6 for 4 parents of 2."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed; scripts/test_packages.sh does it")
    cases = [ONE, EIGHT, FOUR_OF_TWO]
    with ExitStack() as stack:
        homes = [tmp_path_factory.mktemp("rest") for _ in cases]
        runs = [
            stack.enter_context(started(case, home))
            for case, home in zip(cases, homes, strict=True)
        ]
        for case, run in zip(cases, runs, strict=True):
            wait_until(lambda: n_idle(run) == case.parents * case.ranks - 1)  # noqa: B023
        one, eight, four_of_two = calls_of(runs, SETTLE_S, SPAN_S)
    assert 0 < one.names < eight.names <= 5
    # Give or take a look of each parent, as the time of the count happens to lie.
    looks = 4 * 9 / SPAN_S
    assert 0 < four_of_two.names <= 6 + looks
