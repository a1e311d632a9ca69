"""Give a root its attestation identity: find the TPM, make the key, pin the PCR."""

import os

from secrun.errors import HostError, StateError
from secrun.locks import held
from secrun.measure import software
from secrun.measure.hostlog import translated
from secrun.measure.identity import HostIdentity, load, store
from secrun.measure.settings import AUTO, DEVICE, SOFTWARE, AttestSettings
from secrun.paths import Layout
from secrun_attest.endorsement import EkKind
from secrun_attest.logstore import log_path
from secrun_attest.replay import zeros
from secrun_attest.tpm import TpmKind
from secrun_attest.tss import Tss

# PCR 15 is where runtimes measure; 8 is for hosts on which something else extends 15 at boot.
PCRS = (15, 8)
# A verifier keeps names this long.
_MAX_HOST = 255


def _place(settings: AttestSettings) -> tuple[TpmKind, str]:
    """Return what kind of TPM measures this root and how to reach it; empty for the root's software TPM."""
    if settings.tcti not in (AUTO, SOFTWARE):
        kind = TpmKind.HARDWARE if settings.tcti.startswith("device:") else TpmKind.SOFTWARE
        return kind, settings.tcti
    if settings.tcti == AUTO and DEVICE.exists():
        return TpmKind.HARDWARE, f"device:{DEVICE}"
    return TpmKind.SOFTWARE, ""


def initialise(
    layout: Layout,
    settings: AttestSettings,
    *,
    host: str | None = None,
    pcr: int = PCRS[0],
    force: bool = False,
) -> HostIdentity:
    """Return the root's identity, made if it has none or `force` is given.

    Raises HostError if the TPM is absent or unfit, StateError if the root has another identity already.
    """
    with held(layout.locks / "attest-init"):
        found = load(layout)
        if found is not None and not force:
            return _same(found, settings, host, pcr)
        kind, tcti = _place(settings)
        if not tcti:
            software.ensure_running(layout)
        with translated("the TPM cannot be used"):
            identity = _ask(layout, kind, tcti, host=host, pcr=pcr)
        store(layout, identity)
        return identity


def _same(found: HostIdentity, settings: AttestSettings, host: str | None, pcr: int) -> HostIdentity:
    asked = [("host", host or found.host, found.host), ("PCR", pcr, found.pcr)]
    if settings.tcti != AUTO:
        asked.append(("TPM", settings.tcti, found.tcti or SOFTWARE))
    for what, wanted, got in asked:
        if wanted != got:
            raise StateError(
                f"this root is pinned to {what} {got!r}, asked for {wanted!r}",
                hint="secrun attest init --force pins it anew; verifiers must then enrol it again",
                code="state-attest-identity",
            )
    return found


def _ask(layout: Layout, kind: TpmKind, tcti: str, *, host: str | None, pcr: int) -> HostIdentity:
    with Tss(tcti or software.tcti(layout)) as tpm:
        clock = tpm.clock()
        log = log_path(layout.measure, clock.reset, clock.restart)
        if log.exists():
            raise StateError(
                f"this boot's log has begun: {log}",
                hint="reboot first, or with a software TPM: secrun attest stop",
                code="state-attest-identity",
            )
        facts = tpm.facts()
        ak = tpm.create_ak()
        # A key and a certificate that do not belong together raise here; our own software TPM has none.
        certificate = bool(tcti) and any(tpm.endorsement(each).certificate for each in EkKind)
        values = tpm.read_pcr(pcr)
    if values != zeros(values):
        raise HostError(
            f"PCR {pcr} of the TPM is in use already: something else extends it at boot",
            hint=f"run: secrun attest init --pcr {PCRS[1] if pcr == PCRS[0] else PCRS[0]}",
            code="host-tpm-pcr",
        )
    return HostIdentity(
        host=_host_name(host, ak.name),
        kind=TpmKind.SOFTWARE if facts.kind is TpmKind.SOFTWARE else kind,
        tcti=tcti,
        pcr=pcr,
        ak_name=ak.name,
        ak_public=ak.public,
        manufacturer=facts.manufacturer,
        firmware=f"{facts.firmware:016x}",
        ek_certificate=certificate,
    )


def _host_name(host: str | None, ak_name: bytes) -> str:
    """Return the name that a verifier knows this root by: two roots of one machine are two hosts."""
    if host is None:
        return f"{os.uname().nodename}-{ak_name[-4:].hex()}"[:_MAX_HOST]
    if not host or len(host) > _MAX_HOST or not host.isprintable():
        raise StateError(f"{host[:80]!r} is not a name for a host", code="state-attest-identity")
    return host
