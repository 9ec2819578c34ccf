"""A finished or running spool as one file to hand on: a page, a trace, a list of jobs."""
