"""examples/huge_fasta: ids and rows stay together, whatever is killed, resumed or oddly written."""

from __future__ import annotations

import gzip
import json
import random
import shutil
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import Box, Done, assert_sound, journal_lines, names, tree, wait_until

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "huge_fasta"
sys.path.append(str(EXAMPLE))

import embed  # noqa: E402
import fasta  # noqa: E402
import index  # noqa: E402
import merge  # noqa: E402

CPU = ("--devices", "cpu", "--ranks")
PYTHON = (sys.executable,)

# Each case: the file, and its records as (id, sequence).
ODD: dict[str, tuple[bytes, list[tuple[bytes, bytes]]]] = {
    "CRLF": (b">a x\r\nAC\r\nGT\r\n>b\r\nTT\r\n", [(b"a", b"ACGT"), (b"b", b"TT")]),
    "blank lines": (b"\n\r\n>a\n\nAC\n\n\nGT\n\n>b\n\n\n", [(b"a", b"ACGT"), (b"b", b"")]),
    "duplicate ids": (b">a\nA\n>a\nC\n>a\nA\n", [(b"a", b"A"), (b"a", b"C"), (b"a", b"A")]),
    "empty records": (
        b">a\n>b\n>c\nA\n>d\n",
        [(b"a", b""), (b"b", b""), (b"c", b"A"), (b"d", b"")],
    ),
    "no last line feed": (b">a\nAC\n>b\nGT", [(b"a", b"AC"), (b"b", b"GT")]),
    "a header alone at the end": (b">a\nAC\n>b", [(b"a", b"AC"), (b"b", b"")]),
    "lower case": (b">a\nacGT\n>A\nnnn\n", [(b"a", b"acGT"), (b"A", b"nnn")]),
    "white space in lines": (b">a\n AC GT\t\n", [(b"a", b"ACGT")]),
    "tab behind the id": (b">a b\tc\nA\n>d\te f\nC\n", [(b"a", b"A"), (b"d", b"C")]),
    "no id": (b">\nA\n> b\nC\n", [(b"", b"A"), (b"", b"C")]),
    "odd ids": (
        ">é|'\"*%2F\\n\u2028>,;\x0b\x1c{}\nA\n".encode() + b">\xff\xfe\nC\n>../x\nG\n",
        [("é|'\"*%2F\\n\u2028>,;\x0b\x1c{}".encode(), b"A"), (b"\xff\xfe", b"C"), (b"../x", b"G")],
    ),
    "protein": (b">p\nMKV*\n-W.X\n", [(b"p", b"MKV*-W.X")]),
}
BLOCK_SIZES = (1, 2, 5, 64)
REFUSED: dict[str, tuple[bytes, str]] = {
    "plain gzip": (gzip.compress(b">a\nAC\n"), "Recompress it: gzip -dc"),
    "text before the first header": (b"\nLOCUS X\n>a\nAC\n", "offset 1: b'LOCUS X"),
    "a byte order mark": (b"\xef\xbb\xbf>a\nAC\n", "where a header (>) should be"),
    "NUL bytes": (b">a\nA\0C\n", "NUL bytes"),
    "line ends of an old Mac": (b">a\rAC\r>b\rGT\r", "carriage return inside a header"),
    "an endless header": (b">" + b"x" * fasta.HEADER + b"\nA\n", "a header of more than"),
    "an empty file": (b"", "has no record"),
    "blank lines alone": (b"\n\n", "has no record"),
}


def bgzip(text: bytes, size: int) -> bytes:
    """The bytes that htslib's bgzip writes, in blocks so small that lines cross them."""
    out = b""
    for block in [*(text[at : at + size] for at in range(0, len(text), size)), b""]:
        packer = zlib.compressobj(wbits=-15)
        packed = packer.compress(block) + packer.flush()
        head = (
            fasta.BGZIP
            + bytes(5)
            + b"\xff"
            + fasta.BGZIP_EXTRA
            + (len(packed) + 25).to_bytes(2, "little")
        )
        out += (
            head
            + packed
            + zlib.crc32(block).to_bytes(4, "little")
            + len(block).to_bytes(4, "little")
        )
    return out


def make_records(count: int, seed: int = 1) -> list[tuple[bytes, bytes]]:
    """(id, sequence) of 0 to 300 residues; some ids twice, some sequences empty."""
    chance = random.Random(seed)
    letters = b"ACGTNacgt"
    return [
        (
            b"r%d" % (number // 2 * 2 if number % 7 == 0 else number),
            bytes(chance.choices(letters, k=length)),
        )
        for number, length in (
            (number, max(0, chance.randrange(-10, 301))) for number in range(count)
        )
    ]


def as_fasta(records: list[tuple[bytes, bytes]]) -> bytes:
    return b"".join(b">%b some text\n%b\n" % record for record in records)


def written(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def pairs(records: Iterator[fasta.Record] | list[fasta.Record]) -> list[tuple[bytes, bytes]]:
    return [(record.id, record.sequence) for record in records]


def payloads(path: str, residues: int) -> list[dict[str, Any]]:
    return [task["payload"] for task in index.make_tasks(path, residues)]


# The index and the reader


@pytest.mark.parametrize("case", ODD)
def test_odd_records_are_read_as_they_are(tmp_path: Path, case: str) -> None:
    text, expected = ODD[case]
    path = written(tmp_path / "odd.fasta", text)
    assert pairs(fasta.scan(path)) == expected
    assert [pairs(fasta.read_range(**payload)) for payload in payloads(path, 0)] == grouped(
        expected
    )


@pytest.mark.parametrize("size", BLOCK_SIZES)
@pytest.mark.parametrize("case", ODD)
def test_bgzip_reads_as_plain_text_does_wherever_blocks_end(
    tmp_path: Path, case: str, size: int
) -> None:
    text, expected = ODD[case]
    path = written(tmp_path / "odd.fasta.gz", bgzip(text, size))
    assert pairs(fasta.scan(path)) == expected
    assert [pairs(fasta.read_range(**payload)) for payload in payloads(path, 0)] == grouped(
        expected
    )
    plain = payloads(written(tmp_path / "odd.fasta", text), 0)
    assert [payload["crc"] for payload in payloads(path, 0)] == [
        payload["crc"] for payload in plain
    ]


def grouped(records: list[tuple[bytes, bytes]]) -> list[list[tuple[bytes, bytes]]]:
    """Ranges of no residues: each record with residues is alone, empty ones are together."""
    runs: list[list[tuple[bytes, bytes]]] = []
    for record in records:
        if runs and not record[1] and not any(sequence for _, sequence in runs[-1]):
            runs[-1].append(record)
        else:
            runs.append([record])
    return runs


@pytest.mark.parametrize("residues", [0, 100, 1000, 10**9])
def test_ranges_are_consecutive_whole_and_of_the_size_asked_for(
    tmp_path: Path, residues: int
) -> None:
    records = make_records(120)
    path = written(tmp_path / "a.fasta", as_fasta(records))
    tasks = list(index.make_tasks(path, residues))
    assert [task["key"] for task in tasks] == [f"{number:08d}" for number in range(len(tasks))]
    assert [
        pair for task in tasks for pair in pairs(fasta.read_range(**task["payload"]))
    ] == records
    firsts = [task["payload"]["first"] for task in tasks]
    counts = [task["payload"]["records"] for task in tasks]
    assert firsts == [sum(counts[:number]) for number in range(len(tasks))]
    assert [task["payload"]["last"] for task in tasks] == [False] * (len(tasks) - 1) + [True]
    for task in tasks:
        sizes = [record.residues for record in fasta.read_range(**task["payload"])]
        assert task["cost"] == sum(sizes)
        assert task["cost"] <= residues or sum(size > 0 for size in sizes) == 1, (
            "only a long record is over the size"
        )


def test_a_long_record_is_alone_and_empty_records_make_no_endless_range(tmp_path: Path) -> None:
    text = b">a\nA\n>long\n" + b"C" * 500 + b"\n>b\nA\n" + b">e\n" * (index.RECORDS + 5)
    found = payloads(written(tmp_path / "a.fasta", text), 100)
    assert [payload["records"] for payload in found] == [1, 1, index.RECORDS, 6]


def test_the_index_of_one_endless_line_takes_little_memory(tmp_path: Path) -> None:
    size = 16 * 1024 * 1024
    plain = written(tmp_path / "a.fasta", b">a\n" + b"A" * size + b"\n>b\nC\n")
    packed = written(tmp_path / "a.gz", bgzip(Path(plain).read_bytes(), 65280))
    for path in (plain, packed):
        tracemalloc.start()
        assert [record.residues for record in fasta.scan(path, keep=False)] == [size, 1]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2 * 1024 * 1024


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_fasta_is_refused_and_nothing_is_written(box: Box, case: str) -> None:
    data, says = REFUSED[case]
    written(box / "a.fasta", data)
    box.write("old.jsonl", "what was there")
    before = tree(box.home)
    for output in ("new.jsonl", "old.jsonl"):
        with pytest.raises(fasta.FastaError) as refusal:
            index.write_index(box / "a.fasta", box / output)
        assert says in str(refusal.value)
        assert str(box / "a.fasta") in str(refusal.value)
    assert tree(box.home) == before


def test_bgzip_cut_at_any_byte_is_refused(tmp_path: Path) -> None:
    whole = bgzip(as_fasta(make_records(4)), 300)
    for length in range(len(whole)):
        path = written(tmp_path / "a.gz", whole[:length])
        with pytest.raises(fasta.FastaError):
            index.write_index(tmp_path / "a.gz", tmp_path / "tasks")
    path = written(tmp_path / "a.gz", whole)
    assert len(pairs(fasta.scan(path))) == 4


def test_damaged_bgzip_and_bgzip_with_plain_gzip_behind_it_are_refused(tmp_path: Path) -> None:
    whole = bytearray(bgzip(b">a\nACGT\n" * 9, 30))
    mixed = bytes(whole[:-28]) + gzip.compress(b">b\nA\n")
    whole[22] ^= 1
    for data in (bytes(whole), mixed):
        with pytest.raises(fasta.FastaError, match="bgzip block"):
            list(fasta.scan(written(tmp_path / "a.gz", data)))


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "a residue": lambda text: text.replace(b"G", b"C", 1),
    "an id": lambda text: text.replace(b">a", b">A", 1),
    "two records swapped": lambda text: b">b\nCCAA\n>a\nACGT\n>c\nTT\n",
    "a record added": lambda text: text + b">d\nA\n",
    "a record in front": lambda text: b">z\nA\n" + text,
    "cut": lambda text: text[:-9],
    "emptied": lambda text: b"",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changed_since_it_was_indexed_is_refused(tmp_path: Path, change: str) -> None:
    text = b">a\nACGT\n>b\nCCAA\n>c\nTT\n"
    path = written(tmp_path / "a.fasta", text)
    whole, single = payloads(path, 100), payloads(path, 0)
    assert len(whole) == 1
    assert len(single) == 3
    written(tmp_path / "a.fasta", CHANGES[change](text))
    with pytest.raises(fasta.FastaError, match=r"changed since it was indexed|should be"):
        fasta.read_range(**whole[0])
    assert any(refuses(payload) for payload in single)


def refuses(payload: dict[str, Any]) -> bool:
    try:
        fasta.read_range(**payload)
    except fasta.FastaError:
        return True
    return False


def test_the_command_line_of_the_index(box: Box) -> None:
    written(box / "a.fasta", as_fasta(make_records(10)))
    done = box.run(
        EXAMPLE / "index.py", "a.fasta", "tasks.jsonl", "--residues", "300", program=PYTHON
    )
    tasks = [json.loads(line) for line in (box / "tasks.jsonl").read_text().splitlines()]
    assert done.out == f"tasks.jsonl: {len(tasks)} tasks, 10 records\n"
    assert {task["payload"]["fasta"] for task in tasks} == {str(box / "a.fasta")}
    assert (
        "absent"
        in box.run(EXAMPLE / "index.py", "absent", "tasks.jsonl", program=PYTHON, code=2).err
    )


# The rows


def alone(sequence: bytes, network: embed.Network) -> bytes:
    row: bytes = network.rows([embed.encode(sequence)])[0].tobytes()
    return row


def test_a_row_is_the_same_in_whatever_company(tmp_path: Path) -> None:
    network = embed.Network("cpu")
    sequences = [embed.encode(sequence) for _, sequence in make_records(100)] + [
        embed.encode(b"ACGT" * 500)
    ]
    expected = [network.rows([codes])[0].tobytes() for codes in sequences]
    chance = random.Random(2)
    for _ in range(5):
        order = chance.sample(range(len(sequences)), len(sequences))
        rows = network.rows([sequences[place] for place in order])
        assert [row.tobytes() for row in rows] == [expected[place] for place in order]


def test_case_does_not_count_and_no_residues_are_zeros() -> None:
    rows = embed.Network("cpu").rows(
        [embed.encode(s) for s in (b"acgtn*", b"ACGTN*", b"", b"ACGTN")]
    )
    assert rows.dtype == np.float32
    assert rows.shape == (4, embed.WIDTH)
    assert np.array_equal(rows[0], rows[1])
    assert not rows[2].any()
    assert not np.array_equal(rows[0], rows[3])
    assert embed.Network("cpu").rows([]).shape == (0, embed.WIDTH)


@pytest.mark.parametrize("byte", [b"1", b">", b"\xff", b"\x01", b"@"])
def test_a_byte_that_is_no_residue_is_named(byte: bytes) -> None:
    record = fasta.Record(0, b"odd", b"AC" + byte + b"T", 4, 0, is_last=True)
    with pytest.raises(ValueError, match=r"record 7 .*odd.*residue 2"):
        embed.encode_record(7, record)


# Whole runs

HELD = f"""
import os, signal, sys
sys.path.insert(0, {str(EXAMPLE)!r})
from embed import Embed


class Held(Embed):
    '''Stands still once its worker has done as many tasks as it may.

    One more output is then written and not published.
    '''

    done = 0

    def __call__(self, task, ctx):
        result = super().__call__(task, ctx)
        while self.done == int(os.environ["MAY_DO"]):
            signal.pause()
        self.done += 1
        return result
"""


def merged(box: Box, spool: str, out: str, *options: str, code: int = 0) -> Done:
    return box.run(EXAMPLE / "merge.py", spool, out, *options, program=PYTHON, code=code)


def assert_aligned(box: Box, out: str, records: list[tuple[bytes, bytes]]) -> None:
    """Each merged row must equal, bit for bit, that of its record alone; each id is its own."""
    network = embed.Network("cpu")
    rows = np.load(box / f"{out}.npy")
    assert rows.dtype == np.float32
    assert rows.shape == (len(records), embed.WIDTH)
    assert (box / f"{out}.ids.txt").read_bytes() == b"".join(name + b"\n" for name, _ in records)
    assert [row.tobytes() for row in rows] == [alone(sequence, network) for _, sequence in records]


def test_killed_twice_and_resumed_with_other_world_sizes_ids_and_rows_stay_aligned(
    box: Box,
) -> None:
    records, spool = make_records(400), box / "s"
    box.write("held.py", HELD)
    written(box / "a.fasta", as_fasta(records))
    count, _ = index.write_index(box / "a.fasta", box / "tasks.jsonl", 1500)
    run = ("run", "--spool", "s", "--tasks", "tasks.jsonl", *CPU, "2", "held.py:Held")
    for command, finished in ((run, 10), (("resume", "s", *CPU, "3"), 25)):
        started = box.start(*command, env={"MAY_DO": "5"})
        wait_until(lambda: started.is_over() or len(journal_lines(spool)) >= finished)  # noqa: B023
        assert not started.is_over(), started.err
        box.kill_all()
        started.wait(-9)
        assert len(journal_lines(spool)) == finished
        refusal = merged(box, "s", "all.npy", code=3)
        assert f"{count - finished} ranges are not complete" in refusal.err
    assert count > 30
    box.run("resume", "s", *CPU, "1", env={"MAY_DO": "-1"})
    assert_sound(box, "s", count)
    assert len(journal_lines(spool)) == count, "a line for each task, whoever was killed"
    assert len(names(spool / "journal")) == 6
    done = merged(box, "s", "all.npy")
    assert done.out == "all.npy: float32 [400, 128]; ids: all.ids.txt\n"
    assert_aligned(box, "all", records)
    assert names(box.home) == ["a.fasta", "all.ids.txt", "all.npy", "held.py", "s", "tasks.jsonl"]


def test_a_failed_range_is_named_and_refuses_the_merge_unless_it_may_be_missing(box: Box) -> None:
    records = make_records(30)
    records[17] = (b"odd one", b"ACGT1")
    written(box / "a.fasta.gz", bgzip(as_fasta(records), 1000))
    index.write_index(box / "a.fasta.gz", box / "tasks.jsonl", 800)
    ranges = [json.loads(line) for line in (box / "tasks.jsonl").read_text().splitlines()]
    bad = next(task for task in reversed(ranges) if task["payload"]["first"] <= 17)
    first, stop = bad["payload"]["first"], bad["payload"]["first"] + bad["payload"]["records"]
    box.run(
        "run",
        "--spool",
        "s",
        "--tasks",
        "tasks.jsonl",
        *CPU,
        "1",
        EXAMPLE / "embed.py:Embed",
        code=3,
    )
    before = names(box.home)
    refusal = merged(box, "s", "all.npy", code=3)
    assert (
        f"{bad['key']} (records {first} to {stop - 1}): failed, ValueError: record 17 (b'odd')"
        in refusal.err
    )
    assert names(box.home) == before

    told = merged(box, "s", "all.npy", "--allow-missing")
    assert f"{bad['key']} (records {first} to {stop - 1})" in told.err
    rows, network = np.load(box / "all.npy"), embed.Network("cpu")
    ids = (box / "all.ids.txt").read_bytes().split(b"\n")[:-1]
    assert ids == [name.partition(b" ")[0] for name, _ in records]
    assert np.isnan(rows[first:stop]).all()
    for number in [*range(first), *range(stop, 30)]:
        assert rows[number].tobytes() == alone(records[number][1], network)

    written(box / "a.fasta.gz", bgzip(as_fasta(records), 999))
    merged(box, "s", "other.npy", "--allow-missing", code=2)
    assert names(box.home) == sorted([*before, "all.ids.txt", "all.npy"])


# Merges that are refused. Each works on a copy of one finished spool.


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A box with 40 records in a finished spool."""
    box = Box(tmp_path_factory.mktemp("finished"))
    written(box / "a.fasta", as_fasta(make_records(40)))
    index.write_index(box / "a.fasta", box / "tasks.jsonl", 1000)
    box.run("run", "--spool", "s", "--tasks", "tasks.jsonl", *CPU, "1", EXAMPLE / "embed.py:Embed")
    yield box
    box.kill_all()


@pytest.fixture
def spool(finished: Box, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished / "s", tmp_path / "s"))


def rewrite(spool: Path, change: Callable[[Any, Any], dict[str, Any]]) -> None:
    """Change the second output of a spool."""
    path = sorted((spool / "outputs").glob("*.npz"))[1]
    with np.load(path) as data:
        arrays = change(data["rows"], data["ids"])
    np.savez(path, **arrays)


WRONG: dict[str, tuple[Callable[[Any, Any], dict[str, Any]], str]] = {
    "dtype": (lambda rows, ids: {"rows": rows.astype(np.float64), "ids": ids}, "rows are float64"),
    "width": (lambda rows, ids: {"rows": rows[:, 1:], "ids": ids}, "127] and"),
    "dimensions": (lambda rows, ids: {"rows": rows.ravel(), "ids": ids}, "of 1 dimensions"),
    "a row less": (lambda rows, ids: {"rows": rows[1:], "ids": ids}, "ids, not ["),
    "an id more": (lambda rows, ids: {"rows": rows, "ids": np.append(ids, ids)}, "ids, not ["),
    "no ids": (lambda rows, ids: {"rows": rows}, "no rows and ids that can be read"),
    "pickled": (
        lambda rows, ids: {"rows": rows, "ids": np.array([None])},
        "no rows and ids that can be read",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_output_that_does_not_fit_is_named_and_refuses_the_merge(
    spool: Path, tmp_path: Path, case: str
) -> None:
    change, says = WRONG[case]
    rewrite(spool, change)
    with pytest.raises(merge.Mismatch, match=r"00000001 \(records ") as refusal:
        merge.merge(spool, tmp_path / "all.npy", allow_missing=True)
    assert says in str(refusal.value)
    assert names(tmp_path) == ["s"]


@pytest.mark.parametrize("length", [None, 0, 10, 1000])
def test_an_output_that_is_gone_or_cut_refuses_the_merge(
    spool: Path, tmp_path: Path, length: int | None
) -> None:
    path = sorted((spool / "outputs").glob("*.npz"))[-1]
    data = path.read_bytes()
    path.unlink()
    if length is not None:
        path.write_bytes(data[:length])
    with pytest.raises(merge.Mismatch, match="rows and ids that can be read"):
        merge.merge(spool, tmp_path / "all.npy")
    assert tree(tmp_path).keys() == {"s", *(f"s/{name}" for name in tree(spool))}, (
        "no hidden file is left"
    )


def test_a_merged_array_is_never_replaced_and_ids_without_one_are(
    spool: Path, tmp_path: Path
) -> None:
    (tmp_path / "all.ids.txt").write_text("left by a merge that was killed between its two names\n")
    outputs = merge.merge(spool, tmp_path / "all.npy")
    assert outputs.records == 40
    before = tree(tmp_path)
    assert before["all.ids.txt"] == b"".join(name + b"\n" for name, _ in make_records(40))
    for name in ("all.npy", "all.array"):
        with pytest.raises(merge.MergeError, match="exists, or does not end in"):
            merge.merge(spool, tmp_path / name)
    assert tree(tmp_path) == before


def test_a_run_over_a_part_of_the_index_or_over_something_else_is_refused(
    finished: Box, box: Box
) -> None:
    lines = (finished / "tasks.jsonl").read_text().splitlines(keepends=True)
    cases = {
        "tail": lines[1:],
        "head": lines[:-1],
        "gap": lines[:1] + lines[2:],
        "other": ['{"payload": 1}\n'],
    }
    for name, part in cases.items():
        box.write(f"{name}.jsonl", "".join(part))
        box.write("quick.py", "def f(task, ctx): pass\n")
        box.run("run", "--spool", name, "--tasks", f"{name}.jsonl", *CPU, "1", "quick.py:f")
        with pytest.raises(merge.Mismatch, match="task "):
            merge.merge(box / name, box / "all.npy")
    assert "is not a spool" in merged(box, ".", "all.npy", code=2).err
