"""The on-disk protocol of gpuspool: names, records, publication, claims, closing. See
docs/spool-format.md.
"""

__version__ = "0.1.0"
