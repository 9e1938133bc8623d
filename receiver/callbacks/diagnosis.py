"""What is wrong with a signature or a body, in words an operator can act on. Offline and pure."""

import hashlib
import hmac
import json
from base64 import b64decode, b64encode, urlsafe_b64encode
from collections.abc import Callable, Iterator
from typing import Literal, TypeAlias

from receiver.errors import CredentialError, SignatureError
from receiver.openconnectors.notifications import MAX_DEPTH, MAX_ID, parse_json
from receiver.openconnectors.shapes import STATUS
from receiver.openconnectors.signatures import SignatureKey, sign, verify

# For what a delivery is rejected: the slugs of the SignatureErrors.
Reason: TypeAlias = Literal[
    "missing",
    "malformed",
    "hex_digest",
    "algorithm",
    "bad_signature",
    "no_key",
    "unknown_instance",
]
RIGHT = "the signature is right"
_BOM = b"\xef\xbb\xbf"


def diagnose(body: bytes, header: str | None, secret: bytes) -> tuple[bool, str]:
    """Return whether `header` signs `body` with `secret`, and what most likely went wrong."""
    try:
        key = SignatureKey("this key", secret)
        verify(body, header, [key])
    except (CredentialError, SignatureError) as error:
        return False, likely_cause(body, header or "", secret) or str(error)
    return True, RIGHT


def likely_cause(body: bytes, header: str, secret: bytes) -> str | None:
    """Return what most likely went wrong with a signature that is not right; None: no idea."""
    if header != header.strip() and _signs(body, header.strip(), secret):
        return "right key and body, but there are blanks or line ends around the signature"
    header = header.strip()
    for text, cause in _other_writings(body, secret):
        if header == text:
            return cause
    for changed, how in _changed_bodies(body):
        if _signs(changed, header, secret):
            return f"the body was changed on its way: the signature is right {how}"
    for other, how in _changed_keys(secret):
        if _signs(body, header, other):
            return f"another key: the signature is right {how}"
    return None


def reason_words(reason: str) -> str:
    """Say for what a delivery was rejected: the slug of its error in words."""
    return "signature sent as hex" if reason == "hex_digest" else reason.replace("_", " ")


def why_unreadable(body: bytes) -> str:
    """Say why a verified body is an event of kind `unreadable`, with the place in its bytes."""
    try:
        value = parse_json(body)
    except UnicodeDecodeError as error:
        return f"byte {error.start} is {body[error.start]:#04x}, which is not UTF-8 there"
    except json.JSONDecodeError as error:
        place = len(error.doc[: error.pos].encode())
        return f"it is not JSON: {error.msg.lower()} at byte {place} (line {error.lineno})"
    except (ValueError, RecursionError):
        return f"its JSON is nested more than {MAX_DEPTH} levels deep"
    facts = {name: value[name] for name in ("id", *STATUS) if name in value}
    return (
        f"an id is a whole number or 1 to {MAX_ID} of `A-Za-z0-9._:~-`, and a status is a text;"
        f" the body has {json.dumps(facts)[:200]}"
    )


def _signs(body: bytes, header: str, secret: bytes) -> bool:
    try:
        return header == sign(body, SignatureKey("variant", secret))
    except CredentialError:
        return False


def _other_writings(body: bytes, secret: bytes) -> Iterator[tuple[str, str]]:
    digest = hmac.digest(secret, body, "sha256")
    right = b64encode(digest).decode()
    yield f"sha256={digest.hex()}", "right key and body, but the digest is hex; it must be base64"
    yield digest.hex(), "right key and body, but the digest is hex and lacks `sha256=`"
    yield right, "right key and body, but `sha256=` is missing before the digest"
    yield f"sha256={right.rstrip('=')}", "right key and body, but the final `=` is missing"
    url_safe = urlsafe_b64encode(digest).decode()
    yield f"sha256={url_safe}", "right key and body, but base64url instead of standard base64"
    yield f"SHA256={right}", "right key and body, but `sha256=` must be lower case"
    yield f"sha256={b64encode(digest.hex().encode()).decode()}", "the base64 is of the hex digest"
    yield f"sha256={b64encode(right.encode()).decode()}", "right key and body, but base64 twice"
    # SHA-1 only to recognise the vendor's scheme of years ago; it proves nothing here.
    old = b64encode(hmac.new(secret, body, hashlib.sha1).digest()).decode()
    yield f"sha1={old}", "right key and body, but `sha1=` is no longer accepted"


def _changed_bodies(body: bytes) -> Iterator[tuple[bytes, str]]:
    stripped = body.rstrip(b"\r\n")
    yield stripped, "without the trailing newline of the body"
    yield stripped + b"\n", "with a trailing newline after the body"
    yield body.replace(b"\r\n", b"\n"), "with LF instead of CRLF"
    yield body.replace(b"\n", b"\r\n"), "with CRLF instead of LF"
    yield body.removeprefix(b"\xef\xbb\xbf"), "without the byte order mark"
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return
    writings: tuple[tuple[Callable[[], str], str], ...] = (
        (lambda: json.dumps(value, separators=(",", ":")), "without blanks"),
        (lambda: json.dumps(value), "with blanks after commas and colons"),
        (lambda: json.dumps(value, separators=(",", ":"), sort_keys=True), "with sorted keys"),
        (lambda: json.dumps(value, indent=2), "indented"),
    )
    for write, how in writings:
        try:
            written = write().encode()
        except (ValueError, RecursionError):
            return
        yield written, f"for the same JSON written {how}: something re-encoded it"


def _changed_keys(secret: bytes) -> Iterator[tuple[bytes, str]]:
    yield secret.strip(), "without the blanks or line ends around this key"
    yield secret + b"\n", "with a trailing newline after this key"
    yield secret.strip(b"\"'"), "without the quotes around this key"
    yield secret.removeprefix(_BOM), "without the byte order mark before this key"
    yield _BOM + secret, "with a byte order mark before this key"
    if secret.startswith((b"\xff\xfe", b"\xfe\xff")):
        yield secret.decode("utf-16", "replace").encode(), "with this key in UTF-8, not UTF-16"
    yield b64encode(secret), "with the base64 of this key, which was decoded once too often"
    decoded = secret
    for times in ("", " twice"):
        try:
            decoded = b64decode(decoded.strip(), validate=True)
        except ValueError:
            return
        yield decoded, f"with this key base64-decoded{times}"
