"""gpuspool and its peers, measured side by side: `python -m benchmarks` from the repository's root."""
