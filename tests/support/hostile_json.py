"""Random damage to a JSON document, as bytes and as a tree."""

import json
import random


def damaged_bytes(data: bytes, chance: random.Random) -> bytes:
    """Replace, drop or add a few bytes."""
    damaged = bytearray(data)
    for _ in range(chance.choice([1, 1, 1, 2, 5])):
        at = chance.randrange(len(damaged))
        end = at + chance.choice([0, 1, 1, 1, 2, 8])
        size = chance.choice([0, 1, 1, 1, 2])
        damaged[at:end] = chance.randbytes(size) if chance.random() < 0.5 else b'0f"[{,'[:size]
        damaged = damaged or bytearray(b"\0")
    return bytes(damaged)


def damaged_member(data: bytes, chance: random.Random) -> bytes:
    """Replace, drop or double a random member."""
    document = json.loads(data)
    place = document
    while True:
        key = chance.choice(list(place) if isinstance(place, dict) else range(len(place)))
        child = place[key]
        if not (isinstance(child, dict | list) and child) or chance.random() < 0.2:
            break
        place = child
    values = [None, 0, 1, -1, 2**32, 2**64, True, "", "00" * 32, [], {}, [[[[]]]], child]
    if chance.random() < 0.2:
        del place[key]
    else:
        place[key] = chance.choice(values)
        if isinstance(place, list) and chance.random() < 0.3:
            place.insert(0, child)
    return json.dumps(document).encode()
