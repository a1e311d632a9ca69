"""The options that confine an app more or less; podman's words, and rkt's beside them."""

from secrun.cli.options_common import app_option as _app
from secrun.cli.table import Kind

SECURITY = (
    _app(
        "--profile",
        metavar="NAME|FILE",
        help="defaults for what is not said: default, strict, or a policy's",
    ),
    _app("--cap-add", kind=Kind.LIST, metavar="CAP", help="grant a capability, a named relaxation"),
    _app("--cap-drop", kind=Kind.LIST, metavar="CAP", help="take a capability away; all: every one"),
    _app("--caps-retain", kind=Kind.LIST, metavar="CAP,...", help="exactly these capabilities"),
    _app("--caps-remove", kind=Kind.LIST, metavar="CAP,...", help="the default capabilities without these"),
    _app(
        "--security-opt",
        kind=Kind.LIST,
        metavar="WORD",
        help="seccomp=FILE|strict|unconfined, no-new-privileges[=false], mask=, unmask=PATH|ALL, label=",
    ),
    _app(
        "--seccomp",
        metavar="mode=retain|remove,...",
        help="calls to retain or to remove: errno=NAME, names, @systemd/SET, @rkt/LIST, @docker/LIST",
    ),
    _app(
        "--privileged", kind=Kind.FLAG, help="confined by the pod alone; refused unless a policy allows it"
    ),
    _app(
        "--tmpfs", kind=Kind.LIST, metavar="DIR[:OPTIONS]", help="a folder in memory: size=, mode=, ro, exec"
    ),
    _app("--read-only-tmpfs", kind=Kind.FLAG, help="with --read-only: /run, /tmp and /var/tmp in memory"),
    _app("--device", kind=Kind.LIST, metavar="HOST[:POD]", help="a device of the host, a named relaxation"),
    _app("--sysctl", kind=Kind.LIST, metavar="NAME=VALUE", help="a setting of the pod's network or IPC"),
    _app("--ulimit", kind=Kind.LIST, metavar="NAME=SOFT[:HARD]", help="a resource limit; never raised"),
    _app("--oom-score-adj", kind=Kind.INTEGER, metavar="N", help="who is killed first when memory is short"),
    _app("--userns", metavar="auto", help="a pod always has a user namespace of its own"),
    _app("--memory-swap", metavar="BYTES[k|m|g]|-1", help="memory and swap together; -1: any swap"),
    _app("--cpu-shares", kind=Kind.INTEGER, metavar="N", help="share of the CPU under load, 2 to 262144"),
    _app("--cpu-weight", kind=Kind.INTEGER, metavar="N", help="the same as cgroup2 says it, 1 to 10000"),
    _app("--blkio-weight", kind=Kind.INTEGER, metavar="N", help="share of disk time under load, 10 to 1000"),
)
