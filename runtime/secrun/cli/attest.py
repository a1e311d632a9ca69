"""The verbs of a host that is measured."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from secrun.cli.attestoptions import attest_settings
from secrun.cli.table import Arguments, Context
from secrun.cli.views import write_json
from secrun.errors import HostError, StateError, UsageError
from secrun.jsonio import JsonObject
from secrun.measure import identity as identities
from secrun.measure import software
from secrun.measure.hostlog import HostLog, translated
from secrun.measure.identity import HostIdentity
from secrun.measure.prover import Prover
from secrun.pod.contents import measured_contents
from secrun.pod.states import State, walk
from secrun_attest.limits import MAX_PCR
from secrun_attest.record import Bank

_NONCE_BYTES = 32
_FIRMWARE_PCRS = range(8)


def _identity_json(identity: HostIdentity) -> JsonObject:
    return {
        "host": identity.host,
        "tpm": str(identity.kind),
        "tcti": identity.tcti or "software TPM of this root",
        "pcr": identity.pcr,
        "ak": identity.ak_name.hex(),
        "manufacturer": identity.manufacturer,
        "firmware": identity.firmware,
        "ek_certificate": identity.ek_certificate,
    }


def _show(args: Arguments, context: Context, schema: str, rows: JsonObject) -> None:
    if args.text("format") == "json":
        write_json(context, {"schema": schema, **rows})
        return
    for name, value in rows.items():
        shown = ("yes" if value else "no") if isinstance(value, bool) else value
        context.out.write(f"{name.replace('_', '-')}={shown}\n")


def init(args: Arguments, context: Context) -> int:
    """Make or show the root's identity."""
    from secrun.measure.initialise import initialise

    identity = initialise(
        context.layout,
        attest_settings(context),
        host=args.text("host"),
        pcr=int(args.required("pcr")),
        force=args.flag("force"),
    )
    _show(args, context, "secrun.dev/attest-identity/v1", _identity_json(identity))
    return 0


@contextmanager
def _opened(context: Context, identity: HostIdentity, what: str) -> Iterator[HostLog]:
    with translated(what):
        log = HostLog(context.layout, identity)
        try:
            yield log
        finally:
            log.close()


def status(args: Arguments, context: Context) -> int:
    """Show identity, epoch and log."""
    identity = identities.required(context.layout)
    with _opened(context, identity, "the log cannot be read") as log:
        count = len(log.records())
        with log.held() as held:
            epoch = held.epoch
    rows = {**_identity_json(identity), "epoch": epoch, "records": count}
    _show(args, context, "secrun.dev/attest-status/v1", rows)
    return 0


def log(args: Arguments, context: Context) -> int:
    """Export the log of this epoch."""
    from secrun_attest.exports import LogFormat, export

    identity = identities.required(context.layout)
    with _opened(context, identity, "the log cannot be exported") as host:
        records = host.records()
        data = export(records, LogFormat(args.required("format")), tuple(records[0].digests))
    context.out.flush()
    sys.stdout.buffer.write(data)
    return 0


def _nonce(args: Arguments) -> bytes:
    text = args.required("nonce")
    try:
        nonce = bytes.fromhex(text)
    except ValueError:
        nonce = b""
    if len(nonce) != _NONCE_BYTES:
        raise UsageError(
            f"--nonce is not {_NONCE_BYTES} bytes in hex",
            hint="the verifier gives it; or: openssl rand -hex 32",
        )
    return nonce


def _pcrs(args: Arguments, identity: HostIdentity) -> tuple[Bank, tuple[int, ...]]:
    """Parse --pcrs as tpm2-tools write it, one bank; the PCR that pods are measured into must be there."""
    text = args.text("pcrs") or f"sha256:{','.join(map(str, (*_FIRMWARE_PCRS, identity.pcr)))}"
    name, _, numbers = text.partition(":")
    words = numbers.split(",")
    if name not in tuple(Bank) or not all(word.isascii() and word.isdigit() for word in words):
        raise UsageError(f"--pcrs {text[:80]!r} is not BANK:N,N", hint="such as sha256:0,1,2,3,4,5,6,7,15")
    chosen = tuple(sorted({int(word) for word in words}))
    if chosen[-1] > MAX_PCR or identity.pcr not in chosen:
        raise UsageError(
            f"--pcrs {text[:80]!r} has a number above {MAX_PCR}, or lacks {identity.pcr}",
            hint=f"pods of this root are measured into PCR {identity.pcr}",
        )
    return Bank(name), chosen


def evidence(args: Arguments, context: Context) -> int:
    """Print evidence for a verifier's nonce."""
    from secrun_attest.collect import Challenge

    nonce = _nonce(args)
    identity = identities.required(context.layout)
    bank, pcrs = _pcrs(args, identity)
    challenge = Challenge(
        nonce=nonce,
        audience=args.required("audience"),
        bank=bank,
        pcrs=pcrs,
        since=args.integer("since") or 0,
    )
    prover = Prover(context.layout, identity, partial(measured_contents, context.layout))
    data = prover.evidence(challenge, prover.standing())
    context.out.flush()
    sys.stdout.buffer.write(data + b"\n")
    return 0


def quote(args: Arguments, context: Context) -> int:
    """Write a quote as tpm2-tools read it."""
    from secrun_attest.quotefiles import write_quote

    nonce, folder = _nonce(args), Path(args.required("out"))
    identity = identities.required(context.layout)
    bank, pcrs = _pcrs(args, identity)
    prover = Prover(context.layout, identity, partial(measured_contents, context.layout))
    prover.standing()
    folder.mkdir(parents=True, exist_ok=True)
    with translated("there is no quote"):
        write_quote(folder, prover.source(), nonce, bank, pcrs)
    shown = f"{folder}/"
    context.out.write(
        f"tpm2_checkquote -u {shown}ak.pub -m {shown}quote.msg -s {shown}quote.sig -f {shown}quote.pcrs "
        f"-q {nonce.hex()} -e {shown}log.tcg\n"
    )
    return 0


def stop(args: Arguments, context: Context) -> int:
    """End the root's software TPM."""
    running = [pod.uuid for pod in walk(context.layout) if pod.state is State.RUNNING]
    if running and not args.flag("force"):
        raise StateError(
            f"{len(running)} pods run that this TPM measured: {', '.join(uuid[:8] for uuid in running[:5])}",
            hint="stop them first, or --force: no later log can prove how they started",
            code="state-running",
        )
    _close_audit(context)
    ended = software.stop(context.layout)
    context.out.write("stopped\n" if ended else "it does not run\n")
    return 0


def _close_audit(context: Context) -> None:
    """Close the log of the epoch that ends with the software TPM; it ends also if that cannot be."""
    identity = identities.load(context.layout)
    measured = any(context.layout.measure.glob("*.cel"))
    if identity is None or identity.tcti or not measured or software.running_pid(context.layout) is None:
        return
    from secrun.measure import auditing
    from secrun_attest.audit.entries import State as Ending

    try:
        auditing.close(context.layout, identity, Ending.CLOSED)
    except HostError as error:
        context.warn(f"warning: {error.message}; the audit will say that this epoch was not closed")
