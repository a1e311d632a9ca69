"""The taps of a guest, joined with an interface as plugins make it: real namespaces, and frames by hand."""

import subprocess
import sys
from pathlib import Path

import pytest

from secrun_kvm import framefilter
from secrun_kvm.place import Root

MAC, OTHER = "02:00:00:00:00:01", "02:00:00:00:00:ff"
# In a namespace that is the host's: another is the pod's, a third one the emulator's, which holds the tap.
SCRIPT = """
import fcntl, os, socket, struct, subprocess, sys
from pathlib import Path
from secrun.syscalls import CLONE_NEWNET, LinuxSyscalls
from secrun_kvm import taps
from secrun_kvm.place import Root, tap_name

def run(words):
    subprocess.run(words.split(), check=True)

call, here = LinuxSyscalls(), "/proc/thread-self/ns/net"
host = os.open(here, os.O_RDONLY)
call.unshare(CLONE_NEWNET)
pod = os.open(here, os.O_RDONLY)
run("ip link add eth0 type veth peer name host0")
run(f"ip link set eth0 address {sys.argv[2]} up")
run("ip address add 192.0.2.7/24 dev eth0")
run("ip link set host0 up")
# The far end of the pair is looked at from here; in life it is in the host's namespace.
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
wire.bind(("host0", 0))
wire.settimeout(0.3)
call.unshare(CLONE_NEWNET)
tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH22x", tap_name(0).encode(), 0x1002))
taps.connect(Root(Path(sys.argv[1])), pod, ("eth0",))

def station(text):
    return bytes.fromhex(text.replace(":", ""))

def frame(to, sender, source, mark):
    packet = bytes([0x45]) + bytes(11) + socket.inet_aton(source) + bytes(4) + mark.encode().ljust(40)
    return to + sender + b"\\x08\\x00" + packet

def heard(read, mark):
    while True:
        try:
            data = read()
        except (BlockingIOError, TimeoutError):
            return False
        if mark.encode() in data:
            return True

def received():
    # By the namespace's own IPv4 (proc(5), snmp).
    lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
    names, numbers = lines[0].split(), lines[1].split()
    return int(numbers[names.index("InReceives")])

own, other, all_of_them = station(sys.argv[2]), station(sys.argv[3]), bytes([255]) * 6
for mark, sender, source in (
    ("honest", own, "192.0.2.7"),
    ("forged address", own, "192.0.2.8"),
    ("forged station", other, "192.0.2.7"),
):
    os.write(tap, frame(all_of_them, sender, source, mark))
    print(mark, heard(lambda: wire.recv(2000), mark))
    if mark == "honest":
        # The far end of the pair has seen that one; from here on nothing is for the namespace itself.
        before = received()
for mark, to in (("for us", own), ("for all", all_of_them), ("for another", other)):
    wire.send(frame(to, other, "192.0.2.1", mark))
    print(mark, heard(lambda: os.read(tap, 2000), mark))
print("beside", received() - before)
print("quiet", Path("/proc/sys/net/ipv6/conf", tap_name(0), "disable_ipv6").read_text().strip())
os.close(tap)
print("gone", tap_name(0) not in [name for _, name in socket.if_nameindex()])
"""


def spoken(folder: Path, *, outgoing: bytes | None = None) -> dict[str, str]:
    root = Root(folder)
    root.outgoing(0).write_bytes(outgoing or framefilter.outgoing(MAC, ["192.0.2.7"]))
    root.incoming(0).write_bytes(framefilter.incoming(MAC))
    words = ["unshare", "--net", sys.executable, "-P", "-c", SCRIPT, str(folder), MAC, OTHER]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    lines = (line.rpartition(" ") for line in done.stdout.splitlines())
    return {mark: value for mark, _, value in lines}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return spoken(tmp_path_factory.mktemp("taps"))


def test_a_guest_reaches_its_network_and_is_reached(said: dict[str, str]):
    assert (said["honest"], said["for us"], said["for all"]) == ("True", "True", "True")


def test_a_guest_cannot_forge_nor_hear_what_is_for_others(said: dict[str, str]):
    assert (said["forged address"], said["forged station"], said["for another"]) == ("False",) * 3


def test_the_namespace_itself_sees_no_frame(said: dict[str, str]):
    assert said["beside"] == "0"


def test_a_tap_says_nothing_of_itself_and_goes_with_its_holder(said: dict[str, str]):
    assert (said["quiet"], said["gone"]) == ("1", "True")


def test_a_program_that_the_kernel_refuses_is_an_error(tmp_path: Path):
    with pytest.raises(AssertionError, match=r"HostError: .*secrun-tap0"):
        spoken(tmp_path, outgoing=b"\xff" * 8)
