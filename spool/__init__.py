"""The protocol of gpuspool: what stands in a spool directory, and how it gets there.

docs/spool-format.md is the contract. Which module to open for what, from the bottom up; a module
imports only from those above its own line:

states, errors, exits       the names of all states; the errors and their exit codes
layout, records             every file name; every record
codec, values               records and values as bytes
publish                     files that appear in one atomic step
identity, processes, oom    which process is meant and whether it is dead here; what it started;
                            whether the kernel killed it for want of memory
beats, parents              who lives, by the names in one folder; who starts attempts of a run
manifest, claims, journal   the three kinds of files that tasks stand in
ledger                      verdicts, from what was read
view                        one reading of a whole spool; start here to look at a run
liveness, death, blame      whether an attempt lives, how it died, what that does to its tasks
closing, sweep, mending     how nothing is lost: the writing that follows from a death
"""

__version__ = "0.2.0"
