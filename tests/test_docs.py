"""The docs say what is there: every option, every link, every folder of a spool, every exit code."""

import re
from pathlib import Path

import click
import pytest

from gpuspool.orchestrator.cli.verbs import cli
from gpuspool.spool import layout

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*/README.md")])
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


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
