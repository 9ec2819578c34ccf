"""Records and seals: bytes give the record that was written or Damaged, never another record."""

import json
import zlib
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spooling import A0, JOB, cuts, flips, some_run, task

from gpuspool.spool.codec import (
    SEALED_AT_ONCE,
    check_seal,
    decode,
    encode,
    pretty,
    seal,
    seal_bodies,
    seal_lines,
    unseal,
    unseal_lines,
)
from gpuspool.spool.errors import Damaged
from gpuspool.spool.identity import myself
from gpuspool.spool.records import (
    Claim,
    Closing,
    DrainOrder,
    Error,
    Heartbeat,
    Identity,
    Intent,
    JournalBrief,
    JournalHead,
    JournalLine,
    Options,
    Parent,
    ParentEnd,
    Place,
    Record,
    Scheduler,
    Stats,
    TaskFailure,
    TaskLine,
    Usage,
)

WHO = Identity(
    host="node-7", boot_id="b7c1", pid_ns="pid:[4026531836]", pid=4711, pid_start=123456789
)
FIELDS = msgspec.structs.asdict(WHO)
FAILURE = Error(
    kind="exception", type="ValueError", message='a "b"\n\u2028 ä', traceback="Traceback …", tries=2
)
SEALED: list[Record] = [
    task(
        17,
        key="cat/ä 1.jpg",
        payload=msgspec.Raw(b'{"path": "/data/1"}'),
        round=1,
        failed_in=(("rank-0001.a00", "GPU-a"),),
        careful=True,
    ),
    JournalHead(**FIELDS, attempt=A0),
    JournalLine(
        task=17,
        round=0,
        state="complete",
        start=1.5,
        seconds=0.012,
        result=msgspec.Raw(b'{"label": [1, 2]}'),
    ),
    JournalLine(
        task=3, round=1, state="failed", error=FAILURE, outputs=[("t3.npy", 4096)], log=(10, 20)
    ),
    JournalLine(task=0, round=0, state="started", start=1700000000.123),
    Closing(
        attempt=A0,
        state="failed",
        reason="crash",
        by="r",
        failures=[TaskFailure(task=3, key="t3", error=FAILURE, start=1700000000.5)],
        killed=4,
        killed_start=1700000001.5,
    ),
    Closing(
        attempt=A0,
        state="complete",
        reason="finished",
        by=A0,
        stats=Stats(done=3, ready=True, versions={"a": "1"}),
    ),
]
PLAIN: list[Record] = [
    Claim(attempt=A0, start=120, stop=136, at=1700000000.5),
    Heartbeat(
        **FIELDS,
        attempt=A0,
        beat=42,
        parent="1",
        device="0",
        state="running",
        at=1.5,
        task=17,
        key="cat/ä 1.jpg",
        in_hand=4,
        done=3,
    ),
    Usage(at=1.5, done=3, busy_s=2.5, idle_s={"load": 0.5}, rss=4096, cpu=0.5, gpu=37.0),
    Intent(
        attempt=A0,
        epoch=2,
        device="GPU-1",
        world_size=4,
        argv=["python"],
        parent=WHO,
        job=JOB,
        options=Options(time_limit_s=60.0),
        environment={"A": "b"},
        at=1.0,
    ),
    SEALED[-2],
    some_run(1000, 4),
    Parent(
        host="n1",
        boot_id="b",
        pid_ns="pid:[1]",
        pid=7,
        pid_start=9,
        machine="m",
        epoch=3,
        at=1.0,
        slots=[Place(device="0", uuids=("GPU-a",)), Place()],
        argv=["gpuspool", "join"],
        command="join",
        lease_s=120.0,
        scheduler=Scheduler(kind="slurm", job="12_3", restart=1, nodes=["n1"], step="0"),
        folder="1.2",
    ),
    ParentEnd(how="finished", exit_code=0, at=1.0, message="all"),
    DrainOrder(why="asked", by="n1 7", at=1.0),
]
sealed = pytest.mark.parametrize("record", SEALED, ids=lambda record: type(record).__name__)
plain = pytest.mark.parametrize("record", PLAIN, ids=lambda record: type(record).__name__)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text('crc:",}{\n\\', max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


@sealed
def test_a_sealed_line_tells_its_record(record: Record) -> None:
    line = seal(record)
    assert line.endswith(b'"}\n')
    assert line.count(b"\n") == 1
    assert unseal(line[:-1], type(record)) == record


@sealed
def test_the_seal_is_what_the_format_says(record: Record) -> None:
    body, _, tail = seal(record).rpartition(b',"crc":')
    assert tail == b'"%08x"}\n' % zlib.crc32(body)


@pytest.mark.parametrize("count", [0, 1, 2, SEALED_AT_ONCE - 1, SEALED_AT_ONCE, SEALED_AT_ONCE + 1])
def test_lines_sealed_together_are_those_sealed_one_by_one(count: int) -> None:
    tasks = [task(index, payload=msgspec.Raw(b'"%d"' % index**5)) for index in range(count)]
    assert seal_lines(tasks) == [seal(one) for one in tasks]
    data = b"".join(seal_lines(tasks))
    lines = unseal_lines(data, 0, TaskLine, lambda at, reason: pytest.fail(f"{at}: {reason}"))
    assert [one for _, one in lines] == tasks


@pytest.mark.parametrize("damaged", [[0], [8], [3, 4], list(range(9))])
def test_of_lines_checked_together_each_damaged_one_is_told_and_no_other_is_lost(
    damaged: list[int],
) -> None:
    tasks = [task(index) for index in range(9)]
    lines = seal_lines(tasks)
    starts = [1000 + sum(map(len, lines[:index])) for index in range(9)]
    for index in damaged:
        lines[index] = lines[index].replace(b'"cost":1', b'"cost":2')
    refused: list[int] = []
    found = unseal_lines(b"".join(lines), 1000, TaskLine, lambda at, reason: refused.append(at))
    whole = [index for index in range(9) if index not in damaged]
    assert list(found) == [(starts[index], tasks[index]) for index in whole]
    assert refused == [starts[index] for index in damaged]


def test_two_records_under_one_right_seal_are_no_record() -> None:
    """The decoder of many lines would take both of them."""
    two = encode(task(1)).removesuffix(b"\n") + encode(task(2)).removesuffix(b"}\n")
    lines = [*seal_bodies([two]), seal(task(3))]
    refused: list[int] = []
    found = unseal_lines(b"".join(lines), 0, TaskLine, lambda at, reason: refused.append(at))
    assert [one for _, one in found] == [task(3)]
    assert refused == [0]


@sealed
def test_a_sealed_line_cut_at_any_byte_is_damaged(record: Record) -> None:
    for cut in cuts(seal(record)[:-1]):
        with pytest.raises(Damaged):
            unseal(cut, type(record))


@sealed
def test_a_sealed_line_with_any_bit_flipped_is_damaged(record: Record) -> None:
    """The seal alone shows it: whatever has a right seal is decoded without another look."""
    for _, flipped in flips(seal(record)[:-1]):
        with pytest.raises(Damaged):
            check_seal(flipped)


@sealed
def test_a_sealed_line_with_a_byte_lost_is_damaged(record: Record) -> None:
    line = seal(record)[:-1]
    for at in range(len(line)):
        with pytest.raises(Damaged):
            unseal(line[:at] + line[at + 1 :], type(record))


@plain
@pytest.mark.parametrize("write", [encode, pretty])
def test_a_file_cut_at_any_byte_is_damaged_or_whole(record: Record, write: object) -> None:
    data = write(record)  # type: ignore[operator]
    assert decode(data, type(record)) == record
    for cut in cuts(data):
        try:
            assert decode(cut, type(record)) == record
            assert cut.strip() == data.strip()
        except Damaged:
            pass


@settings(max_examples=60, deadline=None)
@given(json_values, st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_any_payload_survives_a_seal(value: object, key: str) -> None:
    line = seal(task(1, key=key, payload=msgspec.Raw(json.dumps(value).encode())))
    found = unseal(line[:-1], type(task(1)))
    assert line.count(b"\n") == 1
    assert found.key == key
    assert json.loads(bytes(found.payload)) == value


def test_a_payload_that_holds_a_seal_is_not_taken_for_one() -> None:
    inner = seal(task(1))[:-1].decode()
    line = seal(task(2, payload=msgspec.Raw(json.dumps(inner).encode())))[:-1]
    assert unseal(line, type(task(2))).task == 2
    for cut in cuts(line):
        with pytest.raises(Damaged):
            unseal(cut, type(task(2)))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"null",
        b"{}",
        b"[1]",
        b"\0" * 64,
        b"\xff\xfe",
        b'{"attempt":7,"start":0,"stop":1,"at":1}',
    ],
)
def test_what_is_no_record_is_damaged(data: bytes) -> None:
    with pytest.raises(Damaged):
        decode(data, Claim)
    with pytest.raises(Damaged):
        unseal(data, Claim)


@pytest.mark.parametrize("crc", [b"xxxxxxxx", b"0x000000", b"        ", b"00000000", b"FFFFFFFF"])
def test_a_checksum_is_eight_digits_and_the_right_ones(crc: bytes) -> None:
    line = seal(SEALED[2])[:-1]
    with pytest.raises(Damaged, match="checksum"):
        unseal(line[:-10] + crc + line[-2:], JournalLine)


def test_the_error_of_damaged_bytes_says_why() -> None:
    with pytest.raises(Damaged, match="checksum"):
        unseal(b'{"task":1}', JournalBrief)
    with pytest.raises(Damaged, match="stop"):
        decode(b'{"attempt":"rank-0000.a00","start":0,"at":1}', Claim)


def test_fields_of_a_later_version_are_ignored() -> None:
    data = b'{"attempt":"rank-0000.a00","start":0,"stop":4,"at":1.5,"since_version_9":[{"a":null}]}'
    assert decode(data, Claim) == Claim(attempt=A0, start=0, stop=4, at=1.5)


IDENTITY = '"host":"n","boot_id":"b","pid_ns":"p","pid":1,"pid_start":2'
# What earlier versions wrote, and what the fields say then that these did not know.
EARLIER = [
    (
        f'{{{IDENTITY},"attempt":"{A0}","beat":1,"parent":"1","device":"","state":"running",'
        '"at":1.5,"task":17,"task_since":1.0}',
        Heartbeat,
        {"task": 17, "key": "", "in_hand": 0},
    ),
    ('{"task":3,"round":0,"state":"deferred"}', JournalLine, {"start": 0.0, "seconds": 0.0}),
    (
        '{"task":3,"error":{"kind":"lost","type":"WorkerLost","message":"m"}}',
        TaskFailure,
        {"start": 0.0},
    ),
    (
        f'{{"attempt":"{A0}","state":"failed","reason":"crash","by":"parent","killed":4}}',
        Closing,
        {"killed": 4, "killed_start": 0.0},
    ),
    ('{"at":1.5}', Usage, {"done": 0, "idle_s": {}, "gpu": None, "gpu_mem": None, "cpu": 0.0}),
]


@pytest.mark.parametrize("later", ["", ',"since_version_9":[{"a":null}]'])
@pytest.mark.parametrize(("text", "kind", "says"), EARLIER, ids=lambda value: "")
def test_records_of_other_versions_are_read(
    text: str, kind: type[Record], says: dict[str, Any], later: str
) -> None:
    found = decode(f"{text[:-1]}{later}}}".encode(), kind)
    assert {name: getattr(found, name) for name in says} == says


def test_fields_that_hold_their_default_are_not_written() -> None:
    assert json.loads(encode(task(3))) == {"task": 3, "key": "t3", "payload": 3, "cost": 1.0}
    assert json.loads(encode(JournalLine(task=3, round=0, state="complete"))) == {
        "task": 3,
        "round": 0,
        "state": "complete",
    }


def test_the_accounting_reads_a_line_without_its_result() -> None:
    for record in SEALED[2:5]:
        brief = unseal(seal(record)[:-1], JournalBrief)
        assert isinstance(record, JournalLine)
        assert (brief.task, brief.round, brief.state) == (record.task, record.round, record.state)


def test_an_identity_is_read_from_a_journal_head_and_from_a_heartbeat() -> None:
    mine = myself()
    head = JournalHead(**msgspec.structs.asdict(mine), attempt=A0)
    assert unseal(seal(head)[:-1], Identity) == mine
