"""The docs say what is there: every option, link, folder of a spool, exit code and module."""

import re
from pathlib import Path

import click
import pytest

from gpuspool.orchestrator.cli.verbs import cli
from gpuspool.spool import layout

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    [
        *(*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")),
        *(*ROOT.glob("examples/README.md"), *ROOT.glob("examples/*/README.md")),
    ]
)
OPTIONS = [
    (verb, option)
    for verb, command in sorted(cli.commands.items())
    for option in command.params
    if isinstance(option, click.Option)
]


@pytest.mark.parametrize("verb", sorted(cli.commands))
def test_every_verb_and_option_stands_in_the_options_page_with_its_variable(verb: str) -> None:
    page = (ROOT / "docs" / "options.md").read_text()
    assert f"gpuspool {verb}" in page
    for name, option in OPTIONS:
        if name != verb:
            continue
        assert max(option.opts, key=len) in page
        assert isinstance(option.envvar, str), f"{option.opts} has no environment variable"
        assert option.envvar in page
        assert option.help, f"{option.opts} has no help text"


def test_a_variable_means_the_same_to_all_verbs_that_read_it() -> None:
    said: dict[object, set[str | None]] = {}
    for _, option in OPTIONS:
        said.setdefault(option.envvar, set()).add(option.help)
    # One task, or one rank, is meant by both `explain` and `logs`.
    alike = {"GPUSPOOL_TASK", "GPUSPOOL_RANK"}
    assert {name for name, helps in said.items() if len(helps) > 1} == alike


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_source_that_a_page_names_is_listed_and_used(page: Path) -> None:
    text = page.read_text()
    named = set(re.findall(r"\]\]\[([a-z0-9-]+)\]", text))
    listed = re.findall(r"^\[([a-z0-9-]+)\]: https?://\S+$", text, re.MULTILINE)
    assert named == set(listed)
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_python_example_compiles(page: Path) -> None:
    for source in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        compile(source, str(page), "exec")


def test_the_format_page_names_every_folder_of_a_spool() -> None:
    page = (ROOT / "docs" / "spool-format.md").read_text()
    assert [name for name in layout.SUBDIRS if f"{name}/" not in page] == []


def test_the_exit_codes_of_the_errors_stand_in_the_options_page() -> None:
    page = (ROOT / "docs" / "options.md").read_text()
    for code in (0, 1, 2, 3, 4, 5, 6, 75, 130):
        assert re.search(rf"^\| *`?{code}`? *\|", page, re.MULTILINE), code


ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()


def test_every_path_on_the_architecture_page_exists() -> None:
    named = re.findall(r"`([\w./-]+(?:/|\.py|\.md))`", ARCHITECTURE)
    assert len(named) > 100
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_name_that_the_architecture_page_finds_in_a_file_is_defined_there() -> None:
    found = re.findall(r"((?:`\w+`(?: and )?)+) in `([\w./]+\.py)`", ARCHITECTURE)
    assert len(found) > 20
    for names, path in found:
        source = (ROOT / path).read_text()
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"^(def|class) {name}\b", source, re.MULTILINE), f"{name} in {path}"


@pytest.mark.parametrize("package", ["spool", "worker", "orchestrator"])
def test_the_architecture_page_has_each_module_in_the_table_of_its_package(package: str) -> None:
    section = re.search(rf"^## {package}:.*?(?=^## )", ARCHITECTURE, re.MULTILINE | re.DOTALL)
    assert section is not None
    listed: list[str] = []
    for row in re.findall(r"^\| (`.*?`) \|", section[0], re.MULTILINE):
        listed += re.findall(r"`([\w/]+)`", row)
    there = {
        str(path.relative_to(ROOT / package).with_suffix(""))
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert sorted(listed) == sorted(there)


def test_whoever_wants_to_change_something_is_told_a_file_and_a_test() -> None:
    table = ARCHITECTURE.partition("| I want to change | open | the test is |\n|---|---|---|\n")[2]
    rows = table.partition("\n\n")[0].splitlines()
    assert len(rows) >= 25
    for row in rows:
        _, _, files, tests, _ = row.split("|")
        assert re.search(r"`[\w./-]+\.(py|md)`", files), row
        assert re.search(r"`tests/test_\w+\.py`", tests), row
