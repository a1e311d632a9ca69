"""A real software TPM: started, stopped, and taken through every way in which a machine loses its power."""

import os
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from secrun_attest.record import Bank
from secrun_attest.tss import Tss
from support.waiting import wait_until

# The control channel's command for the TPM's power button, and its answer for success (swtpm's tpm_ioctl.h).
CMD_INIT = 2
SUCCESS = bytes(4)


class Swtpm:
    """One swtpm with its state in `folder`. It is started by `start`, and power is on from then."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "socket"
        self.control = folder / "socket.ctrl"
        self.tcti = f"swtpm:path={self.socket}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, startup: bool = True) -> None:
        words = ["--server", f"type=unixio,path={self.socket}"]
        words += ["--flags", "not-need-init,startup-clear" if startup else "not-need-init"]
        self._serve(words, self.socket, self.control)

    def start_as_chip(self) -> None:
        """Start it for QEMU, which powers it and hands it a way for commands over the control channel.

        It ends with QEMU.
        """
        self._serve([], self.control)

    def _serve(self, words: list[str], *sockets: Path) -> None:
        self.folder.mkdir(exist_ok=True)
        for path in (self.socket, self.control):
            path.unlink(missing_ok=True)
        state = ["--tpm2", "--tpmstate", f"dir={self.folder}", "--ctrl", f"type=unixio,path={self.control}"]
        state += ["--log", f"file={self.folder / 'swtpm.log'}"]
        self.process = subprocess.Popen(["swtpm", "socket", *state, *words])
        # A socket has its name before anybody listens on it.
        wait_until(lambda: self.process.poll() is not None or _answers(*sockets))
        assert self.process.poll() is None, (self.folder / "swtpm.log").read_text()

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash does: what it had not stored is lost."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(60)
            self.process = None

    def tss(self) -> Tss:
        return Tss(self.tcti)

    def _initialise(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
            channel.settimeout(60)
            channel.connect(os.fspath(self.control))
            channel.sendall(struct.pack(">II", CMD_INIT, 0))
            assert channel.recv(4) == SUCCESS

    def _power(self, *, goodbye: bool | None, clear: bool) -> None:
        if goodbye is not None:
            with self.tss() as tss:
                tss.shutdown(clear=goodbye)
        self._initialise()
        with self.tss() as tss:
            tss.startup(clear=clear)

    # The rows of the table of reboots.

    def resume(self) -> None:
        """Sleep and wake: the PCRs are kept."""
        self._power(goodbye=False, clear=False)

    def restart(self) -> None:
        """Sleep, but come back as from a reboot: the PCRs are lost, the reset count is not raised."""
        self._power(goodbye=False, clear=True)

    def reset(self) -> None:
        """Reboot in good order."""
        self._power(goodbye=True, clear=True)

    def power_cut(self) -> None:
        """Lose power without a word to the TPM."""
        self._power(goodbye=None, clear=True)

    def tool(self, *words: str | Path) -> str:
        """Run one of tpm2-tools on this TPM and return what it prints."""
        environment = os.environ | {"TPM2TOOLS_TCTI": self.tcti, "TSS2_LOG": "all+none"}
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout


def manufacture(folder: Path, *, banks: tuple[Bank, ...] = tuple(Bank), certificates: bool = False) -> Swtpm:
    """Make a TPM as its maker does, with `banks` allocated; with endorsement certificates if asked."""
    folder.mkdir()
    words = ["--tpm2", "--tpmstate", folder, "--pcr-banks", ",".join(banks), "--not-overwrite"]
    if certificates:
        words += ["--create-ek-cert", "--config", _maker(folder / "ca"), "--vmid", folder.name]
    done = subprocess.run(["swtpm_setup", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return Swtpm(folder)


def _maker(folder: Path) -> Path:
    folder.mkdir()
    ca = {"statedir": folder, "signingkey": folder / "key.pem", "issuercert": folder / "cert.pem"}
    ca["certserial"] = folder / "serial"
    settings, options, config = folder / "localca.conf", folder / "localca.options", folder / "setup.conf"
    settings.write_text("".join(f"{name} = {value}\n" for name, value in ca.items()))
    options.write_text("--platform-manufacturer test\n--platform-version 1\n--platform-model test\n")
    tool = {"create_certs_tool": shutil.which("swtpm_localca"), "create_certs_tool_config": settings}
    tool["create_certs_tool_options"] = options
    config.write_text("".join(f"{name} = {value}\n" for name, value in tool.items()))
    return config


def _answers(*paths: Path) -> bool:
    for path in paths:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
            if channel.connect_ex(os.fspath(path)) != 0:
                return False
    return True


@contextmanager
def running(tpm: Swtpm) -> Iterator[Swtpm]:
    """Start a TPM; it is gone at the end."""
    tpm.start()
    try:
        yield tpm
    finally:
        tpm.stop()
