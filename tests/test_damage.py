"""Damaged and foreign files in a half-done spool.

`verify` names them, `resume` survives them, and what was damaged is kept in corrupt/.
"""

import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import (
    JOBS,
    Box,
    assert_sound,
    half_done,
    journal_lines,
    names,
    ran,
    start_gated,
    tree,
    wait_until,
    waiting,
)

JOURNAL = "journal/rank-0000.a00.jsonl"
MANIFEST = "manifests/rank-0000.jsonl"


def flip(path: Path, at: int, bit: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= bit
    path.write_bytes(data)


def line_start(path: Path, number: int) -> int:
    """The offset of a line; a negative number counts from the end."""
    lines = path.read_bytes().splitlines(keepends=True)
    return sum(map(len, lines[: number % len(lines)]))


def results_of(box: Box, code: int, command: list[str | Path]) -> list[Any]:
    done = box.run(*command, code=code)
    assert "Traceback" not in done.err
    return box.results("S")


def expect_complete(box: Box, command: list[str | Path], allowed: set[str] | None = None) -> None:
    """Run the command again: it ends complete with the right results.

    After that `verify` names the damage itself and nothing else.
    """
    results = results_of(box, 0, command)
    assert [result["state"] for result in results] == ["complete"] * 40
    assert [result["result"] for result in results] == [f"go {i}" for i in range(20)] + [
        "wait"
    ] * 20
    problems = [
        text for text in box.problems("S") if not any(name in text for name in allowed or ())
    ]
    assert problems == []


def verify_names(box: Box, file: str, offset: int | None) -> None:
    where = f"{box / 'S' / file}" + ("" if offset is None else f", byte {offset}: ")
    done = box.run("verify", "S", code=5)
    assert where in done.out


def verify_notes(box: Box, file: str, offset: int) -> None:
    """What a power cut may leave is named, and is no problem."""
    done = box.run("verify", "S")
    assert f"note: {box / 'S' / file}, byte {offset}: " in done.out


def kept(box: Box, file: str) -> bytes:
    """The copy of a damaged file in corrupt/."""
    return (box / "S" / "corrupt" / file.replace("/", "-")).read_bytes()


def cut_in_a_line(path: Path) -> int:
    start = line_start(path, -1)
    os.truncate(path, start + 30)
    return start


def flip_in_the_middle(path: Path) -> int:
    start = line_start(path, 10)
    flip(path, start + 20)
    return start


def flip_the_head(path: Path) -> int:
    flip(path, 12)
    return 0


def flip_a_newline(path: Path) -> int:
    start = line_start(path, 10)
    flip(path, line_start(path, 11) - 1, 0x40)
    return start


def fill_with_noise(path: Path) -> int:
    start = line_start(path, 10)
    data = bytearray(path.read_bytes())
    data[start : start + 150] = random.Random(0).randbytes(150).replace(b"\n", b"?")
    path.write_bytes(data)
    return start


@pytest.mark.parametrize(
    "damage", [flip_in_the_middle, flip_the_head, flip_a_newline, fill_with_noise]
)
def test_damage_in_a_journal_costs_those_lines_alone(
    box: Box, damage: Callable[[Path], int]
) -> None:
    command = half_done(box)
    offset = damage(box / "S" / JOURNAL)
    damaged = (box / "S" / JOURNAL).read_bytes()
    readable = {line["task"] for line in journal_lines(box / "S")}
    assert len(readable) >= 15
    verify_names(box, JOURNAL, offset)
    expect_complete(box, command, {JOURNAL})
    again = ran(box)[20:]
    assert not set(again) & readable, "what can still be read is done"
    assert kept(box, JOURNAL) == damaged
    assert (box / "S" / JOURNAL).read_bytes() == damaged, "nobody writes into another's journal"


def test_a_torn_journal_costs_its_last_line_alone(box: Box) -> None:
    command = half_done(box)
    offset = cut_in_a_line(box / "S" / JOURNAL)
    assert len(journal_lines(box / "S")) == 19
    expect_complete(box, command)
    done = box.run("verify", "S")
    assert (
        f"note: {box / 'S' / JOURNAL}, byte {offset}: torn line of 30 bytes at the end" in done.out
    )
    assert len(ran(box)) == 41
    assert kept(box, JOURNAL) == (box / "S" / JOURNAL).read_bytes()


def test_a_zeroed_block_in_a_journal(box: Box) -> None:
    """What a disk that lost a write leaves: 8 KiB of nothing in the middle of a file."""
    count = 60
    payloads = [f"{i} ".ljust(500, "x") for i in range(count)]
    started, command = start_gated(box, [*payloads, "wait"])
    wait_until(lambda: waiting(box))
    box.kill_all()
    started.wait(-signal.SIGKILL)
    (box / "gate").touch()
    path = box / "S" / JOURNAL
    data = path.read_bytes()
    assert len(data) > 3 * 8192
    path.write_bytes(data[:8192] + bytes(8192) + data[16384:])
    first = data.rindex(b"\n", 0, 8192) + 1
    readable = {line["task"] for line in journal_lines(box / "S")}
    assert 0 < count - len(readable) < 20
    verify_notes(box, JOURNAL, first)
    results = results_of(box, 0, command)
    assert [result["result"] for result in results] == [*payloads, "wait"]
    assert not set(ran(box)[count:]) & readable
    assert len(kept(box, JOURNAL)) == len(data)


def test_an_emptied_journal(box: Box) -> None:
    command = half_done(box)
    (box / "S" / JOURNAL).write_bytes(b"")
    expect_complete(box, command)


def test_a_deleted_journal(box: Box) -> None:
    command = half_done(box)
    (box / "S" / JOURNAL).unlink()
    expect_complete(box, command)


@pytest.mark.parametrize("what", ["deleted", "emptied"])
@pytest.mark.parametrize("index", [0, 1, -1])
def test_a_lost_claim(box: Box, what: str, index: int) -> None:
    command = half_done(box)
    claims = box / "S" / "claims" / "rank-0000"
    name = names(claims)[index]
    if what == "deleted":
        (claims / name).unlink()
    else:
        (claims / name).write_bytes(b"")
    last = name == names(claims)[-1] or index == -1
    if what == "emptied":
        verify_notes(box, f"claims/rank-0000/{name}", 0)
    elif not last:
        assert box.run("verify", "S").out.count("outside the chain") == len(names(claims)) - index
    expect_complete(box, command, {"claims/rank-0000"})


def test_an_unreadable_claim_is_kept_in_corrupt(box: Box) -> None:
    command = half_done(box)
    claim = box / "S" / "claims" / "rank-0000" / names(box / "S" / "claims" / "rank-0000")[1]
    claim.write_bytes(b"{garbage")
    expect_complete(box, command, {"claims/rank-0000"})
    assert b"{garbage" in [
        (box / "S" / "corrupt" / name).read_bytes() for name in names(box / "S" / "corrupt")
    ]


@pytest.mark.parametrize("index", [1, -1])
def test_a_claim_in_the_name_of_an_attempt_that_never_was(box: Box, index: int) -> None:
    """One flipped bit in a digit: nobody holds those tasks, so they must be given out again."""
    command = half_done(box)
    claims = box / "S" / "claims" / "rank-0000"
    path = claims / names(claims)[index]
    path.write_bytes(path.read_bytes().replace(b"rank-0000.a00", b"rank-0000.a08"))
    expect_complete(box, command, {"claims/rank-0000"})


@pytest.mark.parametrize("line", [3, 20, 35, -1])
def test_a_damaged_manifest_line(box: Box, line: int) -> None:
    """A complete task stays complete. One that no readable line describes fails as unreadable."""
    command = half_done(box)
    path = box / "S" / MANIFEST
    offset = line_start(path, line)
    flip(path, offset + 15)
    verify_names(box, MANIFEST, offset)
    task = line % 40
    if task < 20:
        expect_complete(box, command, {MANIFEST, "in no readable manifest line"})
        return
    results = results_of(box, 3, command)
    failed = {
        result["index"]: result["error"]["kind"]
        for result in results
        if result["state"] != "complete"
    }
    assert failed == {task: "unreadable"}
    assert kept(box, MANIFEST) == path.read_bytes()
    assert "unreadable" in box.run("failed", "S").out


def test_a_deleted_manifest(box: Box) -> None:
    command = half_done(box, ranks=2)
    path = box / "S" / MANIFEST
    path.unlink()
    done = box.run("verify", "S", code=5)
    assert "rank-0000: this planned manifest is missing" in done.out
    results = results_of(box, 3, command)
    assert {result["state"] for result in results[:20]} == {"complete"}
    failed = [result["index"] for result in results if result["state"] == "failed"]
    assert failed == [index for index in range(20, 40) if index % 2 == 0]
    assert {result["error"]["kind"] for result in results if result["error"]} == {"unreadable"}
    assert box.status("S")["tasks"]["failed"] == 10


def killed_twice(box: Box) -> list[str | Path]:
    """Like half_done, but the second attempt was killed too; so the first has a status record."""
    command = half_done(box)
    (box / "gate").unlink()
    started = box.start(*command)
    wait_until(lambda: len(waiting(box)) == 2)
    box.kill_all()
    started.wait(-signal.SIGKILL)
    (box / "gate").touch()
    return command


@pytest.mark.parametrize(
    "file",
    [
        "failed/rank-0000.a00.json",
        "heartbeat/rank-0000.a01.json",
        "attempts/rank-0000.a01.json",
        "attempts/rank-0000.a00.json",
        "manifests/rank-0000.a00.orphans.jsonl",
        "events/0000.jsonl",
        "parents/0000.json",
        "parents/0001.json",
        "logs/rank-0000.a01.log",
    ],
)
def test_an_emptied_file(box: Box, file: str) -> None:
    """A power cut leaves files so that were not fsynced."""
    command = killed_twice(box)
    assert (box / "S" / file).exists()
    (box / "S" / file).write_bytes(b"")
    assert box.run("status", "S", "--json").record()["state"] == "stopped"
    if file.startswith(("attempts", "manifests")):
        verify_names(box, file, 0)
    expect_complete(box, command, {file, "in no readable", "no orphans manifest"})


def test_verify_names_an_emptied_status_record(box: Box) -> None:
    killed_twice(box)
    (box / "S" / "failed" / "rank-0000.a00.json").write_bytes(b"")
    verify_names(box, "failed/rank-0000.a00.json", None)


def test_the_head_of_an_orphans_manifest_is_lost(box: Box) -> None:
    """The attempt stays closed, as lost. The tasks behind the head are still there."""
    command = killed_twice(box)
    orphans = "manifests/rank-0000.a00.orphans.jsonl"
    flip(box / "S" / orphans, 20)
    verify_names(box, orphans, 0)
    expect_complete(box, command, {orphans, "failed/rank-0000.a00"})


def test_foreign_files_are_ignored(box: Box) -> None:
    command = half_done(box)
    spool = box / "S"
    for folder in [path for path in spool.rglob("*") if path.is_dir()]:
        for name in (
            "README",
            ".nfs0001",
            "notes.txt",
            "x.jsonl",
            "x.json",
            "rank-0000.a00.jsonl~",
            "999999999999",
        ):
            (folder / name).write_text("not ours\n")
        (folder / "a folder").mkdir()
    before = {
        name: data
        for name, data in tree(spool).items()
        if data == b"not ours\n" and ".nfs" not in name
    }
    expect_complete(
        box,
        command,
        {"999999999999", "x.json", "notes.txt", "README", "rank-0000.a00.jsonl~", "a folder"},
    )
    after = tree(spool)
    assert [name for name, data in before.items() if after.get(name) != data] == [], (
        "nothing foreign was touched"
    )


def test_folders_where_files_should_be(box: Box) -> None:
    """Nothing of ours makes one, but a restore or a careless `mkdir` may."""
    command = half_done(box)
    for name in (
        "journal/rank-0007.a00.jsonl",
        "manifests/sweep-07.jsonl",
        "attempts/rank-0008.a00.json",
        "heartbeat/rank-0000.a00.json",
        "complete/rank-0000.a09.json",
    ):
        path = box / "S" / name
        if path.exists():
            path.unlink()
        path.mkdir()
    assert box.run("status", "S", "--json").record()["tasks"]["complete"] == 20
    expect_complete(
        box, [*command, "--lease", "1s"], {"rank-0007", "sweep-07", "rank-0008", "a09", "a00"}
    )


@pytest.mark.parametrize("seed", range(6))
def test_noise_anywhere_is_survived(box: Box, seed: int) -> None:
    """Whatever a few random blocks of noise hit, the run ends without a wrong result."""
    rng = random.Random(seed)
    command = half_done(box, "--lease", "1s", ranks=2)
    spool = box / "S"
    files = [
        path
        for path in sorted(spool.rglob("*"))
        if path.is_file()
        and path.stat().st_size
        and not {"job", "run.json", "FORMAT"} & {path.name, path.parent.name}
    ]
    for path in rng.sample(files, 5):
        data = bytearray(path.read_bytes())
        start = rng.randrange(len(data))
        stop = min(len(data), start + rng.choice([1, 20, 500]))
        data[start:stop] = rng.choice([bytes, rng.randbytes])(stop - start)
        path.write_bytes(data)
    assert "Traceback" not in box.run("verify", "S", code=None).err
    done = box.run(*command, code=None)
    assert done.code in (0, 3), done.err
    assert "Traceback" not in done.err
    expected = [f"go {i}" for i in range(20)] + ["wait"] * 20
    for result, value in zip(box.results("S"), expected, strict=True):
        assert (result["state"], result["result"]) == ("complete", value) or result["error"][
            "kind"
        ] == "unreadable"


def test_a_missing_output_is_named(box: Box) -> None:
    box.run("run", f"{JOBS}/plain.py:write", "--lines", box.lines(3), "--spool", "S")
    (box / "S" / "outputs" / "t1.txt").unlink()
    done = box.run("verify", "S", code=5)
    assert f"task 1 (t1): its output {box / 'S' / 'outputs' / 't1.txt'} is missing" in done.out


def test_a_spool_that_was_copied_is_as_good(box: Box) -> None:
    """`cp -r` of a half-done spool, as a restore from a backup would bring back."""
    half_done(box)
    shutil.move(box / "S", box / "old")
    shutil.copytree(box / "old", box / "S")
    box.run("resume", "S")
    assert_sound(box, "S", 40)
