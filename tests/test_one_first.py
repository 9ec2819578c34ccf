"""Where workers read their imports over a network, one rank of a start imports its job before the
others begin.

Jobs here note when their import begins and ends. GPUSPOOL_ONE_FIRST stands for the network.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import Box, assert_sound, names
from lagging import clients
from lagging.clients import Lag, mounted
from spooling import A0, B0, make_spool, view_of
from torture import mounts

from gpuspool.orchestrator.plan.slots import Slot
from gpuspool.orchestrator.supervise import warmth
from gpuspool.orchestrator.supervise.decide import OpenAttempt, RankPast
from gpuspool.orchestrator.supervise.warmth import WARM_S, Warmth
from gpuspool.spool.codec import encode
from gpuspool.spool.identity import myself
from gpuspool.spool.publish import replace
from gpuspool.spool.records import Heartbeat
from gpuspool.spool.states import Life, Phase, Reason

ON = {"GPUSPOOL_ONE_FIRST": "on"}
OFF = {"GPUSPOOL_ONE_FIRST": "off"}
WORDS = ("run", "job.py:job", "--ranks", "3", "--spool", "S", "--lines")

NOTES = """
import os, time
def note(text):
    with open("notes", "a") as notes:
        print(text, os.getpid(), file=notes)
def count_of(text):
    with open("notes") as notes:
        return notes.read().count(text)
"""
WORK = "def job(task, ctx): time.sleep(0.05)\n"
# An import that takes long enough for ranks that begin together to overlap. And the first rank is
# not through with all tasks before the others begin.
SLOW = f"""{NOTES}
note("begin")
time.sleep(0.5)
note("end")
def job(task, ctx):
    while count_of("begin") < 3:
        time.sleep(0.01)
"""
# An import that ends once all three ranks have begun theirs.
TOGETHER = f"""{NOTES}
note("begin")
while count_of("begin") < 3:
    time.sleep(0.01)
{WORK}"""
# The first that is imported fails, and the others wait for each other.
FIRST_FAILS = f"""{NOTES}
note("begin")
if count_of("begin") == 1:
    raise RuntimeError("this card is not there")
while count_of("begin") < 3:
    time.sleep(0.01)
{WORK}"""


def notes_of(box: Box) -> list[list[str]]:
    """[what, pid] of each note."""
    return [line.split() for line in (box / "notes").read_text().splitlines()]


def test_one_rank_imports_the_job_before_the_others_begin(box: Box) -> None:
    box.write("job.py", SLOW)
    done = box.run(*WORDS, box.lines(60), env=ON)
    (first, pid), second, *later = notes_of(box)
    assert (first, second) == ("begin", ["end", pid])
    assert [what for what, _ in later].count("begin") == 2
    assert "one rank starts first" in done.err
    assert "GPUSPOOL_ONE_FIRST=on" in done.err
    assert_sound(box, "S", 60)


@pytest.mark.parametrize("env", [OFF, {}])
def test_from_a_disk_of_this_host_all_begin_at_once(box: Box, env: dict[str, str]) -> None:
    box.write("job.py", TOGETHER)
    done = box.run(*WORDS, box.lines(60), env=env)
    assert "starts first" not in done.err
    assert len(notes_of(box)) == 3


def test_others_do_not_wait_for_the_making_of_the_first_ones_object(box: Box) -> None:
    """Weights may take minutes to load, and there the others would stand idle for nothing."""
    box.write(
        "job.py",
        f"{NOTES}\n"
        "class job:\n"
        "    def __init__(self, ctx):\n"
        "        note('begin')\n"
        "        while count_of('begin') < 3: time.sleep(0.01)\n"
        "    def __call__(self, task, ctx): pass\n",
    )
    box.run(*WORDS, box.lines(60), env=ON)
    assert len(notes_of(box)) == 3


def test_a_first_rank_that_cannot_load_the_job_is_not_the_end_of_the_run(box: Box) -> None:
    box.write("job.py", FIRST_FAILS)
    box.run(*WORDS, box.lines(60), env=ON)
    assert_sound(box, "S", 60)
    assert len(names(box / "S" / "failed")) == 1


def test_a_job_that_loads_nowhere_is_tried_in_every_slot(box: Box) -> None:
    box.write("job.py", f"{NOTES}\nnote('begin')\nraise RuntimeError('no')\n{WORK}")
    done = box.run(*WORDS, box.lines(60), env=ON, code=4)
    assert "no rank could load the job" in done.err
    assert len({name.split(".")[0] for name in names(box / "S" / "failed")}) == 3


def test_a_first_rank_that_hangs_holds_the_others_for_a_while_only(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    box.write("job.py", TOGETHER)
    box.environment.update(ON)
    box.python(
        "import gpuspool\n"
        "from gpuspool.orchestrator.supervise import warmth\n"
        "warmth.WARM_S = 0.5\n"
        "report = gpuspool.run('job.py:job', items=list(range(60)), ranks=3, spool='S')\n"
        "assert report.ok\n"
    )
    assert len(notes_of(box)) == 3


def test_a_word_that_is_neither_on_nor_off_is_refused(box: Box) -> None:
    box.write("job.py", SLOW)
    done = box.run(*WORDS, box.lines(2), env={"GPUSPOOL_ONE_FIRST": "yes"}, code=2)
    assert "GPUSPOOL_ONE_FIRST is 'yes'; it can be on or off" in done.err


@contextlib.contextmanager
def far_python(box: Box) -> Iterator[Path]:
    """An interpreter whose environment lies on a network file system, as far as can be told."""
    why = mounts.why_not() or clients.why_not()
    if why:
        pytest.skip(why)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = [path for path in sys.path if path.endswith("site-packages")]
    box.write("disk/pyvenv.cfg", f"home = {Path(sys.base_prefix) / 'bin'}\n")
    # What the tests' own interpreter sees, with what its .pth files add.
    lines = [f"import site; site.addsitedir({path!r})" for path in packages]
    box.write(f"disk/lib/{version}/site-packages/near.pth", "\n".join(lines) + "\n")
    (box / "disk" / "bin").mkdir()
    (box / "disk" / "bin" / "python").symlink_to(Path(sys.executable).resolve())
    with mounted(box / "disk", box / "far", Lag()) as far:
        yield far / "bin" / "python"


def test_an_environment_on_a_network_file_system_is_noticed(box: Box) -> None:
    box.write("job.py", SLOW)
    with far_python(box) as python:
        words = ("-m", "gpuspool", *WORDS, box.lines(60))
        done = box.run(*words, program=(str(python),))
        assert f"{box / 'far'} lies on fuse.lagging" in done.err
        (first, pid), second, *_ = notes_of(box)
        assert (first, second) == ("begin", ["end", pid])


# What is known of the first rank, as a function of what it has done.


class Scene:
    """A spool with an attempt that is open, and what one start knows of it."""

    def __init__(self, tmp_path: Path, is_cold: bool = True) -> None:
        self.layout = make_spool(tmp_path / "s", 2)
        self.view = view_of(self.layout)
        self.warmth = Warmth(self.view, is_cold)

    def beat(self, phase: Phase) -> None:
        beat = Heartbeat(
            **{name: getattr(myself(), name) for name in myself().__struct_fields__},
            attempt=A0,
            beat=1,
            parent="1",
            device="",
            state=phase,
            at=0.0,
            job_sha256="",
        )
        replace(self.layout.heartbeat(A0), encode(beat))

    def look(self, *attempts: OpenAttempt, reasons: tuple[Reason, ...] = ()) -> bool:
        return self.warmth.look(attempts, [RankPast(Slot(0), reasons=frozenset(reasons))])


STARTING = OpenAttempt(A0, 0, Life.ALIVE, is_starting=True)
AT_WORK = OpenAttempt(A0, 0, Life.ALIVE, is_starting=False)
FOREIGN = OpenAttempt(B0, -1, Life.ELSEWHERE, is_starting=False, is_own=False)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_it_is_cold_before_anybody_has_started_and_while_the_first_imports(scene: Scene) -> None:
    assert scene.look()
    assert scene.warmth.due_at() is None
    assert scene.look(STARTING), "it has not beaten yet"
    scene.beat(Phase.LOADING)
    assert scene.look(STARTING)
    assert scene.warmth.due_at() is not None, "nothing rings when it has imported its job"


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.LOADING])
def test_who_does_something_else_has_imported_the_job(scene: Scene, phase: Phase) -> None:
    scene.beat(phase)
    assert not scene.look(STARTING)
    assert not scene.look(), "once warm, always warm"
    assert scene.warmth.due_at() is None


def test_who_is_at_work_on_this_host_since_before_has_imported_the_job(scene: Scene) -> None:
    assert scene.look(FOREIGN), "another host's caches are not this one's"
    assert not scene.look(FOREIGN, AT_WORK)


@pytest.mark.parametrize("reason", list(Reason))
def test_a_first_rank_that_ended_is_waited_for_no_more(scene: Scene, reason: Reason) -> None:
    assert scene.look(STARTING)
    assert not scene.look(reasons=(reason,))


def test_a_first_rank_is_waited_for_no_longer_than_it_says(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(warmth.time, "monotonic", lambda: now)
    assert scene.look()
    now += 2 * WARM_S
    assert scene.look(STARTING), "it counts from its start"
    now += WARM_S / 2
    assert scene.look(STARTING)
    now += WARM_S / 2
    assert not scene.look(STARTING)


def test_what_was_warm_to_begin_with_is_not_looked_at(tmp_path: Path) -> None:
    assert not Scene(tmp_path, is_cold=False).look(STARTING)
