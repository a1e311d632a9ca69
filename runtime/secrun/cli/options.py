"""The option table: every verb and every option of secrun, declared once."""

import importlib

from secrun.cli.options_common import (
    DETACH_KEYS,
    FILTERS,
    FORMAT,
    IGNORE,
    IMAGE,
    NO_LEGEND,
    UUID,
    UUID_FILE,
    UUID_FILES,
    UUID_MAYBE,
    UUIDS_MAYBE,
    app_option,
    pull,
)
from secrun.cli.options_life import LIFE
from secrun.cli.options_net import NETWORK, NETWORK_GLOBAL
from secrun.cli.options_security import SECURITY
from secrun.cli.options_volume import VOLUMES
from secrun.cli.table import Kind, Option, Positional, Scope, Verb
from secrun.paths import DEFAULT_ROOT, DEFAULT_RUN_ROOT

# Families of verbs with tables of their own: most starts of secrun need none of them.
FAMILIES = {
    "attest": (
        "secrun.cli.options_attest:ATTEST_VERBS",
        "secrun.cli.options_verifier:VERIFIER_VERBS",
        "secrun.cli.options_serve:SERVE_VERBS",
    ),
    "volume": ("secrun.cli.options_volume:VOLUME_VERBS",),
    "network": ("secrun.cli.options_net:NETWORK_VERBS",),
    "image": ("secrun.cli.options_image:IMAGE_VERBS",),
    "sign": ("secrun.cli.options_trust:SIGN_VERBS",),
    "trust": ("secrun.cli.options_trust:TRUST_VERBS",),
    "config": ("secrun.cli.options_attest:CONFIG_VERBS",),
    "audit": ("secrun.cli.options_audit:AUDIT_VERBS",),
    "metrics": ("secrun.cli.options_audit:METRICS_VERBS",),
    "policy": ("secrun.cli.options_policy:POLICY_VERBS",),
    "attach": ("secrun.cli.options_look:LOOK_VERBS",),
    "list": ("secrun.cli.options_list:LIST_VERBS",),
    "inspect": ("secrun.cli.options_look:LOOK_VERBS",),
    "top": ("secrun.cli.options_look:LOOK_VERBS",),
    "stats": ("secrun.cli.options_look:LOOK_VERBS",),
    "events": ("secrun.cli.options_look:LOOK_VERBS",),
    "export": ("secrun.cli.options_look:LOOK_VERBS",),
    "completion": ("secrun.cli.options_host:HOST_VERBS",),
    "restart": ("secrun.cli.options_life:LIFE_VERBS",),
    "generate": ("secrun.cli.options_host:HOST_VERBS",),
}


_app = app_option

GLOBAL = (
    Option(
        flags=("--root",),
        metavar="DIR",
        default=str(DEFAULT_ROOT),
        key="root",
        help="where images and pods are kept",
    ),
    Option(
        flags=("--run-root",),
        metavar="DIR",
        default=str(DEFAULT_RUN_ROOT),
        key="run_root",
        help="what need not survive a reboot",
    ),
    Option(
        flags=("--attest",),
        kind=Kind.CHOICE,
        choices=("required", "preferred", "off"),
        default="required",
        key="attest.mode",
        help="whether a pod may start that cannot be measured; what ran unmeasured is measured later",
    ),
    Option(
        flags=("--tcti",),
        metavar="NAME:CONFIG",
        default="auto",
        key="attest.tcti",
        help="the TPM; auto: /dev/tpmrm0, else software: a software TPM of this root's own",
    ),
    Option(
        flags=("--audit-keep",),
        metavar="AGE",
        default="forever",
        key="audit.keep",
        help="how long `audit prune` keeps the records of a boot after it ended: forever, or such as 400d",
    ),
    *NETWORK_GLOBAL,
    Option(
        flags=("--config",),
        metavar="FILE",
        help="read settings from FILE alone: not from /etc/secrun and its like, nor what $SECRUN_CONF names",
    ),
    Option(flags=("--debug",), kind=Kind.FLAG, help="tell each step on stderr"),
)

_FLAVOUR = Option(flags=("--stage1",), metavar="FLAVOUR", default="nspawn", help="the isolation to use")

POD = (
    Option(
        flags=("--pod-manifest",), metavar="FILE", help="the whole pod from a file (docs/pod-manifest.md)"
    ),
    Option(flags=("--hostname",), metavar="NAME", help="host name of the pod; default secrun-UUID"),
    *NETWORK,
    Option(
        flags=("--uuid-file-save", "--cidfile", "--pod-id-file"),
        metavar="FILE",
        help="write the UUID before anything can fail",
    ),
    _FLAVOUR,
    Option(
        flags=("--accel",),
        kind=Kind.CHOICE,
        choices=("auto", "kvm", "tcg"),
        help="with --stage1=kvm; auto, the default, needs hardware virtualisation; tcg: emulation, measured",
    ),
    Option(
        flags=("--storage",),
        metavar="BYTES[k|m|g]",
        help="with --stage1=kvm; what apps write goes to a scratch disk, not into the guest's memory",
    ),
    Option(flags=("--vtpm",), kind=Kind.FLAG, help="with --stage1=kvm; a TPM inside the pod"),
)

APP = (
    _app("--name", metavar="NAME", help="name of the app; default is the last part of the image's name"),
    _app(
        *("-e", "--env", "--set-env"),
        kind=Kind.LIST,
        metavar="NAME[=VALUE]",
        help="set a variable; without value: copy it",
    ),
    _app(
        *("--env-file", "--set-env-file"),
        kind=Kind.LIST,
        metavar="FILE",
        help="NAME=VALUE lines; # starts a comment",
    ),
    _app("--unsetenv", kind=Kind.LIST, metavar="NAME", help="leave out a variable of the image"),
    _app("--umask", metavar="OCTAL", help="the app's file mode mask; default 0022"),
    _app(
        "--env-host", "--inherit-env", kind=Kind.FLAG, help="all of the caller's variables; the image's win"
    ),
    _app("-u", "--user", metavar="USER[:GROUP]", help="names of the image or numbers"),
    _app("--group", metavar="GROUP", help="the group alone; the same as --user :GROUP"),
    _app(
        *("--group-add", "--supplementary-gids"),
        kind=Kind.LIST,
        metavar="GROUP",
        help="a further group: a name of the image or a number",
    ),
    _app("-w", "--workdir", "--working-dir", metavar="DIR", help="working directory inside the image"),
    _app("--entrypoint", "--exec", metavar="WORD|JSON", help="replaces the image's entry point"),
    _app("--read-only", "--readonly-rootfs", kind=Kind.FLAG, help="the root file system cannot be written"),
    _app(
        *("-l", "--label", "--user-label"),
        kind=Kind.LIST,
        metavar="NAME[=VALUE]",
        help="a label of the app; in its manifest, so it is measured",
    ),
    _app(
        *("--annotation", "--user-annotation"),
        kind=Kind.LIST,
        metavar="NAME[=VALUE]",
        help="an annotation of the app; in its manifest, so it is measured",
    ),
    _app("--init", kind=Kind.FLAG, help="implied: every pod has an init, and the agent reaps for each app"),
    Option(
        flags=("--systemd",),
        kind=Kind.CHOICE,
        choices=("true", "false", "always"),
        scope=Scope.APP,
        help="the app is a system container: its program an init; always: whatever it is called",
    ),
    *VOLUMES,
    _app("-m", "--memory", metavar="BYTES[k|m|g]", help="memory limit"),
    _app("--cpus", metavar="NUMBER", help="CPU limit, e.g. 1.5"),
    _app("--memory-reservation", metavar="BYTES[k|m|g]", help="memory that the app keeps when it is short"),
    _app("--cpuset-cpus", metavar="LIST", help="processors that the app may run on, e.g. 0-2,5"),
    _app("--cpuset-mems", metavar="LIST", help="memory nodes that it may use"),
    _app("--pids-limit", kind=Kind.INTEGER, metavar="N", help="limit of processes and threads"),
    _app(
        "--stop-signal", metavar="SIGNAL", help="what asks the app to end; default is the image's, or TERM"
    ),
    _app("--stop-timeout", kind=Kind.INTEGER, metavar="SECONDS", help="from SIGTERM to SIGKILL; default 10"),
    *LIFE,
    *SECURITY,
)

STREAMS = (
    Option(flags=("-i", "--interactive"), kind=Kind.FLAG, help="the app may read standard input"),
    Option(flags=("-t", "--tty"), kind=Kind.FLAG, help="give the app a terminal"),
)

PRESERVE_FDS = Option(
    flags=("--preserve-fds",),
    kind=Kind.INTEGER,
    metavar="N",
    help="give the app N sockets, from descriptor 3 on; default is what a socket unit passes",
)

_RUN_ONLY = (
    Option(flags=("-d", "--detach"), kind=Kind.FLAG, help="print the UUID and leave the pod running"),
    Option(flags=("--rm",), kind=Kind.FLAG, help="remove the pod when it has exited"),
    Option(flags=("--timing",), kind=Kind.FLAG, help="tell in the end when each step was reached"),
    DETACH_KEYS,
    PRESERVE_FDS,
    Option(flags=("-i", "--interactive"), kind=Kind.FLAG, help="connect standard input to the app"),
    Option(flags=("-t", "--tty"), kind=Kind.FLAG, help="give the app a terminal"),
)

VERBS: tuple[Verb, ...] = (
    Verb(
        words=("run",),
        summary="Run a pod of one or more apps and wait for its end",
        handler="secrun.cli.pods:run",
        options=(*_RUN_ONLY, *POD, pull("missing"), *IMAGE, *APP),
        takes_apps=True,
        needs_root=True,
        examples=(
            "secrun run docker://registry.example/app:1 -- serve --port 80",
            "secrun run web:1 --name web --- cache:2 --name cache -- --size 64m",
        ),
    ),
    Verb(
        words=("prepare",),
        summary="Do all of run but the start; prints the UUID",
        handler="secrun.cli.pods:prepare",
        options=(
            *STREAMS,
            PRESERVE_FDS,
            *POD,
            pull("missing"),
            *IMAGE,
            *APP,
        ),
        takes_apps=True,
        needs_root=True,
    ),
    Verb(
        words=("run-prepared",),
        summary="Start a prepared pod and wait for its end",
        handler="secrun.cli.pods:run_prepared",
        positionals=(UUID,),
        options=_RUN_ONLY[:5],
        needs_root=True,
    ),
    Verb(
        words=("status",),
        summary="Show the state and the exit codes of a pod",
        handler="secrun.cli.views:status",
        positionals=(UUID_MAYBE,),
        options=(
            FORMAT,
            UUID_FILE,
            Option(
                flags=("--wait",),
                kind=Kind.OPTIONAL_TEXT,
                metavar="DURATION",
                const="forever",
                help="wait until the pod has exited, at most DURATION (10s, 5m)",
            ),
            Option(
                flags=("--wait-ready",),
                kind=Kind.OPTIONAL_TEXT,
                metavar="DURATION",
                const="forever",
                help="wait until every app has started; an error if the pod ends before",
            ),
        ),
    ),
    Verb(
        words=("stop",),
        summary="Stop running pods in good order",
        handler="secrun.cli.pods:stop",
        positionals=(UUIDS_MAYBE,),
        options=(
            Option(flags=("--force", "-f"), kind=Kind.FLAG, help="kill at once"),
            Option(flags=("-a", "--all"), kind=Kind.FLAG, help="all that run"),
            FILTERS,
            IGNORE,
            UUID_FILES,
        ),
        needs_root=True,
    ),
    Verb(
        words=("rm",),
        summary="Remove pods that do not run",
        handler="secrun.cli.pods:rm",
        positionals=(UUIDS_MAYBE,),
        options=(
            Option(flags=("--force", "-f"), kind=Kind.FLAG, help="kill a pod that runs, then remove it"),
            Option(flags=("-a", "--all"), kind=Kind.FLAG, help="all that do not run; with --force all"),
            FILTERS,
            IGNORE,
            UUID_FILES,
        ),
        needs_root=True,
    ),
    Verb(
        words=("gc",),
        summary="Clean up after exited, failed and killed pods",
        handler="secrun.cli.pods:gc",
        options=(
            Option(
                flags=("--grace-period",),
                metavar="DURATION",
                default="30m",
                help="keep exited pods this long after they were marked",
            ),
            Option(
                flags=("--expire-prepared",),
                metavar="DURATION",
                default="24h",
                help="remove pods prepared longer ago",
            ),
            Option(flags=("--mark-only",), kind=Kind.FLAG, help="mark, delete nothing"),
            FORMAT,
        ),
        needs_root=True,
    ),
    Verb(
        words=("logs",),
        summary="Print what the apps of a pod wrote",
        handler="secrun.cli.views:logs",
        positionals=(UUID, Positional(name="app", help="the app; needed if there are several", count="?")),
        options=(
            Option(flags=("-f", "--follow"), kind=Kind.FLAG, help="go on until the pod ends"),
            Option(flags=("-t", "--timestamps"), kind=Kind.FLAG, help="time and stream before each line"),
            Option(flags=("-n", "--tail"), kind=Kind.INTEGER, metavar="N", help="the last N lines only"),
            Option(flags=("--since",), metavar="TIME", help="later lines only: 10m ago, or in RFC 3339"),
            Option(flags=("--until",), metavar="TIME", help="earlier lines only; not with --follow"),
            FORMAT,
        ),
    ),
    Verb(
        words=("enter",),
        summary="Run a command inside a running app",
        handler="secrun.cli.pods:enter",
        positionals=(UUID,),
        options=(
            Option(flags=("--app",), metavar="NAME", help="the app; needed if there are several"),
            Option(flags=("-d", "--detach"), kind=Kind.FLAG, help="leave the command alone once it runs"),
            DETACH_KEYS,
            Option(flags=("-i", "--interactive"), kind=Kind.FLAG, help="connect standard input"),
            Option(flags=("-t", "--tty"), kind=Kind.FLAG, help="give the command a terminal"),
            Option(flags=("-u", "--user"), metavar="USER[:GROUP]", help="default is the app's user"),
            Option(flags=("-w", "--workdir"), metavar="DIR", help="default is the app's"),
            Option(flags=("-e", "--env"), kind=Kind.LIST, metavar="NAME=VALUE", help="set a variable"),
        ),
        takes_command=True,
        needs_root=True,
        examples=("secrun enter -i -t 0a1b -- /bin/sh",),
    ),
    Verb(
        words=("cat-manifest",),
        summary="Print the pod manifest, byte for byte as it is measured",
        handler="secrun.cli.views:cat_manifest",
        positionals=(UUID_MAYBE,),
        options=(UUID_FILE,),
    ),
    Verb(
        words=("fetch",),
        summary="Fetch images, check them and render their root file systems",
        handler="secrun.cli.images:fetch",
        positionals=(Positional(name="image", help="image references", count="+"),),
        options=(pull("always"), *IMAGE, FORMAT),
    ),
    Verb(
        words=("image", "list"),
        summary="List stored images",
        handler="secrun.cli.images:list_images",
        options=(
            FORMAT,
            NO_LEGEND,
            Option(flags=("-q", "--quiet"), kind=Kind.FLAG, help="image IDs only"),
            Option(
                flags=("-f", "--filter"),
                kind=Kind.LIST,
                metavar="NAME=VALUE",
                help="reference=PATTERN, label=NAME[=VALUE], before=IMAGE, since=IMAGE, used=true|false; "
                "all that are given must hold",
            ),
        ),
    ),
    Verb(
        words=("image", "inspect"),
        summary="Show what is known of stored images",
        handler="secrun.cli.images:inspect",
        positionals=(Positional(name="image", help="names or ID prefixes", count="+"),),
        options=(FORMAT,),
    ),
    Verb(
        words=("image", "rm"),
        summary="Remove images and what only they needed",
        handler="secrun.cli.images:remove",
        positionals=(Positional(name="image", help="names or ID prefixes", count="+"),),
    ),
    Verb(
        words=("stage1", "build"),
        summary="Build a stage1 image from this host's packages",
        handler="secrun.cli.stage1:build",
        positionals=(Positional(name="flavour", help="nspawn, the default, or kvm", count="?"),),
        options=(
            FORMAT,
            Option(
                flags=("--kernel",),
                metavar="FILE",
                help="with kvm; the guest's kernel, until the next build; default is the newest in /boot",
            ),
        ),
        needs_root=True,
    ),
    Verb(
        words=("stage1", "list"),
        summary="List built stage1 images",
        handler="secrun.cli.stage1:list_built",
        options=(FORMAT, NO_LEGEND),
    ),
    Verb(
        words=("stage1", "show"),
        summary="List what a stage1 image holds, with digests and origins",
        handler="secrun.cli.stage1:show",
        positionals=(
            Positional(name="digest", help="a unique prefix, or a flavour for its current one", count="?"),
        ),
        options=(FORMAT,),
    ),
    Verb(
        words=("doctor",),
        summary="Tell what this host lacks, and what follows",
        handler="secrun.cli.views:doctor",
        options=(_FLAVOUR, FORMAT),
    ),
    Verb(
        words=("version",),
        summary="Print versions",
        handler="secrun.cli.views:version",
        options=(FORMAT,),
    ),
)


def verbs_of(family: str) -> tuple[Verb, ...]:
    """Return the verbs that begin with `family`."""
    tables: list[Verb] = [verb for verb in VERBS if verb.words[0] == family]
    for place in FAMILIES.get(family, ()):
        module, _, name = place.partition(":")
        found = getattr(importlib.import_module(module), name)
        tables += [verb for verb in found if verb.words[0] == family]
    return tuple(tables)


def all_verbs() -> tuple[Verb, ...]:
    """Return every verb, for whoever lists them."""
    others = (verb for family in FAMILIES for verb in verbs_of(family))
    return (*VERBS, *(verb for verb in others if verb not in VERBS))


def families() -> tuple[str, ...]:
    """Return the first words of all verbs."""
    return tuple(sorted({*FAMILIES, *(verb.words[0] for verb in VERBS)}))
