"""Bundles, Notation signatures and hostile bytes: what counts, and every way to fail."""

import base64
import hashlib
import json

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from secrun.digest import Digest
from secrun.errors import DeniedError
from secrun.trust import bundle, notation, payload, rekor, trustedroot
from secrun.trust.faults import SignatureFaultError
from secrun.trust.signatures import SignatureKind, SignatureSet, bounded
from support import signing
from support.signing import NOW, Authority, Sigstore, b64, bundled, by_key
from support.weighing import ACCEPT, accepted, by_keys, decided, refused, requirement, rules

OTHER = Digest.of(b"another manifest")
OTHER = Digest.of(b"another manifest")


@pytest.fixture
def key():
    return signing.new_key()


# Bundles.


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
def test_a_bundle_with_one_wrong_member_does_not_count(sigstore, keyless, path, value, word):
    key = signing.new_key()
    document = sigstore.bundle(key=key, leaf=sigstore.leaf(key))
    reason = refused(ACCEPT, bundled(broken(document, *path, value=value)), rules=keyless())
    assert word in reason


def test_a_certificate_and_a_log_do_not_help_a_signature_by_another_key(sigstore, keyless, key):
    document = sigstore.bundle(key=signing.new_key(), leaf=sigstore.leaf(key))
    assert "not by the key" in refused(ACCEPT, bundled(document), rules=keyless())


@pytest.mark.parametrize(
    ("options", "word"),
    [({"claimed": 99}, "another state"), ({"key": signing.new_key()}, "not by the key")],
)
def test_a_checkpoint_must_be_the_logs_own_and_about_the_proof(sigstore, keyless, key, options, word):
    document = sigstore.bundle(key=key, leaf=sigstore.leaf(key))
    body = base64.b64decode(document["verificationMaterial"]["tlogEntries"][0]["canonicalizedBody"])
    path = (*ENTRY, "inclusionProof")
    changed = broken(document, *path, value=sigstore.log.proof(body, **options))
    assert word in refused(ACCEPT, bundled(changed), rules=keyless())
    accepted(ACCEPT, bundled(broken(document, *path, value=sigstore.log.proof(body))), rules=keyless())


@pytest.mark.parametrize(
    ("path", "word"),
    [
        (("tlogs", 0, "publicKey", "validFor"), "does not name"),
        (("ctlogs", 0, "publicKey", "validFor"), "does not name"),
        (("certificateAuthorities", 0, "validFor"), "in use"),
    ],
)
def test_what_a_trusted_root_names_counts_for_its_time_only(sigstore, keyless, tmp_path, path, word):
    key = signing.new_key()
    document = bundled(sigstore.bundle(key=key, leaf=sigstore.leaf(key)))
    span = {"start": "2020-01-01T00:00:00Z", "end": signing.moment(NOW - 1000).isoformat()}
    (tmp_path / "trusted_root.json").write_text(
        json.dumps(broken(sigstore.trusted_root(), *path, value=span))
    )
    assert word in refused(ACCEPT, document, rules=keyless())


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
        except SignatureFaultError:
            continue


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
    except SignatureFaultError:
        return


SAMPLE = Sigstore().bundle()


@given(st.binary(max_size=100) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_trusted_root_or_a_value_error(data):
    try:
        trustedroot.parse(data)
    except ValueError:
        return


@given(st.text(max_size=60) | JSON.map(json.dumps))
def test_any_text_is_a_log_entry_or_a_fault(text):
    try:
        rekor.parse_annotation(text)
    except SignatureFaultError:
        return


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
