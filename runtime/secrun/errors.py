"""Errors that secrun raises: what failed, on which object, got versus expected, what to do next.

Libraries raise these; only the command line prints them and exits.
"""


class SecrunError(Exception):
    """Base of every expected failure; `code` is stable and documented."""

    code = "internal"
    exit_code = 125

    def __init__(self, message: str, *, hint: str = "", code: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if code:
            self.code = code


class UsageError(SecrunError):
    """The command line or a configuration file asks for something that has no meaning."""

    code = "usage"
    exit_code = 2


class DeniedError(SecrunError):
    """A policy refuses what was asked."""

    code = "denied"
    exit_code = 120


class EvidenceError(SecrunError):
    """Evidence does not prove what it claims."""

    code = "evidence"
    exit_code = 121


class HostError(SecrunError):
    """This host lacks a feature or a right that the request needs."""

    code = "host"


class ImageError(SecrunError):
    """An image's bytes are not what its format allows or its digest promises."""

    code = "image"


class RegistryError(SecrunError):
    """A registry refused, vanished or answered with something that is not its protocol."""

    code = "registry"


class NetworkError(SecrunError):
    """A pod's network could not be joined, checked or left."""

    code = "network"


class VerifierError(SecrunError):
    """A verifier refused, vanished or answered with something that is not its protocol."""

    code = "verifier"


class ExternalError(SecrunError):
    """An external command failed."""

    code = "external"


class StateError(SecrunError):
    """A pod or image is not in the state that the operation needs."""

    code = "state"


class InvokeError(SecrunError):
    """The workload exists but cannot be invoked."""

    code = "invoke"
    exit_code = 126
