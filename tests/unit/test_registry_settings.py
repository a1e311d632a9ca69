"""Credentials, certificates, proxies and challenges: found where other tools keep them."""

import base64
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secrun.errors import ExternalError, HostError, UsageError
from secrun.image import auth, challenge, retry
from secrun.image.auth import Credentials
from secrun.image.certs import CertificateDirs
from secrun.image.proxy import ProxySettings


def entry(user, password="pw"):
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home; returns a function that writes a credentials file below it."""
    for name in ("XDG_CONFIG_HOME", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))

    def write(path, document):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(json.dumps(document))
        return tmp_path / path

    return write


def user_of(repository, **options):
    found = auth.find(repository, **options)
    return found.user if found else None


def test_no_file_means_anonymous(home):
    assert auth.find("r.example/a") is None


def test_files_are_searched_in_order(home):
    home(".docker/config.json", {"auths": {"r.example": entry("docker"), "other.example": entry("other")}})
    assert user_of("r.example/a") == "docker"
    home(".config/containers/auth.json", {"auths": {"r.example": entry("config")}})
    assert user_of("r.example/a") == "config"
    home("runtime/containers/auth.json", {"auths": {"r.example": entry("runtime")}})
    assert user_of("r.example/a") == "runtime"
    assert user_of("other.example/a") == "other"


def test_a_named_file_is_the_only_one(home, monkeypatch):
    home(".docker/config.json", {"auths": {"r.example": entry("docker")}})
    named = home("named.json", {"auths": {}})
    assert user_of("r.example/a", authfile=named) is None
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(named))
    assert user_of("r.example/a") is None
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(named.with_name("gone")))
    with pytest.raises(UsageError, match="does not exist"):
        auth.find("r.example/a")


@pytest.mark.parametrize(
    ("repository", "user"),
    [
        ("r.example/a/b/c", "abc"),
        ("r.example/a/b/d", "ab"),
        ("r.example/a/x", "host"),
        ("r.example/ab", "host"),
        ("r.example:5000/a/b", "port"),
        ("docker.io/library/busybox", "hub"),
        ("other.example/a", None),
    ],
)
def test_the_longest_key_wins(home, repository, user):
    home(
        "runtime/containers/auth.json",
        {
            "auths": {
                "r.example": entry("host"),
                "r.example/a/b": entry("ab"),
                "r.example/a/b/c": entry("abc"),
                "r.example:5000": entry("port"),
                "https://index.docker.io/v1/": entry("hub"),
            }
        },
    )
    assert user_of(repository) == user


def test_a_password_may_hold_anything(home):
    home("runtime/containers/auth.json", {"auths": {"r.example": entry("u", "a:b c\u00e9")}})
    assert auth.find("r.example/a") == Credentials(user="u", password="a:b c\u00e9")


@pytest.mark.parametrize(
    "value", [{"auth": "%%%"}, {"auth": base64.b64encode(b"hush").decode()}, {"identitytoken": "hush"}]
)
def test_an_entry_that_cannot_be_used_is_an_error_without_its_secret(home, value):
    home("runtime/containers/auth.json", {"auths": {"r.example": value}})
    with pytest.raises(UsageError) as caught:
        auth.find("r.example/a")
    assert "r.example" in caught.value.message
    assert "hush" not in f"{caught.value.message}{caught.value.hint}"


def test_a_broken_file_is_an_error(home):
    home("runtime/containers/auth.json", [])
    with pytest.raises(UsageError, match=r"auth\.json"):
        auth.find("r.example/a")


def helper(folder, name, script):
    folder.mkdir(exist_ok=True)
    path = folder / f"docker-credential-{name}"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_a_helper_for_the_registry_comes_before_stored_entries(home, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/bin:/usr/bin")
    helper(
        tmp_path / "bin",
        "mine",
        'read -r server; echo "$1 $server" > "$HOME/asked"; echo \'{"Username": "u", "Secret": "s"}\'',
    )
    home(
        "runtime/containers/auth.json",
        {"auths": {"r.example": entry("stored")}, "credHelpers": {"r.example": "mine"}},
    )
    assert auth.find("r.example/a") == Credentials(user="u", password="s")
    assert (tmp_path / "asked").read_text() == "get r.example\n"


def test_the_store_is_asked_last_and_may_know_nothing(home, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/bin:/usr/bin")
    helper(tmp_path / "bin", "all", "echo credentials not found in native keychain; exit 1")
    home(".docker/config.json", {"auths": {"r.example": entry("stored")}, "credsStore": "all"})
    assert user_of("r.example/a") == "stored"
    assert user_of("other.example/a") is None


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("echo hush; exit 3", ExternalError),
        ("echo hush", ExternalError),
        ('echo \'{"Username": "<token>", "Secret": "hush"}\'', ExternalError),
    ],
)
def test_a_helper_that_fails_is_an_error_without_its_output(home, tmp_path, monkeypatch, script, error):
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/bin:/usr/bin")
    helper(tmp_path / "bin", "bad", script)
    home(".docker/config.json", {"credHelpers": {"r.example": "bad"}})
    with pytest.raises(error) as caught:
        auth.find("r.example/a")
    assert "docker-credential-bad" in caught.value.message
    assert "hush" not in f"{caught.value.message}{caught.value.hint}"


def test_a_helper_that_is_not_installed_is_named_with_its_file(home):
    home(".docker/config.json", {"credHelpers": {"r.example": "no-such"}})
    with pytest.raises(HostError, match=r"docker-credential-no-such.*config\.json"):
        auth.find("r.example/a")


def test_a_helper_cannot_be_a_path(home):
    home(".docker/config.json", {"credHelpers": {"r.example": "../../bin/sh"}})
    with pytest.raises(UsageError, match="impossible helper"):
        auth.find("r.example/a")


# Certificates.


def test_the_first_folder_of_the_host_counts_with_its_port(tmp_path):
    for folder, names in (
        ("a/r:5000", "ca.crt x.cert x.key"),
        ("b/r:5000", "other.crt"),
        ("b/r", "plain.crt"),
    ):
        (tmp_path / folder).mkdir(parents=True)
        for name in names.split():
            (tmp_path / folder / name).touch()
    dirs = CertificateDirs(dirs=(tmp_path / "none", tmp_path / "a", tmp_path / "b"))
    found = dirs.find("r:5000")
    assert found.authorities == (tmp_path / "a/r:5000/ca.crt",)
    assert found.clients == ((tmp_path / "a/r:5000/x.cert", tmp_path / "a/r:5000/x.key"),)
    assert dirs.find("r").authorities == (tmp_path / "b/r/plain.crt",)
    assert dirs.find("q").authorities == ()


@pytest.mark.parametrize("name", ["x.cert", "x.key"])
def test_a_client_certificate_without_its_other_half_is_an_error(tmp_path, name):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / name).touch()
    with pytest.raises(HostError, match=name):
        CertificateDirs(dirs=(tmp_path,)).find("r")


# Proxies.


@pytest.mark.parametrize(
    ("exceptions", "host", "straight"),
    [
        ("", "r.example", False),
        ("*", "r.example", True),
        ("example", "r.example", True),
        (".example", "r.example", True),
        ("r.example", "r.example", True),
        ("*.example", "r.example", True),
        ("xample", "r.example", False),
        ("R.EXAMPLE", "r.example:5000", True),
        ("r.example:5000", "r.example:5000", True),
        ("r.example:5001", "r.example:5000", False),
        ("r.example:443", "r.example", True),
        ("10.0.0.0/8", "10.1.2.3:5000", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("::1/128,fd00::/8", "[fd00::1]:5000", True),
        ("", "localhost:5000", True),
        ("", "127.0.0.1:5000", True),
        ("", "[::1]:5000", True),
        ("no/such", "r.example", False),
    ],
)
def test_no_proxy_follows_the_rules_of_go(exceptions, host, straight):
    settings = ProxySettings.of_environment({"HTTPS_PROXY": "http://p:3128", "NO_PROXY": exceptions})
    assert (settings.choose("https", host) is None) == straight


def test_a_proxys_password_is_kept_apart_from_its_address():
    settings = ProxySettings.of_environment({"https_proxy": "http://u%40x:p%3Aw@p.example:3128/"})
    proxy = settings.choose("https", "r.example")
    assert proxy is not None
    assert (proxy.url, proxy.credentials) == ("http://p.example:3128", "u@x:p:w")
    assert settings.choose("http", "r.example") is None


def test_a_proxy_without_scheme_is_http_and_nonsense_is_an_error():
    proxy = ProxySettings(https="p.example:3128").choose("https", "r.example")
    assert proxy is not None
    assert proxy.url == "http://p.example:3128"
    with pytest.raises(UsageError, match="HTTPS_PROXY"):
        ProxySettings(https="socks5://p").choose("https", "r.example")


# Challenges and waits.


def test_challenges_of_real_registries_parse():
    hub = 'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull"'
    (found,) = challenge.parse(hub)
    assert found.scheme == "bearer"
    assert found.parameters["scope"] == "repository:a/b:pull"
    assert found.parameters["realm"] == "https://auth.docker.io/token"
    two = challenge.parse('Basic realm="a, b=\\"c\\"", Bearer realm=x')
    assert [item.scheme for item in two] == ["basic", "bearer"]
    assert two[0].parameters["realm"] == 'a, b="c"'


@given(st.text(max_size=60) | st.text('Bearer ="\\,x', max_size=60))
def test_any_challenge_parses_or_ends(text):
    assert all(item.scheme for item in challenge.parse(text))


@given(st.integers(1, 60), st.floats(0, 1, exclude_max=True))
def test_a_wait_is_never_nothing_and_never_too_long(attempt, chance):
    assert 0.25 <= retry.delay(attempt, None, chance=chance) <= 30


def test_retry_after_may_be_a_date():
    assert retry.parse_retry_after("Sun, 22 Nov 2026 10:00:10 GMT", 1795341600.0) == 10.0
    assert retry.parse_retry_after("Sun, 22 Nov 2020 10:00:10 GMT", 1795341600.0) == 0.0


def test_dirs_of_a_user_begin_with_their_own():
    assert CertificateDirs.of_user({"HOME": "/h"}).dirs[0] == Path("/h/.config/containers/certs.d")
