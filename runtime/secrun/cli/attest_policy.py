"""The verbs that write, sign and show policies."""

import re
import sys
import time
from collections.abc import Iterable, Mapping

from secrun.cli import attest_files as files
from secrun.cli.table import Arguments, Context
from secrun.cli.views import write_json
from secrun.errors import UsageError
from secrun.predict import MAX_PREDICTION, PredictedStage1, Prediction
from secrun_attest.evidence import MAX_PCRS
from secrun_attest.policy import Guest, Machines, Platform, Policy, Runtime, Workload, parse_policy
from secrun_attest.policyfile import MAX_FILE, OpenedPolicy, sign_policy
from secrun_attest.policywrite import dump_policy, policy_json
from secrun_attest.record import Bank
from secrun_attest.wire import Hierarchy

SCHEMA = "secrun.dev/policy/v1"
# A minute: a quote takes a second, and a nonce that lies around longer is of no use to anybody honest.
_MAX_AGE = 60
# What firmware and boot loader measure before any of ours runs.
_FIRMWARE_PCRS = range(8)
_RANGE = re.compile(r"(\d{1,2})(?:-(\d{1,2}))?\Z")


def init(args: Arguments, context: Context) -> int:
    """Write a policy out of predictions; what it cannot decide is said on standard error."""
    key = args.text("sign")
    if key is not None:
        files.need_cryptography()
    policy = _draft(args, _predictions(args, context))
    data = dump_policy(policy)
    with files.usage_errors("the new policy"):
        parse_policy(data)
        if key is not None:
            data = sign_policy(data, files.signing_key(key)) + b"\n"
    for gap in _gaps(policy):
        context.err.write(f"secrun: warning: {gap}\n")
    _write(args, context, data)
    return 0


def _write(args: Arguments, context: Context, data: bytes) -> None:
    if not files.write_out(args, data):
        context.out.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def _predictions(args: Arguments, context: Context) -> list[Prediction]:
    from secrun import predict
    from secrun.cli.imageoptions import fetch_options

    found = [predict.parse(files.read_file(path, MAX_PREDICTION), what=path) for path in args.many("from")]
    if words := args.many("image"):
        found.append(predict.predict(context.layout, words, fetch_options(args, context)))
    return found


def _draft(args: Arguments, predictions: Iterable[Prediction]) -> Policy:
    from secrun.pod.request import duration

    predicted = list(predictions)
    now = int(time.time())
    pcr, version = args.integer("pcr") or 0, args.integer("version") or 0
    selection = args.text("selection")
    keys = frozenset(map(files.key_name, args.many("key")))
    return Policy(
        id=args.required("id"),
        version=version,
        min_version=version,
        not_before=now,
        not_after=now + int(duration(args.required("valid"))),
        pcr=pcr,
        bank=Bank.SHA256,
        selection=_selection(selection) if selection else tuple(sorted({*_FIRMWARE_PCRS, pcr})),
        hierarchies=frozenset({Hierarchy.ENDORSEMENT}),
        keys=keys or None,
        software_tpm=args.flag("software_tpm"),
        max_age=_MAX_AGE,
        platform=Platform(pcrs=_pcr_values(args.many("pcr_value"))),
        runtime=Runtime(
            binaries=frozenset(bytes.fromhex(item.runtime.hex) for item in predicted if item.runtime),
            stage1=frozenset(bytes.fromhex(one.tree.hex) for item in predicted for one in item.stage1),
            machines=_machines(args, [one for item in predicted for one in item.stage1]),
        ),
        workload=Workload(
            images=frozenset(
                (
                    bytes.fromhex(image.manifest.hex),
                    bytes.fromhex(image.tree.hex),
                    bytes.fromhex(image.verity_root),
                )
                for item in predicted
                for image in item.images
            ),
            forbidden_operations=frozenset({"PodExec"} if args.flag("forbid_exec") else ()),
        ),
        digest=b"",
    )


def _machines(args: Arguments, predicted: Iterable[PredictedStage1]) -> Machines:
    """Return rules for virtual machines: each kernel with its initramfs and what it is booted with."""
    accelerators = frozenset(args.many("accelerator")) or Machines().accelerators
    guests: dict[tuple[bytes, bytes], frozenset[str]] = {}
    for stage1 in predicted:
        if stage1.kernel is None or stage1.initrd is None:
            continue
        key = (bytes.fromhex(stage1.kernel.hex), bytes.fromhex(stage1.initrd.hex))
        lines = (line.text for line in stage1.command_lines if line.accelerator in accelerators)
        guests[key] = guests.get(key, frozenset()).union(lines)
    return Machines(
        required=args.flag("require_machine"),
        accelerators=accelerators,
        guests=tuple(
            Guest(kernel=kernel, initrd=initrd, command_lines=lines)
            for (kernel, initrd), lines in guests.items()
        ),
    )


def _selection(text: str) -> tuple[int, ...]:
    """Read PCR numbers and ranges, such as 0-7,15."""
    found: set[int] = set()
    for word in text.split(","):
        match = _RANGE.match(word)
        if match is None:
            raise UsageError(f"--selection has {word[:40]!r}, expected a number or N-N", code="usage-pcr")
        first = int(match[1])
        found.update(range(first, int(match[2] or first) + 1))
    return tuple(sorted(found))


def _pcr_values(words: Iterable[str]) -> tuple[tuple[int, frozenset[bytes]], ...]:
    found: dict[int, frozenset[bytes]] = {}
    for word in words:
        index, equals, values = word.partition("=")
        if not (equals and index.isascii() and index.isdecimal() and int(index) < MAX_PCRS):
            raise UsageError(f"--pcr-value is {word[:80]!r}, expected N=HEX[,HEX]", code="usage-pcr")
        read = (files.hex_bytes("--pcr-value", value, (32,)) for value in values.split(","))
        found[int(index)] = found.get(int(index), frozenset()) | frozenset(read)
    return tuple(sorted(found.items()))


def _gaps(policy: Policy) -> list[str]:
    """Return what the policy has no reference values for, and what follows."""
    gaps = []
    if policy.workload.empty:
        gaps.append("no image is listed: every pod will get a warning (--from, --image)")
    if not policy.runtime.binaries:
        gaps.append("no secrun is listed: every host will get a warning (--from)")
    if not policy.runtime.stage1:
        gaps.append(
            "no stage1 is listed: every pod will get a warning (--from, predicted where one is built)"
        )
    machines = policy.runtime.machines
    if machines.required and not machines.guests:
        gaps.append("no guest kernel is listed: every pod will get a warning (--from, of a kvm stage1)")
    if not all(guest.command_lines for guest in machines.guests):
        gaps.append("a guest kernel has no command line: its pods will get a warning (--from)")
    if not policy.platform.pcrs:
        gaps.append("no PCR of the platform has a value: every host will get a warning (--pcr-value)")
    if policy.keys is None:
        gaps.append("no attestation key is listed: whoever verifies must name it (--key, or --ak there)")
    return gaps


def sign(args: Arguments, context: Context) -> int:
    """Sign a policy, byte for byte as it is."""
    files.need_cryptography()
    path = args.required("file")
    key = files.signing_key(args.required("key"))
    with files.usage_errors(path):
        data = sign_policy(files.read_file(path, MAX_FILE), key)
    _write(args, context, data + b"\n")
    context.err.write(f"secrun: signed with key {key.id}\n")
    return 0


def show(args: Arguments, context: Context) -> int:
    """Show what the files of a policy say together, and who signed them."""
    files.need_cryptography()
    opened = files.opened_policy(args, args.many("file"))
    if args.text("format") == "json":
        write_json(context, _show_json(opened))
        return 0
    for part in opened.parts:
        signers = ", ".join(part.signers) or "nobody"
        context.out.write(f"{part.layer} {part.id!r} version {part.version}, signed by {signers}\n")
    context.out.write(f"digest sha256:{opened.policy.digest.hex()}\n")
    sys.stdout.flush()
    sys.stdout.buffer.write(dump_policy(opened.policy))
    for gap in _gaps(opened.policy):
        context.err.write(f"secrun: warning: {gap}\n")
    return 0


def _show_json(opened: OpenedPolicy) -> Mapping[str, object]:
    return {
        "schema": SCHEMA,
        "digest": f"sha256:{opened.policy.digest.hex()}",
        "parts": [
            {
                "layer": part.layer.value,
                "id": part.id,
                "version": part.version,
                "min_version": part.min_version,
                "digest": f"sha256:{part.digest.hex()}",
                "signers": [*part.signers],
            }
            for part in opened.parts
        ],
        "policy": policy_json(opened.policy),
    }
