"""Who may decide what a start of a run executes and where it writes: owners, modes, hostile names.

Two real users take part: root changes to them by setpriv(1), so those tests need root and skip
elsewhere. The users keep the capability to read everything, since the tests' own interpreter may
lie in a folder of root's; writing is what these tests are about.
"""

import contextlib
import ctypes
import os
import pwd
import shutil
import stat
import sys
import tempfile
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from helpers import GPUSPOOL, JOBS, Box, tree, wait_until

import gpuspool
from gpuspool.spool.errors import UsageError
from gpuspool.spool.layout import Layout
from gpuspool.spool.publish import publish
from gpuspool.spool.trust import Trust, refuse_unsafe, trust_in
from gpuspool.spool.view import open_view

# A user with a name on nearly every system, and one that has only a number. Both are in the group
# of the project, which has no name either.
ADA = "daemon"
BOB_UID = 424242
PROJECT_GID = 434343
DOUBLE = f"{JOBS}/plain.py:double"

needs_two_users = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None,
    reason="only root may become two users, and setpriv(1) makes him so",
)


def uid_of(name: str) -> int:
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        pytest.skip(f"there is no user {name} here")


def become(uid: int, umask: str = "002", program: str = GPUSPOOL) -> tuple[str, ...]:
    """What to put in front of a command so that a user of the project runs it."""
    only_reading = "-all,+dac_read_search"
    return (
        "setpriv",
        f"--reuid={uid}",
        f"--regid={uid}",
        f"--groups={PROJECT_GID}",
        f"--inh-caps={only_reading}",
        f"--ambient-caps={only_reading}",
        "sh",
        "-c",
        f'umask {umask}; exec "$@"',
        "sh",
        program,
    )


@pytest.fixture
def project(box: Box) -> Path:
    """A folder of the group: setgid, and the group may write."""
    folder = box / "project"
    folder.mkdir()
    os.chown(folder, uid_of(ADA), PROJECT_GID)
    folder.chmod(0o2775)
    box.lines(6)
    # Every second task fails until there is a file named `good`.
    box.write(
        "job.py",
        "import os\n"
        "def f(task, ctx):\n"
        "    assert task.index % 2 or os.path.exists('good')\n"
        "    return os.geteuid()\n",
    )
    return folder


# A spool that somebody else prepared.


@needs_two_users
def test_root_runs_nothing_of_a_spool_that_another_user_prepared(box: Box, project: Path) -> None:
    ada = become(uid_of(ADA))
    victim = box.write("victim.py", "precious = True\n")
    command = ["run", box / "job.py:f", "--lines", box / "lines", "--spool", "S"]
    box.run(*command, program=ada, cwd=project, code=3)
    # The copy of the job is said to be a file outside of the spool, which is then "restored".
    point_copy_at(Layout(project / "S"), "../../../victim.py")
    before = tree(box.home)
    for verb in (command, [*command, "--fresh"], ["resume", "S"], ["retry", "S"], ["drain", "S"]):
        done = box.run(*verb, cwd=project, code=None)
        assert done.code in (2, 5), done
        assert "Traceback" not in done.err
    assert victim.read_text() == "precious = True\n"
    assert tree(box.home) == before


@needs_two_users
def test_a_strangers_spool_is_refused_by_what_writes_and_read_by_what_reads(
    box: Box, project: Path
) -> None:
    ada = become(uid_of(ADA))
    command = ["run", box / "job.py:f", "--lines", box / "lines", "--spool", "S"]
    box.run(*command, program=ada, cwd=project, code=3)
    before = tree(box.home)
    for verb in (command, [*command, "--fresh"], ["resume", "S"], ["retry", "S"], ["drain", "S"]):
        done = box.run(*verb, cwd=project, code=2)
        assert f"--trust-owner {ADA}" in done.err
        assert str(project / "S") in done.err
    for call in (gpuspool.resume, gpuspool.retry, gpuspool.drain):
        with pytest.raises(gpuspool.UsageError, match=f"--trust-owner {ADA}"):
            call(project / "S")
    assert tree(box.home) == before
    for verb in ("status", "results", "failed", "logs", "verify"):
        box.run(verb, "S", cwd=project)
    box.run("wait", "S", cwd=project, code=3)


# A group's project folder.


@needs_two_users
def test_two_users_of_a_project_go_on_with_each_others_runs(box: Box, project: Path) -> None:
    """Everything works as before, once each has said that the other is trusted."""
    ada, bob = become(uid_of(ADA)), become(BOB_UID)
    command = ["run", box / "job.py:f", "--lines", box / "lines", "--spool", "S", "--out", "out"]
    box.run(*command, program=ada, cwd=project, code=3)
    box.write("project/good", "")
    done = box.run("retry", "S", program=bob, cwd=project, code=2)
    assert f"--trust-owner {ADA}" in done.err

    box.run("retry", "S", "--trust-owner", ADA, program=bob, cwd=project)
    uids = [result["result"] for result in box.results(project / "S")]
    assert uids == [BOB_UID, uid_of(ADA)] * 3

    # What Bob wrote is in there now: an intent, which names code, belongs to him.
    done = box.run("resume", "S", program=ada, cwd=project, code=2)
    assert f"--trust-owner {BOB_UID}" in done.err, "a number is told where there is no name"
    box.run("resume", "S", "--trust-owner", str(BOB_UID), program=ada, cwd=project)
    box.run(*command, program=ada, cwd=project, env={"GPUSPOOL_TRUST_OWNER": f"{BOB_UID} root"})
    trusting = f"import gpuspool; gpuspool.resume('S', trust_owner=['{BOB_UID}'])"
    python = become(uid_of(ADA), program=sys.executable)
    box.run("-c", trusting, program=python, cwd=project)
    box.run("drain", "S", "--trust-owner", ADA, "--trust-owner", BOB_UID, cwd=project)
    assert box.problems(project / "S") == []
    for path in (project / "S").rglob("*"):
        assert path.stat().st_gid == PROJECT_GID, "setgid holds for all that is made"


@needs_two_users
def test_a_new_run_in_a_folder_of_another_user_needs_no_trust(box: Box, project: Path) -> None:
    command = ["run", box / "job.py:f", "--lines", box / "lines"]
    bob = become(BOB_UID)
    box.run(*command, program=bob, cwd=project, code=3)
    box.run(*command, program=bob, cwd=project, code=3)
    box.run("retry", program=bob, cwd=project, code=3)


@needs_two_users
def test_root_is_trusted_by_everybody(box: Box, project: Path) -> None:
    command = ["run", box / "job.py:f", "--lines", box / "lines", "--spool", "S"]
    box.run(*command, program=become(0), cwd=project, code=3)
    box.run("retry", "S", program=become(BOB_UID), cwd=project, code=3)


def test_an_owner_who_does_not_exist_is_refused(box: Box) -> None:
    done = box.run("resume", "S", "--trust-owner", "no-such-user", code=2)
    assert "--trust-owner no-such-user" in done.err
    with pytest.raises(UsageError):
        trust_in(["no-such-user"])
    with pytest.raises(UsageError):
        trust_in(str(2**32))
    assert trust_in("root").named == [0]
    assert trust_in([str(BOB_UID), "0"]).named == [0, BOB_UID]


# What belongs to whom, file by file.


@pytest.fixture
def spool(box: Box) -> Layout:
    """A finished run of this user's."""
    box.run("run", DOUBLE, "--lines", box.lines(2), "--spool", "S")
    return Layout(box / "S")


@needs_two_users
@pytest.mark.parametrize(
    "name",
    [
        ".",
        "run.json",
        "job",
        "job/plain.py",
        "job/run.json",
        "attempts",
        "attempts/rank-0000.a00.json",
        "manifests",
        "manifests/rank-0000.jsonl",
        "manifests/rank-0000.a00.orphans.jsonl",
        "claims",
    ],
)
def test_whatever_names_code_must_belong_to_somebody_who_is_trusted(
    spool: Layout, name: str
) -> None:
    os.chown(spool.root / name, BOB_UID, -1)
    view = open_view(spool.root)
    with pytest.raises(UsageError, match=f"belongs to {BOB_UID}"):
        refuse_unsafe(spool, Trust(), view.owners)
    refuse_unsafe(spool, Trust([BOB_UID]), view.owners)


@needs_two_users
@pytest.mark.parametrize("name", ["journal/rank-0000.a00.jsonl", "orchestrator.lock", "outputs"])
def test_what_names_no_code_may_be_anybodys(spool: Layout, name: str) -> None:
    os.chown(spool.root / name, BOB_UID, -1)
    refuse_unsafe(spool, Trust(), open_view(spool.root).owners)


@needs_two_users
def test_a_link_to_a_spool_belongs_to_somebody_too(spool: Layout, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(spool.root)
    refuse_unsafe(Layout(link), Trust(), {})
    os.chown(link, BOB_UID, -1, follow_symlinks=False)
    with pytest.raises(UsageError, match="belongs to"):
        refuse_unsafe(Layout(link), Trust(), {})


@needs_two_users
def test_a_worker_obeys_no_intent_but_its_own_users(box: Box, spool: Layout) -> None:
    intent = spool.intent("rank-0000.a07")
    shutil.copy(spool.intent("rank-0000.a00"), intent)
    os.chown(intent, BOB_UID, -1)
    worker = (sys.executable, "-P", "-m", "gpuspool.worker")
    words = ["--spool", spool.root, "--rank", "0", "--attempt", "7"]
    done = box.run(*words, program=worker, code=2)
    assert f"belongs to {BOB_UID}" in done.err + done.out
    assert not spool.journal("rank-0000.a07").exists()


@needs_two_users
def test_who_a_file_server_calls_by_another_number_is_still_himself(spool: Layout) -> None:
    """The file system gives root's files to another user here, as NFS does by root_squash."""
    # That user must reach the folder, which lies in a folder of root's.
    with tempfile.TemporaryDirectory() as reachable:
        os.chmod(reachable, 0o755)
        moved = Layout(shutil.copytree(spool.root, Path(reachable, "S")))
        for path in (moved.root, *moved.root.rglob("*")):
            os.chown(path, BOB_UID, -1)
        owners = open_view(moved.root).owners
        with pytest.raises(UsageError):
            refuse_unsafe(moved, Trust(), owners)
        with files_made_as(BOB_UID):
            refuse_unsafe(moved, Trust(), owners)
        assert not list(moved.root.glob(".*")), "what was tried is removed"
        with files_made_as(BOB_UID + 1), pytest.raises(UsageError):
            refuse_unsafe(moved, Trust(), owners)


@contextlib.contextmanager
def files_made_as(uid: int) -> Iterator[None]:
    """Let new files of this process belong to another user, by setfsuid(2)."""
    libc = ctypes.CDLL(None)
    libc.setfsuid(uid)
    try:
        yield
    finally:
        libc.setfsuid(os.geteuid())


# Modes.


def test_a_file_that_gets_its_name_while_it_is_looked_at_stops_nobody(spool: Layout) -> None:
    """As when another start, or a worker, publishes which code it has."""
    is_over = threading.Event()

    def come_and_go() -> None:
        number = 0
        while not is_over.is_set():
            publish(spool.code(f"{number:032x}"), b"{}", durable=False)
            spool.code(f"{number:032x}").unlink()
            number += 1

    other = threading.Thread(target=come_and_go)
    other.start()
    try:
        for _ in range(500):
            refuse_unsafe(spool, Trust(), {})
    finally:
        is_over.set()
        other.join()


def test_folders_that_everybody_may_write_are_refused(spool: Layout) -> None:
    for name in ("attempts", "manifests", "claims", "control", "job"):
        folder = spool.root / name
        before = folder.stat().st_mode
        folder.chmod(before | stat.S_IWOTH)
        with pytest.raises(UsageError, match="written by everybody"):
            refuse_unsafe(spool, Trust(), {})
        folder.chmod(before)
    refuse_unsafe(spool, Trust(), {})


WARM = (
    "import os\n"
    "class Job:\n"
    "    @classmethod\n"
    "    def warmup(cls, ctx): pass\n"
    "    def __call__(self, task, ctx):\n"
    "        assert os.path.exists('good') or task.index\n"
    "        fd = os.open(ctx.output(task), os.O_WRONLY | os.O_CREAT, 0o666)\n"
    "        os.close(fd)\n"
)


@pytest.mark.parametrize("umask", ["000", "002", "007", "022", "027", "077"])
def test_nobody_outside_the_group_may_write_what_gpuspool_makes(box: Box, umask: str) -> None:
    """Folders and files, in the spool and in OUT; what the job itself makes is the job's affair."""
    box.write("job.py", WARM)
    box.write("in/deep/a", "1")
    box.write("in/b", "22")
    shell = ("sh", "-c", f'umask {umask}; exec "$@"', "sh", GPUSPOOL)
    command = ["run", "job.py:Job", "in/**/*", "--spool", "new/S", "--out", "made/out"]
    command += ["--task-timeout", "60"]
    box.run(*command, program=shell, code=3)
    box.write("good", "")
    box.run("retry", "new/S", program=shell)
    for top in ("new", "made"):
        for path in (box / top, *(box / top).rglob("*")):
            mode = path.lstat().st_mode
            most = 0o775 if path.is_dir() else 0o664
            if path.name in ("a", "b"):
                most = 0o666
            if path.name == "orchestrator.lock":
                continue
            assert stat.S_IMODE(mode) == most & ~int(umask, 8), path
    assert box.problems("new/S") == []


def test_the_seed_api_makes_nothing_that_everybody_may_write(box: Box) -> None:
    box.write(
        "script.py",
        "import os\nfrom gpuspool import GPUProcessCoordinator\n"
        "def work(rank, world_size, queue): queue.put({'rank': rank})\n"
        "if __name__ == '__main__':\n"
        "    os.umask(0)\n"
        "    coordinator = GPUProcessCoordinator(1, 'all')\n"
        "    coordinator.spawn_workers(work, ())\n"
        "    coordinator.wait_for_completion()\n",
    )
    box.run("script.py", program=(sys.executable,), env={"CUDA_VISIBLE_DEVICES": None})
    made = [box / "all", *(box / "all").rglob("*")]
    assert any("reports" in str(path) for path in made)
    assert [path for path in made if path.lstat().st_mode & stat.S_IWOTH] == []


# The lock.


def lock_mode(layout: Layout) -> int:
    return stat.S_IMODE(layout.lock.stat().st_mode)


def test_the_lock_is_for_those_who_may_write(box: Box, spool: Layout) -> None:
    assert lock_mode(spool) == 0o600
    # A spool of an older version, and one that a group shares from now on.
    spool.lock.chmod(0o644)
    box.run("resume", "S")
    assert lock_mode(spool) == 0o600
    spool.root.chmod(0o775)
    box.run("resume", "S")
    assert lock_mode(spool) == 0o660


IMPATIENT = """
import sys
from gpuspool.orchestrator.supervise import lock
from gpuspool.orchestrator.cli.main import main

lock.PATIENCE_S = 0.2
sys.exit(main())
"""


@pytest.mark.skipif(shutil.which("flock") is None, reason="flock(1) is not there")
def test_who_keeps_others_from_being_admitted_is_told(box: Box, spool: Layout) -> None:
    holder = box.start(spool.lock, "sh", "-c", "echo held; exec sleep 1000", program=("flock",))
    out = box.home.parent / f"{box.home.name}-cli" / "1.out"
    wait_until(lambda: "held" in out.read_text())
    program = (sys.executable, str(box.write("impatient.py", IMPATIENT)))
    for verb in (["resume", "S"], ["run", DOUBLE, "--lines", "lines", "--spool", "S", "--fresh"]):
        done = box.run(*verb, program=program, code=6)
        assert f"process {holder.pid} (" in done.err
        assert pwd.getpwuid(os.geteuid()).pw_name in done.err
        assert "end it" in done.err


# Helpers for spools that somebody changed.


def point_copy_at(layout: Layout, copy: str) -> None:
    """Say in both run records and in each intent that the job's copy has this name."""
    for path in (layout.run, layout.run_copy, *layout.attempts.iterdir()):
        record = msgspec.json.decode(path.read_bytes())
        del record["crc"]
        record["job"]["copy"] = copy
        body = msgspec.json.format(msgspec.json.encode(record), indent=2).removesuffix(b"\n}")
        path.write_bytes(body + b',\n  "crc": "%08x"\n}\n' % zlib.crc32(body))
