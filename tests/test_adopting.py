"""What a start with another job does about the parents before it, on spools made by hand."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from spooling import (
    A0,
    B0,
    JOB,
    admit,
    begin,
    close,
    dead_process,
    elsewhere,
    intend,
    living_process,
    make_spool,
    view_of,
)

from gpuspool.orchestrator.supervise.adopting import meet_others
from gpuspool.orchestrator.supervise.drain import NEW_CODE
from gpuspool.orchestrator.supervise.launch import Orders
from gpuspool.orchestrator.supervise.telling import Telling
from gpuspool.orchestrator.supervise.workers import Workers
from gpuspool.orchestrator.text.progress import Silent
from gpuspool.spool.code import make_code, publish_code
from gpuspool.spool.layout import Layout
from gpuspool.spool.publish import read_record
from gpuspool.spool.records import CodeFile, DrainOrder, Identity, Job, Options
from gpuspool.spool.view import read_control

OURS = 7
NEWER = msgspec.structs.replace(JOB, sha256="34cd")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return make_spool(tmp_path / "s", 4)


@pytest.fixture
def living() -> Iterator[Identity]:
    with living_process() as who:
        yield who


def drained_by(layout: Layout, job: Job, *older: int, brings_code: bool = False) -> int:
    """The newest epoch that a start with this job drains, -1 where it drains none.

    brings_code: it was given --keep-done.
    """
    view = view_of(layout)
    workers = Workers(view, Orders(epoch=OURS, job=job, options=Options(), world_size=1))
    telling = Telling(layout, OURS, Silent(), lambda: None)
    meet_others(view, workers, job, older, telling, brings_code=brings_code)
    return read_control(layout).drain


def test_who_is_ordered_to_end_on_another_host_is_told_of_as_such(layout: Layout) -> None:
    """The one that runs the new job already goes on beside this start."""
    admit(layout, 2, elsewhere(0))
    intend(layout, A0, epoch=2, parent=elsewhere(0))
    admit(layout, 5, elsewhere(1), job=NEWER)
    intend(layout, B0, epoch=5, parent=elsewhere(1), job=NEWER)
    assert drained_by(layout, NEWER, 2, 5) == 2
    told = layout.events(OURS).read_text()
    assert f"{A0} on host elsewhere: stops for the new code, if it is at work, once" in told
    assert f"{B0} on host elsewhere: may be at work" in told


def test_a_start_tells_beside_whom_it_works(layout: Layout, living: Identity) -> None:
    """Whoever types the command again sees that it is at work already."""
    admit(layout, 2, living)
    admit(layout, 3, elsewhere(0), job_id="17_3")
    drained_by(layout, JOB, 2, 3)
    told = layout.events(OURS).read_text()
    first = f"pid {living.pid} on host {living.host}"
    assert f"beside 2 other starts of this run: {first}, Slurm job 17_3 on host elsewhere" in told


def test_a_start_alone_tells_of_nobody(layout: Layout) -> None:
    drained_by(layout, JOB)
    assert not layout.events(OURS).exists() or "beside" not in layout.events(OURS).read_text()


def test_who_runs_the_same_job_goes_on(layout: Layout, living: Identity) -> None:
    admit(layout, 2, living)
    intend(layout, A0, epoch=2, parent=living)
    begin(layout, A0)
    assert drained_by(layout, JOB, 2) == -1


def test_who_runs_another_job_is_ordered_to_end(layout: Layout, living: Identity) -> None:
    admit(layout, 2, living)
    intend(layout, A0, epoch=2, parent=living)
    begin(layout, A0)
    assert drained_by(layout, NEWER, 2) == 2
    order = read_record(layout.drain(2), DrainOrder)
    assert order is not None
    assert order.why == NEW_CODE


@pytest.mark.parametrize(
    ("module", "brings_code", "drained"),
    [("helper", False, 2), ("helper", True, 2), ("", False, -1), ("", True, 2)],
    ids=["module", "module and --keep-done", "file", "file and --keep-done"],
)
def test_a_file_that_the_job_may_write_to_is_new_code_only_where_that_was_said(
    layout: Layout, living: Identity, module: str, brings_code: bool, drained: int
) -> None:
    def knowing(content: str) -> Job:
        file = CodeFile(name="file", module=module, sha256=content, size=1)
        name = publish_code(layout, make_code(JOB.sha256, [file]))
        return msgspec.structs.replace(JOB, code=name)

    admit(layout, 2, living)
    intend(layout, A0, epoch=2, parent=living, job=knowing("12ab"))
    begin(layout, A0)
    assert drained_by(layout, knowing("34cd"), 2, brings_code=brings_code) == drained


def test_the_order_names_none_that_runs_the_new_job_already(
    layout: Layout, living: Identity
) -> None:
    """It came in just before, with the same fix."""
    admit(layout, 2, living)
    intend(layout, A0, epoch=2, parent=living)
    admit(layout, 5, living, job=NEWER)
    intend(layout, B0, epoch=5, parent=living, job=NEWER)
    for attempt in (A0, B0):
        begin(layout, attempt)
    assert drained_by(layout, NEWER, 2, 5) == 2


def test_a_parent_whose_slots_wait_to_be_started_again_is_ordered_to_end_too(
    layout: Layout, living: Identity
) -> None:
    """Else it would start the old job again in a moment."""
    admit(layout, 2, living)
    intend(layout, A0, epoch=2, parent=living)
    begin(layout, A0)
    close(view_of(layout), A0)
    assert drained_by(layout, NEWER, 2) == 2


def test_a_parent_that_has_started_nobody_yet_is_ordered_to_end_too(
    layout: Layout, living: Identity
) -> None:
    admit(layout, 2, living)
    assert drained_by(layout, JOB, 2) == -1
    assert drained_by(layout, NEWER, 2) == 2


def test_what_is_over_needs_no_order(layout: Layout) -> None:
    admit(layout, 2, dead_process())
    intend(layout, A0, epoch=2, parent=dead_process())
    begin(layout, A0)
    close(view_of(layout), A0)
    assert drained_by(layout, NEWER) == -1
