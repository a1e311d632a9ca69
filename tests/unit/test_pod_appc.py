"""What app container images ask for when they run: they narrow their confinement, and widen nothing."""

import errno

import pytest

from secrun.errors import UsageError
from secrun.image.aci.manifest import parse
from secrun.network import decide
from secrun.network.plan import ImagePort, Protocol
from secrun.network.request import NamedPort, NetworkRequest
from secrun.pod import appc
from secrun.pod.request import AppRequest, DeclaredVolume, default_app_name
from secrun.pod.security import SecurityRequest
from secrun.record import replace
from secrun.stage1.manifest import Limits
from secrun.stage1.volume import Volume
from secrun_policies import capabilities
from support import aci


def image(*isolators, **members):
    found = [{"name": name, "value": value} for name, value in isolators]
    return parse(aci.encoded(aci.manifest(app={"isolators": found, **members})), what="it")


def request(**changes):
    return AppRequest(image="app.aci", **changes)


@pytest.fixture
def applied(layout):
    """Apply an image to a request, with what a profile adds to it."""

    def run(manifest, given=None, asked=None):
        given = given or request()
        return appc.apply(layout, "app", manifest, given, asked or given)

    return run


RETAIN = "os/linux/capabilities-retain-set"
REMOVE = "os/linux/capabilities-remove-set"


def held(security, uid=0):
    known = capabilities.of_host(40)
    exactly = security.capabilities is not None
    add, drop = (security.capabilities, ("all",)) if exactly else (security.cap_add, security.cap_drop)
    return capabilities.grant(add or (), drop, uid=uid, known=known)


def test_a_retain_set_leaves_what_it_names_of_the_default(applied):
    narrowed = applied(image((RETAIN, {"set": ["CAP_CHOWN", "CAP_KILL"]}))).request.security
    assert held(narrowed).bounding == ("CAP_CHOWN", "CAP_KILL")
    # Another user than root has no capability by default, and gets none by this.
    assert held(narrowed, uid=1000).bounding == ()
    assert held(applied(image((RETAIN, {"set": []}))).request.security).bounding == ()


def test_a_remove_set_takes_away_and_may_name_what_nobody_has(applied):
    narrowed = applied(image((REMOVE, {"set": ["CAP_CHOWN", "CAP_SYS_ADMIN", "CAP_UNHEARD_OF"]})))
    assert set(held(narrowed.request.security).bounding) == capabilities.DEFAULT - {"CAP_CHOWN"}


def test_more_than_the_default_needs_the_operators_word(applied):
    wide = image((RETAIN, {"set": ["CAP_CHOWN", "CAP_SYS_ADMIN"]}))
    with pytest.raises(UsageError, match="CAP_SYS_ADMIN") as caught:
        applied(wide)
    assert caught.value.code == "image-capabilities"
    assert "--cap-add" in caught.value.hint
    for given, expected in (
        (SecurityRequest(cap_add=("sys_admin",)), {"CAP_CHOWN", "CAP_SYS_ADMIN"}),
        (SecurityRequest(cap_drop=("CAP_SYS_ADMIN",)), {"CAP_CHOWN"}),
        (SecurityRequest(capabilities=("CAP_KILL",)), {"CAP_KILL"}),
    ):
        assert set(held(applied(wide, request(security=given)).request.security).bounding) == expected
    with pytest.raises(UsageError, match="unknown capability"):
        applied(image((RETAIN, {"set": ["CAP_UNHEARD_OF"]})))


def test_a_profile_that_grants_less_is_not_widened(applied):
    given = request()
    asked = replace(given, security=SecurityRequest(capabilities=("CAP_CHOWN", "CAP_KILL"), profile="p"))
    kept = applied(image((RETAIN, {"set": ["CAP_CHOWN"]})), given, asked)
    assert kept.request.security.capabilities == ("CAP_CHOWN",)
    with pytest.raises(UsageError, match="CAP_FOWNER"):
        applied(image((RETAIN, {"set": ["CAP_FOWNER"]})), given, asked)


SECCOMP = "os/linux/seccomp-retain-set"


def test_a_filter_is_taken_if_it_is_narrower(applied):
    found = applied(image((SECCOMP, {"set": ["read", "write", "@systemd/io-event"]})))
    calls = found.request.security.seccomp.split(",")
    assert calls[0] == "mode=retain"
    assert {"read", "write", "epoll_wait"} <= set(calls)
    # Of a group only what the default filter allows stays; this call of the same group it does not.
    assert "epoll_wait_old" not in calls
    found = applied(image((SECCOMP, {"set": ["read"], "errno": "ENOTSUP"})))
    mode, number, call = found.request.security.seccomp.split(",")
    assert (mode, call) == ("mode=retain", "read")
    assert getattr(errno, number.removeprefix("errno=")) == errno.ENOTSUP
    for name in (["read", "reboot"], ["@appc.io/all"], ["mount"]):
        with pytest.raises(UsageError) as caught:
            applied(image((SECCOMP, {"set": name})))
        assert caught.value.code == "image-seccomp"
    with pytest.raises(UsageError, match="no_such_call"):
        applied(image((SECCOMP, {"set": ["no_such_call"]})))


def test_the_operators_filter_and_a_profiles_win(applied):
    wide = image((SECCOMP, {"set": ["@appc.io/all"]}))
    given = request(security=SecurityRequest(seccomp="strict"))
    assert applied(wide, given).request.security.seccomp == "strict"
    asked = replace(request(), security=SecurityRequest(seccomp="strict"))
    found = applied(wide, request(), asked)
    assert found.request.security.seccomp == "strict"
    assert "profile has a filter" in found.notes[0]


def test_new_privileges_are_never_given_by_an_image(applied):
    name = "os/linux/no-new-privileges"
    assert applied(image((name, True))).request.security.new_privileges is False
    assert applied(image((name, False))).request.security.new_privileges is None
    given = request(security=SecurityRequest(new_privileges=True))
    assert applied(image((name, True)), given).request.security.new_privileges is True


def test_limits_are_the_operators_else_the_lower_of_profile_and_image(applied):
    wanted = image(
        ("resource/memory", {"limit": "64Mi"}),
        ("resource/cpu", {"limit": "500m"}),
        ("os/linux/cpu-shares", 1024),
        ("os/linux/oom-score-adj", 500),
    )
    found = applied(wanted).request
    assert (found.limits.memory_bytes, found.limits.cpu_millis, found.limits.cpu_weight) == (
        64 << 20,
        500,
        39,
    )
    assert found.security.oom_score_adj == 500
    given = request(limits=Limits(memory_bytes=1 << 30, cpu_millis=2000, cpu_weight=7))
    assert applied(wanted, given).request.limits == given.limits
    asked = replace(request(), limits=Limits(memory_bytes=32 << 20, cpu_millis=4000))
    assert applied(wanted, request(), asked).request.limits.memory_bytes == 32 << 20
    assert applied(wanted, request(), asked).request.limits.cpu_millis == 500
    with pytest.raises(UsageError, match="too few") as caught:
        applied(image(("resource/memory", {"limit": "4k"})))
    assert caught.value.code == "image-memory"


def test_unknown_isolators_are_told_and_all_can_be_left_out_by_name(applied):
    wide = image((RETAIN, {"set": ["CAP_SYS_ADMIN"]}), ("example.com/own", {"any": "thing"}))
    plain = appc.without_isolators(wide)
    assert applied(plain).request.security == SecurityRequest()
    (note,) = applied(image(("example.com/own", 1))).notes
    assert "example.com/own" in note


POINTS = [{"name": "data", "path": "/data", "readOnly": True}, {"name": "work", "path": "/work"}]


def test_mount_points_get_the_volume_of_their_name_or_an_empty_folder(applied, tmp_path):
    wanted = image(mountPoints=POINTS)
    found = applied(wanted)
    empty = [(item.target, item.name, item.read_only, item.fill) for item in found.request.empty_volumes]
    assert empty == [("/data", "", True, False), ("/work", "", False, False)]
    assert ["data" in found.notes[0], "work" in found.notes[1]] == [True, True]
    source = str(tmp_path)
    for said, expected in ((None, True), (False, False), (True, True)):
        declared = (DeclaredVolume(name="data", source=source, read_only=said),)
        (volume,) = applied(wanted, request(declared=declared)).request.volumes
        assert (volume.source, volume.target, volume.read_only) == (source, "/data", expected)
    mounted = request(volumes=(Volume(source=source, target="/work", read_only=False),))
    found = applied(wanted, mounted)
    assert (found.request.volumes, len(found.notes)) == (mounted.volumes, 1)
    gone = (DeclaredVolume(name="data", source=f"{source}/none", read_only=None),)
    with pytest.raises(UsageError, match="does not exist"):
        applied(wanted, request(declared=gone))


def test_groups_and_the_apps_name_are_given_unless_the_operator_says_otherwise(applied):
    wanted = image(supplementaryGIDs=[500, 600])
    found = applied(wanted).request
    assert (found.groups, dict(found.env)) == (("500", "600"), {"AC_APP_NAME": "app"})
    other = applied(wanted, request(user="1", env=(("AC_APP_NAME", "x"),))).request
    assert (other.groups, dict(other.env)) == ((), {"AC_APP_NAME": "x"})
    assert applied(wanted, request(groups=("data",))).request.groups == ("data",)


@pytest.mark.parametrize(
    ("members", "code"),
    [
        ({"eventHandlers": [{"name": "pre-start", "exec": ["/x"]}]}, "image-event-handlers"),
        (
            {"ports": [{"name": "web", "port": 80, "protocol": "tcp", "socketActivated": True}]},
            "image-socket-activation",
        ),
    ],
)
def test_what_secrun_does_not_do_is_refused_by_name(applied, members, code):
    with pytest.raises(UsageError) as caught:
        applied(image(**members))
    assert caught.value.code == code


def test_an_image_without_an_app_changes_nothing(applied):
    base = parse(aci.encoded(aci.manifest()), what="it")
    assert applied(base).request == request()


def test_ports_are_forwarded_by_the_names_that_the_image_gives_them():
    named = (
        ImagePort(name="web", port=8080, count=1, protocol=Protocol.TCP),
        ImagePort(name="media", port=9000, count=3, protocol=Protocol.UDP),
    )

    def ports(name, host):
        asked = NetworkRequest(named_ports=(NamedPort(name=name, host_ip="", host_port=host),))
        return [
            (port.host_port, port.pod_port, str(port.protocol)) for port in decide.ports_of(asked, (), named)
        ]

    assert ports("web", 80) == [(80, 8080, "tcp")]
    assert ports("media", 100) == [(100, 9000, "udp"), (101, 9001, "udp"), (102, 9002, "udp")]
    with pytest.raises(UsageError, match="no image") as caught:
        ports("other", 1)
    assert caught.value.hint == "they have: web, media"
    with pytest.raises(UsageError, match="beyond 65535"):
        ports("media", 65534)


@pytest.mark.parametrize("word", ["./app.aci", "aci:/x/app.aci", "https://h.example/x/app.aci"])
def test_an_app_is_called_as_its_file(word):
    assert default_app_name(word) == "app"
