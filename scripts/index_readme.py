"""The README as a package index shows it; hatchling asks for it when it builds.

An index has no files beside the page, and there is no public address at which they lie. So a link
to a file of the repository becomes the file's path, and a line says where such paths are to be
found. Links to the web, and those within the page, stay.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

NOTE = "Paths on this page, such as `docs/options.md`, are those of the source archive (sdist)."

# A link or, with a "!" in front, a picture.
_LINK = re.compile(r"(!?)\[([^\]]+)\]\(([^)\s]+)\)")
_ELSEWHERE = ("http://", "https://", "mailto:", "#")


def for_index(text: str) -> str:
    """The text of a README whose relative links are paths, with a note below its title."""
    title, _, rest = text.partition("\n")
    parts = rest.split("```")
    # Between two fences stands what people type, and nothing there is a link.
    parts[::2] = [_LINK.sub(_path, part) for part in parts[::2]]
    return f"{title}\n\n{NOTE}\n" + "```".join(parts)


def _path(link: re.Match[str]) -> str:
    picture, text, target = link.groups()
    if target.startswith(_ELSEWHERE):
        return link[0]
    path = f"`{target.partition('#')[0]}`"
    if picture or text.strip("`") == path.strip("`"):
        return path
    return f"{text} ({path})"


class CustomMetadataHook(MetadataHookInterface):
    """Gives the project its long description."""

    def update(self, metadata: dict[str, Any]) -> None:
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": for_index(text)}
