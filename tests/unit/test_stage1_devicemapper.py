"""What the kernel is told of a dm-verity device."""

import struct

from secrun.stage1 import devicemapper
from secrun.stage1.devicemapper import VerityTable

TABLE = VerityTable(data_size=3 * 4096, root="ab" * 32, salt="cd" * 32)


def test_the_tree_follows_the_data_and_a_superblock():
    line = TABLE.line("7:0")
    assert line == f"1 7:0 7:0 4096 4096 3 4 sha256 {'ab' * 32} {'cd' * 32}"


def test_a_request_has_the_kernels_layout():
    data = devicemapper.table(TABLE, "7:3")
    message = devicemapper.request("secrun-x-0", flags=1, targets=1, data=data)
    version, size, start, count = message[:12], *struct.unpack_from("=3I", message, 12)
    assert struct.unpack("=3I", version)[0] == 4
    assert (size, start, count) == (len(message), 312, 1)
    assert message[48:].startswith(b"secrun-x-0\0")
    sector, length, _, following = struct.unpack_from("=QQiI", message, start)
    assert (sector, length) == (0, 24)
    assert following == len(data)
    assert following % 8 == 0
    assert message[start + 24 :].startswith(b"verity\0")
    assert bytes(message[start + 40 :]).split(b"\0")[0].decode() == TABLE.line("7:3")


def test_each_image_of_a_pod_has_a_name():
    names = {devicemapper.name_of(uuid, number) for uuid in ("a", "b") for number in range(3)}
    assert len(names) == 6
    assert all(len(devicemapper.name_of("0" * 36, number)) < 128 for number in (0, 64))
