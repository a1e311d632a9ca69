"""The audit log of this root: closed and quoted by its TPM, and what an export is made of."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from secrun.locks import held
from secrun.measure import accounts
from secrun.measure.hostlog import HostLog, audit_place, log_name, now_ms, tcti_of, translated
from secrun.measure.identity import HostIdentity
from secrun.paths import Layout
from secrun_attest.audit import heads, host
from secrun_attest.audit.chain import Chain, opened
from secrun_attest.audit.entries import State
from secrun_attest.audit.note import Checkpoint, Signer
from secrun_attest.audit.retention import Given
from secrun_attest.audit.retention import prune as prune_chain
from secrun_attest.errors import BrokenEpochError
from secrun_attest.record import Operation


def close(layout: Layout, identity: HostIdentity, state: State) -> Checkpoint:
    """Bring the audit log up to date, measure its head, quote, and sign the head that covers the quote.

    An epoch that is broken cannot be quoted: it is said to have ended so. Raises HostError.
    """
    place = audit_place(layout, identity)
    with held(layout.locks / "audit"), translated("the audit log is not brought up to date"):
        log = HostLog(layout, identity)
        try:
            with log.held() as holding:
                going = log_name(holding.standing[0])
                holding.append([(Operation.CHECKPOINT, host.anchor_of(place, going, now_ms()))])
        except BrokenEpochError:
            return host.settle(place, now_ms())
        finally:
            # A software TPM serves one client at a time.
            log.close()
        quote = host.quoter(tcti_of(layout, identity))
        return host.close(place, going, quote=quote, state=state, now=now_ms)


@contextmanager
def reading(layout: Layout, identity: HostIdentity) -> Iterator[tuple[Chain, Signer]]:
    """Hold the audit log to export it, and give the key that signs exports; raises HostError."""
    place = audit_place(layout, identity)
    with (
        translated("the audit log cannot be exported"),
        opened(place.folder, place.logs) as chain,
    ):
        yield chain, heads.signer(place.folder, place.name)


def prune(layout: Layout, identity: HostIdentity, before: int, *, why: str) -> list[Given]:
    """Remove the records of epochs that ended before `before`, in milliseconds; raises HostError.

    The present epoch is quoted on the way, which keeps it apart from those that ended.
    """
    close(layout, identity, State.OPEN)
    with held(layout.locks / "audit"), reading(layout, identity) as (chain, key):
        going = [*chain.tails][-1]
        forget = partial(accounts.remove, layout)
        given = prune_chain(chain, before=before, going=going, now=now_ms(), why=why, forget=forget)
        heads.sign_head(chain, key)
        return given
