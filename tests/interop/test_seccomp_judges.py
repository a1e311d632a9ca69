"""Filters judged by others: the sets of calls are systemd's, the default profile no wider than podman's."""

from pathlib import Path

import pytest

from secrun.launch import run
from secrun_policies import isolator
from secrun_policies.capabilities import DEFAULT
from secrun_policies.profiles import default_profile, load_profile
from secrun_policies.seccomp import Architecture
from secrun_policies.seccomp_compare import wider
from secrun_policies.seccomp_resolve import SeccompFilter, resolve

# Of golang-github-containers-common, which podman needs.
PODMAN = Path("/usr/share/containers/seccomp.json")


def resolved(profile, caps) -> SeccompFilter:
    return resolve(profile, caps=frozenset(caps), table=Architecture.X86_64, kernel=(6, 1))


def test_the_sets_are_systemds():
    said = run(
        ["systemd-analyze", "--no-pager", "syscall-filter", "@clock", "@mount", "@process"]
    ).stdout.decode()
    words = {line.strip() for line in said.splitlines() if line.startswith("    ")}
    calls = {word for word in words if word[:1].isalpha()}
    ours = {call for name in ("clock", "mount", "process") for call in isolator.systemd_groups()[name]}
    assert calls == ours


@pytest.mark.parametrize("caps", [(), sorted(DEFAULT)])
def test_the_default_profile_is_no_wider_than_podmans(caps):
    podman = resolved(load_profile(PODMAN), caps)
    # Podman compares whole registers where the kernel looks at 32 bits.
    assert wider(resolved(default_profile(), caps), podman, bits=32) == ()
    assert len(wider(podman, resolved(default_profile(), caps), bits=32)) > 20, "it is narrower"
