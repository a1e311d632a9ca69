"""The verbs that judge evidence and compute reference values."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from secrun.cli import attest_files as files
from secrun.cli.attest_state import Kept, load_kept, save_kept
from secrun.cli.table import Arguments, Context
from secrun.cli.views import write_json
from secrun.errors import EvidenceError, UsageError
from secrun.locks import held
from secrun.printable import printable
from secrun_attest.evidence import MAX_EVIDENCE
from secrun_attest.oneshot import Question, appraise_once
from secrun_attest.policyfile import OpenedPolicy
from secrun_attest.rejection import RejectedError
from secrun_attest.verdictjson import rejection_json, verdict_json
from secrun_attest.verify import Appraisal, Status, Verdict

_STDIN = "-"
_NONCE_SIZES = (32,)


def verify(args: Arguments, context: Context) -> int:
    """Verify evidence once; the exit status tells the verdict."""
    files.need_cryptography()
    path = args.text("state")
    with _held(path):
        kept = Kept() if path is None else load_kept(Path(path))
        paths = args.many("policy")
        if not paths:
            raise UsageError("--policy needs a value")
        opened = files.opened_policy(args, paths, kept.minimums)
        question = _question(args, opened)
        evidence = _read(args.required("evidence"))
        try:
            verdict = appraise_once(evidence, question, opened.policy, kept.state, int(time.time()))
        except RejectedError as error:
            _reject(args, context, error)
        if path is not None:
            minimums = {**kept.minimums, **opened.minimums}
            save_kept(Path(path), Kept(minimums=minimums, state=verdict.state))
    if args.text("format") == "json":
        write_json(context, verdict_json(verdict, opened.policy, opened.parts))
    else:
        context.out.write("\n".join(_lines(verdict, opened)) + "\n")
    return _judge(verdict, accept_warning=args.flag("accept_warning"))


@contextmanager
def _held(path: str | None) -> Iterator[None]:
    """Let nobody else verify with the same state meanwhile: two verdicts on one state would lose one."""
    if path is None:
        yield
        return
    target = Path(path).absolute()
    with held(target.with_name(f"{target.name}.lock")):
        yield


def _question(args: Arguments, opened: OpenedPolicy) -> Question:
    named = frozenset(map(files.key_name, args.many("ak")))
    keys = named or opened.policy.keys
    if not keys:
        raise UsageError(
            "nothing says which attestation key to expect: the policy names none and there is no --ak",
            hint="without it any TPM could answer for the host; --ak=NAME, or keys in the policy",
            code="usage-ak",
        )
    parent = args.text("ak_parent")
    return Question(
        nonce=files.hex_bytes("--nonce", args.required("nonce"), _NONCE_SIZES),
        keys=keys,
        audience=args.text("audience") or "",
        parent=None if parent is None else files.hex_bytes("--ak-parent", parent, files.NAME_SIZES),
        software=args.flag("software_tpm"),
    )


def _read(word: str) -> bytes:
    if word == _STDIN:
        return sys.stdin.buffer.read(MAX_EVIDENCE + 1)
    return files.read_file(word, MAX_EVIDENCE)


def _reject(args: Arguments, context: Context, error: RejectedError) -> NoReturn:
    if args.text("format") == "json":
        write_json(context, rejection_json(error))
    raise EvidenceError(
        f"the evidence is rejected by check {error.step}: {printable(error.message)}",
        hint="docs/verifier.md lists the checks",
        code=error.reason.value,
    ) from error


def _judge(verdict: Verdict, *, accept_warning: bool) -> int:
    if verdict.status is Status.AFFIRMING:
        return 0
    every = [("the host", verdict.host), *((f"pod {uuid}", one) for uuid, one in verdict.pods)]
    worse = [(who, one) for who, one in every if one.status is not Status.AFFIRMING]
    text = printable("; ".join(f"{who}: {one.status}: {', '.join(one.reasons)}" for who, one in worse))
    if verdict.status is Status.WARNING:
        if accept_warning:
            sys.stderr.write(f"secrun: warning: {text}\n")
            return 0
        hint = "the evidence is genuine; add reference values, or accept it with --accept-warning"
        raise EvidenceError(text, hint=hint, code="evidence-warning")
    raise EvidenceError(
        text, hint="the evidence is genuine; the policy is against it", code="evidence-contraindicated"
    )


def _lines(verdict: Verdict, opened: OpenedPolicy) -> Iterator[str]:
    state, machine, policy = verdict.state, verdict.state.machine, opened.policy
    yield f"policy   {printable(policy.id)} version {policy.version} sha256:{policy.digest.hex()}"
    yield f"log      {state.recnum} records, epoch {state.epoch.reset}-{state.epoch.restart}"
    tpm = f"{machine.tpm} TPM, {machine.denied} denied"
    yield f"host     {printable(state.host)} {verdict.host.status}, {tpm}"
    yield from _details(verdict.host)
    for uuid, appraisal in verdict.pods:
        pod = machine.pods[uuid]
        entered = f"entered {appraisal.entries} times"
        yield f"pod      {printable(uuid)} {appraisal.status}, {pod.state}, {entered}"
        for app in pod.apps:
            image = app.image
            name = printable(f"{app.name} {image.reference}")
            yield f"  app    {name} sha256:{image.manifest.hex()}"
        yield from _details(appraisal)


def _details(appraisal: Appraisal) -> Iterator[str]:
    for claim, value in appraisal.vector:
        yield f"  claim  {claim} {value}"
    for reason in appraisal.reasons:
        yield f"  reason {printable(reason)}"


def predict(args: Arguments, context: Context) -> int:
    """Compute reference values; one image that fails leaves none, for a list with holes looks whole."""
    from secrun.cli.imageoptions import fetch_options
    from secrun.predict import predict as compute
    from secrun.predict import to_json

    found = compute(context.layout, args.many("image"), fetch_options(args, context))
    if found.runtime is None:
        context.err.write("secrun: note: there is no agent here, so this installation has no digest\n")
    if args.text("format") == "json":
        write_json(context, to_json(found))
        return 0
    context.out.write(f"secrun   {found.version} {found.runtime or '-'}\n")
    for stage1 in found.stage1:
        context.out.write(f"stage1   {stage1.flavour} {stage1.digest}\n  tree     {stage1.tree}\n")
        if stage1.kernel is not None:
            context.out.write(f"  kernel   {stage1.kernel}\n  initrd   {stage1.initrd}\n")
        for line in stage1.command_lines:
            context.out.write(f"  cmdline  {line.accelerator} {line.model}: {line.text}\n")
    for image in found.images:
        context.out.write(
            f"image    {image.reference} {image.platform}\n  manifest {image.manifest}\n"
            f"  config   {image.config}\n  rootfs   {image.rootfs}\n  tree     {image.tree}\n"
            f"  verity   {image.verity_root}\n"
        )
    return 0
