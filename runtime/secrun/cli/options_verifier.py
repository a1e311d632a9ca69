"""The verbs of whoever judges hosts: none of them needs root, a TPM or a pod."""

from secrun.cli.options_common import FORMAT, IMAGE, pull
from secrun.cli.table import Kind, Option, Positional, Verb

_POLICY = (
    Option(
        flags=("--policy-key",),
        kind=Kind.LIST,
        metavar="PEM",
        help="public key that may sign policies; every file must then be signed",
    ),
    Option(
        flags=("--insecure-options",),
        kind=Kind.LIST,
        metavar="NAME[,NAME]",
        help="relax a guard by name; policy: take a policy that is not signed",
    ),
)
_OUT = Option(flags=("--out",), metavar="FILE", help="write there; default is standard output")
_IMAGES = Positional(name="image", help="image references", count="+")

VERIFIER_VERBS = (
    Verb(
        words=("attest", "verify"),
        summary="Verify evidence of a host against a policy",
        handler="secrun.cli.attest_verifier:verify",
        description=(
            "Ends with 0 if the host and all its pods are affirmed, with 121 if the evidence is rejected or "
            "the verdict is worse. The nonce must be one that was never used before: whoever asked knows."
        ),
        positionals=(Positional(name="evidence", help="the file with the evidence; - is standard input"),),
        options=(
            Option(flags=("--nonce",), metavar="HEX", help="the 32 bytes that the host was asked to answer"),
            Option(
                flags=("--policy",),
                kind=Kind.LIST,
                metavar="FILE",
                help="the policy, or one of the files that make it",
            ),
            *_POLICY,
            Option(
                flags=("--ak",),
                kind=Kind.LIST,
                metavar="NAME|FILE",
                help="attestation key of the host: its Name in hex, or a file with Name or TPM2B_PUBLIC; "
                "default is the policy's list",
            ),
            Option(
                flags=("--ak-parent",),
                metavar="HEX",
                help="qualified name of the key's parent, if it is no primary key",
            ),
            Option(flags=("--audience",), metavar="TEXT", default="", help="whom the evidence is meant for"),
            Option(
                flags=("--state",),
                metavar="FILE",
                help="keep what is known of the host there, so that next time new records are enough",
            ),
            Option(
                flags=("--software-tpm",),
                kind=Kind.FLAG,
                help="the key is a software TPM's, whatever the host says",
            ),
            Option(flags=("--accept-warning",), kind=Kind.FLAG, help="a warning ends with 0 too"),
            FORMAT,
        ),
        examples=("secrun attest verify --nonce 00ff... --policy p.json --policy-key p.pem evidence.json",),
    ),
    Verb(
        words=("attest", "predict"),
        summary="Compute the reference values of images, from the images alone",
        handler="secrun.cli.attest_verifier:predict",
        positionals=(_IMAGES,),
        options=(pull("missing"), *IMAGE, FORMAT),
        examples=("secrun --root ~/predict attest predict --format=json oci:layout:app > app.json",),
    ),
    Verb(
        words=("attest", "policy", "init"),
        summary="Write a starting policy from predicted values",
        handler="secrun.cli.attest_policy:init",
        options=(
            Option(
                flags=("--from",), kind=Kind.LIST, metavar="FILE", help="what attest predict wrote as JSON"
            ),
            Option(flags=("--image",), kind=Kind.LIST, metavar="REF", help="predict this image now"),
            Option(flags=("--id",), metavar="TEXT", help="name of the policy"),
            Option(flags=("--key",), kind=Kind.LIST, metavar="NAME|FILE", help="attestation key to accept"),
            Option(
                flags=("--version",), kind=Kind.INTEGER, default=1, metavar="N", help="version of the policy"
            ),
            Option(
                flags=("--pcr",), kind=Kind.INTEGER, default=15, metavar="N", help="where hosts measure pods"
            ),
            Option(
                flags=("--selection",),
                metavar="N[,N-N]",
                help="PCRs that a quote must show; default is 0-7 and --pcr",
            ),
            Option(
                flags=("--pcr-value",),
                kind=Kind.LIST,
                metavar="N=HEX[,HEX]",
                help="accepted SHA-256 values of a platform PCR",
            ),
            Option(
                flags=("--valid",),
                metavar="DURATION",
                default="365d",
                help="how long the policy is in force",
            ),
            Option(
                flags=("--accelerator",),
                kind=Kind.LIST,
                metavar="kvm|tcg",
                help="accept such virtual machines; default is kvm alone: nothing in hardware isolates tcg",
            ),
            Option(
                flags=("--require-machine",),
                kind=Kind.FLAG,
                help="accept only pods in virtual machines",
            ),
            Option(flags=("--software-tpm",), kind=Kind.FLAG, help="accept software TPMs"),
            Option(flags=("--forbid-exec",), kind=Kind.FLAG, help="forbid to enter pods"),
            _OUT,
            Option(flags=("--sign",), metavar="PEM", help="private key to sign with"),
            pull("missing"),
            *IMAGE,
        ),
        examples=("secrun attest policy init --id shop --from app.json --key 000b... --sign key.pem",),
    ),
    Verb(
        words=("attest", "policy", "sign"),
        summary="Sign a policy, or one layer of it",
        handler="secrun.cli.attest_policy:sign",
        positionals=(Positional(name="file", help="the policy as JSON"),),
        options=(Option(flags=("--key",), metavar="PEM", help="private key: P-256 or Ed25519"), _OUT),
    ),
    Verb(
        words=("attest", "policy", "show"),
        summary="Check the files of a policy and show what they say together",
        handler="secrun.cli.attest_policy:show",
        positionals=(Positional(name="file", help="the files of one policy", count="+"),),
        options=(*_POLICY, FORMAT),
    ),
)
