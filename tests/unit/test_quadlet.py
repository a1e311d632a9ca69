"""Unit files: what they become, and what is refused."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secrun.cli import quadlet
from secrun.cli.main import find_verb, main
from secrun.errors import UsageError

RUN = {flag for option in find_verb(["run"])[0].options for flag in option.flags}


def rendered(text: str, name: str = "web.container") -> str:
    return quadlet.render(quadlet.parse(name, text), "/usr/bin/secrun")


def start(text: str, name: str = "web.container") -> str:
    (line,) = [line for line in rendered(text, name).splitlines() if line.startswith("ExecStart=")]
    return line.removeprefix("ExecStart=/usr/bin/secrun run --rm ")


def test_a_container_becomes_a_service():
    text = rendered(
        "[Unit]\nDescription=the web\n[Container]\nImage=docker://r.example/web:1\nReadOnly=yes\n"
        "PublishPort=8080:80\nEnvironment=A=1 'B=two words'\nExec=serve --fast \"$HOME\" %i\n"
        "[Service]\nRestart=on-failure\n[Install]\nWantedBy=multi-user.target\n"
    )
    assert text.splitlines() == [
        "# Made by secrun generate from web.container",
        "[Unit]",
        "Wants=network-online.target",
        "After=network-online.target",
        "Description=the web",
        "",
        "[Service]",
        "Type=notify",
        "KillMode=mixed",
        "TimeoutStopSec=25",
        (
            'ExecStart=/usr/bin/secrun run --rm --read-only --publish=8080:80 --env=A=1 "--env=B=two words" '
            'docker://r.example/web:1 -- serve --fast "$HOME" %i'
        ),
        "Restart=on-failure",
        "",
        "[Install]",
        "WantedBy=multi-user.target",
    ]


def test_a_pod_runs_its_manifest():
    found = start("[Pod]\nManifest=/etc/pods/web.json\nHostName=web\n", "web.pod")
    assert found == "--hostname=web --pod-manifest=/etc/pods/web.json"


def test_comments_joined_lines_and_taken_back_values():
    text = (
        "# a comment\n[Container]\n; another\nImage=x\nAddCapability=CHOWN\nAddCapability=\n"
        "Environment=A=1 \\\n  # in between\n  B=2\nX-Own=\n[X-Mine]\nWhatever=1\n"
    )
    assert start(text) == "--env=A=1 --env=B=2 x"


def test_a_longer_stop_is_waited_for():
    assert "TimeoutStopSec=75\n" in rendered("[Container]\nImage=x\nStopTimeout=60\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[Container]\nImage=x\nRootfs=/y\n", "line 3: Rootfs= cannot be honoured"),
        ("[Container]\nImage=x\nAutoUpdate=registry\n", "line 3: AutoUpdate= cannot be honoured"),
        ("[Container]\nimage=x\n", "line 2: image= cannot be honoured"),
        ("[Container]\nExec=x\n", "names no Image="),
        ("Image=x\n", "line 1: Image= stands before any section"),
        ("[Container]\nhello\n", "line 2: expected [Section] or Key=Value, got 'hello'"),
        ("[Container]\nImage=x\nReadOnly=perhaps\n", "ReadOnly=perhaps is neither true nor false"),
        ("[Container]\nImage=x\nEnvironment='a\n", "line 3: Environment='a: No closing quotation"),
        ("[Container]\nImage=x\n[Service]\nExecStart=y\n", "line 4: ExecStart= is not the file's to say"),
        ("[Container]\nImage=x\nStopTimeout=1min\n", "line 3: StopTimeout=1min is no number of seconds"),
        ("[Kube]\nYaml=x\n", "unknown section [Kube]"),
        ("", "names no Image="),
    ],
)
def test_what_cannot_be_honoured_is_refused_with_its_line(text: str, said: str):
    with pytest.raises(UsageError) as caught:
        rendered(text)
    assert said in caught.value.message


def test_a_key_that_is_nearly_right_is_guessed():
    with pytest.raises(UsageError) as caught:
        rendered("[Container]\nImage=x\nPublishPorts=1:1\n")
    assert caught.value.hint == "did you mean PublishPort=?"


def test_another_ending_is_refused():
    with pytest.raises(UsageError, match=r"ends in \.container or \.pod"):
        rendered("[Kube]\n", "web.kube")


@pytest.mark.parametrize("key", [*quadlet.APP_KEYS, *quadlet.POD_KEYS])
def test_every_key_is_an_option_of_run(key: str):
    flag, kind = {**quadlet.APP_KEYS, **quadlet.POD_KEYS}[key]
    assert flag in RUN
    assert flag in start(f"[Container]\nImage=x\n{key}={'true' if kind is quadlet.Kind.FLAG else 7}\n")


def test_files_become_units_and_links(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    good, bad = tmp_path / "web.container", tmp_path / "bad.container"
    good.write_text("[Container]\nImage=x\n[Install]\nWantedBy=multi-user.target\nRequiredBy=b.service\n")
    bad.write_text("[Container]\nImage=x\nRootfs=/y\n")
    out = tmp_path / "out"
    assert main(["generate", "--output", str(out), str(bad), str(good)]) == 2
    assert "bad.container, line 3" in capsys.readouterr().err
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*") if not path.is_dir()) == [
        "b.service.requires/web.service",
        "multi-user.target.wants/web.service",
        "web.service",
    ]
    assert (out / "multi-user.target.wants/web.service").resolve() == out / "web.service"
    assert main(["generate", str(good)]) == 0
    assert capsys.readouterr().out == (out / "web.service").read_text()


def test_no_link_leads_out_of_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "web.container"
    file.write_text("[Container]\nImage=x\n[Install]\nWantedBy=../../evil\n")
    assert main(["generate", "--output", str(tmp_path / "out"), str(file)]) == 2
    assert "is no unit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "said"), [(b"\xff", "is not UTF-8"), (b"x" * 300_000, "more than 262144 bytes")]
)
def test_files_that_are_none_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], data, said):
    file = tmp_path / "web.container"
    file.write_bytes(data)
    assert main(["generate", str(file)]) == 2
    assert said in capsys.readouterr().err


@given(st.text(max_size=200))
def test_any_text_is_a_unit_or_an_error_of_usage(text: str):
    try:
        found = rendered(f"[Container]\nImage=x\n{text}")
    except UsageError as error:
        assert error.code == "usage-unit-file"  # noqa: PT017 - either outcome is fine
    else:
        assert "ExecStart=/usr/bin/secrun run --rm " in found
