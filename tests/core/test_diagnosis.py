"""The diagnosis names what is wrong with a signature, and says that it is right iff it is."""

import hashlib
import hmac
import inspect
import json
import re
import sys
from base64 import b64encode, urlsafe_b64encode

import pytest
from builders import examples, is_valid
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from receiver.callbacks.diagnosis import RIGHT, diagnose
from receiver.errors import CredentialError
from receiver.openconnectors.signatures import SignatureKey, sign

SECRET = b"the right key"
BODY = b'{"id": "1234", "status": "COMPLETED", "recordsCount": 10}'
DIGEST = hmac.digest(SECRET, BODY, "sha256")
BASE64 = b64encode(DIGEST).decode()

secrets = st.binary(max_size=40)
bodies = st.binary(max_size=200) | st.sampled_from([BODY, BODY + b"\r\n", b"\xef\xbb\xbf{}"])


def signed(body: bytes, secret: bytes = SECRET) -> str:
    return sign(body, SignatureKey("k", secret))


def explanation(body: bytes, header: str | None, secret: bytes = SECRET) -> str:
    right, text = diagnose(body, header, secret)
    assert not right
    return text


def is_right(body: bytes, header: str | None, secret: bytes) -> bool:
    try:
        return is_valid(body, header, [SignatureKey("k", secret)])
    except CredentialError:
        return False


def test_a_right_signature_is_said_to_be_right():
    assert diagnose(BODY, signed(BODY), SECRET) == (True, RIGHT)


def test_a_digest_written_otherwise_is_recognised():
    sha1 = hmac.new(SECRET, BODY, hashlib.sha1).digest()
    expected = {
        f"sha256={DIGEST.hex()}": "right key and body, but the digest is hex; it must be base64",
        DIGEST.hex(): "right key and body, but the digest is hex and lacks `sha256=`",
        BASE64: "right key and body, but `sha256=` is missing before the digest",
        f"sha256={BASE64[:-1]}": "right key and body, but the final `=` is missing",
        f"SHA256={BASE64}": "right key and body, but `sha256=` must be lower case",
        f"sha256={b64encode(DIGEST.hex().encode()).decode()}": "the base64 is of the hex digest",
        f"sha1={b64encode(sha1).decode()}": "right key and body, but `sha1=` is no longer accepted",
    }
    assert {header: explanation(BODY, header) for header in expected} == expected


def test_base64url_is_recognised():
    numbered = (str(number).encode() for number in range(100))
    body = next(body for body in numbered if {"+", "/"} & set(signed(body)))
    header = f"sha256={urlsafe_b64encode(hmac.digest(SECRET, body, 'sha256')).decode()}"
    told = "right key and body, but base64url instead of standard base64"
    assert explanation(body, header) == told


def test_a_changed_body_is_recognised():
    pairs = {  # how: (what was signed, what arrived)
        "without the trailing newline of the body": (BODY, BODY + b"\r\n"),
        "with a trailing newline after the body": (BODY + b"\n", BODY),
        "with LF instead of CRLF": (b"{\n}", b"{\r\n}"),
        "with CRLF instead of LF": (b"{\r\n}", b"{\n}"),
        "without the byte order mark": (BODY, b"\xef\xbb\xbf" + BODY),
    }
    told = {
        how: explanation(arrived, signed(sent)).rpartition(" is right ")
        for how, (sent, arrived) in pairs.items()
    }
    start = "the body was changed on its way: the signature"
    assert told == {how: (start, " is right ", how) for how in pairs}


def test_a_re_encoded_body_is_recognised():
    document = {"status": "COMPLETED", "id": "1234", "error": "f\u00e4hlt"}
    writings = {
        "without blanks": json.dumps(document, separators=(",", ":")),
        "with blanks after commas and colons": json.dumps(document),
        "with sorted keys": json.dumps(document, separators=(",", ":"), sort_keys=True),
        "indented": json.dumps(document, indent=2),
    }
    arrived = json.dumps(document, indent=7).encode()
    told = {how: explanation(arrived, signed(text.encode())) for how, text in writings.items()}
    assert told == {
        how: "the body was changed on its way: the signature is right "
        f"for the same JSON written {how}: something re-encoded it"
        for how in writings
    }


def test_a_key_copied_with_too_much_or_too_little_is_recognised():
    pairs = {  # how: the key given here
        "without the blanks or line ends around this key": b" the right key\r\n",
        "without the quotes around this key": b'"the right key"',
        "without the byte order mark before this key": b"\xef\xbb\xbfthe right key",
        "with this key in UTF-8, not UTF-16": "the right key".encode("utf-16"),
        "with this key base64-decoded": b64encode(SECRET),
        "with this key base64-decoded twice": b64encode(b64encode(SECRET)),
    }
    told = {how: explanation(BODY, signed(BODY), given) for how, given in pairs.items()}
    assert told == {how: f"another key: the signature is right {how}" for how in pairs}
    assert explanation(BODY, signed(BODY, SECRET + b"\n")) == (
        "another key: the signature is right with a trailing newline after this key"
    )
    assert explanation(BODY, signed(BODY, b64encode(SECRET))).endswith(
        "with the base64 of this key, which was decoded once too often"
    )


def test_what_has_no_better_explanation_is_told_as_the_refusal():
    expected = {
        None: "no signature",
        "": "no signature",
        signed(BODY, b"other"): "no key of the instance made this signature for this body",
        f"sha256={'0' * 64}": "the digest is hex, not base64",
        "md5=1B2M2Y8AsgTpgAmY7PhCfg==": "only sha256= is accepted",
        "nonsense": "not sha256= and 44 characters of base64",
    }
    assert {header: explanation(BODY, header) for header in expected} == expected


@pytest.mark.parametrize("secret", [b"", b"\0", b"key\0"])
def test_a_key_that_cannot_be_one_is_said_to_be(secret):
    assert explanation(BODY, signed(BODY), secret).startswith("the signature key ")


@settings(max_examples=examples(300))
@given(bodies, st.none() | st.text(st.characters(codec=None), max_size=80), secrets)
@example(b"", "sha256=", b"k")
@example(b"\xff\xfe\x00", "\ud800", b"\xff")
def test_any_input_gets_one_line_and_is_right_if_and_only_if_it_verifies(body, header, secret):
    right, text = diagnose(body, header, secret)
    assert (right, right) == (is_right(body, header, secret), text == RIGHT)
    assert text.isprintable()


@settings(max_examples=examples(300))
@given(bodies, st.binary(min_size=1, max_size=40), st.data())
def test_a_right_header_changed_in_one_place_is_right_if_and_only_if_it_verifies(
    body, secret, data
):
    assume(not secret.endswith(b"\0"))
    header = signed(body, secret)
    at = data.draw(st.integers(0, len(header)))
    changed = (
        header[:at] + data.draw(st.text(max_size=2)) + header[at + data.draw(st.integers(0, 2)) :]
    )
    assert diagnose(body, changed, secret)[0] == is_right(body, changed, secret)


def test_blanks_around_a_right_signature_are_not_blamed_on_anything_else():
    blanks = ["{} ", " {}", "{}\n", "\t{}\r\n"]
    bodies = [BODY, *(str(number).encode() for number in range(9))]  # with and without + and /
    texts = {explanation(body, blank.format(signed(body))) for body in bodies for blank in blanks}
    blamed = re.compile("body was changed|another key|base64url|is missing")
    assert [text for text in sorted(texts) if blamed.search(text)] == []


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_no_depth_is_too_deep(opening, closing):
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 100)  # the same as at 1000, but faster
    try:
        for depth in range(110):
            body = opening * depth + b"0" + closing * depth
            assert not diagnose(body, "sha256=x", SECRET)[0]
    finally:
        sys.setrecursionlimit(limit)
