"""A real Jupyter kernel: jobs of cells are refused with the way on, those of files run, a killed
kernel is no harm.
"""

from pathlib import Path

import nbformat
import pytest
from helpers import PATIENCE_S
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

pytestmark = pytest.mark.filterwarnings("ignore")  # jupyter's own libraries warn about themselves


def client_for(folder: Path, *cells: str) -> NotebookClient:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    return NotebookClient(
        notebook,
        timeout=int(PATIENCE_S),
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )


def text_of(notebook: nbformat.NotebookNode) -> str:
    outputs = [output for cell in notebook.cells for output in cell.outputs]
    return "\n".join(
        output.get("text", "") + str(output.get("data", {}).get("text/plain", ""))
        for output in outputs
    )


def test_a_function_of_a_cell_is_refused_with_the_writefile_way(tmp_path: Path) -> None:
    client = client_for(
        tmp_path, "def double(task, ctx): return task.payload * 2", "import gpuspool"
    )
    client.nb.cells.append(nbformat.v4.new_code_cell("gpuspool.run(double, items=[1, 2])"))
    with pytest.raises(CellExecutionError, match=r"%%writefile job.py.*'job.py:double'"):
        client.execute()
    assert not list(tmp_path.glob("spool-*"))


def test_a_job_written_by_a_cell_runs_and_the_report_shows_a_table(tmp_path: Path) -> None:
    notebook = client_for(
        tmp_path,
        "%%writefile job.py\ndef double(task, ctx): return task.payload * 2",
        "import gpuspool\nreport = gpuspool.run('job.py:double', items=[1, 2], quiet=True)\nreport",
        "print([result.value() for result in report.results()])",
    ).execute()
    text = text_of(notebook)
    assert "complete  2" in text
    assert "[2, 4]" in text


def test_a_kernel_killed_while_workers_live_is_told_to_go_on_by_running_the_cell_again(
    tmp_path: Path,
) -> None:
    job = (
        "from pathlib import Path\nimport time\n"
        "def wait(task, ctx):\n    Path('here').touch()\n"
        "    while not Path('gate').exists(): time.sleep(0.01)\n"
    )
    (tmp_path / "job.py").write_text(job)
    run = "import gpuspool\nreport = gpuspool.run('job.py:wait', items=[0])\n"
    run += "print('exit', report.exit_code)"
    killer = (
        "import os, signal, threading, time\nfrom pathlib import Path\n"
        "def kill():\n    while not Path('here').exists(): time.sleep(0.01)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "threading.Thread(target=kill).start()\n"
    )
    with pytest.raises(Exception, match=r"(?i)kernel"):
        client_for(tmp_path, killer + run).execute()
    opener = (
        "import threading, time\nfrom pathlib import Path\n"
        "def open_gate():\n"
        "    events = Path('spool-wait/events')\n"
        "    while not any('adopted' in path.read_text() for path in events.glob('*.jsonl')):\n"
        "        time.sleep(0.01)\n"
        "    Path('gate').touch()\n"
        "threading.Thread(target=open_gate).start()\n"
    )
    text = text_of(client_for(tmp_path, opener + run).execute())
    assert "rank-0000.a00 outlived its parent and goes on" in text
    assert "exit 0" in text
    attempts = sorted(path.name for path in (tmp_path / "spool-wait" / "attempts").iterdir())
    assert attempts == ["rank-0000.a00.json"], "the living worker was adopted, not doubled"


def test_a_run_in_a_cell_has_one_output_that_is_replaced_in_place(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text("import time\ndef slow(task, ctx): time.sleep(1.5)\n")
    run = "import gpuspool\nreport = gpuspool.run('job.py:slow', items=['<b>', 2, 3, 4], ranks=1)"
    notebook = client_for(tmp_path, run).execute()
    (cell,) = notebook.cells
    (table,) = [output for output in cell.outputs if output.output_type == "display_data"]
    text, html = table.data["text/plain"], table.data["text/html"]
    # What is there in the end is the last of several: the run has ended in it.
    assert "4 of 4" in text
    assert "4 complete" in text
    assert "running" not in text.replace("0 running", "")
    assert html.startswith("<pre")
    said = "".join(output.text for output in cell.outputs if output.output_type == "stream")
    assert said.count("gpuspool:") == 1, "the first line alone: nothing is printed again and again"
