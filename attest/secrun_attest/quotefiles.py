"""A quote as files that tpm2-tools check, beside the log in the form that tpm2_eventlog reads."""

import struct
from pathlib import Path
from typing import Final

from secrun_attest.collect import Snapshot, Source, take
from secrun_attest.exports import LogFormat, export
from secrun_attest.record import ALGORITHM_IDS, Bank
from secrun_attest.wire import parse_public

# tpm2-tools write C structures as they lie in memory, numbers little-endian: TPML_PCR_SELECTION with room
# for 16 banks of 4 bytes each (a byte of padding behind them), a count, and that many TPML_DIGEST of up to
# 8 TPM2B_DIGEST.
_SELECTIONS: Final = 16
_SELECTION: Final = struct.Struct("<HB4sx")
_DIGESTS: Final = 8
_DIGEST: Final = struct.Struct("<H64s")
_SELECT_SIZE: Final = 3

PcrValues = tuple[tuple[int, bytes], ...]


def write_quote(
    directory: Path, source: Source, qualifying: bytes, bank: Bank, pcrs: tuple[int, ...]
) -> Snapshot:
    """Quote over 32 bytes and write the files; return what they hold.

    ak.pub and ak.pem, quote.msg, quote.sig, quote.pcrs, log.tcg. `tpm2_checkquote -u ak.pub -m quote.msg
    -s quote.sig -f quote.pcrs -q HEX -e log.tcg` judges them. Raises as `collect.take` does.
    """
    taken = take(source, bank, pcrs, lambda _: qualifying)
    quoted = taken.quoted
    files = {
        **quote_files(taken.key.public, quoted.attest, quoted.signature, bank, quoted.pcrs),
        "log.tcg": export(taken.records, LogFormat.TCG, tuple(taken.asked.base)),
    }
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, data in files.items():
        (directory / name).write_bytes(data)
    return taken


def quote_files(
    public: bytes, attest: bytes, signature: bytes, bank: Bank, pcrs: PcrValues
) -> dict[str, bytes]:
    """Return a quote as files by the names that `write_quote` gives them."""
    return {
        "ak.pub": public,
        "ak.pem": pem_of(public),
        "quote.msg": attest,
        "quote.sig": signature,
        "quote.pcrs": serialized_pcrs(bank, pcrs),
    }


def pem_of(public: bytes) -> bytes:
    """Return the public key in a TPM2B_PUBLIC as PEM."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    x, y = (int.from_bytes(part, "big") for part in parse_public(public).unique)
    point = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    return point.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def serialized_pcrs(bank: Bank, pcrs: PcrValues) -> bytes:
    """Return the quoted values as `tpm2_quote -o` writes them and `tpm2_checkquote -f` reads them."""
    bitmap = sum(1 << pcr for pcr, _ in pcrs).to_bytes(_SELECT_SIZE, "little")
    selection = _SELECTION.pack(ALGORITHM_IDS[bank], _SELECT_SIZE, bitmap)
    values = [value for _, value in pcrs]
    lists = [values[at : at + _DIGESTS] for at in range(0, len(values), _DIGESTS)]
    return b"".join(
        (
            struct.pack("<I", 1),
            selection.ljust(_SELECTIONS * _SELECTION.size, b"\0"),
            struct.pack("<I", len(lists)),
            *(_digest_list(part) for part in lists),
        )
    )


def _digest_list(values: list[bytes]) -> bytes:
    packed = b"".join(_DIGEST.pack(len(value), value) for value in values)
    return struct.pack("<I", len(values)) + packed.ljust(_DIGESTS * _DIGEST.size, b"\0")
