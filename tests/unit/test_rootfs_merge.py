"""Layers merge into one tree as the image specification and umoci have it, and nothing leaves the tree."""

import pytest

from secrun.errors import ImageError
from secrun.image.rootfs import limits
from secrun.image.rootfs.merge import clean, keeps_xattr
from secrun.image.rootfs.model import FdSource, FileKind
from support.layers import Member, file, folder, hardlink, merge, pax, shape, symlink, tar


def whiteout(path: bytes) -> Member:
    parent, _, name = path.rpartition(b"/")
    return file((parent + b"/" if parent else b"") + b".wh." + name)


def opaque(path: bytes) -> Member:
    return file(path + b"/.wh..wh..opq")


def refused(*archives: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        merge(*archives)
    return caught.value.message


BASE = tar(folder(b"a/"), file(b"a/x", b"lower"), folder(b"a/sub"), file(b"a/sub/y"), file(b"z"))


def test_upper_files_replace_lower_ones_and_folders_join() -> None:
    tree = merge(BASE, tar(folder(b"a", mode=0o700), file(b"a/x", b"upper!"), file(b"a/new")))
    assert shape(tree) == {
        b"a": "dir",
        b"a/new": "file",
        b"a/sub": "dir",
        b"a/sub/y": "file",
        b"a/x": "file",
        b"z": "file",
    }
    assert tree[b"a"].mode == 0o700
    assert tree[b"a/x"].size == 6


def test_whiteout_removes_a_file_or_a_whole_folder() -> None:
    assert shape(merge(BASE, tar(whiteout(b"a/x"), whiteout(b"z")))) == {
        b"a": "dir",
        b"a/sub": "dir",
        b"a/sub/y": "file",
    }
    assert shape(merge(BASE, tar(whiteout(b"a")))) == {b"z": "file"}


def test_whiteout_of_a_parent_spares_what_its_own_layer_brings() -> None:
    for members in (
        [whiteout(b"a"), folder(b"a"), file(b"a/mine")],
        [folder(b"a"), file(b"a/mine"), whiteout(b"a")],
        [file(b"a/mine"), whiteout(b"a")],
    ):
        assert shape(merge(BASE, tar(*members))) == {b"a": "dir", b"a/mine": "file", b"z": "file"}


def test_whiteout_before_and_after_its_file_in_one_layer_keeps_the_file() -> None:
    for members in ([whiteout(b"z"), file(b"z", b"new")], [file(b"z", b"new"), whiteout(b"z")]):
        assert merge(BASE, tar(*members))[b"z"].size == 3


def test_whiteout_spares_a_hard_link_made_in_its_layer_to_a_lower_file() -> None:
    tree = merge(BASE, tar(hardlink(b"a/link", b"a/x"), whiteout(b"a")))
    assert shape(tree) == {b"a": "dir", b"a/link": "file", b"z": "file"}
    assert tree[b"a/link"].size == len(b"lower")


def test_opaque_folder_hides_lower_contents_wherever_it_stands_in_its_layer() -> None:
    for members in (
        [folder(b"a"), opaque(b"a"), file(b"a/mine")],
        [folder(b"a"), file(b"a/mine"), opaque(b"a")],
        [opaque(b"a"), file(b"a/mine")],
    ):
        assert shape(merge(BASE, tar(*members))) == {b"a": "dir", b"a/mine": "file", b"z": "file"}


def test_opaque_in_the_same_layer_as_the_only_contents_hides_nothing() -> None:
    tree = merge(tar(folder(b"a"), file(b"a/x"), folder(b"a/s"), file(b"a/s/y"), opaque(b"a")))
    assert shape(tree) == {b"a": "dir", b"a/s": "dir", b"a/s/y": "file", b"a/x": "file"}


def test_opaque_keeps_a_deep_entry_of_its_layer_and_drops_its_lower_siblings() -> None:
    tree = merge(BASE, tar(file(b"a/sub/mine"), opaque(b"a")))
    assert shape(tree) == {b"a": "dir", b"a/sub": "dir", b"a/sub/mine": "file", b"z": "file"}


def test_opaque_root_hides_all_lower_layers() -> None:
    assert shape(merge(BASE, tar(file(b".wh..wh..opq"), file(b"only")))) == {b"only": "file"}


@pytest.mark.parametrize(
    "name", [b".wh..wh.plnk", b".wh..wh.aufs", b"a/.wh..wh.orph", b".wh.absent", b"no/.wh.x"]
)
def test_whiteouts_of_what_is_not_there_change_nothing(name: bytes) -> None:
    assert shape(merge(BASE, tar(file(name)))) == shape(merge(BASE))


@pytest.mark.parametrize("name", [b".wh.", b"a/.wh.", b".wh..", b".wh...", b"a/.wh..."])
def test_whiteout_without_a_name_is_refused(name: bytes) -> None:
    # Taken literally, `.wh...` would remove the parent of the folder it is in: for the root, the host's.
    assert "whiteout" in refused(BASE, tar(file(name)))


def test_two_entries_of_one_path_the_last_one_counts() -> None:
    tree = merge(tar(file(b"p", b"1"), file(b"p", b"22"), file(b"q"), folder(b"q"), file(b"q/in")))
    assert tree[b"p"].size == 2
    assert tree[b"q"].kind is FileKind.DIRECTORY
    again = merge(tar(folder(b"q"), file(b"q/in"), symlink(b"q", b"target")))
    assert shape(again) == {b"q": "link"}


def test_folder_replaced_by_file_and_file_by_folder_across_layers() -> None:
    assert shape(merge(BASE, tar(file(b"a")))) == {b"a": "file", b"z": "file"}
    tree = merge(BASE, tar(folder(b"z"), file(b"z/in")))
    assert tree[b"z"].kind is FileKind.DIRECTORY
    assert b"z/in" in tree


def test_folder_entry_replaces_a_symlink_to_a_folder() -> None:
    tree = merge(
        tar(folder(b"real"), file(b"real/x"), symlink(b"l", b"real")), tar(folder(b"l"), file(b"l/y"))
    )
    assert shape(tree) == {b"l": "dir", b"l/y": "file", b"real": "dir", b"real/x": "file"}


def test_missing_parents_are_made_plain() -> None:
    tree = merge(tar(file(b"new/deep/f")))
    made = tree[b"new/deep"]
    assert (made.kind, made.mode, made.uid, made.gid, made.mtime_ns) == (FileKind.DIRECTORY, 0o755, 0, 0, 0)


def test_missing_parents_below_a_set_group_id_folder_inherit_group_and_bit() -> None:
    tree = merge(tar(Member(name=b"g", type=b"5", mode=0o2755, gid=9), file(b"g/new/f")))
    assert (tree[b"g/new"].mode, tree[b"g/new"].gid, tree[b"g/new/f"].gid) == (0o2755, 9, 0)


def test_a_file_below_a_file_is_refused() -> None:
    assert "parent is not a folder" in refused(BASE, tar(file(b"z/below")))
    assert "parent is not a folder" in refused(BASE, tar(file(b"z/below/deeper")))


@pytest.mark.parametrize(
    ("name", "place"),
    [
        (b"../../etc/passwd", b"etc/passwd"),
        (b"/etc/passwd", b"etc/passwd"),
        (b"a/../../../b", b"b"),
        (b"./x//y/./z", b"x/y/z"),
        (b"dir/", b"dir"),
    ],
)
def test_names_are_cleaned_inside_the_root(name: bytes, place: bytes) -> None:
    assert b"/".join(clean(name)) == place
    assert place in merge(tar(file(name)))


@pytest.mark.parametrize("target", [b"/", b"/etc", b"../../../etc", b"..", b"../.."])
def test_writing_through_a_symlink_stays_inside_the_root(target: bytes) -> None:
    tree = merge(tar(folder(b"etc"), folder(b"d"), symlink(b"d/out", target), file(b"d/out/evil", b"x")))
    inside = b"etc/evil" if target.endswith(b"etc") else b"evil"
    assert tree[inside].kind is FileKind.FILE
    assert tree[b"d/out"].kind is FileKind.SYMLINK
    assert len(tree) == 5


def test_writing_through_a_dangling_symlink_makes_its_target_inside() -> None:
    tree = merge(tar(symlink(b"l", b"/no/such"), file(b"l/f")))
    assert shape(tree) == {b"l": "link", b"no": "dir", b"no/such": "dir", b"no/such/f": "file"}


def test_an_entry_replaces_a_symlink_and_never_writes_to_its_target() -> None:
    tree = merge(tar(file(b"victim", b"safe"), symlink(b"l", b"victim"), file(b"l", b"evil!")))
    assert tree[b"victim"].size == 4
    assert tree[b"l"].kind is FileKind.FILE


def test_a_folder_that_was_replaced_or_removed_is_resolved_anew() -> None:
    replaced = merge(tar(folder(b"e"), file(b"d/x"), symlink(b"d", b"e"), file(b"d/y")))
    assert shape(replaced) == {b"d": "link", b"e": "dir", b"e/y": "file"}
    lower = tar(folder(b"real/b"), symlink(b"l", b"real"))
    removed = merge(lower, tar(file(b"l/b/x"), whiteout(b"l"), file(b"l/b/y")))
    assert [path for path, kind in shape(removed).items() if kind == "file"] == [b"l/b/y", b"real/b/x"]


def test_symlink_loops_end(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "MAX_SYMLINKS" in refused(tar(symlink(b"a", b"b"), symlink(b"b", b"a"), file(b"a/x")))
    links = [symlink(b"l%d" % number, b"l%d" % (number + 1)) for number in range(10)]
    archive = tar(*links, folder(b"l10"), file(b"l0/x"))
    assert b"l10/x" in merge(archive)
    monkeypatch.setattr(limits, "MAX_SYMLINKS", 9)
    assert "MAX_SYMLINKS" in refused(archive)


def test_whiteout_through_a_symlink_stays_inside_the_root() -> None:
    lower = tar(folder(b"etc"), file(b"etc/passwd"), symlink(b"l", b"../../etc"))
    assert shape(merge(lower, tar(file(b"l/.wh.passwd")))) == {b"etc": "dir", b"l": "link"}


def test_hard_links_share_a_file_also_across_layers() -> None:
    tree = merge(
        BASE, tar(hardlink(b"h1", b"a/x"), hardlink(b"h2", b"/a/../a/x"), hardlink(b"h3", b"../../h1"))
    )
    group = tree[b"a/x"].link_group
    assert group
    assert {tree[name].link_group for name in (b"h1", b"h2", b"h3")} == {group}


def test_replacing_one_name_of_a_hard_link_leaves_the_others() -> None:
    tree = merge(BASE, tar(hardlink(b"h", b"a/x")), tar(file(b"a/x", b"changed")))
    assert (tree[b"h"].size, tree[b"a/x"].size) == (5, 7)
    assert tree[b"a/x"].link_group == 0


def test_hard_link_to_a_symlink_links_the_symlink() -> None:
    tree = merge(tar(file(b"f"), symlink(b"s", b"f"), hardlink(b"h", b"s")))
    assert tree[b"h"].kind is FileKind.SYMLINK
    assert tree[b"h"].link_group == tree[b"s"].link_group != 0


def test_hard_link_resolves_its_parent_inside_the_root() -> None:
    tree = merge(tar(folder(b"etc"), file(b"etc/f", b"in"), symlink(b"l", b"/etc"), hardlink(b"h", b"l/f")))
    assert tree[b"h"].size == 2


@pytest.mark.parametrize("target", [b"../outside", b"/absent", b"h", b"z/below", b""])
def test_hard_link_to_what_is_not_in_the_image_is_refused(target: bytes) -> None:
    assert "hard link" in refused(BASE, tar(hardlink(b"h", target)))


@pytest.mark.parametrize("target", [b"a", b"/", b"..", b"a/sub/"])
def test_hard_link_to_a_folder_is_refused(target: bytes) -> None:
    assert "hard link" in refused(BASE, tar(hardlink(b"h", target)))


def test_root_takes_metadata_and_stays_a_folder() -> None:
    assert merge(tar(folder(b"./", mode=0o711)))[b""].mode == 0o711
    assert merge(tar(file(b"a")))[b""].mode == 0o755
    for name in (b"/", b"..", b"./", b""):
        assert "root" in refused(tar(symlink(name, b"etc")))


def test_metadata_of_every_kind_survives() -> None:
    tree = merge(
        tar(
            Member(name=b"suid", mode=0o6755, uid=3, gid=4),
            Member(name=b"dev", type=b"3", device=(1, 3), mode=0o666),
            Member(name=b"disk", type=b"4", device=(259, 70000)),
            Member(name=b"pipe", type=b"6"),
            folder(b"sticky", mode=0o1777),
        )
    )
    assert (tree[b"suid"].mode, tree[b"suid"].uid, tree[b"suid"].gid) == (0o6755, 3, 4)
    assert tree[b"dev"].rdev == (1, 3)
    assert tree[b"disk"].rdev == (259, 70000)
    assert tree[b"sticky"].mode == 0o1777
    # Linux knows no mode of a symbolic link.
    assert merge(tar(Member(name=b"s", type=b"2", link=b"t", mode=0o600)))[b"s"].mode == 0o777


def test_folder_over_folder_replaces_all_metadata() -> None:
    lower = tar(pax(folder(b"d"), (b"SCHILY.xattr.user.old", b"1"), (b"uid", b"9")))
    tree = merge(lower, tar(folder(b"d", mode=0o700, mtime=5)))
    assert (tree[b"d"].xattrs, tree[b"d"].uid, tree[b"d"].mtime_ns) == ((), 0, 5_000_000_000)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        (b"user.x", True),
        (b"security.capability", True),
        (b"security.ima", True),
        (b"system.posix_acl_access", True),
        (b"system.posix_acl_default", True),
        (b"security.selinux", False),
        (b"security.evm", False),
        (b"trusted.overlay.opaque", False),
        (b"user.overlay.redirect", False),
        (b"system.nfs4_acl", False),
        (b"btrfs.compression", False),
        (b"user.", False),
        (b"nonsense", False),
    ],
)
def test_xattrs_that_are_kept(name: bytes, kept: bool) -> None:  # noqa: FBT001 - a table of cases
    assert keeps_xattr(name) is kept
    tree = merge(tar(pax(file(b"f"), (b"SCHILY.xattr." + name, b"v"))))
    assert tree[b"f"].xattrs == (((name, b"v"),) if kept else ())


def test_content_lies_where_its_layer_has_it() -> None:
    tree = merge(tar(file(b"first"), file(b"f", b"data")))
    assert tree[b"f"].source == FdSource(-1, 1024)


def test_limits_on_the_tree_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "MAX_NAME_BYTES" in refused(tar(pax(file(b"f"), (b"path", b"n" * 256))))
    assert "MAX_PATH_BYTES" in refused(tar(pax(file(b"f"), (b"path", b"/".join([b"n" * 255] * 17)))))
    assert "MAX_PATH_DEPTH" in refused(tar(pax(file(b"f"), (b"path", b"d/" * 1500 + b"f"))))
    # A short name can end up deep by way of a symlink.
    deep = b"/".join([b"n" * 200] * 20)
    lower = tar(pax(folder(b"d"), (b"path", deep)), pax(symlink(b"l", b""), (b"linkpath", deep)))
    assert "MAX_PATH_BYTES" in refused(lower, tar(file(b"l/" + b"x" * 90)))
    monkeypatch.setattr(limits, "MAX_ENTRIES", 5)
    assert "MAX_ENTRIES" in refused(tar(file(b"1/2/3/4/5")))


def test_sum_of_file_sizes_is_bounded_and_counts_hard_links_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_IMAGE_BYTES", 150)
    assert len(merge(tar(file(b"a", b"x" * 100), hardlink(b"b", b"a")))) == 3
    assert "MAX_IMAGE_BYTES" in refused(tar(file(b"a", b"x" * 100), file(b"b", b"x" * 100)))


def test_ten_thousand_entries_in_one_folder() -> None:
    assert len(merge(tar(*[file(b"d/%05d" % number) for number in range(10_000)]))) == 10_002
