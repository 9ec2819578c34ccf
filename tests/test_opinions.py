"""The theory of blame, fact by fact: what fails a task, what speaks against a place, who waits."""

from typing import Any

import msgspec
import pytest

from gpuspool.orchestrator.supervise.opinions import (
    BROKEN_TASKS,
    FIRST_FAULT_PAUSE_S,
    FIRST_PAUSE_S,
    LAST_PATIENCE,
    LAST_S,
    MOST_PAUSE_S,
    NEXT_PATIENCE,
    PATIENCE,
    Finding,
    Ground,
    Opinion,
    Trial,
    awaits_news,
    broken_tasks,
    fruitless_row,
    patience_after,
    pause_s,
    rule,
    strikes,
)

A, B, C = "GPU-a", "GPU-b", "GPU-c"
NOW = 1000.0

FAULT = Trial(is_fault=True)
GOOD = Trial(completed=1)
SILENT = Trial(is_silent=True)


def ground(*devices: str, **fields: Any) -> Ground:
    known: dict[str, Any] = {"quiet_since_s": None, "unproven": 0, "elapsed_s": 1e6, "now": NOW}
    known |= {"working": frozenset(), "tasks": 1000}
    return Ground(devices=frozenset(devices or (A, B)), **{**known, **fields})


def opinion(
    device: str,
    is_confirmed: bool = True,
    attempt: str = "",
    since_s: float = 0.0,
    is_sure: bool = True,
) -> Opinion:
    return Opinion(attempt or f"attempt on {device}", device, is_confirmed, since_s, is_sure)


def in_vain(failed: int = 1, acquitted: int = 0, convicted: int = 0, known: int = 0) -> Trial:
    return Trial(failed=failed, acquitted=acquitted, convicted=convicted, known=known)


# Tasks.


def test_one_failure_alone_decides_nothing() -> None:
    assert rule([opinion(A)], ground()) is Finding.AGAIN
    assert rule([opinion(A)], ground(quiet_since_s=NOW)) is Finding.AGAIN


def test_a_task_fails_once_two_devices_failed_it_and_went_on_to_complete_others() -> None:
    assert rule([opinion(A), opinion(B)], ground()) is Finding.FAIL


def test_two_crashes_of_processes_that_may_just_have_broken_are_not_enough() -> None:
    """Each had completed tasks, and the next process of its device completes others."""
    crash = Opinion("first", A, True, 0.0, is_sure=False, is_crash=True)
    other = msgspec.structs.replace(crash, attempt="second", device=B)
    assert rule([crash, other], ground()) is Finding.AGAIN
    fresh = msgspec.structs.replace(other, is_sure=True)
    assert rule([crash, fresh], ground()) is Finding.FAIL
    third = msgspec.structs.replace(crash, attempt="third")
    assert rule([crash, other, third], ground()) is Finding.FAIL
    assert rule([opinion(A, is_sure=False), other], ground()) is Finding.FAIL, "one only raised"


def test_what_a_place_failed_that_completed_nothing_afterwards_counts_for_nothing() -> None:
    assert rule([opinion(A), opinion(B, is_confirmed=False)], ground()) is Finding.AGAIN
    unconfirmed = [opinion(device, is_confirmed=False) for device in (A, B, C)]
    assert rule(unconfirmed, ground(A, B, C)) is Finding.AGAIN


def test_two_processes_of_one_device_are_one_place_where_there_are_others() -> None:
    twice = [opinion(A, attempt="first"), opinion(A, attempt="second")]
    assert rule(twice, ground(A, B)) is Finding.AGAIN
    assert rule(twice, ground(A)) is Finding.FAIL


def test_a_device_that_is_not_trusted_has_no_opinion() -> None:
    assert rule([opinion(A), opinion(C)], ground(A, B)) is Finding.AGAIN
    assert rule([opinion(A), opinion(C), opinion(B)], ground(A, B)) is Finding.FAIL


def test_more_opinions_are_wanted_where_the_user_says_so() -> None:
    assert rule([opinion(A), opinion(B)], ground(A, B, C), least=3) is Finding.AGAIN
    three = [opinion(A), opinion(B), opinion(C)]
    assert rule(three, ground(A, B, C), least=3) is Finding.FAIL


def test_in_the_last_phase_a_task_that_was_proved_bad_once_needs_no_second_proof() -> None:
    late = opinion(B, is_confirmed=False, since_s=NOW)
    last = ground(quiet_since_s=NOW - 1, unproven=0)
    assert rule([opinion(A), late], last) is Finding.FAIL
    before = opinion(B, is_confirmed=False, since_s=NOW - 2)
    assert rule([opinion(A), before], last) is Finding.AGAIN, "it may have been an outage"


def test_in_the_last_phase_what_nobody_proved_must_have_lasted() -> None:
    late = [opinion(device, is_confirmed=False, since_s=NOW - 50) for device in (A, B)]
    few = ground(quiet_since_s=NOW - 60, unproven=2)
    assert rule(late, few) is Finding.FAIL
    many = ground(quiet_since_s=NOW - 60, unproven=40)
    assert rule(late, many) is Finding.WAIT, "so many may have failed by an outage"
    long_ago = ground(quiet_since_s=NOW - LAST_S - 1, unproven=400)
    assert rule(late, long_ago) is Finding.FAIL
    later = ground(quiet_since_s=NOW - 40, unproven=2)
    assert rule(late, later) is Finding.AGAIN, "both failed before the last phase"


def test_a_short_run_does_not_wait_long_for_its_last_verdicts() -> None:
    late = [opinion(device, is_confirmed=False, since_s=NOW) for device in (A, B)]
    short = ground(quiet_since_s=NOW - 6, unproven=40, elapsed_s=8.0)
    assert rule(late, short) is Finding.FAIL
    long = ground(quiet_since_s=NOW - 6, unproven=40, elapsed_s=8000.0)
    assert rule(late, long) is Finding.WAIT


def test_without_any_proof_it_takes_three_places_where_there_are_as_many() -> None:
    late = [opinion(device, is_confirmed=False, since_s=NOW) for device in (A, B, C)]
    old = ground(A, B, C, quiet_since_s=NOW - 600, unproven=1)
    late = [opinion(one.device, is_confirmed=False, since_s=NOW - 500) for one in late]
    assert rule(late[:2], old) is Finding.AGAIN
    assert rule(late, old) is Finding.FAIL


def test_broken_devices_that_agree_with_each_other_fail_no_task() -> None:
    """What nobody has proved must have failed on every device that works."""
    last = ground(
        A, B, C, quiet_since_s=NOW - 600, unproven=1, working=frozenset({A, C}), elapsed_s=1e6
    )
    broken = [opinion(device, is_confirmed=False, since_s=NOW) for device in (A, B)]
    assert rule(broken, last) is Finding.AGAIN
    everybody = [*broken, opinion(C, is_confirmed=False, since_s=NOW)]
    assert rule(everybody, last) is Finding.FAIL
    proved = [opinion(A), opinion(B, is_confirmed=False, since_s=NOW)]
    assert rule(proved, last) is Finding.FAIL


def test_so_many_that_they_can_hardly_all_be_bad_are_tried_on_as_in_an_outage() -> None:
    """Also in a short run, and to the end of the longest wait."""
    late = [opinion(device, is_confirmed=False, since_s=NOW) for device in (A, B)]
    most = ground(quiet_since_s=NOW - 60, unproven=11, elapsed_s=61.0, tasks=40)
    assert rule(late, most) is Finding.AGAIN
    some = ground(quiet_since_s=NOW - 60, unproven=10, elapsed_s=61.0, tasks=40)
    assert rule(late, some) is Finding.FAIL
    at_last = ground(quiet_since_s=NOW - LAST_S, unproven=11, elapsed_s=LAST_S, tasks=40)
    assert rule(late, at_last) is Finding.FAIL
    few = ground(quiet_since_s=NOW - 60, unproven=5, elapsed_s=61.0, tasks=6)
    assert rule(late, few) is Finding.FAIL, "of a handful all may be bad"


def test_where_processes_break_by_use_one_that_is_in_order_must_agree() -> None:
    """Each process completes some tasks and dies, so the next one of its rank proves its place."""
    broken = [opinion(device, is_sure=False) for device in (A, B)]
    assert rule(broken, ground()) is Finding.FAIL, "nobody knows yet that processes break"
    breaking = ground(do_processes_break=True)
    assert rule(broken, breaking) is Finding.AGAIN
    assert rule([broken[0], opinion(B)], breaking) is Finding.FAIL


def test_where_processes_break_by_use_the_last_opinions_are_of_fresh_ones() -> None:
    late = [opinion(d, is_confirmed=False, since_s=NOW, is_sure=False) for d in (A, B)]
    fresh = [opinion(d, is_confirmed=False, since_s=NOW) for d in (A, B)]
    fields: dict[str, Any] = {"quiet_since_s": NOW - 60, "unproven": 1}
    assert rule(late, ground(**fields)) is Finding.FAIL
    breaking = ground(**fields, do_processes_break=True)
    assert rule(late, breaking) is Finding.AGAIN
    assert rule([late[0], fresh[1]], breaking) is Finding.AGAIN
    assert rule(fresh, breaking) is Finding.FAIL


def test_a_process_that_just_broke_and_a_broken_device_fail_no_task_together() -> None:
    """Of the one a later process completed others, so its place is proved, but not its opinion."""
    broken, sick = opinion(A, is_sure=False), opinion(B, is_confirmed=False, since_s=NOW)
    fields: dict[str, Any] = {"quiet_since_s": NOW - 60, "unproven": 1}
    devices = (A, B, C)
    assert rule([broken, sick], ground(*devices, **fields)) is Finding.FAIL
    breaking = ground(*devices, **fields, do_processes_break=True)
    assert rule([broken, sick], breaking) is Finding.AGAIN
    assert rule([opinion(A), sick], breaking) is Finding.FAIL


# Places.


def test_a_row_ends_with_the_last_attempt_that_completed_something() -> None:
    assert fruitless_row([FAULT, GOOD, in_vain(), FAULT]) == [in_vain(), FAULT]
    assert fruitless_row([FAULT, Trial(completed=1, failed=9)]) == []


def test_a_file_system_in_trouble_speaks_against_no_device() -> None:
    trouble = Trial(is_fault=True, is_trouble=True)
    assert strikes([trouble, FAULT, trouble]) == 3
    assert strikes([trouble, FAULT, trouble], of_device=True) == 1


def test_who_says_nothing_is_passed_over() -> None:
    assert fruitless_row([in_vain(), SILENT, FAULT]) == [in_vain(), FAULT]
    explained = in_vain(failed=2, convicted=2)
    assert fruitless_row([in_vain(), explained, FAULT]) == [in_vain(), FAULT]
    half = in_vain(failed=2, convicted=1)
    assert fruitless_row([half]) == [half]


@pytest.mark.parametrize(
    ("trials", "count"),
    [
        ([], 0),
        ([FAULT, FAULT], 2),
        ([FAULT, GOOD], 0),
        ([in_vain(), in_vain()], 0),
        ([in_vain(acquitted=1)], 1),
        ([in_vain(acquitted=1), in_vain(acquitted=1)], 1),
        ([in_vain(acquitted=1), in_vain(acquitted=1, known=1)], 2),
        ([in_vain(acquitted=1), in_vain(known=1)], 1),
        ([in_vain(acquitted=2), FAULT, in_vain(acquitted=1, known=2)], 3),
    ],
)
def test_what_speaks_against_a_place(trials: list[Trial], count: int) -> None:
    """Bad inputs do not, however many; nor does an outage, however often it was met."""
    assert strikes(trials) == count


def test_the_patience_with_a_process() -> None:
    assert patience_after([], is_settling=False, is_new=False) == PATIENCE
    assert patience_after([in_vain()], is_settling=False, is_new=False) == NEXT_PATIENCE
    assert patience_after([in_vain()], is_settling=False, is_new=True) == PATIENCE
    assert patience_after([in_vain(), GOOD], is_settling=False, is_new=False) == PATIENCE
    assert patience_after([FAULT], is_settling=False, is_new=False) == PATIENCE
    assert patience_after([in_vain()], is_settling=True, is_new=False) == LAST_PATIENCE
    assert patience_after([in_vain()], True, is_new=False, do_processes_break=True) == PATIENCE


def test_who_failed_twice_waits_for_news_of_its_tasks() -> None:
    twice = [in_vain(), in_vain(known=1)]
    assert not awaits_news(twice[:1], acquitted=0, failed_elsewhere=0)
    assert awaits_news(twice, acquitted=1, failed_elsewhere=0)
    assert not awaits_news(twice, acquitted=2, failed_elsewhere=0)
    assert not awaits_news(twice, acquitted=1, failed_elsewhere=1)
    assert not awaits_news([FAULT, FAULT], acquitted=0, failed_elsewhere=0)


def test_pauses_double_up_to_their_end() -> None:
    assert pause_s([], barren_rounds=9) == 0.0
    faults = [pause_s([FAULT] * count, 0) for count in range(1, 40)]
    assert faults[:2] == [FIRST_FAULT_PAUSE_S, 2 * FIRST_FAULT_PAUSE_S]
    assert faults == sorted(faults)
    assert faults[-1] == MOST_PAUSE_S


def test_the_first_fresh_process_starts_at_once_and_outages_make_the_next_ones_wait() -> None:
    assert pause_s([in_vain()], barren_rounds=0) == 0.0
    assert pause_s([in_vain()] * 9, barren_rounds=1) == 0.0, "others get on"
    assert pause_s([in_vain()] * 9, barren_rounds=2) == FIRST_PAUSE_S
    assert pause_s([in_vain()] * 9, barren_rounds=3) == 2 * FIRST_PAUSE_S
    struck = [in_vain(acquitted=1, known=known) for known in range(3)]
    assert pause_s(struck, barren_rounds=0) == 2 * FIRST_PAUSE_S


def test_a_block_of_bad_inputs_in_front_breaks_no_job() -> None:
    for n_tasks in range(1, 500):
        assert broken_tasks(n_tasks) > n_tasks // 4 or broken_tasks(n_tasks) == BROKEN_TASKS
    assert broken_tasks(1) == 1
