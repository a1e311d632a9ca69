"""What tests of fetching share: a layout with one image, options that admit it, a registry that has it."""

import json
from pathlib import Path

from secrun.digest import Digest
from secrun.image.options import FetchOptions
from secrun.image.platform import host_platform
from support.hostile import Hostile, Reply
from support.images import OCI_MANIFEST, Entry, LayoutWriter, tar_layer

ARCH = host_platform().architecture
LAYER = tar_layer([Entry(name="hello", data=b"hello\n")])
OTHER = tar_layer([Entry(name="other", data=b"other\n")])


def accepting(folder: Path) -> FetchOptions:
    """Return options under whose policy every image is admitted."""
    path = folder / "policy.json"
    path.write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
    return FetchOptions(policy=path, tls_verify=False)


def one_image(folder: Path) -> LayoutWriter:
    """Make a layout with the image `one` for this host."""
    made = LayoutWriter(folder / "source")
    made.add_image("one", [LAYER], architecture=ARCH)
    return made


def reference(writer: LayoutWriter, tag: str = "one") -> str:
    return f"oci:{writer.path}:{tag}"


def serve(
    server: Hostile, writer: LayoutWriter, digest: Digest, name: str = "t/app", tag: str = "1"
) -> None:
    """Let a scripted registry offer one image of a layout."""
    manifest = writer.blob(digest).read_bytes()
    reply = Reply(headers={"Content-Type": OCI_MANIFEST}, body=manifest)
    server.replies[f"/v2/{name}/manifests/{tag}"] = [reply]
    server.replies[f"/v2/{name}/manifests/{digest}"] = [reply]
    document = json.loads(manifest)
    for item in (document["config"], *document["layers"]):
        body = writer.blob(item["digest"]).read_bytes()
        server.replies[f"/v2/{name}/blobs/{item['digest']}"] = [Reply(body=body)]
