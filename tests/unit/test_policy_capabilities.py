"""What a request for capabilities gives, and what it refuses."""

import pytest

from secrun_policies.capabilities import DEFAULT, KNOWN, grant, of_host, parse_name
from secrun_policies.errors import PolicyError

HOST = of_host(40)
# podman-run(1), --cap-add: the default of containers.conf.
PODMAN = {
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}  # fmt: skip


def test_the_default_is_narrower_than_podmans():
    assert DEFAULT < PODMAN


def test_root_holds_the_default_and_inherits_nothing():
    granted = grant((), (), uid=0, known=HOST)
    assert set(granted.bounding) == set(granted.effective) == DEFAULT
    assert granted.ambient == granted.added == ()


def test_another_user_holds_nothing_at_all():
    granted = grant((), (), uid=1000, known=HOST)
    assert granted.bounding == granted.effective == granted.ambient == ()


def test_another_user_gets_what_was_added_as_ambient_or_exec_would_lose_it():
    granted = grant(("net_bind_service",), (), uid=1000, known=HOST)
    assert granted.ambient == granted.effective == granted.bounding == ("CAP_NET_BIND_SERVICE",)
    assert granted.added == ("CAP_NET_BIND_SERVICE",)


@pytest.mark.parametrize(
    ("add", "drop", "expected"),
    [
        (("net_raw",), (), DEFAULT | {"CAP_NET_RAW"}),
        (("CAP_NET_RAW",), ("Cap_Chown",), (DEFAULT | {"CAP_NET_RAW"}) - {"CAP_CHOWN"}),
        ((), ("all",), set()),
        (("KILL",), ("ALL",), {"CAP_KILL"}),
        (("all",), (), set(KNOWN)),
        (("all",), ("sys_admin",), set(KNOWN) - {"CAP_SYS_ADMIN"}),
        (("all",), ("all",), set()),
        (("chown",), (), DEFAULT),
        ((), ("net_raw",), DEFAULT),
    ],
)
def test_adding_and_dropping(add, drop, expected):
    assert set(grant(add, drop, uid=0, known=HOST).bounding) == expected


def test_only_what_goes_beyond_the_default_counts_as_added():
    assert grant(("chown", "net_raw"), (), uid=0, known=HOST).added == ("CAP_NET_RAW",)


def test_all_means_what_this_kernel_knows():
    assert "CAP_CHECKPOINT_RESTORE" not in grant(("all",), (), uid=0, known=of_host(37)).bounding


@pytest.mark.parametrize(("add", "drop"), [(("kill",), ("kill",)), (("all", "kill"), ("KILL",))])
def test_the_same_name_added_and_dropped_is_refused(add, drop):
    with pytest.raises(PolicyError, match="both added and dropped"):
        grant(add, drop, uid=0, known=HOST)


def test_a_capability_that_the_kernel_lacks_is_refused():
    with pytest.raises(PolicyError, match="CAP_BPF"):
        grant(("bpf",), (), uid=0, known=of_host(37))


def test_an_unknown_name_is_refused_with_its_neighbours():
    with pytest.raises(PolicyError) as caught:
        parse_name("SYS_ADMN")
    assert "CAP_SYS_ADMIN" in caught.value.hint
    assert caught.value.code == "policy-capability"


@pytest.mark.parametrize("text", ["", "CAP_", "\x00", "CAP_CAP_KILL", "all "])
def test_odd_names_are_refused(text):
    with pytest.raises(PolicyError):
        parse_name(text)


def test_a_pod_on_the_hosts_network_cannot_have_its_ports():
    withheld = frozenset({"CAP_NET_BIND_SERVICE"})
    assert "CAP_NET_BIND_SERVICE" not in grant((), (), uid=0, known=HOST, withheld=withheld).bounding
    assert "CAP_NET_BIND_SERVICE" not in grant(("all",), (), uid=0, known=HOST, withheld=withheld).bounding
    with pytest.raises(PolicyError, match="this pod's network"):
        grant(("net_bind_service",), (), uid=0, known=HOST, withheld=withheld)
