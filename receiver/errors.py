"""Every error of ours.

ReceiverError
├── SettingsError               a setting is wrong or half set
│   └── WrongEncoding           the database is not in UTF-8 (a StoreUnavailable, too)
├── BodyError                   the request did not arrive as it was sent
│   ├── BodyTruncated
│   └── BodyTooLarge
├── SignatureError              the delivery is not proven to be the vendor's
│   ├── SignatureMissing
│   ├── SignatureMalformed
│   ├── SignatureHex
│   ├── SignatureAlgorithm
│   ├── SignatureMismatch
│   ├── NoSignatureKey
│   └── UnknownInstance
├── RetryLater                  not now, but after some seconds
│   ├── TooManyRejections       one address was rejected too often
│   ├── TooManyRequests         one token asked, or one address failed, too often
│   └── Overloaded              no place or no room for this request now
├── CredentialError             a key, secret or token cannot be taken or used
├── QueryError                  a request to the API that cannot be answered
│   ├── Unauthenticated
│   ├── Forbidden
│   ├── NotFound
│   ├── EventGone
│   ├── BodyGone
│   ├── Ambiguous
│   ├── JobEnded
│   ├── AlreadyThere
│   ├── BadParameter
│   ├── NoStream
│   └── TooSlow
├── VendorError                 the vendor did not do what it was asked
│   ├── VendorRefused           it said no, and why
│   ├── VendorUnreachable       it cannot be reached or is failing; nothing was taken
│   │   └── CircuitOpen         it is not asked for this instance now
│   ├── VendorUnclear           the answer was cut off: it may have been taken
│   └── VendorNonsense          its answer is none of the vendor's
├── AnswerCut                   an answer to a client that cannot be completed
└── StoreError                  not in the database
    ├── StoreUnavailable        now; the same again later may work
    │   ├── LostRace            since another node was faster
    │   ├── KeyUnusable         a key that may have signed this cannot be decrypted
    │   └── StatementRefused    the database is there, but refused a statement
    ├── ClockStepped            now: the clock jumped, and nothing goes by it
    └── StoreRefused            ever; for what it holds, this row cannot be stored as it is
"""

import errno
from typing import ClassVar


class ReceiverError(Exception):
    """Base of all. `reason` is the error's slug in metrics, counts and problem documents."""

    reason: ClassVar[str] = "error"

    def __init_subclass__(cls, reason: str | None = None) -> None:
        super().__init_subclass__()
        cls.reason = reason or cls.reason


class SettingsError(ReceiverError, reason="settings"):
    """A setting is wrong or half set; the text is one line that names it."""


class BodyError(ReceiverError):
    """The bytes of a request did not arrive as they were sent."""


class BodyTruncated(BodyError, reason="truncated"):
    """Fewer bytes arrived than announced, or the chunks broke off."""


class BodyTooLarge(BodyError, reason="too_large"):
    """The body is longer than RECEIVER_MAX_BODY_BYTES."""


class SignatureError(ReceiverError):
    """The delivery is not proven to come from the vendor."""


class SignatureMissing(SignatureError, reason="missing"):
    """There is no signature header, or an empty one."""


class SignatureMalformed(SignatureError, reason="malformed"):
    """The header is not `sha256=` and 44 characters of standard base64."""


class SignatureHex(SignatureError, reason="hex_digest"):
    """The digest is written in hex where the vendor writes base64."""


class SignatureAlgorithm(SignatureError, reason="algorithm"):
    """The header names another algorithm than `sha256=`, or none."""


class SignatureMismatch(SignatureError, reason="bad_signature"):
    """The header is well formed, but no key of the instance made it for this body."""


class NoSignatureKey(SignatureError, reason="no_key"):
    """The instance is known but has no key, so nothing can be proven."""


class UnknownInstance(SignatureError, reason="unknown_instance"):
    """There is no instance of that name."""


class RetryLater(ReceiverError):
    """Not now; `retry_after` in seconds."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TooManyRejections(RetryLater, reason="rate_limited"):
    """Too many deliveries of one address were rejected."""


class TooManyRequests(RetryLater, reason="rate_limited"):
    """A token made requests, or an address came with wrong tokens, too often."""


class Overloaded(RetryLater, reason="overloaded"):
    """There is no place or no room for this request now."""


class CredentialError(ReceiverError, reason="credential"):
    """A key, secret or token cannot be taken or used; the text never contains it."""


class QueryError(ReceiverError):
    """A request to the API that cannot be answered; the text says why."""


class Unauthenticated(QueryError, reason="unauthenticated"):
    """No valid token came with the request."""


class Forbidden(QueryError, reason="forbidden"):
    """The token does not reach that far."""


class NotFound(QueryError, reason="not_found"):
    """There is no such thing, or the token does not see it."""


class EventGone(QueryError, reason="event_pruned"):
    """The event was pruned: its hash goes on recognising its body, but no more is known."""


class BodyGone(QueryError, reason="body_pruned"):
    """The event is known, but its body was pruned or erased."""


class Ambiguous(QueryError, reason="ambiguous_job"):
    """Several instances have a job of that id, and none was named."""


class JobEnded(QueryError, reason="job_ended"):
    """There is nothing to close: the job has ended."""


class AlreadyThere(QueryError, reason="already_there"):
    """There is one of that name."""


class BadParameter(QueryError, reason="bad_parameter"):
    """A parameter is unknown or has an invalid value."""


class NoStream(QueryError, reason="no_stream"):
    """This server cannot send for as long as a client stays."""


class TooSlow(QueryError, reason="too_slow"):
    """The query takes longer than one may."""


class VendorError(ReceiverError, reason="upstream"):
    """The vendor did not do what it was asked.

    status -- what to answer a client of ours that wanted it. retry_after -- seconds before which
    the vendor will not be asked again.
    The text never holds a secret.
    """

    def __init__(self, message: str, status: int = 502, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.retry_after = status, retry_after


class VendorRefused(VendorError, reason="upstream_refused"):
    """The vendor said no (4xx): `status` is its own, the text its message."""


class VendorUnreachable(VendorError, reason="upstream_unreachable"):
    """The vendor cannot be reached, or says that it is failing."""


class CircuitOpen(VendorUnreachable, reason="circuit_open"):
    """It failed for this instance a short while ago, or too many wait to ask: nothing was sent."""


class VendorUnclear(VendorError, reason="upstream_unclear"):
    """The connection broke before the answer: what was sent may have been taken."""


class VendorNonsense(VendorError, reason="upstream_nonsense"):
    """An answer that the vendor's API does not have: HTML, a redirect, too long, no id."""


class AnswerCut(ReceiverError, ConnectionResetError, reason="answer_cut"):
    """An answer to a client cannot be completed; whoever raises it has logged why.

    Servers take it for a connection that is gone: they close it, which tells the client.
    """

    def __init__(self, message: str) -> None:
        super().__init__(errno.ECONNRESET, message)


class StoreError(ReceiverError):
    """What was to be stored is not in the database."""


class StoreUnavailable(StoreError, reason="store_unavailable"):
    """The database cannot commit now: the sender should try again."""


class StatementRefused(StoreUnavailable, reason="statement_refused"):
    """The database refuses a statement for a fault of ours: one row's, or the setup's."""


class ClockStepped(StoreError, reason="clock_stepped"):
    """The clock jumped: nothing is deleted on its word, and what reads by it begins again."""


class WrongEncoding(SettingsError, StoreUnavailable):
    """The database, or the connection to it, is not in UTF-8: no text would come back as it was."""

    reason = SettingsError.reason


class LostRace(StatementRefused, reason="lost_race"):
    """Another node changed the same rows meanwhile: the same again will do."""


class KeyUnusable(StoreUnavailable, reason="key_unusable"):
    """A key of the instance cannot be decrypted, and no other has signed the delivery."""


class StoreRefused(StoreError, reason="store_refused"):
    """For what it holds, the database will never take this row as it is."""
