"""What is handed on: the source archive, what an index shows, and how the program is cited."""

from __future__ import annotations

import email
import importlib.util
import re
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import gpuspool

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def script(name: str) -> ModuleType:
    """A module of scripts/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("*.tar.gz"))


# The version.


def test_there_is_one_version() -> None:
    assert PROJECT["version"] == gpuspool.__version__
    newest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] in (gpuspool.__version__, "Unreleased")


def citation() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml", reason="there is no parser of YAML here")
    found: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    return found


def test_the_citation_has_what_its_format_demands() -> None:
    found = citation()
    assert {"cff-version", "message", "title", "authors"} <= found.keys()
    assert found["cff-version"] == "1.2.0"
    assert found["type"] == "software"
    assert found["license"] == PROJECT["license"]
    assert all("name" in author or "family-names" in author for author in found["authors"])
    # Whoever finds an address there follows it.
    assert not {"url", "repository-code", "doi"} & found.keys()


def test_the_citation_names_the_version_and_the_day_of_the_changelog() -> None:
    text = (ROOT / "CITATION.cff").read_text()
    assert f'version: "{gpuspool.__version__}"\n' in text
    day = re.search(r'^date-released: "(\d{4}-\d{2}-\d{2})"$', text, re.MULTILINE)
    assert day is not None
    assert f"## [{gpuspool.__version__}] - {day[1]}\n" in (ROOT / "CHANGELOG.md").read_text()


# What an index shows.


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[docs/a.md](docs/a.md)", "`docs/a.md`"),
        ("[`docs/a.md`](docs/a.md#part)", "`docs/a.md`"),
        ("[fresh processes](docs/jobs.md#fresh)", "fresh processes (`docs/jobs.md`)"),
        ("![a table](docs/a.svg)", "`docs/a.svg`"),
        ("[Tiara](https://example.org/x)", "[Tiara](https://example.org/x)"),
        ("[below](#limits)", "[below](#limits)"),
        (
            "x[0](y) is code\n```\na[b](c)\n```\n[d](e)",
            "x0 (`y`) is code\n```\na[b](c)\n```\nd (`e`)",
        ),
    ],
)
def test_a_link_to_a_file_becomes_its_path(text: str, shown: str) -> None:
    readme = script("index_readme")
    assert readme.for_index(f"# T\n{text}") == f"# T\n\n{readme.NOTE}\n{shown}"


def test_what_an_index_shows_of_the_readme_leads_nowhere_that_is_not_there() -> None:
    shown = script("index_readme").for_index((ROOT / "README.md").read_text())
    targets = re.findall(r"\]\(([^)\s]+)\)", "".join(shown.split("```")[::2]))
    assert targets
    assert [one for one in targets if not one.startswith(("https://", "#"))] == []
    for path in re.findall(r"`((?:docs|examples)/[^`*]+|[A-Z]+\.md)`", shown):
        assert (ROOT / path).exists(), path


def test_no_address_is_invented(archive: Path) -> None:
    """There is none yet, and whoever finds one on an index follows it."""
    with tarfile.open(archive) as file:
        (name,) = [one for one in file.getnames() if one.count("/") == 1 and "PKG-INFO" in one]
        told = file.extractfile(name)
        assert told is not None
        metadata = email.message_from_bytes(told.read())
    assert metadata["Name"] == "gpuspool"
    assert not {"Home-page", "Download-URL", "Project-URL"} & {*metadata.keys()}


# What is in the source archive.


def files_of(*folders: str) -> set[str]:
    """What these folders hold in the repository; where this is none, but an archive, all of it."""
    if (ROOT / ".git").exists():
        command = ["git", "ls-files", *folders]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        return set(listed.stdout.split())
    files = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file())
    made = ("__pycache__", "data")
    return {str(one.relative_to(ROOT)) for one in files if not {*made} & {*one.parts}}


def test_the_archive_holds_what_its_pages_and_tests_need(archive: Path) -> None:
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    pages = {"README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff"}
    assert pages | {"LICENSE", "Makefile", "constraints.txt", "pyproject.toml"} <= names
    for path in re.findall(r"\]\(([^)#:\s]+)[)#]", (ROOT / "README.md").read_text()):
        assert any(name == path or name.startswith(f"{path}/") for name in names), path
    needed = files_of("tests", "benchmarks", "scripts", "examples", "docs")
    assert len(needed) > 300
    assert needed <= names
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]
    assert {"gpuspool/spool/layout.py", "gpuspool/worker/__main__.py"} <= names


def test_a_wheel_built_from_the_archive_is_that_of_the_checkout(
    archive: Path, tmp_path: Path
) -> None:
    dist = script("dist")
    wheel, _ = dist.build(ROOT, tmp_path / "first")
    (tmp_path / "source").mkdir()
    assert dist.compare_with_archive(wheel, archive, tmp_path / "source") > 100


def test_a_difference_between_them_is_named(archive: Path, tmp_path: Path) -> None:
    dist = script("dist")
    wheel, _ = dist.build(ROOT, tmp_path / "first")
    import zipfile

    with zipfile.ZipFile(wheel, "a") as file:
        file.writestr("gpuspool/extra.py", "")
    (tmp_path / "source").mkdir()
    with pytest.raises(dist.NotAsItShould, match=r"gpuspool/extra\.py"):
        dist.compare_with_archive(wheel, archive, tmp_path / "source")


def test_what_lies_beside_what_is_built_stays(tmp_path: Path) -> None:
    dist = script("dist")
    into = tmp_path / "wheels"
    into.mkdir()
    for name in ("gpuspool-0.0.1.tar.gz", "other-1.whl", "thesis.txt"):
        (into / name).write_text(name)
    (tmp_path / "gpuspool-9.tar.gz").write_text("new")
    dist.hand_over([tmp_path / "gpuspool-9.tar.gz"], into)
    found = sorted(path.name for path in into.iterdir())
    assert found == ["gpuspool-9.tar.gz", "other-1.whl", "thesis.txt"]


@pytest.mark.slow
def test_what_is_built_serves_a_stranger(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "dist.py"), "--into", str(tmp_path / "dist")]
    if importlib.util.find_spec("twine") is None:
        command.append("--no-twine")
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "notebook" in done.stdout
    assert [path.suffix for path in sorted((tmp_path / "dist").iterdir())] == [".whl", ".gz"]
