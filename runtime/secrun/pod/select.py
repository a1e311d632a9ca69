"""Which pods a list shows, and in which order: filters as podman names them, sort keys, the latest."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from secrun.errors import UsageError
from secrun.pod.glance import Glance
from secrun.pod.states import State
from secrun.record import record

_Test: TypeAlias = Callable[[Glance], bool]
_MAX_CODE = 255
# podman's words for our states; what was marked for deletion has exited all the same.
_WORDS = {
    **{str(state).replace(" ", "-"): (state,) for state in State},
    "created": (State.PREPARED,),
    "exited": (State.EXITED, State.EXITED_GARBAGE),
}


@record
class Selection:
    """What was asked for: each of `groups` needs one test that holds."""

    groups: tuple[tuple[_Test, ...], ...] = ()
    needs_ends: bool = False
    """Whether a test looks at how pods ended."""

    def holds(self, pod: Glance) -> bool:
        """Tell whether a pod is wanted."""
        return all(any(test(pod) for test in group) for group in self.groups)


def _bad(key: str, value: str, expected: str) -> UsageError:
    return UsageError(f"--filter {key}={value[:80]}: expected {expected}", code="usage-filter")


def _id(value: str) -> _Test:
    return lambda pod: pod.uuid.startswith(value.lower())


def _name(value: str) -> _Test:
    try:
        pattern = re.compile(value)
    except re.error as error:
        raise _bad("name", value, f"a regular expression ({error})") from error
    return lambda pod: any(pattern.search(name) for name, _, _ in pod.apps)


def _app(value: str) -> _Test:
    return lambda pod: any(name == value for name, _, _ in pod.apps)


def _label(value: str) -> _Test:
    name, equals, _ = value.partition("=")
    if equals:
        return lambda pod: value in pod.labels
    return lambda pod: any(label.partition("=")[0] == name for label in pod.labels)


def _no_label(value: str) -> _Test:
    has = _label(value)
    return lambda pod: not has(pod)


def _state(value: str) -> _Test:
    states = _WORDS.get(value.lower().replace(" ", "-"))
    if states is None:
        raise _bad("status", value, f"one of {', '.join(sorted(_WORDS))}")
    return lambda pod: pod.state in states


def _names_image(value: str, reference: str, image_id: str) -> bool:
    """Tell whether an image is called `value`: whole, without transport, registry or tag, or by its ID."""
    if image_id.startswith((value, f"sha256:{value}")):
        return True
    bare = reference.partition("://")[2] or reference
    untagged = re.sub(r"(@sha256:[0-9a-f]+|:[^:/]+)\Z", "", bare)
    return value == reference or any(one == value or one.endswith(f"/{value}") for one in (bare, untagged))


def _image(value: str) -> _Test:
    if not value:
        raise _bad("image", value, "the name or the ID of an image")
    return lambda pod: any(_names_image(value, reference, image) for _, reference, image in pod.apps)


def _network(value: str) -> _Test:
    return lambda pod: any(line[:1] == (value,) for line in pod.networks)


def _exited(value: str) -> _Test:
    if not value.isascii() or not value.isdigit() or int(value) > _MAX_CODE:
        raise _bad("exited", value, f"an exit code, 0 to {_MAX_CODE}")
    return lambda pod: pod.exit_code == int(value)


def _until(value: str, now_ns: int) -> _Test:
    from secrun.pod.log import moment

    until = moment(value, now_ns, "--filter until:")
    return lambda pod: pod.created_ns < until


_KEYS: Mapping[str, Callable[[str], _Test]] = {
    "id": _id,
    "name": _name,
    "app": _app,
    "label": _label,
    "label!": _no_label,
    "status": _state,
    "state": _state,
    "image": _image,
    "ancestor": _image,
    "network": _network,
    "exited": _exited,
}
# Those that compare with another pod or with a time; a second one narrows further, as a second label does.
_BEFORE, _SINCE, _UNTIL = "before", "since", "until"
_NARROWING = ("label", "label!")


def _split(text: str) -> tuple[str, str]:
    """Return key and value; `label!=x` is podman's way to say that there is no such label."""
    key, equals, value = text.partition("=")
    if not equals or key not in {*_KEYS, _BEFORE, _SINCE, _UNTIL}:
        known = ", ".join((*_KEYS, _BEFORE, _SINCE, _UNTIL))
        raise UsageError(
            f"--filter {text[:80]!r} is not KEY=VALUE with a key that pods have",
            hint=f"keys: {known}",
            code="usage-filter",
        )
    return key, value


def parse(texts: Sequence[str], now_ns: int, created: Callable[[str], int]) -> Selection:
    """Parse filters; different keys must all hold, of one key's values any, of labels and times all.

    `created` returns when the pod was created (nanoseconds since the epoch) that `before` or `since` names.
    Raises UsageError.
    """
    groups: list[list[_Test]] = []
    shared: dict[Callable[[str], _Test], list[_Test]] = {}
    ends = False
    for text in texts:
        key, value = _split(text)
        if key in (_BEFORE, _SINCE, _UNTIL):
            groups.append([_in_time(key, value, now_ns, created)])
        elif key in _NARROWING:
            groups.append([_KEYS[key](value)])
        else:
            make = _KEYS[key]
            if make not in shared:
                shared[make] = []
                groups.append(shared[make])
            shared[make].append(make(value))
            ends = ends or make is _exited
    return Selection(groups=tuple(map(tuple, groups)), needs_ends=ends)


def _in_time(key: str, value: str, now_ns: int, created: Callable[[str], int]) -> _Test:
    if key == _UNTIL:
        return _until(value, now_ns)
    at = created(value)
    if key == _BEFORE:
        return lambda pod: pod.created_ns < at
    return lambda pod: pod.created_ns > at


_SORT: Mapping[str, Callable[[Glance], tuple[int | str, ...]]] = {
    "created": lambda pod: (pod.created_ns,),
    "started": lambda pod: (pod.started_ns or 0,),
    "uuid": lambda pod: (pod.uuid,),
    "app": lambda pod: tuple(name for name, _, _ in pod.apps),
    "image": lambda pod: tuple(reference for _, reference, _ in pod.apps),
    "state": lambda pod: (str(pod.state),),
}
SORT_KEYS = tuple(_SORT)


def arrange(
    pods: Sequence[Glance], *, key: str = "created", backwards: bool = False, last: int | None = None
) -> list[Glance]:
    """Sort pods by one of SORT_KEYS, then by creation; of all only the `last` that were created."""
    seen = sorted(pods, key=lambda pod: pod.created_ns)
    if last is not None:
        seen = seen[max(0, len(seen) - last) :]
    return sorted(seen, key=_SORT[key], reverse=backwards)
