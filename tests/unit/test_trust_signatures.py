"""Whether a signature counts: every form, by the right people, for the right image, and every way to fail."""

import base64
import hashlib
import json
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from secrun import dockername
from secrun.digest import Digest
from secrun.errors import DeniedError
from secrun.trust import bundle, notation, payload, policy, rekor, trustedroot
from secrun.trust import plan as plans
from secrun.trust.admission import Decision, Subject
from secrun.trust.cosign import CERTIFICATE, SIGNATURE
from secrun.trust.faults import SignatureFaultError
from secrun.trust.judge import judge, kinds_of
from secrun.trust.policy import TrustPolicy
from secrun.trust.ring import KeyRing
from secrun.trust.rules import parse as parse_rules
from secrun.trust.signatures import Candidate, SignatureKind, SignatureSet, bounded
from support import signing
from support.signing import IMAGE, NAME, NOW, Authority, Log, Sigstore, b64, bundled, by_certificate, by_key

OTHER = Digest.of(b"another manifest")
REPOSITORY = {"signedIdentity": {"type": "matchRepository"}}


@pytest.fixture
def key():
    return signing.new_key()


def subject(name=NAME):
    parsed = dockername.parse(name)
    scopes = (str(parsed), *dockername.parents(parsed.repository))
    return Subject(name=f"docker://{name}", transport="docker", scopes=scopes, docker=parsed)


def requirement(**fields):
    document = {"default": [{"type": "sigstoreSigned", **fields}]}
    return policy.parse(json.dumps(document).encode(), source="/policy.json")


def by_keys(*keys, **fields):
    return requirement(keyDatas=[b64(signing.public_pem(item)) for item in keys], **fields)


def decided(found: TrustPolicy, *candidates: Candidate, name=NAME, rules=(), digests=(IMAGE,), ring="/none"):
    context = plans.TrustContext(policy=found, ring=KeyRing(Path(ring)), rules=tuple(rules))
    plan = context.plan(subject(name))
    signatures = SignatureSet(candidates=tuple(candidates), searched=kinds_of(plan))
    return judge(plan, frozenset(digests), signatures, signatures_digest="", now=NOW)


def refused(found, *candidates, **options):
    """Return why."""
    admission = decided(found, *candidates, **options)
    assert admission.decision is Decision.REJECT
    return admission.reason


def accepted(found, *candidates, **options):
    admission = decided(found, *candidates, **options)
    assert admission.decision is Decision.ACCEPT, admission.reason
    return admission.signatures


# cosign, by keys.


@pytest.mark.parametrize(
    "make",
    [signing.new_key, lambda: rsa.generate_private_key(65537, 2048), ed25519.Ed25519PrivateKey.generate],
)
def test_a_signature_by_a_key_of_the_policy_counts(make):
    key = make()
    (found,) = accepted(by_keys(signing.new_key(), key), by_key(key))
    assert found.signer.startswith("key:")
    assert (found.kind, found.reference, found.signed_at) == ("cosign", NAME, NOW - 60)


def test_openssl_agrees_about_payload_and_signature(key, tmp_path):
    candidate = by_key(key)
    accepted(by_keys(key), candidate)
    (tmp_path / "pub").write_bytes(signing.public_pem(key))
    (tmp_path / "sig").write_bytes(base64.b64decode(candidate.annotations[SIGNATURE]))
    words = ["openssl", "dgst", "-sha256", "-verify", tmp_path / "pub", "-signature", tmp_path / "sig"]
    assert subprocess.run(words, input=candidate.payload, check=False, capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda key: by_key(signing.new_key()), "by none of the keys"),
        (lambda key: by_key(key, signing.simple(digest=OTHER)), str(OTHER)),
        (lambda key: by_key(key, signing.simple(name="r.example/team/app:2")), "app:2"),
        (lambda key: by_key(key, signing.simple(name="r.example/team/app")), "expected"),
        (lambda key: by_key(key, signing.simple(name="not a name")), "no image name"),
        (lambda key: by_key(key, signing.simple(kind=payload.ATOMIC)), "type"),
        (lambda key: by_key(key, b"{"), "malformed"),
        (lambda key: by_key(key, b'{"critical": 1}'), "malformed"),
        (lambda key: by_key(key, signing.simple(more=1)), "more"),
        (lambda key: by_key(key, signing.simple().replace(b'"type"', b'"type": "x", "type"')), "duplicate"),
        (lambda key: by_key(key, signing.simple(image={"docker-manifest-digest": "sha256:0"})), "digest"),
        (lambda key: by_key(key, b"[" * 5000), "malformed"),
        (lambda key: replace_annotation(by_key(key), "!"), "not base64"),
        (lambda key: replace_annotation(by_key(key), ""), "by none of the keys"),
    ],
)
def test_a_signature_that_is_not_right_does_not_count_and_says_why(key, change, word):
    reason = refused(by_keys(key), change(key))
    assert word in reason
    assert "signature 1" in reason


def replace_annotation(candidate, text):
    return Candidate(
        kind=candidate.kind,
        subject=candidate.subject,
        payload=candidate.payload,
        origin=candidate.origin,
        annotations={SIGNATURE: text},
    )


def test_one_good_signature_among_bad_ones_is_enough(key):
    bad = by_key(signing.new_key(), origin="signature 1")
    good = by_key(key, origin="signature 2")
    (found,) = accepted(by_keys(key), bad, good)
    assert found.digest == good.digest
    reason = refused(by_keys(key), bad, by_key(key, b"{", origin="signature 2"))
    assert "signature 1" in reason
    assert "signature 2" in reason


def test_an_unsigned_image_is_refused_and_the_reason_says_so(key):
    assert "no such signature" in refused(by_keys(key))


def test_all_requirements_must_be_met(key):
    other = signing.new_key()
    both = policy.parse(
        json.dumps(
            {
                "default": [
                    {"type": "sigstoreSigned", "keyData": b64(signing.public_pem(item))}
                    for item in (key, other)
                ]
            }
        ).encode(),
        source="/p",
    )
    refused(both, by_key(key))
    assert len(accepted(both, by_key(key), by_key(other))) == 2


def test_a_signature_of_the_index_counts_for_the_image_chosen_from_it(key):
    accepted(by_keys(key), by_key(key), digests=(OTHER, IMAGE))


@pytest.mark.parametrize(
    ("identity", "image", "signed", "good"),
    [
        ({"type": "matchExact"}, "r.example/a:1", "r.example/a:1", True),
        ({"type": "matchExact"}, "r.example/a:1", "r.example/a:2", False),
        ({"type": "matchExact"}, f"r.example/a@{IMAGE}", "r.example/a:1", False),
        ({"type": "matchRepoDigestOrExact"}, "r.example/a:1", "r.example/a:1", True),
        ({"type": "matchRepoDigestOrExact"}, "r.example/a:1", "r.example/a:2", False),
        ({"type": "matchRepoDigestOrExact"}, "r.example/a:1", "r.example/a", False),
        ({"type": "matchRepoDigestOrExact"}, f"r.example/a@{IMAGE}", "r.example/a:2", True),
        ({"type": "matchRepoDigestOrExact"}, f"r.example/a@{IMAGE}", "r.example/b:2", False),
        ({"type": "matchRepository"}, "r.example/a:1", "r.example/a", True),
        ({"type": "matchRepository"}, "r.example/a:1", "r.example/ab:1", False),
        ({"type": "exactReference", "dockerReference": "v.example/x:3"}, "r.example/a:1", "v.example/x:3", True),
        ({"type": "exactReference", "dockerReference": "v.example/x:3"}, "r.example/a:1", "r.example/a:1", False),
        ({"type": "exactRepository", "dockerRepository": "v.example/x"}, "r.example/a:1", "v.example/x:9", True),
        ({"type": "exactRepository", "dockerRepository": "v.example/x"}, "r.example/a:1", "r.example/a:1", False),
        ({"type": "remapIdentity", "prefix": "m.example/v", "signedPrefix": "v.example"}, "m.example/v/x/y:1", "v.example/x/y:1", True),
        ({"type": "remapIdentity", "prefix": "m.example/v", "signedPrefix": "v.example"}, "m.example/v/x/y:1", "m.example/v/x/y:1", False),
        ({"type": "remapIdentity", "prefix": "m.example/v", "signedPrefix": "v.example"}, "m.example/vx/y:1", "m.example/vx/y:1", True),
        ({"type": "remapIdentity", "prefix": "m.example/v", "signedPrefix": "v.example/w"}, "m.example/v:1", "v.example/w:1", True),
        ({"type": "matchRepository"}, "docker.io/library/busybox:1", "busybox:1", True),
    ],
)  # fmt: skip
def test_the_signed_name_must_fit_as_the_policy_says(key, identity, image, signed, good):
    admission = decided(
        by_keys(key, signedIdentity=identity), by_key(key, signing.simple(name=signed)), name=image
    )
    assert (admission.decision is Decision.ACCEPT) == good


def test_files_have_no_name_that_a_signature_could_match(key):
    found = Subject(name="oci:/x", transport="oci", scopes=("/x",))
    context = plans.TrustContext(policy=by_keys(key), ring=KeyRing(Path("/none")))
    signatures = SignatureSet(candidates=(by_key(key),))
    admission = judge(context.plan(found), frozenset([IMAGE]), signatures, signatures_digest="", now=NOW)
    assert "exactReference" in admission.reason


def test_a_key_of_the_policy_that_cannot_be_used_denies(key):
    with pytest.raises(DeniedError) as caught:
        decided(requirement(keyData=b64(b"no key")), by_key(key))
    assert caught.value.code == "denied-policy-key"
    with pytest.raises(DeniedError) as caught:
        decided(requirement(keyPath="/no/such/key"), by_key(key))
    assert "/no/such/key" in caught.value.message
    weak = rsa.generate_private_key(65537, 1024)  # too short on purpose
    with pytest.raises(DeniedError, match="1024 bits"):
        decided(by_keys(weak), by_key(weak))


# Certificates.


def pki(authority, **fields):
    people = {"subjectEmail": signing.EMAIL} if not fields else fields
    return requirement(pki={"caRootsData": b64(signing.pem(authority.root)), **people})


def test_a_certificate_of_a_pinned_authority_counts_until_it_ends(key):
    authority = Authority()
    leaf = authority.issue(key, names=[signing.mail()])
    admission = decided(pki(authority), by_certificate(key, leaf, authority.chain))
    assert admission.decision is Decision.ACCEPT
    assert admission.signatures[0].signer == signing.EMAIL
    assert admission.expires == NOW + 86400


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"end": NOW - 10}, "expired"),
        ({"start": NOW + 10}, "begins"),
        ({"purpose": x509.oid.ExtendedKeyUsageOID.SERVER_AUTH}, "code signing"),
        ({"purpose": None}, "missing"),
        ({"names": [signing.mail("eve@x.example")]}, "eve@x.example"),
        ({"names": ()}, "nobody"),
    ],
)
def test_a_certificate_that_is_not_right_does_not_count(key, options, word):
    authority = Authority()
    leaf = authority.issue(key, **{"names": [signing.mail()], **options})
    assert word in refused(pki(authority), by_certificate(key, leaf, authority.chain))


def test_a_certificate_of_another_authority_or_key_does_not_count(key):
    authority, other = Authority(), Authority()
    leaf = other.issue(key, names=[signing.mail()])
    assert "no authority" in refused(pki(authority), by_certificate(key, leaf, other.chain))
    leaf = authority.issue(signing.new_key(), names=[signing.mail()])
    assert "not by the key" in refused(pki(authority), by_certificate(key, leaf, authority.chain))
    fake = signing.certificate(signing.new_key(), issuer=authority.certificate, issuer_key=authority.key)
    child = signing.certificate(key, issuer=fake, issuer_key=signing.new_key(), names=[signing.mail()])
    refused(pki(authority), by_certificate(key, child, signing.pem(fake) + authority.chain))


def test_garbage_in_place_of_certificates_does_not_count(key):
    authority = Authority()
    assert "without a certificate" in refused(pki(authority), by_key(key))
    assert "certificate" in refused(pki(authority), by_key(key, **{CERTIFICATE: "garbage"}))
    many = signing.pem(authority.root).decode() * 60
    assert "certificate" in refused(pki(authority), by_key(key, **{CERTIFICATE: many}))


def test_a_host_name_in_a_certificate_may_have_one_wildcard(key):
    authority = Authority()
    leaf = authority.issue(key, names=[x509.DNSName("*.build.example")])
    candidate = by_certificate(key, leaf, authority.chain)
    accepted(pki(authority, subjectHostname="a.build.example"), candidate)
    refused(pki(authority, subjectHostname="a.b.build.example"), candidate)
    refused(pki(authority, subjectHostname="build.example"), candidate)


def fulcio(authority, log, **changes):
    who = {"oidcIssuer": signing.ISSUER, "subjectEmail": signing.EMAIL, **changes}
    return requirement(
        fulcio={"caData": b64(signing.pem(authority.root)), **who},
        rekorPublicKeyData=b64(signing.public_pem(log.key)),
    )


def short_lived(key, authority, log, *, at=NOW - 5 * 86400, **options):
    """Sign by a certificate that lived for ten minutes around `at`."""
    issued = {"names": [signing.mail()], "extensions": [signing.fulcio_issuer()], **options}
    leaf = authority.issue(key, start=at - 300, end=at + 300, **issued)
    return by_certificate(key, leaf, authority.chain, log_entry=log.annotation(signing.pem(leaf), at=at))


def test_fulcio_certificates_count_for_the_moment_that_the_log_vouches_for(key):
    authority, log = Authority(), Log()
    (found,) = accepted(fulcio(authority, log), short_lived(key, authority, log))
    assert signing.EMAIL in found.signer
    assert signing.ISSUER in found.signer


def test_fulcio_certificates_of_others_do_not_count(key):
    authority, log = Authority(), Log()
    good = short_lived(key, authority, log)
    assert "log of the policy" in refused(fulcio(authority, Log()), good)
    assert "expected" in refused(fulcio(authority, log, oidcIssuer="https://other.example"), good)
    assert "expected" in refused(fulcio(authority, log, subjectEmail="bob@x.example"), good)
    late = authority.issue(
        key, names=[signing.mail()], extensions=[signing.fulcio_issuer()], start=NOW - 900, end=NOW - 600
    )
    entry = log.annotation(signing.pem(late), at=NOW - 60)
    assert "expired" in refused(
        fulcio(authority, log), by_certificate(key, late, authority.chain, log_entry=entry)
    )
    future = short_lived(key, authority, log, at=NOW + 3600)
    assert "future" in refused(fulcio(authority, log), future)
    other = log.annotation(signing.public_pem(signing.new_key()), at=NOW - 60)
    leaf = authority.issue(key, names=[signing.mail()], extensions=[signing.fulcio_issuer()])
    assert "another key" in refused(
        fulcio(authority, log), by_certificate(key, leaf, authority.chain, log_entry=other)
    )
    assert "no entry of a log" in refused(fulcio(authority, log), by_certificate(key, leaf, authority.chain))


def test_a_key_may_need_a_log_entry_too(key):
    log = Log()
    found = by_keys(key, rekorPublicKeyData=b64(signing.public_pem(log.key)))
    assert "no entry of a log" in refused(found, by_key(key))
    candidate = by_key(key)
    entry = log.annotation(signing.public_pem(key))(
        base64.b64decode(candidate.annotations[SIGNATURE]), candidate.payload
    )
    logged = Candidate(
        kind=candidate.kind,
        subject=candidate.subject,
        payload=candidate.payload,
        origin=candidate.origin,
        annotations={**candidate.annotations, "dev.sigstore.cosign/bundle": entry},
    )
    accepted(found, logged)


# Bundles.


def rules(text):
    import tomllib

    return parse_rules(tomllib.loads(text), "/etc/secrun/trust.toml")


ACCEPT = policy.parse(b'{"default": [{"type": "insecureAcceptAnything"}]}', source="/policy.json")


@pytest.fixture(scope="module")
def sigstore():
    return Sigstore()


@pytest.fixture
def keyless(sigstore, tmp_path):
    path = tmp_path / "trusted_root.json"
    path.write_text(json.dumps(sigstore.trusted_root()))

    def make(**changes):
        fields = {"identity": signing.EMAIL, "issuer": signing.ISSUER, "trusted-root": str(path), **changes}
        lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in fields.items())
        return rules(f'[[rule]]\nscope = "docker:r.example"\n[[rule.require]]\ntype = "bundle"\n{lines}')

    return make


def test_a_keyless_bundle_counts_by_the_trusted_root(sigstore, keyless, key):
    document = sigstore.bundle(key=key, leaf=sigstore.leaf(key))
    (found,) = accepted(ACCEPT, bundled(document), rules=keyless())
    assert (found.kind, found.signed_at, found.reference) == ("bundle", NOW - 60, "")
    assert signing.EMAIL in found.signer


def test_a_workflow_is_known_by_its_address(sigstore, keyless, key):
    name = "https://forge.example/team/app/.workflow@refs/heads/main"
    leaf = sigstore.leaf(key, names=[x509.UniformResourceIdentifier(name)])
    document = bundled(sigstore.bundle(key=key, leaf=leaf))
    accepted(ACCEPT, document, rules=keyless(identity=[name]))
    assert "not by whom" in refused(ACCEPT, document, rules=keyless(identity=[f"{name}x"]))


def broken(document, *path, value):
    """Return a copy of a document with one member changed."""
    copy = json.loads(json.dumps(document))
    inner = copy
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    return copy


ENTRY = ("verificationMaterial", "tlogEntries", 0)


@pytest.mark.parametrize(
    ("path", "value", "word"),
    [
        (("mediaType",), "application/vnd.dev.sigstore.bundle.v0.9+json", "expected"),
        (("dsseEnvelope", "payload"), b64(signing.statement(OTHER)), "other bytes"),
        (("dsseEnvelope", "signatures", 0, "sig"), b64(b"x" * 70), "another signature"),
        (("dsseEnvelope", "signatures"), [], "0 signatures"),
        (("dsseEnvelope",), None, "no object"),
        (("verificationMaterial", "tlogEntries"), [], "0 log entries"),
        ((*ENTRY, "integratedTime"), str(NOW - 61), "log of the policy"),
        ((*ENTRY, "logId", "keyId"), b64(b"x" * 32), "does not name"),
        ((*ENTRY, "inclusionPromise"), None, "timestamp"),
        ((*ENTRY, "inclusionProof"), None, "proof of inclusion"),
        ((*ENTRY, "inclusionProof", "rootHash"), b64(b"x" * 32), "proof"),
        ((*ENTRY, "inclusionProof", "hashes"), [], "proof"),
        ((*ENTRY, "inclusionProof", "logIndex"), "1", "proof"),
        ((*ENTRY, "inclusionProof", "treeSize"), "4", "proof"),
        ((*ENTRY, "inclusionProof", "checkpoint", "envelope"), "x\n5\n", "checkpoint"),
        ((*ENTRY, "canonicalizedBody"), b64(b"{}"), "log"),
        (("verificationMaterial", "certificate", "rawBytes"), b64(b"garbage"), "certificate"),
    ],
)
def test_a_bundle_with_one_wrong_member_does_not_count(sigstore, keyless, key, path, value, word):
    document = sigstore.bundle(key=key, leaf=sigstore.leaf(key))
    reason = refused(ACCEPT, bundled(broken(document, *path, value=value)), rules=keyless())
    assert word in reason


def test_keyless_bundles_of_others_do_not_count(sigstore, keyless, key):
    good = bundled(sigstore.bundle(key=key, leaf=sigstore.leaf(key)))
    assert "not by whom" in refused(ACCEPT, good, rules=keyless(identity="bob@x.example"))
    assert "expected" in refused(ACCEPT, good, rules=keyless(issuer="https://other.example"))
    unlisted = sigstore.bundle(key=key, leaf=sigstore.leaf(key, promised=False))
    assert "public log" in refused(ACCEPT, bundled(unlisted), rules=keyless())
    bare = sigstore.bundle(key=key)
    assert "by a key" in refused(ACCEPT, bundled(bare), rules=keyless())
    other = Sigstore()
    foreign = other.bundle(key=key, leaf=other.leaf(key))
    assert "does not name" in refused(ACCEPT, bundled(foreign), rules=keyless())
    elsewhere = sigstore.bundle(OTHER, key=key, leaf=sigstore.leaf(key))
    assert OTHER.hex in refused(ACCEPT, bundled(elsewhere), rules=keyless())
    late = sigstore.bundle(key=key, leaf=sigstore.leaf(key, end=NOW - 100), at=NOW - 60)
    assert "expired" in refused(ACCEPT, bundled(late), rules=keyless())


def test_an_attestation_can_be_demanded_beside_the_signature(sigstore, keyless, key):
    slsa = "https://slsa.dev/provenance/v1"
    leaf = sigstore.leaf(key)
    plain = bundled(sigstore.bundle(key=key, leaf=leaf))
    attested = bundled(sigstore.bundle(predicate=slsa, key=key, leaf=leaf))
    assert "https://slsa.dev" in refused(ACCEPT, plain, rules=keyless(predicate=slsa))
    accepted(ACCEPT, plain, attested, rules=keyless(predicate=slsa))


def test_a_policy_key_accepts_a_bundle_only_where_a_digest_is_enough(sigstore, key):
    found = by_keys(key)
    document = bundled(sigstore.bundle(key=key))
    assert "names no image" in refused(found, document)
    by_digest = rules('[[rule]]\nscope = "default"\nbundle-identity = "digest"\n')
    accepted(found, document, rules=by_digest)
    refused(found, bundled(sigstore.bundle(key=signing.new_key())), rules=by_digest)
    refused(found, bundled(sigstore.bundle(OTHER, key=key)), rules=by_digest)
    logged = by_keys(key, rekorPublicKeyData=b64(signing.public_pem(sigstore.log.key)))
    accepted(logged, document, rules=by_digest)
    elsewhere = by_keys(key, rekorPublicKeyData=b64(signing.public_pem(signing.new_key())))
    refused(elsewhere, document, rules=by_digest)


def test_a_policys_authorities_accept_bundles_by_digest_too(sigstore, key):
    by_digest = rules('[[rule]]\nscope = "default"\nbundle-identity = "digest"\n')
    document = bundled(sigstore.bundle(key=key, leaf=sigstore.leaf(key)))
    certificates = signing.pem(sigstore.authority.root) + signing.pem(sigstore.authority.certificate)
    found = requirement(
        fulcio={"caData": b64(certificates), "oidcIssuer": signing.ISSUER, "subjectEmail": signing.EMAIL},
        rekorPublicKeyData=b64(signing.public_pem(sigstore.log.key)),
    )
    accepted(found, document, rules=by_digest)


# Notation.


@pytest.fixture
def notary(tmp_path):
    authority = Authority()
    (tmp_path / "store").mkdir()
    (tmp_path / "store/ca.crt").write_bytes(signing.pem(authority.root))

    def rule(identity="*"):
        return rules(
            f'[[rule]]\nscope = "default"\n[[rule.require]]\ntype = "notation"\n'
            f'trust-store = "{tmp_path}/store"\nidentity = {json.dumps(identity)}\n'
        )

    return authority, rule


def enveloped(document):
    return bundled(document, SignatureKind.NOTATION)


@pytest.mark.parametrize("kind", ["ec", "rsa"])
def test_a_notation_signature_counts_by_its_trust_store(notary, kind):
    authority, rule = notary
    key = signing.new_key() if kind == "ec" else rsa.generate_private_key(65537, 2048)
    algorithm = "ES256" if kind == "ec" else "PS256"
    leaf = authority.issue(key, organisation="acme", purpose=None)
    document = signing.notation(key, leaf, [authority.certificate], algorithm=algorithm)
    (found,) = accepted(ACCEPT, enveloped(document), rules=rule("x509.subject: C=US, ST=WA, O=acme"))
    assert "O=acme" in found.signer
    assert found.expires == NOW + 86400
    reason = refused(ACCEPT, enveloped(document), rules=rule("x509.subject: C=US, ST=WA, O=other"))
    assert "not by whom" in reason


EXPIRY = "io.cncf.notary.expiry"


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"digest": OTHER}, str(OTHER)),
        ({"protected": {"crit": [signing.SCHEME, "x"]}}, "critical"),
        ({"protected": {"crit": []}}, "critical"),
        ({"protected": {"b64": False}}, "unknown members"),
        ({"protected": {signing.SCHEME: "notary.x509.signingAuthority"}}, "scheme"),
        ({"protected": {"cty": "text/plain"}}, "content"),
        ({"protected": {EXPIRY: "2020-01-01T00:00:00Z"}}, "expiry"),
        ({"protected": {EXPIRY: "2020-01-01T00:00:00Z", "crit": [signing.SCHEME, EXPIRY]}}, "expired"),
        ({"algorithm": "ES384"}, "not by the key"),
        ({"algorithm": "none"}, "algorithm"),
        ({"algorithm": "PS256"}, "algorithm"),
        ({"content": {"other": 1}}, "one artifact"),
    ],
)
def test_a_notation_signature_that_is_not_right_does_not_count(notary, key, options, word):
    authority, rule = notary
    leaf = authority.issue(key, organisation="acme")
    document = signing.notation(key, leaf, [authority.certificate], **options)
    assert word in refused(ACCEPT, enveloped(document), rules=rule())


def test_notation_signatures_of_others_do_not_count(notary, key):
    authority, rule = notary
    other = Authority()
    leaf = other.issue(key, organisation="acme")
    document = signing.notation(key, leaf, [other.certificate])
    assert "no authority" in refused(ACCEPT, enveloped(document), rules=rule())
    leaf = authority.issue(signing.new_key(), organisation="acme")
    document = signing.notation(key, leaf, [authority.certificate])
    assert "not by the key" in refused(ACCEPT, enveloped(document), rules=rule())
    leaf = authority.issue(key, organisation="acme", end=NOW - 10)
    document = signing.notation(key, leaf, [authority.certificate])
    assert "expired" in refused(ACCEPT, enveloped(document), rules=rule())


def test_a_trust_store_that_is_not_there_denies(key):
    rule = rules(
        '[[rule]]\nscope = "default"\n[[rule.require]]\ntype = "notation"\n'
        'trust-store = "/no/such/store"\nidentity = "*"\n'
    )
    with pytest.raises(DeniedError, match="/no/such/store"):
        decided(ACCEPT, rules=rule)


# Bounds and malice.


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(0, 2**64)
    | st.text(max_size=8)
    | st.sampled_from(["AAAA", "0.0.1"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "critical",
                    "optional",
                    "mediaType",
                    "verificationMaterial",
                    "dsseEnvelope",
                    "payload",
                    "header",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_signature_or_a_fault(data):
    parsers = (
        lambda: payload.parse(data, payload.COSIGN),
        lambda: bundle.parse(data),
        lambda: notation.parse(data),
    )
    for parse in parsers:
        try:
            parse()
        except SignatureFaultError as error:
            assert error.reason


@given(st.data())
def test_a_bundle_with_any_member_replaced_is_a_bundle_or_a_fault(data):
    document = SAMPLE
    path = []
    inner = document
    while isinstance(inner, dict | list) and inner and (not path or data.draw(st.booleans())):
        step = data.draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(len(inner))))
        path.append(step)
        inner = inner[step]
    changed = broken(document, *path, value=data.draw(JSON))
    try:
        bundle.parse(json.dumps(changed).encode())
    except SignatureFaultError as error:
        assert error.reason


SAMPLE = Sigstore().bundle()


@given(st.binary(max_size=100) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_trusted_root_or_a_value_error(data):
    try:
        trustedroot.parse(data)
    except ValueError as error:
        assert str(error)


@given(st.text(max_size=60) | JSON.map(json.dumps))
def test_any_text_is_a_log_entry_or_a_fault(text):
    try:
        rekor.parse_annotation(text)
    except SignatureFaultError as error:
        assert error.reason


@given(st.integers(1, 40), st.data())
def test_a_proof_leads_to_the_root_for_its_own_leaf_only(count, data):
    leaves = [bytes([number]) for number in range(count)]
    hashed = [hashlib.sha256(b"\0" + leaf).digest() for leaf in leaves]
    index = data.draw(st.integers(0, count - 1))
    root, path = signing.tree(hashed, index)
    assert rekor.root_of_proof(leaves[index], index, count, path) == root
    assert rekor.root_of_proof(b"other", index, count, path) != root
    with pytest.raises(SignatureFaultError):
        rekor.root_of_proof(leaves[index], count, count, path)


def test_no_more_signatures_are_kept_than_the_limit(key):
    many = [by_key(key, origin=f"signature {n}") for n in range(150)]
    found = bounded(many, [], (SignatureKind.COSIGN,))
    assert len(found.candidates) == 100
    assert "more signatures" in found.faults[0]
    large = [bundled(b"x" * (3 << 20)) for _ in range(8)]
    assert len(bounded(large, [], ()).candidates) == 5


def test_stored_signatures_are_read_back_as_they_were(key):
    found = SignatureSet(candidates=(by_key(key),), faults=("one",), searched=(SignatureKind.COSIGN,))
    assert SignatureSet.from_bytes(found.to_bytes()) == found
