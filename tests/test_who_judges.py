"""Who may judge an attempt, and so close, signal, kill or time it out: the whole table.

Each case is a spool made by hand, with one attempt. The processes are real, or those of another
host, whose beats move or stand still as the case says while the clock of the detector runs on.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import is_alive, wait_until
from spooling import (
    A0,
    JOB,
    admit,
    dead_process,
    elsewhere,
    intend,
    living_process,
    make_spool,
    say_ended,
    view_of,
)

from gpuspool.orchestrator.plan.slots import Slot
from gpuspool.orchestrator.supervise import launch
from gpuspool.orchestrator.supervise.launch import Orders
from gpuspool.orchestrator.supervise.workers import Workers
from gpuspool.spool.beats import Beat
from gpuspool.spool.journal import start_journal
from gpuspool.spool.layout import Layout, epoch_name
from gpuspool.spool.liveness import LOOKS_A_LEASE
from gpuspool.spool.records import Identity, Options
from gpuspool.spool.states import Life

LEASE_S = 120.0
# The epoch of the parent whose attempt is judged, and that of the one who judges.
THEIRS = 3
OURS = 7

# What may be known of the process of an attempt, or of a parent.
ALIVE_HERE = "alive here"
DEAD_HERE = "dead here"
BEATS_ELSEWHERE = "beats elsewhere"
SILENT_ELSEWHERE = "silent elsewhere"
# Only a parent's: it lives here, and does not beat, as one that was stopped by Ctrl-Z.
STOPPED_HERE = "stopped here"
# Only an attempt's: it has an intent, and no journal yet.
NOT_BEGUN = "not begun"
# Only a parent's: it said that it ended, and its process lives on, as one that used the Python API.
ENDED = "ended"
# The intent is damaged, so nobody can tell whose the attempt is.
UNKNOWN = "unknown"

NOBODYS = {
    ALIVE_HERE: Life.ALIVE,
    DEAD_HERE: Life.DEAD,
    NOT_BEGUN: Life.DEAD,
    BEATS_ELSEWHERE: Life.ELSEWHERE,
    SILENT_ELSEWHERE: Life.DEAD,
}
SOMEBODYS = dict.fromkeys(NOBODYS, Life.ELSEWHERE)

# parent -> attempt -> how another parent of this host sees it once a lease is over.
TABLE = {
    ALIVE_HERE: SOMEBODYS,
    STOPPED_HERE: SOMEBODYS | {DEAD_HERE: Life.DEAD},
    BEATS_ELSEWHERE: SOMEBODYS,
    DEAD_HERE: NOBODYS,
    SILENT_ELSEWHERE: NOBODYS,
    ENDED: NOBODYS,
    UNKNOWN: NOBODYS,
}

# At the first look no lease is over, so that of what is elsewhere nothing is proved.
AT_ONCE = {
    (parent, attempt): Life.ELSEWHERE
    for parent in (SILENT_ELSEWHERE, UNKNOWN)
    for attempt in TABLE[parent]
    if parent == SILENT_ELSEWHERE or attempt == NOT_BEGUN
} | {(parent, SILENT_ELSEWHERE): Life.ELSEWHERE for parent in TABLE}
AT_ONCE[STOPPED_HERE, DEAD_HERE] = Life.ELSEWHERE

CASES = [(parent, attempt) for parent in TABLE for attempt in TABLE[parent]]
each_case = pytest.mark.parametrize(
    ("parent", "attempt"), CASES, ids=[f"{attempt}, parent {parent}" for parent, attempt in CASES]
)


class Scene:
    """One attempt of one parent, and another parent that looks at it."""

    def __init__(self, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
        self.layout = layout
        # The clock by which the detector counts leases.
        self.now = 1000.0
        clock = SimpleNamespace(monotonic=lambda: self.now)
        monkeypatch.setattr("gpuspool.spool.liveness.time", clock)
        self.attempt_pid = 0
        self._beats: list[Beat] = []
        self._stack = ExitStack()

    def close(self) -> None:
        self._stack.close()

    def play(self, parent: str, attempt: str, options: Options | None = None) -> None:
        """Let there be the attempt and its parent. options: of the attempt."""
        who = self._process(parent, epoch_name(THEIRS), 0)
        if parent == ALIVE_HERE:
            self._beat(epoch_name(THEIRS))
        admit(self.layout, THEIRS, who)
        intend(self.layout, A0, epoch=THEIRS, parent=who, options=options)
        if parent == ENDED:
            say_ended(self.layout, THEIRS)
        if parent == UNKNOWN:
            self.layout.intent(A0).write_bytes(b"damaged")
        if attempt != NOT_BEGUN:
            process = self._process(attempt, A0, 1)
            assert start_journal(self.layout, A0, process) is not None
            self.attempt_pid = process.pid

    def _process(self, what: str, name: str, number: int) -> Identity:
        if what in (ALIVE_HERE, STOPPED_HERE, ENDED, UNKNOWN):
            return self._stack.enter_context(living_process())
        if what == DEAD_HERE:
            return dead_process()
        if what == BEATS_ELSEWHERE:
            self._beat(name)
        else:
            Beat(self.layout, name).move()
        return elsewhere(number)

    def _beat(self, name: str) -> None:
        """Let somebody beat from now on."""
        beat = Beat(self.layout, name)
        beat.move()
        self._beats.append(beat)

    def workers(self) -> Workers:
        """Those of a parent that looks at the spool for the first time."""
        options = Options(lease_s=LEASE_S)
        orders = Orders(epoch=OURS, job=JOB, options=options, world_size=1)
        return Workers(view_of(self.layout), orders)

    def let_a_lease_pass(self, look: Callable[[], object]) -> None:
        """Look as often as a parent does, for somewhat more than a lease."""
        for _ in range(LOOKS_A_LEASE + 2):
            self.let_pass(LEASE_S / LOOKS_A_LEASE)
            look()

    def let_pass(self, seconds: float) -> None:
        self.now += seconds
        for beat in self._beats:
            beat.move()


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    one = Scene(make_spool(tmp_path / "s", 4), monkeypatch)
    yield one
    one.close()


@each_case
def test_whoever_is_not_the_parent_judges_by_the_attempt_and_its_parent(
    scene: Scene, parent: str, attempt: str
) -> None:
    scene.play(parent, attempt)
    others = scene.workers().others
    expected = TABLE[parent][attempt]
    assert others.life(A0) is AT_ONCE.get((parent, attempt), expected)
    scene.let_a_lease_pass(lambda: others.life(A0))
    assert others.life(A0) is expected
    assert others.is_adopted(A0) == (expected is Life.ALIVE)
    assert (A0 in others.running()) == (expected is Life.ALIVE)


@each_case
def test_what_is_not_adopted_is_neither_signalled_nor_killed(
    scene: Scene, parent: str, attempt: str
) -> None:
    """Not even where its process is seen to live."""
    scene.play(parent, attempt)
    workers = scene.workers()
    scene.let_a_lease_pass(lambda: workers.life(A0))
    is_ours = TABLE[parent][attempt] is Life.ALIVE
    assert workers.pids() == [scene.attempt_pid] * is_ours
    if not is_ours:
        workers.tell_to_stop()
    workers.kill(A0)
    if is_ours:
        wait_until(lambda: not is_alive(scene.attempt_pid))
    elif attempt == ALIVE_HERE:
        assert not is_there_a_signal_for(scene.attempt_pid)
        assert is_alive(scene.attempt_pid)


def is_there_a_signal_for(pid: int) -> bool:
    """Whether a signal was sent to a process that it has not heard of yet."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    return int(status["SigPnd"], 16) != 0 or int(status["ShdPnd"], 16) != 0


@pytest.mark.parametrize("parent", [ALIVE_HERE, DEAD_HERE])
def test_what_has_another_parent_is_not_timed_out(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, parent: str
) -> None:
    """Its own parent does that. What is adopted is this one's to time out."""
    clock = SimpleNamespace(monotonic=lambda: scene.now, sleep=time.sleep)
    scene.play(parent, ALIVE_HERE, Options(stall_timeout_s=1.0))
    workers = scene.workers()
    monkeypatch.setattr("gpuspool.orchestrator.supervise.workers.time", clock)
    monkeypatch.setattr("gpuspool.orchestrator.supervise.workers.STACKS_S", 0.0)
    told: dict[str, str] = {}

    def look() -> None:
        told.update(workers.kill_overdue())

    look()
    scene.let_a_lease_pass(look)
    assert list(told) == ([] if parent == ALIVE_HERE else [A0])
    if parent == ALIVE_HERE:
        assert not is_there_a_signal_for(scene.attempt_pid)
        assert is_alive(scene.attempt_pid)


def test_a_process_that_came_back_from_a_long_sleep_proves_nothing_by_it(scene: Scene) -> None:
    """The judge was suspended: in all that time nobody could be seen to beat."""
    scene.play(SILENT_ELSEWHERE, SILENT_ELSEWHERE)
    others = scene.workers().others
    for _ in range(3):
        scene.now += 100 * LEASE_S
        assert others.life(A0) is Life.ELSEWHERE


def test_what_was_silent_and_beats_again_is_not_dead(scene: Scene) -> None:
    scene.play(SILENT_ELSEWHERE, SILENT_ELSEWHERE)
    others = scene.workers().others
    scene.let_a_lease_pass(lambda: others.life(A0))
    assert others.life(A0) is Life.DEAD
    scene.layout.beat(epoch_name(THEIRS), 1).touch()
    scene.let_pass(LEASE_S / LOOKS_A_LEASE)
    assert others.life(A0) is Life.ELSEWHERE, "its parent vouches for it"


def test_what_a_stopped_parent_has_left_is_its_own_again_once_that_wakes(scene: Scene) -> None:
    scene.play(STOPPED_HERE, DEAD_HERE)
    others = scene.workers().others
    scene.let_a_lease_pass(lambda: others.life(A0))
    assert others.life(A0) is Life.DEAD
    scene.layout.beat(epoch_name(THEIRS), 1).touch()
    scene.let_pass(LEASE_S / LOOKS_A_LEASE)
    assert others.life(A0) is Life.ELSEWHERE


# The parent itself.


@pytest.mark.parametrize("has_journal", [False, True])
def test_a_parent_judges_its_own_child_by_the_child_alone(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, has_journal: bool
) -> None:
    """Whatever stands in the spool: a pid may be told from inside of a container."""
    monkeypatch.setattr(launch, "_argv", lambda view, rank, number: ["sleep", "1000"])
    workers, neighbour = scene.workers(), scene.workers()
    child = workers.launch(Slot(0), 1, False)
    assert child.attempt == A0
    if has_journal:
        assert start_journal(scene.layout, A0, dead_process()) is not None
    for one in (workers, neighbour):
        one.others.detector.view.refresh()
    assert workers.others.open_attempts() == []
    scene.let_a_lease_pass(lambda: workers.life(A0))
    assert workers.life(A0) is Life.ALIVE
    assert neighbour.others.life(A0) is Life.ELSEWHERE, "whoever is not the parent cannot know"
    workers.kill(A0)
    wait_until(lambda: workers.life(A0) is Life.DEAD)
    assert neighbour.others.life(A0) is Life.ELSEWHERE


def test_what_this_very_process_could_not_start_is_dead(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_argv", lambda view, rank, number: ["/no/such/program"])
    workers = scene.workers()
    with pytest.raises(FileNotFoundError):
        workers.launch(Slot(0), 1, False)
    workers.others.detector.view.refresh()
    assert workers.life(A0) is Life.DEAD
