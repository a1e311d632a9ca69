"""The SELinux module on a host: what it says for an installation, and what is done to the policy."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from secrun import selinux, selinuxmodule
from secrun.errors import ExternalError, HostError
from secrun.launch import Completed
from secrun.paths import Layout
from secrun.selinux import Mode
from secrun.selinuxmodule import ModuleState
from secrun_policies import labels
from secrun_policies.profiles import selinux_module_path

AGENT = Path("/opt/se-crun/lib/secrun_agent")


class Store:
    """A policy store behind semodule, and what restorecon was given."""

    def __init__(self) -> None:
        self.modules: dict[str, str] = {"base": "", "secrun-like": ""}
        self.relabelled: list[str] = []
        self.refuses = False

    def run(self, argv: Sequence[str], **options: object) -> Completed:
        words = [str(word) for word in argv]
        said = ""
        if words[:2] == ["semodule", "--list-modules=full"]:
            said = "".join(f"400 {name} cil\n" for name in self.modules)
        elif words[0] == "restorecon":
            self.relabelled += words[2:]
        elif words[:2] == ["semodule", "--cil"]:
            name = words[2].removeprefix("--extract=")
            Path(str(options["cwd"]), f"{name}.cil").write_text(self.modules[name])
        elif words[1].startswith("--install="):
            if self.refuses:
                raise ExternalError("semodule: exit status 1: Failed to resolve typeattributeset")
            path = Path(words[1].removeprefix("--install="))
            self.modules[path.stem] = path.read_text()
        else:
            del self.modules[words[1].removeprefix("--remove=")]
        return Completed(argv=tuple(words), returncode=0, stdout=said.encode(), stderr=b"")


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    found = Store()
    monkeypatch.setattr(selinuxmodule, "run", found.run)
    monkeypatch.setattr(selinux, "mode", lambda: Mode.ENFORCING)
    return found


@pytest.fixture
def text() -> Callable[..., str]:
    def of(layout: Layout | None = None) -> str:
        return selinuxmodule.module_text(selinuxmodule.shipped_text(), AGENT, layout or Layout())

    return of


def test_the_shipped_module_says_its_version_and_defines_what_pods_get():
    shipped = selinux_module_path().read_text()
    assert selinuxmodule.version_of(shipped) == 2
    contexts = (labels.OWN_RUNTIME, labels.OWN_PROCESS, labels.OWN_OPEN, labels.OWN_FILE)
    for context in (*contexts, labels.OWN_STORE, labels.OWN_RUN):
        assert f"(type {context.split(':')[2]})" in shipped


def test_pods_get_no_right_to_change_a_label_or_to_load_a_module():
    allowed = re.findall(
        r"\(allow secrun_pod_t (\S+) \((\w+) \(([^)]*)\)\)\)", selinux_module_path().read_text()
    )
    assert len(allowed) > 50
    words = {word for _, _, permissions in allowed for word in permissions.split()}
    assert not {"setexec", "setcurrent", "setfscreate", "dyntransition", "transition"} & words
    assert not {"relabelfrom", "relabelto", "module_load", "module_request", "all"} & words
    assert "capability" not in {kind for _, kind, _ in allowed}
    writable = {target for target, kind, said in allowed if kind == "file" and "write" in said.split()}
    assert writable == {"self"}


def test_an_installation_elsewhere_is_named_in_the_module(text: Callable[..., str], tmp_path: Path):
    layout = Layout(root=tmp_path / "a b", run_root=Path("/run/other"))
    said = text(layout)
    pattern = re.sub(r"[^A-Za-z0-9/_-]", ".", str(tmp_path / "a b"))
    assert f'(filecon "{pattern}(/.*)?" any (system_u object_r secrun_var_t ((s0) (s0))))' in said
    own = "(config|host|rw|lv|pod.img|scratch.img|stage1.log)"
    assert f'(filecon "{pattern}/pods/[^/]+/[^/]+/{own}(/.*)?" any ())' in said
    assert '(filecon "/run/other(/.*)?" any (system_u object_r secrun_run_t ((s0) (s0))))' in said
    assert f'(filecon "{AGENT}" file (system_u object_r secrun_exec_t ((s0) (s0))))' in said
    assert said.startswith(selinux_module_path().read_text())
    assert text(Layout()).count("/run/") == selinux_module_path().read_text().count("/run/")


def test_a_quote_in_a_path_ends_no_string():
    said = selinuxmodule.file_context(Path('/a"b\\(c)'), "x_t", below=False)
    assert said.count('"') == 2


def test_it_is_installed_once_and_upgraded_and_removed(store: Store, text: Callable[..., str]):
    assert selinuxmodule.status(text()).state is ModuleState.ABSENT
    selinuxmodule.install(text(), (Path("/"), Path("/nonexistent")))
    assert store.relabelled == ["/"]
    found = selinuxmodule.status(text())
    assert (found.state, found.installed, found.shipped) == (ModuleState.CURRENT, 2, 2)
    store.modules["secrun"] = re.sub(r"version \d+:", "version 7:", text())
    found = selinuxmodule.status(text())
    assert (found.state, found.installed, found.shipped) == (ModuleState.OTHER, 7, 2)
    selinuxmodule.remove(())
    assert set(store.modules) == {"base", "secrun-like"}


def test_a_policy_that_does_not_take_it_is_an_error(store: Store, text: Callable[..., str]):
    store.refuses = True
    with pytest.raises(HostError, match="does not take the module") as caught:
        selinuxmodule.install(text(), ())
    assert caught.value.code == "host-selinux"


def test_without_selinux_nothing_is_labelled(
    store: Store, text: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(selinux, "mode", lambda: Mode.OFF)
    selinuxmodule.install(text(), (Path("/"),))
    assert store.relabelled == []
    assert "secrun" in store.modules
