"""The verb that records which system calls a workload makes."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from secrun.cli import finish as finishing
from secrun.cli.attestoptions import measuring
from secrun.cli.pods import pod_request
from secrun.cli.table import Arguments, Context
from secrun.errors import HostError, UsageError
from secrun.files import write_atomic
from secrun.pod import recording
from secrun.pod.prepare import prepared
from secrun.pod.recording import Recorder
from secrun.pod.request import PodRequest
from secrun.pod.start import StartOptions, start
from secrun.pod.states import Folder
from secrun.record import replace
from secrun_policies import recorder
from secrun_policies.errors import PolicyError
from secrun_policies.profiles import choose
from secrun_policies.seccomp import SeccompProfile, parse_profile


def _request(args: Arguments, context: Context) -> PodRequest:
    """Return the pod of one app whose calls are asked about; raises UsageError."""
    if not args.trailing:
        raise UsageError("no image to run", hint="secrun policy record -o FILE -- IMAGE [ARGUMENT ...]")
    app = Arguments({**args.values, "image": args.trailing[0]}, args.trailing[1:])
    pod = pod_request(replace(args, apps=(app,)), context)
    if pod.flavour != "nspawn":
        raise UsageError(
            f"calls cannot be recorded with --stage1={pod.flavour}: the guest's kernel cannot ask this host",
            hint="record under nspawn; the profile holds for both",
        )
    first = pod.apps[0]
    return replace(pod, apps=(replace(first, security=replace(first.security, record=True)),))


def _base(pod: PodRequest) -> SeccompProfile:
    """Return the profile that bounds what can be recorded; raises UsageError."""
    try:
        base = choose(pod.apps[0].security.seccomp or "")
    except PolicyError as error:
        raise UsageError(error.message, hint=error.hint, code=error.code) from error
    if base is None:
        raise UsageError(
            "seccomp=unconfined asks about nothing", hint="record under a profile, e.g. default"
        )
    return base


def _passing_on(child: int) -> Callable[[int, FrameType | None], None]:
    return lambda number, _frame: os.kill(child, number)


def record(args: Arguments, context: Context) -> int:
    """Run the pod, answer for its calls, write the profile; returns the pod's exit code."""
    pod, output = _request(args, context), Path(args.required("output")).absolute()
    base = _base(pod)
    measures = measuring(args, context)
    options = StartOptions(
        finish=lambda locked: finishing.command(locked, remove=True, quiet=False),
        measuring=measures,
        remove=True,
        places=pod.places,
        launched=recording.place,
    )
    with prepared(context.layout, pod, measures) as locked:
        listener = recording.listen(locked)
        child = os.fork()
        if child == 0:
            return start(locked, options)
        # The pod is the child's from now on, and with it the lock, which both hold as one.
        locked.folder = Folder.RUN
    # Keys reach the pod, which is in this terminal's foreground too; it decides when it ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _passing_on(child))
    with listener:
        served = Recorder(listener, recording.name_of)
        status = os.waitstatus_to_exitcode(served.serve(child))
    if not served.was_asked:
        context.warn(f"nothing was recorded, and {output} is not written: no program of the app ever ran")
        return HostError.exit_code if status == 0 else _code(status)
    profile = recorder.tight(base, served.names)
    data = recorder.to_file(profile, f"recorded by secrun policy record from {args.trailing[0]}")
    # What is written is what will be read: it must be understood, and by the same rules.
    parse_profile(data, name=str(output))
    write_atomic(output, data)
    allowed = len(served.names)
    context.err.write(f"secrun: {output}: {allowed} system calls, exit code {status}\n")
    return _code(status)


def _code(status: int) -> int:
    """Return what a shell would say of a child that ended so."""
    return status if status >= 0 else 128 - status
