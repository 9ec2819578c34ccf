"""What became of each task, in input order, read from the journals by one pass and then one seek a
task.
"""

from __future__ import annotations

import array
from collections.abc import Iterator
from typing import Any, BinaryIO

import msgspec

from gpuspool.spool.codec import R, unseal
from gpuspool.spool.errors import UsageError
from gpuspool.spool.journal import JournalReader
from gpuspool.spool.layout import parse_attempt, rank_of
from gpuspool.spool.publish import read_bytes
from gpuspool.spool.records import NO_JSON, Error, JournalBrief, JournalLine, TaskFailure
from gpuspool.spool.states import ErrorKind
from gpuspool.spool.view import View

NULL = msgspec.Raw(b"null")
_encoder = msgspec.json.Encoder()


class Result(msgspec.Struct, kw_only=True):
    """One task's line of `gpuspool results`. state: "complete", "failed" or "missing"."""

    index: int
    key: str | None
    state: str
    result: msgspec.Raw
    error: Error | None
    seconds: float | None
    rank: int | None
    outputs: list[str]

    def value(self) -> Any:
        """The result as Python values."""
        return msgspec.json.decode(self.result)


def encode_result(result: Result) -> bytes:
    """One line of `gpuspool results`, without its newline."""
    return _encoder.encode(result)


class Results:
    """The results of a view that was refreshed and found no unreadable tasks unnoticed."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._attempts = sorted(view.journals, key=lambda name: parse_attempt(name) or (0, 0))
        self._where_journal = array.array("i", [-1]) * view.run.tasks
        self._where_offset = array.array("q", [0]) * view.run.tasks
        losses = [
            (name, lost) for name, closing in view.closed.items() for lost in closing.failures
        ]
        self._lost = {
            lost.task: (name, lost) for name, lost in sorted(losses, key=lambda loss: loss[1].round)
        }
        self._index()

    def _index(self) -> None:
        """Of complete lines the first by (attempt, offset), else the failed line of the newest
        round.
        """
        ledger = self._view.ledger
        for number, attempt in enumerate(self._attempts):
            for offset, line in journal_records(self._view, attempt, JournalBrief):
                if (
                    line.state not in ("complete", "failed")
                    or not 0 <= line.task < self._view.run.tasks
                ):
                    continue
                is_first = line.state == "complete" and self._where_journal[line.task] < 0
                is_verdict = not ledger.complete[
                    line.task
                ] and line.round == ledger.failed_round.get(line.task)
                if is_first or is_verdict:
                    self._where_journal[line.task], self._where_offset[line.task] = number, offset

    def __iter__(self) -> Iterator[Result]:
        keys = self._keys()
        files: dict[int, BinaryIO] = {}
        try:
            for index in range(self._view.run.tasks):
                yield self._result(index, keys.get(index), files)
        finally:
            for file in files.values():
                file.close()

    def _keys(self) -> dict[int, str]:
        return {
            task.task: task.key
            for manifest in self._view.manifests.values()
            for task in manifest.tasks()
        }

    def _result(self, index: int, key: str | None, files: dict[int, BinaryIO]) -> Result:
        verdict = self._view.ledger.verdict(index)
        number = self._where_journal[index]
        base = {"index": index, "key": key, "state": verdict or "missing"}
        if verdict is None or number < 0:
            attempt, error = self._without_line(index, verdict)
            rank = None if attempt is None else rank_of(attempt)
            return Result(**base, result=NULL, error=error, seconds=None, rank=rank, outputs=[])  # type: ignore[arg-type]
        attempt = self._attempts[number]
        if number not in files:
            files[number] = open(self._view.layout.journal(attempt), "rb")  # noqa: SIM115 - closed by __iter__
        files[number].seek(self._where_offset[index])
        line = unseal(files[number].readline().rstrip(b"\n"), JournalLine)
        return Result(
            **base,  # type: ignore[arg-type]
            result=NULL if line.result == NO_JSON else line.result,
            error=line.error,
            seconds=line.seconds,
            rank=rank_of(attempt),
            outputs=[name for name, _ in line.outputs],
        )

    def _without_line(self, index: int, verdict: str | None) -> tuple[str | None, Error | None]:
        if verdict is None:
            return None, None
        lost: tuple[str, TaskFailure] | None = self._lost.get(index)
        if lost is not None:
            return lost[0], lost[1].error
        message = "no readable manifest line describes this task any more; see corrupt/"
        return None, Error(kind=ErrorKind.UNREADABLE, type="TaskUnreadable", message=message)


def journal_records(view: View, attempt: str, kind: type[R]) -> Iterator[tuple[int, R]]:
    """(offset, record) of each readable line of an attempt's journal."""
    return JournalReader(view.layout, attempt, view.report).read(kind)


def task_log(view: View, key: str) -> str:
    """What was printed while the task with this key ran, attempt by attempt. Raises UsageError for
    an unknown key.
    """
    wanted = {
        task.task
        for manifest in view.manifests.values()
        for task in manifest.tasks()
        if task.key == key
    }
    if not wanted:
        raise UsageError(
            f"{view.layout.root} has no task with the key {key!r}. `gpuspool results` lists the keys."
        )
    text = ""
    for attempt in view.journals:
        for _, line in journal_records(view, attempt, JournalLine):
            if line.task in wanted and line.log is not None:
                whole = read_bytes(view.layout.log(attempt)) or b""
                text += f"==> {attempt} <==\n" + whole[slice(*line.log)].decode(errors="replace")
    return text
