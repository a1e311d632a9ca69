"""Keys that detach, and what is asked of a shim for those who attach or enter."""

import pytest

from secrun.errors import UsageError
from secrun.pod import client, detachkeys
from secrun.pod.attach import AttachRequest, attach_request, joined
from secrun.pod.enter import EnterRequest, client_streams, exec_request
from secrun.record import replace
from support.manifests import app


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("ctrl-p,ctrl-q", b"\x10\x11"),
        ("ctrl-P", b"\x10"),
        ("ctrl-@,ctrl-[,ctrl-\\,ctrl-],ctrl-^,ctrl-_", b"\x00\x1b\x1c\x1d\x1e\x1f"),
        ("~,.", b"~."),
        ("", b""),
    ],
)
def test_keys_are_what_a_terminal_sends_for_them(text, sent):
    assert detachkeys.parse(text) == sent


@pytest.mark.parametrize(
    "text", ["ctrl-", "ctrl-1", "ctrl-pq", "ab", ",", "a,", "é", "\x10", ",".join("a" * 17)]
)
def test_keys_that_no_terminal_has_are_refused(text):
    with pytest.raises(UsageError, match="--detach-keys"):
        detachkeys.parse(text)


def test_the_agent_is_told_bytes_and_nothing_of_no_keys():
    assert detachkeys.words(b"\x10\x11") == ["--detach-keys", "16,17"]
    assert detachkeys.words(b"") == []


@pytest.mark.parametrize(
    ("stdin", "terminal", "wanted", "interactive", "raw"),
    [
        (True, True, True, True, True),
        (True, True, False, False, False),
        (True, False, True, True, False),
        (False, True, True, False, False),
        (False, False, True, False, False),
    ],
)
def test_an_app_gets_input_only_if_it_has_one_and_the_caller_wants(
    stdin, terminal, wanted, interactive, raw
):
    request = AttachRequest(app=None, stdin=wanted, sig_proxy=True, detach_keys=b"")
    streams = joined(app(stdin=stdin, terminal=terminal), request)
    assert (streams.interactive, streams.terminal) == (interactive, raw)


def test_only_who_types_sets_the_size():
    typing = client.Streams(interactive=True, terminal=True)
    assert attach_request(typing, (24, 80)) == bytes.fromhex("81 07 1800 5000")
    looking = client.Streams(interactive=False, terminal=False)
    assert attach_request(looking, (24, 80)) == bytes.fromhex("81 03 0000 0000")


def test_a_command_that_is_left_alone_is_joined_with_nothing():
    streams = client.Streams(interactive=False, terminal=True)
    request = EnterRequest(
        app=None, argv=("sh",), user=None, workdir=None, env=(), streams=streams, detach=True
    )
    frame = exec_request({"env": ["PATH=/bin"], "cwd": "/"}, request)
    assert frame[:2] == bytes([0x85, client.STDOUT | client.STDERR | client.TTY | client.ALONE])
    assert client_streams(request) == client.Streams(interactive=False, terminal=False)
    assert client_streams(replace(request, detach=False)) == streams
