"""Entry point of `secrun` and of `python -m secrun`."""

import gc
import os
import sys

# Most commands end before their garbage matters; the default of 700 has them look for it fifty times.
_COLLECT_AFTER = 50_000


def _open_missing_streams() -> None:
    """Put /dev/null where the caller closed a standard stream: else the next file opened is taken for it."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            setattr(sys, name, os.fdopen(number, "r" if name == "stdin" else "w"))


def main() -> int:
    """Run the command line and return its exit status."""
    _open_missing_streams()
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
