"""Credentials for registries: containers-auth.json(5), Docker's config.json and credential helpers."""

import base64
import binascii
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from secrun.errors import ExternalError, HostError, ImageError, UsageError
from secrun.image import limits
from secrun.jsonio import JsonObject, parse_object
from secrun.record import field, record

# Keys under which `docker login` keeps the credentials of docker.io.
_HUB_KEYS = ("https://index.docker.io/v1/", "index.docker.io", "registry-1.docker.io")
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")
# What every helper says when it has nothing (docker-credential-helpers, credentials/error.go).
_HELPER_NOTHING = "credentials not found in native keychain"
_HELPER_SECONDS = 60.0
# A helper answers with this user when its secret is an identity token.
_TOKEN_USER = "<token>"  # noqa: S105 - a marker, no secret


@record
class Credentials:
    """A user and a password; the password never shows in a repr."""

    user: str
    password: str = field(repr=False)

    def basic(self) -> str:
        """Return the value of an Authorization header (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode("ascii")


def candidate_files(authfile: Path | None, environ: Mapping[str, str], uid: int) -> tuple[Path, ...]:
    """Return the files to search, in order; a file that was named by option or variable is the only one."""
    named = authfile or (Path(word) if (word := environ.get("REGISTRY_AUTH_FILE")) else None)
    if named:
        return (named,)
    home = Path(environ.get("HOME") or "/root")
    runtime = environ.get("XDG_RUNTIME_DIR")
    return (
        (Path(runtime) / "containers" if runtime else Path(f"/run/containers/{uid}")) / "auth.json",
        Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "containers/auth.json",
        Path(environ.get("DOCKER_CONFIG") or home / ".docker") / "config.json",
    )


def find(repository: str, *, authfile: Path | None = None) -> Credentials | None:
    """Return the credentials for `registry/path`, None for an anonymous pull.

    Raises UsageError for a file that cannot be read or parsed, and HostError for a helper that fails.
    """
    named = authfile is not None or bool(os.environ.get("REGISTRY_AUTH_FILE"))
    for path in candidate_files(authfile, os.environ, os.geteuid()):
        document = _load(path, must_exist=named)
        if document is None:
            continue
        found = _in_file(document, repository, path)
        if found is not None:
            return found
    return None


def _load(path: Path, *, must_exist: bool) -> JsonObject | None:
    try:
        with path.open("rb") as stream:
            data = stream.read(limits.MAX_AUTH_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        if not must_exist:
            return None
        raise UsageError(f"credentials file {path} does not exist", code="usage-authfile") from error
    except OSError as error:
        raise UsageError(f"credentials file {path}: {error.strerror}", code="usage-authfile") from error
    if not data.strip():
        return None
    try:
        return parse_object(data, what=f"credentials file {path}", limit=limits.MAX_AUTH_BYTES)
    except ImageError as error:
        raise UsageError(error.message, code="usage-authfile") from error


def keys(repository: str) -> Sequence[str]:
    """Return the keys of `auths` that match, the longest first, and Docker's own words for its hub last."""
    words = repository.split("/")
    names = ["/".join(words[:count]) for count in range(len(words), 0, -1)]
    registry = words[0]
    legacy = [
        f"https://{registry}",
        f"http://{registry}",
        f"https://{registry}/v1/",
        f"https://{registry}/v2/",
    ]
    return [*names, *(_HUB_KEYS if registry == "docker.io" else ()), *legacy]


def _in_file(document: JsonObject, repository: str, path: Path) -> Credentials | None:
    registry = repository.partition("/")[0]
    helpers = document.get("credHelpers")
    helper = helpers.get(registry) if isinstance(helpers, dict) else None
    if isinstance(helper, str) and helper:
        return _ask(helper, registry, path)
    auths = document.get("auths")
    if isinstance(auths, dict):
        for key in keys(repository):
            entry = auths.get(key)
            if isinstance(entry, dict) and (found := _entry(entry, key, path)) is not None:
                return found
    store = document.get("credsStore")
    if isinstance(store, str) and store:
        return _ask(store, _HUB_KEYS[0] if registry == "docker.io" else registry, path)
    return None


def _entry(entry: JsonObject, key: str, path: Path) -> Credentials | None:
    where = f"credentials file {path}, entry {key!r}"
    if entry.get("identitytoken"):
        raise UsageError(
            f"{where} is an identity token, which secrun does not use",
            hint="log in with a user and a password or an access token",
            code="usage-authfile",
        )
    word = entry.get("auth")
    if not isinstance(word, str) or not word:
        return None
    try:
        # Docker pads the value with NUL bytes when a password was short.
        text = base64.b64decode(word, validate=True).decode("utf-8").rstrip("\0")
    except (binascii.Error, UnicodeDecodeError):
        text = ""
    user, colon, password = text.partition(":")
    if not colon or not user:
        # Neither the value nor the cause is shown: both hold the secret.
        raise UsageError(f"{where} is not base64 of USER:PASSWORD", code="usage-authfile")
    return Credentials(user=user, password=password)


def _ask(helper: str, server: str, path: Path) -> Credentials | None:
    """Run `docker-credential-HELPER get`; None if it has nothing for `server`."""
    from secrun import launch

    if not _HELPER.match(helper):
        raise UsageError(f"credentials file {path} names an impossible helper", code="usage-authfile")
    program = f"docker-credential-{helper}"
    environment = {
        name: os.environ[name]
        for name in ("HOME", "PATH", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS", "GNUPGHOME", "DISPLAY")
        if name in os.environ
    }
    try:
        done = launch.run(
            [program, "get"],
            stdin=server.encode(),
            environment=environment,
            check=False,
            timeout=_HELPER_SECONDS,
        )
    except HostError as error:
        raise HostError(
            f"{program} is not installed, but {path} names it", code="host-credential-helper"
        ) from error
    if done.returncode != 0:
        if _HELPER_NOTHING in (done.stdout + done.stderr).decode("utf-8", "replace"):
            return None
        # Its output is not shown: it may hold the secret.
        raise ExternalError(
            f"{program} get failed for {server}: {launch.describe_status(done.returncode)}",
            hint=f"try: echo {server} | {program} get",
        )
    return _helper_answer(done.stdout, program)


def _helper_answer(output: bytes, program: str) -> Credentials:
    try:
        document = parse_object(output, what=program, limit=limits.MAX_AUTH_BYTES)
    except ImageError as error:
        raise ExternalError(f"{program} get did not answer with JSON") from error
    user, secret = document.get("Username"), document.get("Secret")
    if not isinstance(user, str) or not isinstance(secret, str) or user == _TOKEN_USER:
        raise ExternalError(f"{program} get did not answer with a user and a password")
    return Credentials(user=user, password=secret)
