"""The messages that the page "It says …" explains are those of the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
EXPLAINED = re.findall(r"^### `(.*)`$", PAGE, re.MULTILINE)
# What stands for a part of a message that differs, in the page and in what is read of the code.
HOLE = "…"


def text_of(node: ast.AST) -> str | None:
    """A text as the code has it, with a hole for each value; None where it is no text."""
    match node:
        case ast.Constant(value=str() as text):
            return text
        case ast.JoinedStr(values=values):
            return "".join(text_of(value) or HOLE for value in values)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            before, behind = text_of(left), text_of(right)
            if before is not None or behind is not None:
                return (before or HOLE) + (behind or HOLE)
    return None


def texts() -> Iterator[str]:
    """Every text of the three packages."""
    for package in ("orchestrator", "spool", "worker"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                text = text_of(node)
                if text and len(text) > 10:
                    yield text


TEXTS = list(texts())


def stands_in(message: str, text: str) -> bool:
    """Whether a message is a part of a text. A hole of the message may be anything in one line."""
    pattern = ".*".join(re.escape(part.strip()) for part in message.split(HOLE))
    return re.search(pattern, text, re.DOTALL) is not None


@pytest.mark.parametrize("message", EXPLAINED)
def test_a_message_that_is_explained_stands_in_the_code(message: str) -> None:
    assert len(max(re.split(r"…", message), key=len)) >= 6, "a message needs words of its own"
    assert any(stands_in(message, text) for text in TEXTS), message


def test_no_message_is_explained_twice() -> None:
    assert len(EXPLAINED) > 60
    assert len(EXPLAINED) == len(set(EXPLAINED))


def test_each_message_is_explained() -> None:
    for entry in re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:]:
        message, _, rest = entry.partition("\n")
        told = rest.partition("\n## ")[0].strip()
        assert len(told) > 20, message


def test_a_changed_message_would_be_found() -> None:
    code = 'f"the job changed since {root} was made:\\n" + difference'
    (text,) = [found for found in [text_of(ast.parse(code, mode="eval").body)] if found]
    assert stands_in("the job changed since … was made:", text)
    assert not stands_in("the job has changed since … was made:", text)
