"""The site of `make docs`: built without a warning, whole without a network, no dead end."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest

import gpuspool
from gpuspool.spool import layout

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")),
        *DOCS.rglob("*.md"),
        *(*ROOT.glob("examples/README.md"), *ROOT.glob("examples/*/README.md")),
        ROOT / "benchmarks" / "README.md",
    ]
)
# One decision is read from the list of all, and the reader goes back there.
WITH_A_WAY_ON = [page for page in PAGES if not re.match(r"\d", page.name)]
# What a browser fetches by itself, by tag: `a` is not among them.
LOADING = {
    **{"script": "src", "img": "src", "iframe": "src", "source": "src", "audio": "src"},
    **{"video": "src", "embed": "src", "object": "data", "input": "src", "image": "href"},
}


def links_of(page: Path) -> list[tuple[Path, str]]:
    """The pages and files that a page links to, and how the link was written."""
    found = re.findall(r"\]\(([^)#]*)(?:#[^)]*)?\)", page.read_text())
    return [(page.parent.joinpath(one).resolve(), one) for one in found if one and ":" not in one]


class Loads(HTMLParser):
    """Everything that a page makes a browser load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "link" and given.get("rel") not in ("index", "search", "next", "prev"):
            self.found.append(given.get("href") or "")
        self.found.append(given.get(LOADING.get(tag, "")) or "")
        self.found += re.findall(r"url\(([^)]*)\)", given.get("style") or "")


def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="make docs needs the extra `docs`")
    pytest.importorskip("furo", reason="make docs needs the extra `docs`")
    pytest.importorskip("myst_parser", reason="make docs needs the extra `docs`")
    words = ["-W", "--keep-going", "-n", "-q", "-c", str(DOCS), "-d", str(tmp_path / "trees")]
    site = tmp_path / "site"
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *words, str(ROOT), str(site)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    made = {path.relative_to(site).with_suffix("").as_posix() for path in site.rglob("*.html")}
    assert {page.relative_to(ROOT).with_suffix("").as_posix() for page in PAGES} <= made
    for path in site.rglob("*.html"):
        loads = Loads()
        loads.feed(path.read_text())
        for one in loads.found:
            assert not re.match(r"[a-z]+:(?<!data:)|//", one), f"{path} loads {one}"
            if one and not one.startswith("data:"):
                assert (path.parent / one.partition("?")[0].partition("#")[0]).exists(), one
    for path in site.rglob("*.css"):
        assert re.findall(r"url\([\"']?(?:https?:)?//|@import", path.read_text()) == [], path
    # Without pieces of pages among its results, the search fetches nothing.
    assert (
        "SHOW_SEARCH_SUMMARY: false" in (site / "_static" / "documentation_options.js").read_text()
    )


def test_every_page_is_reached_by_links_from_the_first() -> None:
    reached = {DOCS / "index.md"}
    ahead = list(reached)
    while ahead:
        new = {page for page, _ in links_of(ahead.pop())} & set(PAGES) - reached
        reached |= new
        ahead += new
    assert sorted(set(PAGES) - reached) == []


@pytest.mark.parametrize("page", WITH_A_WAY_ON, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_ends_with_where_to_go_next(page: Path) -> None:
    last = page.read_text().rstrip().rpartition("\n\n")[2]
    assert last.startswith("Next: "), last
    assert re.search(r"\]\([^)]+\.md(#[\w-]+)?\)", last), last


def test_a_link_names_a_file_and_no_folder() -> None:
    """GitHub shows a folder; a site has none to show."""
    for page in PAGES:
        for target, written in links_of(page):
            assert target.is_file(), f"{page}: {written}"


def test_the_contents_list_every_page() -> None:
    listed = {page for page, _ in links_of(DOCS / "index.md")}
    for lists in (DOCS / "decisions" / "README.md", ROOT / "examples" / "README.md"):
        listed |= {page for page, _ in links_of(lists)} if lists in listed else set()
    assert sorted(set(PAGES) - listed - {DOCS / "index.md"}) == []


def test_every_public_name_stands_on_the_page_made_of_docstrings() -> None:
    page = (DOCS / "reference" / "api.md").read_text()
    named = re.findall(r"^\.\. auto\w+:: (\w+)$", page, re.MULTILINE)
    assert sorted(named) == sorted(set(gpuspool.__all__) - {"__version__"})


def test_the_page_of_files_tells_what_every_folder_is_for() -> None:
    page = (DOCS / "reference" / "files.md").read_text()
    assert [name for name in layout.SUBDIRS if f"`{name}/`" not in page] == []


@pytest.mark.parametrize("picture", sorted(DOCS.glob("*.svg")), ids=lambda path: path.name)
def test_a_picture_is_whole_and_tells_in_words_what_it_shows(picture: Path) -> None:
    text = picture.read_text()
    assert ET.fromstring(text).tag.endswith("svg")
    assert "href=" not in text.replace("xlink:href", "href")
    if picture.name == "architecture.svg":
        assert len(text) < 8_000
        assert "prefers-color-scheme:dark" in text
        assert "<desc" in text


def test_parameters_in_docstrings_become_a_list() -> None:
    pytest.importorskip("sphinx", reason="docs/conf.py needs the extra `docs`")
    spec = importlib.util.spec_from_file_location("conf", DOCS / "conf.py")
    assert spec is not None
    assert spec.loader is not None
    conf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conf)
    lines = [
        "What `it` does.",
        "",
        "one: a thing: this.",
        "two, three: others,",
        "    which go on.",
    ]
    conf.as_rest(lines)
    assert lines == [
        *("What ``it`` does.", "", "``one``", "    a thing: this."),
        *("``two, three``", "    others,", "    which go on."),
    ]
    prose = ["One *thing*: this_ and `that_*`", "and no list of parameters."]
    conf.as_rest(prose)
    assert prose == [r"One \*thing\*: this\_ and ``that_*``", "and no list of parameters."]
