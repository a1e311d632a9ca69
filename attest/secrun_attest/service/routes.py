"""The table of routes: what there is, who may ask for it, what a body may weigh, and what it means."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from secrun_attest.service.auth import Role
from secrun_attest.service.call import Call, Reply
from secrun_attest.service.config import Limits

Handler = Callable[[Call], Reply]

PUBLIC = frozenset(Role)
HOST = frozenset({Role.HOST})
HOST_OR_READER = frozenset({Role.HOST, Role.READER, Role.ADMIN})
READER = frozenset({Role.READER, Role.ADMIN})
ADMIN = frozenset({Role.ADMIN})


class Size(StrEnum):
    """Which limit a body has."""

    NONE = "none"
    REQUEST = "request"
    EVIDENCE = "evidence"
    POLICY = "policy"

    def limit(self, limits: Limits) -> int:
        """Return the limit in bytes."""
        sizes = {
            Size.NONE: 0,
            Size.REQUEST: limits.request,
            Size.EVIDENCE: limits.evidence,
            Size.POLICY: limits.policy,
        }
        return sizes[self]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One method of one path; `answer` names its schema in openapi.json, `troubles` its own refusals."""

    method: str
    path: str
    name: str
    summary: str
    allowed: frozenset[Role]
    handler: Handler
    status: int = 200
    answer: str = ""
    size: Size = Size.NONE
    request: str = ""
    query: tuple[str, ...] = ()
    troubles: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Handlers:
    """What the routes call; each takes a Call and returns a Reply, or raises."""

    enroll: Handler
    prove: Handler
    begin: Handler
    answer: Handler
    show: Handler
    end: Handler
    appraise: Handler
    hosts: Handler
    host: Handler
    pod: Handler
    forget: Handler
    put_policy: Handler
    get_policy: Handler
    put_values: Handler
    jwks: Handler
    about: Handler
    metrics: Handler
    health: Handler
    openapi: Handler
    page: Handler


def routes(do: Handlers, *, enroll: frozenset[Role]) -> tuple[Route, ...]:
    """Return all routes; `enroll` is who may begin an enrolment."""
    return (*_enrolment(do, enroll), *_sessions(do), *_reading(do), *_policies(do), *_public(do))


def _enrolment(do: Handlers, enroll: frozenset[Role]) -> tuple[Route, ...]:
    return (
        Route(
            method="POST",
            path="/v1/enroll",
            name="enroll",
            summary="Begin to enrol a host",
            allowed=enroll,
            handler=do.enroll,
            status=201,
            answer="Credential",
            size=Size.REQUEST,
            request="Enrolment",
            troubles=(409,),
        ),
        Route(
            method="POST",
            path="/v1/enroll/{id}/proof",
            name="prove",
            summary="Prove that one TPM holds both keys",
            allowed=PUBLIC,
            handler=do.prove,
            answer="Enrolled",
            size=Size.REQUEST,
            request="Proof",
            troubles=(404, 409, 410),
        ),
    )


def _sessions(do: Handlers) -> tuple[Route, ...]:
    return (
        Route(
            method="POST",
            path="/v1/sessions",
            name="begin",
            summary="Ask for a nonce",
            allowed=HOST,
            handler=do.begin,
            status=201,
            answer="Challenge",
            size=Size.REQUEST,
            request="Begin",
            troubles=(404,),
        ),
        Route(
            method="POST",
            path="/v1/sessions/{id}",
            name="answer",
            summary="Answer with evidence",
            allowed=HOST,
            handler=do.answer,
            answer="Result",
            size=Size.EVIDENCE,
            request="Evidence",
            troubles=(404, 409, 410),
        ),
        Route(
            method="GET",
            path="/v1/sessions/{id}",
            name="show",
            summary="Show a session in its state",
            allowed=HOST_OR_READER,
            handler=do.show,
            answer="Session",
            troubles=(404,),
        ),
        Route(
            method="DELETE",
            path="/v1/sessions/{id}",
            name="end",
            summary="End a session",
            allowed=frozenset({Role.HOST, Role.ADMIN}),
            handler=do.end,
            status=204,
            troubles=(404,),
        ),
        Route(
            method="POST",
            path="/v1/appraise",
            name="appraise",
            allowed=READER,
            handler=do.appraise,
            summary="Appraise evidence for the relying party's own nonce; nothing is kept",
            answer="Result",
            size=Size.EVIDENCE,
            request="Evidence",
            query=("host", "nonce", "audience", "policy"),
            troubles=(404,),
        ),
    )


def _reading(do: Handlers) -> tuple[Route, ...]:
    return (
        Route(
            method="GET",
            path="/v1/hosts",
            name="hosts",
            summary="List hosts with their last verdicts",
            allowed=READER,
            handler=do.hosts,
            answer="Hosts",
            query=("after", "limit"),
            troubles=(422,),
        ),
        Route(
            method="GET",
            path="/v1/hosts/{host}",
            name="host",
            summary="Show a host and its pods",
            allowed=HOST_OR_READER,
            handler=do.host,
            answer="Host",
            troubles=(404, 422),
        ),
        Route(
            method="DELETE",
            path="/v1/hosts/{host}",
            name="forget",
            allowed=ADMIN,
            handler=do.forget,
            status=204,
            summary="Forget a host, so that another TPM may take its id",
            troubles=(404, 422),
        ),
        Route(
            method="GET",
            path="/v1/hosts/{host}/pods/{pod}",
            name="pod",
            summary="Show a pod",
            allowed=HOST_OR_READER,
            handler=do.pod,
            answer="Pod",
            troubles=(404, 422),
        ),
    )


def _policies(do: Handlers) -> tuple[Route, ...]:
    return (
        Route(
            method="PUT",
            path="/v1/policies/{id}",
            name="put_policy",
            summary="Put a newer version of a policy",
            allowed=ADMIN,
            handler=do.put_policy,
            status=204,
            size=Size.POLICY,
            request="Policy",
            troubles=(409,),
        ),
        Route(
            method="GET",
            path="/v1/policies/{id}",
            name="get_policy",
            summary="Get a policy as it was put",
            allowed=READER,
            handler=do.get_policy,
            answer="Policy",
            troubles=(404, 422),
        ),
        Route(
            method="PUT",
            path="/v1/reference-values",
            name="put_values",
            allowed=ADMIN,
            handler=do.put_values,
            summary="Put newer reference values, which are added to every policy",
            status=204,
            size=Size.POLICY,
            request="ReferenceValues",
            troubles=(409,),
        ),
    )


def _public(do: Handlers) -> tuple[Route, ...]:
    return (
        Route(
            method="GET",
            path="/.well-known/jwks.json",
            name="jwks",
            summary="The keys that sign tokens",
            allowed=PUBLIC,
            handler=do.jwks,
            answer="Jwks",
        ),
        Route(
            method="GET",
            path="/.well-known/secrun-verifier",
            name="about",
            summary="What this verifier expects",
            allowed=PUBLIC,
            handler=do.about,
            answer="About",
        ),
        Route(
            method="GET",
            path="/metrics",
            name="metrics",
            summary="Counters for Prometheus",
            allowed=READER,
            handler=do.metrics,
            answer="Text",
        ),
        Route(
            method="GET",
            path="/healthz",
            name="health",
            summary="Alive, and the database answers",
            allowed=PUBLIC,
            handler=do.health,
            answer="Health",
        ),
        Route(
            method="GET",
            path="/openapi.json",
            name="openapi",
            summary="This description",
            allowed=PUBLIC,
            handler=do.openapi,
            answer="OpenApi",
        ),
        Route(
            method="GET",
            path="/",
            name="page",
            summary="The status page",
            allowed=PUBLIC,
            handler=do.page,
            answer="Html",
        ),
    )
