"""The images of the demo, which are Debian's own packages, under every flavour."""

from pathlib import Path

import pytest

from support import lab
from support.confined import status_of
from support.secrun import Secrun, eventually

PATH = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"
SERVE = "mkdir /www; echo hello from the other app > /www/hello; exec httpd -f -p 127.0.0.1:8080 -h /www"
# What the kernel says of an interpreter, whether its byte code is taken as it was built, and a page.
ASK = """
import json, pathlib, socket, time
print(open("/proc/self/status").read(), end="")
print("cached:\\t", pathlib.Path(json.__cached__).exists(), sep="")
while True:
    try:
        with socket.create_connection(("127.0.0.1", 8080)) as web:
            web.sendall(b"GET /hello HTTP/1.0\\r\\n\\r\\n")
            print("page:\\t", web.makefile().read().splitlines()[-1], sep="", flush=True)
        break
    except OSError:
        time.sleep(0.1)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def images(secrun: Secrun, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The busybox image and the Debian image, in the root that all pods of this run share."""
    folder: Path = tmp_path_factory.mktemp("demo")
    busybox = lab.Recipe(command=("sh",), environment=("PATH=/bin",), workdir="/")
    debian = lab.Recipe(command=("bash",), environment=(PATH,), workdir="/")
    lab.write_image(folder / "layout", "busybox", [lab.busybox_tar(folder / "busybox.tar")], busybox)
    lab.write_image(folder / "layout", "debian", [lab.debian_tar()], debian)
    references = [f"oci:{folder}/layout:{name}" for name in ("busybox", "debian")]
    first, second = (secrun("fetch", "--insecure-options=image", one).out.split()[-1] for one in references)
    return first, second


def test_two_apps_of_debians_packages_speak_and_are_confined(pods: Secrun, images):
    busybox, debian = images
    web = (busybox, "--name=web", "--", "sh", "-c", SERVE)
    client = ("---", debian, "--name=client", "--", "python3", "-c", ASK)
    uuid = pods("run", "-d", *pods.pod_options, *web, *client).out.strip()
    try:
        eventually(lambda: "page:" in pods("logs", uuid, "client").out, "the page")
        said = status_of(pods("logs", uuid, "client").out)
        assert (said["page"], said["cached"]) == ("hello from the other app", "True")
        assert (said["NoNewPrivs"], said["Seccomp"]) == ("1", "2")
        assert "httpd" in pods("enter", "--app=web", uuid, "--", "ps").out
        version = pods("enter", "--app=client", uuid, "--", "python3", "--version").out
        assert version.startswith("Python 3.")
    finally:
        pods.discard(uuid)
