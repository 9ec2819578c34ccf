"""From what the user calls the job to a `Job` record and the source that the spool keeps. No user
code runs in here.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import symtable
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from gpuspool.spool.errors import UsageError
from gpuspool.spool.records import Job
from gpuspool.spool.states import JobKind

OUR_NAME = "gpuspool"


def parse_job(job: Any, command: list[str] | None = None) -> tuple[Job, bytes]:
    """The record and the source (empty for a command) of file.py:Name, module:Name, an object, or a
    command.
    """
    if command:
        name = os.path.basename(command[0])
        sha = hashlib.sha256(json.dumps(command).encode()).hexdigest()
        return Job(
            kind=JobKind.COMMAND, spec=" ".join(command), name=name, sha256=sha, command=command
        ), b""
    _refuse_while_loading()
    where, colon, name = (job if isinstance(job, str) else _spec_of(job)).rpartition(":")
    if not colon or not where or not all(part.isidentifier() for part in name.split(".")):
        raise UsageError(
            f"JOB {job!r} is not file.py:Name or package.module:Name. Example: classify.py:Contigs"
        )
    if where.endswith(".py") or "/" in where:
        return _file_job(where, name)
    _refuse_our_name(where.partition(".")[0], where)
    if isinstance(job, str):
        return _module_job(where, name, _find_module(where, os.getcwd()), [os.getcwd()])
    loaded = sys.modules.get(where, sys.modules["__main__"])
    return _module_job(where, name, getattr(loaded, "__file__", None), _sys_path())


def parse_call(function: Any) -> tuple[Job, bytes]:
    """The record and the source of a worker function of the seed API. Raises TypeError and
    UsageError.

    It is found again by its name, as a pickle would, with this process's sys.path.
    """
    _refuse_while_loading()
    module, name = (
        sys.modules.get(getattr(function, "__module__", "")),
        getattr(function, "__qualname__", ""),
    )
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if module is None or found is not function or not callable(function):
        raise TypeError(
            f"worker_fn {function!r:.100} cannot be found by its name in another process. "
            "Define it with `def` at the top of a file."
        )
    spec, file = getattr(module, "__spec__", None), getattr(module, "__file__", None)
    if not file:
        raise UsageError(
            f"worker_fn {name} lives in no file, where a worker could import it. Put it into one."
        )
    dotted = (
        spec.name if spec is not None and spec.name != "__main__" else ""
    )  # "" where a script is the module
    _refuse_our_name(dotted.partition(".")[0] or Path(file).stem, file)
    where = f"{dotted or file}:{name}"
    job = Job(
        kind=JobKind.CALL,
        spec=where,
        name=name,
        file=os.path.abspath(file),
        module=dotted,
        sys_path=_sys_path(),
    )
    return with_source(job, Path(file))


def _sys_path() -> list[str]:
    """With what an object was imported here, it can be imported in a worker."""
    return [os.path.abspath(entry) for entry in sys.path]


def _refuse_while_loading() -> None:
    """A file that starts a run wherever it is imported would have each of its workers start
    another.
    """
    worker = sys.modules.get("gpuspool.worker.job")
    if worker is not None and worker.is_loading:
        raise UsageError(
            "a worker that imports this file starts another run. Put the call under `if __name__ == '__main__':`."
        )


def _file_job(where: str, name: str) -> tuple[Job, bytes]:
    path = Path(os.path.abspath(where))
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
            f"module {module} cannot be found as Python source. For a file write path/to/{module}.py:{name}; "
            f"for an installed module check that it is one of {sys.executable}."
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


def _find_module(module: str, here: str) -> str | None:
    """The file of a module. What it lies in is imported only where that must be, and in a process
    of its own.
    """
    usual, sys.path = sys.path, [here, *(entry for entry in sys.path if entry != here)]
    try:
        return _walk_to(module.split("."))
    except Exception:  # noqa: BLE001 - finders expect that the packages are imported
        code = "import importlib.util as u, sys; sys.path[:] = sys.argv[2:]; print(u.find_spec(sys.argv[1]).origin)"
        command = [sys.executable, "-P", "-c", code, module, *sys.path]
        said = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        ).stdout
        return said.strip().rpartition("\n")[2] or None
    finally:
        sys.path = usual


def _walk_to(parts: list[str]) -> str | None:
    """From package to package, as an import does. Raises where that does not get there."""
    where: Sequence[str] | None = None
    file = None
    for end in range(1, len(parts) + 1):
        if end > 1 and where is None:
            raise ModuleNotFoundError(parts[end - 2])
        found = (finder.find_spec(".".join(parts[:end]), where) for finder in sys.meta_path)
        spec = next(filter(None, found))
        where, file = spec.submodule_search_locations, spec.origin
    return file


def with_source(job: Job, path: Path) -> tuple[Job, bytes]:
    """Checks what can be checked without running it: that it is there, parses, and has the name.
    Raises UsageError.
    """
    if path.exists() and path.stat().st_mode & 0o002:
        raise UsageError(
            f"{path} may be written by everybody; it will not be run. `chmod o-w` it after a look at it."
        )
    try:
        source = path.read_bytes()
        names = _top_level_names(source, path)
    except OSError as error:
        raise UsageError(
            f"job file {path}: {error.strerror}. Give its path as file.py:Name."
        ) from None
    except (SyntaxError, ValueError) as error:
        raise UsageError(
            f"job file {path} does not parse: {error}. Mend it and run the same command again."
        ) from None
    first = job.name.partition(".")[0]
    if names is not None and first not in names:
        raise UsageError(f"{path} has no {first}. It has: {', '.join(sorted(names)) or 'nothing'}.")
    sha = hashlib.sha256(source).hexdigest()
    return msgspec.structs.replace(job, copy=path.name, sha256=sha), source


def _top_level_names(source: bytes, path: Path) -> set[str] | None:
    """What the file defines at its top; None where only running it could tell."""
    if b"import *" in source or b"globals()" in source:
        return None
    symbols = symtable.symtable(source, str(path), "exec").get_symbols()  # type: ignore[arg-type]
    return {s.get_name() for s in symbols if s.is_assigned() or s.is_imported()}


def _refuse_our_name(stem: str, where: object) -> None:
    if stem == OUR_NAME:
        raise UsageError(
            f"{where}: a job module cannot be named {stem!r}, gpuspool has one of that name. Rename it."
        )


def _spec_of(target: Any) -> str:
    """file.py:Name or module:Name of a class or function object."""
    module, name = getattr(target, "__module__", None), getattr(target, "__qualname__", None)
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if module == "__main__" and spec is not None:  # python -m package.script
        module = spec.name
    if not module or not name:
        raise UsageError(f"the job {target!r:.80} is no class, function or 'file.py:Name'.")
    if "<" in name:
        raise UsageError(
            f"the job {name} is defined inside a function; a worker can only find it at a module's top."
        )
    if module != "__main__":
        return f"{module}:{name}"
    file = getattr(sys.modules["__main__"], "__file__", None)
    if file is None:
        raise UsageError(
            f"{name} lives in a notebook or a prompt, where a worker cannot import it. Put it into a file: begin its "
            f"cell with %%writefile job.py, then pass 'job.py:{name}'."
        )
    return f"{os.path.abspath(file)}:{name}"
