"""Evidence that must be refused, and how its JSON is bent."""

import json

import pytest

from secrun_attest.evidence import build_evidence
from secrun_attest.rejection import STEPS
from secrun_attest.verify import RejectedError, appraise
from support.attest_bench import NOW, policy


def refused(evidence, asked, rules=None, state=None, now=NOW):
    """Return the code with which evidence is refused."""
    data = evidence if isinstance(evidence, bytes) else build_evidence(evidence)
    with pytest.raises(RejectedError) as caught:
        appraise(data, asked, rules or policy(), state, now)
    assert caught.value.code == caught.value.reason.value
    assert caught.value.step == STEPS[caught.value.reason]
    return caught.value.reason


def edited(evidence, path, value):
    """Return evidence with one member of the JSON set, or taken away if `value` is `...`."""
    document = json.loads(evidence)
    *way, last = path
    place = document
    for step in way:
        place = place[step]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return json.dumps(document).encode()
