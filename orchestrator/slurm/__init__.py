"""Slurm: what it says of the job that this process runs in, and what it is asked to do."""
