"""The example of a shell command over files: killed, with a damaged log, and with new ones."""

import gzip
import re
from collections import Counter
from pathlib import Path

from example_runs import EXAMPLES, PYTHON, kill_and_go_on
from helpers import Box

EXAMPLE = EXAMPLES / "shell_command"
COMMAND = ["--", "bash", str(EXAMPLE / "errors.sh"), "{input}", "{output}.tsv"]
RUN: list[str | Path] = ["run", "--ranks", "2", "--key-root", "logs", "logs/**/*.gz"]


def count(path: Path) -> Counter[str]:
    """How often each page failed, counted in another way."""
    found = re.findall(r'"GET (\S+) HTTP/1.1" 5', gzip.decompress(path.read_bytes()).decode())
    return Counter(found)


def tables(out: Path) -> dict[str, dict[str, int]]:
    """The tables by their names below OUT."""
    read = {}
    for path in out.rglob("*.tsv"):
        rows = [line.split("\t") for line in path.read_text().splitlines()]
        numbers = [int(number) for number, _ in rows]
        assert numbers == sorted(numbers, reverse=True)
        read[str(path.relative_to(out))] = {page: int(number) for number, page in rows}
    return read


def test_each_log_has_its_table_after_a_kill_half_way(box: Box) -> None:
    box.run(EXAMPLE / "make_logs.py", program=PYTHON)
    logs = sorted(box.home.glob("logs/*/*.gz"))
    assert len(logs) == 60
    kill_and_go_on(box, [*RUN, *COMMAND], "spool-errors", len(logs), lines=10)
    assert tables(box / "spool-errors" / "outputs") == {
        f"{path.relative_to(box / 'logs')}.tsv": dict(count(path)) for path in logs
    }


def test_a_damaged_log_fails_alone_and_a_new_one_is_added(box: Box) -> None:
    box.run(EXAMPLE / "make_logs.py", program=PYTHON)
    for path in sorted(box.home.glob("logs/*/*.gz"))[6:]:
        path.unlink()
    damaged = box / "logs" / "Feb" / "02.log.gz"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:500])
    box.run(*RUN, *COMMAND, code=3)
    [failed] = [one for one in box.results("spool-errors") if one["state"] == "failed"]
    assert failed["key"] == "Feb/02.log.gz"
    assert "unexpected end of file" in box.run("failed", "spool-errors").out
    out = box / "spool-errors" / "outputs"
    assert len(tables(out)) == 5
    assert "Feb/02.log.gz.tsv" not in tables(out)
    damaged.write_bytes(whole)
    box.run("retry", "spool-errors")
    assert tables(out)["Feb/02.log.gz.tsv"] == dict(count(damaged))
    new = box / "logs" / "Apr" / "01.log.gz"
    new.parent.mkdir()
    new.write_bytes(whole)
    box.run(*RUN, "--add", *COMMAND)
    assert tables(out)["Apr/01.log.gz.tsv"] == dict(count(damaged))
    assert len(tables(out)) == 7
