"""The results of a run as a file for other programs. Nothing here writes to a spool."""
