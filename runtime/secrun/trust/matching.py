"""Whether the name in a signature is the name of the image: `signedIdentity`; pure."""

from secrun import dockername
from secrun.digest import Digest
from secrun.dockername import DockerName
from secrun.errors import ImageError
from secrun.trust.faults import SignatureFaultError
from secrun.trust.requirement import IdentityMatch, SignedIdentity


def _parsed(text: str) -> DockerName:
    try:
        return dockername.parse(text)
    except ImageError as error:
        raise SignatureFaultError(f"it is for {text[:200]!r}, which is no image name") from error


def _remapped(identity: SignedIdentity, image: DockerName) -> DockerName:
    """Replace the prefix of an image's name; other images keep theirs."""
    name = str(image)
    repository = image.repository
    if repository != identity.prefix and not repository.startswith(f"{identity.prefix}/"):
        return image
    return _parsed(identity.signed_prefix + name[len(identity.prefix) :])


def _matches(identity: SignedIdentity, image: DockerName, signed: DockerName) -> bool:
    match identity.match:
        case IdentityMatch.REPOSITORY | IdentityMatch.EXACT_REPOSITORY:
            return signed.repository == image.repository
        case IdentityMatch.EXACT | IdentityMatch.EXACT_REFERENCE:
            return not signed.bare and not image.bare and signed == image
        case IdentityMatch.REPO_DIGEST_OR_EXACT | IdentityMatch.REMAP:
            if signed.bare or image.bare:
                return False
            # The digest itself is compared with the signed one elsewhere.
            return signed.repository == image.repository if image.digest is not None else signed == image


def check_reference(identity: SignedIdentity, image: DockerName | None, claimed: str) -> None:
    """Raise SignatureFaultError unless `claimed`, the name in a signature, fits the image's as demanded.

    `image` is None where a transport gives images no name of this kind.
    """
    if identity.match in (IdentityMatch.EXACT_REFERENCE, IdentityMatch.EXACT_REPOSITORY):
        image = _parsed(identity.reference)
    if image is None:
        raise SignatureFaultError(
            f"{identity.match} needs an image with a registry's name; only exactReference and "
            "exactRepository work for files"
        )
    if identity.match is IdentityMatch.REMAP:
        image = _remapped(identity, image)
    if not _matches(identity, image, _parsed(claimed)):
        raise SignatureFaultError(f"it is for {claimed[:200]!r}, expected {image} by {identity.match}")


def check_digest(claimed: Digest, wanted: frozenset[Digest]) -> None:
    """Raise SignatureFaultError unless `claimed` is the manifest or the index that it was chosen from."""
    if claimed not in wanted:
        known = " or ".join(sorted(map(str, wanted)))
        raise SignatureFaultError(f"it is for the manifest {claimed}, the image is {known}")
