"""The batch script: its options, how it quotes, and what is refused."""

import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gpuspool.orchestrator.slurm.script import (
    Array,
    Wish,
    array_in,
    batch_script,
    further_options,
    quoted,
    refuse_path,
    variables_for,
)
from gpuspool.orchestrator.slurm.times import seconds_of, slurm_time
from gpuspool.spool.errors import UsageError
from gpuspool.spool.layout import Layout

HETERO = ("hetjob", "packjob")


def script_of(spool: str = "/data/S", **wish: object) -> list[str]:
    """The lines of the script of three elements."""
    made = batch_script(Wish(elements=3, **wish), "ab12", Layout(spool), "/usr/bin/python3")  # type: ignore[arg-type]
    return made.decode().splitlines()


def words_of(line: str) -> list[str]:
    """How sbatch reads a line of options behind #SBATCH, as the source of Slurm 22.05 has it."""
    words: list[str] = []
    word, quote, is_escaped, is_begun = "", "", False, False
    for char in line:
        if is_escaped:
            word, is_escaped = word + char, False
        elif char == "\\":
            is_escaped = is_begun = True
        elif quote:
            quote, word = ("", word) if char == quote else (quote, word + char)
        elif char in "\"'":
            quote, is_begun = char, True
        elif char == "#":
            break
        elif char.isspace():
            if is_begun:
                words.append(word)
            word, is_begun = "", False
        else:
            word, is_begun = word + char, True
    assert not quote
    return [*words, word] if is_begun else words


def test_a_script_has_one_option_a_line_and_becomes_gpuspool() -> None:
    assert script_of(
        at_once=2, gres="gpu:1", cpus=8, time="4h", partition="gpu", requeue=20, has_setup=True
    ) == [
        "#!/bin/bash",
        "#SBATCH --job-name=gpuspool-ab12",
        "#SBATCH --array=0-2%2",
        "#SBATCH --nodes=1",
        "#SBATCH --ntasks=1",
        "#SBATCH --gres=gpu:1",
        "#SBATCH --cpus-per-task=8",
        "#SBATCH --time=4:00:00",
        "#SBATCH --partition=gpu",
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        "#SBATCH --signal=B:USR2@120",
        "#SBATCH --output=/data/S/slurm/%A_%a.out",
        ". /data/S/slurm/setup.sh",
        "exec /usr/bin/python3 -P -m gpuspool join /data/S --requeue 20",
    ]


def test_what_was_not_asked_for_is_left_to_slurm() -> None:
    lines = script_of()
    assert lines[-1] == "exec /usr/bin/python3 -P -m gpuspool join /data/S"
    text = "\n".join(lines)
    for option in ("--gres", "--time", "--partition", "--account", "--qos", "--signal", "setup.sh"):
        assert option not in text


@pytest.mark.parametrize(
    ("seconds", "option"), [(600.0, "600s"), (0.25, "0.25s"), (1e7, "10000000s")]
)
def test_elements_leave_when_they_are_told_to(seconds: float, option: str) -> None:
    assert script_of(leave_when_idle_s=seconds)[-1].endswith(f" --leave-when-idle {option}")


def test_a_whole_node_comes_with_its_memory() -> None:
    assert {"#SBATCH --exclusive", "#SBATCH --mem=0"} <= set(script_of(whole_nodes=True))


@pytest.mark.parametrize(
    ("time", "has_signal"),
    [("10", False), ("11", True), ("10:00", False), ("10:01", True), ("1-0", True), ("30s", False),
     ("2h", True), ("UNLIMITED", False), ("", False)],
)  # fmt: skip
def test_only_a_job_of_more_than_ten_minutes_is_signalled(time: str, has_signal: bool) -> None:
    assert ("#SBATCH --signal=B:USR2@120" in script_of(time=time)) == has_signal


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("90", 5400),
        ("1:30", 90),
        ("1:00:00", 3600),
        ("1-2", 26 * 3600),
        ("1-2:30", 26.5 * 3600),
        ("1-0:0:1", 86401),
        ("0", 0),
    ],
)
def test_times_of_sbatch_are_read(time: str, seconds: float) -> None:
    assert seconds_of(time) == seconds


@pytest.mark.parametrize("time", ["", "4h", "UNLIMITED", "1:2:3:4", "-5", "x", "1-", "½"])
def test_what_is_no_time_has_no_seconds(time: str) -> None:
    assert seconds_of(time) is None


@pytest.mark.parametrize(
    ("time", "slurms"),
    [("4h", "4:00:00"), ("90m", "1:30:00"), ("45s", "0:00:45"), ("1.5d", "36:00:00"),
     ("60", "60"), ("1-12", "1-12"), ("UNLIMITED", "UNLIMITED"), ("later", "later")],
)  # fmt: skip
def test_a_time_with_a_unit_is_made_one_of_slurms(time: str, slurms: str) -> None:
    assert slurm_time(time) == slurms


@given(st.text(st.characters(exclude_characters="\n\0", exclude_categories=["Cs"]), min_size=1))
@example("a b")
@example("\"\\#'")
@example("x hetjob PackJob")
@example("$HOME`id`{a}[1]*?%")
def test_sbatch_reads_a_word_as_it_was(word: str) -> None:
    line = quoted(word)
    assert words_of(line) == [word]
    assert not any(name in line.lower() for name in HETERO)


NASTY = ["a b", "q'u\"o", "ha#sh", "50% %A", "hetjob", "$HOME`id`", "é", "a[b]*?", "tail ", "-x"]


@pytest.mark.parametrize("name", NASTY)
def test_the_path_of_a_spool_may_have_any_other_name(name: str, tmp_path: Path) -> None:
    """Slurm is told where output goes, and bash what to run, by the same path."""
    spool = tmp_path / name
    lines = script_of(str(spool), has_setup=True, trusted=("ada", "b c"))
    (output,) = [line for line in lines if "--output" in line]
    (word,) = words_of(output.removeprefix("#SBATCH"))
    assert word == f"--output={str(spool).replace('%', '%%')}/slurm/%A_%a.out"
    (spool / "slurm").mkdir(parents=True)
    (spool / "slurm" / "setup.sh").write_text("export FROM_SETUP=1\n")
    script = "\n".join(lines).replace("/usr/bin/python3", shlex.quote(str(tmp_path / "echo")))
    (tmp_path / "echo").write_text('#!/bin/sh\nprintf "%s\\n" "$FROM_SETUP" "$@"\n')
    (tmp_path / "echo").chmod(0o755)
    done = subprocess.run(["bash"], input=script, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        *("1", "-P", "-m", "gpuspool", "join", str(spool)),
        *("--trust-owner", "ada", "--trust-owner", "b c"),
    ]


@pytest.mark.parametrize("name", ["a\nb", "a\\b"])
def test_a_path_that_slurm_cannot_be_told_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="Choose another --spool"):
        refuse_path(Path("/data") / name)


def test_further_options_come_last_each_with_its_value() -> None:
    more = tuple(shlex.split("--mem=64G -C 'a100&ib' --exclude n3 --comment='two words'"))
    assert further_options(more) == [
        "--mem=64G",
        '-C "a100&ib"',
        "--exclude n3",
        '"--comment=two words"',
    ]
    assert script_of(more=more)[-5:-1] == [f"#SBATCH {line}" for line in further_options(more)]


@pytest.mark.parametrize(
    "words",
    ["--array=0-3", "-a 0-3", "-a0", "--job-name=x", "-J x", "--nodes=2", "-N2", "--ntasks 4", "-W",
     "--wait", "--wrap=ls", "-Mall", "--mem=1 --clusters=b"],
)  # fmt: skip
def test_what_gpuspool_sets_itself_is_refused_as_a_further_option(words: str) -> None:
    with pytest.raises(UsageError, match="is not possible"):
        further_options(shlex.split(words))


@pytest.mark.parametrize("words", ["64G", "x --mem=1"])
def test_further_options_begin_with_an_option(words: str) -> None:
    with pytest.raises(UsageError, match="must begin with an option"):
        further_options(shlex.split(words))


@pytest.mark.parametrize("words", ["--nice=5", "--mail-type=END", "-w n1", "-m block"])
def test_names_that_begin_alike_are_no_reason_to_refuse(words: str) -> None:
    assert further_options(shlex.split(words))


@pytest.mark.parametrize(
    ("script", "name", "counts"),
    [
        ("", "SBATCH_ACCOUNT", True),
        ("", "SBATCH_RESERVATION", True),
        ("", "SBATCH_CONSTRAINT", True),
        ("#SBATCH --time=2", "SBATCH_PARTITION", True),
        ("#SBATCH --account=a", "SBATCH_ACCOUNT", False),
        ("#SBATCH --nodes=1 -A a", "SBATCH_ACCOUNT", False),
        ("#SBATCH -pgpu", "SBATCH_PARTITION", False),
        ('#SBATCH "--constraint=a&b"', "SBATCH_CONSTRAINT", False),
        ("#SBATCH --reservation=r", "SBATCH_RESERVATION", False),
        ("#SBATCH --time=2", "SBATCH_TIMELIMIT", False),
        ("#SBATCH --mem=0", "SBATCH_MEM_PER_CPU", False),
        ("#SBATCH --cpus-per-task=4", "SBATCH_CPUS_PER_GPU", False),
        ("echo --account=a", "SBATCH_ACCOUNT", True),
        ("", "SLURM_JOB_ID", False),
        *(
            ("", f"SBATCH_{name}", False)
            for name in (
                *("ARRAY_INX", "CLUSTERS", "JOB_NAME", "WAIT", "EXPORT", "OPEN_MODE", "OUTPUT"),
                *("ERROR", "NO_REQUEUE", "REQUEUE", "SIGNAL", "GRES", "GPUS", "GPUS_PER_NODE"),
                *("MEM_BIND_LIST", "CPU_BIND_TYPE"),
            )
        ),
    ],
)
def test_a_variable_counts_where_it_overrides_no_line_and_nothing_that_is_relied_on(
    script: str, name: str, counts: bool
) -> None:
    given = {name: "x", "PATH": "/bin"}
    assert variables_for(script.encode(), given) == ({name: "x"} if counts else {})


def test_a_script_says_how_many_elements_it_has() -> None:
    for elements, at_once in ((1, None), (16, None), (16, 4)):
        wish = Wish(elements=elements, at_once=at_once)
        made = batch_script(wish, "ab12", Layout("/data/S"), "/usr/bin/python3")
        assert array_in(made) == Array(elements, at_once)
    assert array_in(b"#SBATCH --array=1,5\n") is None
    assert array_in(b"") is None
