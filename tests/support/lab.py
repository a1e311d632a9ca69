"""A small image workshop: whole images from Debian packages, written by umoci and pushed by skopeo.

The demo, the bench and the host tier use it. It needs umoci, skopeo, busybox-static, and for the Debian
image debootstrap and root. Images that a test makes byte by byte come from `support.images`.
"""

import hashlib
import io
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Debian's release, the one that set-up asks for.
SUITE = "bookworm"
DEBIAN_PACKAGES = ("python3",)
# What an app needs least: package lists, archives, manuals. Byte code stays: it is part of the image.
DEBIAN_LEFT_OUT = (
    "./var/cache/apt/archives",
    "./var/lib/apt/lists",
    "./usr/share/doc",
    "./usr/share/man",
    "./usr/share/locale",
    "./var/log",
    "./dev",
    "./proc",
    "./sys",
    "./run",
)


def tool(*words: str | os.PathLike[str]) -> bytes:
    """Run a command to its end and return its output; raises with what it said when it fails."""
    done = subprocess.run(words, capture_output=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        said = (done.stdout + done.stderr).decode(errors="replace")[-4000:]
        raise RuntimeError(f"{' '.join(map(os.fspath, words))}: exit status {done.returncode}: {said}")
    return done.stdout


def _member(archive: tarfile.TarFile, name: str, **fields: object) -> None:
    info = tarfile.TarInfo(name)
    data = fields.pop("data", b"")
    for field, value in {"mtime": 1_700_000_000, "mode": 0o755, **fields}.items():
        setattr(info, field, value)
    if info.isreg():
        info.size = len(data)
    archive.addfile(info, io.BytesIO(data) if info.isreg() else None)


def busybox_tar(target: Path) -> Path:
    """Write a layer that holds Debian's static busybox, a link per applet and the least of /etc."""
    busybox = Path("/bin/busybox").read_bytes()
    applets = tool("/bin/busybox", "--list").decode().split()
    with tarfile.open(target, "w") as archive:
        for folder in ("bin", "etc", "home", "root", "var"):
            _member(archive, folder, type=tarfile.DIRTYPE)
        _member(archive, "tmp", type=tarfile.DIRTYPE, mode=0o1777)
        _member(
            archive,
            "etc/passwd",
            mode=0o644,
            data=b"root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home:/bin/sh\n",
        )
        _member(archive, "etc/group", mode=0o644, data=b"root:x:0:\napp:x:1000:\n")
        _member(archive, "bin/busybox", data=busybox)
        for applet in applets:
            if applet != "busybox":
                _member(archive, f"bin/{applet}", type=tarfile.SYMTYPE, linkname="busybox")
    return target


def cache_folder() -> Path:
    """Where slow inputs are kept between runs, outside the checkout; what is there is checked by digest."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "/var/cache") / "secrun-dev"


def mirror() -> str:
    """The Debian archive that this machine's apt uses."""
    query = ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages", f"Codename: {SUITE}"]
    sites = tool(*query, "Component: main").decode().split()
    return sites[0] if sites else "http://deb.debian.org/debian"


def debian_tar() -> Path:
    """Return a tar of a Debian minbase tree with python3, made by debootstrap once per recipe."""
    recipe = [tool("dpkg-query", "-W", "-f", "${Version}", "debootstrap").decode(), mirror(), SUITE]
    key = hashlib.sha256("\n".join([*recipe, *DEBIAN_PACKAGES, *DEBIAN_LEFT_OUT]).encode()).hexdigest()
    folder = cache_folder() / key
    kept, seal = folder / "debian.tar", folder / "debian.sha256"
    if kept.exists() and seal.exists() and seal.read_text() == _digest(kept):
        return kept
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="tree-") as scratch:
        tree = Path(scratch, "tree")
        include = f"--include={','.join(DEBIAN_PACKAGES)}"
        tool("debootstrap", "--variant=minbase", include, SUITE, tree, recipe[1])
        made = Path(scratch, "debian.tar")
        left_out = [f"--exclude={path}/*" for path in DEBIAN_LEFT_OUT]
        names = ["--numeric-owner", "--sort=name", "--xattrs", "--format=posix"]
        tool("tar", "-C", tree, *names, *left_out, "-cf", made, ".")
        seal.unlink(missing_ok=True)
        made.rename(kept)
    seal.write_text(_digest(kept))
    return kept


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What goes into an image besides its layers."""

    command: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    user: str = ""
    workdir: str = ""

    def options(self) -> list[str]:
        """Return the options of `umoci config`."""
        words = [f"--config.cmd={word}" for word in self.command]
        words += [f"--config.entrypoint={word}" for word in self.entrypoint]
        words += [f"--config.env={word}" for word in self.environment]
        words += [f"--config.user={self.user}"] if self.user else []
        return words + ([f"--config.workingdir={self.workdir}"] if self.workdir else [])


def write_image(layout: Path, tag: str, layers: Sequence[Path], recipe: Recipe) -> None:
    """Write an image of tar layers into an OCI layout, which is made when absent."""
    if not layout.exists():
        tool("umoci", "init", "--layout", layout)
    image = f"{layout}:{tag}"
    tool("umoci", "new", "--image", image)
    for layer in layers:
        tool("umoci", "raw", "add-layer", "--image", image, layer)
    if recipe.options():
        tool("umoci", "config", "--image", image, *recipe.options())


def push(layout: Path, tag: str, reference: str) -> None:
    """Copy an image of a layout to a registry on loopback (plain HTTP)."""
    tool(
        "skopeo",
        "copy",
        "--quiet",
        "--dest-tls-verify=false",
        f"oci:{layout}:{tag}",
        f"docker://{reference}",
    )
