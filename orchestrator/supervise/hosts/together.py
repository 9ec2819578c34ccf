"""One folder, looked at by several hosts at once: what the doctor does where it has company."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from gpuspool.orchestrator.supervise import doctor
from gpuspool.orchestrator.supervise.doctor import Check
from gpuspool.orchestrator.supervise.hosts.contest import contend_for_lock, race
from gpuspool.orchestrator.supervise.hosts.lags import measure
from gpuspool.orchestrator.supervise.hosts.meeting import Meeting, Member, NotAllCame, Silent, meet
from gpuspool.orchestrator.supervise.hosts.verdict import Report, checks_of, clients_of, settings_of
from gpuspool.spool.file_system import file_system_type

# How long the others are waited for: longer than it takes to type the command on another host, and
# longer than a network file system shows a folder without what is new in it.
WAIT_S = 120.0


class Expected(msgspec.Struct, frozen=True):
    """How many copies are there, this one among them, and a word that only they have in common."""

    count: int
    key: str


class Diagnosis(msgspec.Struct, frozen=True):
    """What the doctor found.

    hosts: which were compared, the first one that of the copy that tells; only the own one where
    there was no meeting. settings: the options that each run there should get. is_first: this copy
    is the one to tell, since all found the same.
    """

    checks: list[Check]
    hosts: list[str]
    settings: list[str]
    is_first: bool

    @property
    def is_fit(self) -> bool:
        return all(check.state != "problem" for check in self.checks)


def expected_by_slurm(environment: Mapping[str, str]) -> Expected | None:
    """How many copies `srun` has started with this one; None outside of a step of Slurm."""
    # A batch script has the numbers of tasks too, and is one process. Only srun numbers a step.
    job = environment.get("SLURM_JOB_ID")
    step = environment.get("SLURM_STEP_ID")
    count = environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS", "")
    if not job or not step or not count.isdecimal():
        return None
    restart = environment.get("SLURM_RESTART_COUNT", "0")
    return Expected(int(count), f"slurm-{job}.{step}.{restart}")


def expected_by_number(count: int) -> Expected:
    """That so many copies are started by hand."""
    return Expected(count, f"hosts-{count}")


def examine(folder: Path, expected: Expected | None, wait_s: float) -> Diagnosis:
    """Try everything in a folder alone, then what takes several hosts with all other copies.

    expected: None, or one copy, where there are no others. wait_s: how long to wait for the others
    at the start, and for one that is silent later. Raises OSError where nothing can be made in the
    folder.
    """
    folder = Path(os.path.abspath(folder))
    with _stops_are_raised():
        checks = doctor.examine(folder)
        me = _member(folder)
        if expected is None or expected.count == 1:
            return _alone(checks, me)
        problem = next((check for check in checks if check.state == "problem"), None)
        if problem is not None:
            # A meeting needs what a spool needs.
            detail = f"the others were not met: {problem.name} does not work here"
            return _alone([*checks, Check("hosts", "problem", detail)], me)
        return _examine_together(folder, checks, me, expected, wait_s)


def _examine_together(
    folder: Path, checks: list[Check], me: Member, expected: Expected, wait_s: float
) -> Diagnosis:
    """checks: what this copy found alone."""
    try:
        meeting = meet(folder, expected.key, expected.count, me, wait_s)
    except NotAllCame as error:
        why = "if they did start at once, each sees a folder of its own here"
        detail = f"{error}; {why}"
        return _alone([*checks, Check("hosts", "problem", detail)], me)
    try:
        reports = _reports(meeting, checks)
        meeting.leave()
    except Silent as error:
        meeting.give_up()
        detail = f"{error}, so nothing is known of what they see; start all once more"
        return _alone([*checks, Check("hosts", "problem", detail)], me)
    except BaseException:
        meeting.give_up()
        raise
    return Diagnosis(
        checks_of(reports), clients_of(reports), settings_of(reports), not meeting.seat
    )


@contextlib.contextmanager
def _stops_are_raised() -> Iterator[None]:
    """Let a SIGTERM or SIGHUP that would end this process be raised as a Ctrl-C is.

    So whoever stops all copies at once, as a batch scheduler does, leaves nothing in the folder.
    """
    numbers: list[signal.Signals] = []
    if threading.current_thread() is threading.main_thread():
        all_of_them = (signal.SIGTERM, signal.SIGHUP)
        numbers = [one for one in all_of_them if signal.getsignal(one) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _alone(checks: list[Check], me: Member) -> Diagnosis:
    return Diagnosis(checks, [me.host], [], is_first=True)


def _member(folder: Path) -> Member:
    """This copy. Raises OSError."""
    boot_id = ""
    with contextlib.suppress(OSError):
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return Member(
        os.uname().nodename, boot_id, os.getpid(), folder.stat().st_dev, file_system_type(folder)
    )


def _reports(meeting: Meeting, checks: list[Check]) -> list[Report]:
    """Do what all do together, and read what each found, in the order of the meeting."""
    meeting.read_members()
    lock = contend_for_lock(meeting)
    lags = measure(meeting)
    won = race(meeting)
    own = Report(meeting.members[meeting.seat], checks, lags, won, lock)
    meeting.hand_in("report", own)
    meeting.say("report is in")
    meeting.wait_for("report is in")
    return [
        msgspec.json.decode(meeting.read(seat, "report"), type=Report)
        for seat in range(len(meeting.members))
    ]
