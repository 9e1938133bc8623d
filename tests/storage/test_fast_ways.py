"""What is done faster for what usually comes says the very same as what is done for all.

Bodies are made of the vendor's names with usual and odd values, and half of them then have some of
their bytes changed. MUTATED_BODIES -- how many; half a million were tried by hand.
"""

import json
import os
import random

import pytest

from receiver.jobs.first_callback import FirstCallback
from receiver.jobs.projection import Forward, JobState
from receiver.openconnectors import notifications
from receiver.openconnectors.notifications import Notification, parse, parse_json

BODIES = int(os.environ.get("MUTATED_BODIES", "20000"))
LISTS = ("REPORTED", "FAILED", "MESSAGE", "OBJECT", "DIRECTION", "CREATED_AT", "COMPLETED_AT")
NAMED = {name: getattr(notifications, name) for name in (*LISTS, "ATTEMPT", "CALLBACK_PAYLOAD")}
NAMES = ["id", *notifications.STATUS, "pad", "response", "eventId"]
NAMES += [spelling for spellings in NAMED.values() for spelling in spellings]
WORDS = ("COMPLETED", "complete", "SUCCESS", "ERROR", "ABORTED", "CANCELLED", "canceled", "RUNNING")
WORDS += ("CREATED", "STARTED", "CANCELLATION_PENDING", "ODD", "", "x y")
ODD = (None, True, 1.5, -3, 10**19, 2**63 - 1, [], {}, [1, {"a": None}], "", "ü", "a\0b", "12")
ODD += ("1e3", "\ud800", 4.2e7, "007", 1e2)
IDS = ("42", 42, 4.2e7, "a.b:c", "x" * 201, "", "sp ace", 7, 10**30)
TIMES = (0, 1_760_000_000_000, notifications.MAX_TIME_MS, notifications.MAX_TIME_MS + 1)
TEXTS = ("contact", "words", 'say "x"', "tab\t", {"a": [1, 2.50, "z"]}, 5)
BYTES = (b" ", b"\t", b"\n", b"\1", b"0", b",", b'"', b"\\", b"-", b"NaN", b"01", b"\x7f", b"\\x")
BYTES += (b"\xef\xbb\xbf", b"{", b"]", b"e5", b".0")


def value(chance: random.Random, name: str) -> object:
    if chance.random() < 0.08:
        return chance.choice(ODD)
    if name in notifications.STATUS:
        return chance.choice(WORDS)
    if name in NAMED["REPORTED"] + NAMED["FAILED"]:
        return chance.choice([0, 1, 5, 10, "7"])
    if name in NAMED["CREATED_AT"] + NAMED["COMPLETED_AT"]:
        return chance.choice(TIMES)
    if name in NAMED["ATTEMPT"]:
        return chance.choice([0, 1, 2])
    return chance.choice(IDS if name == "id" else TEXTS)


def made(chance: random.Random) -> bytes:
    names = chance.sample(NAMES, chance.randint(1, 12))
    if chance.random() < 0.9:
        names += ["id", chance.choice(notifications.STATUS)]
    chance.shuffle(names)
    raw = chance.random() < 0.7
    members = (
        f"{json.dumps(name)}:{json.dumps(value(chance, name), ensure_ascii=raw)}" for name in names
    )
    body = bytearray(("{" + ",".join(members) + "}").encode("utf-8", "surrogatepass"))
    if chance.random() < 0.5:
        for _ in range(chance.randint(1, 3)):
            change(chance, body)
    return bytes(body)


def change(chance: random.Random, body: bytearray) -> None:
    place, kind = chance.randrange(len(body) + 1), chance.random()
    if kind < 0.4:
        body[place : place + 1] = bytes([chance.randrange(256)])
    elif kind < 0.7:
        del body[place : place + chance.randint(1, 4)]
    else:
        body[place:place] = chance.choice(BYTES)


def slowly_read(body: bytes) -> Notification:
    """Read a body by the reader that keeps each number as it is written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(notifications, "_parse_fast", parse_json)
        return parse(body)


def first_words(notification: Notification, now: int) -> tuple[object, object]:
    """What is stored of a job of which this is the first word: written out, and by the law."""
    word = FirstCallback("default", notification, now)
    state = JobState("default", str(notification.job), now, now)
    changed, note = state.apply_callback(notification, Forward(b""), now)
    values = state.values(7, now)
    assert (note, state.forwards, state.submissions) == (None, [], [])
    return (word.facet(), word.changes, word.values(7, now)), (state.facet(), changed, values)


@pytest.mark.parametrize("seed", range(4))
def test_what_usually_comes_is_read_and_stored_as_anything_is(seed):
    chance = random.Random(seed)
    for _ in range(BODIES // 4):
        body = made(chance)
        read = parse(body)
        assert (body, read) == (body, slowly_read(body))
        if read.kind == "bulk_job":
            quick, general = first_words(read, chance.choice([1, 1_770_000_000_000]))
            assert (body, quick) == (body, general)
