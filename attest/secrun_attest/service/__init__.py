"""The verifier as an HTTP service: enrolment, sessions, tokens, a status page. docs/verifier-service.md."""
