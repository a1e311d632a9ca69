"""secrun's own rules, trust.toml: what containers-policy.json(5) has no words for.

Read are `trust.toml` and `trust.toml.d/*.toml` of the root's key ring, then of the places of all settings.
"""

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path

from secrun import config
from secrun.errors import UsageError
from secrun.record import record
from secrun.tables import Taker
from secrun.trust import limits, notation
from secrun.trust.dsse import SIGN_PREDICATE
from secrun.trust.places import RULES_NAME
from secrun.trust.requirement import Material

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_AGE = re.compile(r"([1-9]\d{0,6})([smhd])\Z")
_TRANSPORTS = ("docker", "oci", "oci-archive", "docker-archive", "dir")


class DemandType(StrEnum):
    """The forms of what a rule demands."""

    BUNDLE = "bundle"
    NOTATION = "notation"


@record
class Demand:
    """One signature or attestation that must exist.

    A bundle is by `keys`, or by one of `identities` of `issuer` under `trusted_root`; a Notation signature
    is by one of `identities` under the certificates of `stores`.
    """

    type: DemandType
    predicate: str = SIGN_PREDICATE
    keys: tuple[Material, ...] = ()
    trusted_root: Material | None = None
    issuer: str = ""
    identities: tuple[str, ...] = ()
    stores: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The demand in a word or two."""
        if self.type is DemandType.BUNDLE and self.predicate != SIGN_PREDICATE:
            return f"bundle {self.predicate}"
        return str(self.type)


@record
class Rule:
    """What holds for the images of one scope, beside or instead of the policy's requirements.

    `max_age` in seconds, 0 for any; `stage1` are the flavours that may run them, empty for all.
    """

    scope: str
    source: str
    instead: bool = False
    bundle_by_digest: bool = False
    max_age: int = 0
    stage1: tuple[str, ...] = ()
    demands: tuple[Demand, ...] = ()


def rules_error(message: str) -> UsageError:
    """Return the error for a file of rules that cannot be used."""
    return UsageError(
        f"trust rules {message}",
        hint="nothing is admitted under rules that are not understood; see docs/trust.md",
        code="usage-trust-rules",
    )


def _path(taker: Taker, key: str) -> Material | None:
    word = taker.text(key, "")
    if word and not word.startswith("/"):
        raise taker.error(f"{key} must be an absolute path")
    return Material(path=word) if word else None


def _bundle(taker: Taker) -> Demand:
    demand = Demand(
        type=DemandType.BUNDLE,
        predicate=taker.text("predicate", SIGN_PREDICATE),
        keys=tuple(Material(path=word) for word in taker.texts("key")),
        trusted_root=_path(taker, "trusted-root"),
        issuer=taker.text("issuer", ""),
        identities=taker.texts("identity"),
    )
    if any(not item.path.startswith("/") for item in demand.keys):
        raise taker.error("key must be an absolute path")
    if bool(demand.keys) == bool(demand.trusted_root):
        raise taker.error("a bundle needs either key or trusted-root")
    if bool(demand.trusted_root) != bool(demand.issuer and demand.identities):
        raise taker.error("trusted-root, issuer and identity go together")
    return demand


def _notation(taker: Taker) -> Demand:
    demand = Demand(
        type=DemandType.NOTATION, stores=taker.texts("trust-store"), identities=taker.texts("identity")
    )
    if not demand.stores or any(not item.startswith("/") for item in demand.stores):
        raise taker.error("trust-store must be absolute paths of folders with certificates")
    if not demand.identities:
        raise taker.error("identity is missing")
    for word in demand.identities:
        try:
            notation.parse_identity(word)
        except ValueError as error:
            raise taker.error(f"identity {error}") from error
    return demand


def _demand(taker: Taker) -> Demand:
    kind = taker.text("type")
    if kind not in tuple(DemandType):
        raise taker.error(f"type is {kind[:40]!r}, expected bundle or notation")
    demand = _bundle(taker) if kind == DemandType.BUNDLE else _notation(taker)
    taker.end()
    return demand


def _age(taker: Taker) -> int:
    word = taker.text("max-age", "")
    if not word:
        return 0
    match = _AGE.match(word)
    if match is None:
        raise taker.error(f"max-age is {word[:40]!r}, expected a number with s, m, h or d")
    return int(match[1]) * _SECONDS[match[2]]


def _scope(taker: Taker) -> str:
    word = taker.text("scope")
    if word != "default" and word.partition(":")[0] not in _TRANSPORTS:
        raise taker.error(f"scope is {word[:100]!r}, expected default or TRANSPORT:SCOPE as in policy.json")
    return word


def _rule(taker: Taker, source: str) -> Rule:
    scope = _scope(taker)
    identity = taker.text("bundle-identity", "reference")
    if identity not in ("reference", "digest"):
        raise taker.error(f"bundle-identity is {identity[:40]!r}, expected reference or digest")
    instead = taker.flag("instead")
    demands = taker.tables("require", limit=limits.MAX_REQUIREMENTS)
    rule = Rule(
        scope=scope,
        source=source,
        instead=instead,
        bundle_by_digest=identity == "digest",
        max_age=_age(taker),
        stage1=taker.texts("stage1"),
        demands=tuple(map(_demand, demands)),
    )
    if instead and not rule.demands:
        raise taker.error("instead of policy.json a rule must require something")
    taker.end()
    return rule


def parse(table: Mapping[str, object], source: str) -> list[Rule]:
    """Parse one file's rules; raises UsageError for anything not understood."""
    taker = Taker(table, source, rules_error)
    found = [_rule(item, source) for item in taker.tables("rule", limit=limits.MAX_RULES)]
    taker.end()
    return found


def load(ring: Path, places: Sequence[Path] = config.PLACES) -> tuple[Rule, ...]:
    """Read all rules; raises UsageError for a file that cannot be used and for a scope with two rules."""
    found: dict[str, Rule] = {}
    for path in files(ring, places):
        for rule in parse(config.read(path, limit=limits.MAX_RULES_BYTES), str(path)):
            if rule.scope in found:
                raise rules_error(f"{path}: {found[rule.scope].source} has a rule for {rule.scope} too")
            found[rule.scope] = rule
    return tuple(found.values())


def files(ring: Path, places: Sequence[Path] = config.PLACES) -> list[Path]:
    """Return the files that rules are read from, in order."""
    return config.files(RULES_NAME, (ring, *places))
