"""A software TPM as its maker delivers it, driven by tpm2-tools."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from secrun_attest.record import Bank
from support.waiting import wait_until


class Swtpm:
    """One swtpm with its state in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tcti = f"swtpm:path={folder / 'socket'}"

    def tool(self, *words: str | Path) -> str:
        """Run one of tpm2-tools on this TPM and return what it prints."""
        environment = os.environ | {"TPM2TOOLS_TCTI": self.tcti, "TSS2_LOG": "all+none"}
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout


def manufacture(folder: Path, *, certificates: bool = False) -> Swtpm:
    """Make a TPM with all banks; with endorsement certificates of a maker in `folder`/ca if asked."""
    folder.mkdir()
    words: list[str | Path] = [
        "--tpm2",
        "--tpmstate",
        folder,
        "--pcr-banks",
        ",".join(Bank),
        "--not-overwrite",
    ]
    if certificates:
        words += ["--create-ek-cert", "--config", _maker(folder / "ca"), "--vmid", folder.name]
    done = subprocess.run(["swtpm_setup", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return Swtpm(folder)


def _maker(folder: Path) -> Path:
    folder.mkdir()
    (folder / "localca.conf").write_text(
        f"statedir = {folder}\nsigningkey = {folder}/key.pem\nissuercert = {folder}/cert.pem\n"
        f"certserial = {folder}/serial\n"
    )
    (folder / "localca.options").write_text(
        "--platform-manufacturer test\n--platform-version 1\n--platform-model test\n"
    )
    config = folder / "setup.conf"
    config.write_text(
        "create_certs_tool = /usr/bin/swtpm_localca\n"
        f"create_certs_tool_config = {folder}/localca.conf\n"
        f"create_certs_tool_options = {folder}/localca.options\n"
    )
    return config


@contextmanager
def running(tpm: Swtpm) -> Iterator[Swtpm]:
    """Start a TPM; it is gone at the end."""
    folder = tpm.folder
    state = ["--tpm2", "--tpmstate", f"dir={folder}", "--flags", "startup-clear"]
    sockets = [
        "--server",
        f"type=unixio,path={folder}/socket",
        "--ctrl",
        f"type=unixio,path={folder}/socket.ctrl",
    ]
    with subprocess.Popen(["swtpm", "socket", *state, *sockets]) as process:
        try:
            wait_until((folder / "socket").exists)
            yield tpm
        finally:
            process.terminate()
