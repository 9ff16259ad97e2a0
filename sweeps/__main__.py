"""The program `sweeps`; also `python -m sweeps`."""

import sys


def main() -> None:
    """`sweeps.cli.main`, whose imports take seconds: a Ctrl-C in these is told in one line too."""
    try:
        from sweeps.cli import run_and_exit as run
    except KeyboardInterrupt:
        print("sweeps: interrupted", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
