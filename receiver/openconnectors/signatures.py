"""Is a delivery really from the vendor?

Open Connectors signs a callback with the instance's `event.notification.signature.key`: the header
`Elements-Webhook-Signature` is `sha256=` and the standard base64, with padding, of HMAC-SHA256 over
the raw body (vendor's page "Hash verification"). Nothing of a stranger's header is ever decoded:
four different base64 texts decode to the same digest, so the one right header is built instead, and
compared as bytes in constant time.
"""

import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.constant_time import bytes_eq
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from receiver.errors import (
    CredentialError,
    NoSignatureKey,
    SignatureAlgorithm,
    SignatureError,
    SignatureHex,
    SignatureMalformed,
    SignatureMismatch,
    SignatureMissing,
)

HEADER = "Elements-Webhook-Signature"
SHORT_KEY_BYTES = 16  # a key below that is warned of

_WELL_FORMED = re.compile(rb"sha256=[A-Za-z0-9+/]{43}=")
_HEX = re.compile(rb"sha256=[0-9A-Fa-f]{64}")
_OTHER_ALGORITHM = re.compile(rb"(?!sha256=)(?:[A-Za-z0-9-]{1,16}=)?[A-Za-z0-9+/_-]{20,}={0,2}")


@dataclass(frozen=True, slots=True)
class SignatureKey:
    """One signature key of an instance.

    id -- how the key is called where people see it; never the secret.
    secret -- the key's bytes, exactly as entered at the vendor. Raises CredentialError if empty or
    ending in a NUL byte: HMAC pads short keys with NULs (RFC 2104), so such a key equals another.
    """

    id: str
    secret: bytes = field(repr=False)
    _hmac: HMAC = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.secret:
            raise CredentialError("the signature key is empty")
        if self.secret.endswith(b"\0"):
            raise CredentialError("the signature key ends in a NUL byte")
        object.__setattr__(self, "_hmac", HMAC(self.secret, SHA256()))

    def header(self, body: bytes) -> bytes:
        """The one header value that this key makes for `body`."""
        mac = self._hmac.copy()
        mac.update(body)
        return b"sha256=" + b64encode(mac.finalize())


def without_line_end(content: bytes) -> bytes:
    """Return a key's file less one final line end, which editors add."""
    return re.sub(rb"\r?\n\Z", b"", content)


# Stands in where there is no key, so that an unknown instance takes as long as a known one.
_DECOY = SignatureKey("decoy", b"no delivery is ever accepted with this")


def sign(body: bytes, key: SignatureKey) -> str:
    """Return the header value that proves `body` to whoever holds `key`."""
    return key.header(body).decode("ascii")


def verify(body: bytes, header: str | None, keys: Sequence[SignatureKey]) -> str:
    """Return the id of the key that signed `body`; the newest, if several are the same.

    header -- the value of HEADER as the server decoded it (latin-1), or None if there was none.
    keys -- the keys of the instance, newest first; all are tried, whichever matches.
    Raises a SignatureError, and nothing else, whatever the arguments hold.
    """
    if not header:
        raise SignatureMissing("no signature")
    value = header.encode("ascii", "replace")  # "?" stands in no well-formed header
    matched = [key.id for key in keys or (_DECOY,) if bytes_eq(value, key.header(body))]
    if not keys:
        raise NoSignatureKey("no signature key")
    if not matched:
        raise _refusal(value)
    return matched[0]


def _refusal(value: bytes) -> SignatureError:
    if _WELL_FORMED.fullmatch(value):
        return SignatureMismatch("no key of the instance made this signature for this body")
    if _HEX.fullmatch(value):
        return SignatureHex("the digest is hex, not base64")
    if _OTHER_ALGORITHM.fullmatch(value):
        return SignatureAlgorithm("only sha256= is accepted")
    return SignatureMalformed("not sha256= and 44 characters of base64")
