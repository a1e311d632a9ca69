"""What is given up by a rule of retention: whole epochs, and each leaves word that it was."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress

from secrun_attest import frozen
from secrun_attest.audit.chain import Chain, Records
from secrun_attest.audit.entries import Pruned
from secrun_attest.audit.trail import Projection
from secrun_attest.events import retold
from secrun_attest.logstore import HEAD_SUFFIX, MARK_SUFFIX, sync_directory


@frozen.record
class Given:
    """An epoch that was given up, and how many records it had."""

    name: str
    count: int


def prune(
    chain: Chain, *, before: int, going: str, now: int, why: str, forget: Callable[[str], None]
) -> list[Given]:
    """Remove the records of all epochs that ended before `before`, but not those of `going`.

    Times are in milliseconds. The hashes stay, so older and newer bundles still verify, and a leaf says what
    was removed. `forget` is told the digest of each account that nobody needs any more. Raises ChainError.
    """
    found: list[Given] = []
    for name, tail in [*chain.tails.items()]:
        entry = tail.entry
        if isinstance(entry, Pruned):
            _remove(chain, name)  # a crash may have left it
            continue
        if name == going or entry is None or not tail.settled or entry.t >= before:
            continue
        accounts = [*_accounts(chain, name)]
        chain.add(Pruned(name=name, epoch=tail.records.epoch, count=tail.count, t=now, why=why))
        for digest in accounts:
            forget(digest)
        _remove(chain, name)
        found.append(Given(name=name, count=tail.count))
    return found


def _accounts(chain: Chain, name: str) -> Iterator[str]:
    projection = Projection()
    for placed in chain.placed:
        if isinstance(placed.part, Records) and placed.part.name == name:
            for index, data, _ in chain.leaves(placed.at, placed.end):
                if account := projection.row(index, retold(data)).account:
                    yield account


def _remove(chain: Chain, name: str) -> None:
    log = chain.log_path(name)
    for path in (log, log.with_suffix(HEAD_SUFFIX), log.with_suffix(MARK_SUFFIX)):
        with suppress(FileNotFoundError):
            os.unlink(path)
    sync_directory(log.parent)
