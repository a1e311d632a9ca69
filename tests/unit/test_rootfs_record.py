"""The record beside an image is read strictly, and an image is there whole or not at all."""

import json
from pathlib import Path

import pytest

from secrun.digest import Digest
from secrun.errors import HostError, ImageError
from secrun.image import rootfs
from secrun.image.rootfs import Group, Passwd, RootfsImage, accounts, limits, sandbox
from secrun.image.rootfs.merge import MergedTree
from secrun.image.rootfs.record import decode, encode, parse_facts
from secrun.image.rootfs.sandbox import _parse
from secrun.image.rootfs.tarindex import TarIndex
from secrun.paths import Layout
from support.layers import file, folder, symlink, tar

KEY = rootfs.rootfs_key([Digest.of(b"1"), Digest.of(b"2")])


def image(path: Path, size: int = 12288) -> RootfsImage:
    return RootfsImage(
        key=KEY,
        path=path,
        format_version=1,
        data_size=8192,
        file_size=size,
        tree_digest=Digest.of(b"tree"),
        verity_root="a" * 64,
        verity_salt="b" * 64,
        max_id=1000,
        users=(Passwd(name="root", uid=0, gid=0, home="/root"), Passwd(name="ü", uid=5, gid=6, home="")),
        groups=(Group(name="adm", gid=4, members=("a", "b")),),
        diff_ids=(Digest.of(b"1"), Digest.of(b"2")),
        dropped_xattrs=("trusted.x",),
    )


def test_record_round_trip(tmp_path: Path) -> None:
    original = image(tmp_path / "x")
    assert decode(encode(original), key=KEY, path=tmp_path / "x") == original


def test_key_depends_on_order_content_and_nothing_else() -> None:
    one, two = Digest.of(b"1"), Digest.of(b"2")
    assert rootfs.rootfs_key([one, two]) == KEY
    assert len({rootfs.rootfs_key(ids) for ids in ([one, two], [two, one], [one], [])}) == 4
    text = f"secrun rootfs image format 1\n{one}\n{two}\n".encode()
    assert Digest.of(text) == KEY


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("data_size", 8191),
        ("data_size", 12288),
        ("data_size", True),
        ("data_size", "8192"),
        ("file_size", -1),
        ("tree_digest", "sha256:xyz"),
        ("verity_root", "A" * 64),
        ("verity_root", "a" * 63),
        ("max_id", 2**32 - 1),
        ("users", [["root", 0, 0]]),
        ("users", [["root", "0", 0, "/"]]),
        ("users", [["root", True, 0, "/"]]),
        ("users", {}),
        ("groups", [["adm", 4, ["a", 1]]]),
        ("diff_ids", ["sha256:1"]),
        ("dropped_xattrs", [1]),
        ("format_version", 0),
        ("format_version", 2),
        ("key", str(Digest.of(b"another"))),
        ("unknown", 1),
    ],
)
def test_record_with_anything_unexpected_is_refused(tmp_path: Path, field: str, value: object) -> None:
    record = json.loads(encode(image(tmp_path)))
    record[field] = value
    with pytest.raises(ImageError):
        decode(json.dumps(record).encode(), key=KEY, path=tmp_path)


def test_record_with_a_field_missing_is_refused(tmp_path: Path) -> None:
    for field in json.loads(encode(image(tmp_path))):
        record = json.loads(encode(image(tmp_path)))
        del record[field]
        with pytest.raises(ImageError):
            decode(json.dumps(record).encode(), key=KEY, path=tmp_path)


def test_answer_of_the_worker_is_not_trusted() -> None:
    for answer in ({}, {"data_size": 1}, json.loads(encode(image(Path("/x"))))):
        with pytest.raises(ImageError):
            parse_facts(answer)


class TestLoad:
    def test_absent(self, tmp_path: Path) -> None:
        assert rootfs.load(Layout(tmp_path), KEY) is None

    def test_file_and_record(self, tmp_path: Path) -> None:
        layout = self.store(tmp_path)
        assert rootfs.load(layout, KEY) == image(layout.rootfs / f"{KEY.hex}.erofs")

    def test_one_without_the_other_is_absent(self, tmp_path: Path) -> None:
        layout = self.store(tmp_path)
        (layout.rootfs / f"{KEY.hex}.json").unlink()
        assert rootfs.load(layout, KEY) is None
        layout = self.store(tmp_path)
        (layout.rootfs / f"{KEY.hex}.erofs").unlink()
        assert rootfs.load(layout, KEY) is None

    def test_other_size_is_damage(self, tmp_path: Path) -> None:
        layout = self.store(tmp_path)
        (layout.rootfs / f"{KEY.hex}.erofs").write_bytes(b"short")
        with pytest.raises(ImageError) as caught:
            rootfs.load(layout, KEY)
        assert caught.value.code == "image-rootfs-damaged"

    def test_image_without_a_record_is_purged_unless_its_owner_lives(self, tmp_path: Path) -> None:
        from secrun.locks import held

        layout = self.store(tmp_path)
        assert rootfs.purge_stale(layout) == []
        (layout.rootfs / f"{KEY.hex}.json").unlink()
        with held(layout.locks / f"rootfs-{KEY.hex}.lock"):
            assert rootfs.purge_stale(layout) == []
        assert rootfs.purge_stale(layout) == [layout.rootfs / f"{KEY.hex}.erofs"]
        assert list(layout.rootfs.iterdir()) == []

    @staticmethod
    def store(tmp_path: Path) -> Layout:
        layout = Layout(tmp_path, tmp_path / "run")
        layout.rootfs.mkdir(exist_ok=True)
        path = layout.rootfs / f"{KEY.hex}.erofs"
        path.write_bytes(bytes(12288))
        (layout.rootfs / f"{KEY.hex}.json").write_bytes(encode(image(path)))
        return layout


def accounts_of(*archives: bytes, tmp_path: Path) -> tuple[tuple[Passwd, ...], tuple[Group, ...]]:
    tree = MergedTree()
    for number, archive in enumerate(archives):
        path = tmp_path / str(number)
        path.write_bytes(archive)
        with path.open("rb") as stream:
            tree.apply(TarIndex(stream.fileno(), len(archive), layer="t"), stream.fileno())
            found = accounts.users(tree), accounts.groups(tree)
    return found


class TestAccounts:
    def test_tables_of_the_image(self, tmp_path: Path) -> None:
        users, groups = accounts_of(
            tar(
                file(b"etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nweb:x:101:102::/srv:/bin/false\n"),
                file(b"etc/group", b"root:x:0:\nwww:x:102:web,root\nno:x:3\n"),
            ),
            tmp_path=tmp_path,
        )
        assert users == (
            Passwd(name="root", uid=0, gid=0, home="/root"),
            Passwd(name="web", uid=101, gid=102, home="/srv"),
        )
        assert groups == (
            Group(name="root", gid=0, members=()),
            Group(name="www", gid=102, members=("web", "root")),
            Group(name="no", gid=3, members=()),
        )

    def test_malformed_lines_are_left_out(self, tmp_path: Path) -> None:
        lines = [
            b"# comment",
            b"short:x:1",
            b"minus:x:-1:0::/:",
            b"plus:x:+1:0::/:",
            b"big:x:4294967295:0::/:",
            b"uni:x:\xc2\xb2:0::/:",
            b"bad\xff:x:1:1::/:",
            b"ctl\x1b[2J:x:1:1::/:",
            b":x:1:1::/:",
            b"good:x:1:1::/:",
        ]
        users, _ = accounts_of(tar(file(b"etc/passwd", b"\n".join(lines))), tmp_path=tmp_path)
        assert [user.name for user in users] == ["good"]

    def test_the_file_may_be_reached_by_links_inside_the_image_only(self, tmp_path: Path) -> None:
        inside = tar(file(b"usr/p", b"in:x:1:1::/:\n"), symlink(b"etc/passwd", b"../../../usr/p"))
        assert [user.name for user in accounts_of(inside, tmp_path=tmp_path)[0]] == ["in"]
        for broken in (
            tar(symlink(b"etc/passwd", b"/proc/self/environ")),
            tar(folder(b"etc/passwd")),
            tar(symlink(b"etc", b"/etc/ssl")),
            tar(),
        ):
            assert accounts_of(broken, tmp_path=tmp_path) == ((), ())

    def test_size_and_number_are_bounded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "MAX_ACCOUNTS", 3)
        many = tar(file(b"etc/passwd", b"a:x:1:1::/:\n" * 4))
        with pytest.raises(ImageError, match="MAX_ACCOUNTS"):
            accounts_of(many, tmp_path=tmp_path)
        monkeypatch.setattr(limits, "MAX_ACCOUNT_FILE_BYTES", 20)
        with pytest.raises(ImageError, match="MAX_ACCOUNT_FILE_BYTES"):
            accounts_of(many, tmp_path=tmp_path)


class TestAnswers:
    """What comes out of the sandbox becomes a typed error, whatever it is."""

    def test_death_by_signal_is_named(self) -> None:
        with pytest.raises(ImageError, match="SIGSEGV"):
            _parse(b"", -11)

    def test_exit_without_an_answer(self) -> None:
        with pytest.raises(ImageError, match="exit status 70"):
            _parse(b"", 70)

    @pytest.mark.parametrize(
        "data", [b"garbage", b"[]", b"{}", b'{"error": 5}', b'{"error": {"family": "odd"}}']
    )
    def test_nonsense(self, data: bytes) -> None:
        with pytest.raises(ImageError):
            _parse(data, 0)

    def test_families(self) -> None:
        def answer(family: str) -> bytes:
            fields = {"family": family, "code": "c", "message": "m", "hint": "h", "errno": 28}
            return json.dumps({"error": fields}).encode()

        with pytest.raises(ImageError) as image_error:
            _parse(answer("image"), 0)
        assert (image_error.value.code, image_error.value.message, image_error.value.hint) == ("c", "m", "h")
        with pytest.raises(HostError):
            _parse(answer("host"), 0)
        with pytest.raises(OSError, match="No space") as os_error:
            _parse(answer("os"), 0)
        assert sandbox.is_disk_full(os_error.value)
