"""What Slurm itself says of the job that this process runs in.

The environment tells the job's id. All else is asked, since variables may be those of another job,
from inside of which this one was submitted. To have that one started again would be bad.
"""

from __future__ import annotations

import msgspec

from gpuspool.orchestrator.slurm.commands import ask

# The job's id, which each element of an array has for itself; the array's id and the element's
# index in it; the time that is left.
_FORMAT = "%A|%F|%K|%L"


class OwnJob(msgspec.Struct, frozen=True):
    """One job, as squeue shows it.

    key: how it is named to Slurm: "12", or "12_3" for one element of an array; without the index
    all of its elements would be meant. time_left: as Slurm writes it.
    """

    key: str
    time_left: str


def ask_of_own_job(job_id: str) -> OwnJob | str:
    """What squeue says of the job with this id, or in words why it says nothing."""
    answer = ask(["squeue", "-h", "-j", job_id, "-o", _FORMAT])
    if answer.trouble:
        return answer.trouble
    return own_job_in(answer.out, job_id) or f"squeue does not list job {job_id}"


def own_job_in(out: str, job_id: str) -> OwnJob | None:
    """The row of the job with this id; None where there is none.

    An array goes by the id of one of its elements. Asked for that one, squeue lists all.
    """
    for line in out.splitlines():
        fields = [field.strip() for field in line.split("|")]
        if len(fields) == 4 and fields[0] == job_id:
            _, array, index, time_left = fields
            key = f"{array}_{index}" if index.isdigit() else job_id
            return OwnJob(key, time_left)
    return None
