"""Which slots of a parent are taken by attempts that others started."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import pytest
from spooling import (
    A0,
    B0,
    C0,
    JOB,
    admit,
    close,
    dead_process,
    elsewhere,
    intend,
    living_process,
    make_spool,
    view_of,
)

from gpuspool.orchestrator.plan.slots import Slot
from gpuspool.orchestrator.supervise.launch import Orders
from gpuspool.orchestrator.supervise.taken_slots import TakenSlots
from gpuspool.orchestrator.supervise.workers import Workers
from gpuspool.spool.journal import start_journal
from gpuspool.spool.layout import Layout
from gpuspool.spool.records import CPU, Identity, Options

GPUS = [Slot(0, "0"), Slot(1, "1")]
CORES = [Slot(0), Slot(1)]
OURS = 7


class Look:
    """What a parent with some slots sees, again and again."""

    def __init__(self, layout: Layout, slots: list[Slot]) -> None:
        self.view = view_of(layout)
        orders = Orders(epoch=OURS, job=JOB, options=Options(), world_size=len(slots))
        self._workers = Workers(self.view, orders)
        self._taken = TakenSlots(self.view, self._workers.others, slots)

    @property
    def beside_first(self) -> frozenset[int]:
        return self._taken.beside_first

    def __call__(self, busy: Collection[int] = ()) -> dict[str, int]:
        self.view.refresh()
        return dict(self._taken.look(self._workers.others.open_attempts(), busy))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return make_spool(tmp_path / "s", 4)


@pytest.fixture
def parent() -> Iterator[Identity]:
    """A parent on this host that lives."""
    with living_process() as who:
        yield who


@pytest.fixture
def worker() -> Iterator[Identity]:
    with living_process() as who:
        yield who


def let_run(
    layout: Layout,
    attempt: str,
    parent: Identity,
    worker: Identity | None,
    device: str = "0",
    job_id: str = "",
    epoch: int = 0,
    uuids: Sequence[str] = (),
) -> None:
    """Let an attempt run, or be about to where it has no process."""
    if not layout.parent(epoch).exists():
        admit(layout, epoch, parent)
    known = {"device": device, "job_id": job_id, "uuids": uuids}
    intend(layout, attempt, epoch=epoch, parent=parent, **known)
    if worker is not None:
        assert start_journal(layout, attempt, worker) is not None


# The attempts of other parents.


@pytest.mark.parametrize("has_begun", [True, False])
def test_a_gpu_that_another_parents_attempt_uses_is_taken(
    layout: Layout, parent: Identity, worker: Identity, has_begun: bool
) -> None:
    let_run(layout, A0, parent, worker if has_begun else None, "1")
    look = Look(layout, GPUS)
    assert look() == {A0: 1}
    close(look.view, A0)
    assert look() == {}, "it is free again once that is closed"


@pytest.mark.parametrize(
    ("device", "uuids", "slot"),
    [
        ("1", [], Slot(0, "0,1")),
        ("0,1", [], Slot(0, "1")),
        ("1", ["GPU-b"], Slot(0, "GPU-b")),
        ("GPU-b", [], Slot(0, "1", ("GPU-b",))),
        ("1", ["GPU-b"], Slot(0, "0", ("GPU-b",))),
    ],
)
def test_a_gpu_is_known_by_any_of_its_names(
    layout: Layout, parent: Identity, device: str, uuids: list[str], slot: Slot
) -> None:
    let_run(layout, A0, parent, None, device, uuids=uuids)
    assert Look(layout, [slot])() == {A0: 0}
    other = Slot(0, "2", ("GPU-c",))
    assert Look(layout, [other])() == {}


def test_an_attempt_with_several_gpus_takes_a_slot_of_each(
    layout: Layout, parent: Identity, worker: Identity
) -> None:
    let_run(layout, A0, parent, worker, "0,2")
    look = Look(layout, [Slot(0, "0"), Slot(1, "0"), Slot(2, "1"), Slot(3, "2")])
    assert (look(), look.beside_first) == ({A0: 0}, {3})
    assert (look(), look.beside_first) == ({A0: 0}, {3})
    close(look.view, A0)
    assert (look(), look.beside_first) == ({}, set())


def test_an_attempt_waits_for_no_second_slot_where_one_has_all_its_gpus(
    layout: Layout, parent: Identity, worker: Identity
) -> None:
    let_run(layout, A0, parent, worker, "0,1")
    look = Look(layout, [Slot(0, "0,1"), Slot(1, "0,1")])
    assert (look(), look.beside_first) == ({A0: 0}, set())


def test_the_cores_of_a_host_are_shared_with_other_parents(
    layout: Layout, parent: Identity, worker: Identity
) -> None:
    let_run(layout, A0, parent, worker, CPU)
    assert Look(layout, CORES)() == {}


def test_the_gpus_of_other_hosts_are_others(layout: Layout) -> None:
    let_run(layout, A0, elsewhere(), elsewhere(1))
    let_run(layout, B0, elsewhere(2), None, epoch=1)
    assert Look(layout, GPUS)() == {}


def test_in_another_job_of_a_scheduler_the_same_number_is_another_gpu(
    layout: Layout, parent: Identity, worker: Identity
) -> None:
    """Two elements of an array on one node both see a device 0."""
    let_run(layout, A0, parent, worker, "0", "12_1")
    assert Look(layout, [Slot(0, "0", job_id="12_2")])() == {}
    assert Look(layout, GPUS)() == {}
    assert Look(layout, [Slot(0, "0", job_id="12_1")])() == {A0: 0}


def test_an_attempt_that_is_dead_uses_no_gpu_though_its_parent_has_not_closed_it(
    layout: Layout, parent: Identity
) -> None:
    let_run(layout, A0, parent, dead_process())
    assert Look(layout, GPUS)() == {}


def test_whose_intent_cannot_be_read_takes_no_slot(
    layout: Layout, parent: Identity, worker: Identity
) -> None:
    let_run(layout, A0, parent, worker)
    layout.intent(A0).write_bytes(b"damaged")
    assert Look(layout, GPUS)() == {}


# What is adopted.


@pytest.mark.parametrize(("slots", "device"), [(GPUS, "0"), (CORES, CPU)], ids=["GPU", "CPU"])
def test_what_is_adopted_takes_one_slot_for_good(
    layout: Layout, worker: Identity, slots: list[Slot], device: str
) -> None:
    let_run(layout, A0, dead_process(), worker, device)
    look = Look(layout, slots)
    assert look() == {A0: 0}
    with living_process() as other:
        let_run(layout, B0, dead_process(), other, slots[1].device_name, epoch=1)
        assert look() == {A0: 0, B0: 1}
        assert look() == {A0: 0, B0: 1}
        close(look.view, B0)
        assert look() == {A0: 0}
    assert look([1]) == {A0: 0}


def test_what_is_adopted_finds_a_slot_once_one_is_free(layout: Layout, worker: Identity) -> None:
    """Its own attempts keep theirs: nobody is ended for it."""
    let_run(layout, A0, dead_process(), worker, CPU)
    look = Look(layout, CORES)
    assert look([0, 1]) == {}
    assert look([0]) == {A0: 1}
    assert look([0]) == {A0: 1}
    assert look([]) == {A0: 1}, "it stays where it is"


def test_of_more_adopted_attempts_than_slots_each_slot_has_one(
    layout: Layout, parent: Identity, worker: Identity
) -> None:
    for number, attempt in enumerate((A0, B0, C0)):
        let_run(layout, attempt, dead_process(), worker, CPU, epoch=number)
    look = Look(layout, CORES)
    assert look() == {A0: 0, B0: 1}
    close(look.view, A0)
    assert look() == {B0: 1, C0: 0}


def test_what_is_adopted_on_a_gpu_takes_no_slot_of_another(
    layout: Layout, worker: Identity
) -> None:
    let_run(layout, A0, dead_process(), worker, "5")
    assert Look(layout, GPUS)() == {}


def test_who_loses_its_parent_keeps_the_slot_that_it_is_in_the_way_of(
    layout: Layout, worker: Identity
) -> None:
    with living_process() as parent:
        let_run(layout, A0, parent, worker, "1")
        look = Look(layout, GPUS)
        assert look() == {A0: 1}
    assert look() == {A0: 1}
