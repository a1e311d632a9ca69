"""Whether a signature counts: by the right people, for the right image, and every way to fail."""

import base64
import json
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from secrun.digest import Digest
from secrun.errors import DeniedError
from secrun.trust import payload, policy
from secrun.trust import plan as plans
from secrun.trust.admission import Decision, Subject
from secrun.trust.cosign import CERTIFICATE, SIGNATURE
from secrun.trust.judge import judge
from secrun.trust.ring import KeyRing
from secrun.trust.signatures import Candidate, SignatureSet
from support import signing
from support.signing import IMAGE, NAME, NOW, Authority, Log, b64, by_certificate, by_key
from support.weighing import accepted, by_keys, decided, refused, requirement, rules, subject

OTHER = Digest.of(b"another manifest")
OTHER = Digest.of(b"another manifest")


@pytest.fixture
def key():
    return signing.new_key()


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


EXACT = {"type": "exactReference", "dockerReference": "v.example/x:3"}
EXACT_REPOSITORY = {"type": "exactRepository", "dockerRepository": "v.example/x"}
REMAP = {"type": "remapIdentity", "prefix": "m.example/v", "signedPrefix": "v.example"}
A1, A2, A = "r.example/a:1", "r.example/a:2", "r.example/a"
BY_DIGEST = f"r.example/a@{IMAGE}"


@pytest.mark.parametrize(
    ("identity", "image", "signed", "good"),
    [
        ({"type": "matchExact"}, A1, A1, True),
        ({"type": "matchExact"}, A1, A2, False),
        ({"type": "matchExact"}, BY_DIGEST, A1, False),
        ({"type": "matchRepoDigestOrExact"}, A1, A1, True),
        ({"type": "matchRepoDigestOrExact"}, A1, A2, False),
        ({"type": "matchRepoDigestOrExact"}, A1, A, False),
        ({"type": "matchRepoDigestOrExact"}, BY_DIGEST, A2, True),
        ({"type": "matchRepoDigestOrExact"}, BY_DIGEST, "r.example/b:2", False),
        ({"type": "matchRepository"}, A1, A, True),
        ({"type": "matchRepository"}, A1, "r.example/ab:1", False),
        ({"type": "matchRepository"}, "docker.io/library/busybox:1", "busybox:1", True),
        (EXACT, A1, "v.example/x:3", True),
        (EXACT, A1, A1, False),
        (EXACT_REPOSITORY, A1, "v.example/x:9", True),
        (EXACT_REPOSITORY, A1, A1, False),
        (REMAP, "m.example/v/x/y:1", "v.example/x/y:1", True),
        (REMAP, "m.example/v/x/y:1", "m.example/v/x/y:1", False),
        (REMAP, "m.example/vx/y:1", "m.example/vx/y:1", True),
        ({**REMAP, "signedPrefix": "v.example/w"}, "m.example/v:1", "v.example/w:1", True),
    ],
)
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
    people = fields or {"subjectEmail": signing.EMAIL}
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


def test_an_authority_that_may_not_sign_certificates_issues_none_that_count(key):
    authority, middle = Authority(), signing.new_key()
    weak = signing.certificate(
        middle,
        issuer=authority.certificate,
        issuer_key=authority.key,
        authority=True,
        may_issue=False,
        subject="weak",
    )
    leaf = signing.certificate(key, issuer=weak, issuer_key=middle, names=[signing.mail()])
    reason = refused(pki(authority), by_certificate(key, leaf, signing.pem(weak) + authority.chain))
    assert "may not sign certificates" in reason


def test_a_rule_may_limit_the_age_of_signatures(key):
    # Signed a minute ago.
    def rule(age):
        return rules(f'[[rule]]\nscope = "default"\nmax-age = "{age}"\n')

    admission = decided(by_keys(key), by_key(key), rules=rule("2m"))
    assert admission.decision is Decision.ACCEPT
    assert admission.expires == NOW + 60
    assert "max-age" in refused(by_keys(key), by_key(key), rules=rule("59s"))
    undated = json.loads(signing.simple())
    undated["optional"] = None
    undated = by_key(key, json.dumps(undated).encode())
    assert "does not say when" in refused(by_keys(key), undated, rules=rule("2m"))


def test_everything_that_decides_is_part_of_what_a_decision_rests_on(key, tmp_path):
    path = tmp_path / "key"
    path.write_bytes(signing.public_pem(key))

    def inputs(fields, name=NAME, digests=(IMAGE,), signatures="", text=""):
        context = plans.TrustContext(
            policy=requirement(keyPath=str(path), **fields), ring=KeyRing(tmp_path), rules=tuple(rules(text))
        )
        plan = context.plan(subject(name))
        return plan.inputs(frozenset(digests), plan.key_files(), signatures)

    first = inputs({})
    assert inputs({}) == first
    rule = '[[rule]]\nscope = "default"\nmax-age = "9d"\n'
    others = [
        inputs({"signedIdentity": {"type": "matchRepository"}}),
        inputs({"rekorPublicKeyPath": str(path)}),
        inputs({}, name="r.example/team/app:2"),
        inputs({}, digests=[OTHER]),
        inputs({}, signatures="sha256:x"),
        inputs({}, text=rule),
        inputs({}, text=rule.replace("9d", "8d")),
    ]
    path.write_bytes(signing.public_pem(signing.new_key()))
    others.append(inputs({}))
    assert len({first, *others}) == 1 + len(others)


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
