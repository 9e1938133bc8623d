"""The signature: exactly one header is accepted, and nothing but our own errors is raised."""

import contextlib
import hashlib
import hmac
from base64 import b64encode

import pytest
from builders import is_valid
from hypothesis import example, given
from hypothesis import strategies as st

from receiver.errors import CredentialError, SignatureError
from receiver.openconnectors.signatures import HEADER, SHORT_KEY_BYTES, SignatureKey, sign, verify

VENDORS_BODY = b"<INSERT_EVENT_NOTIFICATION_RESPONSE_BODY>"
VENDORS_HEADER = "sha256=jHdbRx5EZAsOfTwAPJOGkNUzQMVVdu5VJlxcsk+G6jQ="
VENDORS_KEY = SignatureKey("vendor", b"MySecretEventSignatureKey")

secrets = st.binary(min_size=1, max_size=200).filter(lambda secret: not secret.endswith(b"\0"))
keys = st.builds(SignatureKey, st.just("k"), secrets)


def reason(header: str | None, key: SignatureKey = VENDORS_KEY, body: bytes = VENDORS_BODY) -> str:
    with pytest.raises(SignatureError) as refusal:
        verify(body, header, [key])
    return refusal.value.reason


def test_the_vendors_published_vector_verifies():
    assert verify(VENDORS_BODY, VENDORS_HEADER, [VENDORS_KEY]) == "vendor"
    assert sign(VENDORS_BODY, VENDORS_KEY) == VENDORS_HEADER


@given(st.binary(max_size=2000), secrets)
def test_signatures_are_those_of_the_standard_library(body, secret):
    digest = b64encode(hmac.digest(secret, body, "sha256")).decode()
    assert sign(body, SignatureKey("k", secret)) == f"sha256={digest}"


@given(st.binary(max_size=300), keys, st.text(max_size=80))
@example(b"", VENDORS_KEY, "sha256=")
def test_for_a_body_and_a_key_no_other_header_is_accepted(body, key, header):
    assert is_valid(body, header, [key]) == (header == sign(body, key))


@given(st.binary(max_size=300), keys, st.data())
def test_a_right_header_changed_in_one_place_is_refused(body, key, data):
    right = sign(body, key)
    at = data.draw(st.integers(0, len(right)))
    cut = data.draw(st.integers(0, 2))
    changed = right[:at] + data.draw(st.text(max_size=2)) + right[at + cut :]
    assert is_valid(body, changed, [key]) == (changed == right)


@given(st.binary(max_size=300), keys)
def test_the_other_three_spellings_of_the_last_base64_digit_are_refused(body, key):
    right = sign(body, key)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    first = alphabet.index(right[-2]) & ~3
    spellings = [f"{right[:-2]}{digit}=" for digit in alphabet[first : first + 4]]
    assert [spelling for spelling in spellings if is_valid(body, spelling, [key])] == [right]


@given(st.binary(max_size=300), st.one_of(st.none(), st.text(max_size=200)), st.lists(keys))
def test_nothing_but_a_key_or_a_refusal_comes_out(body, header, ring):
    with contextlib.suppress(SignatureError):
        assert verify(body, header, ring) == "k"


@given(st.binary(max_size=300), st.lists(secrets, min_size=2, max_size=4, unique=True), st.data())
def test_every_key_of_a_ring_is_accepted_and_named(body, ring, data):
    named = [SignatureKey(str(number), secret) for number, secret in enumerate(ring)]
    signer = data.draw(st.sampled_from(named))
    assert verify(body, sign(body, signer), named) == signer.id


@given(st.binary(max_size=300), keys, st.binary(max_size=300))
def test_a_signature_of_another_body_is_refused(body, key, other):
    assert is_valid(other, sign(body, key), [key]) == (other == body)


def test_of_equal_keys_the_newest_is_named():
    ring = [SignatureKey("new", b"same"), SignatureKey("old", b"same")]
    assert verify(b"x", sign(b"x", ring[1]), ring) == "new"


def test_without_a_key_nothing_is_accepted():
    with pytest.raises(SignatureError) as refusal:
        verify(VENDORS_BODY, VENDORS_HEADER, [])
    assert (refusal.value.reason, str(refusal.value)) == ("no_key", "no signature key")


def test_the_reason_tells_what_is_wrong():
    digest = hmac.digest(VENDORS_KEY.secret, VENDORS_BODY, "sha256")
    sha1 = hmac.new(VENDORS_KEY.secret, VENDORS_BODY, hashlib.sha1).digest()
    right = VENDORS_HEADER.removeprefix("sha256=")
    expected = {
        None: "missing",
        "": "missing",
        f"sha256={digest.hex()}": "hex_digest",
        f"sha256={digest.hex().upper()}": "hex_digest",
        f"sha1={b64encode(sha1).decode()}": "algorithm",
        f"sha1={sha1.hex()}": "algorithm",
        f"SHA256={right}": "algorithm",
        f"md5={right}": "algorithm",
        right: "algorithm",
        f"sha256= {right}": "malformed",
        f"{VENDORS_HEADER},{VENDORS_HEADER}": "malformed",
        VENDORS_HEADER.rstrip("="): "malformed",
        f"{VENDORS_HEADER}=": "malformed",
        VENDORS_HEADER.replace("+", "-"): "malformed",
        f"{VENDORS_HEADER}\n": "malformed",
        "sha256=\u00e9": "malformed",
        "\udcff\u2028": "malformed",
        "a,b": "malformed",
        sign(VENDORS_BODY, SignatureKey("other", b"other")): "bad_signature",
    }
    assert {header: reason(header) for header in expected} == expected


@pytest.mark.parametrize("secret", [b"", b"\0", b"key\0"])
def test_a_key_that_equals_another_under_hmac_is_refused(secret):
    with pytest.raises(CredentialError):
        SignatureKey("k", secret)


def test_a_key_is_used_as_its_bytes_untouched():
    assert not is_valid(b"x", sign(b"x", SignatureKey("k", b"key\n")), [SignatureKey("k", b"key")])


def test_a_key_never_shows_its_secret():
    assert repr(VENDORS_KEY) == "SignatureKey(id='vendor')"
    assert "MySecret" not in f"{[VENDORS_KEY]}"


def test_keys_are_equal_by_id_and_secret():
    assert SignatureKey("k", b"one") == SignatureKey("k", b"one") != SignatureKey("k", b"two")
    assert len({SignatureKey("k", b"one"), SignatureKey("k", b"one")}) == 1


def test_the_header_is_called_as_the_vendor_calls_it_and_a_short_key_is_one_below_16_bytes():
    assert (HEADER, SHORT_KEY_BYTES) == ("Elements-Webhook-Signature", 16)
