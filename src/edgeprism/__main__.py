"""`python -m edgeprism` and the command `edgeprism`."""

import sys


def main() -> int:
    """Runs one command line; an interrupt is one line even while the first modules are imported."""
    try:
        from edgeprism.cli.main import main as run

        return run()
    except KeyboardInterrupt:
        print("edgeprism: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
