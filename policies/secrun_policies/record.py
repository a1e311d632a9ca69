"""Frozen records for the modules that every start of secrun loads.

To type checkers a record is a frozen dataclass (PEP 681). It exists for its price: the standard library
compiles half a dozen functions for each frozen, slotted dataclass, a millisecond of CPU, and a start loads
some eighty classes. Records share theirs. Inheritance of fields and __post_init__ are left out.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar, dataclass_transform

__all__ = ["field", "ordered", "record", "replace", "row"]

T = TypeVar("T")

_set = object.__setattr__
_MISSING = object()


class Default:
    """What `field` says of a field."""

    __slots__ = ("compare", "make", "shown", "value")

    def __init__(
        self, value: object, make: Callable[[], object] | None, *, compare: bool, shown: bool
    ) -> None:
        self.value = value
        self.make = make
        self.compare = compare
        self.shown = shown


if TYPE_CHECKING:
    from dataclasses import field
else:

    def field(*, default=_MISSING, default_factory=None, compare=True, repr=True):  # noqa: A002, ANN001, ANN201 - dataclasses.field's own words
        """Describe a field as dataclasses.field does, by the four arguments that secrun uses."""
        return Default(default, default_factory, compare=compare, shown=repr)


class _Shape:
    """The fields of one record class."""

    __slots__ = ("compared", "defaults", "known", "names", "shown")

    def __init__(self, names: tuple[str, ...], defaults: dict[str, Default]) -> None:
        self.names = names
        self.known = frozenset(names)
        self.defaults = defaults
        self.compared = tuple(n for n in names if n not in defaults or defaults[n].compare)
        self.shown = tuple(n for n in names if n not in defaults or defaults[n].shown)


def _shape(value: object) -> _Shape:
    found: _Shape = getattr(value, "__record__")  # noqa: B009 - a plain attribute would need its own type
    return found


def _default(shape: _Shape, name: str, owner: object) -> object:
    default = shape.defaults.get(name)
    if default is not None and default.make is not None:
        return default.make()
    if default is None or default.value is _MISSING:
        raise TypeError(f"{type(owner).__name__} needs a value for {name!r}")
    return default.value


def _init(self: object, *args: object, **kwargs: object) -> None:
    shape = _shape(self)
    names = shape.names
    if args:
        _add_positions(self, names, args, kwargs)
    if kwargs.keys() != shape.known:
        if unknown := kwargs.keys() - shape.known:
            raise TypeError(f"{type(self).__name__} has no field {min(unknown)!r}")
        for name in shape.known - kwargs.keys():
            kwargs[name] = _default(shape, name, self)
    for name in names:
        _set(self, name, kwargs[name])


def _add_positions(
    owner: object, names: tuple[str, ...], args: tuple[object, ...], kwargs: dict[str, object]
) -> None:
    if len(args) > len(names):
        raise TypeError(f"{type(owner).__name__} takes {len(names)} values, got {len(args)}")
    given = dict(zip(names, args, strict=False))
    if clash := given.keys() & kwargs.keys():
        raise TypeError(f"{type(owner).__name__} got two values for {min(clash)!r}")
    kwargs |= given


def _values(self: object) -> tuple[object, ...]:
    return tuple(getattr(self, name) for name in _shape(self).compared)


def _eq(self: object, other: object) -> bool:
    return _values(self) == _values(other) if other.__class__ is self.__class__ else NotImplemented


def _lt(self: object, other: object) -> bool:
    return _values(self) < _values(other) if other.__class__ is self.__class__ else NotImplemented


def _hash(self: object) -> int:
    return hash(_values(self))


def _repr(self: object) -> str:
    shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in _shape(self).shown)
    return f"{type(self).__qualname__}({shown})"


def _frozen(self: object, name: str, *_: object) -> None:
    raise AttributeError(f"{type(self).__name__}.{name} is frozen")


def replace(value: T, **changes: object) -> T:
    """Return a record like `value` but for `changes`."""
    return type(value)(**({name: getattr(value, name) for name in _shape(value).names} | changes))


_SHARED: dict[str, object] = {
    "__init__": _init,
    "__eq__": _eq,
    "__hash__": _hash,
    "__repr__": _repr,
    "__setattr__": _frozen,
    "__delattr__": _frozen,
}


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def record(cls: type[T]) -> type[T]:
    """Make a frozen, slotted record of an annotated class; its fields are given by keyword."""
    return _build(cls, _SHARED)


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def row(cls: type[T]) -> type[T]:
    """Make a record whose few fields may be given by position."""
    return _build(cls, _SHARED)


@dataclass_transform(frozen_default=True, order_default=True, field_specifiers=(field,))
def ordered(cls: type[T]) -> type[T]:
    """Make a `row` that sorts by its fields."""
    return _build(cls, {**_SHARED, "__lt__": _lt})


def _build(cls: type[T], shared: dict[str, object]) -> type[T]:
    names = tuple(vars(cls).get("__annotations__", {}))
    space = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
    defaults: dict[str, Default] = {}
    for name in names:
        if name in space:
            value = space.pop(name)
            given = isinstance(value, Default)
            defaults[name] = value if given else Default(value, None, compare=True, shown=True)
    # As with dataclasses, slots need the class to be made again.
    made = {**shared, **space, "__slots__": names, "__match_args__": names}
    made["__record__"] = _Shape(names, defaults)
    again: type[T] = type(cls).__call__(type(cls), cls.__name__, cls.__bases__, made)
    return again
