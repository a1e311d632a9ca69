"""skopeo, gpg, openssl and sigstore-python: they accept what secrun signs, and secrun what they sign."""

import base64
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from secrun.digest import Digest
from secrun.image.attach import attach
from secrun.image.manifest import Descriptor
from secrun.image.target import LayoutTarget
from support import registry, signing
from support.images import busybox_image
from support.secrun import Secrun
from support.signing import Sigstore, b64
from support.waiting import wait_until

MAIL = "alice@team.example"


def tool(*words, environment=None, stdin=None, code=0):
    """Run another tool; return its output as bytes."""
    done = subprocess.run(
        [os.fspath(word) for word in words],
        capture_output=True,
        check=False,
        input=stdin,
        env={**os.environ, **(environment or {})},
    )
    assert code is None or done.returncode == code, f"{words}: {done.stderr.decode()}"
    return done.stdout


class Keys:
    """A gpg home with one key."""

    def __init__(self, home: Path) -> None:
        home.mkdir(mode=0o700)
        self.environment = {"GNUPGHOME": str(home)}
        self.home = home
        self("--batch", "--passphrase", "", "--quick-gen-key", f"Alice <{MAIL}>", "rsa2048", "sign", "never")
        listed = self("--batch", "--with-colons", "--list-keys").decode()
        self.fingerprint = next(line.split(":")[9] for line in listed.splitlines() if line.startswith("fpr"))

    def __call__(self, *words, stdin=None):
        return tool("gpg", *words, environment=self.environment, stdin=stdin)

    @property
    def public(self) -> bytes:
        return self("--export")

    def revoke(self) -> None:
        (path,) = (self.home / "openpgp-revocs.d").iterdir()
        self("--batch", "--import", stdin=path.read_bytes().replace(b":-----BEGIN", b"-----BEGIN"))

    def expire(self) -> None:
        self("--batch", "--quick-set-expire", self.fingerprint, "seconds=1")
        wait_until(lambda: b"pub:e:" in self("--batch", "--with-colons", "--list-keys"))

    def close(self) -> None:
        tool("gpgconf", "--kill", "all", environment=self.environment, code=None)


@pytest.fixture
def alice(tmp_path):
    keys = Keys(tmp_path / "gnupg")
    yield keys
    keys.close()


@pytest.fixture
def running(tmp_path):
    with registry.running_registry(tmp_path / "registry") as found:
        yield found


@pytest.fixture
def secrun(tmp_path, monkeypatch):
    """secrun with a home of its own, where skopeo's settings are too."""
    folder = tmp_path / "home/.config/containers/registries.d"
    folder.mkdir(parents=True)
    (folder / "all.yaml").write_text(
        f"default-docker:\n  lookaside: file://{tmp_path}/lookaside\n  use-sigstore-attachments: true\n"
    )
    (folder.parent / "registries.conf").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return Secrun(root=tmp_path / "root", run_root=tmp_path / "run", options=("--attest=off",))


@pytest.fixture
def image(tmp_path):
    busybox_image(tmp_path / "busybox")
    return f"oci:{tmp_path}/busybox:busybox"


def skopeo(tmp_path, *words, policy=None, environment=None, code=0):
    trust = ("--policy", policy) if policy else ("--insecure-policy",)
    settings = tmp_path / "home/.config/containers/registries.d"
    plain = ("--src-tls-verify=false", "--dest-tls-verify=false")
    return tool(
        "skopeo",
        *trust,
        "--registries.d",
        settings,
        "copy",
        *plain,
        *words,
        environment=environment,
        code=code,
    )


def policy(tmp_path, *requirements):
    path = tmp_path / "policy.json"
    path.write_text(json.dumps({"default": list(requirements)}))
    return path


def signed_by(keys, **fields):
    return {"type": "signedBy", "keyType": "GPGKeys", "keyData": b64(keys.public), **fields}


def fetch(secrun, reference, path, *, code=0):
    return secrun(
        "fetch",
        "--tls-verify=false",
        "--pull=always",
        "--policy",
        path,
        "--format=json",
        reference,
        code=code,
    )


def signatures(done):
    return json.loads(done.out)["admission"]["signatures"]


# OpenPGP.


def test_what_skopeo_signs_by_gpg_is_admitted_until_the_key_is_revoked(
    secrun, tmp_path, running, image, alice
):
    reference = running.reference("team/app:1")
    skopeo(tmp_path, "--sign-by", alice.fingerprint, image, reference, environment=alice.environment)
    path = policy(tmp_path, signed_by(alice))
    (found,) = signatures(fetch(secrun, reference, path))
    assert found["signer"] == f"openpgp:{alice.fingerprint.lower()}"
    assert found["reference"] == f"{running.address}/team/app:1"
    skopeo(tmp_path, reference, f"dir:{tmp_path}/out", policy=path)
    alice.revoke()
    path = policy(tmp_path, signed_by(alice))
    assert "revoked" in fetch(secrun, reference, path, code=120).err


def test_signatures_by_others_and_for_others_are_refused_by_both(secrun, tmp_path, running, image, alice):
    reference, other = running.reference("team/app:1"), running.reference("team/other:1")
    skopeo(tmp_path, "--sign-by", alice.fingerprint, image, reference, environment=alice.environment)
    running.push(image, "team/other:1")
    bob = Keys(tmp_path / "bob")
    try:
        foreign = policy(tmp_path, signed_by(bob))
        assert "none of the keys" in fetch(secrun, reference, foreign, code=120).err
        skopeo(tmp_path, reference, f"dir:{tmp_path}/a", policy=foreign, code=1)
    finally:
        bob.close()
    path = policy(tmp_path, signed_by(alice))
    fetch(secrun, other, path, code=120)
    skopeo(tmp_path, other, f"dir:{tmp_path}/b", policy=path, code=1)
    moved = {
        "type": "remapIdentity",
        "prefix": f"{running.address}/team/other",
        "signedPrefix": f"{running.address}/team/app",
    }
    # The signature is for the other name; it lies beside that name too.
    (folder,) = (tmp_path / "lookaside/team").iterdir()
    folder.rename(folder.with_name(folder.name.replace("app@", "other@")))
    path = policy(tmp_path, signed_by(alice, signedIdentity=moved))
    fetch(secrun, other, path)
    skopeo(tmp_path, other, f"dir:{tmp_path}/c", policy=path)


def test_a_key_that_expired_does_not_count(secrun, tmp_path, running, image, alice):
    reference = running.reference("team/app:1")
    skopeo(tmp_path, "--sign-by", alice.fingerprint, image, reference, environment=alice.environment)
    alice.expire()
    path = policy(tmp_path, signed_by(alice))
    assert "expired" in fetch(secrun, reference, path, code=120).err


def test_a_folder_that_skopeo_wrote_is_fetched_with_its_signatures(secrun, tmp_path, image, alice):
    identity = ("--sign-identity", "r.example/team/app:1")
    skopeo(
        tmp_path,
        *("--sign-by", alice.fingerprint, *identity, image, f"dir:{tmp_path}/folder"),
        environment=alice.environment,
    )
    exact = {"type": "exactReference", "dockerReference": "r.example/team/app:1"}
    fetch(secrun, f"dir:{tmp_path}/folder", policy(tmp_path, signed_by(alice)), code=120)
    (found,) = signatures(
        fetch(secrun, f"dir:{tmp_path}/folder", policy(tmp_path, signed_by(alice, signedIdentity=exact)))
    )
    assert found["kind"] == "openpgp"


def test_a_gpg_key_in_the_ring_admits_what_it_signed_below_its_prefix(
    secrun, tmp_path, running, image, alice
):
    reference, other = running.reference("team/app:1"), running.reference("other/app:1")
    for place in (reference, other):
        skopeo(tmp_path, "--sign-by", alice.fingerprint, image, place, environment=alice.environment)
    (tmp_path / "alice.gpg").write_bytes(alice.public)
    path = policy(tmp_path, {"type": "reject"})
    prefix = ("--prefix", f"{running.address}/team")
    refused = secrun("trust", "add", *prefix, tmp_path / "alice.gpg", code=2)
    assert "--skip-fingerprint-review" in refused.err
    added = secrun("trust", "add", *prefix, "--skip-fingerprint-review", tmp_path / "alice.gpg")
    assert alice.fingerprint.lower() in added.err
    assert MAIL in added.err
    fetch(secrun, reference, path)
    fetch(secrun, other, path, code=120)
    listed = json.loads(secrun("trust", "list", "--format=json").out)["keys"]
    assert [item["prefix"] for item in listed] == [f"{running.address}/team"]
    assert MAIL in secrun("trust", "show", alice.fingerprint[:12]).out
    secrun("trust", "rm", alice.fingerprint)
    fetch(secrun, reference, path, code=120)


# cosign's form.


# Debian builds skopeo without sigstore: openssl is the judge.


def test_a_key_of_cosigns_form_signs(secrun, tmp_path, running, image):
    key = signing.new_key()
    (tmp_path / "cosign.key").write_bytes(signing.cosign_box(key, b"secret"))
    (tmp_path / "pass").write_text("secret\n")
    running.push(image, "team/app:1")
    reference = running.reference("team/app:1")
    words = ("sign", "--tls-verify=false", "--key", tmp_path / "cosign.key", reference)
    assert "passphrase is wrong" in secrun(*words, code=2).err
    secrun(*words, "--passphrase-file", tmp_path / "pass")
    path = policy(tmp_path, {"type": "sigstoreSigned", "keyData": b64(signing.public_pem(key))})
    (found,) = signatures(fetch(secrun, reference, path))
    assert (found["kind"], found["reference"]) == ("cosign", f"{running.address}/team/app:1")


def test_what_secrun_signs_is_read_by_skopeo_and_verified_by_openssl(secrun, tmp_path, running, image):
    running.push(image, "team/app:1")
    reference = running.reference("team/app:1")
    secrun("trust", "generate-key", tmp_path / "team")
    assert (tmp_path / "team.key").stat().st_mode & 0o777 == 0o600
    path = policy(tmp_path, {"type": "sigstoreSigned", "keyPath": f"{tmp_path}/team.pub"})
    fetch(secrun, reference, path, code=120)
    secrun("sign", "--tls-verify=false", "--key", tmp_path / "team.key", reference)
    fetch(secrun, reference, path)
    digest = secrun("image", "list", "-q").out.strip().replace(":", "-")
    plain = ("--tls-verify=false", f"docker://{running.address}/team/app:{digest}.sig")
    manifest = json.loads(tool("skopeo", "inspect", "--raw", *plain))
    skopeo(tmp_path, plain[1], f"dir:{tmp_path}/signature")
    (layer,) = manifest["layers"]
    said = (tmp_path / "signature" / layer["digest"].partition(":")[2]).read_bytes()
    (tmp_path / "sig").write_bytes(
        base64.b64decode(layer["annotations"]["dev.cosignproject.cosign/signature"])
    )
    tool(
        *("openssl", "dgst", "-sha256", "-verify", tmp_path / "team.pub", "-signature", tmp_path / "sig"),
        stdin=said,
    )


def test_a_key_of_openssl_signs_encrypted_or_not(secrun, tmp_path, running, image):
    running.push(image, "team/app:1")
    reference = running.reference("team/app:1")
    (tmp_path / "pass").write_text("secret\n")
    curve = ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
    tool("openssl", "genpkey", *curve, "-aes256", "-pass", "pass:secret", "-out", tmp_path / "k.key")
    tool(
        "openssl",
        "pkey",
        "-in",
        tmp_path / "k.key",
        "-passin",
        "pass:secret",
        "-pubout",
        "-out",
        tmp_path / "k.pub",
    )
    words = ("sign", "--tls-verify=false", "--key", tmp_path / "k.key", reference)
    assert "--passphrase-file" in secrun(*words, code=2).err
    secrun(*words, "--passphrase-file", tmp_path / "pass")
    path = policy(tmp_path, {"type": "sigstoreSigned", "keyPath": f"{tmp_path}/k.pub"})
    fetch(secrun, reference, path)


def test_the_whole_circle_needs_no_other_tool(secrun, tmp_path, running, image):
    first, second = running.reference("team/app:1"), running.reference("mirror/app:2")
    secrun("trust", "generate-key", tmp_path / "team")
    prefix = ("--prefix", running.address, "--skip-fingerprint-review")
    secrun("trust", "add", *prefix, tmp_path / "team.pub")
    path = policy(tmp_path, {"type": "reject"})
    secrun("image", "copy", "--tls-verify=false", image, first)
    secrun("sign", "--tls-verify=false", "--key", tmp_path / "team.key", first)
    fetch(secrun, first, path)
    secrun("image", "verify", "--policy", path, first)
    assert "team/app:1" in secrun("image", "inspect", first).out
    # A copy under another name keeps the signature, which is not for that name.
    secrun("image", "push", "--tls-verify=false", first, second)
    fetch(secrun, second, path, code=120)
    secrun("sign", "--tls-verify=false", "--key", tmp_path / "team.key", second)
    fetch(secrun, second, path)
    secrun("image", "push", first, f"docker-archive:{tmp_path}/out.tar:localhost/app:1")
    tool("skopeo", "inspect", f"docker-archive:{tmp_path}/out.tar:localhost/app:1")
    secrun("image", "verify", "--policy", policy(tmp_path / "home", {"type": "reject"}), first)
    (key,) = (tmp_path / "root/trust/prefix.d" / running.address).iterdir()
    secrun("trust", "rm", key.name)
    assert secrun("image", "verify", "--policy", path, first, code=120).out.count("reject") > 0


def test_bundles_reach_a_registry_that_knows_no_referrers(secrun, tmp_path, running, image):
    key = signing.new_key()
    entry = json.loads((tmp_path / "busybox/index.json").read_text())["manifests"][0]
    digest = Digest.parse(entry["digest"])
    subject = Descriptor(media_type=entry["mediaType"], digest=digest, size=entry["size"])
    attached = signing.bundled(Sigstore().bundle(digest, key=key), subject=digest)
    attach(LayoutTarget(tmp_path / "busybox"), [subject], [attached])
    reference = running.reference("team/app:1")
    secrun("image", "copy", "--tls-verify=false", image, reference)
    path = policy(tmp_path, {"type": "sigstoreSigned", "keyData": b64(signing.public_pem(key))})
    assert "names no image" in fetch(secrun, reference, path, code=120).err
    rules = tmp_path / "root/trust/trust.toml"
    rules.parent.mkdir(parents=True, exist_ok=True)
    rules.write_text('[[rule]]\nscope = "docker:127.0.0.1"\nbundle-identity = "digest"\n')
    fetch(secrun, reference, path, code=120)
    rules.write_text(f'[[rule]]\nscope = "docker:{running.address}"\nbundle-identity = "digest"\n')
    (found,) = signatures(fetch(secrun, reference, path))
    assert found["kind"] == "bundle"


# Sigstore bundles.

JUDGE = """
import json, sys
from pathlib import Path
from sigstore.models import Bundle, TrustedRoot
from sigstore.verify import Verifier, policy
from sigstore.errors import VerificationError
root, bundle, identity, issuer = sys.argv[1:]
try:
    found = Bundle.from_json(Path(bundle).read_bytes())
    who = policy.Identity(identity=identity, issuer=issuer)
    kind, said = Verifier(trusted_root=TrustedRoot.from_file(root)).verify_dsse(found, who)
except VerificationError as error:
    sys.exit(f"refused: {error}")
print(kind)
"""


@pytest.fixture(scope="module")
def sigstore():
    return Sigstore(now=int(time.time()))


def judged(repository, tmp_path, root, bundle, *, identity=signing.EMAIL, issuer=signing.ISSUER):
    """Tell whether sigstore-python accepts a bundle."""
    judges = repository / ".venv/judges"
    assert judges.is_dir(), f"{judges} is missing: ci/setup --test"
    (tmp_path / "root.json").write_text(json.dumps(root))
    (tmp_path / "bundle.json").write_text(json.dumps(bundle))
    words = [sys.executable, "-c", JUDGE, tmp_path / "root.json", tmp_path / "bundle.json", identity, issuer]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(judges)}
    )
    assert done.returncode == 0 or "refused:" in done.stderr, done.stderr
    return done.returncode == 0


def weighed(sigstore, root, document, **who):
    """Tell whether secrun accepts a bundle."""
    from secrun.trust import bundle, dsse, trustedroot
    from secrun.trust.faults import SignatureFaultError
    from secrun.trust.verdict import Case

    case = Case(name=None, digests=frozenset([signing.IMAGE]), keys={}, now=sigstore.now)
    keyless = bundle.Keyless(
        issuer=who.get("issuer", signing.ISSUER), identities=(who.get("identity", signing.EMAIL),)
    )
    parsed = trustedroot.parse(json.dumps(root).encode())
    try:
        bundle.verify_keyless(signing.bundled(document), parsed, keyless, dsse.SIGN_PREDICATE, case)
    except SignatureFaultError:
        return False
    return True


def cases(sigstore):
    key = signing.new_key()
    good = sigstore.bundle(key=key, leaf=sigstore.leaf(key))
    other = Sigstore(now=sigstore.now)
    yield "good", good, {}, True
    yield "identity", good, {"identity": "bob@x.example"}, False
    yield "issuer", good, {"issuer": "https://other.example"}, False
    yield "unlisted", sigstore.bundle(key=key, leaf=sigstore.leaf(key, promised=False)), {}, False
    late = sigstore.leaf(key, end=sigstore.now - 100)
    yield "late", sigstore.bundle(key=key, leaf=late), {}, False
    yield "foreign", other.bundle(key=key, leaf=other.leaf(key)), {}, False
    yield "log", sigstore.bundle(key=key, leaf=sigstore.leaf(key), log=other.log), {}, False
    for name, path, value in (
        ("signature", ("dsseEnvelope", "signatures", 0, "sig"), b64(b"x" * 70)),
        ("payload", ("dsseEnvelope", "payload"), b64(b"{}")),
        ("root", (*ENTRY, "inclusionProof", "rootHash"), b64(b"x" * 32)),
        ("hashes", (*ENTRY, "inclusionProof", "hashes"), []),
        ("time", (*ENTRY, "integratedTime"), str(sigstore.now - 61)),
    ):
        changed = json.loads(json.dumps(good))
        inner = changed
        for step in path[:-1]:
            inner = inner[step]
        inner[path[-1]] = value
        yield name, changed, {}, False


ENTRY = ("verificationMaterial", "tlogEntries", 0)


def test_the_trusted_roots_of_sigstores_own_services_are_read(repository):
    from secrun.trust import trustedroot

    paths = sorted((repository / ".venv/judges/sigstore/_store").rglob("trusted_root.json"))
    assert len(paths) >= 2
    for path in paths:
        document = json.loads(path.read_bytes())
        found = trustedroot.parse(path.read_bytes())
        for name, logs in (("tlogs", found.logs), ("ctlogs", found.certificate_logs)):
            ids = {base64.b64decode(item["logId"]["keyId"]) for item in document[name]}
            assert {log.log_id for log in logs} == ids
        assert len(found.authorities) == len(document["certificateAuthorities"])


def test_secrun_and_sigstore_python_judge_bundles_alike(sigstore, repository, tmp_path):
    root = sigstore.trusted_root()
    for name, document, who, good in cases(sigstore):
        theirs = judged(repository, tmp_path, root, document, **who)
        ours = weighed(sigstore, root, document, **who)
        assert (name, ours, theirs) == (name, good, good)
