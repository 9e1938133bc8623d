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
│   ├── TooManyRefusals         one address was refused too often
│   ├── TooManyRequests         one token asked, or one address failed, too often
│   └── Overloaded              no place or no room for this request now
├── CredentialError             a key, secret or token cannot be taken or used
├── QueryError                  a question to the API that has no answer
│   ├── Unauthenticated
│   ├── Forbidden
│   ├── NotFound
│   ├── EventGone
│   ├── BodyGone
│   ├── Ambiguous
│   ├── JobEnded
│   ├── BadParameter
│   └── TooSlow
├── UpstreamError               the vendor did not do what it was asked
│   ├── UpstreamRefused         it said no, and why
│   ├── UpstreamUnreachable     it cannot be reached or is failing; nothing was taken
│   │   └── CircuitOpen         it is not asked for this instance now
│   ├── UpstreamUnclear         the answer was cut off: it may have been taken
│   └── UpstreamNonsense        its answer is none of the vendor's
├── AnswerCut                   an answer to a client that cannot be brought to its end
└── StoreError                  not in the database
    ├── StoreUnavailable        now; the same again later may work
    │   ├── LostRace            since another node was faster
    │   ├── KeyUnusable         a key that may have signed this cannot be decrypted
    │   └── StatementRefused    the database is there, but refused a statement
    ├── ClockStepped            now: the clock jumped, and nothing is deleted on its word
    └── StoreRefused            ever; for what it holds, this row cannot be stored as it is
"""

import errno
from typing import ClassVar


class ReceiverError(Exception):
    """Base of all. `reason` is the error's slug in metrics, counts and problem documents."""

    reason: ClassVar[str] = "error"


class SettingsError(ReceiverError):
    """A setting is wrong or half set; the text is one line that names it."""

    reason = "settings"


class BodyError(ReceiverError):
    """The bytes of a request did not arrive as they were sent."""


class BodyTruncated(BodyError):
    """Fewer bytes arrived than announced, or the chunks broke off."""

    reason = "truncated"


class BodyTooLarge(BodyError):
    """The body is longer than RECEIVER_MAX_BODY_BYTES."""

    reason = "too_large"


class SignatureError(ReceiverError):
    """The delivery is not proven to come from the vendor."""


class SignatureMissing(SignatureError):
    """There is no signature header, or an empty one."""

    reason = "missing"


class SignatureMalformed(SignatureError):
    """The header is not `sha256=` and 44 characters of standard base64."""

    reason = "malformed"


class SignatureHex(SignatureError):
    """The digest is written in hex where the vendor writes base64."""

    reason = "hex_digest"


class SignatureAlgorithm(SignatureError):
    """The header names another algorithm than `sha256=`, or none."""

    reason = "algorithm"


class SignatureMismatch(SignatureError):
    """The header is well formed, but no key of the instance made it for this body."""

    reason = "bad_signature"


class NoSignatureKey(SignatureError):
    """The instance is known but has no key, so nothing can be proven."""

    reason = "no_key"


class UnknownInstance(SignatureError):
    """There is no instance of that name."""

    reason = "unknown_instance"


class RetryLater(ReceiverError):
    """Not now; `retry_after` in seconds."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TooManyRefusals(RetryLater):
    """One address had more deliveries refused than are listened to."""

    reason = "rate_limited"


class TooManyRequests(RetryLater):
    """A token made requests, or an address came with wrong tokens, too often."""

    reason = "rate_limited"


class Overloaded(RetryLater):
    """There is no place or no room for this request now."""

    reason = "overloaded"


class CredentialError(ReceiverError):
    """A key, secret or token cannot be taken or used; the text never contains it."""

    reason = "credential"


class QueryError(ReceiverError):
    """A question to the API that has no answer; the text says why."""


class Unauthenticated(QueryError):
    """No valid token came with the request."""

    reason = "unauthenticated"


class Forbidden(QueryError):
    """The token does not reach that far."""

    reason = "forbidden"


class NotFound(QueryError):
    """There is no such thing, or the token does not see it."""

    reason = "not_found"


class EventGone(QueryError):
    """The event was pruned: its hash goes on recognising its body, but no more is known."""

    reason = "event_pruned"


class BodyGone(QueryError):
    """The event is known, but its body was pruned or erased."""

    reason = "body_pruned"


class Ambiguous(QueryError):
    """Several instances have a job of that id, and none was named."""

    reason = "ambiguous_job"


class JobEnded(QueryError):
    """There is nothing to close: the job has ended."""

    reason = "job_ended"


class BadParameter(QueryError):
    """A parameter is unknown or has no sense."""

    reason = "bad_parameter"


class TooSlow(QueryError):
    """The answer would take longer than a question may hold up the database."""

    reason = "too_slow"


class UpstreamError(ReceiverError):
    """The vendor did not do what it was asked.

    status -- what to answer a client of ours that wanted it. retry_after -- seconds before which
    the vendor will not be asked again.
    The text never holds a secret.
    """

    reason = "upstream"

    def __init__(self, message: str, status: int = 502, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.retry_after = status, retry_after


class UpstreamRefused(UpstreamError):
    """The vendor said no (4xx): `status` is its own, the text its message."""

    reason = "upstream_refused"


class UpstreamUnreachable(UpstreamError):
    """The vendor cannot be reached, or says that it is failing."""

    reason = "upstream_unreachable"


class CircuitOpen(UpstreamUnreachable):
    """It failed for this instance a short while ago, or too many wait to ask: nothing was sent."""

    reason = "circuit_open"


class UpstreamUnclear(UpstreamError):
    """The connection broke before the answer: what was sent may have been taken."""

    reason = "upstream_unclear"


class UpstreamNonsense(UpstreamError):
    """An answer that the vendor's API does not have: HTML, a redirect, too long, no id."""

    reason = "upstream_nonsense"


class AnswerCut(ReceiverError, ConnectionResetError):
    """An answer to a client cannot be brought to its end; whoever raises it has told why.

    Servers take it for a connection that is gone: they close it, which tells the client.
    """

    reason = "answer_cut"

    def __init__(self, message: str) -> None:
        super().__init__(errno.ECONNRESET, message)


class StoreError(ReceiverError):
    """What was to be stored is not in the database."""


class StoreUnavailable(StoreError):
    """The database cannot commit now: the sender should try again."""

    reason = "store_unavailable"


class StatementRefused(StoreUnavailable):
    """The database refuses a statement for a fault of ours: one row's, or the setup's."""

    reason = "statement_refused"


class ClockStepped(StoreError):
    """The clock jumped by over a day: nothing is deleted on its word."""

    reason = "clock_stepped"


class WrongEncoding(SettingsError, StoreUnavailable):
    """The database, or the connection to it, is not in UTF-8: no text would come back as it was."""

    reason = SettingsError.reason


class LostRace(StatementRefused):
    """Another node changed the same rows meanwhile: the same again will do."""

    reason = "lost_race"


class KeyUnusable(StoreUnavailable):
    """A key of the instance cannot be decrypted, and no other has signed the delivery."""

    reason = "key_unusable"


class StoreRefused(StoreError):
    """For what it holds, the database will never take this row as it is."""

    reason = "store_refused"
