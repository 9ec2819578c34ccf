"""Which device each rank may see: the pool, its sharing out, and what stands in a worker's
environment.
"""

import os
from typing import Any

import pytest
from helpers import JOBS, Box, has_gpu, record

from gpuspool.orchestrator.plan.devices import find_pool, share_out
from gpuspool.orchestrator.plan.environment import environment_for
from gpuspool.spool.errors import UsageError

UUIDS = "GPU-aaaa,GPU-bbbb"
MIGS = "MIG-1111,MIG-2222,MIG-3333"
DESCRIBE = f"{JOBS}/plain.py:describe"


def assigned(
    visible: str | None = None,
    devices: str | None = None,
    ranks: int | None = None,
    per_gpu: int = 1,
    per_rank: int = 1,
) -> list[str]:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    return share_out(find_pool(devices, environment), ranks, per_gpu, per_rank)


def test_each_inherited_token_is_one_rank() -> None:
    assert assigned(UUIDS) == ["GPU-aaaa", "GPU-bbbb"]
    assert assigned("2,3") == ["2", "3"]
    assert assigned(MIGS) == ["MIG-1111", "MIG-2222", "MIG-3333"]
    assert assigned(" GPU-aaaa , GPU-bbbb ") == ["GPU-aaaa", "GPU-bbbb"]


def test_a_device_that_is_named_twice_has_one_rank() -> None:
    assert assigned("GPU-aaaa,GPU-aaaa,GPU-bbbb") == ["GPU-aaaa", "GPU-bbbb"]
    assert assigned("0,1,0") == ["0", "1"]
    pool = find_pool(None, {"CUDA_VISIBLE_DEVICES": "0,1,0"})
    assert pool.in_words.endswith("left out, since it names a device again: 0")


def test_fewer_ranks_than_devices_take_the_first() -> None:
    assert assigned("2,3", ranks=1) == ["2"]


def test_devices_choose_from_the_inherited() -> None:
    assert assigned("2,3,5", devices="5,2") == ["5", "2"]
    assert assigned(UUIDS, devices="cpu", ranks=2) == ["", ""]


def test_a_device_outside_the_inherited_is_refused() -> None:
    for devices in ("0", "2,0", "GPU-aaaa", "cpu,2"):
        with pytest.raises(UsageError, match="given: CUDA_VISIBLE_DEVICES=2,3"):
            assigned("2,3", devices=devices)
    with pytest.raises(UsageError, match="hides all devices"):
        assigned("", devices="0")


def test_without_an_inherited_list_any_token_is_believed() -> None:
    assert assigned(devices="0,GPU-x") == ["0", "GPU-x"]


@pytest.mark.parametrize("devices", ["0,0", "", "0,,1", ","])
def test_empty_or_repeated_devices_are_refused(devices: str) -> None:
    with pytest.raises(UsageError, match="empty or repeated"):
        assigned(devices=devices)


def test_ranks_per_gpu_puts_several_ranks_on_each() -> None:
    assert assigned(UUIDS, per_gpu=2) == ["GPU-aaaa", "GPU-bbbb", "GPU-aaaa", "GPU-bbbb"]
    assert assigned(UUIDS, per_gpu=2, ranks=3) == ["GPU-aaaa", "GPU-bbbb", "GPU-aaaa"]


def test_gpus_per_rank_gives_each_rank_consecutive_ones() -> None:
    assert assigned("4,5,6,7", per_rank=2) == ["4,5", "6,7"]
    assert assigned("4,5,6,7", per_rank=2, ranks=1) == ["4,5"]
    with pytest.raises(UsageError, match="does not divide the 3 devices"):
        assigned(MIGS, per_rank=2)


def test_more_ranks_than_devices_are_refused() -> None:
    with pytest.raises(
        UsageError, match=r"--ranks 3, but 2 device\(s\) \(GPU-aaaa,GPU-bbbb\) give 2"
    ):
        assigned(UUIDS, ranks=3)
    with pytest.raises(UsageError, match="give 4"):
        assigned(UUIDS, ranks=5, per_gpu=2)
    with pytest.raises(UsageError, match="give 1"):
        assigned("0,1", ranks=2, per_rank=2)


def test_sharing_and_spanning_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        assigned("0,1", per_gpu=2, per_rank=2)


@pytest.mark.parametrize("hidden", ["", "-1", "NoDevFiles", "void", "none"])
def test_an_empty_variable_means_the_cpu(hidden: str) -> None:
    assert assigned(hidden) == [""]
    assert assigned(hidden, ranks=3) == ["", "", ""]


def test_what_stands_behind_an_entry_that_names_nothing_is_ignored_as_cuda_does() -> None:
    assert assigned("2,-1,3") == ["2"]


def test_rocm_has_a_variable_of_its_own() -> None:
    assert find_pool(None, {"HIP_VISIBLE_DEVICES": "3,4"}).tokens == ["3", "4"]
    assert environment_for("3", 2, {"HIP_VISIBLE_DEVICES": "3,4"})["HIP_VISIBLE_DEVICES"] == "3"
    assert "HIP_VISIBLE_DEVICES" not in environment_for("3", 2, {})


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU, so a promise of one is kept")
@pytest.mark.parametrize("variable", ["SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "SLURM_GPUS_ON_NODE"])
def test_a_promised_gpu_that_is_not_there_is_never_silently_the_cpu(variable: str) -> None:
    with pytest.raises(UsageError, match=f"{variable}=1 promises GPUs"):
        find_pool(None, {variable: "1"})
    assert find_pool("cpu", {variable: "1"}).tokens == []


def test_indices_are_those_of_the_bus() -> None:
    assert environment_for("2", 1, {})["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert environment_for("2,3", 1, {})["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert "CUDA_DEVICE_ORDER" not in environment_for("GPU-aaaa", 1, {})
    assert "CUDA_DEVICE_ORDER" not in environment_for("", 1, {})


def test_ranks_share_the_cores_unless_the_user_said_otherwise() -> None:
    for device in ("", "GPU-aaaa"):
        assert environment_for(device, 5, {})["OMP_NUM_THREADS"] == "5"
        assert environment_for(device, 0, {})["OMP_NUM_THREADS"] == "1"
        assert "OMP_NUM_THREADS" not in environment_for(device, 5, {"OMP_NUM_THREADS": "3"})


def seen_by_ranks(box: Box, visible: str, *options: str, tasks: int = 12) -> dict[int, list[Any]]:
    """rank -> (what stood in CUDA_VISIBLE_DEVICES, CUDA_DEVICE_ORDER, OMP_NUM_THREADS, ctx.device)
    of its worker.
    """
    env = {"GPUSPOOL_DEVICE_CHECK": "off", "CUDA_VISIBLE_DEVICES": visible}
    arguments = ["--lines", box.lines(tasks), "--arg", f"gate={box / 'gate'}", "--spool", "S"]
    box.run("run", f"{JOBS}/devices.py:meet", *arguments, *options, env=env)
    found = {}
    for result in box.results("S"):
        told = result["result"]
        assert found.setdefault(result["rank"], told) == told
        intent = record(box / "S" / "attempts" / f"rank-{result['rank']:04d}.a00.json")
        assert intent["device"] == (told[0] or "cpu")
    return dict(sorted(found.items()))


@pytest.mark.parametrize("visible", [UUIDS, "2,3", "MIG-1111,MIG-2222"])
def test_a_workers_environment_holds_its_own_token_only(box: Box, visible: str) -> None:
    found = seen_by_ranks(box, visible, "--ranks", "2")
    assert [told[0] for told in found.values()] == visible.split(",")
    assert {told[1] for told in found.values()} == {"PCI_BUS_ID" if visible == "2,3" else None}
    assert {told[3] for told in found.values()} == {"cuda:0"}


def test_two_ranks_on_each_gpu_hold_one_token_each(box: Box) -> None:
    found = seen_by_ranks(box, UUIDS, "--ranks-per-gpu", "2")
    assert [told[0] for told in found.values()] == ["GPU-aaaa", "GPU-bbbb", "GPU-aaaa", "GPU-bbbb"]


def test_two_gpus_for_each_rank_hold_two_tokens_each(box: Box) -> None:
    found = seen_by_ranks(box, "2,3,6,7", "--gpus-per-rank", "2")
    assert [told[0] for told in found.values()] == ["2,3", "6,7"]


def test_cpu_ranks_see_no_device_and_share_the_cores(box: Box) -> None:
    found = seen_by_ranks(box, "", "--ranks", "2")
    share = str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert list(found.values()) == [["", None, share, "cpu"]] * 2


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU")
def test_where_there_is_no_gpu_nor_promise_of_one_the_cpu_is_used(box: Box) -> None:
    env = {"CUDA_VISIBLE_DEVICES": None}
    box.run("run", DESCRIBE, "--lines", box.lines(2), "--spool", "S", "--ranks", "2", env=env)
    assert [result["result"]["visible"] for result in box.results("S")] == ["", ""]
    promised = {**env, "SLURM_JOB_GPUS": "0,1"}
    done = box.run("run", DESCRIBE, "--lines", "lines", "--spool", "T", code=2, env=promised)
    assert "SLURM_JOB_GPUS=0,1 promises GPUs" in done.err
    assert not (box / "T").exists()
    box.run("run", DESCRIBE, "--lines", "lines", "--spool", "T", "--devices", "cpu", env=promised)


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU, so a worker sees one")
def test_a_worker_that_does_not_see_its_device_computes_nothing(box: Box) -> None:
    """Never silently on the CPU: the job would take a hundred times as long, and nobody would know
    why.
    """
    command = [
        "run",
        f"{JOBS}/gpu.py:Matrix",
        "--lines",
        box.lines(4),
        "--spool",
        "S",
        "--max-restarts",
        "0",
    ]
    done = box.run(*command, "--devices", "0", code=4, env={"CUDA_VISIBLE_DEVICES": None})
    assert "this worker was given 1 device(s) (0) and torch" in done.err
    assert "sees 0" in done.err
    assert record(box / "S" / "failed" / "rank-0000.a00.json")["reason"] == "device"
    assert box.status("S")["tasks"]["complete"] == 0
