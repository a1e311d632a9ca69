"""The verbs of a host that is measured."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from secrun.cli.attestoptions import attest_settings
from secrun.cli.table import Arguments, Context
from secrun.cli.views import write_json
from secrun.errors import UsageError
from secrun.jsonio import JsonObject
from secrun.measure import identity as identities
from secrun.measure import software
from secrun.measure.hostlog import HostLog, translated
from secrun.measure.identity import HostIdentity

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
            # Log and PCR agree before anybody looks at either.
            log.epoch()
            yield log
        finally:
            log.close()


def status(args: Arguments, context: Context) -> int:
    """Show identity, epoch and log."""
    identity = identities.required(context.layout)
    with _opened(context, identity, "the log cannot be read") as log:
        epoch, count = log.epoch(), len(log.records())
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


def stop(args: Arguments, context: Context) -> int:
    """End the root's software TPM."""
    del args
    ended = software.stop(context.layout)
    context.out.write("stopped\n" if ended else "it does not run\n")
    return 0
