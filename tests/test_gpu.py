"""What only a real card can show: who sees which card, memory that runs out, a context that is
spoiled, a kernel that never ends. `make gpu` runs these; without a card they skip.
"""

from __future__ import annotations

import pytest
from helpers import JOBS, Box, has_gpu, names, record

from gpuspool.orchestrator.plan.devices import find_pool
from gpuspool.orchestrator.plan.nvml import list_cards

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not has_gpu(), reason="needs a real GPU: NVML finds none here"),
]
JOB = f"{JOBS}/gpu.py"
# The whole of this machine, as a user has it who has set nothing.
ALL: dict[str, str | None] = {"CUDA_VISIBLE_DEVICES": None}


def cards() -> list[str]:
    """The UUIDs of this machine's cards."""
    return [card.uuid for card in list_cards().cards]


def one() -> dict[str, str | None]:
    """The first card alone, by its UUID."""
    return {"CUDA_VISIBLE_DEVICES": cards()[0]}


def verdicts(box: Box, inputs: str) -> dict[str, str]:
    """Of each line of the inputs, what became of its last task."""
    lines = (box / inputs).read_text().split()
    return {lines[result["index"]]: result["state"] for result in box.results("S")}


def start(job: str, inputs: str) -> list[str]:
    return ["run", f"{JOB}:{job}", "--lines", inputs, "--spool", "S"]


def test_a_real_gpu_is_seen_used_and_named(box: Box) -> None:
    ranks = str(min(2, len(find_pool(None, {}).tokens)))
    box.run(*start("Matrix", box.lines(16)), "--ranks", ranks, env=ALL)
    assert {result["result"] for result in box.results("S")} == {0.0}
    for name in names(box / "S" / "complete"):
        closing, intent = (
            record(box / "S" / "complete" / name),
            record(box / "S" / "attempts" / name),
        )
        stats = closing["stats"]
        assert stats["device"] == intent["device"]
        assert stats["device_uuid"].startswith("GPU-")
        assert not intent["device"].startswith("GPU-") or stats["device_uuid"] == intent["device"]
        assert stats["device_name"]
        assert stats["peak_device_memory_bytes"] > 0
        assert stats["versions"]["torch"]


def test_every_rank_sees_one_card_and_together_they_see_all(box: Box) -> None:
    box.run(*start("Seen", box.lines(16 * len(cards()))), env=ALL)
    seen = [result["result"] for result in box.results("S")]
    assert {one["count"] for one in seen} == {1}
    assert {one["uuids"][0] for one in seen} == set(cards())


def test_a_card_given_by_uuid_is_the_one_that_torch_sees(box: Box) -> None:
    box.run(*start("Seen", box.lines(4)), env=one())
    for result in box.results("S"):
        assert result["result"] == {"given": cards()[0], "count": 1, "uuids": [cards()[0]]}


def test_a_card_given_by_the_beginning_of_its_uuid_is_that_card(box: Box) -> None:
    short = cards()[0][:12]
    box.run(*start("Seen", box.lines(4)), env={"CUDA_VISIBLE_DEVICES": short})
    assert {tuple(result["result"]["uuids"]) for result in box.results("S")} == {(cards()[0],)}


def test_a_card_given_by_index_is_the_one_that_nvml_counts_so(box: Box) -> None:
    box.run(*start("Seen", box.lines(4)), env={"CUDA_VISIBLE_DEVICES": "0"})
    assert {tuple(result["result"]["uuids"]) for result in box.results("S")} == {(cards()[0],)}


@pytest.mark.parametrize("token", ["GPU-00000000-0000-0000-0000-000000000000", "63"])
def test_a_card_that_is_not_there_is_named_and_no_task_is_lost(box: Box, token: str) -> None:
    # The line that every run begins with has the token too, and is not what is asked for.
    command = [*start("Matrix", box.lines(4)), "-q"]
    done = box.run(*command, code=None, env={"CUDA_VISIBLE_DEVICES": token})
    assert done.code != 0
    assert token in done.err
    if (box / "S").is_dir():
        assert {result["state"] for result in box.results("S")} == {"missing"}


def test_ranks_on_the_cpu_see_no_card(box: Box) -> None:
    box.run(*start("Seen", box.lines(4)), "--devices", "cpu", "--ranks", "2", env=ALL)
    assert {result["result"]["count"] for result in box.results("S")} == {0}


def test_two_ranks_share_a_card(box: Box) -> None:
    box.run(*start("Seen", box.lines(40)), "--ranks-per-gpu", "2", env=one())
    assert len(names(box / "S" / "complete")) == 2
    assert {tuple(result["result"]["uuids"]) for result in box.results("S")} == {(cards()[0],)}


def test_batches_that_do_not_fit_on_the_card_become_smaller(box: Box) -> None:
    box.write("shares", "0.15\n" * 40)
    box.run(*start("Filling", "shares"), env=one())
    assert {result["result"] for result in box.results("S")} == {1}
    assert len(names(box / "S" / "attempts")) == 1, "the process that met it went on"


def test_a_task_larger_than_the_card_fails_alone(box: Box) -> None:
    box.write("shares", "0.001\n" * 9 + "2\n" + "0.001\n" * 9)
    done = box.run(*start("Filling", "shares"), code=3, env=one())
    failed = [result for result in box.results("S") if result["state"] == "failed"]
    assert [result["index"] for result in failed] == [9]
    assert failed[0]["error"]["kind"] == "gpu_oom"
    assert "out of memory" in done.err
    assert not names(box / "S" / "failed"), "no process was lost to it"


def test_a_device_side_assert_costs_its_own_task_alone(box: Box) -> None:
    box.write("places", "0\n1\n2\n3\n4\n99\n6\n7\n" + "5\n" * 8)
    done = box.run(*start("Asserting", "places"), code=3, env=one())
    assert verdicts(box, "places") == {**dict.fromkeys("01234567", "complete"), "99": "failed"}
    assert "device-side assert" in done.err
    assert not box.problems("S")


@pytest.mark.parametrize(("harm", "says"), [("1", "illegal"), ("2", "launch failure")])
def test_a_kernel_that_spoils_the_context_costs_its_own_task_alone(
    box: Box, harm: str, says: str
) -> None:
    box.write("values", f"0\n4\n5\n{harm}\n6\n7\n8\n")
    done = box.run(*start("Harming", "values"), code=3, env=one())
    assert verdicts(box, "values") == {**dict.fromkeys("045678", "complete"), harm: "failed"}
    assert says in done.err


def test_a_kernel_that_never_ends_is_killed_and_its_task_named(box: Box) -> None:
    box.write("values", "0\n4\n5\n3\n6\n7\n8\n")
    box.run(*start("Harming", "values"), "--task-timeout", "8s", code=3, env=one())
    assert verdicts(box, "values") == {**dict.fromkeys("045678", "complete"), "3": "failed"}


def test_the_memory_of_a_killed_process_is_there_for_the_next_one(box: Box) -> None:
    box.run(*start("Greedy", box.lines(8)), env=one())
    assert {result["result"] for result in box.results("S")} == {1}
    assert (box / "killed").exists()
