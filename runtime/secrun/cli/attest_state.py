"""The file of `attest verify --state`: where the last verdict on a host ended, which policies were seen."""

from collections.abc import Mapping
from pathlib import Path

from secrun.errors import StateError
from secrun.files import write_atomic
from secrun.record import field, record
from secrun_attest import jcs
from secrun_attest.errors import FormatError
from secrun_attest.fields import FieldError, Fields, as_integer, parse_json
from secrun_attest.policyfile import NO_MINIMUMS
from secrun_attest.verify import State, load_state
from secrun_attest.verify.state import MAX_STATE

SCHEMA = "secrun.dev/verifier-state/v1"
_MAX_POLICIES = 1000


@record
class Kept:
    """`minimums` of policies as `open_policies` takes them, and the state of the host if it was seen."""

    minimums: Mapping[str, int] = field(default=NO_MINIMUMS)
    state: State | None = None


def load_kept(path: Path) -> Kept:
    """Read the file, nothing if there is none yet; raises StateError if it is damaged."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_STATE + 1)
    except FileNotFoundError:
        return Kept()
    try:
        return _parse(data)
    except FormatError as error:
        raise StateError(
            f"{path} is not what attest verify keeps: {error.message}",
            hint="remove it; the host then has to send its whole log",
            code="state-verifier",
        ) from error


def _parse(data: bytes) -> Kept:
    fields = Fields(parse_json(data, what="verifier state", limit=MAX_STATE), "state")
    if (schema := fields.text("schema", limit=100)) != SCHEMA:
        raise FieldError(f"the schema is {schema!r}, expected {SCHEMA}")
    policies = fields.mapping("policies", limit=_MAX_POLICIES)
    kept = Kept(
        minimums={name: as_integer(value, "version") for name, value in policies.items()},
        state=load_state(jcs.encode(fields.take("host"))),
    )
    fields.done()
    return kept


def save_kept(path: Path, kept: Kept) -> None:
    """Replace the file, readable by its owner alone."""
    host = None if kept.state is None else jcs.parse(kept.state.dump(), what="state", limit=MAX_STATE)
    data = jcs.encode({"schema": SCHEMA, "policies": {**kept.minimums}, "host": host})
    write_atomic(path.absolute(), data, mode=0o600)
