"""Handing a run on: `report`, which writes it as a page, as a trace or as a list of jobs.

It reads the files of a spool as the verbs of `reading` do, in the middle of a run and long after
it. Each file that it writes becomes visible in one step, rename(2), whatever was there before; a
kill leaves none that is half written.
"""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from gpuspool.orchestrator.export.saved import STDOUT, is_stream, refuse, refuse_twice, saved
from gpuspool.orchestrator.page.facts import facts_of
from gpuspool.orchestrator.page.joblog import joblog_pieces
from gpuspool.orchestrator.page.reading import Reading, read_run
from gpuspool.orchestrator.page.render import render
from gpuspool.orchestrator.page.trace import trace_pieces
from gpuspool.orchestrator.plan.locate import find_spool
from gpuspool.spool.layout import Layout
from gpuspool.spool.view import load_view

# Makes zlib write what gunzip reads.
_GZIP_BITS = 16 + zlib.MAX_WBITS

StrPath = str | os.PathLike[str]


def report(
    spool: StrPath | None = None,
    output: StrPath | None = None,
    *,
    trace: StrPath | None = None,
    joblog: StrPath | None = None,
) -> Path | None:
    """Write a run as one HTML file, and return its path; docs/report.md shows one.

    spool: None for the only ./spool-*. output: None for `SPOOL/report.html`. trace: a trace for
    Perfetto, compressed where the name ends with .gz. joblog: the finished tasks as GNU parallel
    lists them. Where one of these two is asked for and no `output`, no page is written, and None is
    returned. A "-" is standard output.

    Raises UsageError where there is no spool or a file cannot be written there, SpoolError where
    the spool cannot be read, and OSError where a file system fails.
    """
    write_report(spool, output, trace=trace, joblog=joblog)
    if output is None:
        return None if trace or joblog else Layout(find_spool(spool)).report_page
    return None if os.fspath(output) == STDOUT else Path(output)


def write_report(
    spool: StrPath | None,
    output: StrPath | None,
    *,
    trace: StrPath | None = None,
    joblog: StrPath | None = None,
) -> list[Path]:
    """As `report`; returns the files that were written."""
    root = find_spool(spool)
    named = os.fspath(root)
    # A name that the user did not choose.
    ours = os.fspath(Layout(root).report_page)
    is_named = output is not None
    if output is None and trace is None and joblog is None:
        output = ours
    wanted: list[tuple[str, Callable[[Reading], Iterable[bytes]]]] = []
    for asked, maker in ((output, _page), (trace, trace_pieces), (joblog, joblog_pieces)):
        if asked is not None:
            wanted.append((os.fspath(asked), maker))
    view = load_view(root, reads_claims=False)
    refuse_twice([path for path, _ in wanted])
    for path, _ in wanted:
        if path not in (STDOUT, ours):
            refuse(path)
    reading = read_run(view.refresh(), named)
    written: list[Path] = []
    for path, pieces_of in wanted:
        pieces = pieces_of(reading)
        if path.endswith(".gz"):
            pieces = _compressed(pieces)
        if write_file(path, pieces, follows_links=is_named or path != ours):
            written.append(Path(path))
    return written


def _page(reading: Reading) -> Iterable[bytes]:
    return [render(facts_of(reading))]


def _compressed(pieces: Iterable[bytes]) -> Iterator[bytes]:
    packer = zlib.compressobj(wbits=_GZIP_BITS)
    for piece in pieces:
        yield packer.compress(piece)
    yield packer.flush()


def write_file(path: str, pieces: Iterable[bytes], *, follows_links: bool = True) -> bool:
    """Write a file in one step, and what is no plain file, such as a pipe, as it is.

    follows_links: as for `saved`. Returns whether a file was made. Raises OSError and UsageError.
    """
    if path == STDOUT:
        for piece in pieces:
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
        return False
    with saved(Path(path), follows_links=follows_links) as file:
        for piece in pieces:
            file.write(piece)
    return not is_stream(Path(path))
