"""The verbs about trust: keys and signatures."""

from secrun.cli.options_common import FORMAT, IMAGE, NO_LEGEND
from secrun.cli.table import Kind, Option, Positional, Verb

_WHERE = (
    Option(
        flags=("--prefix",),
        metavar="REGISTRY/NAME",
        help="the key signs images whose name is this or begins with this and a slash",
    ),
    Option(flags=("--root",), kind=Kind.FLAG, help="the key signs any image"),
)
_PASSPHRASE = Option(
    flags=("--passphrase-file",), metavar="FILE", help="the first line of FILE unlocks the private key"
)
# Of a verb with an image: how a registry is reached.
_TLS_VERIFY, _AUTHFILE, _POLICY = IMAGE[1:4]

TRUST_VERBS: tuple[Verb, ...] = (
    Verb(
        words=("trust", "add"),
        summary="Trust a key for the images of a prefix, or for all",
        handler="secrun.cli.trust:add",
        description="The key is an OpenPGP key (gpg --export) or a public key in PEM (cosign.pub). Its "
        "fingerprint and names are shown, and on a terminal it is asked whether they are right.",
        positionals=(Positional(name="key", help="files with public keys", count="+"),),
        options=(
            *_WHERE,
            Option(
                flags=("--skip-fingerprint-review",),
                kind=Kind.FLAG,
                help="do not ask; for scripts that got the key in a trusted way",
            ),
        ),
        needs_root=True,
        examples=("secrun trust add --prefix registry.example/team cosign.pub",),
    ),
    Verb(
        words=("trust", "list"),
        summary="List trusted keys by prefix",
        handler="secrun.cli.trust:list_keys",
        options=(FORMAT, NO_LEGEND),
    ),
    Verb(
        words=("trust", "show"),
        summary="Show trusted keys, or which rule decides about an image",
        handler="secrun.cli.trust:show",
        positionals=(Positional(name="what", help="a fingerprint's first digits, or an image reference"),),
        options=(_POLICY, FORMAT),
    ),
    Verb(
        words=("trust", "rm"),
        summary="Trust a key no more",
        handler="secrun.cli.trust:remove",
        description="Without --prefix and --root the key is removed everywhere. What it signed is judged "
        "anew at the next use.",
        positionals=(Positional(name="fingerprint", help="at least eight digits", count="+"),),
        options=_WHERE,
        needs_root=True,
    ),
    Verb(
        words=("trust", "generate-key"),
        summary="Make a key that signs images",
        handler="secrun.cli.trust:generate_key",
        description="Writes NAME.key (PKCS #8 in PEM, mode 0600) and NAME.pub; ECDSA on P-256.",
        positionals=(Positional(name="name", help="path without ending"),),
        options=(
            Option(
                flags=("--passphrase-file",),
                metavar="FILE",
                help="encrypt the private key with the first line of FILE",
            ),
        ),
    ),
)

SIGN_VERBS: tuple[Verb, ...] = (
    Verb(
        words=("sign",),
        summary="Sign an image in a registry or a layout, as cosign does",
        handler="secrun.cli.sign:sign",
        description="Of an index every image is signed too. Signatures go to the tags sha256-DIGEST.sig.",
        positionals=(
            Positional(name="image", help="docker://REGISTRY/NAME[:TAG][@DIGEST] or oci:DIR[:TAG]"),
        ),
        options=(
            Option(
                flags=("--key",),
                metavar="FILE",
                help="private key: PKCS #8 in PEM, or what cosign generate-key-pair wrote",
            ),
            _PASSPHRASE,
            Option(
                flags=("--identity",),
                metavar="REGISTRY/NAME[:TAG]",
                help="the name that is signed; default is the image's own",
            ),
            _TLS_VERIFY,
            _AUTHFILE,
        ),
        examples=("secrun sign --key team.key docker://registry.example/team/app:1",),
    ),
)
