"""Who fetches for root."""

import pwd

import pytest

from secrun.errors import HostError
from secrun.image import account


def a_user(uid: int, gid: int) -> pwd.struct_passwd:
    return pwd.struct_passwd(("secrun", "x", uid, gid, "", "/", "/usr/sbin/nologin"))


def test_without_its_user_root_fetches_nothing_and_is_told_how_to_make_it(monkeypatch):
    def missing(name: str) -> pwd.struct_passwd:
        raise KeyError(name)

    monkeypatch.setattr(pwd, "getpwnam", missing)
    with pytest.raises(HostError) as caught:
        account.fetching()
    assert caught.value.code == "host-user"
    assert "useradd --system" in caught.value.hint


@pytest.mark.parametrize(("uid", "gid"), [(0, 5), (5, 0)])
def test_a_user_that_is_root_by_another_name_is_refused(monkeypatch, uid, gid):
    monkeypatch.setattr(pwd, "getpwnam", lambda name: a_user(uid, gid))
    with pytest.raises(HostError):
        account.fetching()
