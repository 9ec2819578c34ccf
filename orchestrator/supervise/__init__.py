"""While a run goes on: the loop that starts, watches and ends workers."""
