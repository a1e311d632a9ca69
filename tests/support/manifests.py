"""Manifests of pods that never run: what a test does not name has a plain value."""

from secrun.digest import Digest
from secrun.record import replace
from secrun.stage1.manifest import AppManifest, ImageIdentity, Limits, Network, PodManifest
from secrun.trust.admission import BYPASS

DIGEST = Digest.of(b"x")


def app(name="web", **changes):
    fields = {
        "name": name,
        "image": ImageIdentity(
            reference="r/x:1",
            manifest=DIGEST,
            config=DIGEST,
            rootfs=DIGEST,
            tree=DIGEST,
            verity_root="00",
            admission=replace(BYPASS, reason=""),
        ),
        "args": ("/bin/true",),
        "env_names": ("PATH",),
        "search_path": "/bin",
        "cwd": "/",
        "uid": 0,
        "gid": 0,
        "groups": (),
        "read_only": False,
        "terminal": False,
        "stdin": False,
        "stop_signal": 15,
        "stop_timeout_seconds": 10,
        "volumes": (),
        "limits": Limits(),
        "capabilities": ("CAP_KILL",),
        "relaxations": (),
        "bundle": DIGEST,
    }
    return AppManifest(**{**fields, **changes})


def pod(*apps, network=Network.NONE):
    return PodManifest(
        uuid="0a0a0a0a-1111-4111-8111-111111111111",
        hostname="h",
        network=network,
        flavour="nspawn",
        stage1=DIGEST,
        stage1_tree=DIGEST,
        created_ns=1,
        relaxations=(),
        outer_arguments=(),
        outer_filter=None,
        apps=apps or (app(),),
    )
