"""Entry point of `secrun` and of `python -m secrun`."""

import gc
import sys

# Most commands end before their garbage matters; the default of 700 has them look for it fifty times.
_COLLECT_AFTER = 50_000


def main() -> int:
    """Run the command line and return its exit status."""
    if sys.argv[1:] == ["--version"]:
        # Scripts ask this often; the answer needs no parser.
        from secrun import __version__

        sys.stdout.write(f"secrun {__version__}\n")
        return 0
    gc.set_threshold(_COLLECT_AFTER)
    from secrun.cli.main import main as run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
