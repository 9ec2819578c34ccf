"""Which spool is meant where the user names none."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from gpuspool.orchestrator.text.words import to_type
from gpuspool.spool.errors import UsageError
from gpuspool.spool.layout import Layout
from gpuspool.spool.records import Job
from gpuspool.spool.states import JobKind

# The end of the name of a spool that --fresh has moved aside.
ASIDE = re.compile(r"\.old-\d+$")

# Programs that run a script. The first word behind them that is no option is what they run.
_INTERPRETER = re.compile(
    r"(python|pypy|perl|ruby|lua|Rscript|julia|node|deno|php|(ba|da|z|k|fi)?sh)[\d.]*t?"
)

# What a module may be called.
_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")

# Of Python and of shells, the options whose value is the next word.
_WITH_VALUE = ("-W", "-X", "--check-hash-based-pycs")
_WITH_VALUE_OF_SHELL = ("-o", "+o", "-O", "+O", "--rcfile", "--init-file")

# Programs that start the one that is named behind them.
_LAUNCHERS = {
    *("env", "nohup", "nice", "ionice", "time", "timeout", "stdbuf", "setsid", "exec", "command"),
    *("taskset", "numactl", "chrt", "prlimit", "sudo", "xvfb-run", "catchsegv", "unbuffer"),
    *("srun", "mpirun", "mpiexec", "orterun", "jsrun", "flux", "torchrun", "accelerate"),
    *("deepspeed", "uv", "uvx", "pipx", "conda", "mamba", "micromamba", "poetry", "pipenv"),
    *("pdm", "hatch", "rye", "pixi", "run", "launch", "apptainer", "singularity", "docker"),
    *("podman", "nsys", "ncu", "nvprof", "strace", "ltrace", "perf", "valgrind"),
}

# What the name of a script ends in.
_SCRIPTS = (".py", ".sh", ".bash", ".zsh", ".pl", ".rb", ".lua", ".R", ".r", ".jl", ".js", ".php")


def default_spool(job: Job) -> str:
    """The spool's folder where the user names none: `spool-<name of the job>`.

    A command has the name of the script or program that it runs.
    """
    if job.kind is JobKind.COMMAND:
        return f"spool-{command_name(job.command)}"
    return f"spool-{job.name}"


def command_name(command: list[str]) -> str:
    """The name of what a command runs: x of `python x.py`, pkg.mod of `python -m pkg.mod`.

    What starts it (`srun`, `env`, `uv run`, an interpreter) has no part in the name, or all
    commands would have the same. Where no script is seen behind it, it is the name after all.
    """
    found = _program_of(command) or command[0]
    name = os.path.basename(found.rstrip("/")) or "command"
    stem, suffix = os.path.splitext(name)
    return stem if suffix in _SCRIPTS else name


def _program_of(command: list[str]) -> str | None:
    """The word of a command that names its script, module or program; None where none is seen."""
    for at, word in enumerate(command):
        name = os.path.basename(word)
        if _INTERPRETER.fullmatch(name):
            return _script_of(name, command[at + 1 :]) or word
        if at == 0 and name not in _LAUNCHERS:
            return word
        # Options of a launcher may have values of any kind: a partition, a number, an image. So
        # what stands behind -m is a module only if it could be one: not `0` or `4g`.
        if word == "-m" and at + 1 < len(command) and _MODULE.fullmatch(command[at + 1]):
            return command[at + 1]
        if word.startswith("-") or "=" in word or "{" in word or name in _LAUNCHERS:
            continue
        if word.endswith(_SCRIPTS) or shutil.which(word):
            return word
    return None


def _script_of(interpreter: str, words: list[str]) -> str | None:
    """The script or module among the words behind an interpreter; None where it runs neither."""
    with_value = _WITH_VALUE_OF_SHELL if _is_shell(interpreter) else _WITH_VALUE
    rest = iter(words)
    for word in rest:
        if word == "-m":
            return next(rest, None)
        if "{" in word or _is_code(interpreter, word):
            return None
        if word in with_value:
            next(rest, None)
        elif not word.startswith("-"):
            return word
    return None


def _is_shell(interpreter: str) -> bool:
    return interpreter.endswith("sh")


def _is_code(interpreter: str, option: str) -> bool:
    """Whether the word behind this option is a program itself, which has no name: `bash -ec …`."""
    is_shell = _is_shell(interpreter)
    if is_shell and re.fullmatch(r"-[a-z]*c", option):
        return True
    return option == "-c" or (not is_shell and option in ("-e", "--eval"))


def find_spool(spool: str | os.PathLike[str] | None) -> Path:
    """The spool that was named, else the only ./spool-* that was not moved aside.

    Raises UsageError where none is named and there is not exactly one.
    """
    if spool is not None:
        return Path(at_home(spool))
    found = _spools_here()
    if len(found) != 1:
        names = ", ".join(map(str, found)) or "none"
        raise UsageError(
            f"SPOOL is not given and there is not just one ./spool-* ({names}). Name one."
        )
    return found[0]


def is_none_here() -> bool:
    """Whether there is no ./spool-* but those that were moved aside."""
    return not _spools_here()


def refuse_no_spool(verb: str, spool: str | os.PathLike[str] | None, words: Sequence[str]) -> None:
    """Raise UsageError where the first word behind a verb is no spool, but should have been one.

    words: what stands behind it. If there is no other spool that may be meant, whoever opens this
    one says what is wrong with it.
    """
    if spool is None or Layout(at_home(spool)).format.exists():
        return
    found = _spools_here()
    typed = os.fspath(spool)
    is_misspelt = os.path.basename(typed.rstrip("/")).startswith("spool-")
    if not found or is_misspelt or (words and len(found) > 1):
        return
    name = found[0] if len(found) == 1 else "SPOOL"
    raise UsageError(
        f"{typed!r} is taken for SPOOL, which comes first: "
        f"{to_type(verb, name, shlex.join([typed, *words]))}"
    )


def at_home(path: str | os.PathLike[str]) -> str:
    """A path with the home folder in the place of its `~`, which no shell replaces in quotes.

    What exists is taken as it is.
    """
    word = os.fspath(path)
    return word if os.path.lexists(word) else os.path.expanduser(word)


def are_several_here() -> bool:
    """Whether more than one spool may be meant where the user names none."""
    return len(_spools_here()) > 1


def find_spools(folder: str | os.PathLike[str]) -> list[Path]:
    """The folders ./spool-* of a folder that are spools or were some, also those that were moved
    aside, by name; the folder itself, if that is one. Raises UsageError where it is none.
    """
    base = Path(at_home(folder))
    if not base.is_dir():
        raise UsageError(f"{os.fspath(folder)} is not a folder. Name one with spools in it.")
    if _has_been_spool(base):
        return [base]
    return [path for path in sorted(base.glob("spool-*")) if _has_been_spool(path)]


def _has_been_spool(path: Path) -> bool:
    """Whether a folder has one of the files without which it is no spool."""
    layout = Layout(path)
    return layout.format.exists() or layout.run.exists() or layout.run_copy.exists()


def _spools_here() -> list[Path]:
    """The spools in the current folder that were not moved aside, by name."""
    found: list[Path] = []
    for path in sorted(Path().glob("spool-*")):
        is_spool = Layout(path).format.exists()
        is_aside = ASIDE.search(path.name) is not None
        if is_spool and not is_aside:
            found.append(path)
    return found
