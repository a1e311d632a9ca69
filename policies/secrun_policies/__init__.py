"""The confinement compiler: pure functions from request, image and host to a pod's policy."""

from secrun_policies.confine import (
    AppFacts,
    Confinement,
    HostFacts,
    PodConfinement,
    PodFacts,
    Relaxation,
    RelaxationKind,
    Rlimit,
    compile_app,
    compile_pod,
)
from secrun_policies.errors import PolicyError
from secrun_policies.host import read_host
from secrun_policies.oci import to_oci
from secrun_policies.outer import NetworkMode
from secrun_policies.profiles import default_profile, load_profile
from secrun_policies.seccomp import SeccompProfile

__all__ = [
    "AppFacts",
    "Confinement",
    "HostFacts",
    "NetworkMode",
    "PodConfinement",
    "PodFacts",
    "PolicyError",
    "Relaxation",
    "RelaxationKind",
    "Rlimit",
    "SeccompProfile",
    "compile_app",
    "compile_pod",
    "default_profile",
    "load_profile",
    "read_host",
    "to_oci",
]
