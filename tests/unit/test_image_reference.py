"""References parse by the distribution grammar, and nothing means Docker Hub by accident."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secrun.errors import UsageError
from secrun.image import identity, reference
from secrun.image.reference import FileReference, RegistryReference, StoredReference, Transport, parse

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("docker://busybox", "docker://docker.io/library/busybox:latest"),
        ("docker://library/busybox:1", "docker://docker.io/library/busybox:1"),
        ("docker.io/busybox", "docker://docker.io/library/busybox:latest"),
        ("index.docker.io/a/b", "docker://docker.io/a/b:latest"),
        ("localhost/app", "docker://localhost/app:latest"),
        ("docker://127.0.0.1:5000/a/b__c:V1.0-x", "docker://127.0.0.1:5000/a/b__c:V1.0-x"),
        ("docker://[::1]:5000/a", "docker://[::1]:5000/a:latest"),
        (f"r.example/a@sha256:{HEX}", f"docker://r.example/a@sha256:{HEX}"),
        (f"r.example/a:t@sha256:{HEX}", f"docker://r.example/a:t@sha256:{HEX}"),
        ("oci:/x/y:tag", "oci:/x/y:tag"),
        ("oci:dir", "oci:dir"),
        ("oci-archive:a.tar:r.example/a:1", "oci-archive:a.tar:r.example/a:1"),
        ("docker-archive:a.tar:busybox:1", "docker-archive:a.tar:busybox:1"),
        ("docker-archive:a.tar:@0", "docker-archive:a.tar:@0"),
    ],
)
def test_references_have_one_canonical_form(text, canonical):
    parsed = parse(text)
    assert str(parsed) == canonical
    assert parse(canonical) == parsed


@pytest.mark.parametrize("text", ["busybox", "library/busybox:1", "abcd", f"sha256:{HEX}", "docker:5000"])
def test_a_bare_word_without_a_registry_is_only_looked_up_in_the_store(text):
    assert parse(text) == StoredReference(text=text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a b",
        "x\ny",
        "docker:busybox",
        "docker://",
        "docker://r.example/UPPER",
        "docker://r.example/a//b",
        "docker://r.example/a/",
        "docker://r.example/-a",
        "docker://r.example/a___b",
        "docker://r.example/a:",
        "docker://r.example/a:-x",
        "docker://r.example/a:" + "x" * 129,
        "docker://r.example/" + "a" * 250,
        "docker://r.example:port/a",
        "docker://-r.example/a",
        "docker://u:p@r.example/a",
        "docker://r.example/a@sha256:abc",
        "docker://r.example/a@md5:" + HEX,
        "docker://r.example/../a",
        "ftp://r.example/a",
        "sif:/x",
        "containers-storage:x",
        "oci:",
        "oci:x:",
        "oci:x:a//b",
        "oci:x\0y",
        "docker-archive:x:@",
        "docker-archive:x:@x",
        f"docker-archive:x:a@sha256:{HEX}",
    ],
)
def test_what_the_grammar_forbids_is_a_usage_error_that_quotes_it(text):
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert repr(text[:40])[:-1].rstrip("'\"") in caught.value.message
    assert caught.value.hint


COMPONENT = st.from_regex(r"[a-z0-9]+((\.|__?|-{1,3})[a-z0-9]+){0,2}", fullmatch=True)
DOMAIN = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,5}[a-z0-9])?\.[a-z0-9]{1,5}(:[0-9]{1,5})?", fullmatch=True)
TAG = st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,20}", fullmatch=True)


@given(DOMAIN, st.lists(COMPONENT, min_size=1, max_size=4), TAG, st.booleans())
def test_every_name_of_the_grammar_comes_back_as_it_was(domain, words, tag, digested):
    name = f"{domain}/{'/'.join(words)}:{tag}" + (f"@sha256:{HEX}" if digested else "")
    if domain in ("index.docker.io", "docker.io"):
        return
    parsed = parse(f"docker://{name}")
    assert isinstance(parsed, RegistryReference)
    assert str(parsed) == f"docker://{name}"
    assert parsed == parse(name)
    assert parsed.wanted == (f"sha256:{HEX}" if digested else tag)


@given(st.text(max_size=60) | st.text("abAB01:/@._-[]", max_size=40))
def test_any_text_parses_to_its_canonical_form_or_is_a_usage_error(text):
    for candidate in (text, f"docker://{text}", f"oci:{text}", f"docker-archive:{text}"):
        try:
            parsed = parse(candidate)
        except UsageError:
            continue
        assert parse(str(parsed)) == parsed


# The grammar of org.opencontainers.image.ref.name as skopeo 1.9 and umoci 0.4 enforce it.
REF_NAME = re.compile(r"[A-Za-z0-9]+(?:(?:--|[-._:@+/])[A-Za-z0-9]+)*\Z")


@given(st.text("ab_.-/:", min_size=1, max_size=30), st.text("ab_.-/:", min_size=1, max_size=30))
def test_names_for_other_tools_keep_their_grammar_and_stay_apart(one, other):
    assert REF_NAME.match(reference.layout_name(one))
    if one != other:
        assert reference.layout_name(one) != reference.layout_name(other)


def test_a_path_is_made_absolute_and_loses_its_links(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    assert reference.localize(parse("oci:link:x")) == FileReference(
        transport=Transport.OCI, path=str(tmp_path / "real"), tag="x"
    )


def test_scopes_go_from_the_image_to_the_wildcards():
    parsed = parse("docker://r.a.example:5000/x/y:1")
    assert isinstance(parsed, RegistryReference)
    assert identity.registry_scopes(parsed) == (
        "r.a.example:5000/x/y:1",
        "r.a.example:5000/x/y",
        "r.a.example:5000/x",
        "r.a.example:5000",
        "*.a.example",
        "*.example",
    )


def test_a_digest_stands_for_the_tag_in_scopes():
    parsed = parse(f"r.example/x:1@sha256:{HEX}")
    assert isinstance(parsed, RegistryReference)
    assert identity.registry_scopes(parsed)[0] == f"r.example/x@sha256:{HEX}"


def test_scopes_of_files_are_their_folders_but_not_the_root():
    oci = FileReference(transport=Transport.OCI, path="/a/b", tag="t")
    assert identity.file_scopes(oci) == ("/a/b", "/a")
    archive = FileReference(transport=Transport.DOCKER_ARCHIVE, path="/a/b.tar", tag="t:1")
    assert identity.file_scopes(archive) == ()
