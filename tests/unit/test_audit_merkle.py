"""The audit log's tree and heads, against the definitions of RFC 6962 and C2SP's own examples."""

import base64
import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from secrun_attest.audit import merkle, note
from secrun_attest.errors import FormatError
from support.audited import NAME, other_key
from support.policies import pem_of, public_pem_of

# RFC 6962's own example tree, as published with Certificate Transparency's reference tests.
LEAVES = [bytes.fromhex(text) for text in (
    "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f",
)]  # fmt: skip
ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)


class Stored:
    """A tree in the file's own layout."""

    def __init__(self, leaves):
        self.frontier, self.hashes = merkle.Frontier(), []
        for leaf in leaves:
            self.hashes += self.frontier.append(merkle.leaf_hash(leaf))

    def read(self, height, number):
        return self.hashes[merkle.stored_index(height, number)]


def naive(leaves):
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return hashlib.sha256(b"\1" + naive(leaves[:split]) + naive(leaves[split:])).digest()


def test_roots_are_those_of_the_standard():
    assert merkle.Frontier().root() == merkle.EMPTY_ROOT
    for count, root in enumerate(ROOTS, 1):
        assert Stored(LEAVES[:count]).frontier.root().hex() == root


@given(st.integers(1, 70), st.data())
def test_any_tree_has_the_defined_root_and_proofs_that_lead_to_it_and_nowhere_else(size, data):
    leaves = [bytes([number]) for number in range(size)]
    tree = Stored(leaves)
    root = tree.frontier.root()
    assert root == naive(leaves)
    assert len(tree.hashes) == merkle.stored_count(size)
    old = data.draw(st.integers(0, size))
    assert merkle.frontier(tree.read, old).root() == naive(leaves[:old])
    proof = merkle.consistency_proof(tree.read, old, size)
    merkle.check_consistency(old, naive(leaves[:old]), size, root, proof)
    index = data.draw(st.integers(0, size - 1))
    path = merkle.inclusion_proof(tree.read, index, size)
    assert merkle.root_of_inclusion(merkle.leaf_hash(leaves[index]), index, size, path) == root
    assert merkle.root_of_inclusion(merkle.leaf_hash(b"other"), index, size, path) != root
    if old not in (0, size):
        other = naive([*leaves[: old - 1], b"other"])
        for wrong in (proof[:-1], [*proof, bytes(32)], [bytes(32), *proof[1:]]):
            with pytest.raises(merkle.ProofError):
                merkle.check_consistency(old, naive(leaves[:old]), size, root, wrong)
        with pytest.raises(merkle.ProofError):
            merkle.check_consistency(old, other, size, root, proof)


@pytest.mark.parametrize(("old", "size"), [(3, 2), (-1, 2)])
def test_a_tree_is_no_beginning_of_a_smaller_one(old, size):
    with pytest.raises(merkle.ProofError):
        merkle.check_consistency(old, bytes(32), size, bytes(32), [])
    with pytest.raises(merkle.ProofError):
        merkle.consistency_proof(Stored([b""] * 4).read, old, size)


def test_a_note_of_the_go_project_is_read():
    """The example of the signed-note specification's reference implementation."""
    key = b"PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    text = "If you think cryptography is the answer to your problem,\n"
    text += "then you don't know what your problem is.\n"
    signature = (
        "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
    )
    signed = f"{text}\n\u2014 PeterNeumann {signature}\n".encode()
    verifier = note.load_verifier(key, what="key")
    assert verifier.text().encode() == key
    assert note.open_note(signed, verifier) == text
    with pytest.raises(note.NoteError) as caught:
        note.open_note(signed.replace(b"know", b"knew"), verifier)
    assert caught.value.code == "audit-signature"


def test_a_head_is_signed_and_read_back_with_either_form_of_the_key():
    signer = other_key()
    head = note.Checkpoint(origin=NAME, size=7, root=bytes(range(32)))
    signed = signer.note(head.text())
    for form in (signer.verifier.text().encode(), signer.verifier.pem()):
        assert note.open_checkpoint(signed, note.load_verifier(form, what="key")) == head
    with pytest.raises(note.OtherKeyError):
        note.open_checkpoint(signed, other_key().verifier)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"a\n1\n",
        b"origin\n1\n" + base64.b64encode(bytes(32)) + b"\n",
        b"origin\n1\nAAAA\n\n\xe2\x80\x94 a AAAA\n",
        b"\xff\n\n\xe2\x80\x94 a AAAA\n",
        b"origin\n1\n\n- a AAAA\n",
        b"x" * (note.MAX_NOTE + 1),
    ],
)
def test_what_is_no_signed_head_is_refused(text):
    with pytest.raises(note.NoteError):
        note.open_checkpoint(text, other_key().verifier)


@pytest.mark.parametrize("size", ["01", "-1", "1e3", "9" * 17, "\u0661"])
def test_a_size_has_one_spelling(size):
    with pytest.raises(note.NoteError):
        note.parse_checkpoint(f"o\n{size}\n{base64.b64encode(bytes(32)).decode()}\n")


def test_keys_of_another_kind_are_refused():
    key = ec.generate_private_key(ec.SECP256R1())
    for call in (
        lambda: note.load_verifier(public_pem_of(key), what="key"),
        lambda: note.load_signer(NAME, pem_of(key), what="key"),
        lambda: note.load_verifier(b"name+00000000+AQAA", what="key"),
        lambda: note.load_verifier(other_key().verifier.text().replace("+", "+0", 1).encode(), what="key"),
    ):
        with pytest.raises(FormatError):
            call()
    signer = note.load_signer(NAME, pem_of(ed25519.Ed25519PrivateKey.generate()), what="key")
    assert note.open_note(signer.note("text\n"), signer.verifier) == "text\n"


def test_a_hosts_name_makes_a_name_of_a_key():
    assert note.note_name("web 1+a\n") == "secrun.dev/audit/web-1-a-"
