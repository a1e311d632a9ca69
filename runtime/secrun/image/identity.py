"""The scopes under which a trust policy sees an image: containers-policy.json(5), most specific first."""

from secrun.dockername import DockerName, parents, wildcards
from secrun.image.reference import FileReference, RegistryReference, Transport
from secrun.trust.admission import Subject


def registry_scopes(reference: RegistryReference) -> tuple[str, ...]:
    """Return the scopes of an image in a registry; a digest is more exact than a tag and stands for it."""
    exact = f"{reference.repository}{f'@{reference.digest}' if reference.digest else f':{reference.tag}'}"
    return (exact, *parents(reference.repository), *wildcards(reference.domain))


def file_scopes(reference: FileReference) -> tuple[str, ...]:
    """Return the scopes of a layout or archive: its path and the folders above, but not `/`.

    The tag is no part of it: DIR:TAG and DIR may be the same image, and both must be judged alike.
    containers/image does the same, although containers-policy.json(5) also names DIR:TAG.
    """
    if reference.transport is Transport.DOCKER_ARCHIVE:
        return ()
    return tuple(path for path in parents(reference.path) if path)


def subject(reference: RegistryReference | FileReference) -> Subject:
    """Return what to ask the policy about `reference`, whose path must be localized."""
    if isinstance(reference, RegistryReference):
        # With a tag and a digest, the digest decides what is fetched, and so what must be signed.
        name = DockerName(
            domain=reference.domain,
            path=reference.path,
            tag=None if reference.digest else reference.tag,
            digest=reference.digest,
        )
        return Subject(
            name=str(reference), transport="docker", scopes=registry_scopes(reference), docker=name
        )
    return Subject(name=str(reference), transport=reference.transport.value, scopes=file_scopes(reference))
