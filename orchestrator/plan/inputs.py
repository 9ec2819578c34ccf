"""From what the user names as inputs to the ordered list of tasks.

A task gets an index (its place in the input order), a key (its name), a payload (a JSON value) and
a cost (what balances the ranks and weights the progress). The sources are paths and globs, and the
files that `lists` reads: paths, lines of text, JSON, and tables; Python callers may also pass
values.

Whatever cannot become a task is refused with a UsageError that names the file and the line, before
anything is written. Called by plan/request.py, and by `GPUProcessCoordinator`, which makes its own
tasks.
"""

from __future__ import annotations

import array
import glob
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from gpuspool.orchestrator.plan.lists import (
    Listed,
    key_in,
    read_lines,
    read_paths,
    read_table,
    read_tasks,
)
from gpuspool.orchestrator.plan.locate import at_home
from gpuspool.spool.codec import SHALLOW_BYTES, refuse_depth, seal_bodies, seal_lines, unseal
from gpuspool.spool.errors import UsageError
from gpuspool.spool.layout import OUT_MARK, Layout, refuse_key
from gpuspool.spool.records import TaskLine

# What the keys of input files are relative to, given their absolute paths.
ChooseRoot = Callable[[list[str]], str]

# What the numbers of inputs count that stand in no list.
NO_LIST = "task"


class TaskList:
    """The tasks of a run in input order.

    They are kept as the sealed lines that stand for them in the manifests, because a million
    records would take several times the memory.

    lines: one sealed line for each task. costs: what each task costs. root: the folder that the
    keys of input files are relative to; "" where the inputs are not files. mtimes: when each of
    these files was last changed, in Unix seconds. left_out: how many files the globs matched
    that lie in spools and in folders of outputs. is_named: the user gave each task its key, even
    where one looks like those that count the tasks (`t0`, `t1`, …).
    """

    def __init__(self, lines: list[bytes], costs: Sequence[float]) -> None:
        self.lines = lines
        self.costs = costs
        self.root = ""
        self.mtimes: Sequence[float] = ()
        self.left_out = 0
        self.is_named = False

    def __len__(self) -> int:
        return len(self.lines)

    def __iter__(self) -> Iterator[TaskLine]:
        """The tasks as records, each read from its line."""
        return (unseal(line[:-1], TaskLine) for line in self.lines)

    def changed_after(self, moment: float) -> dict[str, float]:
        """Of the input files that were changed after this moment: when, by their keys."""
        found: dict[str, float] = {}
        for line, changed_at in zip(self.lines, self.mtimes, strict=False):
            if changed_at > moment:
                found[unseal(line[:-1], TaskLine).key] = changed_at
        return found


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
    files_from: str | os.PathLike[str] | None = None,
    lines: str | os.PathLike[str] | None = None,
    tasks: str | os.PathLike[str] | None = None,
    items: Iterable[Any] | None = None,
    choose_root: ChooseRoot | None = None,
    *,
    csv: str | os.PathLike[str] | None = None,
    key_field: str | None = None,
    null: bool = False,
) -> TaskList:
    """The tasks of the one source that was named.

    paths: files and globs. files_from, lines, tasks, csv: files that list them, "-" for standard
    input. items: JSON values. choose_root: asked what the keys of files are relative to; the lowest
    folder that holds all of them where it is None. key_field: which field of an object, or column,
    holds the key. null: the paths in files_from end with zero bytes. Raises UsageError for none and
    for several sources, and for whatever cannot become a task.
    """
    given = _paths(paths)
    _refuse_unless_one(given or None, files_from, lines, tasks, csv, items)
    is_list = items is None or isinstance(items, Iterable)
    if not is_list or isinstance(items, (str, bytes, Mapping)):
        raise UsageError(
            f"items={items!r:.80} is one value. Give a list of values: [{items!r:.80}]."
        )
    if null and files_from is None:
        raise UsageError("--null says how --files-from is written, and that is not given.")
    if csv is not None:
        return _seal_listed(read_table(os.fspath(csv), key_field), is_named=key_field is not None)
    if tasks is not None:
        return _seal_listed(read_tasks(os.fspath(tasks), key_field), is_named=key_field is not None)
    if items is not None and key_field is not None:
        return _seal_listed(_with_keys(items, key_field), is_named=True)
    if key_field is not None:
        raise UsageError(
            "--key-field names a column of --csv or a field of --tasks. The key of a file is its "
            "path, and lines have none."
        )
    if items is not None:
        return from_values(items)
    if lines is not None:
        return from_values(read_lines(os.fspath(lines)))
    choose_root = choose_root or common_parent
    if files_from is not None:
        return _from_files(read_paths(os.fspath(files_from), null), choose_root)
    own = _OwnFolders()
    found = _from_files(Listed(NO_LIST, enumerate(_expand(given, own))), choose_root)
    found.left_out = own.n_left_out
    return found


def _paths(paths: Any) -> list[str]:
    """Paths and globs as texts. Raises UsageError."""
    # One path alone is one path, and not the letters that it has.
    several = [paths] if isinstance(paths, (str, bytes, os.PathLike)) else paths
    if not isinstance(several, Iterable):
        raise UsageError(f"inputs={paths!r:.80} is no path. Give paths or globs, or use items.")
    given: list[str] = []
    for path in several:
        if not isinstance(path, (str, os.PathLike)):
            raise UsageError(
                f"inputs: {path!r:.80} is no path. Give texts or Paths; other values are items."
            )
        given.append(os.fspath(path))
    return given


def _refuse_unless_one(*sources: object) -> None:
    """Raise UsageError unless exactly one source was named; those that were not are None."""
    count = sum(source is not None for source in sources)
    if count != 1:
        raise UsageError(
            "name the inputs in one way: paths or globs, --files-from, --lines, --tasks or --csv, "
            f"or `items` from Python ({count} of them were given)."
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


def _with_keys(values: Iterable[Any], key_field: str) -> Listed[TaskLine]:
    """The tasks of Python's values, with the keys that a field of them holds."""

    def tasks() -> Iterator[tuple[int, TaskLine]]:
        for index, payload in enumerate(_payloads(values)):
            key = key_in(msgspec.json.decode(payload), key_field, f"item {index}")
            task = TaskLine(task=index, key=key, payload=msgspec.Raw(payload), cost=1.0)
            yield index, task

    return Listed("item", tasks())


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
    """The named files, each once, with each glob replaced by the files that it matches, sorted.

    What exists is taken as it is, even if it looks like a glob: `[1].txt` may be a file.
    """
    # A file that two globs match is one file.
    files: dict[str, str] = {}
    for pattern in map(at_home, patterns):
        names = [pattern] if os.path.lexists(pattern) else _matches(pattern, own)
        for name in names:
            files.setdefault(os.path.abspath(name), name)
    return list(files.values())


def _matches(pattern: str, own: _OwnFolders) -> list[str]:
    """The files that a glob matches, sorted. Raises UsageError where there are none."""
    matches: list[str] = []
    if glob.has_magic(pattern):
        matches = [path for path in glob.glob(pattern, recursive=True) if not os.path.isdir(path)]
    found = sorted(own.without(matches, pattern))
    if found:
        return found
    if matches:
        raise UsageError(
            f"{pattern} matches only files in spools and in folders of outputs, which are left "
            "out. Name that folder itself, without a wildcard, if you want them."
        )
    raise UsageError(f"{pattern} matches no file. Check the path.")


def _from_files(listed: Listed[str], choose_root: ChooseRoot) -> TaskList:
    """One task for each file: its size is its cost, its path below the root its key."""
    given = list(listed.entries)
    absolute = [os.path.abspath(at_home(path)) for _, path in given]
    root = choose_root(absolute)
    tasks: list[tuple[int, TaskLine]] = []
    mtimes = array.array("d")
    for index, ((number, name), path) in enumerate(zip(given, absolute, strict=True)):
        # Where only the words of a command line are counted, the name alone says more.
        where = "" if listed.unit == NO_LIST else f"{listed.unit} {number}: "
        payload, there = _look_at(name, path, where)
        mtimes.append(there.st_mtime)
        key = os.path.relpath(path, root)
        cost = float(there.st_size)
        tasks.append((number, TaskLine(task=index, key=key, payload=payload, cost=cost)))
    found = _seal_listed(Listed(listed.unit, tasks), is_named=True)
    found.root = root
    found.mtimes = mtimes
    return found


def common_parent(paths: list[str]) -> str:
    """The lowest folder that holds all of these files; "" if there are none."""
    if not paths:
        return ""
    parents = [os.path.dirname(path) for path in paths]
    return os.path.commonpath(parents)


def _look_at(given: str, path: str, where: str) -> tuple[msgspec.Raw, os.stat_result]:
    """The payload of an input file, and what stat(2) says of it. Raises UsageError."""
    try:
        found = os.stat(path)
        payload = msgspec.Raw(msgspec.json.encode({"path": path}))
    except OSError as error:
        hint = ""
        if where and given.lstrip().startswith("#"):
            hint = " Each line is a path, and there are no comments: delete this one."
        raise UsageError(
            f"{where}input {given}: {error.strerror}.{hint} Nothing was run."
        ) from None
    except UnicodeEncodeError:
        raise UsageError(
            f"{where}input {given!r}: its name is not UTF-8. Rename it, e.g. with convmv."
        ) from None
    if stat.S_ISDIR(found.st_mode):
        raise UsageError(
            f"{where}input {given} is a folder. Name its files with a glob: "
            f"'{given.rstrip('/')}/**/*'."
        )
    return payload, found


def _seal_listed(listed: Listed[TaskLine], *, is_named: bool) -> TaskList:
    """The list of these tasks. is_named: each was given its key by the user."""
    found = seal_tasks(_checked(listed))
    found.is_named = is_named
    return found


def _checked(listed: Listed[TaskLine]) -> Iterator[TaskLine]:
    """The tasks, each once its key is known to be unique and safe as a path below OUT."""
    unit = listed.unit
    seen: dict[str, int] = {}
    for number, task in listed.entries:
        reason = refuse_key(task.key)
        if reason is not None:
            raise UsageError(
                f"{unit} {number}: the key {task.key!r:.120} {reason}. Nothing was run."
            )
        if task.key in seen:
            raise UsageError(
                f"{unit}s {seen[task.key]} and {number} have the same key {task.key!r:.120}. "
                "Nothing was run."
            )
        seen[task.key] = number
        yield task
