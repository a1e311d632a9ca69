"""Entry point of `secrun` and of `python -m secrun`."""

import sys


def main() -> int:
    """Run the command line and return its exit status."""
    if sys.argv[1:] == ["--version"]:
        # Scripts ask this often; the answer needs no parser.
        from secrun import __version__

        sys.stdout.write(f"secrun {__version__}\n")
        return 0
    from secrun.cli.main import main as run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
