"""The files that a cluster of cluster.py is configured by."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

LOOPBACK = "127.0.0.1"
# A job that is queued again may start once its old credentials have expired, in seconds. Slurm's
# own default is 120. One that expires before a busy node has looked at it starts no job.
CREDENTIALS_EXPIRE_S = 5

# slurm.conf, without what depends on the machine and the folder.
SETTINGS = {
    "ClusterName": "tests",
    "SlurmUser": "root",
    "SlurmdUser": "root",
    "AuthType": "auth/munge",
    "CredType": "cred/munge",
    # No cgroups: they are not to be had everywhere. So nothing confines a task, and
    # CUDA_VISIBLE_DEVICES holds the numbers that its GPUs have on the node.
    "ProctrackType": "proctrack/linuxproc",
    "TaskPlugin": "task/none",
    "JobAcctGatherType": "jobacct_gather/none",
    "AccountingStorageType": "accounting_storage/none",
    "JobCompType": "jobcomp/none",
    "SwitchType": "switch/none",
    "MpiDefault": "none",
    "MailProg": "/bin/true",
    "GresTypes": "gpu",
    "SelectType": "select/cons_tres",
    "SelectTypeParameters": "CR_Core",
    # Nodes may claim to have more cores and memory than this machine has.
    "SlurmdParameters": "config_overrides",
    # Jobs start as soon as they can.
    "SchedulerType": "sched/backfill",
    "SchedulerParameters": "batch_sched_delay=0,sched_interval=1,bf_interval=1",
    # A node that was down serves again as soon as it comes back.
    "ReturnToService": "2",
    # A busy machine must not have its nodes declared down, nor its jobs declared lost.
    "SlurmdTimeout": "300",
    "BatchStartTimeout": "60",
    # Seconds between SIGTERM and SIGKILL at the time limit. Slurm's own default is 30.
    "KillWait": "8",
}


def write_configuration(
    folder: Path, nodes: Sequence[str], gpus: int, ports: int, settings: Mapping[str, str]
) -> None:
    """Write slurm.conf, gres.conf, and what nodes have in /etc.

    gpus: how many each node has. ports: the first of those that the cluster may use. settings:
    lines of slurm.conf that are to be different.
    """
    conf = folder / "slurm.conf"
    _write(conf, _slurm_conf(folder, nodes, gpus, ports, settings))
    # Daemons listen on the address that the name of their host leads to, which is the loopback to
    # them. To the commands, the name of the login node may lead anywhere.
    listening = "CommunicationParameters=NoInAddrAny,NoCtldInAddrAny"
    _write(folder / "daemons.conf", [f"Include {conf}", listening])
    # The first line with a name counts.
    names = " ".join(["localhost", os.uname().nodename, *nodes])
    _write(folder / "hosts", [f"{LOOPBACK} {names}", Path("/etc/hosts").read_text()])
    for node in nodes:
        _write(folder / "run" / f"{node}.machine-id", [uuid.uuid4().hex])
    devices = []
    for gpu in range(gpus):
        # Slurm drops a GPU without a device file.
        device = folder / "gpus" / f"gpu{gpu}"
        device.symlink_to("/dev/null")
        devices.append(f"Name=gpu File={device}")
    _write(folder / "gres.conf", [f"NodeName={node} {gpu}" for node in nodes for gpu in devices])


def _slurm_conf(
    folder: Path, nodes: Sequence[str], gpus: int, ports: int, settings: Mapping[str, str]
) -> list[str]:
    own = {
        "SlurmctldHost": f"{os.uname().nodename}({LOOPBACK})",
        "SlurmctldPort": str(ports),
        "AuthInfo": f"socket={folder}/munge.sock,cred_expire={CREDENTIALS_EXPIRE_S}",
        "StateSaveLocation": f"{folder}/state",
        "SlurmdSpoolDir": f"{folder}/%n",
        "SlurmctldPidFile": f"{folder}/run/slurmctld",
        "SlurmdPidFile": f"{folder}/run/%n",
    }
    lines = [f"{name}={value}" for name, value in {**SETTINGS, **own, **settings}.items()]
    for port, node in enumerate(nodes, ports + 1):
        where = f"NodeName={node} NodeHostname={node} NodeAddr={LOOPBACK} Port={port}"
        lines.append(f"{where} CPUs=64 RealMemory=64000 Gres=gpu:{gpus}")
    return [
        *lines,
        f"NodeName=c1 NodeAddr={LOOPBACK} State=DOWN Reason=never-there",
        f"PartitionName=main Nodes={','.join(nodes)} Default=YES MaxTime=INFINITE",
        "PartitionName=cpu Nodes=c1 MaxTime=INFINITE",
    ]


def _write(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines))
