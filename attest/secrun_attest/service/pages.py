"""What readers see of hosts and pods: made from a verdict when written, joined with the row when read."""

from secrun_attest.jcs import JsonObject, JsonValue, parse_object
from secrun_attest.service.call import Call, Reply, bad_request, check_id, reply
from secrun_attest.service.store import Host, Store
from secrun_attest.service.trouble import ServiceError, Trouble
from secrun_attest.verify import Appraisal, Status, Verdict
from secrun_attest.verify.machine import Pod, PodState

MAX_PAGE = 1000
USUAL_PAGE = 100


def summary_page(verdict: Verdict, now: int) -> JsonObject:
    """Return what is kept of a verdict about the host itself."""
    epoch = verdict.state.epoch
    return {
        "appraised": now,
        "verdict": verdict.status.value,
        "epoch": {"reset": epoch.reset, "restart": epoch.restart, "boot_id": epoch.boot_id},
        "log_count": verdict.state.recnum,
        "tpm": verdict.state.machine.tpm.value,
        "reasons": [*verdict.host.reasons],
        "pod_count": sum(pod.state is not PodState.REMOVED for pod in verdict.state.machine.pods.values()),
    }


def pods_page(verdict: Verdict) -> list[JsonValue]:
    """Return what is kept of the pods: all but those that were removed and were fine."""
    pods = verdict.state.machine.pods
    return [
        _pod(pods[uuid], appraisal)
        for uuid, appraisal in verdict.pods
        if pods[uuid].state is not PodState.REMOVED or appraisal.status is not Status.AFFIRMING
    ]


def _pod(pod: Pod, appraisal: Appraisal) -> JsonObject:
    return {
        "pod": pod.uuid,
        "state": pod.state.value,
        "status": appraisal.status.value,
        "reasons": [*appraisal.reasons],
        "entries": appraisal.entries,
        "manifest": f"sha256:{pod.manifest.hex()}",
        "relaxations": [*pod.relaxations],
        "apps": [
            {
                "name": app.name,
                "reference": app.image.reference,
                "manifest": f"sha256:{app.image.manifest.hex()}",
                "tree": f"sha256:{app.image.tree.hex()}",
                "relaxations": [*app.relaxations],
            }
            for app in pod.apps
        ],
    }


_NOTHING: JsonObject = {
    "appraised": None,
    "epoch": None,
    "log_count": None,
    "tpm": None,
    "reasons": [],
    "pod_count": 0,
}


def _stored(data: bytes, what: str) -> JsonObject:
    return parse_object(data, what=what, limit=len(data))


def host_page(host: Host) -> JsonObject:
    """Return a host as `GET /v1/hosts` lists it."""
    summary = _NOTHING if host.summary is None else _stored(host.summary, "stored summary")
    return {
        **summary,
        "host": host.enrolment.host,
        "software": host.enrolment.software,
        "enrolled": host.enrolled,
        "ak_name": host.enrolment.ak_name.hex(),
        "verdict": host.verdict,
        "seen": host.seen,
        "failure": None if host.failure is None else _stored(host.failure, "stored failure"),
    }


class Viewer:
    """The reading half of /v1/hosts, and its only writer: an admin that forgets a host."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def hosts(self, call: Call) -> Reply:
        """GET /v1/hosts."""
        call.only("after", "limit")
        limit = _limit(call.query.get("limit", str(USUAL_PAGE)))
        after = call.query.get("after", "")
        found = self._store.hosts(check_id(after, "the parameter after") if after else "", limit + 1)
        pages: list[JsonValue] = [host_page(host) for host in found[:limit]]
        following = found[limit - 1].enrolment.host if len(found) > limit else None
        return reply({"now": call.now, "hosts": pages, "next": following})

    def host(self, call: Call) -> Reply:
        """GET /v1/hosts/{host}."""
        host = self._find(call)
        return reply({**host_page(host), "now": call.now, "pods": self._pods(host)})

    def pod(self, call: Call) -> Reply:
        """GET /v1/hosts/{host}/pods/{pod}."""
        host, wanted = self._find(call), call.path["pod"]
        for pod in self._pods(host):
            if isinstance(pod, dict) and pod.get("pod") == wanted:
                return reply(pod)
        raise ServiceError(
            Trouble.NOT_FOUND, f"host {host.enrolment.host!r} has shown no pod {wanted[:80]!r}"
        )

    def forget(self, call: Call) -> Reply:
        """DELETE /v1/hosts/{host}."""
        identifier = check_id(call.path["host"], "host")
        if not self._store.forget(identifier):
            raise ServiceError(Trouble.NOT_FOUND, f"host {identifier!r} is not enrolled")
        return Reply(status=204)

    def _find(self, call: Call) -> Host:
        identifier = check_id(call.path["host"], "host")
        call.principal.must_be(identifier)
        host = self._store.host(identifier)
        if host is None:
            raise ServiceError(Trouble.NOT_FOUND, f"host {identifier!r} is not enrolled")
        return host

    def _pods(self, host: Host) -> list[JsonValue]:
        data = self._store.pods(host.enrolment.host)
        pods = [] if data is None else _stored(data, "stored pods")["pods"]
        return pods if isinstance(pods, list) else []


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= MAX_PAGE):
        raise bad_request(f"the parameter limit is {text[:20]!r}, expected 1 to {MAX_PAGE}")
    return int(text)
