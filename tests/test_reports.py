"""The reports of the seed API's workers as files: what is damaged costs that alone."""

import os
import re
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from helpers import record

from gpuspool.orchestrator.gpu_coordinator import GPUProcessCoordinator
from gpuspool.spool.layout import Layout
from gpuspool.worker.reports import ReportQueue

ATTEMPT = "rank-0000.a00"


def make_queue(layout: Layout) -> int:
    ReportQueue(layout, ATTEMPT)
    return os.getpid()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    Layout(tmp_path / "spool-0000").root.mkdir()
    return tmp_path


def test_reports_cut_anywhere_or_with_a_flipped_bit_cost_that_report_alone(
    out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    layout = Layout(out / "spool-0000")
    queue, sent = ReportQueue(layout, ATTEMPT), [{"n": n} for n in range(3)]
    for report in sent:
        queue.put(report)
    path = layout.report(ATTEMPT)
    data = path.read_bytes()
    for cut in range(len(data)):
        path.write_bytes(data[:cut])
        assert (
            GPUProcessCoordinator(1, out).collect_results()
            == sent[: max(0, data[:cut].count(b"\n") - 1)]
        )
    assert caplog.messages == []
    ends = [match.start() for match in re.finditer(b"\n", data)]
    for at in set(range(len(data))) - set(ends):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        spared = [
            report for number, report in enumerate(sent) if not ends[number] < at < ends[number + 1]
        ]
        assert GPUProcessCoordinator(1, out).collect_results() == spared
    assert "checksum" in caplog.text


def test_a_report_queue_is_nobody_elses(out: Path) -> None:
    layout = Layout(out / "spool-0000")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other:
        pid = other.submit(make_queue, layout).result()
    assert record(layout.report(ATTEMPT))["pid"] == pid != os.getpid()
    with pytest.raises(FileExistsError, match=f"{ATTEMPT} ran before"):
        ReportQueue(layout, ATTEMPT)


def test_threads_put_whole_lines(out: Path) -> None:
    queue = ReportQueue(Layout(out / "spool-0000"), ATTEMPT)

    def put(thread: int) -> None:
        for number in range(20):
            queue.put({"thread": thread, "number": number, "text": "x" * 10_000})

    threads = [threading.Thread(target=put, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [
        (report["thread"], report["number"])
        for report in GPUProcessCoordinator(1, out).collect_results()
    ]
    assert sorted(found) == [(thread, number) for thread in range(4) for number in range(20)]


def test_what_is_not_ours_in_the_folder_is_ignored(out: Path) -> None:
    layout = Layout(out / "spool-0000")
    ReportQueue(layout, ATTEMPT).put({"n": 1})
    (layout.reports / "notes.jsonl").write_text("{}\n")
    (layout.reports / f".{ATTEMPT}.jsonl.1.2").write_text("{}\n")
    (out / "spool-mine").mkdir()
    assert GPUProcessCoordinator(1, out).collect_results() == [{"n": 1}]


def test_no_reports_at_all(tmp_path: Path) -> None:
    assert GPUProcessCoordinator(1, tmp_path / "nowhere").collect_results() == []
