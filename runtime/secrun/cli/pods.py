"""The verbs that change pods."""

import json
import os
from pathlib import Path

from secrun import checkpoint
from secrun.cli import confinement, lifecycle, uuids
from secrun.cli import finish as finishing
from secrun.cli.attestoptions import measuring
from secrun.cli.guard import each
from secrun.cli.imageoptions import fetch_options
from secrun.cli.netoptions import network_places, network_request
from secrun.cli.table import Arguments, Context
from secrun.errors import StateError, UsageError
from secrun.measure.measuring import Measuring
from secrun.pod import detachkeys, mounts, request, sockets
from secrun.pod.prepare import prepared
from secrun.pod.request import AppRequest, PodRequest, Systemd
from secrun.pod.start import StartOptions, start
from secrun.pod.states import Folder, State, find, lock
from secrun.record import replace
from secrun.stage1.machine import AcceleratorChoice, MachineRequest
from secrun.stage1.secret import Secret


def _entrypoint(text: str | None) -> tuple[str, ...] | None:
    """Parse --entrypoint: a JSON array of words, or one word; empty clears the image's."""
    if text is None:
        return None
    if text.startswith("["):
        try:
            words = json.loads(text)
        except ValueError as error:
            raise UsageError(f"--entrypoint {text[:80]!r} is not JSON: {error}") from error
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise UsageError(f"--entrypoint {text[:80]!r} is not a JSON array of strings")
        return tuple(words)
    return (text,) if text else ()


def _stop_timeout(args: Arguments) -> int:
    value = args.integer("stop_timeout")
    if value is None:
        return request.DEFAULT_STOP_TIMEOUT_SECONDS
    if not 0 <= value <= 86400:
        raise UsageError(f"--stop-timeout {value} is not between 0 and 86400 seconds")
    return value


def _user(args: Arguments) -> str | None:
    """Return USER[:GROUP]; rkt's --group names the group alone."""
    user, group = args.text("user"), args.text("group")
    if group is None:
        return user
    if user is not None and ":" in user:
        raise UsageError(f"--user {user[:80]} names a group, and so does --group {group[:80]}")
    return f"{user or ''}:{group}"


def _secrets(args: Arguments) -> tuple[Secret, ...]:
    words = args.many("secret")
    if not words:
        return ()
    from secrun.pod import secrets

    return secrets.parse_all(request.unicode_text(word, "--secret") for word in words)


def _app(pod: Arguments, args: Arguments, context: Context) -> AppRequest:
    name = args.text("name")
    known = mounts.declared(text for app in pod.apps for text in app.many("volume"))
    mounted = mounts.parse(context.layout, args.many("volume"), args.many("mount"), known)
    asked = confinement.asked(args)
    return AppRequest(
        image=args.required("image"),
        name=request.app_name(name) if name else None,
        args=args.trailing,
        entrypoint=_entrypoint(args.text("entrypoint")),
        env=request.environment(
            args.many("env"), [Path(item) for item in args.many("env_file")], os.environ
        ),
        host_env=request.caller_environment(os.environ) if args.flag("env_host") else {},
        unset_env=args.many("unsetenv"),
        umask=request.umask(args.text("umask")),
        user=_user(args),
        groups=args.many("group_add"),
        workdir=args.text("workdir"),
        read_only=args.flag("read_only"),
        terminal=pod.flag("tty"),
        console_size=request.terminal_size() or request.USUAL_TERMINAL if pod.flag("tty") else None,
        stdin=pod.flag("interactive"),
        volumes=mounted.volumes,
        declared=mounted.declared,
        empty_volumes=mounted.empty_volumes,
        limits=confinement.limits(args),
        security=replace(asked, tmpfs=(*asked.tmpfs, *mounted.tmpfs)),
        stop_timeout_seconds=_stop_timeout(args),
        stop_signal=args.text("stop_signal"),
        labels=request.marks(args.many("label"), "--label"),
        annotations=request.marks(args.many("annotation"), "--annotation"),
        secrets=_secrets(args),
        systemd=Systemd(args.text("systemd") or "false"),
        restart=lifecycle.restart(args.text("restart")),
        health=lifecycle.asked(args),
    )


def _machine(args: Arguments) -> MachineRequest:
    accelerator, storage = args.text("accel"), args.text("storage")
    return MachineRequest(
        accelerator=AcceleratorChoice(accelerator) if accelerator else None,
        storage_bytes=request.storage(storage) if storage else None,
        vtpm=args.flag("vtpm"),
    )


def pod_request(args: Arguments, context: Context) -> PodRequest:
    """Return the pod that a command line with images asks for; raises UsageError."""
    uuid_file = args.text("uuid_file_save")
    return PodRequest(
        apps=tuple(_app(args, item, context) for item in args.apps),
        fetch=fetch_options(args, context),
        hostname=args.text("hostname"),
        net=network_request(args),
        places=network_places(context),
        flavour=args.required("stage1"),
        machine=_machine(args),
        uuid_file=Path(uuid_file).absolute() if uuid_file else None,
    )


def _with_sockets(asked: PodRequest, names: tuple[str, ...]) -> PodRequest:
    """Give sockets of the caller's to the pod's first app."""
    return replace(asked, apps=(replace(asked.apps[0], sockets=names), *asked.apps[1:])) if names else asked


def _start_options(args: Arguments, context: Context, measures: Measuring, *, passed: int) -> StartOptions:
    detach, remove, timing = args.flag("detach"), args.flag("rm"), args.flag("timing")
    if timing and detach:
        raise UsageError("--timing needs the foreground", hint="secrun status --format=json tells it too")
    checkpoint.keep()
    return StartOptions(
        finish=lambda pod: finishing.command(pod, remove=remove, quiet=detach, timing=timing),
        measuring=measures,
        detach=detach,
        detach_keys=detachkeys.parse(args.required("detach_keys")),
        remove=remove,
        places=network_places(context),
        sockets=passed,
    )


def run(args: Arguments, context: Context) -> int:
    """Prepare a pod and run it."""
    passed = sockets.given(args.integer("preserve_fds"))
    measures = measuring(args, context)
    options = _start_options(args, context, measures, passed=len(passed))
    asked = _with_sockets(pod_request(args, context), passed)
    with prepared(context.layout, asked, measures) as pod:
        return _start(context, pod.uuid, start(pod, options), options)


def _start(context: Context, uuid: str, code: int, options: StartOptions) -> int:
    """Print the UUID of a detached pod; it also names a pod that failed to start."""
    if options.detach:
        context.out.write(f"{uuid}\n")
        if code != 0:
            context.err.write(f"secrun: pod {uuid} ended with status {code} before it was ready\n")
    return code


def prepare(args: Arguments, context: Context) -> int:
    """Prepare a pod and print its UUID."""
    number = sockets.count(args.integer("preserve_fds"), {}, 0)
    asked = _with_sockets(pod_request(args, context), sockets.names(number, {}))
    with prepared(context.layout, asked, measuring(args, context), lasting=True) as pod:
        context.out.write(f"{pod.uuid}\n")
    return 0


def run_prepared(args: Arguments, context: Context) -> int:
    """Start a prepared pod."""
    passed = sockets.given(args.integer("preserve_fds"))
    options = _start_options(args, context, measuring(args, context), passed=len(passed))
    found = find(context.layout, args.required("uuid"))
    pod = lock(found, context.layout) if found.folder is Folder.PREPARED else None
    if pod is None:
        # What was prepared a moment ago is being started by whoever holds its lock.
        state = "started by another process" if found.folder is Folder.PREPARED else found.state
        hint = "a pod starts once: run or prepare another"
        raise StateError(
            f"pod {found.uuid} is {state}, expected prepared", hint=hint, code="state-not-prepared"
        )
    with pod:
        return _start(context, pod.uuid, start(pod, options), options)


def stop(args: Arguments, context: Context) -> int:
    """Stop running pods."""
    from secrun.pod import stop as stopping

    force = args.flag("force")

    def one(word: str) -> None:
        context.out.write(f"{stopping.stop(context.layout, word, force=force)}\n")

    return each(uuids.several(args, context, State.RUNNING), one)


def rm(args: Arguments, context: Context) -> int:
    """Remove pods; with --force also those that run, which are killed."""
    from secrun.pod import stop as stopping
    from secrun.pod.collect import remove

    force = args.flag("force")

    def one(word: str) -> None:
        found = find(context.layout, word)
        if force and found.state is State.RUNNING:
            stopping.stop(context.layout, found.uuid, force=True)
            found = find(context.layout, found.uuid)
        remove(found, context.layout, measuring(args, context))
        context.out.write(f"{found.uuid}\n")

    idle = (State.ABORTED_PREPARE, State.PREPARED, State.EXITED, State.EXITED_GARBAGE, State.GARBAGE)
    return each(uuids.several(args, context, *idle, *((State.RUNNING,) if force else ())), one)


def gc(args: Arguments, context: Context) -> int:
    """Mark and delete what no process works on any more."""
    from secrun.pod.collect import Action as GcAction
    from secrun.pod.collect import GcPlan, collect_networks, purge_store, sweep

    plan = GcPlan(
        grace_seconds=request.duration(args.required("grace_period")),
        expire_prepared_seconds=request.duration(args.required("expire_prepared")),
        mark_only=args.flag("mark_only"),
    )
    outcomes = list(sweep(context.layout, plan, measuring(args, context)))
    if not plan.mark_only:
        purge_store(context.layout)
        for text in collect_networks(context.layout):
            context.warn(text)
    failed = [outcome for outcome in outcomes if outcome.action is GcAction.FAILED]
    if args.text("format") == "json":
        rows = [{"uuid": item.uuid, "action": str(item.action), "detail": item.detail} for item in outcomes]
        context.out.write(json.dumps({"schema": "secrun.dev/gc/v1", "pods": rows}, indent=2) + "\n")
    else:
        for item in outcomes:
            context.out.write(f"{item.uuid} {item.action} {item.detail}".rstrip() + "\n")
    return 125 if failed else 0


def enter(args: Arguments, context: Context) -> int:
    """Run a command inside an app."""
    from secrun.pod.client import Streams
    from secrun.pod.enter import EnterRequest
    from secrun.pod.enter import enter as entering

    if not args.trailing:
        raise UsageError("no command to run", hint="secrun enter UUID -- COMMAND", code="usage-no-command")
    detach = args.flag("detach")
    if detach and args.flag("interactive"):
        raise UsageError("-d leaves nobody who could send input", hint="leave out -i")
    entering(
        context.layout,
        args.required("uuid"),
        EnterRequest(
            app=args.text("app"),
            argv=tuple(request.unicode_text(word, "argument") for word in args.trailing),
            user=args.text("user"),
            workdir=args.text("workdir"),
            env=request.environment(args.many("env"), (), os.environ),
            streams=Streams(
                interactive=args.flag("interactive"),
                terminal=args.flag("tty"),
                detach_keys=detachkeys.parse(args.required("detach_keys")),
            ),
            detach=detach,
        ),
        measuring(args, context),
    )


def attach(args: Arguments, context: Context) -> int:
    """Attach to an app's streams."""
    from secrun.pod.attach import AttachRequest
    from secrun.pod.attach import attach as attaching

    attaching(
        context.layout,
        uuids.one(args),
        AttachRequest(
            app=args.text("app"),
            stdin=not args.flag("no_stdin"),
            sig_proxy=args.text("sig_proxy") == "true",
            detach_keys=detachkeys.parse(args.required("detach_keys")),
        ),
        measuring(args, context),
    )
