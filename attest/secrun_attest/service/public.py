"""What anyone may read, and the administrator's documents."""

from collections.abc import Sequence

from secrun_attest.service.call import Call, Reply, check_id, reply
from secrun_attest.service.keys import Keyring
from secrun_attest.service.metrics import MEDIA_TYPE, Metrics
from secrun_attest.service.openapi import document
from secrun_attest.service.policies import Policies
from secrun_attest.service.rate import Gate
from secrun_attest.service.routes import Route
from secrun_attest.service.statuspage import load_page
from secrun_attest.service.store import Store
from secrun_attest.service.trouble import to_json


class Desk:
    """Policies, keys, metrics, health, the description, the status page."""

    def __init__(
        self, store: Store, policies: Policies, keys: Keyring, metrics: Metrics, gate: Gate, *, audience: str
    ) -> None:
        self._store = store
        self._policies = policies
        self._keys = keys
        self._metrics = metrics
        self._gate = gate
        self._audience = audience
        self._enroll_token = False
        self._software_tpm = False
        self._openapi = b""
        self._page = load_page()

    def describe(self, table: Sequence[Route], *, enroll_token: bool, software_tpm: bool) -> None:
        """Take what is only known when all routes are."""
        self._openapi = to_json(document(table))
        self._enroll_token, self._software_tpm = enroll_token, software_tpm

    def put_policy(self, call: Call) -> Reply:
        """PUT /v1/policies/{id}."""
        self._policies.put(check_id(call.path["id"], "policy"), call.body)
        return Reply(status=204)

    def get_policy(self, call: Call) -> Reply:
        """GET /v1/policies/{id}."""
        return Reply(body=self._policies.raw(check_id(call.path["id"], "policy")))

    def put_values(self, call: Call) -> Reply:
        """PUT /v1/reference-values."""
        self._policies.put_values(call.body)
        return Reply(status=204)

    def jwks(self, call: Call) -> Reply:
        """GET /.well-known/jwks.json."""
        return reply(self._keys.jwks(call.now))

    def about(self, _call: Call) -> Reply:
        """GET /.well-known/secrun-verifier."""
        policy = self._policies.current()
        return reply(
            {
                "audience": self._audience,
                "bank": policy.bank.value,
                "pcrs": [*policy.selection],
                "runtime_pcr": policy.pcr,
                "policy": f"sha256:{policy.digest.hex()}",
                "jwks_uri": "/.well-known/jwks.json",
                "enroll_token": self._enroll_token,
                "software_tpm": self._software_tpm,
            }
        )

    def metrics(self, _call: Call) -> Reply:
        """GET /metrics."""
        text = self._metrics.text(in_flight=self._gate.requests, hosts=self._store.verdicts())
        return Reply(body=text.encode(), media=MEDIA_TYPE)

    def health(self, _call: Call) -> Reply:
        """GET /healthz."""
        self._store.ping()
        return reply({"status": "ok"})

    def openapi(self, _call: Call) -> Reply:
        """GET /openapi.json."""
        return Reply(body=self._openapi)

    def page(self, _call: Call) -> Reply:
        """GET /."""
        return self._page
