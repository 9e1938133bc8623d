"""What a verified body says: every shape of the vendor's is read, and any bytes give a reading."""

import json
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from itertools import product
from pathlib import Path
from typing import get_args

import pytest
from builders import examples
from corpus import HOSTILE, UNREADABLE, about, called, job
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import asdict

from receiver.openconnectors import notifications
from receiver.openconnectors.notifications import (
    Kind,
    Notification,
    json_text,
    parse,
    plain_integer,
)

SAMPLES = {
    path.stem: path for path in Path(__file__).parents[1].glob("samples/notifications/*.json")
}
EXPECTED = {
    "seed-complete": Notification("bulk_job", "1234", "COMPLETE"),
    "upload-answer": Notification("bulk_job", "1234", "CREATED"),
    "query-answer": Notification("bulk_job", "1234", "CREATED"),
    "v2-completed": Notification("bulk_job", "1234", "COMPLETED", reported=10, failed=0),
    "v2-partial": Notification(
        "bulk_job", "1234", "COMPLETED", reported=8, failed=2, message="2 records failed"
    ),
    "v2-error": Notification(
        "bulk_job",
        "1234",
        "ERROR",
        reported=0,
        failed=10,
        message='{"code":"INVALID_FIELD","row":3}',
    ),
    "v2-canceled": Notification("bulk_job", "1234", "CANCELED", message="Cancelled by user"),
    "v2-with-payload": Notification(
        "bulk_job",
        "1234",
        "COMPLETED",
        reported=10,
        callback_payload=(
            '{"tenant":"gd-7","amount":1.10,"big":12345678901234567890,"order":[3,1E2]}'
        ),
    ),
    "v3-upload": Notification(
        "bulk_job",
        "42000001",
        "COMPLETED",
        completed_at=1_763_790_600_123,
        reported=9,
        failed=1,
        message="Completed with errors",
        object="contact",
        direction="UPLOAD",
        created_at=1_763_790_540_000,
    ),
    "v3-running": Notification(
        "bulk_job",
        "42000002",
        "RUNNING",
        reported=0,
        failed=0,
        object="account",
        direction="DOWNLOAD",
        created_at=1_763_790_540_000,
    ),
    "v3-aborted": Notification(
        "bulk_job",
        "42000003",
        "ABORTED",
        completed_at=1_763_790_541_000,
        message="Job aborted",
        object="list",
        direction="DOWNLOAD",
        created_at=1_763_790_540_000,
    ),
    "list-reset": Notification(
        "bulk_job",
        "42000004",
        "COMPLETED",
        attempt=1,
        completed_at=1_763_790_700_000,
        reported=10,
        failed=0,
        object="campaign",
        direction="UPLOAD",
        created_at=1_763_790_540_000,
    ),
    "list-cancelling": Notification(
        "bulk_job",
        "42000005",
        "CANCELLATION_PENDING",
        reported=3,
        object="activities",
        direction="UPLOAD",
        created_at=1_763_790_540_000,
    ),
    "mixed-spellings": Notification(
        "bulk_job",
        "42000000",
        "complete",
        completed_at=1_763_790_600_123,
        reported=7,
        failed=3,
        message="done",
        object="contact",
        direction="UPLOAD",
    ),
    "first-spelling-wins": Notification(
        "bulk_job",
        "1234",
        "RUNNING",
        completed_at=7,
        reported=1,
        failed=4,
        message="a",
        object="d",
        direction="UPLOAD",
    ),
    "v2-bulk-times": Notification(
        "bulk_job",
        "1234",
        "COMPLETED",
        completed_at=1_763_790_600_123,
        reported=10,
        failed=0,
        message="10 records were loaded",
        created_at=1_763_790_540_000,
    ),
    "async-request": Notification("async_request"),
    "element-event": Notification("element_event"),
}

KINDS = set(get_args(Kind))
FACTS = ("REPORTED", "FAILED", "MESSAGE", "OBJECT", "DIRECTION", "CREATED_AT", "COMPLETED_AT")
NAMES = [
    name for fact in (*FACTS, "ATTEMPT", "CALLBACK_PAYLOAD") for name in vars(notifications)[fact]
]
MARKERS = ["id", *notifications.STATUS, "eventId", "notificationId", "response", "instanceId"]

ids = st.from_regex(r"[A-Za-z0-9._:~-]{1,200}", fullmatch=True)
texts = st.text(st.characters(codec=None), max_size=8)  # NUL and lone surrogates included
leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from([0, 7, 2**63]), texts
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
documents = st.dictionaries(st.sampled_from(NAMES) | texts, values, max_size=6)
near_jobs = st.dictionaries(st.sampled_from(NAMES + MARKERS), values, max_size=8)


def read(document: object) -> Notification:
    return parse(json.dumps(document).encode())


def is_finite(value: object) -> bool:
    return not re.search("NaN|Infinity", json.dumps(value))


def is_storable(notification: Notification) -> bool:
    """Whether PostgreSQL and SQLite take every fact: text without NUL, numbers of 64 bits."""
    facts = [getattr(notification, name) for name in Notification.__slots__]
    return all(
        fact is None
        or (isinstance(fact, int) and 0 <= fact < 2**63)
        or (isinstance(fact, str) and "\0" not in fact and fact.encode("utf-8") is not None)
        for fact in facts
    )


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Interrupt what would otherwise take hours."""

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_every_shape_of_the_vendors_is_read():
    assert {name: parse(path.read_bytes()) for name, path in SAMPLES.items()} == EXPECTED


@pytest.mark.parametrize("case", UNREADABLE + HOSTILE, ids=lambda case: case.name)
def test_every_oddity_has_its_kind(case):
    notification = parse(case.body)
    assert (notification.kind, is_storable(notification)) == (case.kind, True)


def test_the_corpus_is_large_and_names_each_body_once():
    assert len(UNREADABLE) >= 40
    assert len({case.name for case in UNREADABLE}) == len(UNREADABLE)
    assert len({case.name for case in HOSTILE}) == len(HOSTILE)
    assert len({case.body for case in UNREADABLE + HOSTILE}) == len(UNREADABLE + HOSTILE)


@pytest.mark.parametrize(
    ("written", "plain"),
    {
        "42000000": "42000000",
        "4.2E7": "42000000",
        "42000000.0": "42000000",
        "0.042e+9": "42000000",
        "420000000e-1": "42000000",
        "-0": "0",
        "0.0e-5": "0",
        "-5": "-5",
        "1e199": "1" + "0" * 199,
        "-1e198": "-1" + "0" * 198,
        "1" + "0" * 400 + "e-400": "1",
        '"007"': "007",
        '"A-z.0_9:~"': "A-z.0_9:~",
        f'"{"a" * 200}"': "a" * 200,
        # What follows is no id.
        "1e200": None,
        "-1e199": None,
        "9" * 201: None,
        "1.5": None,
        "1e-1": None,
        "1e99999999999999999999": None,
        "1e-99999999999999999999": None,
        "true": None,
        "null": None,
        "[]": None,
        "{}": None,
        '""': None,
        f'"{"a" * 201}"': None,
        '"a b"': None,
        '"1\\n"': None,
        '"\\u0661"': None,
    }.items(),
)
def test_an_id_is_short_plain_text_or_an_integral_number_written_plainly(written, plain):
    notification = parse(called(written))
    kind = "bulk_job" if plain else "unreadable"
    assert (notification.kind, notification.job) == (kind, plain)


json_numbers = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["", "-"]),
    st.from_regex(r"0|[1-9][0-9]{0,210}|[1-9]0{0,210}", fullmatch=True),
    st.from_regex(r"(\.[0-9]{1,20})?|\.0{1,20}", fullmatch=True),
    st.one_of(
        st.just(""),
        st.builds("{}{}".format, st.sampled_from("eE"), st.integers(-230, 230)),
        st.from_regex(r"[eE][+-]?0{0,3}[0-9]{1,12}", fullmatch=True),
    ),
)


@settings(max_examples=examples(1000))
@given(json_numbers)
@example("1e199")
@example("1e200")
@example("-0.00e7")
def test_numbers_are_written_plainly_as_decimal_does(number):
    value = Decimal(number)
    expected = None
    if not value:
        expected = "0"
    elif value.adjusted() < 200 and value == value.to_integral_value():
        plain = format(value.to_integral_value(), "f")
        expected = plain if len(plain) <= 200 else None
    assert plain_integer(number) == expected


@pytest.mark.parametrize(
    ("depth", "kind"), [(63, "bulk_job"), (64, "bulk_job"), (65, "unreadable")]
)
@pytest.mark.parametrize(
    ("opening", "closing"),
    [
        ("[", "]"),
        ('{"x":', "}"),
        ('["[{",', "]"),  # brackets in strings do not count
        ('["]}",', "]"),
        ('["\\"[[",', "]"),  # nor behind an escaped quote
        ('["[\\\\",', "]"),  # and a string may end in an escaped backslash
    ],
)
def test_a_job_may_be_64_deep(depth, kind, opening, closing):
    inside = opening * (depth - 1) + '"' + "[{" * 100 + '"' + closing * (depth - 1)
    assert parse(about(f'"x": {inside}')).kind == kind


brackets = st.text("[]{}\"\\,:a'", max_size=90)


@given(st.lists(brackets | st.none(), min_size=55, max_size=75), values.filter(is_finite), brackets)
def test_depth_is_that_of_the_document_whatever_its_strings_hold(wraps, inner, sibling):
    document = "leaf"
    for wrap in wraps:
        document = [sibling, document, inner] if wrap is None else {"": sibling, wrap: document}
    kind = "other" if max_depth(document) <= 64 else "unreadable"
    assert read(document).kind == kind


def max_depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(max_depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(max_depth, value), default=0)
    return 0


def test_a_string_that_never_ends_is_unreadable_at_once():
    body = b"[" * 65 + b'"' + b'\\"' * 500_000
    with at_most(seconds=10):  # a millisecond's work
        assert parse(body).kind == "unreadable"


def test_of_duplicate_keys_the_last_wins():
    body = b'{"id": null, "id": "1", "status": "ERROR", "recordsCount": 1, "id": "2",'
    body += b' "recordsCount": 5, "status": "COMPLETED", "recordsFailedCount": 1,'
    body += b' "recordsFailedCount": null}'
    assert parse(body) == Notification("bulk_job", "2", "COMPLETED", reported=5)


def test_a_status_may_be_under_any_of_its_names():
    statuses = {name: read({"id": 1, name: "RUNNING"}).status for name in notifications.STATUS}
    assert statuses == dict.fromkeys(("status", "jobStatus", "job_state"), "RUNNING")


@pytest.mark.parametrize("unusable", [None, "", 5, True, [], {}])
def test_a_spelling_that_tells_nothing_gives_way_to_the_next(unusable):
    document = {"id": "1", "status": unusable, "jobStatus": "COMPLETED"}
    assert read(document) == Notification("bulk_job", "1", "COMPLETED")


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        ("0", 0),
        ("-0", 0),
        ("7", 7),
        ('"7"', 7),
        ("7.0", 7),
        ("7e2", 700),
        (str(2**63 - 1), 2**63 - 1),
        (str(2**63), None),
        ("9" * 5000, None),
        ('"\u0667"', None),
        ('"7 "', None),
        ('""', None),
        ("-1", None),
        ("7.5", None),
        ("true", None),
        ("null", None),
        ("[7]", None),
    ],
)
def test_a_count_is_a_number_that_the_databases_can_hold(count, expected):
    members = f'"recordsCount": {count}, "errorCount": {count}, "job_reset_attempt": {count}'
    said = parse(about(members))
    assert (said.reported, said.failed, said.attempt) == (expected, expected, expected or 0)


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("1763790600123", 1_763_790_600_123),
        ('"1763790600123"', 1_763_790_600_123),
        ("1.763790600123E12", 1_763_790_600_123),
        ("253402300799999", 253_402_300_799_999),
        ("253402300800000", None),
        ("-1", None),
        ('"2026-11-22T05:49:00Z"', None),
        ("true", None),
    ],
)
def test_a_time_is_ms_up_to_the_year_9999(time, expected):
    said = parse(about(f'"completionTime": {time}, "createdDate": {time}'))
    assert (said.completed_at, said.created_at) == (expected, expected)


def test_a_job_that_ended_at_the_epoch_is_untimed():
    assert parse(about('"completionTime": 0')).completed_at is None


def test_other_notifications_are_never_mistaken_for_jobs():
    kinds = {
        '{"eventId": 1, "response": {}}': "async_request",
        '{"notificationId": 1, "response": null}': "async_request",
        '{"response": {"id": "1", "status": "COMPLETED"}, "eventId": 1}': "async_request",
        '{"eventId": 1}': "other",
        '{"response": {}}': "other",
        '{"message": {"eventId": 1}}': "element_event",
        '{"message": {"eventId": 1, "id": "1", "status": "COMPLETED"}}': "element_event",
        '{"message": {}}': "other",
        '{"message": "eventId"}': "other",
        '{"id": "1", "status": "ERROR", "message": {"eventId": 1}}': "bulk_job",
        '{"id": "1", "status": "ERROR", "eventId": 1, "response": {}}': "bulk_job",
        '{"instanceId": 425904}': "other",
    }
    assert {body: parse(body.encode()).kind for body in kinds} == kinds


def test_a_callback_payload_is_kept_digit_for_digit():
    payloads = {
        '{"b": [1.10, 1E2, -0, 12345678901234567890.50], "a": true}': (
            '{"b":[1.10,1E2,-0,12345678901234567890.50],"a":true}'
        ),
        "1e400": "1e400",
        "7" * 5000: "7" * 5000,
        '"t\\u00e4xt \\ud83d\\ude00 \\u0000"': '"t\\u00e4xt \\ud83d\\ude00 \\u0000"',
        "false": "false",
        "[]": "[]",
        "null": None,
    }
    read_back = {text: parse(about(f'"callback-payload": {text}')) for text in payloads}
    assert {text: said.callback_payload for text, said in read_back.items()} == payloads


@given(values)
def test_json_written_back_means_the_same(value):
    text = json.dumps(value, allow_nan=False) if is_finite(value) else "null"
    written = json_text(notifications.parse_json(text.encode()))
    meant = re.sub(r"[\ud800-\udfff]", "\ufffd", json.dumps(json.loads(text), ensure_ascii=False))
    assert (json.loads(written), written.isascii()) == (json.loads(meant), True)


def test_what_no_database_stores_becomes_a_replacement_character():
    body = job(
        status="A\0B", error="\ud800x\udfff", objectName="\0", jobDirection="\U0001f600\ud83d"
    )
    assert parse(body) == Notification(
        "bulk_job",
        "1234",
        "A\ufffdB",
        message="\ufffdx\ufffd",
        object="\ufffd",
        direction="\U0001f600\ufffd",
    )


@given(st.binary(max_size=300))
def test_any_bytes_give_a_reading(body):
    notification = parse(body)
    assert notification.kind in KINDS
    assert is_storable(notification)


@settings(max_examples=examples(500))
@given(st.sampled_from(sorted(SAMPLES.values())), st.data())
def test_a_sound_body_changed_anywhere_gives_a_reading(path, data):
    body = path.read_bytes()
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body)))
        cut = data.draw(st.integers(0, 12))
        body = body[:at] + data.draw(st.binary(max_size=6)) + body[at + cut :]
    notification = parse(body)
    assert notification.kind in KINDS
    assert is_storable(notification)


@settings(max_examples=examples(500))
@given(values | near_jobs)
@example({"id": "1", "status": "\ud800", "callback-payload": {"\0": "\ud800"}})
def test_any_json_gives_a_reading(value):
    notification = read(value)
    assert notification.kind in KINDS
    assert is_storable(notification)
    if not isinstance(value, dict) and is_finite(value):
        assert notification == Notification("other")


@settings(max_examples=examples(500))
@given(documents.filter(is_finite), ids, st.sampled_from(notifications.STATUS), texts.filter(len))
def test_any_object_with_an_id_and_a_status_text_is_a_job(document, job_id, name, status):
    notification = read(document | {"id": job_id, name: status})
    assert (notification.kind, notification.job) == ("bulk_job", job_id)
    assert notification.status == re.sub("[\0\ud800-\udfff]", "\ufffd", status)


@given(near_jobs.filter(is_finite), st.booleans())
def test_without_an_id_or_a_status_nothing_is_a_job(document, without_id):
    missing = ("id",) if without_id else notifications.STATUS
    for name in missing:
        document.pop(name, None)
    assert read(document).kind != "bulk_job"


@given(values.filter(is_finite) | near_jobs.filter(is_finite))
def test_an_entry_of_a_list_is_read_as_a_body_is(entry):
    body = json.dumps(entry).encode()
    assert notifications.read(notifications.parse_json(body)) == parse(body)


STATUS_WITHOUT_ID = {
    "batchId": 7,
    "status": "Completed",
    "message": "done",
    "numOfLeadsProcessed": 10,
    "numOfRowsFailed": 2,
    "numOfRowsWithWarning": 1,
}


def test_an_answer_without_an_id_is_about_the_job_that_was_asked_for():
    body = json.dumps(STATUS_WITHOUT_ID).encode()
    expected = Notification("bulk_job", "42", "Completed", reported=10, failed=2, message="done")
    assert parse(body, "42") == expected
    assert parse(body).kind == "other"  # as a callback nothing says which job it is about


@pytest.mark.parametrize("name", sorted(STATUS_WITHOUT_ID.keys() - {"status", "message"}))
def test_any_name_of_its_own_tells_the_shape_without_an_id(name):
    assert parse(json.dumps({"status": "ERROR", name: 1}).encode(), "42").job == "42"


def test_other_json_with_a_status_is_about_no_job():
    assert parse(b'{"status": "error", "message": "no route"}', "42").kind == "other"


@pytest.mark.parametrize("id_", [None, "", "a b", 1.5, True, []])
def test_an_answer_with_an_unusable_id_is_about_no_job(id_):
    assert parse(json.dumps(STATUS_WITHOUT_ID | {"id": id_}).encode(), "42").kind == "unreadable"


@pytest.mark.parametrize("asked_for", ["", "a b", "a" * 201, "1\0"])
def test_what_is_no_id_names_no_job(asked_for):
    assert parse(json.dumps(STATUS_WITHOUT_ID).encode(), asked_for).kind == "other"


def test_an_answer_is_about_the_job_that_it_names():
    assert parse(json.dumps(STATUS_WITHOUT_ID | {"id": 43}).encode(), "42").job == "43"


@given(st.binary(max_size=100) | near_jobs.map(json.dumps).map(str.encode), ids)
def test_any_bytes_give_a_reading_as_an_answer_too(body, asked_for):
    assert is_storable(parse(body, asked_for))


def test_a_fact_is_the_same_however_it_is_spelt():
    groups = ("REPORTED", "FAILED", "OBJECT", "DIRECTION", "COMPLETED_AT", "MESSAGE")
    spellings = [getattr(notifications, group) for group in groups]
    told = (8, 2, "contact", "UPLOAD", 1_763_790_600_123, "text")
    readings = {
        read({"id": "1", "status": "COMPLETED", **dict(zip(names, told, strict=True))})
        for names in product(*spellings)
    }
    assert readings == {
        Notification(
            "bulk_job",
            "1",
            "COMPLETED",
            reported=8,
            failed=2,
            object="contact",
            direction="UPLOAD",
            completed_at=1_763_790_600_123,
            message="text",
        )
    }


SPELLINGS = {
    "status": ("status", "jobStatus", "job_state"),
    "reported": ("recordsCount", "recordCount", "record_count", "numOfLeadsProcessed"),
    "failed": ("recordsFailedCount", "errorCount", "error_count", "numOfRowsFailed"),
    "message": ("error", "message", "infoMessage", "statusMessage"),
    "object": ("objectName", "object_name"),
    "direction": ("jobDirection", "job_direction"),
    "created_at": ("createdDate", "bulk_start_time"),
    "completed_at": ("completionTime", "completion_time", "bulk_finish_time"),
    "attempt": ("job_reset_attempt", "jobResetAttempt"),
    "callback_payload": ("callback-payload", "callbackPayload", "callback_payload"),
}


@pytest.mark.parametrize(
    ("fact", "name"), [(fact, name) for fact, names in SPELLINGS.items() for name in names]
)
def test_a_fact_is_read_under_each_of_its_names(fact, name):
    status = {} if fact == "status" else {"status": "COMPLETED"}
    text = fact in ("status", "message", "object", "direction")
    told = parse(json.dumps({"id": "1", **status, name: "a word" if text else 7}).encode())
    expected = {"callback_payload": "7"}.get(fact, "a word" if text else 7)
    assert getattr(told, fact) == expected


def test_what_was_not_told_is_none():
    nothing = dict.fromkeys(Notification.__struct_fields__)
    known = {"kind": "other", "attempt": 0, "source": "callback"}
    assert asdict(Notification("other")) == {**nothing, **known}


def test_leading_zeros_of_an_exponent_count_for_nothing():
    assert plain_integer("42e0000000000000001") == "420"
    assert plain_integer("420e-0000000000000001") == "42"


def test_a_count_as_text_has_at_most_19_digits():
    def reported(digits: str) -> int | None:
        return parse(job(recordsCount=digits)).reported

    assert (reported("7".zfill(19)), reported("7".zfill(20))) == (7, None)
