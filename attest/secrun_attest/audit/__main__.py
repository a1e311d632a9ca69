"""`python -m secrun_attest.audit verify --key FILE BUNDLE...`, for an auditor who installs no runtime."""

import argparse
import json
import sys

from secrun_attest.audit import command
from secrun_attest.audit.note import MAX_NOTE, load_verifier
from secrun_attest.errors import FormatError

_REFUSED = 121
_USAGE = 2


def main(words: list[str]) -> int:
    """Verify bundles; return 0 if all are accepted, 121 if not, 2 if nothing could be verified."""
    parser = argparse.ArgumentParser(prog="python -m secrun_attest.audit")
    verify = parser.add_subparsers(required=True).add_parser("verify", help="verify audit bundles offline")
    verify.add_argument("--key", required=True, metavar="FILE", help="the host's public key")
    verify.add_argument("--accept", action="append", default=[], metavar="NAME[,NAME]")
    verify.add_argument("--ak", action="append", default=[], metavar="NAME")
    verify.add_argument("--format", choices=("table", "json"), default="table")
    verify.add_argument("file", nargs="+")
    arguments = parser.parse_args(words)
    try:
        with open(arguments.key, "rb") as stream:
            key = load_verifier(stream.read(MAX_NOTE + 1), what=arguments.key)
        accepted = command.accepted_faults(arguments.accept)
        result = command.verify_files(arguments.file, key, accepted, arguments.ak)
    except (FormatError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return _USAGE
    sys.stdout.write(f"{json.dumps(result.to_json())}\n" if arguments.format == "json" else result.text())
    return _REFUSED if result.refused else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
