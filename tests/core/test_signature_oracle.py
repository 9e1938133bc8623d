"""Random deliveries, judged by an oracle of our own: none falsely accepted, none falsely refused.

The oracle knows RFC 2104, SHA-256 and the vendor's one sentence about the header, and shares no
code with the receiver. ORACLE_CASES and ORACLE_SEED choose other cases than 100,000 random ones.
"""

import hashlib
import os
import random
from base64 import b64encode, urlsafe_b64encode
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import pytest
from builders import examples

from receiver.errors import SignatureError
from receiver.openconnectors.signatures import HEADER, SignatureKey, verify

CASES = int(os.environ.get("ORACLE_CASES", "100000"))
SEED = int(os.environ.get("ORACLE_SEED", "0")) or random.SystemRandom().randrange(2**32)
PARTS = 4  # run side by side
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


def hmac_sha256(key: bytes, body: bytes) -> bytes:
    """HMAC as RFC 2104 defines it."""
    block = (hashlib.sha256(key).digest() if len(key) > 64 else key).ljust(64, b"\0")
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block) + body).digest()
    return hashlib.sha256(bytes(byte ^ 0x5C for byte in block) + inner).digest()


def expected(body: bytes, header: str | None, keys: list[bytes]) -> int | None:
    """Tell the place of the first key that signed the body, or None."""
    for place, key in enumerate(keys):
        right = "sha256=" + b64encode(hmac_sha256(key, body)).decode()
        if header is not None and list(map(ord, header)) == list(map(ord, right)):
            return place
    return None


def some_bytes(dice: random.Random, longest: int) -> bytes:
    return dice.randbytes(dice.randint(0, dice.choice([4, 64, longest])))


def some_key(dice: random.Random) -> bytes:
    return (some_bytes(dice, 200) + bytes([dice.randint(1, 255)]))[-dice.choice([1, 16, 64, 201]) :]


def a_bit_flipped(dice: random.Random, content: bytes) -> bytes:
    if not content:
        return b"\0"
    changed = bytearray(content)
    changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def other_digit(header: str) -> str:
    """The last base64 digit with its unused bits set: it decodes to the same digest."""
    place = ALPHABET.index(header[-2])
    return f"{header[:-2]}{ALPHABET[place ^ 1]}="


def changed_text(dice: random.Random, header: str) -> str:
    at, cut = dice.randrange(len(header) + 1), dice.randint(0, 2)
    new = "".join(
        chr(dice.choice([0, 10, 32, 43, 61, 65, 255, 0x2028, 0xDC80])) for _ in range(cut)
    )
    return header[:at] + new + header[at + dice.randint(0, 2) :]


class Signed(NamedTuple):
    """What a delivery is forged from: a body and the key that signs it."""

    dice: random.Random
    key: bytes
    body: bytes

    @property
    def digest(self) -> bytes:
        return hmac_sha256(self.key, self.body)

    @property
    def right(self) -> str:
        return written(self.digest)


def written(digest: bytes, name: str = "sha256") -> str:
    return f"{name}={b64encode(digest).decode()}"


HEADERS: dict[str, Callable[[Signed], str | None]] = {
    "none": lambda _: None,
    "empty": lambda _: "",
    "hex": lambda it: f"sha256={it.digest.hex()}",
    "url-safe": lambda it: f"sha256={urlsafe_b64encode(it.digest).decode()}",
    "unpadded": lambda it: it.right.rstrip("="),
    "padded twice": lambda it: f"{it.right}=",
    "same digest otherwise": lambda it: other_digit(it.right),
    "bare": lambda it: it.right.removeprefix("sha256="),
    "upper": lambda it: it.right.replace("sha256", "SHA256"),
    "sha1": lambda it: it.right.replace("sha256", "sha1"),
    "sha512": lambda it: written(hashlib.sha512(it.key + it.body).digest(), "sha512"),
    "hash without key": lambda it: written(hashlib.sha256(it.body).digest()),
    "hash of key and body": lambda it: written(hashlib.sha256(it.key + it.body).digest()),
    "blank before": lambda it: f" {it.right}",
    "blank after": lambda it: f"{it.right} ",
    "line end": lambda it: f"{it.right}\n",
    "NUL": lambda it: f"{it.right}\0",
    "two": lambda it: f"{it.right},{it.right}",
    "quoted": lambda it: f'"{it.right}"',
    "wide letters": lambda it: "".join(chr(ord(each) + 0xFEE0) for each in it.right),
    "changed": lambda it: changed_text(it.dice, it.right),
    "a bit": lambda it: a_bit_flipped(it.dice, it.right.encode()).decode("latin-1"),
    "digest of a bit": lambda it: written(a_bit_flipped(it.dice, it.digest)),
    "noise": lambda it: it.dice.randbytes(it.dice.randint(1, 60)).decode("latin-1"),
}


def case(dice: random.Random) -> tuple[str, bytes, str | None, list[bytes]]:
    """Make a delivery: (what was done to it, body, header, keys of the instance)."""
    body, keys = some_bytes(dice, 3000), [some_key(dice) for _ in range(dice.randint(0, 3))]
    signer = dice.choice([*keys, some_key(dice)])
    signed = Signed(dice, signer, body)
    kind = dice.choice([*HEADERS, *["right"] * 10, "other body", "other key"])
    if kind in HEADERS:
        return kind, body, HEADERS[kind](signed), keys
    if kind == "other body":
        body = dice.choice([a_bit_flipped(dice, body), body + b"\n", body[:-1], body * 2])
    if kind == "other key":
        keys = [a_bit_flipped(dice, key).rstrip(b"\0") or b"k" for key in keys]
    return kind, body, signed.right, keys


def judged(body: bytes, header: str | None, keys: list[bytes]) -> int | None:
    ring = [SignatureKey(str(place), key) for place, key in enumerate(keys)]
    try:
        return int(verify(body, header, ring))
    except SignatureError:
        return None


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_no_delivery_is_falsely_accepted_or_refused(part):
    dice = random.Random(f"{SEED} {part}")
    seen = Counter[bool]()
    for number in range(CASES // PARTS):
        kind, body, header, keys = case(dice)
        right = expected(body, header, keys)
        assert judged(body, header, keys) == right, (SEED, part, number, kind)
        seen[right is not None] += 1
    assert min(seen[True], seen[False]) > CASES // PARTS // 10


def test_over_http_the_same_deliveries_are_answered_200_or_401(receiver):
    dice, key = random.Random(f"{SEED} http"), receiver.services.settings.default_keys[0].secret
    answered = Counter[int]()
    cases = examples(CASES // 50)
    for number in range(cases):
        kind, body, _, _ = case(dice)
        signed = Signed(dice, key, body)
        made = HEADERS[kind](signed) if kind in HEADERS else signed.right
        # What no HTTP message can carry in a header, no server hands on.
        header = None if made is None else "".join(x for x in made if " " <= x <= "\xff")
        headers = {} if header is None else {HEADER: header}
        status = receiver.client.post(
            "/callbacks/default",
            data=body,
            headers=headers,
            environ_base={"REMOTE_ADDR": f"192.0.2.{number % 250}"},
        ).status_code
        accepted = expected(body, header, [key]) is not None
        assert status == (200 if accepted else 401), (SEED, number, kind, header)
        answered[status] += 1
    assert min(answered[200], answered[401]) > cases // 10
