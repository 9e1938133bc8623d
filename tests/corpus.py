"""Bodies that a valid signature may come with, and that no receiver should stumble over.

Each is signed like any other: the answer is 200, and the bytes are kept as they came.
"""

import hashlib
import json
from itertools import count, islice
from typing import NamedTuple


class Body(NamedTuple):
    """A body under a name; `kind` is what it must be read as."""

    name: str
    body: bytes
    kind: str


def incompressible(length: int) -> str:
    """Text that no database's compression makes shorter than an index entry may be."""
    blocks = (hashlib.sha256(str(number).encode()).hexdigest() for number in count())
    return "".join(islice(blocks, length // 64 + 1))[:length]


def job(**facts: object) -> bytes:
    """A body about the job 1234, with these facts besides."""
    return json.dumps({"id": "1234", "status": "COMPLETED", **facts}).encode()


def about(member: str) -> bytes:
    """A body about the job 1234, with this raw JSON member besides."""
    return f'{{"id": "1234", "status": "COMPLETED", {member}}}'.encode()


def called(job_id: str) -> bytes:
    """A body about the job whose id is this raw JSON."""
    return f'{{"id": {job_id}, "status": "COMPLETED"}}'.encode()


SOUND = job()

UNREADABLE: list[Body] = [
    Body(name, body, kind)
    for kind, bodies in {
        "unreadable": {
            "empty": b"",
            "a blank": b" ",
            "a NUL": b"\0",
            "no JSON": b"id=1234&status=COMPLETED",
            "XML": b"<?xml version='1.0'?><id>1234</id>",
            "cut off": SOUND[:-1],
            "cut off in a string": SOUND[:-3],
            "two documents": SOUND + SOUND,
            "text after it": SOUND + b"x",
            "a trailing comma": b'{"id": "1234", "status": "COMPLETED",}',
            "single quotes": b"{'id': '1234', 'status': 'COMPLETED'}",
            "a comment": b'{"id": "1234", "status": "COMPLETED"} // done',
            "a raw line end in a string": b'{"id": "1234", "status": "COMPLETED\n"}',
            "a wrong escape": b'{"id": "1234", "status": "\\x41"}',
            "half an escape": b'{"id": "1234", "status": "\\u12"}',
            "a leading zero": about('"recordsCount": 007'),
            "a plus sign": about('"recordsCount": +7'),
            "a bare point": about('"recordsCount": 7.'),
            "Arabic digits": about('"recordsCount": \u0667'),
            "NaN": about('"recordsCount": NaN'),
            "Infinity": about('"recordsCount": Infinity'),
            "minus Infinity": about('"recordsCount": -Infinity'),
            "a byte order mark": b"\xef\xbb\xbf" + SOUND,
            "UTF-16": SOUND.decode().encode("utf-16"),
            "UTF-16 without a mark": SOUND.decode().encode("utf-16-le"),
            "UTF-32": SOUND.decode().encode("utf-32"),
            "Latin-1": b'{"id": "1234", "status": "COMPLETED", "error": "f\xe4hlt"}',
            "a raw lone surrogate": b'{"id": "1234", "status": "\xed\xa0\x80"}',
            "an overlong slash": b'{"id": "1234", "status": "\xc0\xaf"}',
            "beyond Unicode": b'{"id": "1234", "status": "\xf4\x90\x80\x80"}',
            "every byte": bytes(range(256)),
            "the largest": bytes(2**20),
            "gzip": b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + b"\xff" * 20,
            "65 deep": about('"x": ' + "[" * 64 + "]" * 64),
            "20000 deep": b"[" * 20_000 + b"]" * 20_000,
            "100000 deep objects": b'{"x":' * 100_000 + b"0" + b"}" * 100_000,
            "100000 deep, never closed": b"[" * 100_000,
            "id null": called("null"),
            "id true": called("true"),
            "id a fraction": called("1.5"),
            "id too great a number": called("1e200"),
            "id infinite in floating point": called("1e400"),
            "id beyond any exponent": called("1e" + "9" * 5000),
            "id of 140000 digits": called("7" * 140_000),
            "id a list": called('["1234"]'),
            "id an object": called('{"id": "1234"}'),
            "id empty": called('""'),
            "id of 201": called(f'"{"a" * 201}"'),
            "id with a blank": called('" 1234"'),
            "id with a line end": called('"1234\\n"'),
            "id with a slash": called('"../1234"'),
            "id with a NUL": called('"12\\u000034"'),
            "id in Arabic digits": called('"\u0661\u0662"'),
            "id with markup": called('"<img src=x onerror=alert(1)>"'),
            "status a number": job(status=5),
            "status null": job(status=None),
            "status a list": job(status=["COMPLETED"]),
            "status true": job(status=True),
            "the last id is none": b'{"id": "1234", "status": "COMPLETED", "id": null}',
            "the last status is none": b'{"id": "1234", "status": "COMPLETED", "status": 1}',
        },
        "other": {
            "null": b"null",
            "true": b"true",
            "a number": b"1234",
            "a number beyond floating point": b"1e400",
            "a text": b'"COMPLETED"',
            "an array": b"[]",
            "an array of jobs": b"[" + SOUND + b"]",
            "an empty object": b"{}",
            "id alone": b'{"id": "1234"}',
            "status alone": b'{"status": "COMPLETED"}',
            "names in other case": b'{"ID": "1234", "Status": "COMPLETED"}',
            "64 deep": b"[" * 64 + b"]" * 64,
            "a job inside": b'{"job": ' + SOUND + b"}",
        },
        "async_request": {
            "an asynchronous request": b'{"eventId": 1028, "response": {"events": []}}'
        },
        "element_event": {
            "an element's event": b'{"message": {"eventId": 1, "events": []}, "id": 7}'
        },
    }.items()
    for name, body in bodies.items()
]

HOSTILE: list[Body] = [
    Body(name, body, "bulk_job")
    for name, body in {
        "id of 200": called(f'"{"a" * 200}"'),
        "id of 200 digits": called("1e199"),
        "id a dot": called('".."'),
        "id like a path or URL": called('"~:..--1234"'),
        "NUL everywhere": (
            b'{"id": "1", "status": "\\u0000", "error": "a\\u0000b", "objectName": "\\u0000",'
            b' "callback-payload": {"\\u0000": "\\u0000"}}'
        ),
        "lone surrogates": (
            b'{"id": "2", "status": "\\ud800", "error": "\\udfff", "objectName": "\\udc00\\ud800",'
            b' "callback-payload": {"\\ud800": "\\udfff"}}'
        ),
        "control and line characters": job(
            status="\x1b[31mDONE\r\n\u2028", error="\r\nSet-Cookie: a=b\x7f\x85", objectName="\t"
        ),
        "markup": job(
            status="<script>alert(1)</script>",
            error="<img src=x onerror=alert(1)>",
            objectName='"><svg onload=alert(1)>',
            jobDirection="javascript:alert(1)",
            **{"callback-payload": "</script><script>alert(1)</script>"},
        ),
        "SQL": job(status="'; DROP TABLE jobs; --", error="%s %(a)s :a ?", objectName="x' OR 1=1"),
        "formulas": job(error='=HYPERLINK("http://a.example","x")', objectName="@SUM(1)"),
        "templates": job(error="{{7*7}} ${7*7} {% raw %}", objectName="%n%s{0}"),
        "right to left": job(error="\u202egnp.exe\u202c", objectName="\u0440\u0430\u0443"),
        "no characters": job(
            status="\uffff", error="\ufffe", objectName="\uffff", jobDirection="\uffff"
        ),
        "beyond the basic plane": job(error="\U0001f4a5" * 100, objectName="\U00020000"),
        "a long status": job(status=incompressible(100_000)),
        "a long object": job(objectName=incompressible(100_000)),
        "a long direction": job(jobDirection=incompressible(100_000)),
        "a long message": job(error=incompressible(900_000)),
        "a long payload": job(**{"callback-payload": incompressible(900_000)}),
        "a message that is no text": job(error=[{"a": None}, True, 1.5]),
        "the greatest counts": job(
            recordsCount=2**63 - 1, recordsFailedCount=2**63 - 1, job_reset_attempt=2**63 - 1
        ),
        "counts too great": job(recordsCount=2**63, recordsFailedCount=10**30),
        "counts of 100000 digits": about(f'"recordsCount": {"9" * 100_000}'),
        "counts beyond floating point": about(
            '"recordsCount": 1e400, "recordsFailedCount": 1e-400'
        ),
        "counts that are none": job(recordsCount=-1, recordsFailedCount=1.5, record_count="many"),
        "the last time": job(completionTime=253_402_300_799_999, createdDate=253_402_300_799_999),
        "times too late": job(completionTime=253_402_300_800_000, createdDate=2**63),
        "times that are none": job(completionTime="2026-11-22T05:49:00Z", createdDate=-1),
        "files to the last time": job(completionTime=253_402_300_799_999 - 3 * 86_400_000),
        "time zero": job(completionTime=0, createdDate=0),
        "64 deep": about('"x": ' + "[" * 63 + "]" * 63),
        "a payload 63 deep": about('"callback-payload": ' + '{"a":' * 63 + "0" + "}" * 63),
        "brackets in a string": job(x='["\\' * 1000),
        "the last of duplicate keys": b'{"id": 1.5, "id": "1", "status": 1, "status": "RUNNING"}',
        "50000 members": job(**{f"x{number}": number for number in range(50_000)}),
        "a member named __proto__": job(__proto__={"status": "ERROR"}, constructor=1),
        "an empty name": job(**{"": 1}),
        "blanks around it": b"\r\n\t " + SOUND + b" \n",
        "an unknown word": job(status="SUSPENDED"),
        "a word in another alphabet": job(status="\u0421OMPLETED"),
    }.items()
]
