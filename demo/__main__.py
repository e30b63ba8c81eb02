"""`python -m demo`: shows the demo (see `show`); an interrupt is one line even while torch is imported."""

import sys


def run() -> int:
    """The exit status of the demo."""
    try:
        from demo.show import main

        return main()
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(run())
