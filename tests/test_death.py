"""How an attempt died: each row of the table, and what a closing tells of each death."""

import itertools
import re
from typing import get_args

import pytest

from gpuspool.spool import death
from gpuspool.spool.death import (
    MAX_KILLS,
    CannotClose,
    Crashed,
    Death,
    Evidence,
    Lost,
    NeverStarted,
    TimedOut,
    Told,
    Witness,
    classify,
    ending_of,
    exit_code_of,
)
from gpuspool.spool.errors import EXIT_CANNOT_CLOSE
from gpuspool.spool.exits import describe_exit

STACKS = "Thread 0x1 (most recent call first): ..."

# For each row of the table in death.py, in its order: evidence to which that row applies and none
# above it, and the death.
ROWS: list[tuple[Evidence, Death]] = [
    (Evidence(was_told=True, exit_code=-15), Told()),
    (Evidence(was_told=True, stacks=STACKS, exit_code=1), Told(STACKS)),
    (Evidence(stacks=STACKS), TimedOut(STACKS)),
    (Evidence(stacks=STACKS, exit_code=1), TimedOut(STACKS, 1)),
    (Evidence(is_overdue=True, exit_code=-9), TimedOut()),
    (Evidence(never_started=True), NeverStarted()),
    (Evidence(exit_code=None), Lost()),
    (Evidence(exit_code=EXIT_CANNOT_CLOSE), CannotClose()),
    (Evidence(exit_code=-11, max_crashes=2), Crashed(Witness(-11, max_crashes=2))),
]

# One death of each kind, with the state, the reason and the exit code that its closing tells.
ENDINGS: list[tuple[Death, str, str, int | None]] = [
    (Told(), "stopped", "killed", None),
    (TimedOut(STACKS, 1), "failed", "timeout", 1),
    (NeverStarted(), "failed", "io", None),
    (Lost(), "failed", "lost", None),
    (CannotClose(), "failed", "io", None),
    (Crashed(Witness(3, max_crashes=2)), "failed", "crash", 3),
]


def first_row(evidence: Evidence) -> type[Death]:
    """The death in the first row of the table that applies."""
    table = [
        (evidence.was_told, Told),
        (bool(evidence.stacks) or evidence.is_overdue, TimedOut),
        (evidence.never_started, NeverStarted),
        (evidence.exit_code is None, Lost),
        (evidence.exit_code == EXIT_CANNOT_CLOSE, CannotClose),
        (True, Crashed),
    ]
    return next(kind for applies, kind in table if applies)


@pytest.mark.parametrize(("evidence", "expected"), ROWS)
def test_each_row_of_the_table_gives_its_death(evidence: Evidence, expected: Death) -> None:
    assert classify(evidence) == expected


def test_every_kind_of_death_has_a_row() -> None:
    assert {type(expected) for _, expected in ROWS} == set(get_args(Death))


def test_of_several_rows_that_apply_the_first_one_counts() -> None:
    truths = (False, True)
    codes = (None, 0, 1, EXIT_CANNOT_CLOSE, -9, -11)
    for stacks, overdue, told, never, oom, code in itertools.product(
        ("", STACKS), truths, truths, truths, truths, codes
    ):
        evidence = Evidence(
            stacks=stacks,
            is_overdue=overdue,
            was_told=told,
            never_started=never,
            is_oom=oom,
            exit_code=code,
        )
        assert type(classify(evidence)) is first_row(evidence), evidence


def test_a_crash_keeps_all_that_its_witness_saw() -> None:
    evidence = Evidence(exit_code=-9, is_oom=True, max_crashes=3, max_kills=7)
    assert classify(evidence) == Crashed(Witness(-9, max_crashes=3, max_kills=7, is_oom=True))


@pytest.mark.parametrize(("died", "state", "reason", "exit_code"), ENDINGS)
def test_a_closing_tells_of_each_death_its_state_its_reason_and_its_exit_code(
    died: Death, state: str, reason: str, exit_code: int | None
) -> None:
    assert ending_of(died) == (state, reason)
    assert exit_code_of(died) == exit_code


def test_every_kind_of_death_has_an_ending() -> None:
    assert {type(died) for died, _, _, _ in ENDINGS} == set(get_args(Death))


def test_the_table_in_the_docs_of_the_module_tells_the_same_endings() -> None:
    rows = re.findall(r"(\w+) +(failed|stopped) +(\w+)$", death.__doc__ or "", re.MULTILINE)
    assert rows == [
        (type(died).__name__, state, reason)
        for died, state, reason, _ in sorted(ENDINGS, key=lambda row: order_of(type(row[0])))
    ]


def order_of(kind: type[Death]) -> int:
    """Where the first row of a kind of death stands in the table."""
    return [type(expected) for _, expected in ROWS].index(kind)


@pytest.mark.parametrize(
    ("witness", "is_kill", "most"),
    [
        (Witness(-11, max_crashes=2), False, 2),
        (Witness(-9, max_crashes=2), True, MAX_KILLS),
        (Witness(-9, max_crashes=2, max_kills=9), True, 9),
        (Witness(-9, max_crashes=8), True, 8),
        (Witness(-9, max_crashes=2, is_oom=True), False, 2),
        (Witness(137, max_crashes=2), False, 2),
    ],
    ids=["a crash", "a kill", "more kills", "more crashes", "out of memory", "by a shell"],
)
def test_a_sigkill_may_happen_more_often_to_a_task_than_a_crash(
    witness: Witness, is_kill: bool, most: int
) -> None:
    assert (witness.is_kill, witness.most) == (is_kill, most)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (3, "exit code 3"),
        (-11, "killed by SIGSEGV"),
        (-9, "killed by SIGKILL"),
        (-99, "killed by signal 99"),
        # A command may have its own meaning for the code by which a worker says that it is broken.
        (76, "exit code 76"),
    ],
)
def test_an_exit_code_is_told_in_words(code: int, words: str) -> None:
    assert describe_exit(code) == words
