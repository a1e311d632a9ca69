"""Manifests of app container images: what the appc spec allows is taken, all else is an error by name."""

import json

import pytest

from secrun.errors import ImageError
from secrun.image.aci import limits
from secrun.image.aci.manifest import document_of, parse, read
from support import aci


def parsed(document):
    return parse(aci.encoded(document), what="it")


def refused(document):
    with pytest.raises(ImageError) as caught:
        parsed(document)
    return caught.value


def app(**members):
    return aci.manifest(app=members)


def test_all_that_the_specification_names_is_read():
    found = parsed(aci.WHOLE)
    assert found.full_name == "example.com/reduce-worker:1.0.0"
    assert dict(found.labels) == {"version": "1.0.0", "os": "linux", "arch": "amd64"}
    assert found.path_whitelist == ("/etc/ca/example.com/crt", "/etc/systemd/system")
    (dependency,) = found.dependencies
    assert (dependency.name, dependency.size) == ("example.com/reduce-worker-base", 22017258)
    assert dependency.labels == (("env", "canary"),)
    inner = found.app
    assert inner.exec == ("/usr/bin/reduce-worker", "--quiet")
    assert (inner.user, inner.group, inner.supplementary_gids) == ("100", "/usr/bin/ping", (400, 500))
    assert (inner.working_directory, inner.event_handlers) == ("/opt/work", ("pre-start",))
    assert inner.environment == (("REDUCE_WORKER_DEBUG", "true"),)
    (point,) = inner.mount_points
    assert (point.name, point.path, point.read_only) == ("work", "/var/lib/work", True)
    assert [(port.name, port.port, port.count, port.socket_activated) for port in inner.ports] == [
        ("health", 4000, 1, True),
        ("ftp-data", 20000, 1000, False),
    ]
    isolators = inner.isolators
    assert (isolators.cpu_millis, isolators.memory_bytes, isolators.cpu_shares) == (500, 2 << 30, 1024)
    assert isolators.caps_retain == ("CAP_NET_BIND_SERVICE",)
    assert isolators.seccomp == "mode=remove,errno=ENOSYS,reboot"
    assert (isolators.no_new_privileges, isolators.oom_score_adj) == (True, 100)
    assert isolators.ignored == ("resource/network-bandwidth",)


def test_an_image_without_an_app_and_without_lists_is_whole():
    found = parsed({"acKind": "ImageManifest", "acVersion": "0.5.1+git", "name": "base", "labels": None})
    assert (found.app, found.labels, found.dependencies, found.full_name) == (None, (), (), "base")


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"acKind": "PodManifest", "acVersion": "0.8.1", "name": "a"}, "acKind"),
        ({"acKind": "ImageManifest", "acVersion": "1.0.0", "name": "a"}, "acVersion"),
        ({"acKind": "ImageManifest", "acVersion": "0.8", "name": "a"}, "acVersion"),
        ({"acKind": "ImageManifest", "acVersion": "0.8.1"}, "name"),
        (aci.manifest("Example.com/app"), "AC Identifier"),
        (aci.manifest("example.com//app"), "AC Identifier"),
        (aci.manifest("../app"), "AC Identifier"),
        (aci.manifest("a" * 256), "AC Identifier"),
        (aci.manifest(labels={"name": "x"}), "'name'"),
        (aci.manifest(labels={"Os": "x"}), "AC Identifier"),
        (aci.manifest(labels={"version": "2"}), "two labels"),
        (aci.manifest(annotations=[{"name": "a", "value": 1}]), "'value'"),
        (aci.manifest(dependencies=[{"imageName": "b", "imageID": "sha256-00"}]), "imageID"),
        (aci.manifest(dependencies=[{"imageName": "b", "imageID": "sha512-0f"}]), "imageID"),
        (aci.manifest(dependencies=[{"imageName": "b", "size": -1}]), "limit"),
        (aci.manifest(dependencies=[{}] * (limits.MAX_DEPENDENCIES + 1)), "entries"),
        (aci.manifest(pathWhitelist=["relative"]), "absolute"),
        (aci.manifest(pathWhitelist=["/a/../b"]), "absolute"),
        (app(exec=[]), "exec is empty"),
        (app(exec="sh"), "a list"),
        (app(user=None), "'user'"),
        (app(user="a:b"), "user is"),
        (app(group=""), "group is"),
        (app(user="/../x"), "absolute"),
        (app(supplementaryGIDs=["5"]), "group's number"),
        (app(supplementaryGIDs=[True]), "group's number"),
        (app(workingDirectory="opt"), "absolute"),
        (app(environment=[{"name": "A=B", "value": ""}]), "variable"),
        (app(environment=[{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]), "two variables"),
        (app(eventHandlers=[{"name": "start", "exec": ["/x"]}]), "pre-start"),
        (app(eventHandlers=[{"name": "pre-start", "exec": []}]), "exec is empty"),
        (app(mountPoints=[{"name": "a.b", "path": "/x"}]), "AC Name"),
        (app(mountPoints=[{"name": "a", "path": "/"}]), "hide"),
        (app(mountPoints=[{"name": "a", "path": "/x"}, {"name": "a", "path": "/y"}]), "two mount points"),
        (app(mountPoints=[{"name": "a", "path": "/x", "readOnly": "no"}]), "true or false"),
        (app(ports=[{"name": "a", "port": 0, "protocol": "tcp"}]), "between 1 and 65535"),
        (app(ports=[{"name": "a", "port": 65535, "count": 2, "protocol": "tcp"}]), "between 1 and 65535"),
        (app(ports=[{"name": "a", "port": 70000, "protocol": "tcp"}]), "limit"),
        (app(ports=[{"name": "a", "port": 80}]), "'protocol'"),
        (aci.manifest(app={"isolators": {}}), "a list"),
    ],
)
def test_what_the_specification_does_not_allow_is_refused_by_name(document, said):
    error = refused(document)
    assert error.message.startswith("it")
    assert said in error.message


def isolator(name, value):
    return app(isolators=[{"name": name, "value": value}])


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("os/linux/capabilities-retain-set", {"set": ["cap_chown"]}, "cannot be in its set"),
        ("os/linux/capabilities-retain-set", ["CAP_CHOWN"], "an object"),
        ("os/linux/seccomp-retain-set", {"set": []}, "empty"),
        ("os/linux/seccomp-retain-set", {"set": ["read,mode=remove"]}, "cannot be in its set"),
        ("os/linux/seccomp-remove-set", {"set": ["read"], "errno": "nope"}, "errno"),
        ("os/linux/no-new-privileges", "true", "true nor false"),
        ("os/linux/oom-score-adj", 1001, "whole number"),
        ("os/linux/oom-score-adj", True, "whole number"),
        ("resource/memory", {"limit": "1 GB"}, "amount"),
        ("resource/memory", {"limit": "0"}, "range"),
        ("resource/memory", {"limit": "9999999E"}, "range"),
        ("resource/cpu", {"limit": 1.5}, "amount"),
        ("resource/cpu", {"request": "x", "limit": "1"}, "amount"),
    ],
)
def test_isolators_that_mean_nothing_are_refused(name, value, said):
    error = refused(isolator(name, value))
    assert said in error.message
    assert "isolators[0]" in error.message


def test_isolators_that_exclude_one_another_or_come_twice_are_refused():
    caps = {"set": ["CAP_CHOWN"]}
    calls = {"set": ["read"]}
    for first, second in (
        ("os/linux/capabilities-retain-set", "os/linux/capabilities-remove-set"),
        ("os/linux/seccomp-retain-set", "os/linux/seccomp-remove-set"),
        ("resource/cpu", "resource/cpu"),
    ):
        value = caps if "cap" in first else calls if "seccomp" in first else {"limit": "1"}
        refused(app(isolators=[{"name": first, "value": value}, {"name": second, "value": value}]))


def test_the_words_that_mask_a_set_stand_alone():
    for mode, word in (("retain", "@appc.io/all"), ("remove", "@appc.io/empty")):
        found = parsed(isolator(f"os/linux/seccomp-{mode}-set", {"set": ["read", word]}))
        assert found.app.isolators.seccomp == f"mode={mode},{word}"


def test_duplicate_keys_depth_and_size_are_refused():
    text = json.dumps(aci.manifest()).replace('"name": "example.com/app"', '"name": "a", "name": "b"')
    assert "duplicate key" in refused(text.encode()).message
    assert "deep" in refused(b'{"a":' * 100_000 + b"1" + b"}" * 100_000).message
    assert "limit" in refused(b" " * (limits.MAX_MANIFEST_BYTES + 1)).message
    for data in (b"", b"[]", b"{", b"\xff"):
        refused(data)


def test_fractions_where_the_specification_has_none_do_not_matter():
    document = aci.manifest(app={"isolators": [{"name": "own", "value": [1.5]}]}, other=0.25)
    plain = document_of(aci.encoded(document), what="it")
    assert plain["other"] == "0.25"
    assert read(plain, what="it") == parsed(document)
    with pytest.raises(ImageError):
        document_of(aci.encoded(isolator("resource/cpu", {"limit": 1.5})), what="it")
