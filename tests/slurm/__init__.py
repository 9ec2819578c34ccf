"""A real Slurm on this machine, for tests: `cluster.py` says what it is."""
