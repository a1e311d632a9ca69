"""The verbs of a host that is measured, and the one that shows the settings."""

from secrun.cli.options_common import FORMAT
from secrun.cli.table import Kind, Option, Verb

_NONCE = Option(flags=("--nonce",), metavar="HEX", help="what the verifier asked: 32 bytes")
_PCRS = Option(
    flags=("--pcrs",),
    metavar="BANK:N,N,...",
    help="what to quote; default is sha256, the firmware's PCRs 0 to 7, and the one of this root",
)

ATTEST_VERBS: tuple[Verb, ...] = (
    Verb(
        words=("attest", "init"),
        summary="Make this root's attestation key and pin TPM and PCR",
        handler="secrun.cli.attest:init",
        description="Pods do this by themselves when they are first measured; call it to choose.",
        options=(
            Option(flags=("--host",), metavar="NAME", help="the name that verifiers know this root by"),
            Option(
                flags=("--pcr",),
                kind=Kind.CHOICE,
                choices=("15", "8"),
                default="15",
                help="8 where something else extends 15 at boot",
            ),
            Option(flags=("--force",), kind=Kind.FLAG, help="pin anew; verifiers must enrol the host again"),
            FORMAT,
        ),
        needs_root=True,
    ),
    Verb(
        words=("attest", "status"),
        summary="Show the TPM, the key, and how long the log is",
        handler="secrun.cli.attest:status",
        options=(FORMAT,),
        needs_root=True,
    ),
    Verb(
        words=("attest", "log"),
        summary="Export the event log of this boot",
        handler="secrun.cli.attest:log",
        options=(
            Option(
                flags=("--format",),
                kind=Kind.CHOICE,
                choices=("text", "tcg", "cel-json", "cel-json-seq", "cel-tlv"),
                default="text",
                help="text for people; tcg is what tpm2_eventlog reads; cel-* are the TCG's canonical forms",
            ),
        ),
        needs_root=True,
    ),
    Verb(
        words=("attest", "evidence"),
        summary="Quote the TPM and print the evidence for a verifier",
        handler="secrun.cli.attest:evidence",
        options=(
            _NONCE,
            Option(
                flags=("--since",),
                kind=Kind.INTEGER,
                metavar="RECNUM",
                default=0,
                help="the first record that the verifier does not have",
            ),
            Option(
                flags=("--audience",),
                metavar="TEXT",
                default="",
                help="the verifier that the evidence is meant for",
            ),
            _PCRS,
        ),
        needs_root=True,
        examples=("secrun attest evidence --nonce $(openssl rand -hex 32) > evidence.json",),
    ),
    Verb(
        words=("attest", "quote"),
        summary="Quote the TPM into files that tpm2_checkquote and tpm2_eventlog read",
        handler="secrun.cli.attest:quote",
        options=(
            _NONCE,
            Option(flags=("--out",), metavar="DIR", help="where to write; made if absent"),
            _PCRS,
        ),
        needs_root=True,
    ),
    Verb(
        words=("attest", "push"),
        summary="Prove this host to a verifier, now and whenever its log grows",
        handler="secrun.cli.attest_push:push",
        description="Enrols by itself. docs/verifier-service.md says how; docs/services.md has a unit.",
        options=(
            Option(
                flags=("--verifier",), metavar="URL", help="where the verifier is, such as https://v:8443"
            ),
            Option(
                flags=("--ca",),
                metavar="FILE",
                help="who may vouch for it, in PEM, instead of the system's CAs",
            ),
            Option(flags=("--cert",), metavar="FILE", help="our certificate, where it wants one"),
            Option(flags=("--key",), metavar="FILE", help="its key"),
            Option(
                flags=("--enroll-token-file",),
                metavar="FILE",
                help="the token without which it enrols no host",
            ),
            Option(
                flags=("--ek-chain",),
                metavar="FILE",
                help="certificates in PEM between that in the TPM and its maker's root, to enrol",
            ),
            Option(
                flags=("--once",),
                kind=Kind.FLAG,
                help="push once; the exit status is 0 for affirming, 121 for any other verdict",
            ),
            Option(
                flags=("--interval",),
                kind=Kind.INTEGER,
                metavar="SECONDS",
                default=30,
                help="push at least so often, though nothing happens",
            ),
            FORMAT,
        ),
        needs_root=True,
        examples=("secrun attest push --once --verifier https://verifier.example:8443",),
    ),
    Verb(
        words=("attest", "stop"),
        summary="End this root's software TPM; its log ends with it, its key does not",
        handler="secrun.cli.attest:stop",
        options=(
            Option(
                flags=("--force", "-f"),
                kind=Kind.FLAG,
                help="also while pods run; the next log then tells of them as unmeasured",
            ),
        ),
        needs_root=True,
    ),
)

CONFIG_VERBS: tuple[Verb, ...] = (
    Verb(
        words=("config", "show"),
        summary="Show the settings in force",
        handler="secrun.cli.settings:show",
        options=(
            Option(flags=("--origin",), kind=Kind.FLAG, help="say where each value comes from"),
            FORMAT,
        ),
    ),
)
