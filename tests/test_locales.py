"""Names with all letters, under a locale that is not UTF-8."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from helpers import Box, assert_sound, names

# Python itself turns LC_ALL=C into UTF-8, unless it is told not to.
PLAIN_C = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

JOB = """
import sys


def copy(task, ctx):
    ctx.output(task, ".x").write_bytes(task.path.read_bytes())
    return [sys.getfilesystemencoding(), task.key]
"""


@pytest.fixture(params=["C", "ISO-8859-1"])
def locale(request: pytest.FixtureRequest, tmp_path: Path) -> Mapping[str, str]:
    """The variables that ask for a locale which is not UTF-8."""
    if request.param == "C":
        return PLAIN_C
    name = f"en_US.{request.param}"
    make = ["localedef", "-i", "en_US", "-f", request.param, str(tmp_path / name)]
    if shutil.which("localedef") is None or subprocess.run(make, check=False).returncode:
        pytest.skip("no locale can be made here")
    return {"LC_ALL": name, "LOCPATH": str(tmp_path)}


def test_names_are_what_they_are_in_utf8(box: Box, locale: Mapping[str, str]) -> None:
    box.write("jöb.py", JOB)
    box.write("in/ünï-😀.txt", "x")
    box.write("in/ä b.txt", "y")
    box.run("run", "jöb.py:copy", "in/*", "--spool", "Spül", env=locale)
    results = assert_sound(box, "Spül", 2)
    assert [each["result"] for each in results] == [["utf-8", "ä b.txt"], ["utf-8", "ünï-😀.txt"]]
    assert names(box / "Spül/outputs") == ["ä b.txt.x", "ünï-😀.txt.x"]
    assert "ünï-😀.txt" in box.run("results", "Spül", env=locale).out
    # The same run, under another locale.
    box.run("run", "jöb.py:copy", "in/*", "--spool", "Spül")


def test_commands_get_the_bytes_of_names(box: Box, locale: Mapping[str, str]) -> None:
    box.write("in/ünï.txt", "x")
    command = ["run", "in/*", "--spool", "S", "--capture", "--", "printf", "%s", "ä {name} {input}"]
    box.run(*command, env=locale)
    assert assert_sound(box, "S", 1)[0]["result"] == f"ä ünï.txt {box / 'in/ünï.txt'}"


def test_a_name_that_is_not_utf8_is_refused_as_under_any_locale(
    box: Box, locale: Mapping[str, str]
) -> None:
    with open(os.fsencode(box.home) + b"/\xe4.txt", "wb"):
        pass
    box.write("job.py", JOB)
    done = box.run("run", "job.py:copy", "*.txt", "--spool", "S", env=locale, code=2)
    assert "its name is not UTF-8" in done.err


def test_a_program_is_told_to_use_utf8(box: Box, locale: Mapping[str, str]) -> None:
    box.write("job.py", JOB)
    box.write("in/ä", "x")
    script = """
import gpuspool

try:
    gpuspool.run("job.py:copy", "in/*", spool="S", quiet=True)
except gpuspool.UsageError as error:
    print(error)
"""
    assert "reads the names of files as " in box.python(script, env=locale).out
    assert not (box / "S").exists()
    box.python(script, env={**locale, "PYTHONUTF8": "1"})
    assert assert_sound(box, "S", 1)[0]["result"] == ["utf-8", "ä"]
