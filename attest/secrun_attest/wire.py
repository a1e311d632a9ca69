"""TPM 2.0 structures as a verifier meets them: bounded parsers, no TPM, every byte accounted for.

Layouts: TPM 2.0 Library part 2, TPMS_ATTEST (10.12.12), TPMT_SIGNATURE (11.3.4), TPMT_PUBLIC (12.2.4).
"""

import hashlib
import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from secrun_attest.reader import Reader, WireError

GENERATED = 0xFF544347  # TPM_GENERATED_VALUE: "\xffTCG"
ST_ATTEST_QUOTE = 0x8018


class Alg(IntEnum):
    """TPM_ALG_ID values that secrun knows."""

    RSA = 0x0001
    SHA1 = 0x0004
    AES = 0x0006
    SHA256 = 0x000B
    SHA384 = 0x000C
    SHA512 = 0x000D
    NULL = 0x0010
    RSASSA = 0x0014
    RSAPSS = 0x0016
    ECDSA = 0x0018
    ECC = 0x0023
    CFB = 0x0043


HASH_NAMES: dict[int, str] = {
    Alg.SHA1: "sha1",
    Alg.SHA256: "sha256",
    Alg.SHA384: "sha384",
    Alg.SHA512: "sha512",
}
HASH_SIZES: dict[str, int] = {"sha1": 20, "sha256": 32, "sha384": 48, "sha512": 64}
CURVE_NIST_P256 = 0x0003


class Hierarchy(IntEnum):
    """Handles of the hierarchies, as they are hashed into a qualified name."""

    ENDORSEMENT = 0x4000000B
    PLATFORM = 0x4000000C


class Attribute(IntFlag):
    """TPMA_OBJECT bits that decide whether a signature proves a quote."""

    FIXED_TPM = 1 << 1
    FIXED_PARENT = 1 << 4
    SENSITIVE_DATA_ORIGIN = 1 << 5
    RESTRICTED = 1 << 16
    DECRYPT = 1 << 17
    SIGN = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """TPMS_CLOCK_INFO: `clock` in milliseconds; `safe` is false when it may have gone back (power cut)."""

    clock: int
    reset: int
    restart: int
    safe: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """One TPMS_PCR_SELECTION: the bank's TPM_ALG_ID and the PCR numbers, ascending."""

    alg: int
    pcrs: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attest:
    """A TPMS_ATTEST as far as all attestation types share it, and the quote if it is one.

    `magic` and `type` are as found: what they must be is a check of its own.
    """

    magic: int
    type: int
    signer: bytes
    extra: bytes
    clock: Clock
    firmware: int
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """TPMS_QUOTE_INFO: what was selected and the digest over the selected values."""

    selections: tuple[Selection, ...]
    digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """TPMT_SIGNATURE; `parts` is (r, s) of ECDSA or (signature,) of RSASSA and RSAPSS."""

    scheme: int
    hash: int
    parts: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Public:
    """TPMT_PUBLIC of a key; `unique` is (x, y) or (modulus,), `area` the bytes that its Name digests.

    `symmetric` is what a storage key protects its children with, else NULL with 0 bits and mode 0.
    """

    type: int
    name_alg: int
    attributes: Attribute
    policy: bytes
    symmetric: int
    scheme: int
    scheme_hash: int
    curve: int
    bits: int
    exponent: int
    unique: tuple[bytes, ...]
    area: bytes
    symmetric_bits: int = 0
    symmetric_mode: int = 0


_CLOCK = struct.Struct(">QIIBQ")


def parse_attest(data: bytes) -> Attest:
    """Parse the part that every TPMS_ATTEST has; raises WireError. `parse_quote_body` reads the rest."""
    reader = Reader(data, "attestation")
    magic = reader.number(4, "magic")
    type_ = reader.number(2, "type")
    signer = reader.sized("qualifiedSigner")
    extra = reader.sized("extraData")
    clock, reset, restart, safe, firmware = _CLOCK.unpack(reader.take(_CLOCK.size, "clockInfo"))
    if safe > 1:
        raise WireError(f"attestation: safe is {safe}, expected 0 or 1")
    return Attest(
        magic=magic,
        type=type_,
        signer=signer,
        extra=extra,
        clock=Clock(clock=clock, reset=reset, restart=restart, safe=safe == 1),
        firmware=firmware,
        body=reader.rest(),
    )


def parse_quote_body(data: bytes) -> Quote:
    """Parse TPMS_QUOTE_INFO, the end of a quote; raises WireError, also if a byte is left over."""
    reader = Reader(data, "quote")
    selections = tuple(Selection(alg=alg, pcrs=pcrs) for alg, pcrs in reader.selections())
    digest = reader.sized("pcrDigest")
    reader.end()
    return Quote(selections=selections, digest=digest)


def parse_signature(data: bytes) -> Signature:
    """Parse a TPMT_SIGNATURE of ECDSA, RSASSA or RSAPSS; raises WireError for any other scheme."""
    reader = Reader(data, "signature")
    scheme = reader.number(2, "sigAlg")
    if scheme not in (Alg.ECDSA, Alg.RSASSA, Alg.RSAPSS):
        raise WireError(f"signature: scheme {scheme:#06x} is not ECDSA, RSASSA or RSAPSS")
    hash_ = reader.number(2, "hash")
    names = ("r", "s") if scheme == Alg.ECDSA else ("sig",)
    parts = tuple(reader.sized(name) for name in names)
    reader.end()
    return Signature(scheme=scheme, hash=hash_, parts=parts)


def parse_public(data: bytes) -> Public:
    """Parse a TPM2B_PUBLIC with an RSA or ECC key inside; raises WireError."""
    outer = Reader(data, "public area")
    area = outer.sized("publicArea")
    outer.end()
    reader = Reader(area, "public area")
    type_ = reader.number(2, "type")
    if type_ not in (Alg.RSA, Alg.ECC):
        raise WireError(f"public area: type {type_:#06x} is neither RSA nor ECC")
    name_alg = reader.number(2, "nameAlg")
    attributes = Attribute(reader.number(4, "objectAttributes"))
    policy = reader.sized("authPolicy")
    symmetric = reader.number(2, "symmetric")
    symmetric_bits = symmetric_mode = 0
    if symmetric != Alg.NULL:
        symmetric_bits = reader.number(2, "symmetric key bits")
        symmetric_mode = reader.number(2, "symmetric mode")
    scheme = reader.number(2, "scheme")
    scheme_hash = Alg.NULL if scheme == Alg.NULL else reader.number(2, "scheme hash")
    curve = bits = exponent = 0
    if type_ == Alg.ECC:
        curve = reader.number(2, "curve")
        if (kdf := reader.number(2, "kdf")) != Alg.NULL:
            raise WireError(f"public area: kdf {kdf:#06x}, expected none")
        unique: tuple[bytes, ...] = (reader.sized("x"), reader.sized("y"))
    else:
        bits = reader.number(2, "keyBits")
        exponent = reader.number(4, "exponent") or 65537
        unique = (reader.sized("modulus"),)
    reader.end()
    return Public(
        type=type_,
        name_alg=name_alg,
        attributes=attributes,
        policy=policy,
        symmetric=symmetric,
        scheme=scheme,
        scheme_hash=scheme_hash,
        curve=curve,
        bits=bits,
        exponent=exponent,
        unique=unique,
        area=area,
        symmetric_bits=symmetric_bits,
        symmetric_mode=symmetric_mode,
    )


def name_of(public: Public) -> bytes:
    """Return the Name: nameAlg and the digest of the public area (part 1, 16); raises WireError."""
    return public.name_alg.to_bytes(2, "big") + _digest(public.name_alg, public.area)


def qualified_name(parent: bytes, name: bytes) -> bytes:
    """Return the qualified name under `parent`: a hierarchy's handle or a qualified name (part 1, 16)."""
    alg = int.from_bytes(name[:2], "big")
    return name[:2] + _digest(alg, parent + name)


def _digest(alg: int, data: bytes) -> bytes:
    if alg not in HASH_NAMES:
        raise WireError(f"hash algorithm {alg:#06x} is not known")
    return hashlib.new(HASH_NAMES[alg], data).digest()
