"""--pod-manifest: the same pod as on the command line, and nothing else."""

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secrun.cli import podmanifest
from secrun.cli.main import find_verb
from secrun.cli.parse import parse_verb
from secrun.cli.table import Arguments, Kind, Option
from secrun.errors import UsageError

SHIPPED = Path(podmanifest.__file__).parent.parent / "pod-manifest.schema.json"
RUN = find_verb(["run"])[0]


def parsed(*words: str) -> Arguments:
    return parse_verb("secrun run", RUN, words)


def document(**fields: object) -> dict[str, object]:
    return {"schema": podmanifest.SCHEMA, "apps": [{"image": "web:1"}], **fields}


def load(tmp_path: Path, value: object, *words: str) -> Arguments:
    file = tmp_path / "pod.json"
    file.write_text(value if isinstance(value, str) else json.dumps(value))
    return parsed(f"--pod-manifest={file}", *words)


def refused(tmp_path: Path, value: object, *words: str) -> str:
    with pytest.raises(UsageError) as caught:
        load(tmp_path, value, *words)
    return caught.value.message.replace(f"{tmp_path}/", "") + caught.value.hint


def test_a_file_and_a_command_line_give_the_same_pod(tmp_path: Path):
    found = load(
        tmp_path,
        document(
            hostname="web",
            publish=["8080:80"],
            tty=True,
            apps=[
                {"image": "web:1", "args": ["serve", "--", "---"], "env": ["A=b"], "memory": "64m"},
                {"image": "cache:2", "name": "cache", "read-only": True, "pids-limit": 7},
            ],
        ),
    )
    wanted = parsed(
        *("--hostname=web", "-p", "8080:80", "-t", "web:1", "-e", "A=b", "-m", "64m", "---"),
        *("cache:2", "--name=cache", "--read-only", "--pids-limit=7"),
    )
    for mine, theirs in zip(found.apps, wanted.apps, strict=True):
        own = {key: value for key, value in theirs.values.items() if key in mine.values}
        assert mine.values == own
    assert found.apps[0].trailing == ("serve", "--", "---")
    assert {**found.values, "pod_manifest": None} == {
        **wanted.values,
        **{key: found.values[key] for key in ("image", "pod_manifest", "env", "memory")},
        "pod_manifest": None,
    }


def sample(option: Option) -> object:
    match option.kind:
        case Kind.FLAG:
            return True
        case Kind.INTEGER:
            return 3
        case Kind.LIST:
            return ["x"]
    return option.choices[0] if option.choices else "x"


@pytest.mark.parametrize("key", podmanifest.app_options())
def test_every_option_of_an_app_can_be_said(tmp_path: Path, key: str):
    option = podmanifest.app_options()[key]
    (app,) = load(tmp_path, document(apps=[{"image": "web:1", key: sample(option)}])).apps
    assert app.values[option.dest] == sample(option)


@pytest.mark.parametrize("key", podmanifest.pod_options())
def test_every_option_of_a_pod_can_be_said(tmp_path: Path, key: str):
    option = podmanifest.pod_options()[key]
    assert load(tmp_path, document(**{key: sample(option)})).values[option.dest] == sample(option)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("", "pod.json is not valid JSON"),
        ("[]", "pod.json is a JSON list, expected an object"),
        ('{"a": 1, "a": 2}', "duplicate key 'a'"),
        ("[" * 100_000, "nests too deep"),
        (" " * ((1 << 20) + 1), "the limit is 1048576"),
        ("{}", "schema is 'None', expected 'secrun.dev/pod-request/v1'"),
        (document(apps=[]), "apps is not a list with at least one app"),
        (document(apps={}), "apps is not a list with at least one app"),
        (document(apps=[3]), "apps[0] is a JSON number, expected an object"),
        (document(apps=[{}]), "apps[0] names no image"),
        (document(apps=[{"image": ""}]), "apps[0] names no image"),
        (document(apps=[{"image": "x", "args": "y"}]), "apps[0].args is not a list of strings"),
        (document(apps=[{"image": "x", "memori": "1"}]), "unknown key 'memori'did you mean memory?"),
        (
            document(apps=[{"image": "x", "memory": 64}]),
            "apps[0].memory is a JSON number, expected a string",
        ),
        (
            document(apps=[{"image": "x", "env": ["a", 1]}]),
            "apps[0].env is a JSON array, expected a list of",
        ),
        (document(apps=[{"image": "x", "pids-limit": True}]), "is a JSON boolean, expected an integer"),
        (document(apps=[{"image": "x", "read-only": None}]), "is a JSON null, expected true or false"),
        (document(accel="warp"), "accel is 'warp', expected one of auto, kvm, tcg"),
        (document(detach=True), "unknown key 'detach'"),
        (document(**{"insecure-options": ["image"]}), "unknown key 'insecure-options'"),
    ],
)
def test_what_is_no_pod_is_refused_with_the_place(tmp_path: Path, value: object, said: str):
    assert said in refused(tmp_path, value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(UsageError, match=r"nowhere\.json: No such file"):
        parsed(f"--pod-manifest={tmp_path}/nowhere.json")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["img"], "--pod-manifest excludes IMAGE"),
        (["--memory=5m"], "--pod-manifest excludes --memory"),
        (["--", "x"], "--pod-manifest excludes -- ARGUMENT"),
        (["--", "x", "---", "img"], "--pod-manifest excludes -- ARGUMENT, ---"),
        (["--hostname=b"], "both say --hostname"),
    ],
)
def test_what_the_file_says_is_not_said_beside_it(tmp_path: Path, words: list[str], said: str):
    assert said in refused(tmp_path, document(hostname="a"), *words)


def test_the_callers_own_matters_stay_on_the_command_line(tmp_path: Path):
    found = load(tmp_path, document(), "-d", "--rm", "--pull=never", "--insecure-options=image")
    assert found.flag("detach")
    assert found.many("insecure_options") == ("image",)
    assert found.apps[0].text("image") == "web:1"


def test_the_shipped_schema_is_that_of_the_option_table():
    assert json.loads(SHIPPED.read_text()) == podmanifest.json_schema()


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=12,
    )
)
def test_whatever_a_file_holds_is_a_pod_or_an_error_of_usage(tmp_path_factory, value: object):
    folder = tmp_path_factory.mktemp("pod")
    for content in (value, document(apps=[value]), document(apps=[{"image": "x", "env": value}])):
        with contextlib.suppress(UsageError):
            assert load(folder, content).apps
