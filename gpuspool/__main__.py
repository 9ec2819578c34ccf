"""`python -m gpuspool` is the command `gpuspool`."""

from gpuspool.orchestrator.cli.main import main

if __name__ == "__main__":
    main()
