"""The scopes under which a trust policy sees an image: containers-policy.json(5), most specific first."""

from secrun.image.reference import FileReference, RegistryReference, Transport
from secrun.trust.admission import Subject


def _parents(name: str) -> list[str]:
    """Return `name` and its parents along slashes, up to the first component."""
    words = name.split("/")
    return ["/".join(words[:count]) for count in range(len(words), 0, -1)]


def _wildcards(domain: str) -> list[str]:
    """Return *.example.com, *.com for a registry such as r.example.com:5000; the port does not count."""
    if domain.startswith("["):
        return []
    labels = domain.partition(":")[0].split(".")
    return ["*." + ".".join(labels[start:]) for start in range(1, len(labels))]


def registry_scopes(reference: RegistryReference) -> tuple[str, ...]:
    """Return the scopes of an image in a registry; a digest is more exact than a tag and stands for it."""
    exact = f"{reference.repository}{f'@{reference.digest}' if reference.digest else f':{reference.tag}'}"
    return (exact, *_parents(reference.repository), *_wildcards(reference.domain))


def file_scopes(reference: FileReference) -> tuple[str, ...]:
    """Return the scopes of a layout or archive: its path and the folders above, but not `/`.

    The tag is no part of it: DIR:TAG and DIR may be the same image, and both must be judged alike.
    containers/image does the same, although containers-policy.json(5) also names DIR:TAG.
    """
    if reference.transport is Transport.DOCKER_ARCHIVE:
        return ()
    return tuple(path for path in _parents(reference.path) if path)


def subject(reference: RegistryReference | FileReference) -> Subject:
    """Return what to ask the policy about `reference`, whose path must be localized."""
    if isinstance(reference, RegistryReference):
        return Subject(name=str(reference), transport="docker", scopes=registry_scopes(reference))
    return Subject(name=str(reference), transport=reference.transport.value, scopes=file_scopes(reference))
