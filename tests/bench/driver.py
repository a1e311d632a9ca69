"""Run secrun up to one of its checkpoints and die there: `driver.py CHECKPOINT [--profile] -- ARGUMENT...`.

What the process used until then is what `secrun` itself costs before stage1 starts.
"""

import os
import signal
import sys


def main() -> None:
    """Set the hook, then be secrun."""
    cut = sys.argv.index("--")
    point, options, words = sys.argv[1], sys.argv[2:cut], sys.argv[cut + 1 :]
    profile = None
    if "--profile" in options:
        import cProfile

        profile = cProfile.Profile()
        profile.enable()
    # What follows is what the installed program does first; it belongs to what is measured.
    from secrun.__main__ import main as secrun

    def stop(name: str) -> None:
        if name != point:
            return
        if profile:
            import pstats

            profile.disable()
            pstats.Stats(profile, stream=sys.stdout).strip_dirs().sort_stats("cumulative").print_stats(25)
            sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    from secrun import checkpoint

    checkpoint.hook = stop
    sys.argv = ["secrun", *words]
    sys.exit(secrun())


if __name__ == "__main__":
    main()
