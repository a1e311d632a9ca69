"""Images that other tools made run as pods, straight from their references."""

import importlib.util
import io
import os
import sys
import tarfile
from pathlib import Path

import pytest

from support import registry
from support.images import BUSYBOX, Entry, LayoutWriter, busybox_image, busybox_layer, directory, tar_layer
from support.leaks import footprint, leaks_since
from support.secrun import Secrun
from support.tools import tool

ANY = "--insecure-options=image"


@pytest.fixture(scope="module")
def secrun(tmp_path_factory):
    base = tmp_path_factory.mktemp("run")
    before = footprint(str(base))
    yield Secrun(root=base / "root", run_root=base / "run")
    left = leaks_since(before, str(base))
    assert [line for line in left if not line.startswith("cgroups")] == []


def test_an_image_of_buildah_runs_as_a_layout_and_as_a_docker_archive(secrun, tmp_path):
    buildah = ("buildah", "--root", tmp_path / "b", "--runroot", tmp_path / "r", "--storage-driver=vfs")
    (tmp_path / "context").mkdir()
    (tmp_path / "context/busybox").write_bytes(BUSYBOX.read_bytes())
    (tmp_path / "context/busybox").chmod(0o755)
    container = tool(*buildah, "from", "scratch").strip()
    tool(*buildah, "add", container, tmp_path / "context", "/bin")
    tool(*buildah, "config", '--entrypoint=["/bin/busybox"]', "--cmd=id -u", "--user=7:8", container)
    tool(*buildah, "commit", "-q", container, f"oci:{tmp_path}/built:tag")
    tool(*buildah, "commit", "-q", container, f"docker-archive:{tmp_path}/built.tar:localhost/built:1")
    tool(*buildah, "rm", container)
    for reference in (f"oci:{tmp_path}/built:tag", f"docker-archive:{tmp_path}/built.tar"):
        assert secrun("run", "--rm", ANY, reference).out == "7\n"
        assert secrun("run", "--rm", ANY, reference, "--", "id", "-g").out == "8\n"


def test_an_image_of_umoci_runs(secrun, tmp_path):
    name = f"{tmp_path}/made:x"
    tool("umoci", "init", "--layout", tmp_path / "made")
    tool("umoci", "new", "--image", name)
    tool("umoci", "unpack", "--image", name, tmp_path / "bundle")
    tool("cp", BUSYBOX, tmp_path / "bundle/rootfs/busybox")
    (tmp_path / "bundle/rootfs/sh").symlink_to("/busybox")
    tool("umoci", "repack", "--image", name, tmp_path / "bundle")
    words = [f"--config.entrypoint={word}" for word in ("/sh", "-c")]
    tool("umoci", "config", "--image", name, *words, "--config.cmd=echo $HELLO", "--config.env=HELLO=umoci")
    assert secrun("run", "--rm", ANY, f"oci:{name}").out == "umoci\n"


def test_archives_saved_by_skopeo_run(secrun, tmp_path):
    busybox_image(tmp_path / "layout")
    source = f"oci:{tmp_path}/layout:busybox"
    tool("skopeo", "copy", "--insecure-policy", source, f"docker-archive:{tmp_path}/d.tar:localhost/one:1")
    tool("skopeo", "copy", "--insecure-policy", source, f"oci-archive:{tmp_path}/o.tar:one")
    for reference in (f"docker-archive:{tmp_path}/d.tar", f"oci-archive:{tmp_path}/o.tar:one"):
        assert secrun("run", "--rm", ANY, reference, "--", "echo", "saved").out == "saved\n"


def test_an_image_of_a_registry_runs_by_tag_and_by_digest_and_stays_for_the_next_run(secrun, tmp_path):
    digest = busybox_image(tmp_path / "layout")
    with registry.running_registry(tmp_path / "registry") as running:
        running.push(f"oci:{tmp_path}/layout:busybox", "team/app:1")
        by_tag = f"docker://{running.address}/team/app:1"
        insecure = (ANY, "--tls-verify=false")
        assert secrun("run", "--rm", *insecure, by_tag, "--", "sh", "-c", "exit 7", code=7).err == ""
        by_digest = f"{running.address}/team/app@{digest}"
        assert secrun("run", "--rm", *insecure, by_digest, "--", "echo", "pinned").out == "pinned\n"
    assert secrun("run", "--rm", ANY, by_tag, "--", "echo", "stored").out == "stored\n"


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """An image with a program without its loader, and a script without its interpreter."""
    path = tmp_path_factory.mktemp("broken") / "layout"
    program = Path(os.path.realpath(sys.executable)).read_bytes()
    entries = [
        directory("opt"),
        Entry(name="opt/dynamic", mode=0o755, data=program),
        Entry(name="opt/script", mode=0o755, data=b"#!/usr/bin/no-such-perl\n"),
        Entry(name="opt/garbage", mode=0o755, data=b"\x00\x01\x02"),
    ]
    LayoutWriter(path).add_image("x", [busybox_layer(), tar_layer(entries)], config={"WorkingDir": "/opt"})
    return f"oci:{path}:x"


@pytest.mark.parametrize(
    ("program", "code", "words"),
    [
        ("/opt/dynamic", 127, ["/opt/dynamic", "/lib64/ld-linux-x86-64.so.2"]),
        ("./dynamic", 127, ["/lib64/ld-linux-x86-64.so.2"]),
        ("/opt/script", 127, ["/opt/script", "/usr/bin/no-such-perl"]),
        ("/opt/garbage", 126, ["/opt/garbage"]),
    ],
)
def test_what_keeps_a_program_from_running_is_named(secrun, broken, program, code, words):
    result = secrun("run", "--rm", ANY, broken, "--", program, code=code)
    assert all(word in result.err for word in words), result.err


def test_a_config_with_an_unknown_user_is_refused_by_name(secrun, tmp_path):
    busybox_image(tmp_path / "layout", config={"User": "ghost"})
    result = secrun("run", "--rm", ANY, f"oci:{tmp_path}/layout:busybox", "--", "true", code=2)
    assert "'ghost' is not in the image's /etc/passwd" in result.err
    assert (
        secrun("run", "--rm", ANY, "--user=0", f"oci:{tmp_path}/layout:busybox", "--", "id", "-u").out
        == "0\n"
    )


def test_an_image_without_a_command_says_so(secrun, tmp_path):
    busybox_image(tmp_path / "layout", config={"Cmd": []})
    result = secrun("run", "--rm", ANY, f"oci:{tmp_path}/layout:busybox", code=126)
    assert "names no program" in result.err


def python_layer(module: Path) -> bytes:
    """Debian's Python with what it loads at its start, and `module` with its byte code, times and all."""
    code = "import sys; print(*(m.__file__ for m in sys.modules.values() if getattr(m, '__file__', None)))"
    loaded = tool("/usr/bin/python3.11", "-I", "-S", "-c", code).split()
    libraries = [word for word in tool("ldd", "/usr/bin/python3.11").split() if word.startswith("/")]
    cached = [importlib.util.cache_from_source(path) for path in loaded]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, dereference=True) as layer:
        for path in ("/usr/bin/python3.11", *libraries, *loaded, *cached):
            layer.add(path)
        layer.add(module.parent, "app")
    return out.getvalue()


def test_python_in_an_image_loads_its_byte_code_unchanged(secrun, tmp_path):
    module = tmp_path / "app" / "module.py"
    module.parent.mkdir()
    module.write_text("VALUE = 42\n")
    # A time with a fraction, which byte code holds in whole seconds.
    os.utime(module, ns=(1_500_000_000_987_654_321,) * 2)
    tool("/usr/bin/python3.11", "-m", "compileall", "-q", module.parent)
    LayoutWriter(tmp_path / "layout").add_image("x", [python_layer(module)], compression="none")
    python = ("/usr/bin/python3.11", "-I", "-S", "-v", "-c")
    code = "import os, sys; sys.path.insert(0, '/app'); import module; print(module.VALUE)"
    done = secrun("run", "--rm", ANY, f"oci:{tmp_path}/layout:x", "--", *python, code)
    assert done.out == "42\n"
    assert "/app/__pycache__/module.cpython-311.pyc matches /app/module.py" in done.err
    assert (
        "/encodings/__pycache__/__init__.cpython-311.pyc matches /usr/lib/python3.11/encodings/" in done.err
    )
    assert not [line for line in done.err.splitlines() if "# wrote" in line or "bytecode is stale" in line]


def test_no_policy_and_no_option_means_no_pod(secrun, tmp_path):
    busybox_image(tmp_path / "layout")
    (tmp_path / "policy.json").write_text('{"default": [{"type": "reject"}]}')
    denied = secrun("run", f"--policy={tmp_path}/policy.json", f"oci:{tmp_path}/layout:busybox", code=120)
    assert "denied" in denied.err or "reject" in denied.err
    (tmp_path / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    words = ("run", "--rm", f"--policy={tmp_path}/policy.json", f"oci:{tmp_path}/layout:busybox")
    assert secrun(*words, "--", "echo", "admitted").out == "admitted\n"


def test_files_beyond_the_pods_ids_are_refused(secrun, tmp_path):
    layer = tar_layer([Entry(name="big", uid=70000)])
    LayoutWriter(tmp_path / "layout").add_image("x", [busybox_layer(), layer])
    result = secrun("run", "--rm", ANY, f"oci:{tmp_path}/layout:x", "--", "true", code=125)
    assert "70000" in result.err
