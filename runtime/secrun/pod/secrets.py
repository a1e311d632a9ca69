"""Secrets: what --secret says, and their bytes, which are read when the pod starts and not before."""

import os
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from secrun import launch
from secrun.errors import HostError, UsageError
from secrun.record import replace
from secrun.stage1.manifest import PodManifest
from secrun.stage1.secret import MAX_BYTES, MAX_POD_BYTES, Disclosed, Secret, SecretKind
from secrun.stage1.uidrange import SIZE as POD_IDS

FOLDER = "/run/secrets"
# A file name, as systemd.exec(5) has it for credentials and podman for secrets.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}\Z")
_MODE = re.compile(r"0{0,3}([0-7]{1,3})\Z")
_KEYS = ("type", "source", "src", "target", "uid", "gid", "mode", "encrypted")
# Where systemd looks for a credential by its name (systemd.exec(5), LoadCredential=); the first that has it.
STORES = (Path("/etc/credstore"), Path("/run/credstore"), Path("/usr/lib/credstore"))
_LONGEST_KEY = max(map(len, _KEYS))
_ENCRYPTED = ".encrypted"
_SYSTEMD_CREDS = Path("/usr/bin/systemd-creds")
# The TPM may be asked, and may be busy.
_DECRYPT_SECONDS = 60.0
_NO_ENV = "every program of the app could read it, and every crash report: let the app read the file"


def _bad(text: str, problem: str, hint: str = "") -> UsageError:
    # Only the name: whoever took the option for the secret itself must not find it in an error text.
    return UsageError(f"--secret {text.partition(',')[0][:80]!r}: {problem}", hint=hint, code="usage-secret")


def _pairs(text: str, words: Iterable[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in words:
        key, _, value = word.partition("=")
        key = "source" if key == "src" else key
        if key not in _KEYS:
            # A long one may be the secret itself.
            shown = repr(key) if key.isalpha() and len(key) <= _LONGEST_KEY else "a word of it"
            raise _bad(text, f"{shown} is not known", f"known: {', '.join(_KEYS)}")
        if key in found:
            raise _bad(text, f"{key} is given twice")
        found[key] = value
    return found


def _origin(text: str, word: str, pairs: Mapping[str, str]) -> tuple[str, SecretKind, str]:
    """Return name, kind and source."""
    path = word if "/" in word else pairs.get("source")
    if "/" in word and "source" in pairs:
        raise _bad(text, "it is a path, and so is its source")
    name = word.rpartition("/")[2]
    if not _NAME.match(name):
        hint = "letters, digits, '_', '.' and '-'; NAME,source=PATH names a file of any name"
        raise _bad(text, "that is no secret's name", hint)
    encrypted = pairs.get("encrypted", "false")
    if encrypted not in ("", "true", "false"):
        raise _bad(text, "encrypted is neither true nor false")
    if path is None:
        if encrypted != "false":
            hint = f"{STORES[0]}{_ENCRYPTED} is looked through anyway"
            raise _bad(text, "encrypted is said of a file, and none is named", hint)
        return name, SecretKind.CREDENTIAL, name
    if not path.startswith("/"):
        raise _bad(text, "its source is not an absolute path")
    return name, SecretKind.FILE if encrypted == "false" else SecretKind.ENCRYPTED, path


def _identity(text: str, key: str, pairs: Mapping[str, str]) -> int:
    value = pairs.get(key, "0")
    if not (value.isdecimal() and value.isascii() and len(value) < 6 and int(value) < POD_IDS):
        raise _bad(text, f"{key} is not a number from 0 to {POD_IDS - 1}")
    return int(value)


def parse(text: str) -> Secret:
    """Parse --secret NAME|PATH[,source=,target=,uid=,gid=,mode=,encrypted]; raises UsageError."""
    word, *words = text.split(",")
    pairs = _pairs(text, words)
    if (kind := pairs.get("type", "mount")) != "mount":
        if kind == "env":
            raise _bad(text, "a secret is never in the environment", _NO_ENV)
        raise _bad(text, f"type {kind[:40]!r} is not mount")
    name, origin, source = _origin(text, word, pairs)
    target = pairs.get("target", name)
    if not target or target.endswith("/") or "\0" in text:
        raise _bad(text, "its target is not a file's path")
    mode = _MODE.match(pairs.get("mode", "444"))
    if mode is None:
        raise _bad(text, "its mode is not one of chmod(1), in octal digits up to 777")
    return Secret(
        name=name,
        kind=origin,
        source=source,
        target=target if target.startswith("/") else f"{FOLDER}/{target}",
        uid=_identity(text, "uid", pairs),
        gid=_identity(text, "gid", pairs),
        mode=mode[1].lstrip("0") or "0",
    )


def parse_all(texts: Iterable[str]) -> tuple[Secret, ...]:
    """Parse what an app says of its secrets, its paths made plain; raises UsageError."""
    found = (parse(text) for text in texts)
    return tuple(replace(item, target=_plain(item.target)) for item in found)


def _plain(path: str) -> str:
    return "/" + "/".join(part for part in path.split("/") if part not in ("", "."))


def read(manifest: PodManifest, environment: Mapping[str, str]) -> Disclosed:
    """Read all secrets of a pod; raises HostError naming the secret, and nothing of what is in it.

    `environment` is the caller's: a service manager names the folder of its credentials there.
    """
    values: dict[tuple[str, int], bytes] = {}
    for app in manifest.apps:
        for index, secret in enumerate(app.secrets):
            what = f"secret {secret.name} of app {app.name}"
            data = _bytes(secret, what, environment)
            if not data:
                raise _missing(f"{what} is empty")
            values[app.name, index] = data
    if sum(map(len, values.values())) > MAX_POD_BYTES:
        raise HostError(
            f"the secrets of pod {manifest.uuid} have more than {MAX_POD_BYTES} bytes together",
            hint="large files belong on a volume",
            code="host-secret",
        )
    return Disclosed(values=values)


def _missing(text: str, hint: str = "") -> HostError:
    return HostError(text, hint=hint, code="host-secret")


def _bytes(secret: Secret, what: str, environment: Mapping[str, str]) -> bytes:
    if secret.kind is SecretKind.CREDENTIAL:
        path, encrypted = _credential(secret.name, what, environment)
    else:
        path, encrypted = Path(secret.source), secret.kind is SecretKind.ENCRYPTED
    return _decrypted(path, secret.name, what) if encrypted else _file(path, what)


def _credential(name: str, what: str, environment: Mapping[str, str]) -> tuple[Path, bool]:
    """Return where a credential lies, and whether it is encrypted: the service's own before the host's."""
    given = environment.get("CREDENTIALS_DIRECTORY")
    own = [(Path(given) / name, False)] if given and given.startswith("/") else []
    plain = [(store / name, False) for store in STORES]
    sealed = [(Path(f"{store}{_ENCRYPTED}") / name, True) for store in STORES]
    for path, encrypted in (*own, *plain, *sealed):
        if path.exists():
            return path, encrypted
    store = f"{STORES[0]}{_ENCRYPTED}/{name}"
    raise _missing(
        f"{what}: there is no credential {name}",
        f"LoadCredential= of the service, or systemd-creds encrypt --name={name} FILE {store}",
    )


def _file(path: Path, what: str) -> bytes:
    """Read a regular file, however its name leads there: stores of secrets swap links."""
    try:
        # A FIFO must not hold up the start.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise _missing(f"{what}: {path}: {error.strerror}") from error
    data = bytearray()
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise _missing(f"{what}: {path} is not a regular file")
        while len(data) <= MAX_BYTES and (chunk := os.read(fd, MAX_BYTES + 1 - len(data))):
            data += chunk
    finally:
        os.close(fd)
    if len(data) > MAX_BYTES:
        raise _missing(f"{what}: {path} has more than {MAX_BYTES} bytes", "large files belong on a volume")
    return bytes(data)


def _decrypted(path: Path, name: str, what: str) -> bytes:
    """Ask systemd-creds, which knows the host's key and TPM; what it says comes through a pipe."""
    done = launch.exchange(
        (str(_SYSTEMD_CREDS), "decrypt", f"--name={name}", str(path), "-"),
        stdin=b"",
        environment=launch.BASE_ENVIRONMENT,
        timeout=_DECRYPT_SECONDS,
        limit=MAX_BYTES,
    )
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip()[-400:]
        raise _missing(
            f"{what}: {path} cannot be decrypted: {said or launch.describe_status(done.returncode)}",
            f"it has to be encrypted on this host, with --name={name} (systemd-creds(1))",
        )
    return done.stdout
