"""Records that hold names which lead elsewhere, and files that are not what their names say.

Whoever can write to a spool could lead its next reader or writer to any file otherwise. The reading
verbs take a spool of anybody, so every name that a file is found or made by is checked where it is
read.
"""

import contextlib
import os
import shutil
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from helpers import Box, tree
from hypothesis import given, settings
from hypothesis import strategies as st
from spooling import A0, make_spool, some_run, view_of

import gpuspool
from gpuspool.spool.codec import decode, encode
from gpuspool.spool.errors import Damaged, GpuspoolError
from gpuspool.spool.layout import NAME_BYTES, STATES, Layout, copy_name, leads_out, refuse_key
from gpuspool.spool.publish import make_subfolder, open_to_append, read_bytes, read_sealed
from gpuspool.spool.records import Closing, Heartbeat, Intent, Job, JournalHead, Parent, Run

# Names that lead elsewhere, or to nothing.
ELSEWHERE = [
    "../x", "../../x", "/tmp/x", "a/../../x", "..", ".", "", "a/b", "a\0b", "a/", "/",
    "rank-0000.a00/x",
    "rank-0000.a00\n", "../rank-0000.a00", "rank-0000.a", "rank-٣٣٣٣.a٠٠", "rank-0000.a00\0",
    "rank-" + "9" * 200 + ".a00", "x" * 5000, ".hidden", "run.json", "~/x", "C:\\x", "\udcff",
]  # fmt: skip
hostile = st.sampled_from([name for name in ELSEWHERE if name != "\udcff"]) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=30
)


def resealed(data: bytes, **changes: Any) -> bytes:
    """The bytes of a sealed record, indented or a line, with other values in some fields."""
    record = msgspec.json.decode(data)
    record.pop("crc", None)
    for field, value in changes.items():
        *path, last = field.split("__")
        inner = record
        for part in path:
            inner = inner[part]
        inner[last] = value
    if data.startswith(b"{\n"):
        body = msgspec.json.format(msgspec.json.encode(record), indent=2).removesuffix(b"\n}")
        return body + b',\n  "crc": "%08x"\n}\n' % zlib.crc32(body)
    body = msgspec.json.encode(record).removesuffix(b"}")
    return body + b',"crc":"%08x"}\n' % zlib.crc32(body)


# Every field that a file is found or made by, or that looks as if it were: the file, the number of
# the line in it (None: the whole file), and the field.
FIELDS = [
    ("run.json", None, "job__copy"),
    ("run.json", None, "job__name"),
    ("run.json", None, "id"),
    (f"attempts/{A0}.json", None, "attempt"),
    (f"attempts/{A0}.json", None, "job__copy"),
    (f"attempts/{A0}.json", None, "device"),
    (f"attempts/{A0}.json", None, "parent__host"),
    (f"manifests/{A0}.orphans.jsonl", 0, "attempt"),
    (f"manifests/{A0}.orphans.jsonl", 0, "by"),
    (f"manifests/{A0}.orphans.jsonl", 0, "stats__device"),
    ("manifests/rank-0000.jsonl", 0, "key"),
    ("manifests/rank-0000.jsonl", 1, "key"),
    (f"journal/{A0}.jsonl", 0, "attempt"),
    (f"journal/{A0}.jsonl", 0, "host"),
    (f"journal/{A0}.jsonl", 1, "outputs"),
    (f"heartbeat/{A0}.json", None, "attempt"),
    (f"heartbeat/{A0}.json", None, "host"),
    ("claims/rank-0000/000000000", None, "attempt"),
    ("parents/0000.json", None, "host"),
    ("parents/0000.json", None, "command"),
    ("parents/0000.json", None, "folder"),
    ("parents/0000.end.json", None, "message"),
    (f"STATE/{A0}.json", None, "attempt"),
    ("failed-tasks/t1.json", None, "key"),
    ("failed-tasks/t1.json", None, "attempt"),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run with an output and a failed task, in a folder of its own."""
    home = tmp_path_factory.mktemp("finished") / "home"
    home.mkdir()
    box = Box(home)
    box.write(
        "job.py",
        "def f(task, ctx):\n"
        "    assert task.index == 0\n"
        "    open(ctx.output(task), 'w').write('1')\n",
    )
    # Every field that may hold a hostile name was written by a process, not made up here.
    box.run("run", "job.py:f", "--lines", box.lines(2), "--spool", "S", code=3)
    yield home
    box.kill_all()


def set_field(path: Path, line: int | None, field: str, value: Any) -> None:
    """Set one field of a record on disk, with a checksum that is right wherever there was one."""
    data = path.read_bytes()
    if line is None:
        path.write_bytes(resealed(data, **{field: value}))
        return
    lines = data.splitlines(keepends=True)
    lines[line] = resealed(lines[line], **{field: value})
    path.write_bytes(b"".join(lines))


@settings(max_examples=80)
@given(st.sampled_from(FIELDS), hostile)
def test_no_name_in_a_record_leads_anywhere_else(
    finished: Path, field: tuple[str, int | None, str], name: str
) -> None:
    """Whatever one field says, all verbs end in peace or with an error of ours, and nothing outside
    of the spool is made, changed or named as an output.
    """
    check_that_nothing_leads_elsewhere(finished, *field, name)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "../../../x", "/etc/passwd"])
def test_an_output_with_a_name_that_no_file_below_out_has(finished: Path, name: str) -> None:
    check_that_nothing_leads_elsewhere(finished, f"journal/{A0}.jsonl", 1, "outputs", name)


def check_that_nothing_leads_elsewhere(
    finished: Path, file: str, line: int | None, what: str, name: str
) -> None:
    with tempfile.TemporaryDirectory() as top:
        root = Path(top, "deep", "down", "S")
        shutil.copytree(finished / "S", root)
        Path(top, "x").write_text("precious")
        if file.startswith("STATE/"):
            [record] = [path for path in map(root.joinpath, states_of(file)) if path.exists()]
            file = str(record.relative_to(root))
        # So that every other copy is made again, under the names that the records tell.
        for state in STATES:
            for record in (root / state).iterdir():
                if f"{state}/{record.name}" != file:
                    record.unlink()
        value: Any = name.replace("/tmp/", f"{top}/")
        if what == "outputs":
            value = [[value, 1]]
        set_field(root / file, line, what, value)
        if file == "run.json":
            shutil.copy(root / file, root / "job" / "run.json")
        before = outside(Path(top), root)
        writers: list[Callable[[Path], object]] = [
            lambda spool: gpuspool.resume(spool, quiet=True, keep_done=True),
            gpuspool.drain,
        ]
        for call in (*READERS, *writers, gpuspool.verify):
            with contextlib.suppress(GpuspoolError):
                call(root)
        assert outside(Path(top), root) == before


def states_of(file: str) -> list[str]:
    """The names that a status record may have, as it depends on how its attempt ended."""
    return [file.replace("STATE", state) for state in STATES]


def outside(top: Path, root: Path) -> dict[str, bytes | None]:
    """All that lies in a folder but not in the spool."""
    inside = str(root.relative_to(top))
    everything = tree(top).items()
    return {name: data for name, data in everything if not name.startswith(f"{inside}/")}


def check_outputs(results: Iterable[gpuspool.Result]) -> None:
    for result in results:
        for name in result.outputs:
            assert leads_out(name) is None


# All that only reads a spool, without the cost of a process.
READERS: list[Callable[[Path], object]] = [
    gpuspool.status,
    gpuspool.verify,
    lambda spool: "".join(gpuspool.logs(spool)),
    lambda spool: check_outputs(gpuspool.results(spool)),
    lambda spool: check_outputs(gpuspool.failed(spool)),
]


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_record_with_such_a_name_is_damaged(finished: Path, name: str) -> None:
    if name == "\udcff":
        pytest.skip("JSON cannot hold it")
    layout = Layout(finished / "S")
    heads = [
        (layout.heartbeat(A0).read_bytes(), Heartbeat),
        (layout.intent(A0).read_bytes(), Intent),
        (layout.journal(A0).read_bytes().splitlines()[0], JournalHead),
        (layout.orphans(A0).read_bytes().splitlines()[0], Closing),
    ]
    for data, kind in heads:
        decode(data, kind)
        with pytest.raises(Damaged):
            decode(resealed(data, attempt=name), kind)
    run = layout.run.read_bytes()
    if not name.startswith("/") or "\0" in name:
        for field in ("out", "submit_dir"):
            with pytest.raises(Damaged):
                decode(resealed(run, **{field: name}), Run)


@pytest.mark.parametrize(
    "name", ["../x", "/tmp/x", ".", "..", "a/b", "a\0b", ".hidden", "run.json", "x" * 256]
)
def test_a_copy_of_the_job_has_one_plain_name(finished: Path, name: str) -> None:
    data = Layout(finished / "S").run.read_bytes()
    with pytest.raises(Damaged):
        decode(resealed(data, job__copy=name), Run)


# A key becomes a path in the worker.


@pytest.mark.parametrize("key", ["../out", "../../x", "/tmp/gpuspool-x", "a/../../x", ".gpuspool"])
def test_a_worker_writes_no_output_elsewhere(box: Box, key: str) -> None:
    box.write(
        "job.py",
        "import os\n"
        "def f(task, ctx):\n"
        "    open(ctx.output(task, '.txt'), 'w').write('1')\n"
        "    assert task.index or os.path.exists('good')\n",
    )
    box.run(
        "run", "job.py:f", "--lines", box.lines(2), "--spool", "S", "--time-limit", "1h", code=3
    )
    # The retry that follows reads the key from one of the manifests that the task stands in.
    for manifest in (box / "S" / "manifests").iterdir():
        for number, line in enumerate(manifest.read_bytes().splitlines()):
            if msgspec.json.decode(line).get("key") == "t0":
                set_field(manifest, number, "key", key)
    box.write("good", "")
    before = outside(box.home, box / "S")
    box.run("retry", "S", code=3)
    assert outside(box.home, box / "S") == before
    assert not Path("/tmp/gpuspool-x.txt").exists()
    [failed] = [result for result in box.results("S") if result["state"] == "failed"]
    assert "ctx.output" in failed["error"]["message"]


# Files that are not what their names say.


def test_nothing_is_appended_to_what_is_no_plain_file_of_its_own(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    link, second, fifo, folder = (tmp_path / name for name in ("link", "second", "fifo", "folder"))
    link.symlink_to(victim)
    os.link(victim, second)
    os.mkfifo(fifo)
    folder.mkdir()
    for path in (link, second, fifo, folder):
        with pytest.raises(OSError, match=str(path)):
            open_to_append(path)
    assert victim.read_text() == "precious"
    fd = open_to_append(tmp_path / "new")
    os.write(fd, b"one")
    assert os.get_blocking(fd)
    os.close(fd)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) & stat.S_IWOTH == 0


@pytest.mark.parametrize("kind", ["link", "fifo", "second name", "socket-like folder"])
@pytest.mark.parametrize(
    "name", ["events/0001.jsonl", "parents/0001.json", "parents/0001.end.json", "summary.json"]
)
def test_a_start_writes_through_nothing_that_was_planted(box: Box, kind: str, name: str) -> None:
    box.run("run", "--lines", box.lines(1), "--spool", "S", "--", "true", "{input}")
    victim = box.write("victim", "precious")
    path = box / "S" / name
    path.unlink(missing_ok=True)
    if kind == "link":
        path.symlink_to(victim)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "second name":
        os.link(victim, path)
    else:
        path.mkdir()
    box.run("resume", "S", code=None)
    for read in READERS:
        with contextlib.suppress(GpuspoolError):
            read(box / "S")
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("log", ["log", "stacks"])
def test_a_worker_whose_log_was_planted_does_not_begin(box: Box, log: str) -> None:
    box.write("job.py", "import os\ndef f(task, ctx): assert os.path.exists('good')\n")
    victim = box.write("victim", "precious")
    command = ["run", "job.py:f", "--lines", box.lines(1), "--spool", "S", "--task-timeout", "60"]
    # Nothing completes, so the task has no verdict, and a resume starts another worker for it.
    box.run(*command, code=4)
    box.write("good", "")
    for number in range(20):
        path = box / "S" / "logs" / f"rank-0000.a{number:02d}.{log}"
        if not path.exists():
            path.symlink_to(victim)
    box.run("resume", "S", code=None)
    assert victim.read_text() == "precious"


def test_a_link_is_no_folder_of_a_spool(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "claims").symlink_to("elsewhere")
    with pytest.raises(OSError, match="claims"):
        make_subfolder(tmp_path / "claims")
    make_subfolder(tmp_path / "new")
    make_subfolder(tmp_path / "new")


def test_a_file_of_terabytes_takes_nobodys_memory(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "S", 2)
    for path in (layout.heartbeat(A0), layout.parent(0), layout.intent(A0), layout.run):
        with open(path, "wb") as file:
            file.truncate(1 << 42)
    assert read_sealed(layout.parent(0), Parent) is None
    layout.run_copy.write_bytes(resealed(pretty_run()))
    view = view_of(layout)
    assert any("run.json" in damage.path or A0 in damage.path for damage in view.damage)
    with pytest.raises(OSError, match=str(layout.run)) as caught:
        read_bytes(layout.run)
    assert caught.value.errno is not None


def pretty_run() -> bytes:
    return msgspec.json.format(encode(some_run(2)), indent=2)


# Names.


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1))
def test_every_source_gets_a_copy_with_one_plain_name(name: str) -> None:
    for sha256 in ("", "0" * 64):
        copy = copy_name(name[:80], sha256)
        assert len(os.fsencode(copy)) <= NAME_BYTES
        job = Job(kind="file", spec="", copy=copy)
        assert decode(encode(job), Job).copy == copy
        assert Layout("/s").job_copy(copy).parent == Path("/s/job")
    assert copy_name("job.py") == "job.py"
    assert copy_name("job.py", "0123456789") == "job.01234567.py"


@given(hostile)
def test_a_key_that_is_taken_lies_below_out(key: str) -> None:
    if refuse_key(key) is None:
        path = os.path.normpath(f"/out/{key}")
        assert path.startswith("/out/")
        assert path == f"/out/{key}"
