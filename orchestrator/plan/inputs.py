"""From what the user names as inputs to the ordered list of tasks.

A task gets an index (its place in the input order), a key (its name), a payload (a JSON value) and
a cost (what balances the ranks and weights the progress). There are four sources: paths and globs,
a list of paths, lines of text, and JSON lines; Python callers may also pass values.

Whatever cannot become a task is refused with a UsageError that names the file and the line, before
anything is written. Called by plan/request.py, and by `GPUProcessCoordinator`, which makes its own
tasks.
"""

from __future__ import annotations

import array
import glob
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from gpuspool.spool.codec import SHALLOW_BYTES, refuse_depth, seal_bodies, seal_lines, unseal
from gpuspool.spool.errors import UsageError
from gpuspool.spool.layout import OUT_MARK, Layout, refuse_key
from gpuspool.spool.records import TaskLine

# What the keys of input files are relative to, given their absolute paths.
ChooseRoot = Callable[[list[str]], str]

# A cost must be less than this. The costs of all tasks are added up, and even a million of the
# largest must not become infinite.
COST_LIMIT = 1e200


class TaskList:
    """The tasks of a run in input order.

    They are kept as the sealed lines that stand for them in the manifests, because a million
    records would take several times the memory.

    lines: one sealed line for each task. costs: what each task costs. root: the folder that the
    keys of input files are relative to; "" where the inputs are not files. newest_mtime: when the
    newest of them was last changed, in Unix seconds. left_out: how many files the globs matched
    that lie in spools and in folders of outputs.
    """

    def __init__(self, lines: list[bytes], costs: Sequence[float]) -> None:
        self.lines = lines
        self.costs = costs
        self.root = ""
        self.newest_mtime = 0.0
        self.left_out = 0

    def __len__(self) -> int:
        return len(self.lines)

    def __iter__(self) -> Iterator[TaskLine]:
        """The tasks as records, each read from its line."""
        return (unseal(line[:-1], TaskLine) for line in self.lines)


def seal_tasks(tasks: Iterable[TaskLine]) -> TaskList:
    """The list of these tasks. They are taken one by one, so that they need not fit in memory."""
    costs = array.array("d")

    def noting_costs() -> Iterator[TaskLine]:
        for task in tasks:
            costs.append(task.cost)
            yield task

    return TaskList(seal_lines(noting_costs()), costs)


def collect(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] = (),
    files_from: str | None = None,
    lines: str | None = None,
    tasks: str | None = None,
    items: Iterable[Any] | None = None,
    choose_root: ChooseRoot | None = None,
) -> TaskList:
    """The tasks of the one source that was named.

    paths: files and globs. files_from, lines, tasks: files that list them, "-" for standard input.
    items: JSON values. choose_root: asked what the keys of files are relative to; the lowest folder
    that holds all of them where it is None. Raises UsageError for none and for several sources, and
    for whatever cannot become a task.
    """
    # One path alone is one path, and not the letters that it has.
    several = [paths] if isinstance(paths, (str, os.PathLike)) else paths
    given = [os.fspath(path) for path in several]
    _refuse_unless_one(given or None, files_from, lines, tasks, items)
    if items is not None:
        return from_values(items)
    if lines is not None:
        return from_values(_read_lines(lines))
    if tasks is not None:
        return seal_tasks(_checked(_from_jsonl(tasks)))
    choose_root = choose_root or common_parent
    if files_from is not None:
        return _from_files([path for path in _read_lines(files_from) if path], choose_root)
    own = _OwnFolders()
    found = _from_files(_expand(given, own), choose_root)
    found.left_out = own.n_left_out
    return found


def _refuse_unless_one(*sources: object) -> None:
    """Raise UsageError unless exactly one source was named; those that were not are None."""
    count = sum(source is not None for source in sources)
    if count != 1:
        raise UsageError(
            "name the inputs in one way: paths or globs, --files-from, --lines or --tasks, or "
            f"`items` from Python ({count} of them were given)."
        )


def from_values(values: Iterable[Any]) -> TaskList:
    """One task of cost 1 for each JSON value; NaN and infinity become null.

    Raises UsageError for a value that JSON cannot hold.
    """
    lines = seal_bodies(
        b'{"task":%d,"key":"t%d","payload":%b,"cost":1.0' % (index, index, payload)
        for index, payload in enumerate(_payloads(values))
    )
    return TaskList(lines, array.array("d", [1.0]) * len(lines))


def _payloads(values: Iterable[Any]) -> Iterator[bytes]:
    # There may be millions of values, so the encoder is made once, and what is too short to be
    # nested too deeply is not looked at again. The depth must be limited here, where the user can
    # be told: in the spool a line that is too deep for its decoder would look like damage.
    encode = msgspec.json.Encoder().encode
    for index, value in enumerate(values):
        try:
            payload = encode(value)
            if len(payload) > SHALLOW_BYTES:
                refuse_depth(payload)
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(
                f"item {index} ({value!r:.80}) cannot be a payload: {error}. Use JSON values."
            ) from None
        yield payload


def _read_lines(source: str) -> list[str]:
    """The lines of a text file or of standard input, without their ends. Raises UsageError."""
    text = _read_text(source)
    if not text:
        return []
    # Not str.splitlines: a payload may hold any of the other characters that it splits at.
    found = text.removesuffix("\n").split("\n")
    if "\r" not in text:
        return found
    return [line.rstrip("\r") for line in found]


def _read_text(source: str) -> str:
    if source == "-" and sys.stdin is None:
        raise UsageError("there is no stdin. Name a file.")
    try:
        return _read(source).decode()
    except OSError as error:
        raise UsageError(
            f"{source} cannot be read: {error.strerror}. Name a readable file, or - for stdin."
        ) from None
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{source}, byte {error.start}: not UTF-8. Convert it, e.g. with iconv."
        ) from None


def _read(source: str) -> bytes:
    if source == "-":
        return sys.stdin.buffer.read()
    return Path(source).read_bytes()


class TaskSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A line of --tasks that says more than its payload."""

    payload: msgspec.Raw
    key: str | None = None
    cost: float | None = None


def _from_jsonl(source: str) -> Iterator[TaskLine]:
    """One task for each line of --tasks that is not blank. Raises UsageError, naming the line.

    The lines are taken off their list one by one, because a million of them are large, and the
    sealed lines that they become are as large again.
    """
    lines = _read_lines(source)
    lines.reverse()
    count = len(lines)
    index = 0
    while lines:
        text = lines.pop().strip()
        where = f"{source}, line {count - len(lines)}"
        if not text:
            continue
        yield _task(index, _parse_spec(text, where), where)
        index += 1


def _parse_spec(text: str, where: str) -> TaskSpec:
    """The payload alone, or an object with a payload and what else it says. Raises UsageError."""
    try:
        data = text.encode()
        value = msgspec.json.decode(data)
        refuse_depth(data)
        if isinstance(value, dict) and "payload" in value:
            return msgspec.json.decode(data, type=TaskSpec)
        return TaskSpec(msgspec.Raw(data))
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        raise UsageError(f"{where}: {error}. Each line is a JSON value; nothing was run.") from None


def _task(index: int, spec: TaskSpec, where: str) -> TaskLine:
    cost = spec.cost
    if cost is None:
        cost = 1.0
    if not 0 <= cost < COST_LIMIT:
        raise UsageError(
            f"{where}: cost {cost} is not a number from 0 to {COST_LIMIT:g}. It says how much work "
            "the task is, in any unit, or leave it out; nothing was run."
        )
    key = spec.key or f"t{index}"
    return TaskLine(task=index, key=key, payload=spec.payload, cost=cost)


class _OwnFolders:
    """The folders of gpuspool's own that globs meet: spools, and those that hold a run's outputs.

    What lies in them is left out, or `**/*.txt` would find the outputs of the run before. A folder
    that the pattern names itself, before its first wildcard, is what the user asks for.
    """

    def __init__(self) -> None:
        self.n_left_out = 0
        # folder -> whether it is such a folder, or lies in one below the pattern's own
        self._known: dict[str, bool] = {}

    def without(self, paths: Iterable[str], pattern: str) -> Iterator[str]:
        """The paths that a pattern matched, without those that are left out."""
        base = _fixed_part(pattern)
        self._known = {base: False}
        for path in paths:
            if self._is_own(os.path.dirname(path)):
                self.n_left_out += 1
            else:
                yield path

    def _is_own(self, folder: str) -> bool:
        known = self._known.get(folder)
        if known is None:
            above = os.path.dirname(folder)
            known = (above != folder and self._is_own(above)) or _is_marked(folder)
            self._known[folder] = known
        return known


def _is_marked(folder: str) -> bool:
    """Whether a folder is a spool, or bears the mark of a run's outputs."""
    if os.path.lexists(os.path.join(folder, OUT_MARK)):
        return True
    layout = Layout(folder)
    return layout.format.exists() and layout.manifests.is_dir()


def _fixed_part(pattern: str) -> str:
    """The folder that a glob names before its first wildcard; "" for the working directory."""
    folder = os.path.dirname(pattern)
    while glob.has_magic(folder):
        folder = os.path.dirname(folder)
    return folder


def _expand(patterns: Iterable[str], own: _OwnFolders) -> list[str]:
    """The named files, with each glob replaced by the files that it matches, sorted.

    What exists is taken as it is, even if it looks like a glob: `[1].txt` may be a file.
    """
    files: list[str] = []
    for pattern in patterns:
        if os.path.lexists(pattern):
            files.append(pattern)
        else:
            files += _matches(pattern, own)
    return files


def _matches(pattern: str, own: _OwnFolders) -> list[str]:
    """The files that a glob matches, sorted. Raises UsageError where there are none."""
    found: list[str] = []
    if glob.has_magic(pattern):
        matches = glob.glob(pattern, recursive=True)
        found = list(own.without((path for path in matches if not os.path.isdir(path)), pattern))
    if found:
        return sorted(found)
    if own.n_left_out:
        raise UsageError(
            f"{pattern} matches only files in spools and in folders of outputs, which are left "
            "out. Name that folder itself, without a wildcard, if you want them."
        )
    raise UsageError(
        f"{pattern} matches no file. Check the path; quote a glob so that gpuspool expands it."
    )


def _from_files(paths: list[str], choose_root: ChooseRoot) -> TaskList:
    """One task for each file: its size is its cost, its path below the root its key."""
    absolute = [os.path.abspath(path) for path in paths]
    root = choose_root(absolute)
    tasks: list[TaskLine] = []
    newest = 0.0
    for index, (given, path) in enumerate(zip(paths, absolute, strict=True)):
        payload, stat = _look_at(given, path)
        newest = max(newest, stat.st_mtime)
        key = os.path.relpath(path, root)
        cost = float(stat.st_size)
        task = TaskLine(task=index, key=key, payload=payload, cost=cost)
        tasks.append(task)
    found = seal_tasks(_checked(tasks))
    found.root = root
    found.newest_mtime = newest
    return found


def common_parent(paths: list[str]) -> str:
    """The lowest folder that holds all of these files; "" if there are none."""
    if not paths:
        return ""
    parents = [os.path.dirname(path) for path in paths]
    return os.path.commonpath(parents)


def _look_at(given: str, path: str) -> tuple[msgspec.Raw, os.stat_result]:
    """The payload of an input file, and what stat(2) says of it. Raises UsageError."""
    try:
        stat = os.stat(path)
        payload = msgspec.Raw(msgspec.json.encode({"path": path}))
    except OSError as error:
        raise UsageError(f"input {given}: {error.strerror}. Nothing was run.") from None
    except UnicodeEncodeError:
        raise UsageError(
            f"input {given!r}: its name is not UTF-8. Rename it, e.g. with convmv."
        ) from None
    if os.path.isdir(path):
        raise UsageError(
            f"input {given} is a folder. Name its files with a glob: '{given.rstrip('/')}/**/*'."
        )
    return payload, stat


def _checked(tasks: Iterable[TaskLine]) -> Iterator[TaskLine]:
    """The tasks, each once its key is known to be unique and safe as a path below OUT."""
    seen: dict[str, int] = {}
    for task in tasks:
        reason = refuse_key(task.key)
        if reason is not None:
            raise UsageError(
                f"task {task.task}: the key {task.key!r:.120} {reason}. Nothing was run."
            )
        if task.key in seen:
            raise UsageError(
                f"tasks {seen[task.key]} and {task.task} have the same key {task.key!r}. "
                "Nothing was run."
            )
        seen[task.key] = task.task
        yield task
