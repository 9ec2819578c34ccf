"""The tree of errors: complete, drawn, exported, described, and fit to be passed on."""

import ast
import builtins
import inspect
import pickle
import re
from pathlib import Path

import pytest
from test_imports import MODULES

import gpuspool
from gpuspool.spool import errors
from gpuspool.spool.errors import GpuspoolError

PAGE = Path(__file__).resolve().parent.parent / "docs" / "python-api.md"
TREE = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, GpuspoolError)
]
ids = pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)

# Classes of exceptions outside of the tree, and why they are: a private signal of one package.
PRIVATE = {
    "CopyUnreadable",
    "Drained",
    "NotAllCame",
    "NotNow",
    "NotStartable",
    "NpyError",
    "OutOfMemory",
    "PipeBroken",
    "Silent",
    "WrongLength",
    "_Gone",
    "_Infinite",
    "_NoForm",
}
# Jobs raise these, and workers catch them.
OF_JOBS = {"NotDone", "Restart"}


def instance(kind: type[GpuspoolError]) -> GpuspoolError:
    """One error of a kind, as it is raised."""
    if issubclass(kind, OSError):
        return kind(5, "Input/output error", "/a/path")
    if issubclass(kind, errors.CommandFailed):
        return kind("sh: exit code 7", 7)
    return kind("what happened, where, and what to do next")


@ids
def test_an_error_is_exported_described_and_drawn_with_its_exit_code(
    kind: type[GpuspoolError],
) -> None:
    assert getattr(gpuspool, kind.__name__) is kind
    assert kind.__name__ in gpuspool.__all__
    assert inspect.getdoc(kind) != inspect.getdoc(kind.__mro__[1]), "it has a docstring of its own"
    assert f"`{kind.__name__}`" in PAGE.read_text()
    drawn = re.search(rf"[ │├└─]{kind.__name__}\b.*? (\d+)(?:  |\n)", errors.__doc__ or "")
    assert drawn is not None, "it stands in the tree at the top of the module"
    assert int(drawn[1]) == kind.exit_code


@ids
def test_an_error_survives_pickling(kind: type[GpuspoolError]) -> None:
    error = instance(kind)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)
    assert vars(again) == vars(error)
    assert again.exit_code == error.exit_code


def test_errors_of_the_file_system_and_of_values_are_caught_as_such_too() -> None:
    error = instance(errors.SyncError)
    assert isinstance(error, OSError)
    assert (error.errno, error.filename) == (5, "/a/path")
    assert issubclass(errors.Damaged, ValueError)


def test_no_exception_class_is_defined_outside_of_the_tree() -> None:
    """Whatever gpuspool raises on purpose can be caught as a GpuspoolError."""
    known = {name for name in vars(builtins) if name.endswith(("Error", "Exception"))}
    known |= {kind.__name__ for kind in TREE}
    outside = set()
    for name, path in MODULES.items():
        if name == errors.__name__:
            continue
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.ClassDef):
                bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
                if bases & known:
                    outside.add(node.name)
    assert outside == PRIVATE | OF_JOBS


def test_the_exit_codes_that_several_parts_use_are_those_of_the_docs() -> None:
    codes = {name: value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert codes == {
        "EXIT_COMPLETE": 0,
        "EXIT_SOME_FAILED": 3,
        "EXIT_NOT_FINISHED": 4,
        "EXIT_CANNOT_CLOSE": -45,
        "EXIT_DRAINED": 75,
        "EXIT_UNUSABLE": 76,
        "EXIT_INTERRUPTED": 130,
        "EXIT_READER_GONE": 141,
        "EXIT_UNSEEN": 255,
    }
