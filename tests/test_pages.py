"""Every command and every Python example of the pages is typed, or its page says why not."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from helpers import GPUSPOOL, Box
from pages import BLOCK, missing, read_page, script_for

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    str(path.relative_to(ROOT))
    for path in sorted(
        [
            *(*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")),
            *(*ROOT.glob("examples/README.md"), *ROOT.glob("examples/*/README.md")),
            ROOT / "benchmarks" / "README.md",
        ]
    )
]
TYPED = [page for page in PAGES if read_page((ROOT / page).read_text())[0]]
# A stand-in for timeout(1): what a page shows after two seconds must not depend on how fast the
# machine is. The signal is sent once some more tasks are complete.
TIMEOUT = """\
#!/bin/bash
while [[ $1 == -* ]]; do [ "$1" = -s ] && { number=$2; shift; }; shift; done
shift
done_so_far() { cat spool-*/journal/*.jsonl 2>/dev/null | grep -c '"state":"complete"'; }
before=$(done_so_far)
"$@" & child=$!
until [ "$(done_so_far)" -gt $((before + 10)) ] || ! kill -0 $child 2>/dev/null; do sleep 0.02; done
kill -s "$number" $child 2>/dev/null
wait $child
"""


@pytest.mark.parametrize("page", TYPED)
def test_what_a_page_has_its_reader_type_works_and_prints_what_it_shows(
    box: Box, page: str, tmp_path: Path
) -> None:
    steps, _ = read_page((ROOT / page).read_text())
    folder = tmp_path / "steps"
    folder.mkdir()
    stand_in = box.home.parent / "bin" / "timeout"
    stand_in.parent.mkdir()
    stand_in.write_text(TIMEOUT)
    stand_in.chmod(0o755)
    path = f"{stand_in.parent}:{Path(GPUSPOOL).parent}:{os.environ['PATH']}"
    env = {"PATH": path, "REPOSITORY": str(ROOT), "LC_ALL": "C.UTF-8"}
    box.run("-c", script_for(steps, folder), program=("bash",), env=env)
    for number, step in enumerate(steps):
        printed = (folder / f"{number}.out").read_text(errors="replace")
        status = (folder / f"{number}.status").read_text().strip()
        told = (
            f"{page}, line {step.line}: {step.command}\nprinted, with status {status}:\n{printed}"
        )
        if step.is_compared:
            lost = missing(step.shown, printed)
            assert lost is None, f"the page shows, and it does not come: {lost}\n{told}"
            assert int(status) == step.status, told


def test_every_block_to_type_is_run_or_says_why_not() -> None:
    assert len(TYPED) >= 7
    for page in PAGES:
        text = (ROOT / page).read_text()
        steps, skipped = read_page(text)
        lines = {step.line for step in steps} | {block.line for block in skipped}
        for block in BLOCK.finditer(text):
            if block["language"] in ("console", "python"):
                first = text.count("\n", 0, block.start()) + 1
                last = text.count("\n", 0, block.end()) + 1
                assert lines & set(range(first, last)), f"{page}, line {first}"


def test_a_dollar_stands_in_console_blocks_alone() -> None:
    """So that none escapes."""
    for page in PAGES:
        for block in BLOCK.finditer((ROOT / page).read_text()):
            if block["language"] != "console":
                assert not re.search(r"^\$ ", block["body"], re.MULTILINE), page


def test_a_page_is_read_as_it_says() -> None:
    page = """
<!-- run
mkdir a
cd a
-->
```console
$ one \\
  two
three
$ cat > x <<'END'
$ y
END
```
<!-- file: job.py -->
```python
import os
```
```python
print(1)
```
<!-- not compared: it depends on the weather -->
```console
$ false
```
<!-- not run: it needs a cluster -->
```console
$ sbatch
```
<!-- ends with: 0, 1 -->
```console
$ true
$ false
```
<!-- not run from here on: all of it needs a cluster -->
```console
$ squeue
```
"""
    steps, skipped = read_page(page)
    assert [step.command.split("\n")[0] for step in steps] == [
        *("mkdir a", "one \\", "cat > x <<'END'"),
        *("cat > job.py <<'EOF-EOF'", "python - <<'EOF-EOF'", "false", "true", "false"),
    ]
    assert steps[1].command == "one \\\n  two"
    assert steps[1].shown == ["three"]
    assert steps[2].command.endswith("\n$ y\nEND")
    assert [step.is_compared for step in steps] == [True] * 5 + [False, True, True]
    assert [step.status for step in steps] == [0] * 7 + [1]
    assert [block.why for block in skipped] == ["it needs a cluster", "all of it needs a cluster"]


@pytest.mark.parametrize("mark", ["not run:", "not run: later", "not run from here on:"])
def test_a_block_that_is_not_run_has_a_reason(mark: str) -> None:
    with pytest.raises(ValueError, match=r"line 1: .*why\?"):
        read_page(f"<!-- {mark} -->\n```console\n$ true\n```\n")


def test_what_a_page_shows_has_to_come_in_this_order() -> None:
    printed = "gpuspool: 3 tasks\n\n  5  running  0:07\nat /tmp/x1/job.py:7\nin 1:02\n"
    assert missing([], printed) is None
    assert missing(["gpuspool: 12 tasks", "at /home/ada/job.py:11"], printed) is None
    assert missing(["12 running 0.5", "in 3.2 s"], printed) is None
    assert missing(["…: 3 …", "at …"], printed) is None
    assert missing(["at job.py:1", "gpuspool: 3 tasks"], printed) == "gpuspool: 3 tasks"
    assert missing(["gpuspool: 3 tasks", "stopped"], printed) == "stopped"
    assert missing(["gpuspool: 3"], printed) == "gpuspool: 3"
