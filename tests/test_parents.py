"""Parents: which starts of a run there are, who of them may be there, and races for what they take.

The spools are made by hand, but for those of the races: there real processes do what a start does,
at the same moment, up to the processes of its workers.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from spooling import (
    A0,
    JOB,
    admit,
    dead_process,
    elsewhere,
    intend,
    living_process,
    make_spool,
    race,
    say_ended,
    together,
    view_of,
    watch_opens,
)

from gpuspool.orchestrator.api import epoch as api_epoch
from gpuspool.orchestrator.api import opening
from gpuspool.orchestrator.api.opening import open_or_create
from gpuspool.orchestrator.plan.inputs import collect
from gpuspool.orchestrator.plan.jobs import parse_job
from gpuspool.orchestrator.plan.out import make_out
from gpuspool.orchestrator.plan.request import make_request
from gpuspool.orchestrator.plan.slots import Slot
from gpuspool.orchestrator.supervise import launch
from gpuspool.orchestrator.supervise.children import Children
from gpuspool.orchestrator.supervise.drain import ASKED, order_drain
from gpuspool.orchestrator.supervise.launch import Orders
from gpuspool.orchestrator.supervise.ranks import Ranks
from gpuspool.spool.closing import publish_closing
from gpuspool.spool.layout import Layout, rank_of
from gpuspool.spool.liveness import FailureDetector
from gpuspool.spool.parents import LOST, Parents, does_any_parent_live_here, may_any_parent_live
from gpuspool.spool.publish import publish
from gpuspool.spool.records import Closing, Identity, Options
from gpuspool.spool.states import Life
from gpuspool.spool.trust import Trust
from gpuspool.spool.view import View, read_control


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return make_spool(tmp_path / "s", 4)


@pytest.fixture
def living() -> Iterator[Identity]:
    with living_process() as who:
        yield who


def there(layout: Layout) -> dict[int, Life]:
    return Parents(layout).refresh().maybe_alive()


# Who is there.


def test_without_a_start_nobody_is_there(layout: Layout) -> None:
    parents = Parents(layout).refresh()
    assert (parents.known, parents.ends, parents.newest) == ({}, {}, -1)
    assert not may_any_parent_live(layout)


def test_a_spool_of_an_earlier_version_has_no_parents(layout: Layout) -> None:
    layout.parents.rmdir()
    assert Parents(layout).refresh().newest == -1
    assert not may_any_parent_live(layout)


def test_who_lives_here_is_there_until_it_says_that_it_ended(
    layout: Layout, living: Identity
) -> None:
    admit(layout, 3, living)
    assert there(layout) == {3: Life.ALIVE}
    assert does_any_parent_live_here(layout)
    say_ended(layout, 3)
    assert there(layout) == {}
    assert not does_any_parent_live_here(layout)


def test_who_was_killed_here_is_not_there_though_it_never_said_so(layout: Layout) -> None:
    admit(layout, 0, dead_process())
    parents = Parents(layout).refresh()
    assert parents.without_end() == [0]
    assert parents.maybe_alive() == {}


def test_who_is_elsewhere_may_be_there_and_is_not_proved_alive(layout: Layout) -> None:
    admit(layout, 0, elsewhere())
    assert there(layout) == {0: Life.ELSEWHERE}
    assert may_any_parent_live(layout)
    assert not does_any_parent_live_here(layout)
    say_ended(layout, 0)
    assert there(layout) == {}


@pytest.mark.parametrize("content", [b"", b"{}", b'{"epoch": 1, "crc": "00000000"}\n'])
def test_whose_record_cannot_be_read_may_be_there_until_an_end_says_otherwise(
    layout: Layout, content: bytes
) -> None:
    layout.parent(1).write_bytes(content)
    parents = Parents(layout).refresh()
    assert (parents.known, parents.newest) == ({1: None}, 1)
    assert parents.maybe_alive() == {1: Life.ELSEWHERE}
    layout.parent_end(1).write_bytes(content)
    parents.refresh()
    assert parents.ends.keys() == {1}
    assert parents.maybe_alive() == {}, "that there is an end counts, whatever it says"


def test_what_is_none_of_ours_is_no_parent(layout: Layout) -> None:
    for name in ("0001", "1.json", "0001.end", ".0001.json", "0001.json.old", "٠٠٠١.json"):
        (layout.parents / name).touch()
    assert Parents(layout).refresh().newest == -1


def test_a_refresh_opens_what_is_new_and_nothing_twice(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        admit(layout, number, elsewhere(number))
    parents = Parents(layout).refresh()
    admit(layout, 20, elsewhere(20))
    say_ended(layout, 3)
    opened = watch_opens(monkeypatch)
    assert parents.refresh().newest == 20
    new = [layout.parent(20), layout.parent_end(3)]
    assert sorted(opened) == sorted(map(os.fspath, [layout.parents, *new]))
    assert parents.without_end() == [number for number in range(21) if number != 3]


def test_on_its_own_host_a_parent_that_others_call_lost_is_known_better(
    layout: Layout, living: Identity
) -> None:
    for epoch, who in enumerate((living, dead_process(), elsewhere())):
        admit(layout, epoch, who)
        say_ended(layout, epoch, LOST)
    assert there(layout) == {0: Life.ALIVE}
    lives = [Parents(layout).refresh().life_without_lease(epoch) for epoch in range(3)]
    assert lives == [Life.ALIVE, Life.DEAD, Life.DEAD]


def test_an_end_that_was_taken_back_is_forgotten(layout: Layout) -> None:
    admit(layout, 0, elsewhere())
    say_ended(layout, 0, LOST)
    parents = Parents(layout).refresh()
    assert parents.maybe_alive() == {}
    layout.parent_end(0).unlink()
    assert parents.refresh().maybe_alive() == {0: Life.ELSEWHERE}


# Copies of a spool.


def test_the_parents_of_a_spool_are_none_of_its_copys(layout: Layout, living: Identity) -> None:
    """They see to the original, and will never look into the copy."""
    admit(layout, 0, living)
    intend(layout, A0, parent=living)
    copy = Layout(shutil.copytree(layout.root, layout.root.with_name("copy")))
    assert there(layout) == {0: Life.ALIVE}
    assert there(copy) == {}
    detector = FailureDetector(view_of(copy))
    assert detector.epoch_life(0) is Life.DEAD


def test_a_spool_that_was_moved_keeps_its_parents(layout: Layout, living: Identity) -> None:
    admit(layout, 0, living)
    moved = Layout(os.fspath(layout.root.rename(layout.root.with_name("moved"))))
    assert there(moved) == {0: Life.ALIVE}


def test_of_a_parent_elsewhere_nobody_knows_which_folder_is_meant(layout: Layout) -> None:
    """Device numbers mean something on one host only."""
    admit(layout, 0, elsewhere())
    copy = Layout(shutil.copytree(layout.root, layout.root.with_name("copy")))
    assert there(copy) == {0: Life.ELSEWHERE}


# The next epoch.


def test_an_epoch_is_newer_than_all_that_anything_names(layout: Layout) -> None:
    assert view_of(layout).next_epoch() == 0
    intend(layout, A0, epoch=2)
    assert view_of(layout).next_epoch() == 3
    admit(layout, 4, dead_process())
    assert view_of(layout).next_epoch() == 5
    for name, epoch in (("drain", 6), ("finished", 8), ("leave", 10)):
        publish(getattr(layout, name)(epoch), b"")
        assert view_of(layout).next_epoch() == epoch + 1


def test_whoever_finds_its_epoch_taken_takes_the_next(layout: Layout) -> None:
    view = view_of(layout)
    for _ in range(2):
        admit(layout, Parents(layout).refresh().newest + 1, elsewhere())
    view.next_epoch = lambda: 0  # type: ignore[method-assign] - it looked before the others came
    parent = api_epoch._take_epoch(view, [Slot(0)], JOB, 60.0, "join")
    assert (parent.epoch, parent.command, parent.lease_s, parent.pid) == (
        2,
        "join",
        60.0,
        os.getpid(),
    )
    assert Parents(layout).refresh().known[2] == parent


def test_an_order_names_all_epochs_up_to_one(layout: Layout) -> None:
    assert order_drain(layout, 3, ASKED)
    control = read_control(layout)
    assert [control.stops(epoch) for epoch in (0, 3, 4)] == [True, True, False]


# A start that comes while another one makes the run.


@pytest.mark.parametrize("overwrite", [False, True])
def test_whoever_is_overtaken_while_it_looks_at_out_goes_on_with_the_run_that_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    """Its OUT is that of the other one by now: it holds something, and must not be moved aside."""
    layout, out = Layout(tmp_path / "S"), tmp_path / "out"
    (tmp_path / "job.py").write_text("def work(task, ctx):\n    return 1\n")
    (tmp_path / "lines").write_text("a\nb\n")
    job, source = parse_job(f"{tmp_path}/job.py:work")
    tasks = collect(lines=tmp_path / "lines")
    request = make_request(job, source, tasks, out=out)

    def open_it() -> View:
        view, _ = open_or_create(
            layout, request, Trust(), fresh=False, overwrite=overwrite, keep_done=False, add=False
        )
        return view

    real = opening.slots_for
    others: list[str] = []

    def overtaken(options: Options) -> Any:
        monkeypatch.setattr(opening, "slots_for", real)
        others.append(open_it().run.id)
        make_out(out, others[0])
        (out / "a.txt").write_text("published")
        return real(options)

    monkeypatch.setattr(opening, "slots_for", overtaken)
    assert open_it().run.id == others[0]
    assert (out / "a.txt").read_text() == "published"


# Races: each takes place as often as this, between two processes that do the same.

ROUNDS = 25
SLOTS = [Slot(0), Slot(1)]


def start_rounds(home: Path) -> list[tuple[str, int, list[str]]]:
    """Do, once for each round, what a start does until its workers run, and then the first
    restart of a slot.

    Returns of each round the run's id, the epoch, and the attempts in the order of their launches.
    """
    # Their processes are of no interest here.
    launch._argv = lambda view, rank, number: ["true"]
    os.chdir(home)
    job, source = parse_job("job.py:work")
    tasks = collect(lines="lines")
    found: list[tuple[str, int, list[str]]] = []
    for number in range(ROUNDS):
        request = make_request(job, source, tasks, options={"ranks": 2})
        layout = Layout(home / f"S{number}")
        together()
        view, _ = open_or_create(
            layout, request, Trust(), fresh=False, overwrite=False, keep_done=False, add=False
        )
        parent = api_epoch._take_epoch(view, SLOTS, JOB, 60.0, "run")
        orders = Orders(epoch=parent.epoch, job=job, options=view.run.options, world_size=2)
        children = Children(view, orders)
        ranks = Ranks(view, FailureDetector(view), parent.epoch)
        together()
        launched = [children.launch(slot, ranks, 3, False) for slot in SLOTS]
        word = Closing(attempt=launched[0].attempt, state="stopped", reason="drained", by="test")
        publish_closing(layout, word, [])
        view.refresh()
        launched.append(children.launch(SLOTS[0], ranks, 3, False))
        found.append((view.run.id, parent.epoch, [child.attempt for child in launched]))
        for child in launched:
            child._process.wait()
    return found


def test_of_two_starts_at_once_one_makes_the_spool_and_each_has_its_epoch_and_its_ranks(
    tmp_path: Path,
) -> None:
    (tmp_path / "job.py").write_text("def work(task, ctx):\n    return 1\n")
    (tmp_path / "lines").write_text("a\nb\nc\n")
    ones, others = race(start_rounds, (tmp_path,), (tmp_path,))
    for number, (one, other) in enumerate(zip(ones, others, strict=True)):
        layout = Layout(tmp_path / f"S{number}")
        assert one[0] == other[0] == view_of(layout).run.id
        assert {one[1], other[1]} == {0, 1}
        for _, epoch, (first, second, again) in (one, other):
            assert rank_of(first) != rank_of(second)
            assert epoch == view_of(layout).intents[first].epoch
            assert again == first.replace(".a00", ".a01"), "a slot keeps its number"
        ranks = [rank_of(attempt) for _, _, attempts in (one, other) for attempt in attempts[:2]]
        assert sorted(ranks) == [0, 1, 2, 3], "each is taken once, and none is left out"
    assert len({one[0] for one in ones}) == ROUNDS
