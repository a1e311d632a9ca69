"""The verbs on profiles and rules."""

from secrun.cli.options import APP, POD, STREAMS
from secrun.cli.options_common import FORMAT, IMAGE, UUID, pull
from secrun.cli.table import Kind, Option, Positional, Verb

POLICY_VERBS = (
    Verb(
        words=("policy", "show"),
        summary="Show the policy in force: its files, profiles and rules",
        handler="secrun.cli.policy:show",
        options=(FORMAT,),
    ),
    Verb(
        words=("policy", "explain"),
        summary="Tell what confines each app of a pod, what was relaxed, and which rules are about it",
        handler="secrun.cli.policy:explain",
        positionals=(UUID,),
        options=(FORMAT,),
    ),
    Verb(
        words=("policy", "check"),
        summary="Tell whether a pod would be allowed, and prepare nothing; exits 120 if not",
        handler="secrun.cli.policy:check",
        options=(*STREAMS, *POD, pull("missing"), *IMAGE, *APP),
        takes_apps=True,
        examples=("secrun policy check --net=host docker://registry.example/app:1 --cap-add NET_ADMIN",),
    ),
    Verb(
        words=("policy", "record"),
        summary="Run a workload and write the system call profile of what it really used",
        description="The pod runs as with secrun run --rm; IMAGE and its arguments come after --.",
        handler="secrun.cli.policyrecord:record",
        options=(
            Option(
                flags=("-o", "--output"),
                metavar="FILE",
                default="seccomp.json",
                help="the profile, for --security-opt seccomp=FILE; default ./seccomp.json",
            ),
            *STREAMS,
            *POD,
            pull("missing"),
            *IMAGE,
            *APP,
        ),
        takes_command=True,
        needs_root=True,
        examples=("secrun policy record -o web.json -- registry.example/web:1 serve --once",),
    ),
    Verb(
        words=("policy", "test"),
        summary="Try the [[test]] tables of the policy files",
        handler="secrun.cli.policy:test",
        options=(FORMAT,),
    ),
    Verb(
        words=("policy", "install"),
        summary="Install the SELinux module for hosts whose policy has no types for containers",
        handler="secrun.cli.policymodule:install",
        positionals=(Positional(name="module", help="selinux"),),
        options=(
            Option(flags=("--remove",), kind=Kind.FLAG, help="remove the module; no pod may be running"),
            Option(flags=("--status",), kind=Kind.FLAG, help="tell whether it is installed, change nothing"),
            FORMAT,
        ),
        examples=("secrun policy install selinux", "secrun policy install selinux --status"),
        needs_root=True,
    ),
)
