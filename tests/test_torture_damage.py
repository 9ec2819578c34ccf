"""A small share of the damage that `make torture` does, and that its judge would notice if it were
not survived.
"""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from torture.damage import CASES, Builder, Case, Player, row
from torture.forked import Ended, Server
from torture.mutations import ON_FILES, ON_FOLDERS, Kind, mutate


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as one:
        yield one


@pytest.mark.slow
def test_damage_is_named_and_survived(tmp_path: Path) -> None:
    found = row("small", tmp_path)
    assert found.failures == []
    assert found.is_clean
    assert found.cases >= CASES["small"]


def test_a_resume_that_does_nothing_is_noticed(server: Server, tmp_path: Path) -> None:
    """Exit code 0 at once: what was not done is lost, success is claimed, and nothing is kept in
    corrupt/.
    """

    class Idle(Player):
        def _forked(self, folder: Path):
            real = super()._forked(folder)
            return lambda *args: Ended(0, "", "", 0.0) if args[0] == "resume" else real(*args)

    base = Builder(server, tmp_path / "bases").build_one("killed")
    verdict = Idle(server, [base], tmp_path).play(Case("killed", "manifests", "noise", 0))
    assert verdict is not None
    assert verdict.counts.L > 0
    assert verdict.counts.X > 0
    said = " ".join(verdict.failures)
    assert "L: task" in said
    assert "X: exit code 0" in said
    assert "no copy in corrupt/" in said


def what_is_there(folder: Path) -> dict[str, bytes | str | None]:
    """Every name below a folder: bytes of files, targets of links."""
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else (path.read_bytes() if path.is_file() else None)
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("kind", [*ON_FILES, *ON_FOLDERS], ids=lambda kind: kind.__name__)
def test_each_kind_of_damage_changes_something(tmp_path: Path, kind: Kind) -> None:
    def make(home: Path) -> Path:
        spool = home / "S"
        (spool / "journal").mkdir(parents=True)
        lines = [
            b'{"task":%d,"round":0,"state":"complete","crc":"0000000%d"}\n' % (n, n)
            for n in range(8)
        ]
        (spool / "journal" / "rank-0000.a00.jsonl").write_bytes(b"".join(lines))
        return spool

    before = what_is_there(make(tmp_path / "before"))
    done = []
    for seed in range(5):
        spool = make(tmp_path / f"{seed}")
        mutation = mutate(random.Random(seed), spool, "journal", kind.__name__)
        if mutation is not None:
            done.append(what_is_there(spool))
    assert done
    assert all(after != before for after in done)
