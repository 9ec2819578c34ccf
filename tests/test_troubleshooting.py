"""The messages that the page "It says …" explains are those of the code."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

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


def nodes_of(tree: ast.Module) -> list[ast.AST]:
    """All that may be a message: docstrings, which nobody is told, are left out."""
    silent = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [node for node in ast.walk(tree) if id(node) not in silent]


@functools.cache
def texts() -> list[str]:
    """Every text of the three packages that somebody may be told."""
    found = []
    for package in ("orchestrator", "spool", "worker"):
        for path in (ROOT / package).rglob("*.py"):
            found += [text_of(node) for node in nodes_of(ast.parse(path.read_text()))]
    return [text for text in found if text and len(text) > 10]


def stands_in(message: str, text: str) -> bool:
    """Whether a message is a part of a text. A hole of the message may be anything in one line."""
    pattern = ".*".join(re.escape(part.strip()) for part in message.split(HOLE))
    return re.search(pattern, text) is not None


def test_every_message_that_is_explained_stands_in_the_code() -> None:
    for message in EXPLAINED:
        assert len(max(message.split(HOLE), key=len)) >= 6, f"no words of its own: {message}"
    gone = [one for one in EXPLAINED if not any(stands_in(one, text) for text in texts())]
    assert gone == [], "no message has these words any more"


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


# What a run says of itself while it goes on, and at its end.
SPEAKING = ("notices", "finish", "loop", "firsts", "waits", "workers")
# Texts of these that are a part of another one, or say all there is to say.
CLEAR = (
    *("… tells why, … runs … again", "… of the … failed tasks", "Go on with the same command"),
    *("… on device …, log …", "Or go on with a higher --max-failed", "… goes on: it submits what"),
    *("; after a fix of the job", "… ended (…), see …", "it was told to stop by a signal"),
    *("… was told to stop by a signal", "…, in …. Outputs: …", "The last that failed was task"),
    *("… tasks failed, --max-failed", "every task fails, and none", "; a second Ctrl-C kills"),
    *("task … fails: ", "; task … fails: ", "nothing was finished for … minutes", "importing and"),
    *("… (more failures like this", "; it is tried again elsewhere", "other kinds of failures"),
    *("starting: its process has not", "waiting for another process", "waiting for the input"),
    *("it took too long and was killed", "its parent died, and then", "it died while its parent"),
    *("it could not be started", "it hangs in the kernel", "…: workers are killed; what they had"),
    *("it was told to stop, and its call took too long",),
)


def test_whatever_a_run_says_of_itself_is_explained() -> None:
    said: list[str] = []
    for name in SPEAKING:
        tree = ast.parse((ROOT / "orchestrator" / "supervise" / f"{name}.py").read_text())
        # Docstrings, and the parts of what was looked at as a whole.
        seen = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            text = text_of(node)
            if text is not None and id(node) not in seen:
                seen |= {id(part) for part in ast.walk(node)}
                said.append(text)
    sentences = [text for text in said if len(text.split()) >= 5]
    assert len(sentences) > 40
    known = [text for text in sentences if any(stands_in(one, text) for one in EXPLAINED)]
    clear = [text for text in sentences if text.startswith(CLEAR)]
    assert [text for text in sentences if text not in known + clear] == []
    assert [one for one in CLEAR if not any(text.startswith(one) for text in sentences)] == []
