"""What NVML says decides where a run goes: the real bindings, asked as a user's command asks them.

The library behind them is built from nvml/nvml.c, and lists what a test tells it.
"""

import os
from pathlib import Path
from typing import Any

import pytest
from helpers import JOBS, Box, Done, Nvml, record

DESCRIBE = f"{JOBS}/plain.py:describe"
TWO = "GPU-aaaa@1 GPU-bbbb@2"
# Error numbers of nvml.h.
NO_PERMISSION, DRIVER_NOT_LOADED, GPU_IS_LOST, VERSION_MISMATCH, UNKNOWN = 4, 9, 15, 18, 999


def run(box: Box, env: Any, *options: str, code: int = 0) -> Done:
    """Run a job in this environment, with as many ranks as there are devices."""
    command = ["run", DESCRIBE, "--lines", box.lines(4), "--spool", "S", *options]
    return box.run(*command, code=code, env=env)


def intents(box: Box) -> list[Any]:
    """What each rank was started with, in order of rank."""
    return [record(path) for path in sorted((box / "S" / "attempts").glob("rank-*.a00.json"))]


def given(box: Box) -> list[str]:
    """The device of each rank."""
    return [intent["device"] for intent in intents(box)]


@pytest.mark.parametrize("options", [(), ("--devices", "auto")])
def test_every_card_is_a_rank_by_the_number_that_libraries_expect(
    box: Box, nvml: Nvml, options: tuple[str, ...]
) -> None:
    done = run(box, nvml.lists(TWO), *options)
    assert given(box) == ["0", "1"]
    assert {i["environment"]["CUDA_DEVICE_ORDER"] for i in intents(box)} == {"PCI_BUS_ID"}
    assert [i["device_uuids"] for i in intents(box)] == [["GPU-aaaa"], ["GPU-bbbb"]]
    assert "gpuspool: 4 tasks on 2 ranks (0, 1: listed by NVML), S\n" in done.err


def test_a_number_and_the_uuid_of_the_same_card_are_one_device(box: Box, nvml: Nvml) -> None:
    env = nvml.lists(TWO, CUDA_VISIBLE_DEVICES="0,GPU-aaaa,GPU-bbbb")
    done = run(box, env)
    assert given(box) == ["0", "GPU-bbbb"]
    assert "left out, since it names a device again: GPU-aaaa" in done.err
    refused = run(box, nvml.lists(TWO), "--devices", "0,GPU-aaaa", code=2)
    assert "GPU-aaaa names a device that stands there already" in refused.err


def test_a_dry_run_tells_the_devices_and_why(box: Box, nvml: Nvml) -> None:
    done = run(box, nvml.lists(TWO), "--dry-run")
    assert "devices: 0, 1 (listed by NVML)" in done.err + done.out


def test_a_driver_from_before_mig_lists_its_cards_too(box: Box, nvml: Nvml) -> None:
    run(box, nvml.lists(TWO, is_old=True))
    assert given(box) == ["0", "1"]


@pytest.mark.parametrize("how", ["!", "?"])
@pytest.mark.parametrize("error", [GPU_IS_LOST, UNKNOWN, NO_PERMISSION])
def test_one_lost_gpu_is_named_and_the_others_work(
    box: Box, nvml: Nvml, how: str, error: int
) -> None:
    done = run(box, nvml.lists(f"GPU-aaaa@1 GPU-bbbb@2{how}{error} GPU-cccc@3"))
    # CUDA may count the others anew, so a number would perhaps mean another card.
    assert given(box) == ["GPU-aaaa", "GPU-cccc"]
    said = {GPU_IS_LOST: "GPU is lost", UNKNOWN: "Unknown Error"}
    said[NO_PERMISSION] = "Insufficient Permissions"
    assert f"left out: GPU 1: {said[error]}" in done.err


def test_when_every_gpu_is_lost_nothing_runs_on_the_cpu(box: Box, nvml: Nvml) -> None:
    env = nvml.lists(f"GPU-aaaa@1!{GPU_IS_LOST} GPU-bbbb@2?{GPU_IS_LOST}")
    done = run(box, env, code=2)
    assert "GPU 0: GPU is lost; GPU 1: GPU is lost" in done.err
    assert "Traceback" not in done.err
    assert not (box / "S").exists()
    run(box, env, "--devices", "cpu")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (VERSION_MISMATCH, "version mismatch: the driver was updated and not reloaded"),
        (NO_PERMISSION, "Insufficient Permissions"),
        (UNKNOWN, "Unknown Error"),
        (GPU_IS_LOST, "GPU is lost"),
    ],
)
def test_a_driver_that_does_not_answer_is_no_reason_to_use_the_cpu(
    box: Box, nvml: Nvml, error: int, says: str
) -> None:
    env = nvml.lists(NVML_INIT=str(error))
    done = run(box, env, code=2)
    assert says in done.err
    assert "Traceback" not in done.err
    run(box, env, "--devices", "cpu")


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="this machine has a GPU")
def test_a_driver_that_is_not_loaded_is_a_host_without_gpus(box: Box, nvml: Nvml) -> None:
    env = nvml.lists(NVML_INIT=str(DRIVER_NOT_LOADED))
    done = run(box, env)
    assert given(box) == ["cpu"]
    assert "(cpu: no GPU found)" in done.err
    done = run(box, {**env, "SLURM_JOB_GPUS": "0"}, "--fresh", code=2)
    assert "SLURM_JOB_GPUS=0 promises GPUs" in done.err
    assert "Driver Not Loaded" in done.err


def test_mig_instances_are_devices_and_empty_places_are_none(box: Box, nvml: Nvml) -> None:
    run(box, nvml.lists("GPU-aaaa@1#MIG-1//MIG-2 GPU-bbbb@2"))
    assert given(box) == ["MIG-1", "MIG-2", "GPU-bbbb"]


def test_a_card_with_mig_and_no_instance_is_left_out(box: Box, nvml: Nvml) -> None:
    done = run(box, nvml.lists("GPU-aaaa@1# GPU-bbbb@2"))
    assert given(box) == ["GPU-bbbb"]
    assert "GPU 0 (GPU-aaaa): MIG is enabled and it has no instance" in done.err


def test_where_the_order_is_not_that_of_the_bus_a_card_is_named_by_its_uuid(
    box: Box, nvml: Nvml
) -> None:
    run(box, nvml.lists("GPU-aaaa@7 GPU-bbbb@2"))
    assert given(box) == ["GPU-aaaa", "GPU-bbbb"]


def test_where_the_user_orders_cards_by_speed_a_number_would_mean_another(
    box: Box, nvml: Nvml
) -> None:
    run(box, nvml.lists(TWO, CUDA_DEVICE_ORDER="FASTEST_FIRST"))
    assert given(box) == ["GPU-aaaa", "GPU-bbbb"]


def test_cards_without_a_uuid_have_the_number_of_their_place_on_the_bus(
    box: Box, nvml: Nvml
) -> None:
    run(box, nvml.lists("-@7 -@2"))
    assert given(box) == ["0", "1"]
    assert [intent.get("device_uuids", []) for intent in intents(box)] == [[], []]


def test_a_card_that_nothing_surely_names_is_left_out(box: Box, nvml: Nvml) -> None:
    done = run(box, nvml.lists(f"-@1 GPU-bbbb@2 GPU-cccc@3!{GPU_IS_LOST}"))
    assert given(box) == ["GPU-bbbb"]
    assert "GPU 0: it has no UUID, and no number is sure to mean it" in done.err


def test_a_container_that_was_given_no_device_takes_none(box: Box, nvml: Nvml) -> None:
    for value in ("void", "none"):
        done = run(box, nvml.lists(TWO, NVIDIA_VISIBLE_DEVICES=value), "--fresh")
        assert given(box) == ["cpu"]
        assert f"NVIDIA_VISIBLE_DEVICES={value}: this container was given no device" in done.err


def test_a_container_that_was_given_one_card_leaves_the_others(box: Box, nvml: Nvml) -> None:
    run(box, nvml.lists(TWO, NVIDIA_VISIBLE_DEVICES="GPU-bbbb"))
    assert given(box) == ["1"]
    run(box, nvml.lists(TWO, NVIDIA_VISIBLE_DEVICES="all"), "--fresh")
    assert given(box) == ["0", "1"]


def test_the_numbers_that_a_scheduler_gives_are_verified_by_uuid(box: Box, nvml: Nvml) -> None:
    run(box, nvml.lists(TWO, CUDA_VISIBLE_DEVICES="1"))
    assert [(i["device"], i["device_uuids"]) for i in intents(box)] == [("1", ["GPU-bbbb"])]


@pytest.mark.skipif(
    not {0, 1} <= os.sched_getaffinity(0), reason="this process may not use the cores 0 and 1"
)
@pytest.mark.parametrize("cards", [TWO, "GPU-aaaa@1#MIG-1"])
def test_a_rank_runs_on_the_cores_next_to_its_card_and_counts_its_threads_by_them(
    box: Box, nvml: Nvml, cards: str
) -> None:
    job = box.write(
        "job.py", "import os\ndef cores(task, ctx): return list(os.sched_getaffinity(0))"
    )
    command = ["run", f"{job}:cores", "--lines", box.lines(1), "--spool", "S", "--ranks", "1"]
    box.run(*command, env=nvml.lists(cards, NVML_CORES="0x2"))
    assert box.results("S")[0]["result"] == [1]
    assert intents(box)[0]["environment"]["OMP_NUM_THREADS"] == "1"
