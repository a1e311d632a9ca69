"""How many sockets a pod gets of its caller's, and what its app is told of them."""

import pytest

from secrun.errors import UsageError
from secrun.pod import sockets

PID = 4711
ACTIVATED = {"LISTEN_FDS": "2", "LISTEN_PID": str(PID), "LISTEN_FDNAMES": "web:admin"}


@pytest.mark.parametrize(
    ("asked", "caller", "wanted"),
    [
        (None, {}, 0),
        (None, ACTIVATED, 2),
        (2, ACTIVATED, 2),
        (0, ACTIVATED, 0),
        (3, {}, 3),
        (None, ACTIVATED | {"LISTEN_PID": "1"}, 0),
        (None, {"LISTEN_FDS": "2"}, 0),
        (None, ACTIVATED | {"LISTEN_FDS": "many"}, 0),
        (None, ACTIVATED | {"LISTEN_FDS": "\N{SUPERSCRIPT TWO}"}, 0),
    ],
)
def test_sockets_are_taken_when_they_were_meant_for_this_process_or_asked_for(
    asked: int | None, caller: dict[str, str], wanted: int
):
    assert sockets.count(asked, caller, PID) == wanted


@pytest.mark.parametrize(
    ("asked", "caller", "said"),
    [
        (1, ACTIVATED, "--preserve-fds=1 and LISTEN_FDS=2 contradict"),
        (33, {}, "at most 32 sockets"),
        (-1, {}, "at most 32 sockets"),
        (None, ACTIVATED | {"LISTEN_FDS": "33"}, "at most 32 sockets"),
    ],
)
def test_numbers_that_cannot_be_are_refused(asked: int | None, caller: dict[str, str], said: str):
    with pytest.raises(UsageError, match=said):
        sockets.count(asked, caller, PID)


def test_names_are_the_service_managers_where_they_fit():
    assert sockets.names(2, ACTIVATED) == ("web", "admin")
    assert sockets.names(3, ACTIVATED) == ("unknown",) * 3
    assert sockets.names(0, {}) == ()


def test_the_app_is_told_as_the_first_process_of_its_own_namespace():
    assert sockets.variables(("web", "admin")) == {
        "LISTEN_FDS": "2",
        "LISTEN_PID": "1",
        "LISTEN_FDNAMES": "web:admin",
    }
    assert sockets.variables(()) == {}
