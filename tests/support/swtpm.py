"""A software TPM of a test's own."""

import os
import socket
import subprocess
from pathlib import Path

from support.waiting import wait_until


class Swtpm:
    """swtpm with its state in `folder`; each `start` is a boot."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.socket = folder / "socket"
        self.tcti = f"swtpm:path={self.socket}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self.socket.unlink(missing_ok=True)
        words = ["--tpm2", "--tpmstate", f"dir={self.folder}", "--flags", "not-need-init,startup-clear"]
        words += ["--server", f"type=unixio,path={self.socket}"]
        words += ["--ctrl", f"type=unixio,path={self.socket}.ctrl"]
        self.process = subprocess.Popen(["swtpm", "socket", *words])
        wait_until(self._listens)

    def _listens(self) -> bool:
        """Tell whether it answers; its socket is there a moment before."""
        assert self.process.poll() is None, "swtpm did not start"
        with socket.socket(socket.AF_UNIX) as line:
            return line.connect_ex(str(self.socket)) == 0

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(20)
            self.process = None

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(20)
            self.process = None

    def tool(self, *words: str) -> str:
        """Run one of tpm2-tools on it; the connection of every other client must be closed."""
        environment = os.environ | {"TPM2TOOLS_TCTI": self.tcti, "TSS2_LOG": "all+none"}
        done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment, timeout=60)
        return done.stdout
