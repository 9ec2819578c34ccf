"""Before anything runs: the job, its inputs, options and devices, and the spool that holds them."""
