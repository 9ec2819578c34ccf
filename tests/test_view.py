"""Reading a whole spool: what is foreign is ignored, damage is told, what is new is read once."""

import copy
import os
import zlib
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import msgspec
import pytest
from helpers import tree
from spooling import (
    A0,
    A1,
    B0,
    begin,
    close,
    cuts,
    dead_process,
    finish,
    flips,
    hidden_files,
    indices,
    intend,
    make_spool,
    some_run,
    take,
    task,
    verdicts,
    view_of,
    watch_opens,
    write_claim,
)

from gpuspool.spool import view as view_module
from gpuspool.spool.blame import scene_of
from gpuspool.spool.closing import orphans_of
from gpuspool.spool.codec import decode, encode, seal_pretty
from gpuspool.spool.errors import SpoolError, UsageError
from gpuspool.spool.identity import myself
from gpuspool.spool.journal import start_journal
from gpuspool.spool.layout import SUBDIRS, Layout, rank_name
from gpuspool.spool.ledger import run_state
from gpuspool.spool.liveness import FailureDetector
from gpuspool.spool.manifest import Damage, publish_manifest, publish_orphans
from gpuspool.spool.publish import publish, replace
from gpuspool.spool.records import (
    Claim,
    Closing,
    Error,
    Heartbeat,
    Intent,
    JournalLine,
    TaskFailure,
)
from gpuspool.spool.states import Life
from gpuspool.spool.sweep import stranded_tasks
from gpuspool.spool.trust import Trust, refuse_unsafe
from gpuspool.spool.view import Claimed, Control, Started, View, load_run, open_view, read_control


@pytest.fixture(params=[False, True], ids=["checked by lines", "checked as a whole"])
def layout(tmp_path: Path, request: pytest.FixtureRequest) -> Layout:
    return make_spool(tmp_path / "s", 6, 4, has_checksums=request.param)


def beat(layout: Layout, attempt: str, number: int) -> Heartbeat:
    """Write a heartbeat of an attempt that this process plays."""
    record = Heartbeat(
        **msgspec.structs.asdict(myself()),
        attempt=attempt,
        beat=number,
        parent="1",
        device="",
        state="running",
        at=1.0,
    )
    replace(layout.heartbeat(attempt), encode(record))
    return record


def snapshot(view: View) -> dict[str, object]:
    """All that a view derives; a later change of the view does not change it."""
    claims = {
        attempt: sorted((one.manifest, one.start, one.stop) for one in claimed)
        for attempt, claimed in view.claims_by.items()
    }
    facts = {
        "verdicts": verdicts(view),
        "n_complete": view.ledger.n_complete,
        "n_failed": view.ledger.n_failed,
        "unreadable": view.ledger.unreadable,
        "unclaimed": view.unclaimed,
        "claims_by": claims,
        "attempts": view.attempts,
        "open_attempts": view.open_attempts,
        "closed": view.closed,
        "intents": view.intents,
        "started": view.started,
        "finished_by": view.finished_by,
        "failed_by": view.failed_by,
        "manifests": sorted(view.manifests),
        "next_epoch": view.next_epoch(),
        "next_number": [view.next_number(rank) for rank in range(3)],
        "next_numbered": [view.next_numbered(kind) for kind in ("retry", "sweep")],
        "damage": view.damage,
    }
    return copy.deepcopy(facts)


def populate(layout: Layout) -> None:
    """Some of everything: an open attempt, a closed one, claims, orphans, a heartbeat, a drain."""
    intend(layout, A0, epoch=1)
    first = begin(layout, A0)
    second = begin(layout, B0)
    take(layout, A0, 3)
    take(layout, B0, 2, "rank-0001")
    finish(first, 0, 1)
    finish(second, 6, state="failed")
    beat(layout, A0, 4)
    close(view_of(layout), B0)
    publish(layout.drain(0), b"")


# What is no spool of ours.


@pytest.mark.parametrize(
    "text", ["gpuspool 3\n", "gpuspool 2", "", "gpuspool 2\r\n", "\0" * 11, "gpuspool 10\n"]
)
def test_another_format_is_refused_before_anything_else_is_read(layout: Layout, text: str) -> None:
    layout.format.write_text(text, newline="")
    layout.run.unlink()
    with pytest.raises(SpoolError, match="FORMAT") as caught:
        load_run(layout)
    assert caught.value.exit_code == 5


def test_a_spool_of_the_first_format_is_read(layout: Layout) -> None:
    layout.format.write_text("gpuspool 1\n")
    for folder in (layout.parents, layout.beats, layout.root / "events"):
        folder.rmdir()
    assert view_of(layout).ledger.tasks == load_run(layout).tasks
    assert FailureDetector(view_of(layout)).parents.there() == {}


def test_a_folder_without_a_format_and_a_run_is_no_spool(layout: Layout) -> None:
    layout.format.unlink()
    layout.run.unlink()
    with pytest.raises(UsageError, match="no FORMAT") as caught:
        load_run(layout)
    assert caught.value.exit_code == 2


def test_one_of_format_run_and_its_copy_may_be_damaged(layout: Layout) -> None:
    layout.run_copy.write_bytes(layout.run.read_bytes())
    run = load_run(layout)
    for path in (layout.format, layout.run, layout.run_copy):
        whole = path.read_bytes()
        for data in (bytes(len(whole)), b"", whole[:5], None):
            path.unlink()
            if data is not None:
                path.write_bytes(data)
            damage: list[Damage] = []
            assert load_run(layout, damage.append) == run
            assert [found.path for found in damage] == [str(path)] * (path != layout.run_copy)
        path.write_bytes(whole)


def test_what_does_not_exist_or_is_a_file_is_no_spool(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, says in (
        ("nowhere", "does not exist"),
        ("file", "it is no folder"),
        ("file/below", "does not exist"),
    ):
        with pytest.raises(UsageError, match=says):
            load_run(Layout(tmp_path / name))


def test_a_run_cut_at_any_byte_is_refused_or_whole(layout: Layout) -> None:
    data = layout.run.read_bytes()
    run = load_run(layout)
    assert run.job == some_run(10, 2).job
    for cut in cuts(data):
        layout.run.write_bytes(cut)
        if cut == data:
            assert load_run(layout) == run
            continue
        with pytest.raises(SpoolError, match=r"run\.json"):
            load_run(layout)
    layout.run.unlink()
    with pytest.raises(SpoolError, match="missing"):
        load_run(layout)


@pytest.mark.parametrize("name", [".", "run.json", "job", "job/job.py"])
def test_what_everybody_may_write_is_refused(layout: Layout, name: str) -> None:
    (layout.root / "job" / "job.py").write_text("def work(task, ctx): ...\n")
    path = layout.root / name
    before = path.stat().st_mode
    refuse_unsafe(layout, Trust(), {})
    path.chmod(before | 0o020)
    refuse_unsafe(layout, Trust(), {})
    path.chmod(before | 0o002)
    with pytest.raises(UsageError, match="written by everybody") as caught:
        refuse_unsafe(layout, Trust(), {})
    assert str(path) in str(caught.value)


# What is not ours, inside a spool.

# Names that do not parse: they belong to somebody else.
FOREIGN = [
    "notes.txt",
    "rank-0000",
    "rank-0000.a00.jsonl~",
    "rank-0000.a09.json.tmp",
    "core.1234",
    "٣.jsonl",
]
# Hidden names, as a crash leaves them.
STALE = [
    ".nfs00000000012",
    ".rank-0000.a00.jsonl.17.3.abcd",
    ".rank-0000.a07.json.1.2.ef",
    ".000000003.1.2.a",
]


def test_foreign_names_everywhere_change_nothing(layout: Layout) -> None:
    populate(layout)
    before = snapshot(view_of(layout))
    folders = [
        layout.root,
        *map(layout.subdir, SUBDIRS),
        layout.claims("rank-0000"),
        layout.claims("rank-0001"),
    ]
    for folder in folders:
        for name in FOREIGN:
            if not (folder / name).exists():
                (folder / name).write_bytes(b"\0 what?\n")
        for name in STALE:
            (folder / name).write_bytes(b'{"attempt":')
        (folder / "a folder").mkdir()
        (folder / "dangling").symlink_to("/nowhere")
    assert snapshot(view_of(layout)) == before
    assert verdicts(view_of(layout)) == "cc----f---"


def test_hidden_files_that_look_like_ours_are_not_read(layout: Layout) -> None:
    """Their publisher was killed after it had written all of the file, and before its link."""
    populate(layout)
    before = snapshot(view_of(layout))
    for path in [p for p in layout.root.rglob("*") if p.is_file() and not p.name.startswith(".")]:
        (path.parent / f".{path.name}.4711.0.0123abcd").write_bytes(path.read_bytes())
    (layout.manifests / ".sweep-01.jsonl.4711.0.0123abcd").write_bytes(
        layout.manifest("rank-0000").read_bytes()
    )
    assert len(hidden_files(layout.root)) > 10
    assert snapshot(view_of(layout)) == before


FOLDERS: dict[str, Callable[[Layout], Path]] = {
    "a manifest": lambda layout: layout.manifest("sweep-01"),
    "orphans": lambda layout: layout.orphans(A1),
    "an intent": lambda layout: layout.intent(A1),
    "a journal": lambda layout: layout.journal(A1),
    "a heartbeat": lambda layout: layout.heartbeat(A1),
    "a claim": lambda layout: layout.claim("rank-0000", 3),
}


@pytest.mark.parametrize("what", FOLDERS)
def test_a_folder_in_the_place_of_a_file_costs_that_file_alone(layout: Layout, what: str) -> None:
    populate(layout)
    path = FOLDERS[what](layout)
    path.mkdir()
    view = view_of(layout)
    assert verdicts(view) == "cc----f---"
    assert A0 in view.open_attempts
    assert view.identity(A1) is None


# Damage.


def test_an_intent_that_is_cut_or_has_a_bit_flipped_is_damaged(layout: Layout) -> None:
    """If it were believed, the run might go on with another job."""
    intent = intend(layout, A0, epoch=3)
    path = layout.intent(A0)
    data = path.read_bytes()
    assert (view_of(layout).intents[A0], view_of(layout).damage) == (intent, [])
    for damaged in [*cuts(data), *(flipped for _, flipped in islice(flips(data), 0, None, 41))]:
        path.write_bytes(damaged)
        view = view_of(layout)
        assert view.intents[A0] is None
        assert [damage.path for damage in view.damage] == [str(path)]
        assert view.attempts == [A0]
        assert view.next_number(0) == 1


def test_a_heartbeat_cut_at_any_byte_is_none_or_whole(layout: Layout) -> None:
    record = beat(layout, A0, 42)
    view, path = view_of(layout), layout.heartbeat(A0)
    data = path.read_bytes()
    assert view.heartbeat(A0) == record
    for cut in cuts(data):
        path.write_bytes(cut)
        assert view.heartbeat(A0) == (record if cut.strip() == data.strip() else None)
    path.unlink()
    assert view.heartbeat(A0) is None


def test_a_status_record_cut_at_any_byte_changes_no_verdict(layout: Layout) -> None:
    """It is a copy: the orphans manifest is what closes an attempt."""
    populate(layout)
    before = snapshot(view_of(layout))
    path = layout.status("failed", B0)
    data = path.read_bytes()
    closing = decode(data, Closing)
    assert view_of(layout).closed[B0] == closing
    for cut in cuts(data):
        path.write_bytes(cut)
        assert snapshot(view_of(layout)) == before


def test_each_damage_is_told_once_however_often_one_looks(layout: Layout) -> None:
    writer = begin(layout, A0)
    finish(writer, 0, 1)
    path = layout.journal(A0)
    data = path.read_bytes()
    at = data.index(b'{"task":0')
    path.write_bytes(data[:at] + b"\0" + data[at + 1 :])
    layout.intent(A1).write_bytes(b"")
    view = view_of(layout).refresh().refresh()
    assert verdicts(view) == "-c--------"
    assert {(damage.path, damage.offset) for damage in view.damage} == {
        (str(path), at),
        (str(layout.intent(A1)), 0),
    }
    assert len(view.damage) == 2


@pytest.mark.parametrize("start", [0, 2, 4])
def test_an_unreadable_claim_is_told_with_its_file(layout: Layout, start: int) -> None:
    for stop in (2, 4, 6):
        take(layout, A0, stop)
    write_claim(layout, "rank-0000", start, b"")
    view = view_of(layout).refresh()
    assert [(damage.path, damage.offset) for damage in view.damage] == [
        (str(layout.claim("rank-0000", start)), 0)
    ]


def test_a_retry_of_another_runs_task_is_told_and_counts_for_nothing(layout: Layout) -> None:
    populate(layout)
    assert publish_manifest(layout, "retry-01", [task(99, round=1), task(6, round=1)])
    view = view_of(layout)
    assert verdicts(view) == "cc--------"
    assert view.ledger.n_failed == 0
    assert [str(damage) for damage in view.damage] == [
        f"{layout.manifest('retry-01')}, byte 0: task 99 is none of this run's"
    ]


def test_a_line_of_another_runs_task_is_told_and_counts_for_nothing(layout: Layout) -> None:
    writer = begin(layout, A0)
    offsets = []
    for index in (10, -1, 3, 10**12):
        offsets.append(layout.journal(A0).stat().st_size)
        finish(writer, index)
    lost = TaskFailure(task=99, error=Error(kind="lost", type="WorkerLost", message=""))
    assert publish_orphans(
        layout, Closing(attempt=B0, state="failed", reason="crash", by="p", failures=[lost]), []
    )
    view = view_of(layout)
    assert verdicts(view) == "---c------"
    assert {(damage.path, damage.offset) for damage in view.damage} == {
        (str(layout.orphans(B0)), 0),
        *((str(layout.journal(A0)), offsets[i]) for i in (0, 1, 3)),
    }
    assert "task 10 is none of this run's" in " ".join(map(str, view.damage))


def test_a_torn_tail_is_damage_only_once_its_attempt_is_closed(layout: Layout) -> None:
    writer = begin(layout, A0)
    take(layout, A0, 2)
    finish(writer, 0, 1)
    path = layout.journal(A0)
    path.write_bytes(path.read_bytes()[:-7])
    view = view_of(layout)
    assert (verdicts(view), view.damage) == ("c---------", [])
    close(view, A0)
    assert [damage.reason[:9] for damage in view.damage] == ["torn line"]
    assert [damage.reason[:9] for damage in view_of(layout).damage] == ["torn line"]


def test_a_planned_manifest_that_is_gone_is_missing(layout: Layout) -> None:
    assert view_of(layout).missing_manifests() == []
    layout.manifest("rank-0001").unlink()
    assert view_of(layout).missing_manifests() == ["rank-0001"]


def test_planned_manifests_that_come_back_describe_their_tasks_again(tmp_path: Path) -> None:
    """As when a network file system lists an empty folder once."""
    layout = make_spool(tmp_path / "t", 3, 2)
    planned = [layout.manifest(rank_name(rank)) for rank in range(2)]
    checksums = [zlib.crc32(path.read_bytes()) for path in planned]
    run = msgspec.structs.replace(some_run(5, 2), manifests_crc32=checksums)
    replace(layout.run, seal_pretty(run))
    layout.manifests.rename(tmp_path / "aside")
    layout.manifests.mkdir()
    view = view_of(layout)
    assert verdicts(view) == "fffff"
    layout.manifests.rmdir()
    (tmp_path / "aside").rename(layout.manifests)
    assert verdicts(view.refresh()) == verdicts(view.refresh()) == "-----"
    assert not view.ledger.is_finished


def test_a_planned_manifest_that_is_not_listed_is_found_by_its_name(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The listing of a network file system may be older than the run."""
    listed = view_module.listdir

    def stale(path: Path) -> list[str]:
        return [] if path == layout.manifests else listed(path)

    monkeypatch.setattr(view_module, "listdir", stale)
    view = view_of(layout)
    assert (verdicts(view), view.unclaimed) == ("-" * 10, 10)
    assert view.missing_manifests() == []


# What is new.


def test_a_second_reading_reads_only_what_is_new(layout: Layout) -> None:
    """If what was read before were looked at again, its bytes, now wrong, would be reported."""
    writer = begin(layout, A0)
    finish(writer, 0, 1)
    view = view_of(layout)
    for path in (layout.journal(A0), layout.manifest("rank-0000")):
        with open(path, "r+b") as file:
            file.write(b"\0" * path.stat().st_size)
    finish(writer, 2)
    view.refresh()
    assert verdicts(view) == "ccc-------"
    assert view.damage == []
    assert view.finished_by == {A0: 3}
    assert indices(view.manifests["rank-0000"].tasks()) == list(range(6))


def test_a_view_kept_up_to_date_tells_what_a_new_one_does_after_each_step(layout: Layout) -> None:
    kept = view_of(layout)
    opened = {number: begin(layout, attempt) for number, attempt in enumerate((A0, B0))}
    steps: list[Callable[[], object]] = [
        lambda: intend(layout, A1, epoch=0),
        lambda: begin(layout, A1),
        lambda: take(layout, A1, 3),
        lambda: take(layout, B0, 4),
        lambda: take(layout, A1, 5),
        lambda: finish(opened[1], 3, state="failed"),
        lambda: close(view_of(layout), A1),
        lambda: intend(layout, A0, epoch=1),
        lambda: take(layout, A0, 3, f"{A1}.orphans"),
        lambda: opened[0].append(JournalLine(task=0, round=0, state="started", batch=[1])),
        lambda: finish(opened[0], 0, 1),
        lambda: take(layout, B0, 2, "rank-0001"),
        lambda: finish(opened[1], 6, state="failed"),
        lambda: publish_manifest(layout, "retry-01", [task(6, round=1)]),
        lambda: take(layout, A0, 1, "retry-01"),
        lambda: publish_manifest(layout, "sweep-01", [task(7), task(8), task(9)]),
        lambda: write_claim(layout, "sweep-01", 0, b"?"),
        lambda: write_claim(layout, "sweep-01", 2, Claim(attempt=B0, start=2, stop=3, at=1.0)),
        lambda: close(view_of(layout), B0),
        lambda: publish(layout.drain(7), b""),
        lambda: close(view_of(layout), A0),
    ]
    for number, step in enumerate(steps):
        step()
        assert snapshot(kept.refresh()) == snapshot(view_of(layout)), f"step {number}"
    assert verdicts(kept) == "cc-f------"
    assert kept.open_attempts == []
    assert kept.next_epoch() == 8


def test_what_a_view_told_stays_as_it_was_until_the_next_refresh(layout: Layout) -> None:
    populate(layout)
    view = view_of(layout)
    before = snapshot(view)
    intend(layout, A1)
    begin(layout, A1)
    take(layout, A1, 5)
    close(view_of(layout), A0)
    assert {**snapshot(view), "next_epoch": None} == {**before, "next_epoch": None}
    view.refresh()
    assert view.open_attempts == [A1]
    assert view.claims_by[A1] == [Claimed("rank-0000", 3, 5, 0)]


def test_questions_change_neither_the_view_nor_the_spool(layout: Layout) -> None:
    """On a spool with an unreadable task, an unreadable claim and stranded tasks."""
    path = layout.manifest("rank-0000")
    path.write_bytes(path.read_bytes().replace(b'"t4"', b'"t?"'))
    populate(layout)
    take(layout, A0, 5)
    write_claim(layout, "rank-0000", 5, b"")
    view = view_of(layout)
    before = snapshot(view)
    ledger = copy.deepcopy(vars(view.ledger))
    files = tree(layout.root)
    for _ in range(2):
        assert indices(stranded_tasks(view)) == [5]
        assert indices(orphans_of(view, A0)) == [2, 3]
        assert sorted(view.ledger.failed()) == [4, 6]
        assert list(view.ledger.unfinished()) == [2, 3, 5, 7, 8, 9]
        assert run_state(view.ledger, True) == "running"
        assert FailureDetector(view).life(A0) is Life.ALIVE
        assert scene_of(view, B0).attempt == B0
        assert view.missing_manifests() == []
        assert indices(view.manifests["rank-0000"].tasks()) == [0, 1, 2, 3, 5]
        assert view.latest_job() == some_run(10, 2).job
    assert snapshot(view) == before
    assert vars(view.ledger) == ledger
    assert tree(layout.root) == files


# What need not be read.


def test_a_view_without_claims_opens_nothing_below_their_folder(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    populate(layout)
    expected = snapshot(view_of(layout))
    opened = watch_opens(monkeypatch)
    view = open_view(layout.root, reads_claims=False).refresh()
    below = f"{layout.root}/claims"
    assert [path for path in opened if path.startswith(below)] == []
    assert str(layout.journal(A0)) in opened
    assert verdicts(view) == expected["verdicts"]
    assert view.open_attempts == expected["open_attempts"]
    open_view(layout.root)
    assert [path for path in opened if path.startswith(below)], "one with claims opens some"


def test_a_view_without_claims_refuses_questions_about_them(layout: Layout) -> None:
    populate(layout)
    view = open_view(layout.root, reads_claims=False)
    questions: list[Callable[[], object]] = [
        lambda: view.unclaimed,
        lambda: view.claims_by,
        lambda: view.chains,
        lambda: list(view.claimed_by(A0)),
        lambda: stranded_tasks(view),
    ]
    for ask in questions:
        with pytest.raises(AssertionError, match="reads no claims"):
            ask()


def opens_of_a_refresh(layout: Layout, view: View, opened: list[str]) -> int:
    """How often a refresh opens the journal of A0."""
    opened.clear()
    view.refresh()
    return opened.count(str(layout.journal(A0)))


def test_the_journal_of_an_attempt_closed_elsewhere_is_opened_ever_more_seldom(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a line that comes an hour later counts for those who look on as for those who come."""
    elsewhere = msgspec.structs.replace(dead_process(), host="another")
    zombie = start_journal(layout, A0, elsewhere)
    assert zombie is not None
    close(view_of(layout), A0)
    opened = watch_opens(monkeypatch)
    view = view_of(layout)
    assert [opens_of_a_refresh(layout, view, opened) for _ in range(3)] == [1, 1, 1]
    view._closed_at[A0] -= 3600
    assert [opens_of_a_refresh(layout, view, opened) for _ in range(3)] == [1, 0, 0]
    finish(zombie, 1)
    assert opens_of_a_refresh(layout, view, opened) == 0
    assert verdicts(view.read_late_lines()) == verdicts(view_of(layout))
    assert view.ledger.complete[1]


def test_the_journal_of_an_attempt_that_closed_itself_is_opened_once(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = msgspec.structs.replace(dead_process(), host="another")
    assert start_journal(layout, A0, elsewhere) is not None
    own_word = Closing(attempt=A0, state="complete", reason="finished", by=A0)
    assert publish_orphans(layout, own_word, [])
    opened = watch_opens(monkeypatch)
    view = view_of(layout)
    assert opened.count(str(layout.journal(A0))) == 1
    assert opens_of_a_refresh(layout, view, opened) == 0


def test_the_journal_of_a_closed_attempt_that_is_proved_dead_here_is_soon_not_opened(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first reading shows whose it is, so the second one is the last."""
    assert start_journal(layout, A0, dead_process()) is not None
    close(view_of(layout), A0)
    opened = watch_opens(monkeypatch)
    view = view_of(layout)
    assert [opens_of_a_refresh(layout, view, opened) for _ in range(3)] == [1, 0, 0]


# What stands in a journal, and who claimed what.


def test_a_started_line_tells_what_was_in_hand_and_counts_for_nothing(layout: Layout) -> None:
    writer = begin(layout, A0)
    finish(writer, 0)
    writer.append(JournalLine(task=3, round=1, state="started", start=1700000000.5))
    view = view_of(layout)
    assert view.started == {A0: Started((3,), 1, 1, 1700000000.5)}
    assert view.finished_by == {A0: 1}
    assert verdicts(view) == "c---------"


def test_failures_are_counted_for_each_attempt(layout: Layout) -> None:
    populate(layout)
    view = view_of(layout)
    assert (view.finished_by, view.failed_by) == ({A0: 2, B0: 1}, {B0: 1})


def test_what_an_attempt_claimed_is_told_over_all_manifests(layout: Layout) -> None:
    take(layout, A0, 2)
    take(layout, B0, 4)
    take(layout, A0, 5)
    take(layout, A0, 1, "rank-0001")
    view = view_of(layout)
    assert indices(view.claimed_by(A0)) == [0, 1, 4, 6]
    assert indices(view.claimed_by(B0)) == [2, 3]
    assert view.unclaimed == 1 + 3


def test_who_an_attempt_is_stands_in_its_journal_else_in_its_heartbeat(layout: Layout) -> None:
    view = view_of(layout)
    assert view.identity(A0) is None
    for attempt in (A0, B0):
        intend(layout, attempt)
    beat(layout, A0, 1)
    layout.journal(A0).touch()
    found = view.refresh().identity(A0)
    assert found is not None
    assert (found.pid, found.pid_start) == (os.getpid(), myself().pid_start)
    begin(layout, B0)
    found = view.refresh().identity(B0)
    assert found is not None
    assert found.pid == os.getpid()


def test_journals_are_listed_only_where_an_attempt_has_none_that_was_seen(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    intend(layout, A0)
    view = view_of(layout)
    opened = watch_opens(monkeypatch)

    def is_listed() -> bool:
        opened.clear()
        view.refresh()
        return str(layout.journals) in opened

    assert is_listed()
    begin(layout, A0)
    assert is_listed()
    assert view.journals.keys() == {A0}
    assert not is_listed()
    intend(layout, B0)
    begin(layout, B0)
    assert is_listed()
    assert view.journals.keys() == {A0, B0}
    assert not is_listed()


def test_a_line_of_an_attempt_that_was_closed_alive_still_counts(layout: Layout) -> None:
    """A worker that was silent for longer than its lease may finish the task in hand before it
    notices that it was closed.
    """
    writer = begin(layout, A0)
    take(layout, A0, 2)
    view = view_of(layout)
    close(view, A0, by="somebody far away")
    assert verdicts(view.refresh()) == "----------"
    finish(writer, 0)
    assert verdicts(view.refresh()) == "c---------"
    assert verdicts(view_of(layout)) == "c---------"
    assert view.damage == []


# Numbers.


def test_the_next_epoch_counts_attempts_and_the_words_of_control(layout: Layout) -> None:
    view = view_of(layout)
    assert (view.next_epoch(), read_control(layout)) == (0, Control())
    intend(layout, A0, epoch=2)
    assert view.refresh().next_epoch() == 3
    publish(layout.drain(1), b"")
    assert view.refresh().next_epoch() == 3
    publish(layout.drain(5), b"")
    assert (view.refresh().next_epoch(), read_control(layout).drain) == (6, 5)
    layout.intent(A1).write_bytes(b"?")
    assert view.refresh().next_epoch() == 6
    publish(layout.finished(6), b"")
    assert (view.next_epoch(), read_control(layout)) == (7, Control(frozenset({1, 5}), finished=6))
    publish(layout.leave(7), b"")
    assert (view.next_epoch(), read_control(layout).leave) == (8, {7})
    publish(layout.parent(9), b"")
    assert view.next_epoch() == 10


def test_the_next_attempt_of_a_rank_counts_whatever_left_a_trace(layout: Layout) -> None:
    assert view_of(layout).next_number(0) == 0
    intend(layout, A0)
    assert view_of(layout).next_number(0) == 1
    assert publish_orphans(
        layout, Closing(attempt="rank-0000.a07", state="failed", reason="lost", by="me"), []
    )
    view = view_of(layout)
    assert (view.next_number(0), view.next_number(1)) == (8, 0)
    assert view.attempts == [A0, "rank-0000.a07"]


def test_attempts_are_told_in_order_of_rank_and_number(layout: Layout) -> None:
    names = ["rank-10000.a00", "rank-0002.a100", "rank-0002.a99", "rank-0002.a00", B0, A1]
    for name in names:
        intend(layout, name)
    assert view_of(layout).attempts == names[::-1]


def test_retries_and_sweeps_are_numbered_apart(layout: Layout) -> None:
    assert publish_manifest(layout, "retry-03", [task(1, round=3)])
    assert publish_manifest(layout, "sweep-99", [task(2)])
    view = view_of(layout)
    assert (view.next_numbered("retry"), view.next_numbered("sweep")) == ("retry-04", "sweep-100")
    assert view.ledger.round_of(1) == 3


def test_the_newest_epoch_says_what_job_runs(layout: Layout) -> None:
    assert view_of(layout).latest_job() == some_run(10, 2).job
    for name, epoch, sha in ((A0, 2, "new"), (A1, 1, "old")):
        intent = intend(layout, name, epoch=epoch)
        job = msgspec.structs.replace(intent.job, sha256=sha)
        layout.intent(name).write_bytes(seal_pretty(msgspec.structs.replace(intent, job=job)))
    assert isinstance(view_of(layout).intents[A0], Intent)
    assert view_of(layout).latest_job().sha256 == "new"


class Heard:
    """A listener that keeps what it hears of calls without a verdict."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, float, float]] = []
        self.splits = 0

    def take(self, attempt: str, at: int, task: int, start: float, seconds: float) -> int:
        return 0

    def put_off(self, attempt: str, tasks: int, start: float, seconds: float) -> None:
        self.calls.append((attempt, tasks, start, seconds))

    def rest(self, attempt: str) -> None:
        pass

    def failed(self, attempt: str, at: int, error: msgspec.Raw) -> None:
        pass

    def split(self, attempt: str, at: int) -> None:
        self.splits += 1


def test_a_listener_hears_of_calls_without_a_verdict(layout: Layout) -> None:
    writer = begin(layout, A0)
    deferred = JournalLine(task=3, round=0, state="deferred")
    # Earlier versions did not say when it was.
    writer.append(deferred)
    writer.append(msgspec.structs.replace(deferred, start=10.0, seconds=2.5))
    writer.append(msgspec.structs.replace(deferred, start=20.0, seconds=1.5, batch=[4, 5]))
    view = View(layout, load_run(layout))
    view.listener = heard = Heard()
    view.refresh()
    assert heard.calls == [(A0, 1, 10.0, 2.5), (A0, 3, 20.0, 1.5)]
    assert heard.splits == 1
    assert verdicts(view) == "----------"
