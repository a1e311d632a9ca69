"""The verbs on stored images that are not of every day."""

from secrun.cli.options_common import ARCHIVE, FORMAT, IMAGE, NO_LEGEND, pull
from secrun.cli.table import Kind, Option, Positional, Verb

# Of a verb with an image: how a registry is reached.
_PLATFORM, _TLS_VERIFY, _AUTHFILE, _POLICY = IMAGE[:4]
_DRY_RUN = Option(flags=("--dry-run",), kind=Kind.FLAG, help="tell what would go, remove nothing")

IMAGE_VERBS: tuple[Verb, ...] = (
    Verb(
        words=("image", "gc"),
        summary="Remove images that nobody used for a while, and what nothing needs",
        handler="secrun.cli.imagegc:gc",
        description="Images of pods stay, running or not. Whoever prepares a pod meanwhile waits.",
        options=(
            Option(
                flags=("--grace-period",),
                metavar="DURATION",
                default="24h",
                help="keep images that were fetched or used in this time",
            ),
            _DRY_RUN,
            FORMAT,
        ),
    ),
    Verb(
        words=("image", "prune"),
        summary="Remove what nothing needs, and with --all every image that no pod has",
        handler="secrun.cli.imagegc:prune",
        options=(
            Option(flags=("-a", "--all"), kind=Kind.FLAG, help="images too: image gc --grace-period=0s"),
            _DRY_RUN,
            FORMAT,
        ),
    ),
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
        words=("image", "mount"),
        summary="Mount stored images read-only to look at, or list what is mounted",
        handler="secrun.cli.imagemounts:mount",
        description="The policy decides as it does for a pod, and the bytes are checked as for one: by "
        "dm-verity where the kernel has it, else all before the mount. Nothing there can be executed. "
        "Prints the folder.",
        positionals=(Positional(name="image", help="names or ID prefixes; none lists", count="*"),),
        options=(pull("never"), *IMAGE, FORMAT, NO_LEGEND),
        needs_root=True,
    ),
    Verb(
        words=("image", "unmount"),
        summary="Unmount images that image mount mounted",
        handler="secrun.cli.imagemounts:unmount",
        positionals=(Positional(name="image", help="names or ID prefixes", count="*"),),
        options=(
            Option(flags=("-a", "--all"), kind=Kind.FLAG, help="all that are mounted"),
            Option(flags=("-f", "--force"), kind=Kind.FLAG, help="also while somebody uses it"),
        ),
        needs_root=True,
    ),
    Verb(
        words=("image", "tag"),
        summary="Give a stored image further names on this host",
        handler="secrun.cli.imagearchives:tag",
        description="A tag is NAME[:TAG] without a registry, or localhost/NAME[:TAG]. It moves if another "
        "image has it. Which policy decides stays the affair of where the image came from.",
        positionals=(
            Positional(name="image", help="a stored image's name or ID prefix"),
            Positional(name="name", help="NAME[:TAG]", count="+"),
        ),
        examples=("secrun image tag registry.example/team/app:1 app:good",),
    ),
    Verb(
        words=("image", "untag"),
        summary="Take names away that image tag gave",
        handler="secrun.cli.imagearchives:untag",
        description="The image stays; the last name of an image is not taken away.",
        positionals=(Positional(name="name", help="NAME[:TAG]", count="+"),),
    ),
    Verb(
        words=("image", "save"),
        summary="Write stored images to one archive",
        handler="secrun.cli.imagearchives:save",
        description="An oci-archive keeps digests and signatures; a docker-archive has no place for either.",
        positionals=(Positional(name="image", help="names or ID prefixes", count="+"),),
        options=(
            Option(
                flags=("--format",),
                kind=Kind.CHOICE,
                choices=("oci-archive", "docker-archive"),
                default="oci-archive",
                help="docker-archive: for docker load and podman load",
            ),
            *ARCHIVE,
        ),
        examples=("secrun image save -o apps.tar app:1 db:2",),
    ),
    Verb(
        words=("image", "load"),
        summary="Store the images of an archive that the policy admits",
        handler="secrun.cli.imagearchives:load",
        description="Each image is fetched as oci-archive:FILE:NAME or docker-archive:FILE:NAME and judged "
        "by the rules for such files; one that is refused keeps no other from its turn. Prints the IDs.",
        options=(
            Option(flags=("-i", "--input"), metavar="FILE", help="the archive; it need not stay"),
            pull("always"),
            *IMAGE,
            FORMAT,
        ),
        examples=("secrun image load -i apps.tar",),
    ),
    Verb(
        words=("image", "verify"),
        summary="Read stored images anew, and judge them with all their signatures",
        handler="secrun.cli.imageverify:verify",
        description="Every blob and the rootfs image are digested once more. Nothing is fetched. Ends with "
        "120 if an image would not be admitted, with 125 if one is damaged.",
        positionals=(Positional(name="image", help="names or ID prefixes", count="+"),),
        options=(
            _POLICY,
            Option(
                flags=("--repair",),
                kind=Kind.FLAG,
                help="remove damaged files; a rootfs image is made anew from good layers, the rest fetched",
            ),
            FORMAT,
        ),
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
