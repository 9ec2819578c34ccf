"""How the code reads, in figures: a mirror to look into, not a gate to pass.

`make lint` prints this and never fails on it, since a page can be worse with a better figure. What
to look at is how a figure moves between two checkouts:

    python scripts/mirror.py                  # the checkout that this script lies in
    python scripts/mirror.py ../before        # another one, also of the older layout

Only the standard library is used, and nothing that is measured gets imported.
"""

import argparse
import ast
import io
import sys
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# The packages in the order in which they stand on each other. "gpuspool" is what is left of the
# namespace without them: its front door.
PACKAGES = ("spool", "worker", "orchestrator", "gpuspool")

# A function with more decisions than this is named: a reader no longer holds its paths in mind.
HIGH_COMPLEXITY = 10

# A function with more lines of code than this is named: it no longer fits on one screen.
LONG_FUNCTION = 40

# Two files side by side still fit on a screen at this many columns.
COLUMNS = 100

# Comments of one or two lines are mostly labels; from three lines on they explain something.
BLOCK = 3

# Tokens that do not make their line a line of code.
NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Function:
    """One function or method, with what makes it hard to read."""

    where: str
    name: str
    complexity: int
    lines: int


@dataclass
class Figures:
    """What was counted in some files. Figures of several files add up by `add`."""

    code_lines: int = 0
    long_lines: int = 0
    comment_lines: int = 0
    block_lines: int = 0
    nodes: int = 0
    conditional_expressions: int = 0
    parallel_assignments: int = 0
    functions: list[Function] = field(default_factory=list)

    def add(self, other: "Figures") -> None:
        self.code_lines += other.code_lines
        self.long_lines += other.long_lines
        self.comment_lines += other.comment_lines
        self.block_lines += other.block_lines
        self.nodes += other.nodes
        self.conditional_expressions += other.conditional_expressions
        self.parallel_assignments += other.parallel_assignments
        self.functions += other.functions

    @property
    def complex_functions(self) -> list[Function]:
        return [f for f in self.functions if f.complexity > HIGH_COMPLEXITY]

    @property
    def long_functions(self) -> list[Function]:
        return [f for f in self.functions if f.lines > LONG_FUNCTION]

    @property
    def mean_complexity(self) -> float:
        return ratio(sum(f.complexity for f in self.functions), len(self.functions))

    @property
    def nodes_a_line(self) -> float:
        """How much there is to take in on one line: all nodes that `ast.walk` finds."""
        return ratio(self.nodes, self.code_lines)

    @property
    def share_in_blocks(self) -> float:
        return ratio(self.block_lines, self.comment_lines)

    def per_thousand_lines(self, count: int) -> float:
        return 1000 * ratio(count, self.code_lines)


def ratio(part: float, whole: float) -> float:
    """`part / whole`, and 0 where there is nothing to divide by."""
    if not whole:
        return 0.0
    return part / whole


def measure(source: str, where: str = "") -> Figures:
    """Count everything in one file's source. `where` stands before the names of its functions."""
    tree = ast.parse(source)
    code = code_lines(source, tree)
    comments, in_blocks = comment_lines(source)
    return Figures(
        code_lines=len(code),
        long_lines=sum(len(line) > COLUMNS for line in source.splitlines()),
        comment_lines=comments,
        block_lines=in_blocks,
        nodes=sum(1 for _ in ast.walk(tree)),
        conditional_expressions=sum(isinstance(node, ast.IfExp) for node in ast.walk(tree)),
        parallel_assignments=sum(is_parallel_assignment(node) for node in ast.walk(tree)),
        functions=list(functions_of(tree, code, where)),
    )


def code_lines(source: str, tree: ast.Module) -> set[int]:
    """The numbers of all lines that hold code: no blank lines, comments or docstrings."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    return lines - docstring_lines(tree)


def docstring_lines(tree: ast.Module) -> set[int]:
    lines: set[int] = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | FunctionNode):
            continue
        if ast.get_docstring(node, clean=False) is None:
            continue
        docstring = node.body[0]
        assert docstring.end_lineno is not None
        lines.update(range(docstring.lineno, docstring.end_lineno + 1))
    return lines


def comment_lines(source: str) -> tuple[int, int]:
    """(how many lines hold a comment, how many of them stand in blocks of `BLOCK` and more).

    A line of a block holds nothing but its comment, and stands right below the one before. A
    comment behind code is a comment line in no block.
    """
    total = 0
    alone: list[int] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        total += 1
        if token.line.strip() == token.string:
            alone.append(token.start[0])

    in_blocks = 0
    block: list[int] = []
    for number in [*alone, sys.maxsize]:
        if block and number != block[-1] + 1:
            if len(block) >= BLOCK:
                in_blocks += len(block)
            block = []
        block.append(number)
    return total, in_blocks


def is_parallel_assignment(node: ast.AST) -> bool:
    """Whether it is `a, b = x, y`. Taking one value apart, as in `a, b = pair`, is none."""
    return (
        isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Tuple)
        and any(isinstance(target, ast.Tuple) for target in node.targets)
    )


def functions_of(tree: ast.Module, code: set[int], where: str) -> Iterator[Function]:
    """Every function in a file, with the names of the classes and functions that it lies in."""

    def visit(node: ast.AST, prefix: str) -> Iterator[Function]:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.ClassDef | FunctionNode):
                yield from visit(child, prefix)
                continue
            name = f"{prefix}{child.name}"
            if isinstance(child, FunctionNode):
                assert child.end_lineno is not None
                lines = code & set(range(child.lineno, child.end_lineno + 1))
                yield Function(f"{where}:{child.lineno}", name, complexity(child), len(lines))
            yield from visit(child, f"{name}.")

    yield from visit(tree, "")


def complexity(function: FunctionNode) -> int:
    """How many ways lead through a function: one, and one more for each decision in it.

    A function or class inside is left out, as its functions are counted for themselves.
    """
    ways = 1
    unvisited: list[ast.AST] = list(function.body)
    while unvisited:
        node = unvisited.pop()
        if isinstance(node, FunctionNode | ast.ClassDef):
            continue
        ways += decisions(node)
        unvisited += ast.iter_child_nodes(node)
    return ways


def decisions(node: ast.AST) -> int:
    """How many decisions one node of the syntax tree is by itself."""
    match node:
        case ast.If() | ast.IfExp() | ast.For() | ast.AsyncFor() | ast.While():
            return 1
        case ast.ExceptHandler():
            return 1
        case ast.BoolOp():
            return len(node.values) - 1
        case ast.comprehension():
            return 1 + len(node.ifs)
        case ast.match_case():
            return int(not is_catch_all(node))
        case _:
            return 0


def is_catch_all(case: ast.match_case) -> bool:
    """Whether a case takes whatever is left, as an `else` does: `case _:` and `case name:`."""
    pattern = case.pattern
    return isinstance(pattern, ast.MatchAs) and pattern.pattern is None and case.guard is None


def files_of(root: Path, package: str) -> list[Path]:
    """The sources of one package below `root`, in either layout.

    The front door is `gpuspool.py` in the older layout. In the newer one it is the folder
    `gpuspool/`, whose links to the other packages must not be followed: they count for themselves.
    """
    if package == "gpuspool":
        return sorted([*root.glob("gpuspool.py"), *root.glob("gpuspool/*.py")])
    return sorted((root / package).rglob("*.py"))


def measure_packages(root: Path) -> dict[str, Figures]:
    """The figures of each package, and of all under "all"."""
    figures: dict[str, Figures] = {}
    total = Figures()
    for package in PACKAGES:
        figures[package] = Figures()
        for path in files_of(root, package):
            one = measure(path.read_text(encoding="utf-8"), str(path.relative_to(root)))
            figures[package].add(one)
            total.add(one)
    return {**figures, "all": total}


def table(figures: dict[str, Figures]) -> str:
    """The figures as a table for people: a row for each figure, a column for each package."""
    each = list(figures.values())
    rows: list[tuple[str, list[str]]] = [
        ("", list(figures)),
        ("lines of code", [f"{f.code_lines:,}" for f in each]),
        ("functions", [f"{len(f.functions):,}" for f in each]),
        ("mean complexity", [f"{f.mean_complexity:.2f}" for f in each]),
        (f"complexity above {HIGH_COMPLEXITY}", [str(len(f.complex_functions)) for f in each]),
        (f"functions above {LONG_FUNCTION} lines", [str(len(f.long_functions)) for f in each]),
        ("syntax nodes a line", [f"{f.nodes_a_line:.2f}" for f in each]),
        (
            "conditional expressions per 1,000 lines",
            [f"{f.per_thousand_lines(f.conditional_expressions):.1f}" for f in each],
        ),
        (
            "parallel assignments per 1,000 lines",
            [f"{f.per_thousand_lines(f.parallel_assignments):.1f}" for f in each],
        ),
        (f"lines above {COLUMNS} columns", [str(f.long_lines) for f in each]),
        ("comment lines", [str(f.comment_lines) for f in each]),
        (f"of these in blocks of {BLOCK} and more", [f"{f.block_lines}" for f in each]),
        ("share in such blocks", [f"{f.share_in_blocks:.0%}" for f in each]),
    ]
    width = max(len(label) for label, _ in rows)
    return "\n".join(
        label.ljust(width) + "".join(value.rjust(14) for value in values) for label, values in rows
    )


def names(title: str, functions: list[str]) -> str:
    if not functions:
        return f"{title}: none"
    return "\n".join([f"{title}:", *(f"  {name}" for name in functions)])


def main(argv: Sequence[str] | None = None) -> int:
    here = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description="How the code reads, in figures.")
    parser.add_argument("folder", nargs="?", type=Path, default=here, help="the root of a checkout")
    root = parser.parse_args(argv).folder

    figures = measure_packages(root)
    if not figures["all"].code_lines:
        parser.error(f"{root} holds none of the packages {', '.join(PACKAGES)}")
    worst = sorted(figures["all"].complex_functions, key=lambda f: -f.complexity)
    longest = sorted(figures["all"].long_functions, key=lambda f: -f.lines)

    print(table(figures))
    print()
    print(
        names(
            f"complexity above {HIGH_COMPLEXITY}",
            [f"{f.complexity:3}  {f.name}  {f.where}" for f in worst],
        )
    )
    print(
        names(
            f"functions above {LONG_FUNCTION} lines of code",
            [f"{f.lines:3}  {f.name}  {f.where}" for f in longest],
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
