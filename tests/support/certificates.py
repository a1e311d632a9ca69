"""Certificates of TPM makers, of servers and of their clients."""

import datetime as dt
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from support.attest_bench import NOW

USAGES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
    "encipher_only", "decipher_only", "key_cert_sign", "crl_sign",
)  # fmt: skip


def named(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)] if text else [])


def builder(subject: str, public: object, issuer: str, signer: object, *, now: float, days: float, ca: bool):
    """Begin a certificate that was valid since a day before `now`."""
    when = dt.datetime.fromtimestamp(now, dt.UTC)
    begun = (
        x509.CertificateBuilder()
        .subject_name(named(subject))
        .issuer_name(named(issuer))
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(when - dt.timedelta(days=1))
        .not_valid_after(when + dt.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    if not ca:
        return begun
    usage = dict.fromkeys(USAGES, False) | {"key_cert_sign": True, "crl_sign": True}
    return begun.add_extension(x509.KeyUsage(**usage), critical=True).add_extension(
        x509.SubjectKeyIdentifier.from_public_key(public), critical=False
    )


class Maker:
    """A maker of TPMs: a root, an intermediate, and certificates of endorsement keys."""

    def __init__(self, name: str = "maker", now: float = NOW) -> None:
        self.name, self.now = name, now
        self.root_key, self.key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        self.root = self.ca(f"{name} root", self.root_key)
        self.middle = self.ca(f"{name} tpm ca", self.key)

    def ca(self, subject: str, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
        public, issuer = key.public_key(), f"{self.name} root"
        begun = builder(subject, public, issuer, self.root_key, now=self.now, days=30, ca=True)
        return begun.sign(self.root_key, hashes.SHA256())

    def chain(self, ek_key: object, days: float = 30) -> tuple[bytes, ...]:
        """Certify an endorsement key as the TCG wants it: no subject, the model as a critical name."""
        issuer = f"{self.name} tpm ca"
        begun = builder("", ek_key.public_key(), issuer, self.key, now=self.now, days=days, ca=False)
        model = x509.Name([x509.NameAttribute(x509.ObjectIdentifier("2.23.133.2.1"), "id:00001014")])
        usage = x509.ExtendedKeyUsage([x509.ObjectIdentifier("2.23.133.8.1")])
        leaf = (
            begun.add_extension(x509.SubjectAlternativeName([x509.DirectoryName(model)]), critical=True)
            .add_extension(usage, critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return tuple(item.public_bytes(Encoding.DER) for item in (leaf, self.middle))

    def roots(self, folder: Path) -> Path:
        folder.mkdir(exist_ok=True)
        (folder / f"{self.name}.pem").write_bytes(self.root.public_bytes(Encoding.PEM))
        return folder


class Authority:
    """A CA for TLS; what it issues is written as NAME.pem and NAME.key."""

    def __init__(self, folder: Path, name: str, now: float) -> None:
        self.folder, self.name, self.now = folder, name, now
        self.key = ec.generate_private_key(ec.SECP256R1())
        begun = builder(name, self.key.public_key(), name, self.key, now=now, days=30, ca=True)
        self.pem = folder / f"{name}.pem"
        self.pem.write_bytes(begun.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM))

    def issue(self, name: str, *names: str) -> tuple[Path, Path]:
        """Issue a certificate for DNS names and addresses; return its file and that of its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        begun = builder(name, key.public_key(), self.name, self.key, now=self.now, days=1, ca=False)
        alternatives = x509.SubjectAlternativeName([alternative(text) for text in names or (name,)])
        cert = begun.add_extension(alternatives, critical=False).sign(self.key, hashes.SHA256())
        paths = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        paths[0].write_bytes(cert.public_bytes(Encoding.PEM))
        paths[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return paths


def alternative(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)
