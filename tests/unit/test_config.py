"""Settings: which file wins, what is refused, and what a user is told about it."""

from pathlib import Path

import pytest

from secrun import config
from secrun.cli.main import main
from secrun.errors import UsageError

KEYS = ("root", "attest.mode", "attest.tcti")


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, ...]:
    return tuple(tmp_path / name for name in ("etc", "run", "usr"))


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def load(places: tuple[Path, ...], file: Path | None = None) -> dict[str, str]:
    return {key: setting.value for key, setting in config.load(KEYS, file, places).items()}


def test_without_files_there_are_no_settings(places):
    assert load(places) == {}


def test_the_first_main_file_hides_the_others(places):
    write(places[2] / "secrun.toml", 'root = "/usr-root"\n[attest]\nmode = "off"\n')
    write(places[1] / "secrun.toml", 'root = "/run-root"\n')
    assert load(places) == {"root": "/run-root"}


def test_drop_ins_come_after_the_main_file_in_the_order_of_their_names(places):
    write(places[0] / "secrun.toml", 'root = "/main"\n')
    write(places[2] / "secrun.toml.d/20-b.toml", 'root = "/b"\n')
    write(places[0] / "secrun.toml.d/10-a.toml", 'root = "/a"\n[attest]\nmode = "preferred"\n')
    assert load(places) == {"root": "/b", "attest.mode": "preferred"}


def test_a_drop_in_hides_its_namesake_in_a_lower_place_even_when_it_is_empty(places):
    write(places[2] / "secrun.toml.d/10-a.toml", 'root = "/vendor"\n')
    write(places[0] / "secrun.toml.d/10-a.toml", "")
    assert load(places) == {}


def test_other_names_in_the_folder_are_not_read(places):
    write(places[0] / "secrun.toml.d/10-a.toml.bak", "not TOML at all [")
    assert load(places) == {}


def test_a_file_that_is_named_is_read_alone(places, tmp_path):
    write(places[0] / "secrun.toml", 'root = "/main"\n')
    named = write(tmp_path / "mine.toml", '[attest]\ntcti = "device:/dev/tpmrm0"\n')
    assert load(places, named) == {"attest.tcti": "device:/dev/tpmrm0"}


def test_the_origin_of_a_value_is_its_file(places):
    path = write(places[1] / "secrun.toml", 'root = "/r"\n')
    assert config.load(KEYS, None, places)["root"].origin == str(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("root = ", "is not TOML"),
        ('rot = "/x"\n', "unknown key 'rot'"),
        ('[attest]\nmood = "off"\n', "unknown key 'attest.mood'"),
        ("root = true\n", "root is a bool, expected a string"),
        ("root = ['/x']\n", "root is a list, expected a string"),
        ("#" * (config.MAX_BYTES + 1), f"more than {config.MAX_BYTES} bytes"),
    ],
)
def test_a_file_that_cannot_be_understood_is_an_error_that_names_it(places, text, said):
    path = write(places[0] / "secrun.toml", text)
    with pytest.raises(UsageError, match=str(path)) as caught:
        load(places)
    assert said in caught.value.message


def origins(places: tuple[Path, ...], file: Path | None = None, **environ: Path | str) -> dict[str, str]:
    """Return what is set and by what, as the environment asks."""
    words = {name: str(value) for name, value in environ.items()}
    return {
        key: f"{setting.value} from {setting.origin}"
        for key, setting in config.load(KEYS, file, places, words).items()
    }


def test_the_environment_names_one_file_instead_of_all_and_one_that_is_read_last(places, tmp_path):
    main_file = write(places[0] / "secrun.toml", 'root = "/main"\n[attest]\nmode = "off"\n')
    write(places[0] / "secrun.toml.d/10-a.toml", '[attest]\nmode = "preferred"\n')
    mine = write(tmp_path / "mine.toml", 'root = "/mine"\n')
    last = write(tmp_path / "last.toml", 'root = "/last"\n')
    assert origins(places, SECRUN_CONF=mine) == {"root": f"/mine from {mine} ($SECRUN_CONF)"}
    over = f"/last from {last} ($SECRUN_CONF_OVERRIDE)"
    assert origins(places, SECRUN_CONF_OVERRIDE=last)["root"] == over
    assert origins(places, SECRUN_CONF_OVERRIDE=last)["attest.mode"].startswith("preferred from ")
    assert origins(places, SECRUN_CONF=mine, SECRUN_CONF_OVERRIDE=last) == {"root": over}
    assert origins(places, SECRUN_CONF="", SECRUN_CONF_OVERRIDE="")["root"] == f"/main from {main_file}"


def test_a_file_on_the_command_line_leaves_the_environment_without_a_say(places, tmp_path):
    named = write(tmp_path / "named.toml", 'root = "/named"\n')
    absent = tmp_path / "absent.toml"
    found = origins(places, named, SECRUN_CONF=absent, SECRUN_CONF_OVERRIDE=absent)
    assert found == {"root": f"/named from {named}"}


@pytest.mark.parametrize("variable", [config.INSTEAD, config.LAST])
def test_a_file_that_the_environment_names_must_be_there(places, tmp_path, variable):
    with pytest.raises(UsageError, match=r"absent.toml: No such file"):
        origins(places, **{variable: tmp_path / "absent.toml"})


def test_every_setting_tells_its_variable(tmp_path, capsys, monkeypatch):
    file = write(tmp_path / "c.toml", '[attest]\nmode = "off"\n')
    monkeypatch.setenv("SECRUN_CONF", str(file))
    monkeypatch.setenv("CNI_PATH", "/plugins")
    assert main(["config", "show", "--origin"]) == 0
    out = capsys.readouterr().out
    assert f'attest.mode = "off"  # {file} ($SECRUN_CONF)\n' in out
    assert 'network.plugins = "/plugins"  # $CNI_PATH\n' in out
    assert main(["--cni-path=/mine", "config", "show", "--origin"]) == 0
    assert 'network.plugins = "/mine"  # --cni-path\n' in capsys.readouterr().out


def test_a_missing_named_file_is_an_error(places, tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        load(places, tmp_path / "absent.toml")


def show(tmp_path: Path, capsys, text: str, *options: str) -> str:
    file = write(tmp_path / "c.toml", text)
    assert main(["--config", str(file), *options, "config", "show", "--origin"]) == 0
    return capsys.readouterr().out


def test_an_option_beats_the_file_and_the_file_beats_the_default(tmp_path, capsys):
    out = show(tmp_path, capsys, 'run_root = "/r"\n[attest]\nmode = "off"\n', "--attest=preferred")
    assert 'attest.mode = "preferred"  # --attest\n' in out
    assert f'run_root = "/r"  # {tmp_path}/c.toml\n' in out
    assert 'root = "/var/lib/secrun"  # default\n' in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--attest=perhaps", "list"], "--attest: attest.mode is 'perhaps', expected required"),
        (["--config", "FILE", "list"], "FILE: attest.mode is 'maybe', expected required"),
    ],
)
def test_a_value_that_is_no_choice_is_refused_with_its_origin(tmp_path, capsys, words, said):
    file = write(tmp_path / "c.toml", '[attest]\nmode = "maybe"\n')
    assert main([word.replace("FILE", str(file)) for word in words]) == 2
    assert said.replace("FILE", str(file)) in capsys.readouterr().err
