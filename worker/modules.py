"""Which modules of the user's this process has imported, and from which text.

The job's own file is run from its copy in the spool. The modules that it imports are found where
they are, so they can change while the run goes on: somebody edits a helper, and the next process
imports it. Then one run would hold results of two codes, and nobody would know which is which.

1. What a module holds is read soon after its import: after that of the job, and with each
   heartbeat.
2. After the job was made, and whenever more modules were imported since, a record of them is
   published (`spool/code.py`), and each heartbeat names it.
3. A process that follows another one is told that record in its intent. If it finds a module that
   is not any more what stands there, it imports the text that was kept. So until somebody starts
   the run anew, which tells of the change and asks, all processes run the same code.

The user's modules are those below the folder of the job, the folder in which the run was started,
or another one in `sys.path`. What comes with the interpreter, or was installed for it, is not
looked at.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import linecache
import os
import sys
from collections.abc import Iterator, Sequence
from types import CodeType, ModuleType

import msgspec

from gpuspool.spool.code import is_same, look_at, make_code, name_of, publish_code, read_code
from gpuspool.spool.layout import Layout
from gpuspool.spool.publish import Owners
from gpuspool.spool.records import CodeFile, Job
from gpuspool.spool.states import JobKind
from gpuspool.spool.trust import Trust, refuse_strangers
from gpuspool.worker.say import say

# Folders of this name hold what was installed, wherever they lie.
INSTALLED = ("site-packages", "dist-packages")

_OURS = "gpuspool"


class Modules:
    """What this process knows of the code that it runs. Used by one thread at a time."""

    def __init__(self, layout: Layout, job: Job, submit_dir: str, trusted: Sequence[int]) -> None:
        """job: as the intent has it. submit_dir: where the run was started. trusted: whose record
        is believed, as for a spool. Raises UsageError, OSError.
        """
        # The record by which this process is known.
        self.code = job.code
        self._layout = layout
        self._job = job
        self._folder = os.path.dirname(job.file)
        self._submit_dir = submit_dir
        self._files: dict[str, CodeFile] = {}
        # How many modules there were when they were looked at last, and the names of their files.
        self._n_seen = 0
        self._seen: set[str] = set()
        owners: Owners = {}
        record = read_code(layout, job.code, owners)
        refuse_strangers(layout, Trust(trusted), owners)
        if record is not None:
            self._files = {file.name: file for file in record.files}
        # Whether the record says all that is known.
        self._is_told = record is not None
        # A command imports nothing, and a function of the seed API is its own program's.
        self._is_idle = job.kind not in (JobKind.FILE, JobKind.MODULE)

    def keep(self) -> None:
        """From now on, import the texts that were kept where the files are others by now."""
        kept = {file.module: file for file in self._files.values() if file.text is not None}
        if kept and not self._is_idle:
            sys.meta_path.insert(0, _KeptModules(kept, self._folder))

    def notice(self) -> None:
        """Read what stands in the modules that were imported since the last call. Raises OSError.

        The sooner the better: who edits one later has not changed what runs here.
        """
        if self._is_idle or len(sys.modules) == self._n_seen:
            return
        n_modules = len(sys.modules)
        for module, path in self._imported():
            if path not in self._seen:
                self._seen.add(path)
                self._note(self._look_at(path, module))
        self._n_seen = n_modules

    def _look_at(self, path: str, module: str) -> CodeFile | None:
        """The file that a module was imported from; None where it cannot be read."""
        archive = _archive_of(path)
        if not archive:
            return look_at(path, name_of(path, self._folder), module)
        file = look_at(archive, name_of(archive, self._folder), module)
        # What an archive holds is not the text of the module.
        return None if file is None else msgspec.structs.replace(file, text=None)

    def _note(self, file: CodeFile | None) -> None:
        """Note a file that was just imported; None for one that cannot be read."""
        if file is None:
            return
        known = self._files.get(file.name)
        if known is not None and (known.text is not None or is_same(known, file)):
            # If it changed since that process ran, the text that was kept was imported.
            return
        self._files[file.name] = file
        self._is_told = False

    def tell(self) -> None:
        """Publish a record of the modules, unless that was done. Raises OSError."""
        self.notice()
        if not self._is_idle and not self._is_told:
            record = make_code(self._job.sha256, self._files.values())
            self.code = publish_code(self._layout, record)
            self._is_told = True

    def _imported(self) -> Iterator[tuple[str, str]]:
        """(dotted name, path) of each module of the user's, but for the job's own file."""
        folders = self._users_folders()
        # A copy, since a thread of the job may import something meanwhile.
        for name, module in sys.modules.copy().items():
            # Asked of the namespace alone: some modules import others when an attribute is read.
            path = getattr(module, "__dict__", {}).get("__file__")
            if not isinstance(path, str) or path == self._job.file:
                continue
            if name.partition(".")[0] == _OURS or name == "__main__":
                continue
            # That of a module in a zip file is as relative as the entry of `sys.path`.
            path = os.path.abspath(path)
            if any(_is_written_below(path, folder) for folder in folders):
                yield name, path

    def _users_folders(self) -> list[str]:
        """The folders below which modules are the user's, each with a slash at its end."""
        library = os.path.dirname(os.__file__)
        folders: set[str] = set()
        for entry in (self._folder, self._submit_dir, *sys.path):
            # Programs append what `os.environ.get` gave them; imports pass over that too.
            if not isinstance(entry, str):
                continue
            folder = os.path.abspath(entry).rstrip("/") + "/"
            if not folder.startswith(f"{library}/"):
                folders.add(folder)
        return sorted(folders)


def _archive_of(path: str) -> str:
    """The zip file that a module was imported from, given its `__file__`; "" if from none."""
    if os.path.lexists(path):
        return ""
    while path != os.path.dirname(path):
        path = os.path.dirname(path)
        if os.path.isfile(path):
            return path
    return ""


def _is_written_below(path: str, folder: str) -> bool:
    """Whether a module's file lies below this folder, and nobody installed or generated it there.

    Virtual environments and caches lie in folders whose names begin with a dot, or hold an
    interpreter's library.
    """
    if not path.startswith(folder):
        return False
    if path.startswith(os.path.dirname(os.__file__) + "/"):
        return False
    parts = path.split("/")
    if any(part in INSTALLED for part in parts):
        return False
    return not any(part.startswith(".") for part in path[len(folder) :].split("/"))


# A finder is whatever has this method. It has no base class, because importlib.abc imports tempfile
# and much else, which would take a tenth of a worker's start.
class _KeptModules:
    """Finds the modules whose files are not any more what they were when the run began."""

    def __init__(self, kept: dict[str, CodeFile], folder: str) -> None:
        self._kept = kept
        self._folder = folder

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None,  # noqa: ARG002 - the finder's signature, as that below
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> importlib.machinery.ModuleSpec | None:
        """The module with its kept text; None where the file is as it was, or is unknown."""
        file = self._kept.get(name)
        if file is None or file.text is None:
            return None
        origin = os.path.join(self._folder, file.name)
        if is_same(file, look_at(origin, file.name, name)):
            return None
        say(f"gpuspool: {origin} changed since the run was started; its old text is imported")
        loader = _KeptLoader(name, origin, file.text)
        is_package = os.path.basename(origin) == "__init__.py"
        folders = [os.path.dirname(origin)] if is_package else None
        return importlib.util.spec_from_file_location(
            name, origin, loader=loader, submodule_search_locations=folders
        )


class _KeptLoader(importlib.machinery.SourceFileLoader):
    """Loads one module from a text; neither reads nor writes compiled files."""

    def __init__(self, name: str, path: str, text: str) -> None:
        super().__init__(name, path)
        self._text = text

    def get_code(self, fullname: str) -> CodeType:  # noqa: ARG002
        """The text, compiled."""
        # Whoever asks how a line reads, a traceback say, gets this text and not the file's.
        linecache.cache[self.path] = (
            len(self._text),
            None,
            self._text.splitlines(keepends=True),
            self.path,
        )
        code: CodeType = self.source_to_code(self._text.encode(), self.path)
        return code

    def get_source(self, fullname: str) -> str:  # noqa: ARG002
        """The text."""
        return self._text
