"""The order in which the renderer's worker gives up its rights, without root."""

import os
import resource
from collections.abc import Callable

import pytest

from secrun import syscalls
from secrun.image.rootfs import limits, sandbox
from secrun.image.rootfs.sandbox import give_up_rights, lower_limit

Call = tuple[object, ...]


class Recorder:
    """A kernel that notes what it is asked."""

    def __init__(self, abi: int = 3, fail: str = "") -> None:
        self.calls: list[Call] = []
        self._abi = abi
        self._fail = fail

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*arguments: object, **options: object) -> int:
            self.calls.append((name, *arguments, *options.values()))
            if name == self._fail:
                raise PermissionError(1, "Operation not permitted")
            return self._abi if name.startswith("landlock") else 0

        return call

    def names(self) -> list[object]:
        return [call[0] for call in self.calls]


@pytest.fixture
def as_user(monkeypatch: pytest.MonkeyPatch) -> Callable[[Recorder, int], None]:
    """Let the process seem to be a user, and record its changes of identity and limits."""

    def patch(recorder: Recorder, uid: int) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: uid)
        monkeypatch.setattr(
            resource, "setrlimit", lambda kind, pair: recorder.calls.append(("limit", kind, pair))
        )
        for name in ("setgroups", "setresgid", "setresuid"):
            monkeypatch.setattr(os, name, getattr(recorder, name))

    return patch


IDENTITY = ["keep_capabilities", "setgroups", "setresgid", "setresuid", "set_capabilities"]
REST = ["unshare", "drop_bounding_set", "set_capabilities"]
LAST = ["dumpable", "no_new_privs", "landlock_abi", "landlock_deny_all", "filter_calls"]


def test_root_becomes_nobody_before_it_leaves_the_namespaces(
    as_user: Callable[[Recorder, int], None],
) -> None:
    kernel = Recorder()
    as_user(kernel, 0)
    give_up_rights(kernel, b"program")
    names = [name for name in kernel.names() if name != "limit"]
    assert names == IDENTITY + REST + LAST
    uid = 0x70000000 + os.getpid()
    assert ("setresuid", uid, uid, uid) in kernel.calls
    assert ("setresgid", uid, uid, uid) in kernel.calls
    assert ("setgroups", []) in kernel.calls
    capabilities = [call[1] for call in kernel.calls if call[0] == "set_capabilities"]
    # One lets the other user make namespaces, one lets it open what root named, and then both are gone.
    assert capabilities == [1 << syscalls.CAP_SYS_ADMIN | 1 << syscalls.CAP_DAC_READ_SEARCH, 0]
    assert kernel.calls[-1] == ("filter_calls", b"program")


def test_who_reads_for_the_users_of_a_pod_enters_their_namespace_and_keeps_one_right_there(
    as_user: Callable[[Recorder, int], None],
) -> None:
    kernel = Recorder()
    as_user(kernel, 0)
    give_up_rights(kernel, b"", users=7, readable=(5,))
    names = [name for name in kernel.names() if name != "limit"]
    assert names == [*IDENTITY, "setns", *REST, *LAST[:3], "landlock_read_only", LAST[-1]]
    assert ("setns", 7, syscalls.CLONE_NEWUSER) in kernel.calls
    (left,) = [call[1] for call in kernel.calls if call[0] == "unshare"]
    assert isinstance(left, int)
    # Another namespace of users would take the right to read with it.
    assert left & syscalls.CLONE_NEWUSER == 0
    assert left & syscalls.CLONE_NEWNET
    capabilities = [call[1] for call in kernel.calls if call[0] == "set_capabilities"]
    assert capabilities[-1] == 1 << syscalls.CAP_DAC_READ_SEARCH


def test_files_are_opened_by_the_other_user_before_the_last_capability_goes(
    as_user: Callable[[Recorder, int], None],
) -> None:
    kernel = Recorder()
    as_user(kernel, 0)
    give_up_rights(kernel, b"", opening=lambda: kernel.calls.append(("opening",)))
    names = kernel.names()
    assert names.index("setresuid") < names.index("opening") < names.index("unshare")


def test_other_users_keep_their_identity_and_lose_the_rest(as_user: Callable[[Recorder, int], None]) -> None:
    kernel = Recorder()
    as_user(kernel, 1000)
    give_up_rights(kernel, b"program")
    assert [name for name in kernel.names() if name != "limit"] == REST + LAST
    (unshare,) = [call for call in kernel.calls if call[0] == "unshare"]
    for flag in ("NEWUSER", "NEWNET", "NEWNS", "NEWIPC", "NEWUTS", "NEWCGROUP"):
        value = getattr(syscalls, f"CLONE_{flag}")
        assert isinstance(unshare[1], int)
        assert unshare[1] & value, flag


def test_without_landlock_the_rest_still_holds(as_user: Callable[[Recorder, int], None]) -> None:
    kernel = Recorder(abi=0)
    as_user(kernel, 0)
    give_up_rights(kernel, b"program")
    assert "landlock_deny_all" not in kernel.names()
    assert "no_new_privs" in kernel.names()


@pytest.mark.parametrize(
    "step",
    ["unshare", "drop_bounding_set", "no_new_privs", "landlock_deny_all", "filter_calls", "setresuid"],
)
def test_no_step_may_fail(as_user: Callable[[Recorder, int], None], step: str) -> None:
    kernel = Recorder(fail=step)
    as_user(kernel, 0)
    with pytest.raises(PermissionError):
        give_up_rights(kernel, b"program")
    assert kernel.names()[-1] == step


def test_limits_are_only_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[int, tuple[int, int]]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda kind, pair: done.append((kind, pair)))
    for hard, expected in ((resource.RLIM_INFINITY, 500), (1000, 500), (100, 100)):
        monkeypatch.setattr(resource, "getrlimit", lambda _kind, hard=hard: (hard, hard))
        lower_limit(resource.RLIMIT_NOFILE, 500)
        assert done.pop() == (resource.RLIMIT_NOFILE, (expected, expected))


def test_every_resource_that_can_hurt_is_limited() -> None:
    named = dict(sandbox._LIMITS)
    assert named[resource.RLIMIT_CORE] == 0
    assert named[resource.RLIMIT_AS] == limits.WORKER_ADDRESS_SPACE
    assert {
        resource.RLIMIT_FSIZE,
        resource.RLIMIT_NOFILE,
        resource.RLIMIT_NPROC,
        resource.RLIMIT_CPU,
    } <= set(named)


def test_a_second_thread_is_a_defect_of_the_caller() -> None:
    import threading

    release = threading.Event()
    thread = threading.Thread(target=release.wait)
    thread.start()
    try:
        with pytest.raises(RuntimeError, match="threads"):
            sandbox.run_confined(
                sandbox.Confined(body=dict, prepare=lambda: None, keep_fds=()), syscalls.LinuxSyscalls()
            )
    finally:
        release.set()
        thread.join()
