"""What became of a run, read from its files. Nothing here writes."""
