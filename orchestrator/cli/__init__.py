"""The command line. `main` is the entry point, `verbs` has one function for each verb, `options`
what several verbs share; `streams` sees to it that what is printed arrives.

Only these modules import click. Each verb is thin: it parses, calls the Python API, prints, and
ends with the exit code that docs/options.md promises. Data goes to stdout, messages to stderr.
"""

import gc

# Imports make many objects, and all of them stay. By default the collector would look through them
# again and again, which takes 3 of the 100 ms until a run begins. What a command makes afterwards
# has hardly a cycle, so a look for each so many new objects is enough.
gc.set_threshold(100_000)
