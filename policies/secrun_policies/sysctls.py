"""Kernel settings that an app may ask for: those of the pod's own network namespace; pure."""

import re

from secrun_policies.errors import PolicyError

MAX_SYSCTLS = 64
_NAME = re.compile(r"[a-z0-9_.-]{1,128}\Z")
_VALUE = re.compile(r"[\x20-\x7e\t]{1,256}\Z")
# ipc_namespaces(7): the pod's too, but systemd-nspawn gives a pod only /proc/sys/net to write.
_IPC_PREFIXES = ("fs.mqueue.", "kernel.msg", "kernel.sem", "kernel.shm")
_NETWORK_PREFIX = "net."


def check(settings: tuple[tuple[str, str], ...], *, own_network: bool) -> tuple[tuple[str, str], ...]:
    """Return the settings sorted; raises PolicyError for one that is the host's, or is no setting."""
    names = [name for name, _ in settings]
    if len(names) > MAX_SYSCTLS:
        raise PolicyError(f"more than {MAX_SYSCTLS} sysctls", code="policy-sysctl")
    for name, value in settings:
        if not _NAME.match(name) or ".." in name or not _VALUE.match(value):
            raise PolicyError(f"sysctl {name[:80]!r}={value[:80]!r} is not NAME=VALUE", code="policy-sysctl")
        if names.count(name) > 1:
            raise PolicyError(f"sysctl {name} is given twice", code="policy-sysctl")
        if name.startswith(_NETWORK_PREFIX):
            if not own_network:
                raise PolicyError(
                    f"sysctl {name} cannot be set in this pod's network: it is not the pod's own",
                    hint="--net=none gives the pod one of its own",
                    code="policy-sysctl",
                )
        else:
            whose = "cannot be written in a pod" if name.startswith(_IPC_PREFIXES) else "is the whole host's"
            raise PolicyError(
                f"sysctl {name} {whose}", hint="only net.* can be set for a pod", code="policy-sysctl"
            )
    return tuple(sorted(settings))


def agree(apps: list[tuple[tuple[str, str], ...]]) -> None:
    """Raise PolicyError if two apps of a pod want one setting to be different: it is the pod's."""
    known: dict[str, str] = {}
    for name, value in (item for settings in apps for item in settings):
        if known.setdefault(name, value) != value:
            raise PolicyError(
                f"sysctl {name} is {known[name]} for one app and {value} for another, and they share it",
                code="policy-sysctl",
            )
