#!/usr/bin/env python3
"""Write the paragraphs of some of gpuspool's pages, one a line: something real to embed.

They go to texts/PAGE/NUMBER.txt, 16 in a file, so that there are enough files for several ranks.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = ("clusters", "first-hour", "jobs", "names", "options", "python-api", "slurm")
SIZE = 16


def paragraphs(page: str) -> list[str]:
    """The paragraphs, list items and table rows of a page of Markdown; code is left out."""
    page = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    parts = re.split(r"\n\s*\n|\n(?=[-|#] ?)", page)
    lines = (" ".join(part.split()).strip("|- ") for part in parts)
    return [line for line in lines if len(line.split()) > 4]


def main() -> None:
    """Write them below the folder that is named, default `texts`."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "texts")
    for name in PAGES:
        lines = paragraphs((ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8"))
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number, start in enumerate(range(0, len(lines), SIZE)):
            text = "".join(f"{line}\n" for line in lines[start : start + SIZE])
            (folder / name / f"{number:03}.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
