"""What this root can prove with its TPM: where its log stands, evidence, and that its keys are in one TPM.

Each method opens the TPM and gives it back: pods need it in between.
"""

from collections.abc import Callable

from secrun import __version__
from secrun.measure.hostlog import HostLog, tcti_of, translated
from secrun.measure.identity import HostIdentity
from secrun.paths import Layout
from secrun.record import record
from secrun_attest.collect import Challenge, Source, collect, read_firmware_log
from secrun_attest.endorsement import EkKind, Endorsement
from secrun_attest.errors import BrokenEpochError
from secrun_attest.record import Epoch, parse_event_data
from secrun_attest.tpm import TpmKind
from secrun_attest.tss import Tss

# The documents that digests in the log of an epoch stand for, as far as they are still there.
Contents = Callable[[str], tuple[bytes, ...]]


@record
class Standing:
    """The epoch of the log and how many records it has, all of them extended.

    `broken` says that the PCR holds what they do not explain.
    """

    epoch: Epoch
    count: int
    broken: bool = False

    @property
    def name(self) -> str:
        """The epoch as pods' markers name it."""
        return f"{self.epoch.reset}-{self.epoch.restart}-{self.epoch.boot_id}"


class Prover:
    """The TPM and log of a root; all methods raise HostError."""

    def __init__(self, layout: Layout, identity: HostIdentity, contents: Contents) -> None:
        self.identity = identity
        self._layout = layout
        self._contents = contents

    def standing(self, *, anyway: bool = False) -> Standing:
        """Bring log and PCR to agree, waiting for whoever measures now, and say how long the log is.

        With `anyway` a log that does not explain the PCR is no error: no pod starts any more then, and a
        verifier shall hear why, not only that the host is silent.
        """
        with translated("the log cannot be read"):
            log = HostLog(self._layout, self.identity)
            try:
                with log.held() as held:
                    epoch, count = held.standing
                return Standing(epoch=epoch, count=count)
            except BrokenEpochError:
                if not anyway:
                    raise
                records = log.unexplained()
                epoch = parse_event_data(records[0].event_data).epoch
                return Standing(epoch=epoch, count=len(records), broken=True)
            finally:
                log.close()

    def source(self) -> Source:
        """Return where evidence comes from; the TPM runs."""
        return Source(
            tcti=tcti_of(self._layout, self.identity),
            directory=self._layout.measure,
            pcr=self.identity.pcr,
        )

    def evidence(self, challenge: Challenge, standing: Standing) -> bytes:
        """Return evidence for a verifier's challenge."""
        hardware = self.identity.kind is TpmKind.HARDWARE
        # Documents are compared with records that come with them; a verifier keeps none.
        news = challenge.since < standing.count
        with translated("there is no evidence"):
            return collect(
                self.source(),
                challenge,
                host=self.identity.host,
                firmware_log=read_firmware_log() if hardware else None,
                contents=self._contents(standing.name) if news else (),
                agent=f"secrun {__version__}",
                explained=not standing.broken,
            )

    def endorsement(self) -> Endorsement:
        """Return the P-256 endorsement key, or the RSA one if only that has a certificate."""
        with translated("the endorsement key cannot be used"), Tss(self.source().tcti) as tss:
            found = tss.endorsement(EkKind.P_256)
            # Making an RSA key takes some TPMs a minute; the root knows whether any certificate is there.
            if found.certificate is None and self.identity.ek_certificate:
                other = tss.endorsement(EkKind.RSA_2048)
                return found if other.certificate is None else other
            return found

    def activate(self, credential_blob: bytes, encrypted_secret: bytes) -> bytes:
        """Open a verifier's credential, which only this TPM can."""
        with translated("the verifier's credential cannot be opened"), Tss(self.source().tcti) as tss:
            return tss.activate(credential_blob, encrypted_secret)
