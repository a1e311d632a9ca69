"""Entry point of `secrun` and of `python -m secrun`."""

import sys


def main() -> int:
    """Run the command line and return its exit status."""
    from secrun.cli.main import main as run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
