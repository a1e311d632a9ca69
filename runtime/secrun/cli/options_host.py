"""The verbs that fit secrun into a host: its shells, its service manager."""

from secrun.cli.table import Option, Positional, Verb

HOST_VERBS = (
    Verb(
        words=("completion",),
        summary="Print the completion script for a shell",
        handler="secrun.cli.completion:completion",
        positionals=(Positional(name="shell", help="bash, zsh or fish"),),
        examples=("source <(secrun completion bash)", "secrun completion fish | source"),
    ),
    Verb(
        words=("generate",),
        summary="Make systemd services of .container and .pod files",
        handler="secrun.cli.generate:generate",
        description="Prints them, or with --output writes them and the links that [Install] asks for. "
        "Without files those in /etc/secrun/systemd, /run/secrun-systemd and /usr/share/secrun/systemd "
        "are taken.",
        positionals=(
            Positional(name="file", help="files with a [Container] or a [Pod] section", count="*"),
        ),
        options=(Option(flags=("-o", "--output"), metavar="DIR", help="write units into DIR"),),
        examples=("secrun generate web.container", "secrun generate --output /run/systemd/generator"),
    ),
)
