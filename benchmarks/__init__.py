"""gpuspool and its peers, measured side by side.

Start it with `python -m benchmarks` in the root of the repository.
"""
