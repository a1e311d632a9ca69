"""The quote in a closing: the TPM of this log says that its PCR held exactly these records."""

import hashlib
from typing import NoReturn

from secrun_attest.audit.entries import Closing, Quotation, binding
from secrun_attest.errors import FormatError
from secrun_attest.record import ALGORITHM_IDS
from secrun_attest.rejection import RejectedError
from secrun_attest.verify import checks
from secrun_attest.wire import HASH_NAMES, Clock, Selection, name_of, parse_attest, parse_signature


class QuoteError(FormatError):
    """A quote does not prove what its closing says."""

    code = "audit-quote"


def check_quote(closing: Closing, quote: Quotation, *, origin: str, key: str) -> Clock:
    """Check that the TPM whose key has the Name `key` signed this closing; return its clock.

    Raises QuoteError. The PCRs of the closing are for the caller to compare with the records.
    """
    try:
        public = checks.read_public(quote.key)
        attest = parse_attest(quote.attest)
        signature = parse_signature(quote.signature)
        if (name := name_of(public).hex()) != key:
            _bad(f"is signed by the key {name}, the log names {key}")
        checks.check_key(public)
        checks.check_signature(public, quote.attest, signature)
        body = checks.check_quote(attest)
    except RejectedError as error:
        raise QuoteError(error.message) from error
    if attest.extra != binding(origin, closing.epoch, closing.state, quote.asked):
        _bad("was made for something else than this closing")
    if body.selections != (Selection(alg=ALGORITHM_IDS[quote.bank], pcrs=(closing.pcr,)),):
        _bad(f"is not of PCR {closing.pcr} in bank {quote.bank} alone")
    value = closing.pcrs.get(quote.bank, b"")
    if hashlib.new(HASH_NAMES[public.scheme_hash], value).digest() != body.digest:
        _bad(f"is of another value than {value.hex()}, which {closing.count} records come to")
    clock = attest.clock
    if clock.reset != closing.epoch.reset or clock.restart < closing.epoch.restart:
        _bad(f"was made at reset {clock.reset}, restart {clock.restart}")
    return clock


def _bad(why: str) -> NoReturn:
    raise QuoteError(f"the quote {why}")
