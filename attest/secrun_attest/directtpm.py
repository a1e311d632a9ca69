"""A TPM spoken to without tpm2-tss: what the event log needs on the start path of a pod.

Importing tpm2_pytss costs 130 ms of CPU, about what `secrun run` may spend in all before stage1 begins. The
log needs four commands without keys or secrets, which the standard library sends for less than one.
"""

import os
import stat
import struct
import time
from collections.abc import Mapping

from secrun_attest import tpmcommands
from secrun_attest.errors import FormatError, TpmError, TpmTransportError
from secrun_attest.record import BANK_OF_ID, Bank
from secrun_attest.tpm import TpmClock

# Longer than a slow TPM takes for one of these commands and a neighbour of it for a quote.
ANSWER_SECONDS = 20.0

# A TPM under self-test or NV pressure is back within two seconds: 20 ms, doubled each time, 2.5 s in all.
_ATTEMPTS = 8
_FIRST_PAUSE = 0.02


class DirectTpm:
    """The TPM at `tcti`: `device:/dev/tpmrm0`, or `swtpm:path=SOCKET` for swtpm's own socket.

    Implements `secrun_attest.tpm.Tpm`; raises TpmError also if `tcti` is of no such form. The connection is
    opened at first use and kept until `close`. swtpm serves one connection at a time: while this one is open
    others wait, and this one waits for them, at most `seconds`. Not for several threads.
    """

    def __init__(self, tcti: str, *, seconds: float = ANSWER_SECONDS) -> None:
        kind, _, rest = tcti.partition(":")
        path = rest.removeprefix("path=") if kind == "swtpm" and rest.startswith("path=") else ""
        path = rest if kind == "device" else path
        if not path.startswith("/"):
            raise TpmError(
                f"TCTI {tcti!r} names no TPM",
                hint="expected device:/dev/tpmrm0 or swtpm:path=/path/of/socket",
                code="tpm-tcti",
            )
        self.tcti = tcti
        self._path = path
        self._is_device = kind == "device"
        self._seconds = seconds
        self._line: _Device | _Socket | None = None
        self._banks: dict[int, tuple[Bank, ...]] = {}

    def clock(self) -> TpmClock:
        """Return the counters that name the boot epoch; raises TpmError and TpmTransportError."""
        parameters = self._run("ReadClock", tpmcommands.read_clock())
        try:
            return tpmcommands.parse_clock(parameters)
        except FormatError as error:
            raise self._lost("ReadClock", error.message) from error

    def read_pcr(self, pcr: int) -> dict[Bank, bytes]:
        """Return the PCR's value in every allocated bank.

        Raises TpmError for a bank that Bank lacks or if there is none, and as `clock` does.
        """
        banks = self._allocated(pcr)
        parameters = self._run("PCR_Read", tpmcommands.pcr_read(pcr, banks))
        try:
            return tpmcommands.parse_pcr_values(parameters, pcr, banks)
        except FormatError as error:
            raise self._lost("PCR_Read", error.message) from error

    def extend(self, pcr: int, digests: Mapping[Bank, bytes]) -> None:
        """Extend all banks in one command; raises as `clock` does."""
        parameters = self._run("PCR_Extend", tpmcommands.pcr_extend(pcr, digests))
        if parameters:
            raise self._lost("PCR_Extend", f"{len(parameters)} bytes of parameters, expected none")

    def close(self) -> None:
        """Give the connection back; the next command opens another."""
        line, self._line = self._line, None
        # The allocation changes only while the TPM starts anew, which no connection to swtpm outlives.
        self._banks.clear()
        if line is not None:
            line.close()

    def _allocated(self, pcr: int) -> tuple[Bank, ...]:
        if pcr not in self._banks:
            parameters = self._run("GetCapability", tpmcommands.get_banks())
            try:
                found = tpmcommands.parse_banks(parameters, pcr)
            except FormatError as error:
                raise self._lost("GetCapability", error.message) from error
            if not found or (unknown := set(found) - BANK_OF_ID.keys()):
                got = ", ".join(f"{alg:#06x}" for alg in sorted(unknown)) if found else "no bank"
                what = f"PCR {pcr} of the TPM at {self.tcti} is allocated in {got}"
                raise TpmError(
                    f"{what}, expected banks of {'+'.join(Bank)}",
                    hint="choose its banks with tpm2_pcrallocate, then reboot",
                    code="tpm-banks",
                )
            self._banks[pcr] = tuple(BANK_OF_ID[alg] for alg in found)
        return self._banks[pcr]

    def _run(self, name: str, command: bytes) -> bytes:
        """Run one command, again if the TPM asks for that; return its parameters."""
        pause = _FIRST_PAUSE
        for attempt in range(_ATTEMPTS):
            code, parameters = self._transmit(name, command)
            if code == 0:
                return parameters
            if code not in tpmcommands.AGAIN or attempt == _ATTEMPTS - 1:
                break
            time.sleep(pause)
            pause *= 2
        if code == tpmcommands.FAILURE:
            raise self._lost(name, "the TPM is in failure mode")
        raise TpmError(f"the TPM at {self.tcti} refused {name}: {tpmcommands.describe(code)}")

    def _transmit(self, name: str, command: bytes) -> tuple[int, bytes]:
        try:
            answer = tpmcommands.parse_reply(command, self._connected().exchange(command))
        except FormatError as error:
            raise self._lost(name, error.message) from error
        except (TimeoutError, BlockingIOError) as error:
            raise self._lost(name, f"no answer within {self._seconds:g} s") from error
        except OSError as error:
            raise self._lost(name, error.strerror or str(error)) from error
        except BaseException:  # an interrupt; the answer is on its way and would be the next command's
            self.close()
            raise
        return answer

    def _connected(self) -> "_Device | _Socket":
        if self._line is None:
            self._line = _Device(self._path) if self._is_device else _Socket(self._path, self._seconds)
        return self._line

    def _lost(self, name: str, why: str) -> TpmTransportError:
        """Give up the connection: what comes next on it may be the answer to this command."""
        self.close()
        return TpmTransportError(
            f"{name} of the TPM at {self.tcti} failed: {why}",
            hint="see that it is there, and that no other program keeps it",
        )


class _Device:
    """The kernel's device. Its driver bounds how long a command takes."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY)
        if not stat.S_ISCHR(os.fstat(self._fd).st_mode):
            self.close()
            raise OSError("it is not a character device")

    def exchange(self, command: bytes) -> bytes:
        # One write is one command, one read its reply: the driver takes and gives them whole.
        sent = os.write(self._fd, command)
        if sent != len(command):
            raise OSError(f"it took {sent} of {len(command)} bytes")
        return os.read(self._fd, tpmcommands.MAX_REPLY)

    def close(self) -> None:
        os.close(self._fd)


class _Socket:
    """swtpm's own socket, on which commands and replies follow each other without a frame."""

    def __init__(self, path: str, seconds: float) -> None:
        # `socket` wraps this module in classes and enumerations, which takes 3 ms to import.
        import _socket

        self._seconds = seconds
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        try:
            # Where many wait, a socket that must not block is turned away at once; this one waits its turn.
            wait = struct.pack("@ll", int(seconds), int(seconds % 1 * 1_000_000))
            self._socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDTIMEO, wait)
            self._socket.connect(path)
            # While another connection is served, what is sent here waits, and would be done even after this
            # side has given up. Let that be a question, never an extend.
            self.exchange(tpmcommands.read_clock())
        except BaseException:
            self.close()
            raise

    def exchange(self, command: bytes) -> bytes:
        deadline = time.monotonic() + self._seconds
        self._socket.settimeout(self._seconds)
        self._socket.sendall(command)
        header = self._receive(tpmcommands.HEADER_SIZE, deadline)
        return header + self._receive(tpmcommands.reply_size(header) - len(header), deadline)

    def _receive(self, size: int, deadline: float) -> bytes:
        data = b""
        while len(data) < size:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            part = self._socket.recv(size - len(data))
            if not part:
                raise OSError("it ended the connection")
            data += part
        return data

    def close(self) -> None:
        self._socket.close()
