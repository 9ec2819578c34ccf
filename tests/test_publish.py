"""Publishing: a name is missing or leads to the whole content, and who publishes first wins."""

import errno
import os
import resource
import signal
from pathlib import Path

import pytest
from spooling import hidden_files, python, race, together

from gpuspool.spool.codec import encode
from gpuspool.spool.publish import (
    create_journal,
    link_or_lose,
    listdir,
    publish,
    read_bytes,
    read_record,
    replace,
    write_all,
)
from gpuspool.spool.records import Claim, DrainOrder

ROUNDS = 100
BIG = 256 * 1024


def publish_all(folder: Path, who: int) -> list[int]:
    """Race for ROUNDS names, each from a common start; returns those that this process won."""
    won = []
    for number in range(ROUNDS):
        together()
        if publish(folder / f"{number}", f"{who} {number}\n".encode() * 100, durable=False):
            won.append(number)
    return won


def publish_too_much(folder: Path) -> list[str]:
    """Publish, replace and begin a journal, each with more bytes than this process may write.

    Returns the names of the errors that were raised.
    """
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (BIG // 2, BIG // 2))
    raised = []
    for attempt in (publish, replace, create_journal):
        try:
            attempt(folder / attempt.__name__, b"x" * BIG)
        except OSError as error:
            raised.append(type(error).__name__)
    return raised


@pytest.mark.parametrize("durable", [True, False])
def test_the_second_publisher_loses_and_the_first_content_stays(
    tmp_path: Path, durable: bool
) -> None:
    path = tmp_path / "name"
    assert publish(path, b"first", durable=durable)
    assert not publish(path, b"second, and longer", durable=durable)
    assert path.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["name"], "nothing hidden is left"


def test_of_two_processes_that_publish_the_same_name_exactly_one_wins(tmp_path: Path) -> None:
    won = race(publish_all, (tmp_path, 0), (tmp_path, 1))
    assert sorted(won[0] + won[1]) == list(range(ROUNDS))
    for who, names in enumerate(won):
        for name in names:
            assert (tmp_path / f"{name}").read_bytes() == f"{who} {name}\n".encode() * 100
    assert hidden_files(tmp_path) == []


def test_a_publisher_killed_at_any_moment_leaves_only_whole_files(tmp_path: Path) -> None:
    script = """
import itertools, pathlib, sys
from gpuspool.spool.publish import publish
for number in itertools.count():
    path = pathlib.Path(sys.argv[1], f"{number:06d}")
    publish(path, f"{number:07d}\\n".encode() * 32768, durable=False)
    print(number, flush=True)
"""
    for moment in (1, 2, 5, 9):
        folder = tmp_path / f"{moment}"
        folder.mkdir()
        with python(script, folder) as process:
            assert process.stdout is not None
            for _ in range(moment):
                process.stdout.readline()
            process.kill()
            said = moment + len(process.stdout.readlines())
        names = listdir(folder)
        assert len(names) in (said, said + 1), "all that was announced is there"
        for number, name in enumerate(names):
            assert name == f"{number:06d}"
            assert (folder / name).read_bytes() == f"{number:07d}\n".encode() * 32768


def test_a_reader_never_sees_a_replaced_file_half_written(tmp_path: Path) -> None:
    script = """
import itertools, pathlib, sys
from gpuspool.spool.publish import replace
for number in itertools.count():
    replace(pathlib.Path(sys.argv[1]), b"%07d\\n" % number * 8192)
    if number == 0:
        print("there", flush=True)
"""
    path = tmp_path / "order"
    seen = []
    with python(script, path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        while len(seen) < 100 and process.poll() is None:
            data = path.read_bytes()
            assert data == data[:8] * 8192
            if data[:8] not in seen:
                seen.append(data[:8])
        process.kill()
    assert len(seen) == 100
    assert seen == sorted(seen)


def test_replace_makes_the_file_and_leaves_nothing_hidden(tmp_path: Path) -> None:
    path = tmp_path / "order"
    for content in (b"1", b"a longer one", b""):
        replace(path, content, durable=True)
        assert path.read_bytes() == content
        assert os.listdir(tmp_path) == ["order"]


def test_what_cannot_be_written_whole_appears_under_no_name(tmp_path: Path) -> None:
    assert race(publish_too_much, (tmp_path,)) == [["OSError"] * 3]
    assert os.listdir(tmp_path) == []


def test_what_cannot_be_put_in_place_leaves_nothing_hidden(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        replace(tmp_path / "folder", b"x")
    assert not publish(tmp_path / "folder", b"x")
    assert os.listdir(tmp_path) == ["folder"]
    with pytest.raises(FileNotFoundError):
        publish(tmp_path / "nowhere" / "name", b"x")


def test_a_refused_link_that_leads_to_the_own_file_has_won(tmp_path: Path) -> None:
    """As on NFS: the reply to a link that happened was lost, and its repetition is refused."""
    hidden = tmp_path / ".hidden"
    path = tmp_path / "name"
    hidden.write_bytes(b"mine")
    os.link(hidden, path)
    assert link_or_lose(hidden, path)
    assert os.listdir(tmp_path) == ["name"]


def test_a_refused_link_to_equal_bytes_of_somebody_else_has_lost(tmp_path: Path) -> None:
    hidden = tmp_path / ".hidden"
    path = tmp_path / "name"
    hidden.write_bytes(b"same")
    path.write_bytes(b"same")
    assert not link_or_lose(hidden, path)
    assert os.listdir(tmp_path) == ["name"]


def test_who_loses_a_race_on_sshfs_is_told_so_in_another_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EPERM says elsewhere that a file system has no hard links."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "name"
    with pytest.raises(PermissionError):
        publish(path, b"mine", durable=False)
    path.write_bytes(b"another's")
    assert not publish(path, b"mine", durable=False)
    assert os.listdir(tmp_path) == ["name"]


def test_a_name_of_255_bytes_can_be_published(tmp_path: Path) -> None:
    assert publish(tmp_path / ("n" * 255), b"x")
    assert os.listdir(tmp_path) == ["n" * 255]


def test_files_respect_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        publish(tmp_path / "published", b"")
        replace(tmp_path / "replaced", b"")
        fd = create_journal(tmp_path / "journal", b"")
    finally:
        os.umask(before)
    assert fd is not None
    os.close(fd)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o664}


def test_a_journal_begins_with_its_head_and_grows_at_its_end(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    fd = create_journal(path, b"head\n")
    assert fd is not None
    assert create_journal(path, b"another\n") is None
    os.lseek(fd, 0, os.SEEK_SET)
    write_all(fd, b"line\n")
    os.close(fd)
    assert path.read_bytes() == b"head\nline\n"
    assert os.listdir(tmp_path) == ["journal"]


def test_a_listing_is_sorted_and_without_hidden_names(tmp_path: Path) -> None:
    for name in ("b", "a", ".nfs000123", ".a.12.0.abcd", "c"):
        (tmp_path / name).touch()
    assert listdir(tmp_path) == ["a", "b", "c"]
    assert listdir(tmp_path / "nowhere") == []
    assert listdir(tmp_path / "a") == []


def test_a_file_that_is_missing_has_no_bytes_and_no_record(tmp_path: Path) -> None:
    assert read_bytes(tmp_path / "nowhere") is None
    assert read_record(tmp_path / "nowhere", DrainOrder) is None
    (tmp_path / "empty").touch()
    assert read_bytes(tmp_path / "empty") == b""
    assert read_record(tmp_path / "empty", DrainOrder) is None
    (tmp_path / "order").write_bytes(encode(DrainOrder(why="asked", at=1.0)))
    assert read_record(tmp_path / "order", DrainOrder) == DrainOrder(why="asked", at=1.0)
    assert read_record(tmp_path / "order", Claim) is None


def test_a_link_or_a_folder_in_the_place_of_a_record_reads_as_empty(tmp_path: Path) -> None:
    """A link is not followed, since somebody else may have set it."""
    (tmp_path / "order").write_bytes(encode(DrainOrder(why="asked", at=1.0)))
    (tmp_path / "link").symlink_to(tmp_path / "order")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    for name in ("link", "dangling", "folder"):
        assert read_bytes(tmp_path / name) == b""
        assert read_record(tmp_path / name, DrainOrder) is None
