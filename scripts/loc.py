"""Source lines of the three packages: lines that hold code, without blank lines, comments and
docstrings.
"""

import ast
import io
import sys
import tokenize
from pathlib import Path

BUDGET = 6430
SKIP = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def docstring_lines(tree: ast.Module) -> set[int]:
    lines: set[int] = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list) or not body or not isinstance(body[0], ast.Expr):
            continue
        value = body[0].value
        if isinstance(value, ast.Constant) and isinstance(value.value, str) and value.end_lineno:
            lines.update(range(value.lineno, value.end_lineno + 1))
    return lines


def code_lines(path: Path) -> int:
    text = path.read_text()
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in SKIP:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - docstring_lines(ast.parse(text)))


def main() -> int:
    root = Path(__file__).parent.parent
    total = 0
    for package in ("spool", "worker", "orchestrator"):
        count = sum(code_lines(path) for path in sorted((root / package).rglob("*.py")))
        total += count
        print(f"{package:14}{count:6}")
    print(f"{'total':14}{total:6}  of {BUDGET}")
    return int(total > BUDGET)


if __name__ == "__main__":
    sys.exit(main())
