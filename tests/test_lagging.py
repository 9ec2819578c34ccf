"""Two mounts of one folder that see each other's changes late, as two clients of a network file
system do; and that everything else about them is as in the folder itself.

`tests/lagging` is the file system. What stands on it here is what other tests rely on.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import PATIENCE_S, TESTS, wait_until
from lagging import clients
from lagging.clients import Lag, mounted
from torture import mounts

# Long enough to be told from a busy machine, short enough to wait for.
LAG_S = 1.0
SHORT = Lag(LAG_S, LAG_S, LAG_S)
# What such a mount once saw, it never sees otherwise in a test.
FOR_EVER = Lag(3600, 3600, 3600)
NAMES = 200


@pytest.fixture(autouse=True)
def _can_mount() -> None:
    why = mounts.why_not() or clients.why_not()
    if why:
        pytest.skip(why)


@contextlib.contextmanager
def two_clients(tmp_path: Path, lag: Lag) -> Iterator[tuple[Path, Path]]:
    """One folder, as two clients see it."""
    folder = tmp_path / "real"
    folder.mkdir()
    with mounted(folder, tmp_path / "a", lag) as a, mounted(folder, tmp_path / "b", lag) as b:
        yield a, b


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    with two_clients(tmp_path, SHORT) as both:
        yield both


@pytest.fixture
def stuck(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    with two_clients(tmp_path, FOR_EVER) as both:
        yield both


def seconds_until(look: Callable[[], bool], change: Callable[[], object]) -> float:
    """How long after a look that saw nothing yet a change was seen."""
    began = time.monotonic()
    assert not look()
    change()
    wait_until(look)
    return time.monotonic() - began


def grow(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"more")


def test_a_name_that_was_looked_for_in_vain_is_found_when_the_time_is_over(
    slow: tuple[Path, Path],
) -> None:
    a, b = slow
    assert seconds_until((b / "new").exists, (a / "new").touch) >= LAG_S
    # One that nobody has looked for is there at once.
    (a / "other").touch()
    assert (b / "other").exists()


def test_a_new_name_is_listed_when_the_time_is_over(slow: tuple[Path, Path]) -> None:
    a, b = slow
    assert seconds_until(lambda: "new" in os.listdir(b), (a / "new").touch) >= LAG_S


def test_a_file_that_grew_has_its_new_size_when_the_time_is_over(slow: tuple[Path, Path]) -> None:
    a, b = slow
    grow(a / "file")

    def has_grown() -> bool:
        return os.stat(b / "file").st_size == 8

    assert seconds_until(has_grown, lambda: grow(a / "file")) >= LAG_S


def test_a_name_that_was_removed_is_gone_when_the_time_is_over(slow: tuple[Path, Path]) -> None:
    a, b = slow
    (a / "old").touch()
    assert seconds_until(lambda: not (b / "old").exists(), (a / "old").unlink) >= LAG_S


def test_until_then_nothing_is_seen(stuck: tuple[Path, Path]) -> None:
    a, b = stuck
    grow(a / "file")
    assert os.listdir(b) == ["file"]
    assert os.stat(b / "file").st_size == 4
    assert not (b / "new").exists()
    grow(a / "file")
    (a / "new").touch()
    assert os.listdir(b) == ["file"]
    assert os.stat(b / "file").st_size == 4
    assert not (b / "new").exists()


def test_a_client_sees_what_it_changes_itself(stuck: tuple[Path, Path]) -> None:
    a, _ = stuck
    assert os.listdir(a) == []
    for name in ("made", "renamed", "linked"):
        assert not (a / name).exists()
    grow(a / "made")
    os.link(a / "made", a / "linked")
    assert os.stat(a / "made").st_nlink == 2
    os.rename(a / "made", a / "renamed")
    assert sorted(os.listdir(a)) == ["linked", "renamed"]
    with open(a / "renamed", "ab", buffering=0) as file:
        file.write(b"more")
        assert os.stat(a / "linked").st_size == 8
        file.truncate(2)
        assert os.stat(a / "linked").st_size == 2
    (a / "linked").unlink()
    assert not (a / "linked").exists()
    assert os.listdir(a) == ["renamed"]


def test_open_asks_anew_for_the_size_unless_told_otherwise(tmp_path: Path) -> None:
    for lag, size in ((FOR_EVER, 8), (Lag(3600, 3600, 3600, is_open_fresh=False), 4)):
        home = tmp_path / str(size)
        home.mkdir()
        with two_clients(home, lag) as (a, b):
            grow(a / "file")
            assert len((b / "file").read_bytes()) == 4
            grow(a / "file")
            assert len((b / "file").read_bytes()) == size


def test_of_two_clients_that_link_one_name_one_wins(stuck: tuple[Path, Path]) -> None:
    won: dict[Path, set[int]] = {}
    start = threading.Barrier(len(stuck))

    def race(home: Path) -> None:
        (home / f"of-{home.name}").write_text(home.name)
        won[home] = set()
        start.wait(PATIENCE_S)
        for number in range(NAMES):
            with contextlib.suppress(FileExistsError):
                os.link(home / f"of-{home.name}", home / f"name-{number}")
                won[home].add(number)

    racers = [threading.Thread(target=race, args=(home,)) for home in stuck]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(PATIENCE_S)
    a, b = stuck
    assert won[a] | won[b] == set(range(NAMES))
    assert not won[a] & won[b]
    for home in stuck:
        for number in won[home]:
            assert (a.parent / "real" / f"name-{number}").read_text() == home.name


def test_what_exists_is_refused_and_replaced_as_in_the_folder_itself(
    stuck: tuple[Path, Path],
) -> None:
    a, b = stuck
    assert not (b / "file").exists()
    (a / "file").write_text("of a")
    with pytest.raises(FileExistsError):
        (b / "file").touch(exist_ok=False)
    (b / "other").write_text("of b")
    os.rename(b / "other", b / "file")
    assert (a / "file").read_text() == "of b"


def test_appends_of_two_clients_lie_one_behind_the_other(stuck: tuple[Path, Path]) -> None:
    a, b = stuck
    with open(a / "file", "ab", buffering=0) as one, open(b / "file", "ab", buffering=0) as two:
        for _ in range(3):
            one.write(b"a")
            two.write(b"b")
    assert (a.parent / "real" / "file").read_bytes() == b"ababab"


def test_an_open_file_without_a_name_stays_what_it_was(stuck: tuple[Path, Path]) -> None:
    a, _ = stuck
    with open(a / "hidden", "w+b", buffering=0) as file:
        file.write(b"before")
        os.link(a / "hidden", a / "name")
        os.unlink(a / "hidden")
        file.write(b", after")
        os.fsync(file)
        assert os.fstat(file.fileno()).st_size == 13
        assert (a / "name").read_bytes() == b"before, after"
        (a / "name").unlink()
        file.seek(0)
        assert file.read() == b"before, after"
    # The kernel tells the server of the end of a file when it finds the time.
    wait_until(lambda: os.listdir(a.parent / "real") == [])


@pytest.mark.parametrize(
    ("locks", "outcome"), [("shared", "refused"), ("local", "granted"), ("none", "none")]
)
def test_whom_a_lock_keeps_out(tmp_path: Path, locks: str, outcome: str) -> None:
    with (
        two_clients(tmp_path, Lag(locks=locks)) as (a, b),  # type: ignore[arg-type]
        open(a / "lock", "w") as one,
        open(b / "lock", "w") as two,
    ):
        try:
            fcntl.flock(one, fcntl.LOCK_EX)
            fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = "granted"
        except BlockingIOError:
            found = "refused"
        except OSError:
            found = "none"
        assert found == outcome


MOUNTER = """
import sys
from pathlib import Path
from lagging.clients import Lag, mounted, why_not

assert not why_not()
with mounted(Path(sys.argv[1]), Path(sys.argv[2]), Lag()):
    print("mounted", flush=True)
    sys.stdin.read()
"""


def test_nothing_stays_mounted_when_a_test_is_killed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    mount = tmp_path / "mount"
    killed = subprocess.Popen(
        [sys.executable, "-c", MOUNTER, tmp_path / "real", mount],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )
    assert killed.stdin is not None
    assert killed.stdout is not None
    assert killed.stdout.readline() == b"mounted\n"
    assert mount in clients.mounts()
    killed.send_signal(signal.SIGKILL)
    killed.wait(PATIENCE_S)
    killed.stdin.close()
    killed.stdout.close()
    wait_until(lambda: mount not in clients.mounts())


def test_the_mount_of_a_server_that_was_killed_goes_when_the_next_is_made(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    with mounted(tmp_path / "real", tmp_path / "dead", Lag()) as dead:
        kill_server_of(dead)
        wait_until(lambda: not is_answered(dead))
        assert dead in clients.mounts()
        with mounted(tmp_path / "real", tmp_path / "next", Lag()) as alive:
            assert dead not in clients.mounts()
            assert alive in clients.mounts()


def kill_server_of(mount: Path) -> None:
    for words in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if os.fsencode(mount) in words.read_bytes().split(b"\0")[:3]:
                os.kill(int(words.parent.name), signal.SIGKILL)


def is_answered(mount: Path) -> bool:
    try:
        os.stat(mount)
    except OSError:
        return False
    return True
