"""Random damage to evidence, and what must never come of it: a crash, or another content believed."""

import random
from dataclasses import replace

from secrun_attest.evidence import build_evidence, parse_evidence
from secrun_attest.verify import RejectedError, appraise
from support.attest_bench import NOW, firmware_log, policy, session, usual_host
from support.hostile_json import damaged_bytes, damaged_member


class Bench:
    """One host's honest evidence, and how often damaged copies of it were refused for which reason."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        host = usual_host(firmware=firmware_log([], ("sha1", "sha256", "sha384", "sha512")))
        host.static = dict.fromkeys(range(8), bytes(32))
        self.host, self.session = host, session(host)
        self.policy = policy(platform={"pcrs": {}})
        self.good = host.evidence()
        self.verdict = appraise(self.good, self.session, self.policy, None, NOW)
        self.codes: dict[str, int] = {}

    def try_one(self) -> None:
        """Damage a copy; if it is believed, it must say what the original says."""
        how = self.random.choice([self._bytes, self._member, self._binary, self._signed])
        data = how()
        try:
            verdict = appraise(data, self.session, self.policy, None, NOW)
        except RejectedError as error:
            self.codes[error.code] = self.codes.get(error.code, 0) + 1
            return
        believed = replace(verdict, state=replace(verdict.state, clock=self.verdict.state.clock))
        assert believed == self.verdict, data

    def _bytes(self) -> bytes:
        return damaged_bytes(self.good, self.random)

    def _member(self) -> bytes:
        return damaged_member(self.good, self.random)

    def _binary(self) -> bytes:
        """Damage one of the structures inside, with nothing around it to notice."""
        good = parse_evidence(self.good)
        name = self.random.choice(["ak_pub", "quote", "signature", "firmware_log"])
        return build_evidence(replace(good, **{name: damaged_bytes(getattr(good, name), self.random)}))

    def _signed(self) -> bytes:
        """Damage the quote and have the genuine key sign it: the checks behind the signature see it."""
        good = parse_evidence(self.good)
        quote = damaged_bytes(good.quote, self.random)
        return build_evidence(replace(good, quote=quote, signature=self.host.ak.sign(quote)))
