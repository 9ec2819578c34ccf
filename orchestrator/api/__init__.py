"""The Python API: what `gpuspool` exports, and what the command line calls.

runs       run, resume, retry and drain: start a run, go on with it, stop it
reading    status, wait, results, failed, logs, verify and doctor: look and change nothing
opening    a spool for a request: the one that is there, or a new one
epoch      one start of a run, from the lock to the report
report     `Report`: how a start of a run ended

This file imports none of them, so that looking at a spool does not load what runs one.
"""
