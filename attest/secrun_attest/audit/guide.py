"""VERIFY.md: how to check a bundle with tools that everybody has."""

_ROOT_PROGRAM = """\
import hashlib, json
sha = lambda data: hashlib.sha256(data).digest()
said = json.load(open("bundle.json"))
peaks, size = [bytes.fromhex(item) for item in said["frontier"]], said["first"]
leaves = open("leaves", "rb")
while leaf := leaves.read(32):
    bits, size = size, size + 1
    while bits & 1:
        leaf, bits = sha(b"\\1" + peaks.pop() + leaf), bits >> 1
    peaks.append(leaf)
root = peaks.pop()
while peaks:
    root = sha(b"\\1" + peaks.pop() + root)
print(size, root.hex())"""

_RECORDS_PROGRAM = """\
import glob, hashlib, json
first, leaves = json.load(open("bundle.json"))["first"], open("leaves", "rb")
for name in glob.glob("records/*.cel"):
    leaves.seek(32 * (int(name[8:-4]) - first))
    for line in open(name):
        data = bytes.fromhex(json.loads(line)["content"]["event_data"])
        assert hashlib.sha256(b"\\0" + data).digest() == leaves.read(32), (name, data)
print("every record has the hash of its leaf")"""

_TEXT = """\
# How to check this bundle

It holds leaves {first} to {size} of the audit log `{origin}`.
You need the host's public key, and not from here: ask the host's owner for it, on another way than this file
came. Below it is `host.pem`.

With `secrun_attest`, which needs nothing but the Python package `cryptography`:

    secrun audit verify --key host.pem BUNDLE.tar
    python3 -m secrun_attest.audit verify --key host.pem BUNDLE.tar

With tools of your system, in the folder into which you have unpacked the bundle:

1. Nothing was changed since the host wrote it.

       sha256sum --check --quiet SHA256SUMS
       openssl pkeyutl -verify -pubin -inkey host.pem -rawin -in SHA256SUMS -sigfile SHA256SUMS.sig

2. The head of the log is the host's: the first three lines of `checkpoint` are signed.

       head -n 3 checkpoint > head.txt
       sed -n 's/^\u2014 .* //p' checkpoint | head -n 1 | base64 -d | tail -c 64 > head.sig
       openssl pkeyutl -verify -pubin -inkey host.pem -rawin -in head.txt -sigfile head.sig

3. The leaves give the root that was signed (RFC 6962). This prints size and root, then the head's root:

       python3 root.py; sed -n 3p checkpoint | base64 -d | xxd -p -c 32

4. Every record is its leaf:

       python3 records.py

5. The host's TPM held these records when it quoted: one line for each quote. The PCR is in `segments.jsonl`,
   and `secrun audit verify` compares it with the records.

{quotes}

Then read `trail.jsonl` or `trail.csv`: a row for each record. `accounts.jsonl` tells how each pod was
confined, in the order in which they ended; the digest of each line is in its PodExit record.
"""


def files(*, origin: str, first: int, size: int, quotes: list[str]) -> dict[str, bytes]:
    """Return VERIFY.md and the programs that it names; `quotes` are command lines."""
    commands = "\n".join(f"       {line}" for line in quotes) or "       (there is none)"
    text = _TEXT.format(origin=origin, first=first, size=size, quotes=commands)
    return {
        "VERIFY.md": text.encode(),
        "root.py": f"{_ROOT_PROGRAM}\n".encode(),
        "records.py": f"{_RECORDS_PROGRAM}\n".encode(),
    }
