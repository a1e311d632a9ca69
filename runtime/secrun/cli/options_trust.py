"""The verbs about trust: keys, signatures, and images that travel with them."""

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
_PLATFORM, _TLS_VERIFY, _AUTHFILE, _POLICY = IMAGE[:4]

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

IMAGE_VERBS: tuple[Verb, ...] = (
    Verb(
        words=("image", "cat-manifest"),
        summary="Print the manifest of a stored image",
        handler="secrun.cli.imagefiles:cat_manifest",
        description="Of an app container image its own, byte for byte; else manifest and configuration.",
        positionals=(Positional(name="image", help="a stored image's name or ID prefix"),),
        options=(Option(flags=("--pretty-print",), kind=Kind.FLAG, help="indent it"),),
    ),
    Verb(
        words=("image", "export"),
        summary="Write a stored image to a file, as an app container image or an OCI archive",
        handler="secrun.cli.imagefiles:export",
        description="The same image gives the same bytes. An app container image has all files in one "
        "rootfs and no dependencies.",
        positionals=(
            Positional(name="image", help="a stored image's name or ID prefix"),
            Positional(name="file", help="the file to write"),
        ),
        options=(
            Option(
                flags=("--format",),
                kind=Kind.CHOICE,
                choices=("aci", "oci"),
                default="aci",
                help="aci: of the appc spec, uncompressed; oci: an archive of an image layout",
            ),
            Option(flags=("--overwrite",), kind=Kind.FLAG, help="replace a file that exists"),
        ),
    ),
    Verb(
        words=("image", "verify"),
        summary="Judge stored images anew, with all their signatures",
        handler="secrun.cli.sign:verify",
        description="Nothing is fetched. Ends with 120 if an image would not be admitted.",
        positionals=(Positional(name="image", help="names or ID prefixes", count="+"),),
        options=(_POLICY, FORMAT),
    ),
    Verb(
        words=("image", "push"),
        summary="Write a stored image to a registry, a layout or an archive",
        handler="secrun.cli.sign:push",
        positionals=(
            Positional(name="image", help="a stored image's name or ID prefix"),
            Positional(
                name="target",
                help="docker://REGISTRY/NAME:TAG, oci:DIR[:TAG], docker-archive:FILE[:NAME:TAG]",
            ),
        ),
        options=(_TLS_VERIFY, _AUTHFILE),
    ),
    Verb(
        words=("image", "copy"),
        summary="Copy an image with its signatures from one place to another",
        handler="secrun.cli.sign:copy",
        description="Nothing is stored or judged. An index is copied as a whole unless a platform is given.",
        positionals=(
            Positional(name="source", help="an image reference, or a stored image"),
            Positional(name="target", help="docker://REGISTRY/NAME:TAG, oci:DIR[:TAG], docker-archive:FILE"),
        ),
        options=(_PLATFORM, _TLS_VERIFY, _AUTHFILE),
    ),
)
