"""Weigh signatures against policies in tests: what is demanded in, decision and reasons out."""

import json
import tomllib
from pathlib import Path

from secrun import dockername
from secrun.trust import plan as plans
from secrun.trust import policy
from secrun.trust.admission import Decision, Subject
from secrun.trust.judge import judge, kinds_of
from secrun.trust.policy import TrustPolicy
from secrun.trust.ring import KeyRing
from secrun.trust.rules import parse as parse_rules
from secrun.trust.signatures import Candidate, SignatureSet
from support import signing
from support.signing import IMAGE, NAME, NOW, b64


def subject(name=NAME):
    parsed = dockername.parse(name)
    scopes = (str(parsed), *dockername.parents(parsed.repository))
    return Subject(name=f"docker://{name}", transport="docker", scopes=scopes, docker=parsed)


def requirement(**fields):
    document = {"default": [{"type": "sigstoreSigned", **fields}]}
    return policy.parse(json.dumps(document).encode(), source="/policy.json")


def by_keys(*keys, **fields):
    return requirement(keyDatas=[b64(signing.public_pem(item)) for item in keys], **fields)


def decided(found: TrustPolicy, *candidates: Candidate, name=NAME, rules=(), digests=(IMAGE,), ring="/none"):
    context = plans.TrustContext(policy=found, ring=KeyRing(Path(ring)), rules=tuple(rules))
    plan = context.plan(subject(name))
    signatures = SignatureSet(candidates=tuple(candidates), searched=kinds_of(plan))
    return judge(plan, frozenset(digests), signatures, signatures_digest="", now=NOW)


def refused(found, *candidates, **options):
    """Return why."""
    admission = decided(found, *candidates, **options)
    assert admission.decision is Decision.REJECT
    return admission.reason


def accepted(found, *candidates, **options):
    admission = decided(found, *candidates, **options)
    assert admission.decision is Decision.ACCEPT, admission.reason
    return admission.signatures


def rules(text):
    return parse_rules(tomllib.loads(text), "/etc/secrun/trust.toml")


ACCEPT = policy.parse(b'{"default": [{"type": "insecureAcceptAnything"}]}', source="/policy.json")
