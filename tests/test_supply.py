"""Where tasks come from: the own manifest first, then the others', until everything is claimed
once.
"""

from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from helpers import wait_until
from spooling import (
    A0,
    A1,
    B0,
    C0,
    begin,
    close_dead,
    finish,
    indices,
    make_spool,
    race,
    task,
    view_of,
    write_claim,
)

from gpuspool.spool.claims import ChainEnd, ClaimChain
from gpuspool.spool.layout import Layout, attempt_name
from gpuspool.spool.manifest import (
    Damage,
    Manifest,
    load_manifest,
    publish_manifest,
    publish_ruling,
)
from gpuspool.spool.records import Claim, Ruling, TaskLine
from gpuspool.worker.supply import SAMPLE, Rate, Supply

# Where a doubtful task failed: in an attempt, and on a device, of nobody who claims here.
FAILED = ((C0, "GPU-c"),)


def supply_of(layout: Layout, rank: int, number: int = 0) -> Supply:
    return Supply(layout, rank, attempt_name(rank, number), pytest.fail)


def take(
    supply: Supply, batch: int = 1, rate: float | None = None, is_ahead: bool = False
) -> list[TaskLine] | None:
    """The tasks of one claim, None where there is nothing to claim."""
    tasks = supply.take(batch, rate, is_ahead)
    return None if tasks is None else list(tasks)


def drain(supply: Supply, batch: int = 1, rate: float | None = None) -> list[list[int]]:
    """The tasks of each claim until nothing is left."""
    claims = []
    while (tasks := take(supply, batch, rate)) is not None:
        claims.append(indices(tasks))
    return claims


def flat(claims: Iterable[list[int]]) -> list[int]:
    return list(chain.from_iterable(claims))


def drain_alone(root: Path, rank: int) -> list[int]:
    """What one rank gets that claims as fast as it can, beside others."""
    return flat(drain(supply_of(Layout(root), rank), 2, 1e-3))


def test_the_own_manifest_comes_first_and_in_order_then_the_others(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 4, 7, 5)
    claims = drain(supply_of(layout, 1))
    assert claims[:3] == [[4], [5], [6]]
    assert sorted(flat(claims)) == list(range(16))


def test_a_thief_takes_from_whoever_has_the_most_left(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 0, 2, 9)
    supply = supply_of(layout, 0)
    assert [take(supply, 1, None) for _ in range(7)] == [[task(index)] for index in range(2, 9)]


def test_positions_that_a_lost_claim_held_are_found_by_who_looks_closely(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 30)
    assert flat(drain(supply_of(layout, 0))) == list(range(30))
    layout.claim("rank-0000", 7).unlink()
    supply = supply_of(layout, 0, 1)
    assert take(supply) is None
    supply.look_closely()
    assert flat(drain(supply)) == [7]


def test_two_ranks_share_everything_exactly_once(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 12, 16)
    both = [supply_of(layout, 0), supply_of(layout, 1)]
    got: list[list[int]] = [[], []]
    is_over = [False, False]
    while not all(is_over):
        for rank, supply in enumerate(both):
            tasks = take(supply, 2, 0.1)
            is_over[rank] = tasks is None
            got[rank] += indices(tasks or [])
    assert sorted(got[0] + got[1]) == list(range(28))
    assert got[0][:4] == list(range(4)), "its own first"
    assert got[1][:4] == list(range(12, 16))
    assert view_of(layout).unclaimed == 0


def test_ranks_in_processes_share_everything_exactly_once(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 300, 100, 0)
    got = race(drain_alone, *((layout.root, rank) for rank in range(3)))
    assert sorted(flat(got)) == list(range(400))
    view = view_of(layout)
    for rank, tasks in enumerate(got):
        assert sorted(tasks) == sorted(indices(view.claimed_by(attempt_name(rank, 0))))


def test_whose_manifest_is_emptied_while_it_claims_looks_at_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had plenty, and was slower by a moment than whoever took all of it."""
    layout = make_spool(tmp_path / "s", 40, 3)
    supply = supply_of(layout, 0)

    def too_slow(chain: ChainEnd, attempt: str, stop: int, number: int) -> None:
        monkeypatch.undo()
        claim_all(layout, "rank-0000")
        chain.look()

    monkeypatch.setattr(ChainEnd, "take", too_slow)
    assert indices(supply.take(1, None) or []) == [40]


def claim_all(layout: Layout, manifest: str) -> None:
    """Somebody else takes all of a manifest."""
    assert ClaimChain(layout, manifest, 40).advance().take("rank-0009.a00", 40)


def test_nothing_is_taken_where_nothing_is_left(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 2, 0)
    assert flat(drain(supply_of(layout, 0))) == [0, 1]
    for rank in (0, 1, 7):
        assert take(supply_of(layout, rank), 1, None) is None


def test_manifests_that_appear_later_are_found(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 3, 0)
    writer = begin(layout, A0)
    finish(writer, *flat(drain(supply_of(layout, 0))[:1]))
    supply = supply_of(layout, 1)
    assert take(supply, 1, None) is None
    close_dead(view_of(layout), A0, by="test")
    assert flat(drain(supply)) == [1, 2]
    assert publish_manifest(layout, "retry-01", [task(0, round=1)])
    assert take(supply, 1, None) == [task(0, round=1)]
    assert publish_manifest(layout, "sweep-01", [task(2, failed_in=FAILED)])
    assert take(supply, 1, None) == [task(2, failed_in=FAILED)]
    assert take(supply, 1, None) is None


def test_a_planned_manifest_may_appear_after_its_worker_started(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 0)
    supply = supply_of(layout, 5)
    assert take(supply, 1, None) is None
    assert publish_manifest(layout, "rank-0005", [task(0)])
    assert take(supply, 1, None) == [task(0)]


def test_what_others_claimed_before_is_not_taken(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 8)
    write_claim(layout, "rank-0000", 0, Claim(attempt=B0, start=0, stop=3, at=1.0))
    supply = supply_of(layout, 0, 1)
    assert take(supply, 1, None) == [task(3)]
    write_claim(layout, "rank-0000", 4, Claim(attempt=C0, start=4, stop=6, at=1.0))
    assert take(supply, 1, None) == [task(6)]
    assert indices(view_of(layout).claimed_by(A1)) == [3, 6]


def test_batches_are_claimed_whole(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 70)
    assert [len(claim) for claim in drain(supply_of(layout, 0), batch=32)] == [32, 32, 6]


def test_fast_tasks_are_claimed_many_at_a_time_and_slow_ones_singly(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 800)
    supply = supply_of(layout, 0)
    sizes = [len(take(supply, 1, rate) or []) for rate in (None, 1e-6, 5.0, 0.1)]
    assert sizes == [1, 199, 2, 9]


def test_costly_tasks_are_claimed_fewer_at_a_time(tmp_path: Path) -> None:
    costs = [100.0] * 10 + [1.0] * 790
    layout = make_spool(
        tmp_path / "s", [task(index, cost=cost) for index, cost in enumerate(costs)]
    )
    supply = supply_of(layout, 0)
    assert [len(take(supply, 1, 0.02) or []) for _ in range(11)] == [1] * 10 + [25]


def test_near_its_end_the_own_manifest_waits_for_those_that_have_more(tmp_path: Path) -> None:
    """Or each rank would begin its last task, perhaps a long one, as late as the slowest gets to
    it.
    """
    layout = make_spool(tmp_path / "s", 6, 9)
    claims = drain(supply_of(layout, 0))
    assert flat(claims[:2]) == [0, 1]
    assert flat(claims[2:7]) == [6, 7, 8, 9, 10]


def test_nothing_is_claimed_ahead_where_little_is_left(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 4)
    supply = supply_of(layout, 0)
    assert [take(supply, 1, None, is_ahead=True) for _ in range(3)] == [[task(0)], [task(1)], None]
    assert take(supply, 1, None) == [task(2)]


def test_a_rate_forgets_what_was_long_ago() -> None:
    rate = Rate()
    assert rate.learn() is None
    rate.add(8.0, 2.0)
    assert rate.learn() == 4.0
    for _ in range(20):
        rate.add(1.0, 1.0)
        learnt = rate.learn()
    assert learnt == pytest.approx(1.0, abs=0.001)
    for _ in range(1200):  # as who is idle for a long time asks it
        learnt = rate.learn()
    assert learnt is None


def test_tasks_said_to_cost_nothing_are_claimed_by_the_fraction(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", [task(index, cost=0.0) for index in range(800)])
    assert len(take(supply_of(layout, 0), 1, 1e-9) or []) == 200


def test_a_claim_of_damaged_lines_gives_what_can_be_read_and_goes_on(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 4)
    path = layout.manifest("rank-0000")
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], b"\0" * len(lines[1]), lines[2], b"?" + lines[3], b""]))
    damage: list[Damage] = []
    supply = Supply(layout, 0, A0, damage.append)
    assert drain(supply) == [[0], [], [2], []]
    assert len({one.offset for one in damage}) == 2
    assert view_of(layout).unclaimed == 0


def test_an_unreadable_claim_is_stepped_over(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 9)
    write_claim(layout, "rank-0000", 0, b"")
    write_claim(layout, "rank-0000", 4, Claim(attempt=B0, start=4, stop=5, at=1.0))
    assert flat(drain(supply_of(layout, 0))) == [5, 6, 7, 8]


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the manifests that supplies load, in order."""
    found: list[str] = []

    def counted(layout: Layout, name: str, *more: Any) -> Manifest | None:
        found.append(name)
        return load_manifest(layout, name, *more)

    monkeypatch.setattr("gpuspool.worker.supply.load_manifest", counted)
    return found


def test_who_has_enough_of_its_own_loads_nothing_else(tmp_path: Path, loads: list[str]) -> None:
    supply = supply_of(make_spool(tmp_path / "s", 20, *[10] * 30), 0)
    for _ in range(8):
        assert take(supply) is not None
    assert loads == ["rank-0000"]


def test_a_first_steal_loads_few_of_many_manifests(tmp_path: Path, loads: list[str]) -> None:
    supply = supply_of(make_spool(tmp_path / "s", 0, *[10] * 40), 0)
    assert take(supply) is not None
    assert len(loads) <= 1 + SAMPLE
    assert "rank-0000" in loads


def test_what_is_exhausted_is_forgotten_and_never_loaded_again(
    tmp_path: Path, loads: list[str]
) -> None:
    layout = make_spool(tmp_path / "s", 3, *[1] * 12)
    supply = supply_of(layout, 0)
    assert sorted(flat(drain(supply))) == list(range(15))
    assert sorted(loads) == [f"rank-{rank:04d}" for rank in range(13)], "each once"
    loads.clear()
    assert take(supply) is None
    assert loads == []
    assert publish_manifest(layout, "sweep-01", [task(2, failed_in=FAILED)])
    assert take(supply) == [task(2, failed_in=FAILED)]
    assert loads == ["sweep-01"]


def test_who_is_proven_looks_for_doubtful_tasks_only_where_there_may_be_some(
    tmp_path: Path, loads: list[str]
) -> None:
    """Neither in planned manifests nor in retries: there nothing has failed in its round."""
    layout = make_spool(tmp_path / "s", 60, *[10] * 30)
    assert publish_manifest(layout, "retry-01", [task(index, round=1) for index in range(9)])
    assert publish_manifest(layout, "sweep-01", [task(70)])
    assert publish_ruling(layout, "ruling-01", Ruling(epoch=0), [task(80, failed_in=FAILED)])
    supply = supply_of(layout, 0)
    assert list(supply.take(1, None, is_proven=True) or []) == [task(80, failed_in=FAILED)]
    for _ in range(4):
        assert indices(supply.take(1, None, is_proven=True) or []) != [80]
    assert sorted(set(loads)) == ["rank-0000", "ruling-01", "sweep-01"]
    assert len(loads) == 3, "each once"


def test_what_has_taken_two_processes_along_is_the_first_task_of_one_or_none(
    tmp_path: Path,
) -> None:
    """A process that has completed tasks may be about to break: it would tell nothing more."""
    deadly = task(80, careful=True, failed_in=(("rank-0007.a00", "7"), ("rank-0008.a00", "8")))
    layout = make_spool(tmp_path / "s", 4)
    assert publish_ruling(
        layout, "ruling-01", Ruling(epoch=0), [deadly, task(81, failed_in=FAILED)]
    )
    used = supply_of(layout, 0)
    assert indices(used.take(1, None, is_proven=True) or []) != [80]
    while used.take(9, None, is_proven=True) is not None:
        pass
    assert used.leaves_doubtful, "nothing else is left"
    assert not used.give_in(), "to wait on is of no use"
    fresh = supply_of(layout, 1)
    assert list(fresh.take(1, None, is_proven=True, is_fresh=True) or []) == [deadly]


@pytest.mark.parametrize("most_held", [0, 25, 250_000])
def test_of_many_manifests_nothing_is_left_however_few_are_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_held: int
) -> None:
    monkeypatch.setattr("gpuspool.worker.supply.MOST_LOADED", most_held)
    sizes = [0, 7, 1, 30, 0, 12, 3, 1, 1, 25, 9, 4]
    layout = make_spool(tmp_path / "s", *sizes)
    several = [supply_of(layout, rank) for rank in (0, 1, 3, 77)]
    got: list[int] = []
    while several:
        for supply in list(several):
            tasks = take(supply, 2, 0.01)
            if tasks is None:
                several.remove(supply)
            else:
                got += indices(tasks)
    assert sorted(got) == list(range(sum(sizes)))
    assert view_of(layout).unclaimed == 0


def test_a_manifest_that_vanished_is_passed_over(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 0, 3, 2)
    supply = supply_of(layout, 0)
    assert take(supply) is not None
    layout.manifest("rank-0002").unlink()
    others = supply_of(layout, 5)
    assert set(flat(drain(others))) <= {0, 1, 2}


def test_a_task_that_failed_on_ones_own_device_is_left_to_others_at_first(tmp_path: Path) -> None:
    """Then it is taken if another device failed it since, and at last in any case; never twice."""
    layout = make_spool(tmp_path / "s", 0)
    ours, other, mine = ("rank-0000.a07", "GPU-a"), ("rank-0001.a00", "GPU-b"), (A0, "GPU-a")
    tasks = [
        task(0, failed_in=(ours, other)),
        task(1, failed_in=(other, ours)),
        task(2, failed_in=(other, mine)),
    ]
    for number, one in enumerate(tasks, 1):
        assert publish_manifest(layout, f"sweep-{number:02d}", [one])
    supply = Supply(layout, 0, A0, pytest.fail, device="GPU-a")
    assert supply.take(1, None) is None
    assert supply.leaves_doubtful
    assert supply.give_in()
    assert indices(supply.take(1, None) or ()) == [0]
    assert supply.take(1, None) is None
    assert supply.give_in()
    assert indices(supply.take(1, None) or ()) == [1]
    assert supply.take(1, None) is None
    while supply.give_in():
        assert supply.take(1, None) is None, "the last one failed in this very attempt"


def test_who_has_plenty_to_do_does_not_leave_a_task_to_others_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All others may wait for what becomes of it, and behind it stand the tasks of a ruling."""
    monkeypatch.setattr("gpuspool.worker.supply.FIRST_LOOK_S", 0.0)
    monkeypatch.setattr("gpuspool.worker.supply.LEFT_TO_OTHERS_S", 0.05)
    layout = make_spool(tmp_path / "s", 9000)
    ours = task(9001, failed_in=(("rank-0000.a07", "GPU-a"),))
    behind = task(9002, failed_in=FAILED)
    assert publish_ruling(layout, "ruling-01", Ruling(epoch=0), [ours, behind])
    supply = Supply(layout, 0, A0, pytest.fail, device="GPU-a")

    def claim() -> list[int]:
        return indices(supply.take(1, 1e9, is_proven=True) or [])

    assert claim()[0] < 9000, "another device should try it first"
    wait_until(lambda: claim() == [9001])
    assert claim() == [9002]


def test_who_is_in_doubt_leaves_what_is_deadly_for_last(tmp_path: Path) -> None:
    """Else each process of its place would begin with the same task, and prove nothing."""
    deadly = task(80, careful=True, failed_in=(("rank-0007.a00", "7"), ("rank-0008.a00", "8")))
    layout = make_spool(tmp_path / "s", 0)
    assert publish_ruling(layout, "ruling-01", Ruling(epoch=0), [deadly])
    assert publish_ruling(layout, "ruling-02", Ruling(epoch=0), [task(81, failed_in=FAILED)])
    doubted = supply_of(layout, 0)
    assert indices(doubted.take(1, None, is_proven=False, is_fresh=True) or ()) == [81]
    assert indices(doubted.take(1, None, is_proven=False, is_fresh=True) or ()) == [80]


def test_a_deadly_task_goes_to_others_once_a_device_has_tried_it_often(tmp_path: Path) -> None:
    """Else devices that take two such tasks in turn never exchange them, and nothing is ruled."""
    often = tuple((f"rank-0001.a0{number}", "GPU-b") for number in range(3))
    layout = make_spool(tmp_path / "s", 0)
    deadly = task(80, careful=True, failed_in=(*often, ("rank-0000.a00", "GPU-a")))
    assert publish_ruling(layout, "ruling-01", Ruling(epoch=0), [deadly])
    again = Supply(layout, 1, "rank-0001.a03", pytest.fail, device="GPU-b")
    assert again.take(1, None, is_proven=False, is_fresh=True) is None
    assert again.leaves_doubtful
    other = Supply(layout, 0, "rank-0000.a01", pytest.fail, device="GPU-a")
    assert indices(other.take(1, None, is_proven=False, is_fresh=True) or ()) == [80]


def test_of_two_deadly_tasks_a_device_takes_the_one_that_it_tried_least(tmp_path: Path) -> None:
    ours = tuple((f"rank-0000.a0{number}", "GPU-a") for number in range(3))
    theirs = ("rank-0001.a00", "GPU-b")
    often, seldom = (*ours, theirs), (*ours[:2], theirs)
    layout = make_spool(tmp_path / "s", 0)
    for number, failed_in in enumerate((often, seldom)):
        deadly = task(80 + number, careful=True, failed_in=failed_in)
        assert publish_ruling(layout, f"ruling-0{number}", Ruling(epoch=0), [deadly])
    supply = Supply(layout, 0, "rank-0000.a03", pytest.fail, device="GPU-a")

    def claim() -> list[int]:
        return indices(supply.take(1, None, is_proven=False, is_fresh=True) or ())

    assert claim() == [81]
    assert claim() == []
    while supply.give_in() and supply.leaves_doubtful:
        if claimed := claim():
            assert claimed == [80]
            return
    pytest.fail("nobody else may be there to take it")
