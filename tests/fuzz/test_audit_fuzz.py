"""Damaged audit bundles: the verifier names what it finds and never fails itself."""

import io
import random

from secrun_attest.audit.verify import verify_bundle
from support.audited import AuditedHost, members, packed

ROUNDS = 300


def damaged(data: bytes, chance: random.Random) -> bytes:
    found = bytearray(data)
    at = chance.randrange(len(found))
    match chance.randrange(4):
        case 0:
            found[at] ^= 1 << chance.randrange(8)
        case 1:
            del found[at : at + chance.randrange(1, 60)]
        case 2:
            found[at:at] = found[chance.randrange(len(found)) :][:50]
        case _:
            lines = bytes(found).split(b"\n")
            chance.shuffle(lines)
            found = bytearray(b"\n".join(lines))
    return bytes(found)


def test_no_damage_breaks_the_verifier_or_passes_unseen(tmp_path, fuzz_scale):
    host = AuditedHost(tmp_path)
    host.pod()
    host.close()
    host.reboot()
    host.pod()
    whole = host.bundle()
    files, key, signer = members(whole), host.key, host.signer()
    for seed in range(ROUNDS * fuzz_scale):
        chance = random.Random(seed)
        forged = dict(files)
        name = chance.choice([name for name, data in files.items() if data])
        forged[name] = damaged(files[name], chance)
        by_host = chance.random() < 0.5
        report = verify_bundle(io.BytesIO(packed(dict(forged), signer if by_host else None)), key).report
        report.to_json()
        if forged != files and not by_host and name not in ("SHA256SUMS", "SHA256SUMS.sig"):
            assert report.findings, (seed, name)
        cut = whole[: chance.randrange(len(whole))]
        assert verify_bundle(io.BytesIO(cut), key).report.findings, seed
