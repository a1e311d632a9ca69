"""`--pod-manifest FILE`: a whole pod as JSON, in the words of the option table.

    {"schema": "secrun.dev/pod-request/v1", "hostname": "web",
     "apps": [{"image": "docker://registry.example/app:1", "args": ["serve"], "memory": "64m"}]}

A key is an option's long name without its dashes; a value is what the option takes: a string, an integer,
true, or a list of strings for what may be given several times.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from secrun.cli.options import APP, POD, STREAMS
from secrun.cli.table import Arguments, Kind, Option, Scope, Value, Verb
from secrun.errors import ImageError, UsageError
from secrun.jsonio import JsonObject, JsonValue, parse_object

SCHEMA = "secrun.dev/pod-request/v1"
MAX_BYTES = 1 << 20
# The caller's own matters: they are said where the pod is started.
_CALLERS = ("pod_manifest", "uuid_file_save")
_JSON_NAMES = {bool: "boolean", int: "number", str: "string", list: "array", dict: "object"}


def key_of(option: Option) -> str:
    """Return an option's key."""
    return option.dest.replace("_", "-")


def pod_options() -> dict[str, Option]:
    """Return the options of a whole pod that a file may hold, by key."""
    return {key_of(option): option for option in (*POD, *STREAMS) if option.dest not in _CALLERS}


def app_options() -> dict[str, Option]:
    """Return the options of an app, by key."""
    return {key_of(option): option for option in APP}


def _fail(path: Path, text: str, hint: str = "") -> UsageError:
    return UsageError(
        f"{path}: {text}", hint=hint or "docs/pod-manifest.md tells the keys", code="usage-pod-manifest"
    )


def _read(path: Path) -> JsonObject:
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise _fail(path, str(error.strerror)) from error
    try:
        found = parse_object(data, what=str(path), limit=MAX_BYTES)
    except ImageError as error:
        raise UsageError(error.message, code="usage-pod-manifest") from error
    if found.get("schema") != SCHEMA:
        raise _fail(path, f"schema is {str(found.get('schema'))[:80]!r}, expected {SCHEMA!r}")
    return found


def _type_of(value: JsonValue) -> str:
    return "null" if value is None else _JSON_NAMES.get(type(value), "number")


def _texts(value: JsonValue) -> list[str] | None:
    """Return a list of strings, None for anything else."""
    if not isinstance(value, list):
        return None
    texts = [item for item in value if isinstance(item, str)]
    return texts if len(texts) == len(value) else None


def _value(path: Path, where: str, option: Option, value: JsonValue) -> Value:
    """Check one value; raises UsageError."""
    found: Value = None
    expected = "a string"
    if option.kind is Kind.FLAG:
        expected, found = "true or false", value if isinstance(value, bool) else None
    elif option.kind is Kind.INTEGER:
        expected, found = "an integer", value if type(value) is int else None
    elif option.kind is Kind.LIST:
        expected, found = "a list of strings", _texts(value)
    elif isinstance(value, str):
        found = value
    if found is None:
        raise _fail(path, f"{where} is a JSON {_type_of(value)}, expected {expected}")
    if option.choices and found not in option.choices:
        raise _fail(path, f"{where} is {str(found)[:80]!r}, expected one of {', '.join(option.choices)}")
    return found


def _values(
    path: Path, where: str, options: Mapping[str, Option], given: JsonObject, others: Sequence[str]
) -> Iterator[tuple[str, Value]]:
    for key, value in given.items():
        if key in others:
            continue
        if key not in options:
            import difflib

            near = difflib.get_close_matches(key, [*options, *others], n=1)
            hint = f"did you mean {near[0]}?" if near else ""
            raise _fail(path, f"{where}unknown key {key[:80]!r}", hint)
        yield options[key].dest, _value(path, f"{where}{key}", options[key], value)


def _app(path: Path, index: int, given: JsonValue) -> Arguments:
    where = f"apps[{index}]"
    if not isinstance(given, dict):
        raise _fail(path, f"{where} is a JSON {_type_of(given)}, expected an object")
    image, args = given.get("image"), _texts(given.get("args", []))
    if not isinstance(image, str) or not image:
        raise _fail(path, f"{where} names no image")
    if args is None:
        raise _fail(path, f"{where}.args is not a list of strings")
    options = app_options()
    values: dict[str, Value] = {
        option.dest: False if option.kind is Kind.FLAG else option.default for option in options.values()
    }
    values["image"] = image
    values.update(_values(path, f"{where}.", options, given, ("image", "args")))
    return Arguments(values, tuple(args))


def _said(verb: Verb, values: Mapping[str, Value], scope: Scope) -> list[str]:
    """Return the options of `scope` that the command line gave, by their first long flag."""
    return [
        f"--{key_of(option)}"
        for option in verb.options
        if option.scope is scope and values[option.dest] not in (option.default, False, None)
    ]


def merge(verb: Verb, given: Arguments) -> Arguments:
    """Return the arguments with the pod of `--pod-manifest` in them.

    Raises UsageError for a file that is no pod, for options of apps beside it, and for what is said twice.
    """
    path = Path(given.required("pod_manifest"))
    first = given.apps[0]
    beside = [*_said(verb, first.values, Scope.APP)]
    beside += ["IMAGE"] if first.values["image"] else []
    beside += ["-- ARGUMENT"] if first.trailing else []
    beside += ["---"] if len(given.apps) > 1 else []
    if beside:
        raise UsageError(
            f"--pod-manifest excludes {', '.join(beside)}", hint="the file says all of the apps"
        )
    found = _read(path)
    options = pod_options()
    values = dict(_values(path, "", options, found, ("schema", "apps")))
    twice = [flag for flag in _said(verb, given.values, Scope.VERB) if flag[2:].replace("-", "_") in values]
    if twice:
        raise UsageError(f"{path} and the command line both say {', '.join(twice)}", hint="leave out one")
    apps = found.get("apps")
    if not isinstance(apps, list) or not apps:
        raise _fail(path, "apps is not a list with at least one app")
    merged = {**given.values, **{key: value for key, value in values.items() if key in given.values}}
    return Arguments(merged, (), tuple(_app(path, index, item) for index, item in enumerate(apps)))


def _schema_of(option: Option) -> JsonObject:
    described: JsonObject = {"description": option.help}
    match option.kind:
        case Kind.FLAG:
            return {**described, "type": "boolean"}
        case Kind.INTEGER:
            return {**described, "type": "integer"}
        case Kind.LIST:
            return {**described, "type": "array", "items": {"type": "string"}}
        case _ if option.choices:
            return {**described, "enum": [*option.choices]}
    return {**described, "type": "string"}


def _object_schema(options: Mapping[str, Option], own: JsonObject, required: list[JsonValue]) -> JsonObject:
    properties = own | {key: _schema_of(option) for key, option in options.items()}
    return {
        "type": "object",
        "additionalProperties": False,
        "required": required,
        "properties": dict(sorted(properties.items())),
    }


def json_schema() -> JsonObject:
    """Return the JSON Schema (2020-12) of such a file."""
    app = _object_schema(
        app_options(),
        {
            "image": {"type": "string", "minLength": 1, "description": "an image reference or ID"},
            "args": {"type": "array", "items": {"type": "string"}, "description": "words after --"},
        },
        ["image"],
    )
    pod = _object_schema(
        pod_options(),
        {"schema": {"const": SCHEMA}, "apps": {"type": "array", "minItems": 1, "items": app}},
        ["schema", "apps"],
    )
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "a pod of secrun", **pod}
