"""A TPM through ESAPI: facts, banks, PCRs, the attestation key, quotes, credential activation.

`directtpm` has the three commands that measuring needs, without a library; this is for everything else,
and for ways to a TPM that only the TSS knows.
"""

import hashlib
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from secrun_attest.checkpoint import reached
from secrun_attest.endorsement import EkKind, Endorsement, endorsement_of
from secrun_attest.errors import FormatError, TpmError, TpmTransportError
from secrun_attest.record import ALGORITHM_IDS, BANK_OF_ID, DIGEST_SIZES, Bank
from secrun_attest.tpm import TpmClock, TpmKind
from secrun_attest.tsslink import FAILURE, Link, meaning, translated
from secrun_attest.wire import (
    Hierarchy,
    name_of,
    parse_attest,
    parse_public,
    parse_quote_body,
    qualified_name,
)

# extraData is a SHA-256; TPMs with SHA-256 only take no more than 34 bytes.
QUALIFYING_SIZE: Final = 32
# Another process may extend a PCR between the quote and the look at its value.
QUOTE_TRIES: Final = 3

# TPMT_PUBLIC of the attestation key: P-256, ECDSA with SHA-256, no policy, no unique of our own: the same
# key each time that it is made from one endorsement seed. fixedTPM, fixedParent, sensitiveDataOrigin,
# userWithAuth, noDA, restricted, sign. noDA: wrong passwords for somebody's disk must not stop
# attestation, nor may a power cut.
_AK_TEMPLATE: Final = bytes.fromhex("0023000b00050472000000100018000b0003001000000000")

# Who says so in TPM2_PT_MANUFACTURER makes TPMs that are programs: libtpms, the reference simulator, and
# clouds.
_SOFTWARE_MAKERS: Final = frozenset({"IBM", "MSFT", "XYZ", "GOOG", "VMW", "AMZN", "QEMU"})
_SOFTWARE_VENDOR: Final = "SW"

# TPM_PT of what a TPM says of itself (TPM 2.0 part 2, 6.13).
_PT_MANUFACTURER: Final = 0x105
_PT_VENDOR_STRING: Final = range(0x106, 0x10A)
_PT_FIRMWARE_VERSION: Final = (0x10B, 0x10C)

# ActivateCredential: integrity, value, size, point, key. Which one depends on the place that was changed.
_WRONG_CREDENTIAL: Final = frozenset({0x09F, 0x084, 0x095, 0x0A7, 0x09C, FAILURE})
_RSA_SEED_SIZE: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmFacts:
    """What a TPM says of itself; `firmware` is the 64-bit version that its quotes carry."""

    manufacturer: str
    vendor: str
    firmware: int

    @property
    def kind(self) -> TpmKind:
        """Whether it is a program; a word of the host, no proof."""
        program = self.manufacturer in _SOFTWARE_MAKERS or self.vendor.split()[:1] == [_SOFTWARE_VENDOR]
        return TpmKind.SOFTWARE if program else TpmKind.HARDWARE


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestationKey:
    """The key that signs quotes: TPM2B_PUBLIC, Name and qualified name."""

    public: bytes
    name: bytes
    qualified_name: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Quoted:
    """A quote: TPMS_ATTEST and TPMT_SIGNATURE, and the PCR values that have its digest."""

    attest: bytes
    signature: bytes
    pcrs: tuple[tuple[int, bytes], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Moving:
    """A PCR that others extend while it is quoted; `values` gives what it may have been meanwhile."""

    pcr: int
    values: Callable[[], Iterable[bytes]]


class Tss:
    """A connection to the TPM at `tcti`: `device:/dev/tpmrm0`, `swtpm:path=SOCKET`, or what the TSS loads.

    Keys are loaded when they are first needed and flushed by `close`. A software TPM has room for one
    user's keys: others wait for `close`. It serves one connection at a time; close a DirectTpm to it
    first. Raises TpmTransportError if there is no way to the TPM; all methods raise TpmError if the TPM
    refused and certainly did nothing, TpmTransportError if nobody knows.
    """

    def __init__(self, tcti: str) -> None:
        self._link = Link(tcti)
        self._ak: tuple[int, AttestationKey] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except (TpmError, TpmTransportError):
            # What went wrong first says more than that its key cannot be flushed either.
            if error is None:
                raise

    def close(self) -> None:
        """Flush what is loaded and end the connection."""
        try:
            if self._ak is not None:
                handle, self._ak = self._ak[0], None
                self._link.flush(handle)
        finally:
            self._link.close()

    # The TPM itself.

    def startup(self, *, clear: bool = True) -> None:
        """Start the TPM after power-on, as firmware does; nothing happens if it was started."""
        with self._link.command("start the TPM"):
            self._link.api.startup(self._su(clear=clear))

    def shutdown(self, *, clear: bool = True) -> None:
        """Tell the TPM that power goes: for a reboot, or with `clear` off for a sleep."""
        with self._link.command("shut the TPM down"):
            self._link.api.shutdown(self._su(clear=clear))

    def _su(self, *, clear: bool) -> int:
        types = self._link.lib.TPM2_SU
        return int(types.CLEAR if clear else types.STATE)

    def facts(self) -> TpmFacts:
        """Return who made the TPM and what it runs."""
        lib = self._link.lib
        with self._link.command("read the TPM's properties"):
            _, found = self._link.api.get_capability(lib.TPM2_CAP.TPM_PROPERTIES, lib.TPM2_PT.FIXED, 127)
        values = {int(one.property): int(one.value) for one in found.data.tpmProperties}
        high, low = (values.get(number, 0) for number in _PT_FIRMWARE_VERSION)
        return TpmFacts(
            manufacturer=_letters([values.get(_PT_MANUFACTURER, 0)]),
            vendor=_letters([values.get(number, 0) for number in _PT_VENDOR_STRING]),
            firmware=high << 32 | low,
        )

    # PCRs: this much makes it a `tpm.Tpm`.

    def clock(self) -> TpmClock:
        """Return the counters that name the boot epoch."""
        with self._link.command("read the TPM's clock"):
            now = self._link.api.read_clock().clockInfo
        return TpmClock(
            reset=int(now.resetCount),
            restart=int(now.restartCount),
            safe=bool(now.safe),
            clock=int(now.clock),
        )

    def banks(self, pcr: int) -> tuple[Bank, ...]:
        """Return the banks allocated for `pcr`; raises TpmError for one that secrun cannot extend."""
        allocated = self._allocated(pcr)
        if unknown := allocated - BANK_OF_ID.keys():
            raise TpmError(
                f"the TPM has a bank of hash {min(unknown):#06x}, which secrun cannot extend",
                hint="anybody could write a history into it: deallocate it with tpm2_pcrallocate",
                code="tpm-banks",
            )
        return tuple(bank for bank in Bank if ALGORITHM_IDS[bank] in allocated)

    def _allocated(self, pcr: int) -> set[int]:
        with self._link.command("read the TPM's banks"):
            _, found = self._link.api.get_capability(self._link.lib.TPM2_CAP.PCRS, 0, 1)
        chosen = found.data.assignedPCR
        return {int(one.hash) for one in chosen if pcr in _selected(bytes(one.pcrSelect))}

    def read_pcr(self, pcr: int) -> Mapping[Bank, bytes]:
        """Return the PCR's value in every allocated bank."""
        values = self._read([(bank, pcr) for bank in self.banks(pcr)])
        return {bank: value for (bank, _), value in values.items()}

    def extend(self, pcr: int, digests: Mapping[Bank, bytes]) -> None:
        """Extend all banks in one command."""
        lib = self._link.lib
        values = [
            lib.TPMT_HA(hashAlg=ALGORITHM_IDS[bank], digest=lib.TPMU_HA(**{bank.value: value}))
            for bank, value in digests.items()
        ]
        with self._link.command(f"extend PCR {pcr}"):
            self._link.api.pcr_extend(lib.ESYS_TR.PCR0 + pcr, lib.TPML_DIGEST_VALUES(digests=values))

    def _read(self, pcrs: Sequence[tuple[Bank, int]]) -> dict[tuple[Bank, int], bytes]:
        """Read PCRs by bank and number; one command answers with eight of them at most."""
        values: dict[tuple[Bank, int], bytes] = {}
        while left := [pcr for pcr in pcrs if pcr not in values]:
            with self._link.command("read PCRs"):
                _, chosen, digests = self._link.api.pcr_read(self._selection(left))
            algs = ((BANK_OF_ID.get(int(one.hash)), one) for one in chosen)
            got = [(bank, pcr) for bank, one in algs if bank for pcr in _selected(bytes(one.pcrSelect))]
            found = [bytes(digest) for digest in digests]
            sizes = [DIGEST_SIZES[bank] for bank, _ in got]
            if not got or not set(got) <= set(left) or sizes != [len(value) for value in found]:
                raise TpmError(
                    f"the TPM gave {len(found)} values for PCRs {_named(left)}",
                    hint="look with `tpm2_getcap pcrs` whether they are allocated",
                    code="tpm-banks",
                )
            values.update(zip(got, found, strict=True))
        return values

    def _selection(self, pcrs: Sequence[tuple[Bank, int]]) -> object:
        return self._link.lib.TPML_PCR_SELECTION.parse(_named(pcrs))

    # Keys.

    def create_ak(self) -> AttestationKey:
        """Return the attestation key, a primary key of the endorsement hierarchy: the same one each time."""
        return self._load_ak()[1]

    def _load_ak(self) -> tuple[int, AttestationKey]:
        if self._ak is None:
            template, _ = self._link.lib.TPMT_PUBLIC.unmarshal(_AK_TEMPLATE)
            handle, public = self._create(template, "make the attestation key")
            name = name_of(parse_public(public))
            qualified = qualified_name(Hierarchy.ENDORSEMENT.to_bytes(4, "big"), name)
            self._ak = handle, AttestationKey(public=public, name=name, qualified_name=qualified)
        return self._ak

    def _create(self, template: object, what: str) -> tuple[int, bytes]:
        lib = self._link.lib
        self._link.reserve()
        with self._link.command(what):
            handle, public, *_ = self._link.api.create_primary(
                lib.TPM2B_SENSITIVE_CREATE(), lib.TPM2B_PUBLIC(template), lib.ESYS_TR.ENDORSEMENT
            )
        return handle, bytes(public.marshal())

    @contextmanager
    def _endorsement_key(self, kind: EkKind) -> Iterator[tuple[int, bytes, bytes | None]]:
        """Load the endorsement key of `kind`: its handle, TPM2B_PUBLIC and the certificate as stored."""
        utils = importlib.import_module("tpm2_pytss.utils")
        with self._link.command(f"read the {kind} endorsement certificate"):
            stored, template = utils.create_ek_template(kind.value, utils.NVReadEK(self._link.api))
        handle, public = self._create(template.publicArea, f"make the {kind} endorsement key")
        try:
            yield handle, public, None if stored is None else bytes(stored)
        finally:
            self._link.flush(handle)

    def endorsement(self, kind: EkKind) -> Endorsement:
        """Return an endorsement key and its certificate, if the TPM stores one.

        Raises TpmError (`tpm-ek-certificate`) if the certificate is unreadable or is that of another key.
        """
        with self._endorsement_key(kind) as (_, public, stored):
            return endorsement_of(kind, public, stored)

    def quote(
        self, qualifying: bytes, bank: Bank, pcrs: Sequence[int], *, moving: Moving | None = None
    ) -> Quoted:
        """Quote `pcrs` of one bank over 32 qualifying bytes, with the values that were quoted.

        They are read after the quote. If the `moving` one was extended in between, its values are tried.
        Raises TpmError `tpm-banks` if the TPM has no such bank, `tpm-busy` if PCRs changed under each of
        three quotes.
        """
        if len(qualifying) != QUALIFYING_SIZE or not pcrs:
            raise FormatError(
                f"a quote of {len(pcrs)} PCRs over {len(qualifying)} bytes, expected {QUALIFYING_SIZE}",
                code="tpm-quote",
            )
        wanted = sorted(set(pcrs))
        if ALGORITHM_IDS[bank] not in self._allocated(wanted[-1]):
            raise TpmError(
                f"the TPM has no bank {bank} for PCR {wanted[-1]}",
                hint="ask for one that `tpm2_getcap pcrs` shows, or allocate it and reboot",
                code="tpm-banks",
            )
        handle, _ = self._load_ak()
        asked = [(bank, pcr) for pcr in wanted]
        for _ in range(QUOTE_TRIES):
            attest, signature, digest = self._quote(handle, qualifying, asked)
            values = self._read(asked)
            found = _values_of(digest, [values[pcr] for pcr in asked], _alternatives(wanted, moving))
            if found is not None:
                ordered = tuple(zip(wanted, found, strict=True))
                return Quoted(attest=attest, signature=signature, pcrs=ordered)
        raise TpmError(f"PCRs changed under each of {QUOTE_TRIES} quotes", hint="try again", code="tpm-busy")

    def _quote(
        self, key: int, qualifying: bytes, asked: list[tuple[Bank, int]]
    ) -> tuple[bytes, bytes, bytes]:
        """Return TPMS_ATTEST, TPMT_SIGNATURE and the digest over the values."""
        with self._link.command("quote"):
            attest, signature = self._link.api.quote(
                key, self._selection(asked), self._link.lib.TPM2B_DATA(qualifying)
            )
        reached("quoted")
        signed = bytes(attest.attestationData)
        found = parse_quote_body(parse_attest(signed).body)
        quoted = [(BANK_OF_ID.get(one.alg), pcr) for one in found.selections for pcr in one.pcrs]
        if quoted != asked:
            raise TpmError(
                f"the TPM quoted {found.selections}, asked for PCRs {_named(asked)}", code="tpm-banks"
            )
        return signed, bytes(signature.marshal()), found.digest

    def activate(self, id_object: bytes, encrypted_seed: bytes) -> bytes:
        """Return the secret of a credential that was made for this TPM's endorsement and attestation key.

        Takes TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET, sizes included; the size of the second tells the
        kind of endorsement key. Raises TpmError `tpm-credential` if it is for other keys or was changed.
        """
        lib = self._link.lib
        blob = lib.TPM2B_ID_OBJECT(_content(id_object, "TPM2B_ID_OBJECT"))
        content = _content(encrypted_seed, "TPM2B_ENCRYPTED_SECRET")
        kind = EkKind.RSA_2048 if len(content) == _RSA_SEED_SIZE else EkKind.P_256
        ak, _ = self._load_ak()
        with self._endorsement_key(kind) as (ek, _, _), self._endorsement_session() as session:
            try:
                secret = self._link.api.activate_credential(
                    ak, ek, blob, lib.TPM2B_ENCRYPTED_SECRET(content), session2=session
                )
            except lib.TSS2_Exception as error:
                if meaning(int(error.rc)) == FAILURE:
                    # Some TPMs say so of a seed that they cannot decrypt. One that has failed has no clock
                    # either.
                    self.clock()
                raise _activation_error(int(error.rc), str(error)) from error
        return bytes(secret)

    @contextmanager
    def _endorsement_session(self) -> Iterator[int]:
        """Open a policy session with the endorsement hierarchy's password, as the templates demand."""
        lib = self._link.lib
        none = lib.ESYS_TR.NONE
        with self._link.command("open a session"):
            session = self._link.api.start_auth_session(
                none, none, lib.TPM2_SE.POLICY, None, lib.TPM2_ALG.SHA256
            )
        try:
            with self._link.command("use the endorsement hierarchy"):
                self._link.api.policy_secret(lib.ESYS_TR.ENDORSEMENT, session, expiration=0)
            yield session
        finally:
            self._link.flush(session)


def _alternatives(pcrs: list[int], moving: Moving | None) -> Iterator[tuple[int, bytes]]:
    """Yield where among `pcrs` the moving one is, with each value that it may have been quoted with."""
    if moving is not None:
        at = pcrs.index(moving.pcr)
        for value in moving.values():
            yield at, value


def _values_of(
    digest: bytes, values: list[bytes], alternatives: Iterator[tuple[int, bytes]]
) -> list[bytes] | None:
    """Return the values that have the quoted digest: these, or these but for one; None if there are none.

    The digest is by the signature's hash, whatever the bank.
    """
    if hashlib.sha256(b"".join(values)).digest() == digest:
        return values
    for at, value in alternatives:
        tried = [*values[:at], value, *values[at + 1 :]]
        if hashlib.sha256(b"".join(tried)).digest() == digest:
            return tried
    return None


def _activation_error(code: int, text: str) -> TpmError | TpmTransportError:
    if meaning(code) in _WRONG_CREDENTIAL:
        return TpmError(
            "the credential is not for this TPM's endorsement and attestation key, or it was changed",
            hint="enrol this host again, with the keys that it has now",
            code="tpm-credential",
        )
    return translated("activate a credential", code, text)


def _content(data: bytes, what: str) -> bytes:
    if len(data) < 2 or int.from_bytes(data[:2], "big") != len(data) - 2:
        raise FormatError(f"{what} of {len(data)} bytes does not begin with its size", code="tpm-structure")
    return data[2:]


def _letters(values: Sequence[int]) -> str:
    """Return the text in properties of four letters each, padded with spaces and zero bytes."""
    raw = b"".join(value.to_bytes(4, "big") for value in values).replace(b"\0", b"")
    return raw.decode("ascii", "replace").strip()


def _named(pcrs: Sequence[tuple[Bank, int]]) -> str:
    """Return a selection as tpm2-tools write it: sha1:15+sha256:7,15."""
    banks = {bank: [str(number) for other, number in pcrs if other == bank] for bank, _ in pcrs}
    return "+".join(f"{bank}:{','.join(numbers)}" for bank, numbers in banks.items())


def _selected(bitmap: bytes) -> tuple[int, ...]:
    bits = int.from_bytes(bitmap, "little")
    return tuple(index for index in range(8 * len(bitmap)) if bits >> index & 1)
