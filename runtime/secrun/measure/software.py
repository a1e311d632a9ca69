"""The software TPM of a root: made, started and found again by secrun; it outlives who started it.

Only for hosts without a TPM. Its PCRs begin anew with each of its starts, which is a boot epoch of its own;
its state, and so the attestation key, stays in `--root`.
"""

import hashlib
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from secrun.errors import ExternalError, HostError
from secrun.launch import run
from secrun.locks import held
from secrun.paths import Layout
from secrun.stage1 import cgroups

PROGRAM = "swtpm"
_SOCKET = "sock"
# swtpm opens its files well within a second; two busy cores deserve patience.
_START_SECONDS = 20.0
_STOP_SECONDS = 10.0
# unix(7): sun_path has 108 bytes, the last of which ends the string; the control socket has four more.
_MAX_PATH = 107 - len(".ctrl")


def tcti(layout: Layout) -> str:
    """Return how tpm2-tools and the TSS name this TPM."""
    return f"swtpm:path={_socket(layout)}"


def _socket(layout: Layout) -> Path:
    return layout.tpm_run / _SOCKET


def _server(layout: Layout) -> str:
    return f"type=unixio,path={_socket(layout)},mode=0600"


def _pid_file(layout: Layout) -> Path:
    return layout.tpm_run / "pid"


def _answers(path: Path) -> bool:
    """Tell whether somebody listens on the socket."""
    import socket

    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.connect(os.fspath(path))
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    finally:
        probe.close()
    return True


def running_pid(layout: Layout) -> int | None:
    """Return the process id of this root's software TPM if it runs."""
    try:
        pid = int(_pid_file(layout).read_text())
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return None
    ours = os.fsencode(_server(layout))
    return pid if ours in words else None


def ensure_running(layout: Layout) -> None:
    """Start the software TPM unless it runs; raises HostError if it cannot.

    One that runs but does not answer is left alone: whoever asks it says so, and two on one state are worse.
    """
    if running_pid(layout) is not None:
        return
    with held(layout.locks / "tpm"):
        if running_pid(layout) is None:
            _start(layout)


def _start(layout: Layout) -> None:
    path = _socket(layout)
    if len(os.fsencode(path)) > _MAX_PATH or "," in f"{path}{layout.tpm}":
        raise HostError(
            f"{path} cannot be the place of a socket: it is longer than {_MAX_PATH} bytes or has a comma",
            hint="choose a shorter --run-root",
            code="host-tpm-software",
        )
    for folder in (layout.tpm, layout.tpm_run):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for left in (path, path.with_name(f"{_SOCKET}.ctrl"), _pid_file(layout)):
        left.unlink(missing_ok=True)
    words = [PROGRAM, "socket", "--tpm2", "--tpmstate", f"dir={layout.tpm},mode=0600"]
    words += ["--server", _server(layout)]
    words += ["--ctrl", f"type=unixio,path={path}.ctrl,mode=0600", "--pid", f"file={_pid_file(layout)}"]
    try:
        run([*words, "--flags", "not-need-init,startup-clear", "--daemon"], timeout=_START_SECONDS)
    except ExternalError as error:
        raise HostError(
            f"the software TPM of {layout.root} does not start: {error.message}", code="host-tpm-software"
        ) from error
    _leave_callers_group(layout)
    deadline = time.monotonic() + _START_SECONDS
    while not _answers(path):
        if time.monotonic() > deadline:
            raise HostError(
                f"the software TPM does not listen on {path} after {_START_SECONDS:.0f} s",
                code="host-tpm-software",
            )
        time.sleep(0.005)


def _group(layout: Layout) -> Path:
    """Return the control group that keeps the TPM from ending with the service that started it."""
    name = hashlib.sha256(os.fsencode(layout.root)).hexdigest()[:12]
    return cgroups.host().mount / cgroups.PARENT / f"tpm-{name}"


def _leave_callers_group(layout: Layout) -> None:
    group = _group(layout)
    group.mkdir(parents=True, exist_ok=True)
    (group / "cgroup.procs").write_text(_pid_file(layout).read_text())


def stop(layout: Layout) -> bool:
    """End the software TPM; return whether it ran. What it measured ends with it, its keys do not."""
    with held(layout.locks / "tpm"):
        pid = running_pid(layout)
        if pid is None:
            return False
        # A process descriptor cannot be reused, as a number can.
        process = os.pidfd_open(pid)
        try:
            if running_pid(layout) == pid:
                signal.pidfd_send_signal(process, signal.SIGTERM)
            _await_end(process, pid)
        finally:
            os.close(process)
        for left in (_socket(layout), _pid_file(layout)):
            left.unlink(missing_ok=True)
        cgroups.destroy(_group(layout))
        return True


def _await_end(process: int, pid: int) -> None:
    import select

    poll = select.poll()
    poll.register(process, select.POLLIN)
    if not poll.poll(_STOP_SECONDS * 1000):
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, signal.SIGKILL)
        if not poll.poll(_STOP_SECONDS * 1000):
            raise HostError(f"the software TPM, process {pid}, does not end", code="host-tpm-software")
