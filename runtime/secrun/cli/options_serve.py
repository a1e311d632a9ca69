"""The verbs of the verifier service."""

from secrun.cli.table import Kind, Option, Verb

SERVE_VERBS: tuple[Verb, ...] = (
    Verb(
        words=("attest", "serve"),
        summary="Serve the verifier: enrol hosts, appraise evidence, issue tokens",
        handler="secrun.cli.attest_serve:serve",
        description="Needs no root and no TPM. docs/verifier-service.md has the requests and answers.",
        options=(
            Option(
                flags=("--listen",),
                metavar="ADDR:PORT",
                default="127.0.0.1:8443",
                help="where to listen; without TLS on loopback only; port 0: any free one",
            ),
            Option(
                flags=("--tls-cert",), metavar="FILE", help="certificate chain in PEM; read anew on SIGHUP"
            ),
            Option(flags=("--tls-key",), metavar="FILE", help="its key in PEM"),
            Option(
                flags=("--client-ca",),
                metavar="FILE",
                help="accept client certificates of this CA; a DNS name in one is a host's id",
            ),
            Option(
                flags=("--database",),
                metavar="PATH|URL",
                help="a file, or postgresql://...; default is verifier.db below the root",
            ),
            Option(flags=("--audience",), metavar="NAME", help="who this verifier is, in quotes and tokens"),
            Option(
                flags=("--policy",), metavar="FILE", help="the policy of sessions, if none newer is kept"
            ),
            Option(
                flags=("--policy-key",),
                kind=Kind.LIST,
                metavar="FILE",
                help="take only policies that this public key signed",
            ),
            Option(flags=("--admin-token-file",), metavar="FILE", help="the administrator's token"),
            Option(
                flags=("--admin-cert",),
                kind=Kind.LIST,
                metavar="FILE",
                help="a client certificate that is as good as the administrator's token",
            ),
            Option(flags=("--reader-token-file",), metavar="FILE", help="the token of relying parties"),
            Option(
                flags=("--enroll-token-file",),
                metavar="FILE",
                help="a token without which no host may enrol",
            ),
            Option(flags=("--ek-roots",), metavar="DIR", help="root certificates of TPM makers"),
            Option(
                flags=("--allow-software-tpm",),
                kind=Kind.FLAG,
                help="enrol TPMs that nobody vouches for; they are marked",
            ),
            Option(
                flags=("--signing-key",),
                metavar="FILE",
                help="the P-256 key that signs tokens; default is one in the database, new every 30 days",
            ),
        ),
        examples=(
            "secrun attest serve --audience verifier.example --policy policy.json --allow-software-tpm",
        ),
    ),
)
