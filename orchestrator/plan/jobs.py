"""From what the user calls the job to a `Job` record, and the source that the spool keeps.

A job may be named as `file.py:Name`, as `module:Name`, as a class or function object, or as a
command. No code of the user runs in here: files are parsed, not imported, so that a job which takes
minutes to import, or crashes, or starts processes, does so in its workers alone. (One exception is
fenced off: to find a module inside of a package that no finder knows without importing it, a child
process imports the package.)

Called by plan/request.py, by a resume for the job's current source, and by `GPUProcessCoordinator`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import symtable
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from gpuspool.orchestrator.plan.encoding import interpreter
from gpuspool.orchestrator.plan.locate import at_home
from gpuspool.spool.errors import UsageError
from gpuspool.spool.layout import copy_name
from gpuspool.spool.placeholders import OF_THE_WORKER, PLACEHOLDERS, parse
from gpuspool.spool.records import Job
from gpuspool.spool.states import JobKind

# A job's module of this name would be found in place of ours, or ours in its place.
OUR_NAME = "gpuspool"

# Words that mean something to a shell. The `;` and `&` that other programs take are not among them.
OF_SHELLS = frozenset(("|", "||", "&&", "|&", ">", ">>", "<", "<<", "2>", "2>>", "&>", "2>&1"))
# Programs to which some of these are operators.
COMPARING = frozenset(("expr", "test", "[", "[["))

# How a command is given to a shell, so that it reads no input's name as code.
TO_A_SHELL = "`-- sh -c '… \"$1\"' sh {input}`"

# Run in a child process: it prints the file of the module argv[1], with argv[2:] as sys.path.
FIND_SCRIPT = (
    "import importlib.util as u, sys; "
    "sys.path[:] = sys.argv[2:]; "
    "print(u.find_spec(sys.argv[1]).origin)"
)


def parse_job(
    job: Any, command: Sequence[str] | None = None, capture: bool = False
) -> tuple[Job, bytes]:
    """The record and the source of a job.

    job: "file.py:Name", "module:Name", or an object. command: the words of a command instead; its
    source is empty. capture: what the command prints is its result. Raises UsageError.
    """
    if command:
        if job is not None:
            raise UsageError(f"the job {job!r:.80} and a command are both given. Leave one out.")
        return _command_job(command, capture), b""
    if capture:
        raise UsageError(
            "--capture makes what a command prints its result. The result of a class or function "
            "is what it returns: leave --capture away."
        )
    _refuse_while_loading()
    spec = job
    if not isinstance(job, str):
        spec = _spec_of(job)
    where, name = _split_spec(spec)
    if where.endswith(".py") or "/" in where:
        return _file_job(where, name)
    package, _, _ = where.partition(".")
    _refuse_our_name(package, where)
    if isinstance(job, str):
        here = os.getcwd()
        return _module_job(where, name, _find_module(where, here), [here])
    # An object is in a module that was imported here already, maybe by finders that only this
    # process has. So its file is not searched for, and workers get the sys.path of this process.
    loaded = sys.modules.get(where, sys.modules["__main__"])
    return _module_job(where, name, getattr(loaded, "__file__", None), _sys_path())


def _split_spec(spec: str) -> tuple[str, str]:
    """The file or module, and the name in it, of "where:Name". Raises UsageError."""
    where, _, name = spec.rpartition(":")
    if not where or not all(part.isidentifier() for part in name.split(".")):
        raise UsageError(
            f"JOB {spec!r} is not file.py:Name or package.module:Name. Example: classify.py:Contigs"
        )
    first, colon, _ = where.partition(":")
    if colon and not where.endswith(".py"):
        raise UsageError(f"JOB {spec!r} has more than one colon; write {first}:{name}")
    return where, name


def refuse_swapped(job: Any, inputs: object) -> None:
    """Raise UsageError where the job stands among the inputs, and an input in its place."""
    words = [inputs] if isinstance(inputs, str) else inputs
    if not isinstance(job, str) or not isinstance(words, (list, tuple)) or _is_job_file(job):
        return
    for word in words:
        if isinstance(word, str) and _is_job_file(word):
            raise UsageError(
                f"{job!r} is taken for JOB, which comes first. Put {word} before the inputs: "
                f"{word} {shlex.quote(job)}"
            )


def _is_job_file(word: str) -> bool:
    """Whether a word is file.py:Name, of a file that is there."""
    where, colon, name = word.rpartition(":")
    return bool(colon) and name.isidentifier() and where.endswith(".py") and os.path.isfile(where)


def parse_call(function: Any) -> tuple[Job, bytes]:
    """The record and the source of a worker function of `GPUProcessCoordinator`.

    A worker finds the function by its name, as pickle would, with the sys.path of this process.
    Raises TypeError for a function that no name leads to, and UsageError.
    """
    _refuse_while_loading()
    module = _module_of(function)
    name = function.__qualname__
    file = getattr(module, "__file__", None)
    if not file:
        raise UsageError(
            f"worker_fn {name} is not in a file, where a worker could import it. Put it into one."
        )
    dotted = _dotted_name(module)
    package, _, _ = dotted.partition(".")
    _refuse_our_name(package or Path(file).stem, file)
    job = Job(
        kind=JobKind.CALL,
        spec=f"{dotted or file}:{name}",
        name=name,
        file=os.path.abspath(file),
        module=dotted,
        sys_path=_sys_path(),
    )
    return with_source(job, Path(file))


def _dotted_name(module: ModuleType) -> str:
    """The name by which a worker can import a module; "" where its file has to do.

    The module of a script has no spec, or that of `python -m`. It is called "__main__" here, and a
    worker's module of this name is another one.
    """
    spec = getattr(module, "__spec__", None)
    if spec is None or spec.name == "__main__":
        return ""
    name: str = spec.name
    return name


def _module_of(function: Any) -> ModuleType:
    """The module in which a function is found by its name. Raises TypeError where it is not."""
    # The name is followed as a worker will follow it. A lambda, a function inside of another one
    # and one that a decorator replaced all bear some name, but the name leads nowhere or to
    # something else. That is better said now than by every worker after it has started.
    module = sys.modules.get(getattr(function, "__module__", ""))
    found: Any = module
    for part in getattr(function, "__qualname__", "").split("."):
        found = getattr(found, part, None)
    if module is None or found is not function or not callable(function):
        raise TypeError(
            f"worker_fn {function!r:.100} cannot be found by its name in another process. "
            "Define it with `def` at the top of a file."
        )
    return module


def with_source(job: Job, path: Path) -> tuple[Job, bytes]:
    """The job with the hash of its source as it stands in the file now, and the source.

    Checks what can be checked without running it: that the file is there, that only its owner may
    write it, that it parses, and that it defines the job's name. Raises UsageError.
    """
    _refuse_writable_by_all(path)
    try:
        source = path.read_bytes()
        names = _top_level(source, path)
    except OSError as error:
        raise UsageError(
            f"job file {path}: {error.strerror}. Give its path as file.py:Name."
        ) from None
    except (SyntaxError, ValueError) as error:
        raise UsageError(
            f"job file {path} does not parse: {error}. Fix it and run the same command again."
        ) from None
    first, _, _ = job.name.partition(".")
    if names is not None and first not in names:
        raise UsageError(f"{path} has no {first}. {_what_it_has(names, first)}")
    sha256 = hashlib.sha256(source).hexdigest()
    return msgspec.structs.replace(job, copy=copy_name(path.name), sha256=sha256), source


def _refuse_writable_by_all(path: Path) -> None:
    """Raise UsageError for a file in which anybody may have put code for us to run."""
    if path.exists() and path.stat().st_mode & 0o002:
        raise UsageError(
            f"{path} may be written by everybody, so it will not be run. Look at it, then "
            "`chmod o-w` it."
        )


def _command_job(command: Sequence[str], capture: bool) -> Job:
    if isinstance(command, str):
        raise UsageError(
            f"the command {command!r} is one text. Give a list of words: {command.split()!r}."
        )
    for word in command:
        if not isinstance(word, (str, os.PathLike)):
            raise UsageError(
                f"the word {word!r:.80} of the command is no text. Give {str(word)!r}."
            )
    words = [os.fspath(word) for word in command]
    _refuse_quoted_whole(words)
    _refuse_placeholders(words)
    asked: Any = {"command": words, "capture": True} if capture else words
    return Job(
        kind=JobKind.COMMAND,
        spec=" ".join(words),
        name=os.path.basename(words[0]),
        sha256=hashlib.sha256(json.dumps(asked).encode()).hexdigest(),
        command=words,
        capture=capture,
    )


def _refuse_quoted_whole(words: list[str]) -> None:
    """Raise UsageError for a program and its arguments in one word: no program has that name."""
    program, *rest = words[0].split(maxsplit=1) or [""]
    is_there = Path(words[0]).exists() or shutil.which(words[0]) is not None
    if not rest or "{" in program or is_there:
        return
    typed = " ".join([words[0], *map(shlex.quote, words[1:])])
    raise UsageError(
        f"{words[0]!r} is one word of the command, and no program has that name. Give it without "
        f"quotes, `-- {typed}`, or to a shell, {TO_A_SHELL}."
    )


def shell_words(command: Sequence[str]) -> list[str]:
    """The words of a command that only a shell would understand, and none is there."""
    if not command or os.path.basename(command[0]) in COMPARING:
        return []
    return [word for word in command[1:] if word in OF_SHELLS]


def _refuse_placeholders(words: list[str]) -> None:
    """Raise UsageError for a command that would not do another thing for each task.

    That is one with a placeholder that there is not, which would be passed on as it stands, and one
    with none at all.
    """
    found: set[str] = set()
    for word in words:
        names = [piece.name for piece in parse(word) if piece.name]
        for name in names:
            if name not in PLACEHOLDERS:
                raise UsageError(_no_placeholder(name))
        if names.count("output") > 1:
            raise UsageError(
                f"the word {word!r} of the command has {{output}} twice. What follows it is the "
                "suffix of the output: write each output as a word of its own."
            )
        found.update(names)
    if found <= set(OF_THE_WORKER):
        raise UsageError(
            "the command has no placeholder that names the task, so it would do the same for each. "
            f"Write {{input}} where the input belongs: `-- {shlex.join(words)} {{input}}`. The "
            f"others are {_all_but('input')}."
        )


def _no_placeholder(name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name.lower(), PLACEHOLDERS, 1)
    guess = f" Is {{{near[0]}}} meant?" if near else ""
    return (
        f"the command has {{{name}}}, and there is no such placeholder.{guess} There are "
        f"{{input}}, {_all_but('input')}. For the text {{{name}}} itself write {{{{{name}}}}}."
    )


def _all_but(name: str) -> str:
    return ", ".join(f"{{{other}}}" for other in PLACEHOLDERS if other != name)


def _file_job(where: str, name: str) -> tuple[Job, bytes]:
    path = Path(os.path.abspath(at_home(where)))
    _refuse_our_name(path.stem, path)
    job = Job(
        kind=JobKind.FILE,
        spec=f"{where}:{name}",
        name=name,
        file=str(path),
        sys_path=[str(path.parent)],
    )
    return with_source(job, path)


def _module_job(module: str, name: str, file: str | None, paths: list[str]) -> tuple[Job, bytes]:
    if file is None or not file.endswith(".py"):
        raise UsageError(
            f"module {module} cannot be found as Python source. For a file write "
            f"path/to/{module}.py:{name}; for an installed module check that it is one of "
            f"{sys.executable}."
        )
    job = Job(
        kind=JobKind.MODULE,
        spec=f"{module}:{name}",
        name=name,
        file=file,
        module=module,
        sys_path=paths,
    )
    return with_source(job, Path(file))


def _sys_path() -> list[str]:
    """What an object was imported with here; with the same, a worker can import it."""
    return [os.path.abspath(entry) for entry in sys.path]


def _refuse_while_loading() -> None:
    """Refuse to start a run from inside of a worker that is importing its job.

    A script that starts a run wherever it is imported would have each of its workers start another
    run, whose workers would start more.
    """
    worker = sys.modules.get("gpuspool.worker.job")
    if worker is not None and worker.is_loading:
        raise UsageError(
            "a worker that imports this file starts another run. Put the call under "
            "`if __name__ == '__main__':`."
        )


def _refuse_our_name(stem: str, where: object) -> None:
    if stem == OUR_NAME:
        raise UsageError(
            f"{where}: a job module cannot be named {stem!r}, gpuspool has one of that name. "
            "Rename it."
        )


def _find_module(module: str, here: str) -> str | None:
    """The file of a module, as a Python started in `here` would find it; None where it finds none.

    The finders are asked in this process, one package after the other, without importing anything.
    Some of them (pkgutil-style packages, editable installs) expect that the packages above are
    imported, and raise whatever they like when these are not. Then a child process imports them.
    """
    usual = sys.path
    sys.path = [here, *(entry for entry in usual if entry != here)]
    try:
        return _walk_to(module.split("."))
    except Exception:  # noqa: BLE001 - a finder is foreign code and may raise anything
        return _find_in_child(module)
    finally:
        sys.path = usual


def _find_in_child(module: str) -> str | None:
    """The file of a module, found by a child process; None where it finds none.

    The last line that the child prints is the answer. The package may print other lines before.
    """
    command = [*interpreter(), "-c", FIND_SCRIPT, module, *sys.path]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    return done.stdout.strip().rpartition("\n")[2] or None


def _walk_to(parts: list[str]) -> str | None:
    """The file of a module, from package to package as an import goes. Raises where that fails."""
    # Each finder is asked for one module at a time, in the folders where the package above it said
    # that its modules are; None stands for sys.path. `importlib.util.find_spec("a.b")` would do the
    # same, but imports `a` on the way, and so would run code of the user.
    where: Sequence[str] | None = None
    file = None
    for end in range(1, len(parts) + 1):
        if end > 1 and where is None:
            raise ModuleNotFoundError(parts[end - 2])
        dotted = ".".join(parts[:end])
        found = (finder.find_spec(dotted, where) for finder in sys.meta_path)
        spec = next(filter(None, found))
        where = spec.submodule_search_locations
        file = spec.origin
    return file


def _top_level(source: bytes, path: Path) -> dict[str, symtable.Symbol] | None:
    """What the file defines or imports at its top; None where only running it could tell."""
    if b"import *" in source or b"globals()" in source:
        return None
    table = symtable.symtable(source, str(path), "exec")  # type: ignore[arg-type]
    names: dict[str, symtable.Symbol] = {}
    for symbol in table.get_symbols():
        if symbol.is_assigned() or symbol.is_imported():
            names[symbol.get_name()] = symbol
    return names


def _what_it_has(names: dict[str, symtable.Symbol], wanted: str) -> str:
    """What a user may have meant, from what a file has at its top.

    An imported class may be a job, but people look for what stands in this file.
    """
    import difflib

    own = [name for name, symbol in names.items() if not symbol.is_imported()]
    callables = [name for name in own if names[name].is_namespace()]
    known = sorted(callables or own)
    if not known:
        return "It defines no class and no function."
    near = difflib.get_close_matches(wanted.lower(), [name.lower() for name in known], 1)
    hint = "".join(f"Did you mean {name}? " for name in known if name.lower() in near)
    return f"{hint}It has: {', '.join(known)}."


def _spec_of(target: Any) -> str:
    """file.py:Name or module:Name of a class or function object. Raises UsageError."""
    module = _module_name(target)
    name = getattr(target, "__qualname__", None)
    if not module or not name:
        raise UsageError(f"the job {target!r:.80} is not a class, a function or 'file.py:Name'.")
    if "<" in name:
        raise UsageError(
            f"the job {name} is defined inside a function; a worker can only find it at the top of "
            "a module."
        )
    if module != "__main__":
        return f"{module}:{name}"
    return f"{_script(name)}:{name}"


def _module_name(target: Any) -> str | None:
    """The name of the module in which an object was defined; None where it does not tell."""
    module: str | None = getattr(target, "__module__", None)
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if module == "__main__" and spec is not None:
        # Started with `python -m package.script`: a worker imports it under that name.
        module = spec.name
    return module


def _script(name: str) -> str:
    """The script that is being run. Raises UsageError where there is none, as in a notebook."""
    file: str | None = getattr(sys.modules["__main__"], "__file__", None)
    if file is None:
        raise UsageError(
            f"{name} is defined in a notebook or at a prompt, where a worker cannot import it. Put "
            f"it into a file: begin its cell with %%writefile job.py, then pass 'job.py:{name}'."
        )
    return os.path.abspath(file)
