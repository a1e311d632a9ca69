"""Records behave as the frozen dataclasses that type checkers take them for."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secrun.record import field, ordered, record, replace, row


@record
class Point:
    x: int
    y: int = 2
    tags: tuple[str, ...] = field(default_factory=tuple)
    secret: str = field(default="", repr=False)
    note: str = field(default="", compare=False)

    @property
    def total(self) -> int:
        return self.x + self.y


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Twin:
    x: int
    y: int = 2
    tags: tuple[str, ...] = dataclasses.field(default_factory=tuple)
    secret: str = dataclasses.field(default="", repr=False)
    note: str = dataclasses.field(default="", compare=False)


@ordered
class Version:
    major: int
    minor: int


@record
class Even:
    number: int

    def __post_init__(self) -> None:
        if self.number % 2:
            raise ValueError(self.number)


@row
class Pair:
    left: int
    right: int


VALUES = st.fixed_dictionaries(
    {"x": st.integers(0, 3)},
    optional={"y": st.integers(0, 3), "secret": st.text(max_size=1), "note": st.text(max_size=1)},
)


@given(VALUES, VALUES)
def test_equality_hash_and_text_are_those_of_a_dataclass(first, second):
    a, b = Point(**first), Point(**second)
    twin_a, twin_b = Twin(**first), Twin(**second)
    assert (a == b) == (twin_a == twin_b)
    assert a != b or hash(a) == hash(b)
    assert repr(a) == repr(twin_a).replace("Twin", "Point")


def test_a_record_cannot_be_changed_nor_grow():
    point = Point(x=1)
    for name in ("x", "new"):
        with pytest.raises(AttributeError):
            setattr(point, name, 5)
    with pytest.raises(AttributeError):
        del point.x
    assert not hasattr(point, "__dict__")


@pytest.mark.parametrize(
    "kwargs", [{}, {"x": 1, "z": 2}, {"z": 1, "y": 1}, dict.fromkeys(("y", "tags", "secret", "note", "z"))]
)
def test_missing_and_unknown_fields_are_errors(kwargs):
    with pytest.raises(TypeError, match=r"'x'|'z'"):
        Point(**kwargs)


def test_rows_take_positions_but_neither_too_many_nor_twice():
    assert Pair(1, right=2) == Pair(left=1, right=2)
    for args, kwargs in (((1, 2, 3), {}), ((1,), {"left": 1, "right": 2}), ((1,), {})):
        with pytest.raises(TypeError):
            Pair(*args, **kwargs)


def test_ordered_records_sort_and_compare_with_their_own_kind_only():
    assert sorted([Version(2, 0), Version(1, 9)]) == [Version(1, 9), Version(2, 0)]
    assert Version(1, 2) != Pair(1, 2)
    with pytest.raises(TypeError):
        _ = Version(1, 2) < Pair(1, 2)


def test_replace_changes_what_is_named():
    assert replace(Point(x=1, y=5), y=6) == Point(x=1, y=6)
    with pytest.raises(TypeError):
        replace(Point(x=1), z=1)


def test_methods_properties_docs_and_patterns_survive():
    point = Point(x=1)
    assert point.total == 3
    match Pair(1, 2):
        case Pair(left, right):
            assert (left, right) == (1, 2)
    assert Point.__name__ == "Point"
    assert Point.__module__ == __name__


def test_a_record_may_check_itself():
    assert Even(number=4).number == 4
    for make in (lambda: Even(number=3), lambda: replace(Even(number=4), number=3)):
        with pytest.raises(ValueError, match="3"):
            make()
