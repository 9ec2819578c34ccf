"""Before anything runs: the job, its inputs, the devices, and the spool that holds them."""
