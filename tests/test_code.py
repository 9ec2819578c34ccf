"""What a run consists of: helper modules, a command's files, weights behind --arg.

When one of them changed, the run would hold results of two codes. Whoever starts it is told, and
asked.
"""

import json
import os
import zipfile
from pathlib import Path

import pytest
from helpers import Box, names, record

from gpuspool.spool.code import conflicts, make_code, publish_code, read_code
from gpuspool.spool.layout import Layout
from gpuspool.spool.records import Code, CodeFile

# Ends its first process after half of the tasks, unless `more` is there.
JOB = """
import os, pathlib
import helper

def Job(task, ctx):
    if task.index >= 4 and not pathlib.Path("more").exists():
        os.kill(os.getppid(), 15)
        while not ctx.is_draining(): pass
        raise RuntimeError("drained")
    return helper.value()
"""
OLD = "def value(): return 'old'\n"
NEW = "def value(): return 'new'  # edited\n"


def half_done(box: Box, job: str = JOB, helper: str = "helper.py") -> tuple[str, ...]:
    """A run of 8 tasks that was drained after 4; the command that made it."""
    box.write("job.py", job)
    box.write(helper, OLD)
    command = ("run", "job.py:Job", "--lines", box.lines(8), "--spool", "S", "--ranks", "1")
    box.run(*command, code=75)
    box.write("more", "")
    return command


def values(box: Box) -> list[str]:
    return [one["result"] for one in box.run("results", "S", code=0).records()]


@pytest.mark.parametrize("verb", ["run", "resume", "retry", "redo"])
def test_a_helper_that_changed_is_told_with_its_difference(box: Box, verb: str) -> None:
    command = half_done(box)
    box.write("helper.py", NEW)
    again = {"run": command, "redo": ("redo", "S", "t0")}.get(verb, (verb, "S"))
    refused = box.run(*again, code=2)
    assert "helper.py (as it ran)" in refused.err
    assert "-def value(): return 'old'" in refused.err
    assert "+def value(): return 'new'  # edited" in refused.err
    assert "--keep-done" in refused.err
    box.run(*again, "--keep-done", code=0)
    wanted = ["old"] * 4 + ["new"] * 4
    if verb == "redo":
        wanted[0] = "new"
    assert values(box) == wanted
    # Nobody is asked twice.
    box.run(*command, code=0)


def test_an_unchanged_helper_is_nothing_to_tell_though_it_was_touched(box: Box) -> None:
    command = half_done(box)
    os.utime(box / "helper.py")
    box.run(*command, code=0)
    assert values(box) == ["old"] * 8


@pytest.mark.parametrize(
    ("source", "helper"),
    [
        (JOB.replace("import helper", "from lib import helper"), "lib/helper.py"),
        (JOB.replace("import helper", "from lib.deep import helper"), "lib/deep/helper.py"),
        ("import sys; sys.path.insert(0, 'other')\n" + JOB, "other/helper.py"),
        # Imported by the first call alone.
        (
            JOB.replace("import helper\n", "").replace("    return", "    import helper; return"),
            "helper.py",
        ),
    ],
    ids=["package", "deep", "path", "call"],
)
def test_helpers_are_known_wherever_they_are_imported_from(
    box: Box, source: str, helper: str
) -> None:
    command = half_done(box, source, helper)
    box.write(helper, NEW)
    assert "helper.py (as it ran)" in box.run(*command, code=2).err


def test_what_was_installed_is_not_part_of_the_run(box: Box) -> None:
    box.write("env/lib/python3/site-packages/helper.py", OLD)
    box.write(".venv/helper2.py", "")
    source = "import sys; sys.path[:0] = ['env/lib/python3/site-packages', '.venv']\n"
    command = half_done(box, source + "import helper2\n" + JOB, "unused.py")
    box.write("env/lib/python3/site-packages/helper.py", NEW)
    box.run(*command, code=0)


def test_a_helper_that_is_gone_is_told(box: Box) -> None:
    command = half_done(box)
    (box / "helper.py").unlink()
    assert "helper.py is gone" in box.run(*command, code=2).err


def test_a_module_in_a_zip_file_that_changed_is_told(box: Box) -> None:
    def pack(source: str) -> None:
        with zipfile.ZipFile(box / "lib.zip", "w") as archive:
            archive.writestr("packed/__init__.py", "")
            archive.writestr("packed/helper.py", source)

    pack(OLD)
    job = JOB.replace("import helper", "import sys; sys.path.insert(0, 'lib.zip')\n")
    command = half_done(box, f"{job}\nfrom packed import helper\n")
    box.run(*command, code=0)
    pack(NEW)
    refused = box.run("redo", "S", "t0", code=2).err
    assert f"{box / 'lib.zip'} changed" in refused


def test_a_project_that_was_moved_with_its_helpers_goes_on(box: Box) -> None:
    box.write("project/job.py", JOB)
    box.write("project/helper.py", OLD)
    lines = str(box / box.lines(8))
    command = ("run", "project/job.py:Job", "--lines", lines, "--spool", "S", "--ranks", "1")
    box.run(*command, code=75)
    box.write("more", "")
    (box / "project").rename(box / "elsewhere")
    moved = [word.replace("project/", "elsewhere/") for word in command]
    box.run(*moved, code=0)
    assert values(box) == ["old"] * 8


def test_a_process_that_follows_in_the_same_start_imports_what_the_first_one_did(box: Box) -> None:
    # The first process ends by a crash after the helper was edited; nobody was asked, so the rest
    # is done by the old code too, and the log says so.
    source = (
        "import os, pathlib, helper\n"
        "def Job(task, ctx):\n"
        "    if task.index == 4 and not pathlib.Path('edited').exists():\n"
        "        while not ctx_knows(): pass\n"
        f"        pathlib.Path('helper.py').write_text({NEW!r})\n"
        "        pathlib.Path('edited').touch()\n"
        "        os._exit(1)\n"
        "    return helper.value()\n"
        "def ctx_knows():\n"
        "    return any(pathlib.Path('S/job').glob('code-*.json')) and "
        "'code' in pathlib.Path('S/heartbeat/rank-0000.a00.json').read_text()\n"
    )
    box.write("job.py", source)
    box.write("helper.py", OLD)
    command = ("run", "job.py:Job", "--lines", box.lines(8), "--spool", "S", "--ranks", "1")
    box.run(*command, code=0)
    assert (box / "helper.py").read_text() == NEW
    assert values(box) == ["old"] * 8
    log = (box / "S" / "logs" / "rank-0000.a01.log").read_text()
    assert "helper.py changed since the run was started; its old text is imported" in log
    # Of the next start somebody is asked.
    box.lines(9)
    assert "helper.py (as it ran)" in box.run(*command, "--add", code=2).err


def test_a_helper_that_is_edited_while_the_job_loads_is_known_as_it_was_imported(box: Box) -> None:
    # A model may take minutes to load. The first process ends by a crash after that.
    source = (
        "import os, pathlib, helper\n"
        "class Job:\n"
        "    def __init__(self, ctx):\n"
        f"        pathlib.Path('helper.py').write_text({NEW!r})\n"
        "    def __call__(self, task, ctx):\n"
        "        if task.index == 4 and ctx.attempt == 'rank-0000.a00': os._exit(1)\n"
        "        return helper.value()\n"
    )
    box.write("job.py", source)
    box.write("helper.py", OLD)
    command = ("run", "job.py:Job", "--lines", box.lines(8), "--spool", "S", "--ranks", "1")
    box.run(*command, code=0)
    assert (box / "S" / "attempts" / "rank-0000.a01.json").exists()
    assert values(box) == ["old"] * 8


def test_a_helper_that_was_not_kept_is_known_as_each_process_imported_it(box: Box) -> None:
    # It is too long. So the second process has to import what is there, and says so.
    source = (
        "import os, pathlib, helper\n"
        "def Job(task, ctx):\n"
        "    if task.index == 4 and ctx.attempt == 'rank-0000.a00':\n"
        "        beat = pathlib.Path('S/heartbeat/rank-0000.a00.json')\n"
        "        while 'code' not in beat.read_text(): pass\n"
        f"        pathlib.Path('helper.py').write_text({NEW!r})\n"
        "        os._exit(1)\n"
        "    return helper.value()\n"
    )
    box.write("job.py", source)
    box.write("helper.py", OLD + "#" * 300_000 + "\n")
    command = ("run", "job.py:Job", "--lines", box.lines(8), "--spool", "S", "--ranks", "1")
    box.run(*command, code=0)
    assert values(box) == ["old"] * 4 + ["new"] * 4
    codes = [one["code"] for one in box.run("results", "S", code=0).records()]
    assert len(set(codes[:4])) == len(set(codes[4:])) == 1
    assert codes[0] != codes[4]


def test_what_is_no_text_in_sys_path_is_passed_over(box: Box) -> None:
    box.write("job.py", "import sys\nsys.path += [None, b'/x']\ndef Job(task, ctx): return 1\n")
    box.run("run", "job.py:Job", "--lines", box.lines(2), "--spool", "S", "--ranks", "1", code=0)


def test_results_tell_which_code_they_come_from(box: Box) -> None:
    command = half_done(box)
    box.write("helper.py", NEW)
    box.run(*command, "--keep-done", code=0)
    found = box.run("results", "S", code=0).records()
    codes = [one["code"] for one in found]
    assert len(set(codes)) == 2
    assert len(set(codes[:4])) == len(set(codes[4:])) == 1
    assert [one["attempt"] for one in found] == ["rank-0000.a00"] * 4 + ["rank-0000.a01"] * 4
    texts = []
    for code in (codes[0], codes[-1]):
        files = record(box / "S" / "job" / f"code-{code}.json")["files"]
        texts += [file["text"] for file in files if file["name"] == "helper.py"]
    assert texts == [OLD, NEW]


def drained_command(box: Box, *words: str, more: tuple[str, ...] = ()) -> tuple[str, ...]:
    command = (
        *("run", "--lines", box.lines(8), "--spool", "S", "--ranks", "1", *more),
        *("--", *words),
    )
    box.run(*command, code=75)
    box.write("more", "")
    return command


SCRIPT = """
import json, os, pathlib, signal, sys
if int(sys.argv[1]) >= 4 and not pathlib.Path("more").exists():
    holder = json.loads(pathlib.Path("S/parents/0000.json").read_text())
    os.kill(holder["pid"], 15)
    signal.pause()
# old
"""


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("python3", "script.py", "{input}"), "script.py"),
        pytest.param(("python3", "-m", "script", "{input}"), "script.py", marks=pytest.mark.slow),
        (("python3", "-m", "pack.script", "{input}"), "pack/script.py"),
        pytest.param(("./script.py", "{input}"), "script.py", marks=pytest.mark.slow),
        pytest.param(("python3", "{}/script.py", "{input}"), "script.py", marks=pytest.mark.slow),
        (("python3", "script.py", "{input}", "--model=weights.bin"), "weights.bin"),
    ],
    ids=["script", "module", "package", "program", "absolute", "option"],
)
def test_a_file_of_a_command_that_changed_is_told(
    box: Box, words: tuple[str, ...], name: str
) -> None:
    for script in ("script.py", "pack/script.py"):
        box.write(script, "#!/usr/bin/env python3" + SCRIPT)
        (box / script).chmod(0o755)
    box.write("weights.bin", "old")
    words = tuple(word.replace("{}", str(box / "")) for word in words)
    command = drained_command(box, *words, more=("--grace", "1s"))
    changed = box / name
    changed.write_text(changed.read_text().replace("old", "new"))
    assert f"{name} changed" in box.run(*command, code=2).err
    assert f"{name} changed" in box.run("resume", "S", code=2).err
    box.run(command[0], "--keep-done", *command[1:], code=0)


def test_weights_behind_arg_that_changed_are_told(box: Box) -> None:
    box.write("small.pt", "old")
    (box / "large.pt").write_bytes(b"o" * (2 << 20))
    (box / "model").mkdir()
    (box / "model" / "part-1.safetensors").write_bytes(b"o" * (2 << 20))
    box.write("model/log.txt", "written by the job")
    box.write("job.py", JOB)
    box.write("helper.py", OLD)
    args = ("small=small.pt", 'deep=[{"path": "large.pt"}]', f"folder={box / 'model'}")
    words = [word for arg in args for word in ("--arg", arg)]
    command = ("run", "job.py:Job", "--lines", box.lines(8), "--spool", "S", "--ranks", "1", *words)
    box.run(*command, code=75)
    box.write("model/log.txt", "and again")
    box.write("small.pt", "new")
    (box / "large.pt").write_bytes(b"n" * (2 << 20))
    (box / "model" / "part-1.safetensors").write_bytes(b"n" * (3 << 20))
    refused = box.run(*command, code=2).err
    for name in ("small.pt changed", "large.pt changed", "part-1.safetensors changed"):
        assert name in refused
    assert "log.txt" not in refused
    box.write("more", "")
    box.run(*command, "--keep-done", code=0)


def test_weights_that_are_away_are_not_asked_about_until_they_are_back_and_others(box: Box) -> None:
    """Their disk may be mounted at the next start only, or the job never read them."""
    box.write("weights.pt", "old")
    box.write("job.py", JOB)
    box.write("helper.py", OLD)
    command = (
        *("run", "job.py:Job", "--lines", box.lines(8), "--spool", "S", "--ranks", "1"),
        *("--arg", "weights=weights.pt"),
    )
    box.run(*command, code=75)
    (box / "weights.pt").unlink()
    box.run(*command, code=75)
    box.write("weights.pt", "others")
    assert "weights.pt changed" in box.run(*command, code=2).err


def test_a_file_that_changed_while_the_run_went_on_is_told_and_does_not_stop_the_next(
    box: Box,
) -> None:
    source = JOB.replace(
        "def Job(task, ctx):", "def Job(task, ctx):\n    open('db', 'a').write('x')"
    )
    box.write("job.py", source)
    box.write("helper.py", OLD)
    box.write("db", "")
    command = (
        *("run", "job.py:Job", "--lines", box.lines(8), "--spool", "S", "--ranks", "1"),
        *("--arg", "db=db"),
    )
    told = box.run(*command, code=75).err
    assert "db changed while the run went on" in told
    box.write("more", "")
    box.run(*command, code=0)


def test_the_same_code_is_one_record_whatever_the_order(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    (tmp_path / "job").mkdir()
    one = CodeFile(name="a.py", module="a", sha256="1", text="x", size=1)
    other = CodeFile(name="b.py", module="b", sha256="2", text="y", size=1)
    first = publish_code(layout, make_code("j", [one, other]))
    assert publish_code(layout, make_code("j", [other, one])) == first
    assert len(names(tmp_path / "job")) == 1
    assert read_code(layout, first) == Code(job_sha256="j", files=[one, other])
    changed = make_code("j", [CodeFile(name="a.py", module="a", sha256="3")])
    assert conflicts(make_code("j", [one, other]), changed) == ["a.py"]


def test_a_record_that_is_not_what_its_name_says_is_none(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    (tmp_path / "job").mkdir()
    name = publish_code(layout, make_code("j", []))
    path = layout.code(name)
    data = path.read_bytes()
    for at in range(len(data)):
        path.write_bytes(data[:at])
        assert read_code(layout, name) is None
    path.write_bytes(data.replace(b'"j"', b'"k"'))
    assert read_code(layout, name) is None
    assert read_code(layout, "0" * 32) is None


def test_a_run_of_before_there_were_records_goes_on(box: Box) -> None:
    command = half_done(box)
    for path in (box / "S" / "job").glob("code-*.json"):
        path.unlink()
    box.write("helper.py", NEW)
    box.run(*command, code=0)
    assert json.loads((box / "S" / "run.json").read_text())["tasks"] == 8
    assert values(box)[4:] == ["new"] * 4


def test_a_damaged_record_is_named_and_restored(box: Box) -> None:
    command = half_done(box)
    records = sorted((box / "S" / "job").glob("code-*.json"))
    whole = [path.read_bytes() for path in records]
    for path in records:
        path.write_bytes(b"\0" * 82)
    # This name is none of ours.
    notes = box.write("S/job/code-notes.json", "{}")
    found = box.run("verify", "S", code=None).out
    assert all(str(path) in found for path in records)
    box.run(*command, code=0)
    assert [path.read_bytes() for path in records] == whole
    assert "code-" not in box.run("verify", "S", code=0).out
    assert (box / notes).read_text() == "{}"


def test_a_file_that_the_job_wrote_until_it_was_killed_does_not_stop_the_next_start(
    box: Box,
) -> None:
    source = (
        "import os, pathlib, signal\n"
        "def Job(task, ctx):\n"
        "    with open('db', 'a') as db: db.write('x')\n"
        "    if task.index == 4 and not pathlib.Path('more').exists():\n"
        "        pathlib.Path('more').touch()\n"
        "        os.kill(os.getppid(), signal.SIGKILL)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    box.write("job.py", source)
    box.write("db", "")
    command = (
        *("run", "job.py:Job", "--lines", box.lines(8), "--spool", "S", "--ranks", "1"),
        *("--arg", "db=db"),
    )
    box.run(*command, code=-9)
    box.run(*command, code=0)
    assert len(values(box)) == 8
