"""Hosts that are not as one expects: foreign mounts, a /proc that is missing or hides processes.

What needs mounts or namespaces of its own needs root.
"""

import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import GPUSPOOL, JOBS, Box

from gpuspool.spool.file_system import file_system_type, is_network
from gpuspool.spool.identity import identity_of, liveness
from gpuspool.spool.states import Life

DOUBLE = f"{JOBS}/plain.py:double"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount file systems")
PRIVATE = (1 << 18) | (1 << 14)  # MS_PRIVATE | MS_REC
NEW_MOUNTS = 0x20000  # CLONE_NEWNS
PR_SET_DUMPABLE = 4


class Mounts:
    """Mounts of one test, removed at its end."""

    def __init__(self) -> None:
        self._made: list[Path] = []

    def mount(self, point: Path, *options: str | Path) -> Path:
        point.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(["mount", *options, point], capture_output=True, check=False)
        if done.returncode:
            pytest.skip(f"cannot mount here: {os.fsdecode(done.stderr).strip()}")
        self._made.append(point)
        return point

    def tmpfs(self, point: Path) -> Path:
        return self.mount(point, "-t", "tmpfs", "tmpfs")

    def remove_all(self) -> None:
        for point in reversed(self._made):
            subprocess.run(["umount", "--lazy", point], check=True)


@pytest.fixture
def mounts() -> Iterator[Mounts]:
    made = Mounts()
    yield made
    made.remove_all()


@needs_root
@pytest.mark.parametrize("name", [b"caf\xe9", b"a b\tc", b"new\nline", b"\\040"])
def test_a_mount_of_somebody_elses_with_any_name_ends_no_run(
    box: Box, mounts: Mounts, tmp_path: Path, name: bytes
) -> None:
    foreign = mounts.tmpfs(tmp_path / os.fsdecode(name))
    box.run("run", DOUBLE, "--lines", box.lines(2), "--spool", "S")
    box.run("doctor", ".")
    assert file_system_type(foreign) == "tmpfs"
    assert file_system_type(foreign / "S") == "tmpfs"


@needs_root
def test_links_binds_and_hidden_mounts_are_what_they_lead_to(
    mounts: Mounts, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    ram = mounts.mount(tmp_path / "ram", "-t", "ramfs", "ramfs")
    (ram / "deep").mkdir()
    here.symlink_to(ram / "deep")
    assert file_system_type(here) == "ramfs"
    assert file_system_type(here / "not" / "made") == "ramfs"
    assert file_system_type(tmp_path / "ram" / ".." / "here") == "ramfs"
    bound = mounts.mount(tmp_path / "bound", "--bind", ram / "deep")
    assert file_system_type(bound) == "ramfs"
    # Of two mounts on one point the later hides the earlier.
    assert file_system_type(mounts.tmpfs(tmp_path / "ram")) == "tmpfs"
    own = file_system_type(tmp_path)
    assert own not in ("ramfs", "")
    back = tmp_path / "ram" / "back"
    back.symlink_to(tmp_path)
    assert file_system_type(back) == own


@needs_root
def test_a_folder_without_permission_to_read_tells_its_type(mounts: Mounts, tmp_path: Path) -> None:
    ram = mounts.mount(tmp_path / "ram", "-t", "ramfs", "ramfs")
    ram.chmod(0o111)
    assert file_system_type(ram) == "ramfs"


def test_types_that_other_hosts_write_to() -> None:
    for kind in ("nfs4", "lustre", "fuse.sshfs", "fuse", "9p", "virtiofs", "ocfs2"):
        assert is_network(kind), kind
    for kind in ("ext4", "xfs", "tmpfs", "overlay", "fuseblk", ""):
        assert not is_network(kind), kind


def unshared(*options: str, then: str) -> tuple[str, ...]:
    """A program that runs `gpuspool` in namespaces of its own, after some shell commands."""
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    return "unshare", *options, "sh", "-c", f'{then} && exec "$@"', "sh", GPUSPOOL


BLIND = {
    "no /proc": (("--mount",), "mount -t tmpfs none /proc"),
    "no boot id": (("--mount",), "mount -t tmpfs none /proc/sys"),
    "another's /proc": (("--pid", "--fork", "--kill-child"), "true"),
}


@needs_root
@pytest.mark.parametrize("what", BLIND)
def test_where_processes_cannot_be_told_apart_nothing_is_begun(box: Box, what: str) -> None:
    options, then = BLIND[what]
    command = ["run", DOUBLE, "--lines", box.lines(2), "--spool", "S"]
    done = box.run(*command, program=unshared(*options, then=then), code=2)
    assert "Processes cannot be told apart here" in done.err
    assert "mount" in done.err
    assert "Traceback" not in done.err
    assert not (box / "S").exists()
    # A spool that is there is left as it is, and can be gone on with elsewhere.
    box.run(*command)
    program = unshared(*options, then=then)
    assert box.run("status", "S", "--json", program=program).record()["tasks"]["complete"] == 2
    done = box.run("resume", "S", program=program, code=2)
    assert "Processes cannot be told apart here" in done.err


@needs_root
def test_a_pid_namespace_with_a_proc_of_its_own_is_as_good_as_any(box: Box) -> None:
    options = ("--pid", "--fork", "--kill-child", "--mount-proc")
    command = ["run", DOUBLE, "--lines", box.lines(2), "--spool", "S", "--ranks", "2"]
    box.run(*command, program=unshared(*options, then="true"))
    assert box.status("S")["tasks"]["complete"] == 2


@needs_root
@pytest.mark.parametrize("hidepid", ["noaccess", "invisible", "ptraceable"])
def test_a_process_that_proc_hides_is_never_taken_for_dead(hidepid: str) -> None:
    """In each way of hiding, also one of the same user that may not be traced."""
    libc = ctypes.CDLL(None)
    read, write = os.pipe()
    other = os.fork()
    if other == 0:
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
        os.write(write, b"x")
        while True:
            signal.pause()
    try:
        os.read(read, 1)
        theirs = identity_of(other)
        assert theirs is not None
        looker = os.fork()
        if looker == 0:
            code = 1
            # Whatever is raised, this copy of the test's process must not go on as a test.
            try:
                libc.unshare(NEW_MOUNTS)
                libc.mount(b"none", b"/", None, PRIVATE, None)
                libc.mount(b"proc", b"/proc", b"proc", 0, f"hidepid={hidepid}".encode())
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
                code = int(liveness(theirs) is Life.DEAD)
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(looker, 0)[1]) == 0
    finally:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
