"""Make signatures of every form, right and wrong: keys, authorities, logs, bundles, envelopes."""

import base64
import datetime as dt
import hashlib
import json
import os
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from nacl.secret import SecretBox

from secrun.digest import Digest
from secrun.trust import cosign, payload
from secrun.trust.dsse import PAYLOAD_TYPE, SIGN_PREDICATE
from secrun.trust.signatures import Candidate, SignatureKind

NOW = 1_800_000_000
IMAGE = Digest.of(b"the manifest")
NAME = "r.example/team/app:1"
ISSUER = "https://issuer.example"
EMAIL = "alice@team.example"


def b64(data):
    return base64.b64encode(data).decode()


def b64url(data):
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def canonical(document):
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def new_key():
    return ec.generate_private_key(ec.SECP256R1())


def public_pem(key):
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def public_der(key):
    return key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def signed(key, data):
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(data, padding.PKCS1v15(), hashes.SHA256())
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(data, ec.ECDSA(hashes.SHA256()))
    return key.sign(data)


def pem(certificate):
    return certificate.public_bytes(serialization.Encoding.PEM)


def der(certificate):
    return certificate.public_bytes(serialization.Encoding.DER)


def moment(seconds):
    return dt.datetime.fromtimestamp(seconds, dt.UTC)


def certificate(
    key,
    *,
    issuer=None,
    issuer_key=None,
    authority=False,
    may_issue=True,
    names=(),
    subject="signer",
    organisation="",
    start=NOW - 86400,
    end=NOW + 86400,
    purpose=ExtendedKeyUsageOID.CODE_SIGNING,
    extensions=(),
    finish=None,
):
    """Make a certificate; `finish` may change the builder just before it is signed."""
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, subject)]
    if organisation:
        attributes += [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
            x509.NameAttribute(NameOID.STATE_OR_PROVINCE_NAME, "WA"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation),
        ]
    own = x509.Name(attributes)
    builder = (
        x509.CertificateBuilder()
        .subject_name(own)
        .issuer_name(issuer.subject if issuer else own)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment(start))
        .not_valid_after(moment(end))
        .add_extension(
            x509.KeyUsage(
                digital_signature=not authority,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=authority and may_issue,
                crl_sign=authority,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if authority:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    elif purpose is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    if issuer is not None:
        parent = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(parent), critical=False
        )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(list(names)), critical=False)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    if finish is not None:
        builder = finish(builder)
    return builder.sign(issuer_key or key, hashes.SHA256())


def mail(address=EMAIL):
    return x509.RFC822Name(address)


def fulcio_issuer(issuer=ISSUER):
    return x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1"), issuer.encode())


@dataclass
class Authority:
    """A root, an intermediate, and what it issues."""

    start: float = NOW - 10 * 86400
    end: float = NOW + 10 * 86400
    root_key: object = field(default_factory=new_key)
    key: object = field(default_factory=new_key)

    def __post_init__(self):
        self.root = certificate(
            self.root_key,
            authority=True,
            subject="root",
            organisation="Roots",
            start=self.start,
            end=self.end,
        )
        self.certificate = certificate(
            self.key,
            issuer=self.root,
            issuer_key=self.root_key,
            authority=True,
            subject="intermediate",
            organisation="Roots",
            start=self.start,
            end=self.end,
        )

    def issue(self, key, **options):
        return certificate(key, issuer=self.certificate, issuer_key=self.key, **options)

    @property
    def chain(self):
        return pem(self.certificate) + pem(self.root)


def simple(digest=IMAGE, name=NAME, kind=payload.COSIGN, **changes):
    """Return a payload of simple signing; `changes` replace members of `critical`."""
    critical = {
        "type": kind,
        "image": {"docker-manifest-digest": str(digest)},
        "identity": {"docker-reference": name},
        **changes,
    }
    return json.dumps({"critical": critical, "optional": {"timestamp": NOW - 60}}).encode()


def by_key(key, said=None, *, origin="signature 1", **annotations):
    """Return a cosign signature by `key`."""
    said = simple() if said is None else said
    return Candidate(
        kind=SignatureKind.COSIGN,
        subject=IMAGE,
        payload=said,
        origin=origin,
        annotations={cosign.SIGNATURE: b64(signed(key, said)), **annotations},
    )


def by_certificate(key, leaf, chain=b"", said=None, log_entry=None):
    """Return a cosign signature that comes with its certificate."""
    extra = {cosign.CERTIFICATE: pem(leaf).decode(), cosign.CHAIN: chain.decode()}
    candidate = by_key(key, said, **extra)
    if log_entry is None:
        return candidate
    signature = base64.b64decode(candidate.annotations[cosign.SIGNATURE])
    annotations = {**candidate.annotations, cosign.LOG_ENTRY: log_entry(signature, candidate.payload)}
    return Candidate(
        kind=candidate.kind,
        subject=candidate.subject,
        payload=candidate.payload,
        origin=candidate.origin,
        annotations=annotations,
    )


class Log:
    """A Rekor log of one entry, or more that nobody asks about."""

    def __init__(self, others=()):
        self.key = new_key()
        self.others = list(others)

    @property
    def log_id(self):
        return hashlib.sha256(public_der(self.key)).digest()

    def hashedrekord(self, signature, signer_pem, data):
        return self._body(
            "hashedrekord",
            {
                "data": {"hash": {"algorithm": "sha256", "value": hashlib.sha256(data).hexdigest()}},
                "signature": {"content": b64(signature), "publicKey": {"content": b64(signer_pem)}},
            },
        )

    def dsse(self, envelope, signer_pem):
        said = base64.b64decode(envelope["payload"])
        whole = json.dumps(envelope).encode()
        return self._body(
            "dsse",
            {
                "envelopeHash": {"algorithm": "sha256", "value": hashlib.sha256(whole).hexdigest()},
                "payloadHash": {"algorithm": "sha256", "value": hashlib.sha256(said).hexdigest()},
                "signatures": [{"signature": envelope["signatures"][0]["sig"], "verifier": b64(signer_pem)}],
            },
        )

    def _body(self, kind, spec):
        return canonical({"apiVersion": "0.0.1", "kind": kind, "spec": spec})

    def promise(self, body, at=NOW - 60, index=7):
        entry = {"body": b64(body), "integratedTime": int(at), "logID": self.log_id.hex(), "logIndex": index}
        return signed(self.key, canonical(entry))

    def annotation(self, signer_pem, *, at=NOW - 60):
        """Return what makes cosign's annotation for a signature and its payload."""

        def make(signature, said):
            body = self.hashedrekord(signature, signer_pem, said)
            entry = {"body": b64(body), "integratedTime": int(at), "logIndex": 7, "logID": self.log_id.hex()}
            return json.dumps({"SignedEntryTimestamp": b64(self.promise(body, at)), "Payload": entry})

        return make

    def proof(self, body, *, claimed=None, key=None):
        """Return a proof that `body` is the last leaf of the log, whose checkpoint the log signed.

        The checkpoint may claim another size, or be signed by another key.
        """
        leaves = [hashlib.sha256(b"\0" + item).digest() for item in (*self.others, body)]
        root, path = tree(leaves, len(leaves) - 1)
        text = f"log.example\n{claimed or len(leaves)}\n{b64(root)}\n"
        note = b64(self.log_id[:4] + signed(key or self.key, text.encode()))
        return {
            "logIndex": str(len(leaves) - 1),
            "rootHash": b64(root),
            "treeSize": str(len(leaves)),
            "hashes": [b64(item) for item in path],
            "checkpoint": {"envelope": f"{text}\n\u2014 log.example {note}\n"},
        }

    def entry(self, body, *, at=NOW - 60, index=7):
        """Return a tlogEntry of a bundle."""
        document = json.loads(body)
        return {
            "logIndex": str(index),
            "logId": {"keyId": b64(self.log_id)},
            "kindVersion": {"kind": document["kind"], "version": document["apiVersion"]},
            "integratedTime": str(int(at)),
            "inclusionPromise": {"signedEntryTimestamp": b64(self.promise(body, at, index))},
            "inclusionProof": self.proof(body),
            "canonicalizedBody": b64(body),
        }


def tree(leaves, index):
    """Return root and proof of a leaf (RFC 6962, 2.1.1), by its recursive definition."""
    if len(leaves) == 1:
        return leaves[0], []
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    left, right = leaves[:split], leaves[split:]
    if index < split:
        inner, path = tree(left, index)
        other, _ = tree(right, 0)
        return hashlib.sha256(b"\1" + inner + other).digest(), [*path, other]
    inner, path = tree(right, index - split)
    other, _ = tree(left, 0)
    return hashlib.sha256(b"\1" + other + inner).digest(), [*path, other]


class Sigstore:
    """A whole sigstore: authority, log of certificates, log of signatures, trusted root."""

    def __init__(self, *, now=NOW):
        self.now = now
        self.authority = Authority(start=now - 10 * 86400, end=now + 10 * 86400)
        self.log = Log(others=[b"one", b"two", b"three", b"four"])
        self.certificate_log = new_key()

    def _promised(self, builder):
        """Add the promise of the log of certificates, as an authority does."""
        bare = builder.sign(self.authority.key, hashes.SHA256())
        at = int((self.now - 120) * 1000)
        issuer = hashlib.sha256(public_der(self.authority.key)).digest()
        tbs = bare.tbs_certificate_bytes
        said = (
            b"\0\0" + at.to_bytes(8, "big") + b"\0\1" + issuer + len(tbs).to_bytes(3, "big") + tbs + b"\0\0"
        )
        signature = signed(self.certificate_log, said)
        log_id = hashlib.sha256(public_der(self.certificate_log)).digest()
        # version, log, time, no extensions, SHA-256 with ECDSA, signature
        one = b"\0" + log_id + at.to_bytes(8, "big") + b"\0\0" + b"\4\3"
        one += len(signature).to_bytes(2, "big") + signature
        listed = len(one).to_bytes(2, "big") + one
        whole = len(listed).to_bytes(2, "big") + listed
        value = b"\4" + (bytes([len(whole)]) if len(whole) < 128 else b"\x81" + bytes([len(whole)])) + whole
        oid = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
        return builder.add_extension(x509.UnrecognizedExtension(oid, value), critical=False)

    def leaf(self, key, *, names=None, issuer=ISSUER, promised=True, start=None, end=None):
        return self.authority.issue(
            key,
            names=names or [mail()],
            extensions=[fulcio_issuer(issuer)],
            start=self.now - 120 if start is None else start,
            end=self.now + 480 if end is None else end,
            finish=self._promised if promised else None,
        )

    def bundle(self, digest=IMAGE, predicate=SIGN_PREDICATE, *, key=None, leaf=None, log=None, at=None):
        """Return a bundle; without `leaf` it is by the bare key."""
        key = key or new_key()
        said = statement(digest, predicate)
        envelope = {
            "payload": b64(said),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": b64(signed(key, pae(said)))}],
        }
        signer = pem(leaf) if leaf is not None else public_pem(key)
        body = (log or self.log).dsse(envelope, signer)
        material = {"tlogEntries": [(log or self.log).entry(body, at=self.now - 60 if at is None else at)]}
        if leaf is None:
            material["publicKey"] = {"hint": ""}
        else:
            material["certificate"] = {"rawBytes": b64(der(leaf))}
        return {
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": material,
            "dsseEnvelope": envelope,
        }

    def trusted_root(self):
        span = {"start": moment(self.now - 30 * 86400).isoformat().replace("+00:00", "Z")}

        def log(key, url):
            return {
                "baseUrl": url,
                "hashAlgorithm": "SHA2_256",
                "publicKey": {
                    "rawBytes": b64(public_der(key)),
                    "keyDetails": "PKIX_ECDSA_P256_SHA_256",
                    "validFor": span,
                },
                "logId": {"keyId": b64(hashlib.sha256(public_der(key)).digest())},
            }

        certificates = [{"rawBytes": b64(der(self.authority.certificate))}]
        certificates.append({"rawBytes": b64(der(self.authority.root))})
        authority = {
            "subject": {"organization": "Roots", "commonName": "root"},
            "uri": "https://fulcio.example",
            "certChain": {"certificates": certificates},
            "validFor": span,
        }
        return {
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [log(self.log.key, "https://rekor.example")],
            "certificateAuthorities": [authority],
            "ctlogs": [log(self.certificate_log, "https://ctfe.example")],
            "timestampAuthorities": [],
        }


def statement(digest=IMAGE, predicate=SIGN_PREDICATE):
    return json.dumps(
        {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"name": "", "digest": {"sha256": digest.hex}}],
            "predicateType": predicate,
            "predicate": {},
        }
    ).encode()


def pae(said):
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(said), said)


def bundled(document, kind=SignatureKind.BUNDLE, origin="referrer 1", subject=IMAGE):
    """Return a candidate that holds a document."""
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return Candidate(kind=kind, subject=subject, payload=data, origin=origin)


NOTATION_TYPE = "application/vnd.cncf.notary.payload.v1+json"
SCHEME = "io.cncf.notary.signingScheme"


def notation(key, leaf, chain, digest=IMAGE, *, algorithm="ES256", protected=None, content=None):
    """Return a Notation envelope; `protected` changes its header."""
    header = {
        "alg": algorithm,
        "cty": NOTATION_TYPE,
        "crit": [SCHEME],
        SCHEME: "notary.x509",
        "io.cncf.notary.signingTime": moment(NOW - 60).isoformat().replace("+00:00", "Z"),
        **(protected or {}),
    }
    target = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": str(digest), "size": 12}
    said = b64url(json.dumps(content or {"targetArtifact": target}).encode())
    head = b64url(json.dumps(header).encode())
    data = f"{head}.{said}".encode()
    if isinstance(key, rsa.RSAPrivateKey):
        salted = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=32)
        signature = key.sign(data, salted, hashes.SHA256())
    else:
        numbers = utils.decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
        signature = b"".join(number.to_bytes(32, "big") for number in numbers)
    return {
        "payload": said,
        "protected": head,
        "header": {"x5c": [b64(der(item)) for item in (leaf, *chain)]},
        "signature": b64url(signature),
    }


def cosign_box(key, passphrase):
    """Return a private key as `cosign generate-key-pair` writes it."""
    der = key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    salt, nonce = os.urandom(32), os.urandom(24)
    secret = hashlib.scrypt(passphrase, salt=salt, n=32768, r=8, p=1, maxmem=64 << 20, dklen=32)
    document = {
        "kdf": {"name": "scrypt", "params": {"N": 32768, "r": 8, "p": 1}, "salt": b64(salt)},
        "cipher": {"name": "nacl/secretbox", "nonce": b64(nonce)},
        "ciphertext": b64(SecretBox(secret).encrypt(der, nonce).ciphertext),
    }
    body = b64(json.dumps(document).encode())
    name = "ENCRYPTED COSIGN PRIVATE KEY"
    return f"-----BEGIN {name}-----\n{body}\n-----END {name}-----\n".encode()
