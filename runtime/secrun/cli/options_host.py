"""The verbs that fit secrun into a host: its shells, its service manager."""

from secrun.cli.table import Positional, Verb

HOST_VERBS = (
    Verb(
        words=("completion",),
        summary="Print the completion script for a shell",
        handler="secrun.cli.completion:completion",
        positionals=(Positional(name="shell", help="bash, zsh or fish"),),
        examples=("source <(secrun completion bash)", "secrun completion fish | source"),
    ),
)
