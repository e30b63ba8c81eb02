"""`python -m edgeprism`: the same as the command `edgeprism`."""

from edgeprism.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
