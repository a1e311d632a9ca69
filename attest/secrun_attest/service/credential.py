"""TPM2_MakeCredential without a TPM: a secret that only the TPM with this EK and this AK can open.

TPM 2.0 Library part 1, 24 (credential protection), 11.4.10 (KDFa, KDFe), annexes B.10.4 and C.6.4 (seeds).
"""

import struct
from dataclasses import dataclass
from secrets import token_bytes

from secrun_attest.service.trouble import ServiceError, Trouble
from secrun_attest.wire import CURVE_NIST_P256, Alg, Attribute, Public

# The TCG's default templates (EK Credential Profile 2.5, B.3.3 and B.3.4): a storage key that never leaves.
EK_REQUIRED = (
    Attribute.FIXED_TPM
    | Attribute.FIXED_PARENT
    | Attribute.SENSITIVE_DATA_ORIGIN
    | Attribute.RESTRICTED
    | Attribute.DECRYPT
)
SYMMETRIC_BITS = 128
SECRET_SIZE = 32
_HASH_BITS = 256
_COORDINATE = 32
_U16 = struct.Struct(">H")


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """What TPM2_ActivateCredential takes: TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET, sizes in front."""

    blob: bytes
    encrypted_secret: bytes


def check_ek(ek: Public) -> None:
    """Raise ServiceError unless `ek` is a storage key of a kind that a credential can be made for."""
    if ek.attributes & EK_REQUIRED != EK_REQUIRED or ek.attributes & Attribute.SIGN:
        raise _bad(f"attributes are {int(ek.attributes):#010x}: not a restricted decryption key")
    symmetric = (ek.symmetric, ek.symmetric_bits, ek.symmetric_mode)
    if ek.name_alg != Alg.SHA256 or symmetric != (Alg.AES, SYMMETRIC_BITS, Alg.CFB):
        got = f"name algorithm {ek.name_alg:#06x}, symmetric {symmetric}"
        raise _bad(f"{got}, expected SHA-256 and AES-128-CFB")
    if (ek.type, ek.curve) != (Alg.ECC, CURVE_NIST_P256) and (ek.bits, ek.exponent) != (2048, 65537):
        raise _bad(f"curve {ek.curve}, {ek.bits} bits, expected P-256 or RSA-2048")


def _bad(message: str) -> ServiceError:
    hint = "use the TCG's default template: tpm2_createek -G rsa or -G ecc"
    return ServiceError(Trouble.EK_ATTR, f"the endorsement key: {message}", hint=hint)


def make_credential(ek: Public, ak_name: bytes, secret: bytes) -> Credential:
    """Return `secret` wrapped for the TPM that holds `ek` and a key named `ak_name`; raises ServiceError."""
    try:
        seed, encrypted = _ecc_seed(ek) if ek.type == Alg.ECC else _rsa_seed(ek)
    except ValueError as error:  # a point off the curve, an even modulus
        raise _bad(f"its numbers are no key: {error}") from error
    return Credential(blob=_sized(_id_object(seed, ak_name, secret)), encrypted_secret=_sized(encrypted))


def _id_object(seed: bytes, ak_name: bytes, secret: bytes) -> bytes:
    """Encrypt, then authenticate together with the Name (part 1, 24.4 and 24.5)."""
    from cryptography.hazmat.decrepit.ciphers.modes import CFB
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
    from cryptography.hazmat.primitives.hmac import HMAC

    key = _kdfa(seed, b"STORAGE", ak_name, SYMMETRIC_BITS)
    # The key is used once, so the zero vector that the specification demands gives nothing away.
    cipher = Cipher(algorithms.AES(key), CFB(bytes(16))).encryptor()
    identity = cipher.update(_sized(secret)) + cipher.finalize()
    outer = HMAC(_kdfa(seed, b"INTEGRITY", b"", _HASH_BITS), hashes.SHA256())
    outer.update(identity + ak_name)
    return _sized(outer.finalize()) + identity


def _kdfa(key: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFHMAC, CounterLocation, Mode

    derivation = KBKDFHMAC(
        algorithm=hashes.SHA256(),
        mode=Mode.CounterMode,
        length=bits // 8,
        rlen=4,
        llen=4,
        location=CounterLocation.BeforeFixed,
        label=label,
        context=context,
        fixed=None,
    )
    return derivation.derive(key)


def _rsa_seed(ek: Public) -> tuple[bytes, bytes]:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding, rsa

    seed = token_bytes(SECRET_SIZE)
    key = rsa.RSAPublicNumbers(ek.exponent, int.from_bytes(ek.unique[0], "big")).public_key()
    scheme = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), label=b"IDENTITY\0")
    return seed, key.encrypt(seed, scheme)


def _ecc_seed(ek: Public) -> tuple[bytes, bytes]:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash

    x, y = (int.from_bytes(part, "big") for part in ek.unique)
    public = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    ephemeral = ec.generate_private_key(ec.SECP256R1())
    ours = ephemeral.public_key().public_numbers()
    point = [value.to_bytes(_COORDINATE, "big") for value in (ours.x, ours.y)]
    parties = b"IDENTITY\0" + point[0] + x.to_bytes(_COORDINATE, "big")
    derivation = ConcatKDFHash(hashes.SHA256(), SECRET_SIZE, parties)
    seed = derivation.derive(ephemeral.exchange(ec.ECDH(), public))
    return seed, _sized(point[0]) + _sized(point[1])


def _sized(data: bytes) -> bytes:
    return _U16.pack(len(data)) + data
