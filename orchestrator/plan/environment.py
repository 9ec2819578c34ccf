"""What stands in a worker's environment, and what does not.

All of it must be there before the worker's interpreter starts. Later is too late: the user's code,
or a library that it imports, may initialise CUDA or its threads at once.

- Its own devices, and no others.
- A number of threads for numeric libraries: its share of the cores, unless the user chose one.
- Nothing that would make it a member of somebody else's process group. Where the orchestrator was
  started by torchrun, srun or mpirun, their variables name its own rank. A library in a worker that
  read them would wait for peers that never come, or take another's place.

Called by `launch`.
"""

from __future__ import annotations

from collections.abc import Mapping

from gpuspool.orchestrator.plan.devices import BY_BUS, ORDER, ROCR

# How many threads numeric libraries start: OpenMP, and through it torch, MKL, OpenBLAS and numexpr.
THREADS = "OMP_NUM_THREADS"

# Variables that make a process the member of a group: of torchrun and whoever follows it, of
# TensorFlow, JAX and Paddle, and of the ways to start MPI.
GROUP = frozenset(
    (
        "RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME",
        "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE",
        "MASTER_ADDR", "MASTER_PORT",
        "TF_CONFIG",
        "JAX_COORDINATOR_ADDRESS", "JAX_PROCESS_ID", "JAX_NUM_PROCESSES",
        "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_GTIDS", "SLURM_TASK_PID",
        "SLURM_NTASKS", "SLURM_NPROCS", "SLURM_NTASKS_PER_NODE", "SLURM_TASKS_PER_NODE",
        "SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE",
        "MPI_LOCALRANKID", "MPI_LOCALNRANKS", "MPI_RANK",
        "ALPS_APP_PE", "PALS_RANKID", "PALS_LOCAL_RANKID", "PALS_NODEID",
        "FLUX_TASK_RANK", "FLUX_TASK_LOCAL_ID",
    )
)  # fmt: skip

# The beginnings of such variables, where there are many of a kind.
GROUP_PREFIXES = (
    "TORCHELASTIC_", "OMPI_COMM_WORLD_", "OMPI_MCA_orte_", "OMPI_MCA_ess", "PMIX_", "PMI_", "PMI2_",
    "MV2_COMM_WORLD_", "JSM_NAMESPACE_", "HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_LOCAL_",
    "HOROVOD_CROSS_", "HOROVOD_GLOO_", "PADDLE_TRAINER", "DMLC_",
)  # fmt: skip


def group_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Those that would make a worker believe that it belongs to somebody else's process group."""
    return {
        name: value
        for name, value in environment.items()
        if name in GROUP or name.startswith(GROUP_PREFIXES)
    }


def environment_for(device: str, cores: int, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that a rank is given besides those that its orchestrator has.

    device: what the rank may see. cores: its share of the cores. environment: what the orchestrator
    inherited.
    """
    changed = {"CUDA_VISIBLE_DEVICES": device, "PYTHONUNBUFFERED": "1"}
    # On a rank with devices AMD's runtime goes on to count within this variable. On the CPU it must
    # not show any.
    if ROCR in environment and not device:
        changed[ROCR] = device
    if "HIP_VISIBLE_DEVICES" in environment:
        changed["HIP_VISIBLE_DEVICES"] = device
    if device.replace(",", "").isdigit() and ORDER not in environment:
        # By default CUDA numbers devices by their speed, while nvidia-smi and schedulers number
        # them by their place on the bus.
        changed[ORDER] = BY_BUS
    if THREADS not in environment:
        changed[THREADS] = str(max(1, cores))
    return changed
