"""registries.conf and registries.d: mirrors, blocked registries, short names, where signatures lie."""

import tomllib

import pytest

from secrun.digest import Digest
from secrun.errors import DeniedError, UsageError
from secrun.image import lookaside, registriesconf
from secrun.image.reference import parse as parse_reference

# registries.conf.


def conf(text):
    return registriesconf.parse(tomllib.loads(text), "/etc/containers/registries.conf")


def places(text, name):
    reference = parse_reference(f"docker://{name}")
    return [(item.reference.name, item.insecure) for item in conf(text).endpoints(reference)]


MAN_PAGE = """
unqualified-search-registries = ["example.com"]

[[registry]]
prefix = "example.com/foo"
insecure = false
blocked = false
location = "internal-registry-for-example.com/bar"

[[registry.mirror]]
location = "example-mirror-0.local/mirror-for-foo"

[[registry.mirror]]
location = "example-mirror-1.local/mirrors/foo"
insecure = true

[[registry]]
location = "registry.com"

[[registry.mirror]]
location = "mirror.registry.com"
"""


def test_the_example_of_the_man_page():
    assert places(MAN_PAGE, "example.com/foo/image:latest") == [
        ("example-mirror-0.local/mirror-for-foo/image:latest", False),
        ("example-mirror-1.local/mirrors/foo/image:latest", True),
        ("internal-registry-for-example.com/bar/image:latest", False),
    ]
    assert places(MAN_PAGE, "registry.com/image:latest") == [
        ("mirror.registry.com/image:latest", False),
        ("registry.com/image:latest", False),
    ]
    assert places(MAN_PAGE, "example.com/foobar:1") == [("example.com/foobar:1", False)]


DIGEST = f"sha256:{'0' * 64}"


@pytest.mark.parametrize(
    ("mode", "by_tag", "by_digest"),
    [
        ("", True, True),
        ('pull-from-mirror = "all"', True, True),
        ('pull-from-mirror = "digest-only"', False, True),
        ('pull-from-mirror = "tag-only"', True, False),
    ],
)
def test_a_mirror_may_be_for_digests_or_tags_only(mode, by_tag, by_digest):
    text = f'[[registry]]\nlocation = "r.example"\n[[registry.mirror]]\nlocation = "m.example"\n{mode}\n'
    assert (len(places(text, "r.example/x:1")) == 2) == by_tag
    assert (len(places(text, f"r.example/x@{DIGEST}")) == 2) == by_digest


def test_a_wildcard_covers_subdomains_and_may_leave_names_as_they_are():
    text = '[[registry]]\nprefix = "*.example"\ninsecure = true\n'
    assert places(text, "a.b.example/x:1") == [("a.b.example/x:1", True)]
    assert places(text, "example/x:1") == [("docker.io/example/x:1", False)]
    moved = '[[registry]]\nprefix = "*.example"\nlocation = "m.local/all"\n'
    assert places(moved, "a.example/x/y:1") == [("m.local/all/x/y:1", False)]
    longer = f'{text}[[registry]]\nprefix = "a.example"\nlocation = "other.local"\n'
    assert places(longer, "a.example/x:1") == [("other.local/x:1", False)]


def test_a_blocked_registry_is_a_denial_that_names_the_file():
    with pytest.raises(DeniedError) as caught:
        places('[[registry]]\nlocation = "r.example/x"\nblocked = true\n', "r.example/x/y:1")
    assert caught.value.exit_code == 120
    assert "/etc/containers/registries.conf" in caught.value.message


def test_short_names_are_aliases_or_in_the_only_registry_to_search():
    text = '[aliases]\n"app" = "r.example/team/app"\n"old" = ""\n'
    found = conf(text)
    assert found.expand("app") == "r.example/team/app"
    assert found.expand("app:2") == "r.example/team/app:2"
    assert found.expand("old") == ""
    assert found.expand("other") == ""
    one = conf(f'unqualified-search-registries = ["r.example"]\n{text}')
    assert one.expand("team/other:1") == "r.example/team/other:1"
    two = conf(f'unqualified-search-registries = ["r.example", "s.example"]\n{text}')
    assert two.expand("app") == "r.example/team/app"
    with pytest.raises(UsageError) as caught:
        two.expand("other")
    assert "r.example or s.example" in caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        "x = 1",
        "[registries.search]\nregistries = []",
        "[[registry]]",
        '[[registry]]\nlocation = "r.example"\nx = 1',
        '[[registry]]\nlocation = "https://r.example"',
        '[[registry]]\nprefix = "*.a/b"\nlocation = "x.example"',
        '[[registry]]\nprefix = "a.*.b"\nlocation = "x.example"',
        '[[registry]]\nlocation = "r.example"\nblocked = "yes"',
        '[[registry]]\nlocation = "r.example"\n[[registry]]\nprefix = "r.example"',
        '[[registry]]\nlocation = "r.example"\n[[registry.mirror]]\ninsecure = true',
        ('[[registry]]\nlocation = "r.example"\nmirror-by-digest-only = true\n'
        '[[registry.mirror]]\nlocation = "m.example"\npull-from-mirror = "tag-only"'),
        'short-name-mode = "never"',
        '[aliases]\n"a" = "b"',
        '[aliases]\n"a" = "r.example/b:1"',
        '[aliases]\n"a" = 1',
    ],
)  # fmt: skip
def test_settings_that_are_not_understood_are_errors(text):
    with pytest.raises(UsageError) as caught:
        conf(text)
    assert caught.value.code == "usage-registries"


def test_a_drop_in_replaces_the_table_of_its_prefix(tmp_path, monkeypatch):
    folder = tmp_path / ".config/containers"
    (folder / "registries.conf.d").mkdir(parents=True)
    (folder / "registries.conf").write_text('[[registry]]\nlocation = "r.example"\nblocked = true\n')
    (folder / "registries.conf.d/b.conf").write_text(
        '[[registry]]\nlocation = "r.example"\ninsecure = true\n'
    )
    found = registriesconf.load({"HOME": str(tmp_path)})
    assert found.endpoints(parse_reference("r.example/x:1"))[0].insecure
    named = tmp_path / "other.conf"
    named.write_text("")
    environ = {"HOME": str(tmp_path), "CONTAINERS_REGISTRIES_CONF": str(named)}
    assert registriesconf.load(environ).registries == ()


# registries.d.


def test_the_most_specific_section_counts_alone():
    text = b"""
default-docker:
  lookaside: file:///default
docker:
  r.example:
    lookaside: https://s.example/sigs
    use-sigstore-attachments: true
  r.example/team:
    use-sigstore-attachments: false
"""
    found = lookaside.Lookaside(sections=lookaside.parse(text, "/x.yaml"))

    def section(name):
        return found.section(parse_reference(f"docker://{name}"))

    assert section("r.example/x:1") == lookaside.Section(
        lookaside="https://s.example/sigs", attachments=True
    )
    assert section("r.example/team/x:1") == lookaside.Section(lookaside="", attachments=False)
    assert section("other.example/x:1").lookaside == "file:///default"
    empty = lookaside.Lookaside(sections={}).section(parse_reference("docker://r.example/x:1"))
    assert empty.lookaside == "file:///var/lib/containers/sigstore"


@pytest.mark.parametrize(
    "text",
    [
        b"[",
        b"x: 1",
        b"- 1",
        b"docker: 1",
        b"docker: {r.example: 1}",
        b"docker: {r.example: {x: 1}}",
        b"docker: {r.example: {lookaside: 'ftp://x/'}}",
        b"docker: {r.example: {use-sigstore-attachments: 1}}",
        b"!!python/object/apply:os.system ['true']",
        b"\xff",
    ],
)
def test_sections_that_are_not_understood_are_errors(text):
    with pytest.raises(UsageError) as caught:
        lookaside.parse(text, "/x.yaml")
    assert caught.value.code == "usage-registries"


def test_a_scope_in_two_files_is_an_error(tmp_path):
    folder = tmp_path / ".config/containers/registries.d"
    folder.mkdir(parents=True)
    for name in ("a", "b"):
        (folder / f"{name}.yaml").write_text("docker: {r.example: {lookaside: 'file:///x'}}\n")
    with pytest.raises(UsageError, match="another file"):
        lookaside.load({"HOME": str(tmp_path)})


def test_signatures_lie_where_containers_signature_says(tmp_path):
    reference = parse_reference("docker://r.example/team/app:1")
    digest = Digest.of(b"x")
    folder = tmp_path / f"team/app@sha256={digest.hex}"
    folder.mkdir(parents=True)
    (folder / "signature-1").write_bytes(b"one")
    (folder / "signature-2").write_bytes(b"two")
    (folder / "signature-4").write_bytes(b"four")
    found = lookaside.messages(f"file://{tmp_path}", reference, digest, None)
    assert list(found) == [b"one", b"two"]
