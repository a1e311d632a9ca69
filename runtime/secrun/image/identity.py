"""The scopes under which a trust policy sees an image: containers-policy.json(5), most specific first."""

from secrun.dockername import DockerName, parents, wildcards
from secrun.image.reference import (
    AppcReference,
    FileReference,
    Origin,
    RegistryReference,
    Transport,
    UrlReference,
)
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


def appc_scopes(name: str, reference: FileReference | UrlReference | AppcReference) -> tuple[str, ...]:
    """Return the scopes of an app container image: its name with its version, and those of where it lies."""
    image = name.partition(":")[0]
    named = (*([name] if name != image else []), *parents(image)) if name else ()
    return (*named, *(file_scopes(reference) if isinstance(reference, FileReference) else ()))


def subject(reference: Origin, given: str = "") -> Subject:
    """Return what to ask the policy about `reference`, whose path must be localized.

    `given` is what an app container image calls itself, NAME[:VERSION]; the keys that count hang on it.
    """
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
    if not isinstance(reference, FileReference) or reference.transport is Transport.ACI:
        known = given or (reference.name.partition(",")[0] if isinstance(reference, AppcReference) else "")
        return Subject(
            name=str(reference),
            transport=Transport.ACI.value,
            scopes=appc_scopes(known, reference),
            appc=known.partition(":")[0],
        )
    return Subject(name=str(reference), transport=reference.transport.value, scopes=file_scopes(reference))
