"""--secret: what is understood, what is refused and in which words, and where the bytes are looked for."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secrun.errors import HostError, UsageError
from secrun.fields import Fields
from secrun.pod import secrets
from secrun.stage1 import bundle
from secrun.stage1.bundle import Extras
from secrun.stage1.secret import Disclosed, Secret, SecretKind


def one(text: str) -> Secret:
    (found,) = secrets.parse_all([text])
    return found


@pytest.mark.parametrize(
    ("text", "kind", "source", "target"),
    [
        ("db", SecretKind.CREDENTIAL, "db", "/run/secrets/db"),
        ("db,type=mount", SecretKind.CREDENTIAL, "db", "/run/secrets/db"),
        ("db,target=sub/./key", SecretKind.CREDENTIAL, "db", "/run/secrets/sub/key"),
        ("/etc/keys/db", SecretKind.FILE, "/etc/keys/db", "/run/secrets/db"),
        ("db,source=/a b", SecretKind.FILE, "/a b", "/run/secrets/db"),
        ("db,src=/a,target=//x//y", SecretKind.FILE, "/a", "/x/y"),
        ("/a/db,encrypted", SecretKind.ENCRYPTED, "/a/db", "/run/secrets/db"),
        ("/a/db,encrypted=true", SecretKind.ENCRYPTED, "/a/db", "/run/secrets/db"),
        ("/a/db,encrypted=false", SecretKind.FILE, "/a/db", "/run/secrets/db"),
    ],
)
def test_where_a_secret_comes_from_and_where_it_is(text, kind, source, target):
    found = one(text)
    assert (found.name, found.kind, found.source, found.target) == ("db", kind, source, target)
    assert (found.uid, found.gid, found.mode) == (0, 0, "444")


@pytest.mark.parametrize(("given", "mode"), [("0400", "400"), ("640", "640"), ("0", "0"), ("0000", "0")])
def test_owner_and_mode(given, mode):
    found = one(f"db,uid=65535,gid=7,mode={given}")
    assert (found.uid, found.gid, found.mode) == (65535, 7, mode)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no secret's name"),
        ("-x", "no secret's name"),
        ("/", "no secret's name"),
        ("/etc/a b", "no secret's name"),
        ("db,type=env", "never in the environment"),
        ("db,type=env,target=PASSWORD", "never in the environment"),
        ("db,type=tmpfs", "is not mount"),
        ("db,colour=red", "is not known"),
        ("db,uid=1,uid=1", "uid is given twice"),
        ("db,src=/a,source=/b", "source is given twice"),
        ("/a/db,source=/b", "so is its source"),
        ("keys/db", "not an absolute path"),
        ("db,source=x", "not an absolute path"),
        ("db,encrypted", "none is named"),
        ("/a/db,encrypted=yes", "neither true nor false"),
        ("db,target=", "not a file's path"),
        ("db,target=/x/", "not a file's path"),
        ("db,uid=65536", "uid is not a number"),
        ("db,gid=-1", "gid is not a number"),
        ("db,uid=٣", "uid is not a number"),
        ("db,mode=1777", "not one of chmod"),
        ("db,mode=u+r", "not one of chmod"),
    ],
)
def test_what_has_no_meaning_is_refused(text, problem):
    with pytest.raises(UsageError) as caught:
        one(text)
    assert problem in caught.value.message


def test_an_error_text_repeats_the_name_alone():
    """Whoever gives the secret itself must not find it in a log."""
    with pytest.raises(UsageError) as caught:
        one("db,hunter2-correct-horse")
    assert "hunter2" not in caught.value.message


@given(st.text())
def test_any_text_is_a_secret_or_a_usage_error(text):
    try:
        found = one(text)
    except UsageError:
        return
    assert Secret.from_fields(Fields(found.to_json(), "secret")) == found
    assert found.target.startswith("/")


def test_it_is_bound_into_the_app_read_only_and_in_the_order_of_targets():
    given = secrets.parse_all(["b,target=/run/b", "a,target=/run/a"])
    extras = Extras(secrets=given)
    bundle.check_targets(extras)
    mounts = [mount for mount in bundle._extra_mounts("web", extras) if isinstance(mount, dict)]
    assert [(mount["destination"], mount["source"]) for mount in mounts] == [
        ("/run/a", "/run/secrets/web-1"),
        ("/run/b", "/run/secrets/web-0"),
    ]
    assert mounts[0]["options"] == ["bind", "ro", "nosuid", "nodev", "noexec"]


@pytest.mark.parametrize("targets", [("/proc/x",), ("/sys/x",), ("/dev",), ("/x", "/x"), ("/a/../x",)])
def test_a_target_that_hides_what_the_app_needs_or_is_taken_is_refused(targets):
    given = secrets.parse_all(f"s{index},target={target}" for index, target in enumerate(targets))
    with pytest.raises(UsageError):
        bundle.check_targets(Extras(secrets=given))


@dataclasses.dataclass
class App:
    name: str
    secrets: tuple[Secret, ...]


@dataclasses.dataclass
class Pod:
    apps: tuple[App, ...]
    uuid: str = "u"


def read(texts: list[str], environment: dict[str, str]) -> Disclosed:
    pod = Pod(apps=(App("web", secrets.parse_all(texts)),))
    return secrets.read(pod, environment)  # type: ignore[arg-type]  # what it looks at of a manifest


def test_a_services_own_credential_is_found_before_the_hosts(tmp_path: Path, monkeypatch):
    stores = tuple(tmp_path / name for name in ("etc", "run"))
    monkeypatch.setattr(secrets, "STORES", stores)
    for folder in (tmp_path / "own", *stores):
        folder.mkdir()
        (folder / "db").write_text(folder.name)
    service = {"CREDENTIALS_DIRECTORY": str(tmp_path / "own")}
    for expected, gone in (("own", tmp_path / "own"), ("etc", stores[0]), ("run", stores[1])):
        assert read(["db"], service).values == {("web", 0): expected.encode()}
        (gone / "db").unlink()
    with pytest.raises(HostError, match="no credential db"):
        read(["db"], service)


def test_a_relative_folder_of_credentials_is_no_service_managers(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(secrets, "STORES", ())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "db").write_text("x")
    monkeypatch.setattr(secrets, "STORES", (tmp_path / "none",))
    with pytest.raises(HostError, match="no credential db"):
        read(["db"], {"CREDENTIALS_DIRECTORY": "."})


def test_more_than_a_pod_may_have_together_is_refused(tmp_path: Path):
    (tmp_path / "a").write_bytes(bytes(400_000))
    with pytest.raises(HostError, match="more than 1048576 bytes together"):
        read([f"{tmp_path}/a,target=/x{index}" for index in range(3)], {})


def test_the_bytes_are_in_no_text_of_what_holds_them():
    assert "hunter2" not in repr(Disclosed(values={("web", 0): b"hunter2"}))
