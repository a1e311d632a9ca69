"""Certificates of TPM makers, of servers and of their clients."""

import datetime as dt

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from support.attest_bench import NOW


class Maker:
    """A maker of TPMs: a root, an intermediate, and certificates of endorsement keys."""

    def __init__(self, name: str = "maker", now: float = NOW) -> None:
        self.now = now
        self.root_key, self.key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        self.root = self.sign(f"{name} root", self.root_key, f"{name} root", self.root_key, ca=True)
        self.middle = self.sign(f"{name} tpm ca", self.key, f"{name} root", self.root_key, ca=True)
        self.name = name

    def sign(self, subject, key, issuer, signer, *, ca=False, days=30):
        when = dt.datetime.fromtimestamp(self.now, dt.UTC)
        public = key if not hasattr(key, "public_key") else key.public_key()
        builder = (
            x509.CertificateBuilder()
            .subject_name(named(subject) if ca else x509.Name([]))
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
        if ca:
            usage = dict.fromkeys(
                (
                    "digital_signature",
                    "content_commitment",
                    "key_encipherment",
                    "data_encipherment",
                    "key_agreement",
                    "encipher_only",
                    "decipher_only",
                ),
                False,
            )
            builder = builder.add_extension(
                x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), critical=True
            ).add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        else:
            # As the TCG wants it: no subject, the model as a critical directory name, a usage of its own.
            model = x509.Name([x509.NameAttribute(x509.ObjectIdentifier("2.23.133.2.1"), "id:00001014")])
            builder = builder.add_extension(
                x509.SubjectAlternativeName([x509.DirectoryName(model)]), critical=True
            ).add_extension(x509.ExtendedKeyUsage([x509.ObjectIdentifier("2.23.133.8.1")]), critical=False)
        return builder.sign(signer, hashes.SHA256())

    def chain(self, ek_key, **changes):
        leaf = self.sign("", ek_key, f"{self.name} tpm ca", self.key, **changes)
        return tuple(item.public_bytes(Encoding.DER) for item in (leaf, self.middle))

    def roots(self, folder):
        folder.mkdir(exist_ok=True)
        (folder / f"{self.name}.pem").write_bytes(self.root.public_bytes(Encoding.PEM))
        return folder


def named(text):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
