"""A shell in the test machine: Debian 12 that enforces SELinux, with systemd, a TPM and this secrun.

It boots in half a minute, emulated; `exit` switches it off, and nothing of it is kept. In it are the image
oci:/opt/secrun-test/images:busybox and, in /opt/secrun-test, the checks of tests/vmhost:
`python3 -m vmhost.guest NAME` runs one.
"""

import os
import sys
import tempfile
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP / "tests"))

from support import swtpm, vm  # noqa: E402 - the workshop lies beside the tests that use it


def main() -> int:
    """Make the machine if there is none yet, and boot it on this terminal."""
    if os.geteuid() != 0:
        print("make vmhost: making the machine needs root", file=sys.stderr)
        return 1
    machine = vm.build(TOP)
    with tempfile.TemporaryDirectory(prefix="vmhost-") as scratch:
        folder = Path(scratch)
        given = vm.Boot(
            disk=vm.disk_copy(machine, folder / "disk"),
            payload=vm.payload(TOP, TOP / "tests/vmhost", folder / "payload.tar"),
            tpm=swtpm.manufacture(folder / "tpm", certificates=True),
            words=(vm.SHELL_WORD, "secrun.boot=first", f"secrun.nonce={'00' * 32}"),
        )
        vm.shell(machine, given)
    return 0


if __name__ == "__main__":
    sys.exit(main())
