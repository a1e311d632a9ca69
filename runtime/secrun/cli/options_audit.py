"""The verbs of the audit log."""

from secrun.cli.options_common import FORMAT
from secrun.cli.table import Kind, Option, Positional, Verb

SPAN = (
    Option(
        flags=("--since",),
        metavar="TIME",
        help="from when on: 2026-01-31, 2026-01-31T12:00+01:00, or how long ago: 12h, 30d; default: all",
    ),
    Option(flags=("--until",), metavar="TIME", help="up to when, not included; default is now"),
)

FRAMEWORK = Option(
    flags=("--framework",),
    kind=Kind.CHOICE,
    choices=("sp800-190", "sp800-53", "cis-docker", "pci-dss", "soc2"),
    help="only checks that say something about it; default is all",
)

AUDIT_VERBS: tuple[Verb, ...] = (
    Verb(
        words=("audit", "export"),
        summary="Write what ran, over all boots, for whoever files it",
        handler="secrun.cli.audit:export",
        description="The TPM quotes the log first. docs/audit.md tells what a bundle proves.",
        options=(
            *SPAN,
            Option(
                flags=("--format",),
                kind=Kind.CHOICE,
                choices=("bundle", "jsonl", "csv", "html", "oscal", "ocsf", "in-toto"),
                default="bundle",
                help="bundle is a tar of the trail, the report and OSCAL with all proofs",
            ),
            FRAMEWORK,
            Option(
                flags=("--out",), metavar="FILE", default="-", help="where to write; - is standard output"
            ),
        ),
        needs_root=True,
        examples=("secrun audit export --since 30d --out audit.tar",),
    ),
    Verb(
        words=("audit", "verify"),
        summary="Verify bundles with a public key only, and against each other; exits 121 if one is refused",
        handler="secrun.cli.audit:verify",
        positionals=(Positional(name="file", help="bundles of one host", count="+"),),
        options=(
            Option(
                flags=("--key",),
                metavar="FILE",
                help="the host's public key, from `secrun audit key`: PEM or NAME+ID+KEY",
            ),
            Option(
                flags=("--accept",),
                kind=Kind.LIST,
                metavar="NAME[,NAME]",
                help="not-closed, clock-back, log-damaged, pruned, epoch-unchained or unquoted",
            ),
            Option(
                flags=("--ak",),
                kind=Kind.LIST,
                metavar="NAME",
                help="the Name, in hex, of an attestation key that may sign quotes; default is any",
            ),
            FORMAT,
        ),
        examples=("secrun audit verify --key host.pem audit.tar",),
    ),
    Verb(
        words=("audit", "report"),
        summary="Check what ran against a catalogue of rules; exits 1 if one is broken",
        handler="secrun.cli.audit:report",
        options=(*SPAN, FRAMEWORK, FORMAT),
        needs_root=True,
        examples=("secrun audit report --since 24h --framework cis-docker",),
    ),
    Verb(
        words=("audit", "prove"),
        summary="Show one record with the proof that it is in the log; audit verify reads it",
        handler="secrun.cli.audit:prove",
        positionals=(Positional(name="index", help="the leaf: `index` in the trail"),),
        options=(
            Option(
                flags=("--out",), metavar="FILE", default="-", help="where to write; - is standard output"
            ),
        ),
        needs_root=True,
    ),
    Verb(
        words=("audit", "key"),
        summary="Print the public key of this host's audit log",
        handler="secrun.cli.audit:key",
        options=(
            Option(
                flags=("--format",),
                kind=Kind.CHOICE,
                choices=("pem", "note"),
                default="pem",
                help="note is NAME+ID+KEY, which tools for transparency logs read",
            ),
        ),
        needs_root=True,
    ),
    Verb(
        words=("audit", "prune"),
        summary="Remove the records of boots that ended longer ago than audit.keep says",
        handler="secrun.cli.audit:prune",
        description="Their hashes stay, and a leaf that says what was removed: nothing goes in silence.",
        needs_root=True,
        examples=("secrun --audit-keep=400d audit prune",),
    ),
    Verb(
        words=("audit", "close"),
        summary="Close the log of this boot with a quote, before the TPM is reset",
        handler="secrun.cli.audit:close",
        description="For a unit that runs at shutdown: docs/services.md. What follows needs another one.",
        needs_root=True,
    ),
)

METRICS_VERBS: tuple[Verb, ...] = (
    Verb(
        words=("metrics",),
        summary="Print what a monitoring system asks of this root, as Prometheus reads it",
        handler="secrun.cli.metrics:metrics",
        description="For node_exporter's textfile collector: secrun metrics > FILE.prom, from a timer.",
        needs_root=True,
    ),
)
