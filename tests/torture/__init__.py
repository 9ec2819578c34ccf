"""The torture suite: rows of faults, each played many times, and judged by a checker that shares no
code with gpuspool.

`cd tests && python -m torture` runs it; `torture/rows.py` says what a row is, `torture/checker.py`
what is counted.
"""
