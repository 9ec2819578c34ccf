"""The command line. `main` is the entry point, `verbs` has one function for each verb, `options`
what several verbs share.

Only these modules import click. Each verb is thin: it parses, calls the Python API, prints, and
ends with the exit code that docs/options.md promises. Data goes to stdout, messages to stderr.
"""
