"""Every refusal names the image, the rule and the next step, ends with 120 and is measured."""

import json
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from host.test_trusted_pods import events
from secrun.digest import Digest
from support import registry
from support.images import Entry, LayoutWriter, tar_layer
from support.registry import Registry
from support.roots import made
from support.secrun import Secrun

_PLAIN = ("--tls-verify=false",)
_COSIGN = "application/vnd.dev.cosign.simplesigning.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@dataclass(frozen=True)
class Lab:
    """A root that trusts a key for one prefix, and a registry with images that nobody has signed."""

    root: Secrun
    served: Registry
    base: Path
    policy: Path

    def image(self, tag: str = "1") -> str:
        return self.served.reference(f"team/app:{tag}")

    def sign(self, image: str, *, key: str = "team", identity: str = "") -> None:
        named = ("--identity", identity) if identity else ()
        self.root("sign", *_PLAIN, "--key", self.base / f"{key}.key", *named, image)

    def digest(self, tag: str) -> str:
        inspected = registry.skopeo("inspect", "--tls-verify=false", self.image(tag))
        return str(json.loads(inspected)["Digest"])

    def signatures_of(self, tag: str) -> str:
        return self.image(self.digest(tag).replace(":", "-") + ".sig")

    def send(self, method: str, path: str, data: bytes, kind: str) -> str:
        url = path if path.startswith("http") else f"http://{self.served.address}/v2/team/app/{path}"
        asked = urllib.request.Request(url, data=data, method=method, headers={"Content-Type": kind})
        with urllib.request.urlopen(asked) as answer:
            return str(answer.headers.get("Location", ""))

    def blob(self, data: bytes) -> str:
        digest = str(Digest.of(data))
        place = self.send("POST", "blobs/uploads/", b"", "application/octet-stream")
        self.send("PUT", f"{place}&digest={digest}", data, "application/octet-stream")
        return digest

    def attach(self, payload: bytes, *, size: int) -> None:
        """Put a signature of `payload` by the trusted key's name beside the first image."""
        config = b"{}"
        layer = {
            "mediaType": _COSIGN,
            "digest": self.blob(payload),
            "size": size,
            "annotations": {"dev.cosignproject.cosign/signature": "AAAA"},
        }
        document = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": self.blob(config),
                "size": len(config),
            },
            "layers": [layer],
        }
        tag = self.digest("1").replace(":", "-") + ".sig"
        self.send("PUT", f"manifests/{tag}", json.dumps(document).encode(), _MANIFEST)


@pytest.fixture
def lab(secrun: Secrun, tmp_path: Path) -> Iterator[Lab]:
    writer = LayoutWriter(tmp_path / "layout")
    for tag in ("1", "2"):
        writer.add_image(tag, [tar_layer([Entry(name=tag, data=tag.encode())])])
    policy = tmp_path / "policy.json"
    policy.write_text('{"default": [{"type": "reject"}]}')
    with (
        made(secrun, tmp_path) as root,
        registry.running_registry(tmp_path / "registry") as served,
    ):
        for tag in ("1", "2"):
            served.push(f"oci:{tmp_path}/layout:{tag}", f"team/app:{tag}")
        for name in ("team", "other"):
            root("trust", "generate-key", tmp_path / name)
        trust = ("trust", "add", "--skip-fingerprint-review", "--prefix")
        root(*trust, f"{served.address}/team", tmp_path / "team.pub")
        root(*trust, f"{served.address}/other", tmp_path / "other.pub")
        yield Lab(root=root, served=served, base=tmp_path, policy=policy)


def unsigned(lab: Lab) -> str:
    return "the image has no such signature"


def key_of_another_prefix(lab: Lab) -> str:
    lab.sign(lab.image(), key="other")
    return "no signature meets it"


def another_reference(lab: Lab) -> str:
    lab.sign(lab.image(), identity=f"{lab.served.address}/team/another:1")
    return f"{lab.served.address}/team/another:1"


def another_digest(lab: Lab) -> str:
    lab.sign(lab.image("2"))
    registry.skopeo(
        "copy",
        *("--src-tls-verify=false", "--dest-tls-verify=false"),
        lab.signatures_of("2"),
        lab.signatures_of("1"),
    )
    return lab.digest("2")


def malformed_payload(lab: Lab) -> str:
    lab.attach(b"{", size=1)
    return "no signature meets it"


def a_gigabyte(lab: Lab) -> str:
    lab.attach(b"{}", size=1 << 30)
    return f"has {1 << 30} bytes"


def revoked(lab: Lab) -> str:
    lab.sign(lab.image())
    listed = json.loads(lab.root("trust", "list", "--format=json").out)["keys"]
    (key,) = [item for item in listed if item["prefix"].endswith("/team")]
    lab.root("trust", "rm", key["fingerprint"])
    return "rejects every image"


def duplicate_keys_in_the_policy(lab: Lab) -> str:
    lab.policy.write_text('{"default": [{"type": "reject"}], "default": []}')
    return "duplicate key"


def a_policy_that_cannot_be_read(lab: Lab) -> str:
    lab.policy.unlink()
    lab.policy.mkdir()
    return str(lab.policy)


@pytest.mark.parametrize(
    "wrong",
    [
        unsigned,
        key_of_another_prefix,
        another_reference,
        another_digest,
        malformed_payload,
        a_gigabyte,
        revoked,
        duplicate_keys_in_the_policy,
        a_policy_that_cannot_be_read,
    ],
)
def test_a_refusal_says_what_and_why_and_what_next_and_is_measured(lab: Lab, wrong: Callable[[Lab], str]):
    why = wrong(lab)
    before = lab.served.requests("GET", "/blobs/")
    refused = lab.root("fetch", *_PLAIN, "--policy", lab.policy, lab.image(), code=120)
    assert lab.image() in refused.err
    assert why in refused.err
    assert "hint: " in refused.err
    assert str(lab.root.root / "trust") in refused.err or str(lab.policy) in refused.err
    (denied,) = events(lab.root, "Denied")
    assert denied["subject"] == lab.image()
    assert denied["code"].startswith("denied-")
    # A payload may have been looked at, the image was not.
    assert lab.served.requests("GET", "/blobs/") - before <= 1
    assert lab.image() not in lab.root("image", "list").out


def test_one_good_signature_among_bad_ones_lets_an_image_in(lab: Lab):
    lab.sign(lab.image(), key="other")
    lab.sign(lab.image(), identity=f"{lab.served.address}/team/another:1")
    lab.sign(lab.image())
    lab.root("fetch", *_PLAIN, "--policy", lab.policy, lab.image())
    assert lab.image() in lab.root("image", "list").out
