"""The torture suite: rows of faults, each played many times, judged by an independent checker.

The checker shares no code with gpuspool. `cd tests && python -m torture` runs the suite;
`torture/rows.py` says what a row is, `torture/checker.py` what is counted.
"""
