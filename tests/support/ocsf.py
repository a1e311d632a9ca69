"""What the Open Cybersecurity Schema Framework 1.6 says of the classes and objects that secrun writes.

Facts of its class and object definitions in a table of our own: of each, the attributes that may be there
with their kinds, those that must, values of enumerations, and of which one at least must be there.
"""

from dataclasses import dataclass, field

TEXT, NUMBER, ANY = "text", "number", "any"


@dataclass(frozen=True)
class Shape:
    """A class or object; a kind is TEXT, NUMBER, ANY, the name of an object, or a list of one of them."""

    attributes: dict[str, object]
    required: frozenset[str] = frozenset()
    values: dict[str, frozenset[int]] = field(default_factory=dict)
    one_of: frozenset[str] = frozenset()


def _set(text):
    return frozenset(text.split())


# Every class: the base event with its classification and occurrence.
_BASE = {
    "activity_id": NUMBER, "activity_name": TEXT, "category_uid": NUMBER, "category_name": TEXT,
    "class_uid": NUMBER, "class_name": TEXT, "type_uid": NUMBER, "type_name": TEXT, "time": NUMBER,
    "severity_id": NUMBER, "severity": TEXT, "status_id": NUMBER, "status": TEXT, "status_code": TEXT,
    "status_detail": TEXT, "message": TEXT, "metadata": "metadata", "unmapped": ANY, "raw_data": TEXT,
    "start_time": NUMBER, "end_time": NUMBER, "count": NUMBER, "duration": NUMBER, "timezone_offset": NUMBER,
}  # fmt: skip
_BASE_REQUIRED = _set("activity_id category_uid class_uid type_uid time severity_id metadata")
_SEVERITIES = frozenset({0, 1, 2, 3, 4, 5, 6, 99})
_STATUSES = frozenset({0, 1, 2, 99})
_HOST = {"device": "device", "actor": "actor"}


def _event(attributes, required, activities, category, statuses=_STATUSES):
    return Shape(
        attributes={**_BASE, **attributes},
        required=_BASE_REQUIRED | _set(required),
        values={
            "activity_id": frozenset({0, 99, *activities}),
            "category_uid": frozenset({category}),
            "severity_id": _SEVERITIES,
            "status_id": statuses,
        },
    )


CLASSES = {
    # Application Lifecycle: install, remove, start, stop, restart, enable, disable, update.
    6002: _event({"app": "product", **_HOST}, "app", range(1, 9), 6),
    # Process Activity: launch, terminate, open, inject, set user id.
    1007: _event(
        {"process": "process", "exit_code": NUMBER, **_HOST}, "process device actor", range(1, 6), 1
    ),
    # Compliance Finding: create, update, close. The status is that of work on it.
    2003: _event(
        {"compliance": "compliance", "finding_info": "finding_info", "remediation": "remediation",
         "resources": ["resource_details"], "device": "device"},
        "compliance finding_info", range(1, 4), 2, frozenset({0, 1, 2, 3, 4, 5, 6, 99}),
    ),
}  # fmt: skip
_ENTITY = _set("name uid")
OBJECTS = {
    "metadata": Shape(
        {"version": TEXT, "product": "product", "profiles": [TEXT], "uid": TEXT, "sequence": NUMBER,
         "event_code": TEXT, "log_name": TEXT, "log_provider": TEXT},
        _set("version product"),
    ),
    "product": Shape({"name": TEXT, "uid": TEXT, "vendor_name": TEXT, "version": TEXT}, one_of=_ENTITY),
    "device": Shape(
        {"hostname": TEXT, "name": TEXT, "uid": TEXT, "type_id": NUMBER, "container": "container"},
        _set("type_id"), {"type_id": frozenset({*range(13), 99})}, _set("ip uid name hostname"),
    ),
    "actor": Shape({"user": "user", "process": "process"}, one_of=_set("user process session app_name")),
    "user": Shape({"name": TEXT, "uid": TEXT}, one_of=_set("account name uid")),
    "process": Shape(
        {"name": TEXT, "uid": TEXT, "pid": NUMBER, "cmd_line": TEXT, "container": "container"},
        one_of=_set("pid uid"),
    ),
    "container": Shape(
        {"uid": TEXT, "name": TEXT, "runtime": TEXT, "image": "image"},
        one_of=_ENTITY,
    ),
    "image": Shape({"name": TEXT, "uid": TEXT, "tag": TEXT, "labels": [TEXT]}, _set("uid")),
    "compliance": Shape(
        {"control": TEXT, "requirements": [TEXT], "standards": [TEXT], "status": TEXT, "status_id": NUMBER,
         "status_detail": TEXT},
        _set("standards"), {"status_id": frozenset({0, 1, 2, 3, 99})},
    ),
    "finding_info": Shape({"uid": TEXT, "title": TEXT, "desc": TEXT}, _set("uid")),
    "remediation": Shape({"desc": TEXT}, _set("desc")),
    "resource_details": Shape({"name": TEXT, "type": TEXT, "uid": TEXT, "data": ANY}, one_of=_ENTITY),
}  # fmt: skip
# What a normalised status says in words, unless it is another (99), which the source names.
COMPLIANCE_CAPTIONS = {0: "Unknown", 1: "Pass", 2: "Warning", 3: "Fail"}


def problems(event):
    """Return what is wrong with an event, each with its place."""
    shape = CLASSES.get(event.get("class_uid"))
    if shape is None:
        return [f"class_uid {event.get('class_uid')}"]
    found = [*_problems(event, shape, "")]
    if event.get("type_uid") != event.get("class_uid") * 100 + event.get("activity_id", 0):
        found.append("type_uid")
    if event.get("activity_id") == 99 and not event.get("activity_name"):
        found.append("activity_name: Other has no name of its own")
    told = event.get("compliance", {})
    if COMPLIANCE_CAPTIONS.get(told.get("status_id"), told.get("status")) != told.get("status"):
        found.append("compliance.status")
    return found


def _problems(value, shape, place):
    yield from (f"{place}{name}: required" for name in shape.required - value.keys())
    if shape.one_of and not shape.one_of & value.keys():
        yield f"{place}: none of {sorted(shape.one_of)}"
    for name, item in value.items():
        if name not in shape.attributes:
            yield f"{place}{name}: unknown"
            continue
        if name in shape.values and item not in shape.values[name]:
            yield f"{place}{name}: {item} is no value of it"
        yield from _kind(item, shape.attributes[name], f"{place}{name}")


def _kind(value, kind, place):
    if isinstance(kind, list):
        if not isinstance(value, list):
            yield f"{place}: no list"
            return
        for item in value:
            yield from _kind(item, kind[0], f"{place}[]")
    elif kind == TEXT and not (isinstance(value, str) and value):
        yield f"{place}: no text"
    elif kind == NUMBER and type(value) is not int:
        yield f"{place}: no number"
    elif kind in OBJECTS:
        yield from _problems(value, OBJECTS[kind], f"{place}.")
