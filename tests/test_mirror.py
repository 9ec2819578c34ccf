"""The mirror that `make lint` prints: each of its counters, on sources made for it."""

import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import mirror  # noqa: E402 - it is a script, and lies in no package


def measure(source: str) -> mirror.Figures:
    return mirror.measure(dedent(source))


def test_a_line_of_code_holds_no_blank_no_comment_and_no_docstring() -> None:
    figures = measure('''
        """A module
        of two lines."""

        # a comment
        def f():  # beside code
            """What it does."""
            return [
                1,
            ]
        ''')
    assert figures.code_lines == 4


def test_a_text_that_is_no_docstring_is_code() -> None:
    assert measure('x = """\n1\n2\n"""\n').code_lines == 4


@pytest.mark.parametrize(
    ("body", "decisions"),
    [
        ("return 1", 0),
        ("if x:\n  pass", 1),
        ("if x:\n  pass\nelif y:\n  pass\nelse:\n  pass", 2),
        ("for x in y:\n  pass\nelse:\n  pass", 1),
        ("while x:\n  pass", 1),
        ("try:\n  pass\nexcept OSError:\n  pass\nexcept ValueError:\n  pass", 2),
        ("return x and y and z", 2),
        ("return x and (y or z)", 2),
        ("return x if y else z", 1),
        ("return [x for x in y]", 1),
        ("return {x for x in y for z in x if x if z}", 4),
        ("return lambda: x if y else z", 1),
        ("match x:\n  case 1:\n    pass\n  case [a]:\n    pass\n  case _:\n    pass", 2),
        ("match x:\n  case 1:\n    pass\n  case other:\n    pass", 1),
        ("match x:\n  case y if z:\n    pass", 1),
        ("with x:\n  pass", 0),
        ("def g():\n  if x:\n    pass", 0),
        ("class C:\n  def g(self):\n    if x:\n      pass", 0),
    ],
)
def test_complexity_is_one_more_than_the_decisions_of_a_function_itself(
    body: str, decisions: int
) -> None:
    source = "def f():\n" + "".join(f"  {line}\n" for line in body.splitlines())
    function = measure(source).functions[0]
    assert function.name == "f"
    assert function.complexity == 1 + decisions


def test_functions_inside_are_counted_for_themselves_and_named_by_where_they_lie() -> None:
    figures = mirror.measure(
        dedent("""
        class C:
            async def m(self):
                def inner():
                    if x:
                        pass
                return inner

        if True:
            def f():
                pass
        """),
        "a/b.py",
    )
    found = {function.name: function for function in figures.functions}
    assert {name: f.complexity for name, f in found.items()} == {"C.m": 1, "C.m.inner": 2, "f": 1}
    assert found["C.m"].where == "a/b.py:3"
    assert found["C.m"].lines == 5
    assert figures.mean_complexity == 4 / 3


def test_a_function_is_complex_above_ten_and_long_above_forty_lines_of_code() -> None:
    def function(name: str, decisions: int, statements: int, comments: int = 0) -> str:
        lines = ["if x: pass"] * decisions + ["x = 1"] * statements + ["# why"] * comments
        return "\n".join([f"def {name}():", '    """What."""', *(f"    {line}" for line in lines)])

    just_not = function("just_not", 9, 30, comments=20)
    too_complex = function("too_complex", 10, 0)
    too_long = function("too_long", 0, 40)
    figures = mirror.measure(f"{just_not}\n{too_complex}\n{too_long}\n")
    assert [f.name for f in figures.complex_functions] == ["too_complex"]
    assert [f.name for f in figures.long_functions] == ["too_long"]


def test_lines_above_a_hundred_columns_are_counted_in_comments_and_texts_too() -> None:
    assert mirror.measure("#" * 100 + "\n").long_lines == 0
    assert mirror.measure("#" * 101 + "\n").long_lines == 1
    assert mirror.measure('"""' + "x" * 98 + '"""\n').long_lines == 1


def test_comments_stand_in_a_block_from_three_lines_below_each_other_on() -> None:
    figures = measure("""
        # one
        # two
        x = 1  # beside code
        # one
        # two
        # three
        y = "# no comment"

        # one

        # two
        # three
        """)
    assert figures.comment_lines == 9
    assert figures.block_lines == 3
    assert figures.share_in_blocks == 1 / 3


def test_a_block_at_the_very_end_counts() -> None:
    assert mirror.measure("# one\n# two\n# three").block_lines == 3


def test_conditional_expressions_are_told_per_thousand_lines() -> None:
    figures = measure("""
        x = 1 if y else 2
        if y:
            z = (3 if x else 4) if y else 5
            pass
        """)
    assert figures.conditional_expressions == 3
    assert figures.per_thousand_lines(figures.conditional_expressions) == 750


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("a, b = x, y", 1),
        ("(a, b) = (x, y)", 1),
        ("a, b = b, a", 1),
        ("a, b = pair", 0),
        ("a = x, y", 0),
        ("for a, b in x: pass", 0),
    ],
)
def test_a_parallel_assignment_gives_several_names_several_values(source: str, count: int) -> None:
    assert mirror.measure(source).parallel_assignments == count


def test_syntax_nodes_are_those_that_the_parser_makes() -> None:
    # Module; Assign with Name, Store and Constant; Expr with Name and Load.
    figures = mirror.measure("x = 1\nx\n")
    assert figures.nodes == 8
    assert figures.nodes_a_line == 4


def test_an_empty_file_has_no_figures_and_divides_by_nothing() -> None:
    figures = mirror.measure("")
    assert figures.code_lines == 0
    assert figures.mean_complexity == figures.nodes_a_line == figures.share_in_blocks == 0


def test_both_layouts_are_read_and_links_are_not_followed(tmp_path: Path) -> None:
    for package in ("spool", "worker", "orchestrator/cli"):
        (tmp_path / package).mkdir(parents=True)
        (tmp_path / package / "m.py").write_text("x = 1\n")

    (tmp_path / "gpuspool.py").write_text("x = 1\ny = 2\n")
    lines = {name: f.code_lines for name, f in mirror.measure_packages(tmp_path).items()}
    assert lines == {"spool": 1, "worker": 1, "orchestrator": 1, "gpuspool": 2, "all": 5}

    (tmp_path / "gpuspool.py").unlink()
    (tmp_path / "gpuspool").mkdir()
    (tmp_path / "gpuspool" / "__init__.py").write_text("x = 1\ny = 2\nz = 3\n")
    for package in ("spool", "worker", "orchestrator"):
        (tmp_path / "gpuspool" / package).symlink_to(Path("..", package))
    lines = {name: f.code_lines for name, f in mirror.measure_packages(tmp_path).items()}
    assert lines == {"spool": 1, "worker": 1, "orchestrator": 1, "gpuspool": 3, "all": 6}


def look(*args: str | Path) -> subprocess.CompletedProcess[str]:
    script = ROOT / "scripts" / "mirror.py"
    return subprocess.run([sys.executable, script, *args], capture_output=True, text=True)


def test_the_mirror_of_this_checkout_names_what_is_complex_and_never_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = mirror.measure_packages(ROOT)
    assert figures["all"].code_lines > 5000
    monkeypatch.setattr(mirror, "measure_packages", {ROOT: figures}.get)
    assert mirror.main([]) == 0
    told = capsys.readouterr().out
    assert f"{figures['all'].code_lines:,}" in told
    for function in [*figures["all"].complex_functions, *figures["all"].long_functions]:
        assert f"{function.name}  {function.where}" in told


def test_bad_code_is_shown_and_does_not_fail(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    source = "def f():\n" + "    if x: pass\n" * 50 + "#" * 200 + "\n"
    (tmp_path / "spool" / "bad.py").write_text(source)
    done = look(tmp_path)
    assert done.returncode == 0
    assert " 51  f  spool/bad.py:1" in done.stdout


def test_a_folder_that_is_no_checkout_is_refused(tmp_path: Path) -> None:
    done = look(tmp_path)
    assert done.returncode == 2
    assert "holds none of the packages" in done.stderr
