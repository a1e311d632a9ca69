"""Where things are inside a stage1, the same for every flavour (docs/agent-protocol.md)."""

AGENT = "/usr/bin/secrun-agent"
CRUN_ROOT = "/run/crun"
POD = "/pod"
"""Read-only: units, OCI bundles and the files that apps see under /etc."""
UNITS = "/pod/units"
IMAGES = "/images"
VOLUMES = "/volumes"
RW = "/rw"
HOST = "/host"


def bundle(app: str) -> str:
    """OCI bundle of an app."""
    return f"{POD}/apps/{app}"


def rootfs(app: str) -> str:
    """Where the agent mounts the writable root of an app."""
    return f"/run/secrun/apps/{app}/rootfs"


def image(app: str) -> str:
    """Read-only lower layer of an app."""
    return f"{IMAGES}/{app}"


SECCOMP = f"{HOST}/seccomp.sock"
"""Where the runtime hands over a filter that asks, while calls are recorded."""


def device(app: str, index: int) -> str:
    """Where an app's n-th device is bound; no volume has such a name, they end with a dash and a number."""
    return f"{VOLUMES}/{app}-d{index}"


def empty_volume(name: str) -> str:
    """Where the agent makes a volume that is the pod's own."""
    return f"{RW}/volumes/{name}"


SECRETS = "/run/secrets"
"""In memory; the agent has the same word (runtime/agent/src/secret.rs)."""


def secret_name(app: str, index: int) -> str:
    """What an app's n-th secret is called in its folder; no two are called the same."""
    return f"{app}-{index}"


def secret(app: str, index: int) -> str:
    """Where an app's n-th secret is."""
    return f"{SECRETS}/{secret_name(app, index)}"


def volume(app: str, index: int) -> str:
    """Where the host side of an app's n-th volume is bound."""
    return f"{VOLUMES}/{app}-{index}"
