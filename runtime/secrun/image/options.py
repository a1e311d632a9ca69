"""How an image is to be fetched."""

from enum import StrEnum
from pathlib import Path

from secrun.image.platform import Platform
from secrun.image.progress import NullProgress, Progress
from secrun.record import field, record


class PullPolicy(StrEnum):
    """When to ask the source of an image; the words and their meaning are podman's."""

    ALWAYS = "always"
    MISSING = "missing"
    NEVER = "never"
    NEWER = "newer"


@record
class FetchOptions:
    """How to fetch; `platform` None is this host's, `policy` None the system's."""

    pull: PullPolicy = PullPolicy.MISSING
    platform: Platform | None = None
    tls_verify: bool = True
    authfile: Path | None = None
    policy: Path | None = None
    insecure_image: bool = False
    insecure_http: bool = False
    """App container images, their signatures and the pages that lead to them may come without TLS."""
    insecure_isolators: bool = False
    """The isolators of app container images are not applied."""
    stage1: str = ""
    """The flavour that the image is for; empty if it is only fetched."""
    progress: Progress = field(default_factory=NullProgress)
