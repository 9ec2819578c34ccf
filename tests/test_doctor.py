"""`gpuspool doctor`: what a file system keeps, found out by trying; a run passes on what it finds
wrong.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import GPUSPOOL, JOBS, Box, tree

from gpuspool.orchestrator.supervise.doctor import LOW_INODES, examine

DOUBLE = f"{JOBS}/plain.py:double"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system with little room and few inodes."""
    folder = tmp_path / "small"
    folder.mkdir()
    options = f"size=4m,nr_inodes={LOW_INODES // 2}"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a file system here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_good_file_system_is_fit_and_left_as_it_was(box: Box) -> None:
    box.write("data", "precious")
    before = tree(box.home)
    done = box.run("doctor", ".")
    assert done.out.splitlines()[-1] == ". is fit for a spool on this host alone"
    assert tree(box.home) == before
    found = box.run("doctor", ".", "--json").record()
    assert (found["is_fit"], found["folder"]) == (True, str(box.home))
    names = {check["name"]: check["state"] for check in found["checks"]}
    assert names.keys() == {
        "type",
        "exclusive",
        "link",
        "rename",
        "lock",
        "space",
        "sync",
        "inotify",
    }
    assert {state for name, state in names.items() if name != "space"} == {"ok"}


def test_a_file_system_with_little_room_is_warned_of_by_doctor_and_by_a_run(
    box: Box, small: Path
) -> None:
    found = {check.name: check for check in examine(small)}
    assert found["space"].state == "warning"
    done = box.run("run", DOUBLE, "--lines", box.lines(2), "--spool", small / "S")
    assert f"warning: {small / 'S'}: space:" in done.err


def test_a_file_system_that_does_not_count_its_inodes_is_not_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As CephFS does not: all bits of the number are set, which Python reads as -1."""
    known = os.statvfs(tmp_path)
    told = (*known[:5], 18, -1, -1, *known[8:])
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(told))
    found = {check.name: check for check in examine(tmp_path, is_thorough=False)}
    assert found["space"].state == "ok"
    assert "inodes" not in found["space"].detail


def test_a_file_system_without_hard_links_is_not_fit(box: Box) -> None:
    """Where link(2) fails, as on some FUSE and CIFS mounts; strace makes it fail here."""
    if subprocess.run(["which", "strace"], capture_output=True, check=False).returncode:
        pytest.skip("strace is not installed")
    strace = (
        "strace",
        "-f",
        "-o",
        "/dev/null",
        "-e",
        "trace=link,linkat",
        "-e",
        "inject=link,linkat:error=EPERM",
    )
    done = box.run("doctor", ".", "--json", program=(*strace, GPUSPOOL), code=1)
    found = {check["name"]: check for check in done.record()["checks"]}
    assert found["link"]["state"] == "problem"
    assert "Operation not permitted" in found["link"]["detail"]
    assert found["rename"]["state"] == "ok"


def test_what_is_no_folder_is_refused(box: Box) -> None:
    box.write("file", "x")
    for name in ("file", "nowhere"):
        assert "is not a folder" in box.run("doctor", name, code=2).err


@pytest.mark.skipif(not Path("/proc/sys").exists(), reason="needs a folder that nobody may write")
def test_a_folder_that_takes_nothing_says_so(box: Box) -> None:
    assert "errno" in box.run("doctor", "/proc/sys", code=1).err
