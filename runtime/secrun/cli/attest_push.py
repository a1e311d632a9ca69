"""`secrun attest push`: from options to pushes, from verdicts to words and an exit status."""

import functools
import json
import re
import signal
import time
from pathlib import Path

from secrun.cli.attestoptions import attest_settings
from secrun.cli.guard import report
from secrun.cli.table import Arguments, Context
from secrun.errors import EvidenceError, UsageError
from secrun.jsonio import JsonObject
from secrun.measure import identity as identities
from secrun.measure import verifierfile
from secrun.measure.identity import HostIdentity
from secrun.measure.prover import Prover
from secrun.measure.push import Outcome, Pusher
from secrun.measure.pushloop import LogWatch, Loop
from secrun.measure.verifieraddress import Address, TlsFiles, parse_address
from secrun.measure.verifierclient import VerifierClient
from secrun.measure.verifierfile import Membership
from secrun.measure.verifierprotocol import Module, Rejection, check_token
from secrun.paths import Layout
from secrun.pod.contents import measured_contents
from secrun.printable import printable
from secrun.record import record
from secrun_attest.errors import FormatError
from secrun_attest.evidence import MAX_CHAIN
from secrun_attest.verify import Status

SCHEMA = "secrun.dev/attest-push/v1"
REJECTED = "rejected"
_MAX_TOKEN_FILE = 4096
_MAX_CHAIN_FILE = 64 << 10
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")
# Verifiers say after five minutes that a host is silent.
_INTERVALS = range(1, 3601)


def push(args: Arguments, context: Context) -> int:
    """Push once, or until told to stop; the exit status of one push tells the verdict."""
    address = parse_address(args.required("verifier"))
    client = VerifierClient(address, _files(args))
    token, interval = _enroll_token(args), args.integer("interval") or 0
    if interval not in _INTERVALS:
        raise UsageError(f"--interval is {interval}, expected {_INTERVALS[0]} to {_INTERVALS[-1]} seconds")
    identity = _identity(context)
    speaker = _Speaker(args, context, address, identity)
    loop = Loop(
        LogWatch(context.layout.measure),
        interval=interval,
        tell=speaker.tell,
        complain=report,
        say=context.warn,
    )
    once = args.flag("once")
    pusher = Pusher(
        client,
        Prover(context.layout, identity, functools.partial(measured_contents, context.layout)),
        _Keeper(layout=context.layout, verifier=address.text),
        address=address.text,
        say=context.warn,
        wait=time.sleep if once else loop.wait,
        enroll_token=token,
        intermediates=_intermediates(args),
    )
    if once:
        outcome = pusher.push()
        speaker.tell(outcome)
        return _judge(outcome)

    def stop(*_: object) -> None:
        loop.stop()
        client.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    loop.run(pusher.push)
    return 0


def _identity(context: Context) -> HostIdentity:
    found = identities.load(context.layout)
    if found is not None:
        return found
    from secrun.measure.initialise import initialise

    # As the first pod would: a service may begin before it.
    return initialise(context.layout, attest_settings(context))


def _files(args: Arguments) -> TlsFiles:
    certificate, key = args.text("cert"), args.text("key")
    if (certificate is None) != (key is None):
        raise UsageError("--cert and --key go together")
    ca = args.text("ca")
    return TlsFiles(
        ca=Path(ca) if ca else None,
        certificate=Path(certificate) if certificate else None,
        key=Path(key) if key else None,
    )


def _enroll_token(args: Arguments) -> str:
    path = args.text("enroll_token_file")
    if path is None:
        return ""
    with open(path, "rb") as stream:
        data = stream.read(_MAX_TOKEN_FILE)
    try:
        return check_token(data.decode("ascii", "replace").strip())
    except FormatError as error:
        raise UsageError(f"{path}: {error.message}", code="usage-enroll-token") from error


def _intermediates(args: Arguments) -> tuple[bytes, ...]:
    path = args.text("ek_chain")
    if path is None:
        return ()
    import ssl

    with open(path, "rb") as stream:
        text = stream.read(_MAX_CHAIN_FILE).decode("ascii", "replace")
    try:
        found = tuple(ssl.PEM_cert_to_DER_cert(block) for block in _PEM.findall(text))
    except ValueError:
        found = ()
    if not 0 < len(found) < MAX_CHAIN:
        raise UsageError(
            f"{path} does not hold 1 to {MAX_CHAIN - 1} certificates in PEM", code="usage-ek-chain"
        )
    return found


@record
class _Keeper:
    """The file of one verifier."""

    layout: Layout
    verifier: str

    def load(self) -> Membership | None:
        return verifierfile.load(self.layout, self.verifier)

    def store(self, membership: Membership) -> None:
        verifierfile.store(self.layout, membership)


class _Speaker:
    """Prints outcomes: a line of JSON for each, or words where they are others than before."""

    def __init__(self, args: Arguments, context: Context, address: Address, identity: HostIdentity) -> None:
        self._json = args.text("format") == "json"
        self._out = context.out
        self._who: JsonObject = {"schema": SCHEMA, "verifier": address.text, "host": identity.host}
        self._host = identity.host
        self._said: object = None

    def tell(self, outcome: Outcome) -> None:
        """Print one outcome."""
        if self._json:
            self._out.write(json.dumps({**self._who, **_json(outcome)}, ensure_ascii=False) + "\n")
        elif (news := _news(outcome)) != self._said:
            self._said = news
            self._out.write("".join(f"{line}\n" for line in _lines(self._host, outcome)))
        self._out.flush()


def _news(outcome: Outcome) -> object:
    """Return what of an outcome is worth a new line: not that the log is longer."""
    if isinstance(outcome, Rejection):
        return (outcome.code, outcome.step)
    return (outcome.status, outcome.policy, tuple(item for item in outcome.modules if item.reasons))


def _json(outcome: Outcome) -> JsonObject:
    if isinstance(outcome, Rejection):
        return {"status": REJECTED, "code": outcome.code, "step": outcome.step, "detail": outcome.detail}
    return {
        "status": str(outcome.status),
        "policy": outcome.policy,
        "appraised": outcome.appraised,
        "log_count": outcome.log_count,
        "head": outcome.head,
        "modules": {
            item.name: {"status": item.status, "reasons": list(item.reasons)} for item in outcome.modules
        },
    }


def _lines(host: str, outcome: Outcome) -> list[str]:
    if isinstance(outcome, Rejection):
        return [f"{REJECTED}  {host}: check {outcome.step}: {printable(outcome.detail)} [{outcome.code}]"]
    head = f"{outcome.status}  {host}: {outcome.log_count} records, policy {outcome.policy}"
    return [head, *(f"  {line}" for item in outcome.modules for line in _reasons(item))]


def _reasons(module: Module) -> list[str]:
    return [printable(f"{module.name} {module.status}: {reason}") for reason in module.reasons]


def _judge(outcome: Outcome) -> int:
    if isinstance(outcome, Rejection):
        raise EvidenceError(
            f"the verifier rejects the evidence by check {outcome.step}: {printable(outcome.detail)}",
            hint="docs/verifier.md lists the checks",
            code=outcome.code,
        )
    if outcome.status is Status.AFFIRMING:
        return 0
    text = "; ".join(line for item in outcome.modules for line in _reasons(item))
    if outcome.status is Status.WARNING:
        raise EvidenceError(
            text, hint="the evidence is genuine; the policy has no values for it", code="evidence-warning"
        )
    raise EvidenceError(
        text, hint="the evidence is genuine; the policy is against it", code="evidence-contraindicated"
    )
