"""Libraries that are used only where the job has imported them."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from gpuspool.worker.imported import imported


def test_a_module_that_nobody_imported_is_not_imported() -> None:
    sys.modules.pop("this", None)
    assert imported("this") is None
    assert "this" not in sys.modules


@pytest.mark.parametrize("fails", [False, True])
def test_an_import_in_another_thread_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """A job that starts a thread which imports something, while a task of it raises."""
    gate, began = threading.Event(), threading.Event()
    monkeypatch.setattr(threading, "gate", gate, raising=False)
    monkeypatch.setattr(threading, "began", began, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    end = "raise ImportError" if fails else "late = 1"
    text = f"import threading\nthreading.began.set()\nthreading.gate.wait()\n{end}\n"
    (tmp_path / "slow_to_import.py").write_text(text)
    with ThreadPoolExecutor(2) as threads:
        threads.submit(__import__, "slow_to_import")
        began.wait()
        asked = threads.submit(imported, "slow_to_import")
        assert not wait([asked], timeout=0.05).done, "half a module"
        gate.set()
        module = asked.result()
    sys.modules.pop("slow_to_import", None)
    if fails:
        assert module is None
    else:
        assert module is not None
        assert module.late == 1
