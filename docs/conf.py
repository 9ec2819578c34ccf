"""How sphinx makes a site of these pages: `make docs`.

The pages are Markdown that reads well where it lies, on GitHub or in an editor. So the source of
the site is the whole repository, as far as `include_patterns` goes: a link from one page to another
leads to the same page in both. What the site adds is navigation, which is taken from the lists of
the pages in `CONTENTS`: what such a list links to is what the bar on the left shows.

The site asks no server for anything. tests/test_site.py builds it and looks.
"""

from __future__ import annotations

import re
from posixpath import join, normpath

from sphinx.application import Sphinx

from gpuspool.spool import __version__

project = "gpuspool"
version = release = __version__
# No date, so that the same pages make the same site.
project_copyright = "the gpuspool authors, MIT licence"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
include_patterns = [
    *("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"),
    *("docs/**.md", "examples/README.md", "examples/*/README.md", "benchmarks/README.md"),
]
root_doc = "docs/index"
html_theme = "furo"
html_title = "gpuspool"
# The sources lie beside the code anyway.
html_copy_source = False
html_show_sourcelink = False
# A search that showed pieces of pages would have to fetch them, which no browser does from a file.
html_show_search_summary = False
# Quotes in docstrings are Python's.
smartquotes = False
# Anchors as GitHub makes them, for all headings that links may name.
myst_heading_anchors = 5
# Sphinx would highlight these as what they are not: `$` lines mixed with what was printed.
suppress_warnings = ["misc.highlighting_failure"]

# The pages whose lists of links, or first columns of tables, are the site's navigation.
CONTENTS = ("docs/index", "docs/decisions/README", "examples/README")

# Types are shown as they stand in the signatures. What they link to is only what this site has, as
# the standard library's inventory would have to be downloaded.
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
# Records of a spool are told by the page about its format.
UNLISTED = r"gpuspool\.spool\.records\..*"
nitpick_ignore_regex = [("py:.*", rf"(?!gpuspool\b).*|{UNLISTED}")]


def add_navigation(_: Sphinx, page: str, source: list[str]) -> None:
    """Append a hidden table of contents for each section of a page that has a list of links.

    The section's heading is its caption. Links that leave the page's site, and those to an anchor,
    are no pages.
    """
    if page not in CONTENTS:
        return
    tables = []
    listed: set[str] = set()
    for section in re.split(r"^## ", source[0], flags=re.MULTILINE):
        caption, _, body = section.partition("\n")
        entries = []
        for name, target in re.findall(r"^[-|] \[([^]]+)\]\(([^)#:]+)\.md\)", body, re.MULTILINE):
            found = normpath(join("/", page, "..", target))
            if found not in listed:
                listed.add(found)
                entries.append(f"{' '.join(name.replace('`', '').split())} <{found}>")
        if entries:
            caption = "" if caption.startswith("#") else f":caption: {caption}\n"
            tables.append(f"```{{toctree}}\n:hidden:\n{caption}\n" + "\n".join(entries) + "\n```\n")
    source[0] += "\n" + "\n".join(tables)


# A paragraph of a docstring that tells of parameters: `name: what it is`, continued further right.
NAMES = r"\w+(?:, [\w…]+)*"
PARAMETERS = re.compile(rf"(?:{NAMES}: .*(?:\n {{4}}.*)*(?:\n|$))+")


def as_rest(*event: object) -> None:
    """Turn a docstring of ours into what autodoc reads: code in backquotes, lists of parameters."""
    lines = event[-1]
    assert isinstance(lines, list)
    # Outside of backquotes these characters are what they are, and no markup.
    pieces = re.split(r"(`[^`]+`)", "\n".join(lines))
    pieces[::2] = [re.sub(r"[*|]|(?<=\w)_\b", r"\\\g<0>", piece) for piece in pieces[::2]]
    text = "".join(f"`{piece}`" if piece.startswith("`") else piece for piece in pieces)
    paragraphs = [
        re.sub(rf"^({NAMES}): ", r"``\1``\n    ", paragraph, flags=re.MULTILINE)
        if PARAMETERS.fullmatch(paragraph)
        else paragraph
        for paragraph in text.split("\n\n")
    ]
    lines[:] = "\n\n".join(paragraphs).split("\n")


def setup(app: Sphinx) -> None:
    """Sphinx calls this."""
    app.connect("source-read", add_navigation)
    app.connect("autodoc-process-docstring", as_rest)
