"""What the sandbox is told: its settings, and the faults it shall show."""

from dataclasses import dataclass, field
from threading import RLock
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from receiver.openconnectors.signatures import SignatureKey

Shape = Literal["v2", "v3", "list", "mixed"]
Countdown = Literal["html", "die_in_upload", "die_after_upload"]
_Times = Annotated[int, Meta(ge=0, le=1_000_000)]
_Seconds = Annotated[float, Meta(ge=0, le=86_400)]


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The next `times` API calls are answered with the error `status`."""

    status: Annotated[int, Meta(ge=400, le=599)]
    times: _Times


class Redirect(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The next `times` API calls are answered with a 302 to the URL `to`."""

    to: Annotated[str, Meta(pattern=r"^https?://[!-~]+\Z")]
    times: _Times


class Faults(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What goes wrong on purpose. Counts run down to 0 as they are used.

    drop_callbacks -- callbacks are never sent.
    delay_callbacks -- seconds before a callback is first sent.
    duplicate_callbacks -- how many copies of each callback are sent beside the one.
    reorder_callbacks -- callbacks are held for half a second and sent shuffled, one after another.
    answer, html, redirect -- the next API calls get an error, a page of HTML with 200, or a 302.
    die_in_upload -- the next uploads are cut off without an answer or a job.
    die_after_upload -- the next uploads become jobs, then are cut off without an answer.
    overtake -- callbacks are sent before the call that creates the job is answered.
    slow -- seconds before each API answer.
    final_status -- how jobs end, whatever their files hold.
    """

    drop_callbacks: bool = False
    delay_callbacks: _Seconds = 0.0
    duplicate_callbacks: Annotated[int, Meta(ge=0, le=100)] = 0
    reorder_callbacks: bool = False
    answer: Answer | None = None
    die_in_upload: _Times = 0
    die_after_upload: _Times = 0
    overtake: bool = False
    slow: _Seconds = 0.0
    html: _Times = 0
    redirect: Redirect | None = None
    final_status: Literal["ERROR", "ABORTED", "CANCELLED"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a sandbox behaves.

    host, port -- where it listens; port 0 takes a free one.
    first_job -- the id of its first job; ids count on from there.
    signature_key -- signs the callbacks at first; None: they are unsigned.
    job_seconds -- from a job's creation to its end.
    retry_seconds -- the pause before the first retry of a callback; each next one is 8 times as
    long. The vendor's published schedule, 8^x seconds, is retry_seconds=8.
    retries -- of a callback, after its first attempt.
    shape -- of statuses and notifications; `mixed` takes the three in turn.
    callback_url -- the instance's `event.notification.callback.url`.
    progress -- notify STARTED and RUNNING too.
    allow_remote -- send callbacks to hosts other than this one.
    seed -- of the shuffle for `reorder_callbacks`.
    """

    host: str = "127.0.0.1"
    port: int = 0
    first_job: int = 1234
    signature_key: SignatureKey | None = None
    job_seconds: float = 1.0
    retry_seconds: float = 1.0
    retries: int = 5
    shape: Shape = "v2"
    callback_url: str | None = None
    progress: bool = False
    allow_remote: bool = False
    instance_id: int = 425904
    seed: int = 0
    faults: Faults = field(default_factory=Faults)


def signature_key(secret: bytes) -> SignatureKey:
    """The key that a file holds, less one final line end. Raises CredentialError if it is none."""
    end = b"\r\n" if secret.endswith(b"\r\n") else b"\n"
    return SignatureKey("sandbox", secret.removesuffix(end))


class LiveFaults:
    """The faults in force now."""

    def __init__(self, faults: Faults, lock: RLock) -> None:
        self.current = faults
        self._lock = lock

    def replace(self, faults: Faults) -> None:
        """Put `faults` in the place of all that were in force."""
        with self._lock:
            self.current = faults

    def take(self, name: Countdown) -> bool:
        """Use up one of the counted fault `name`; False if none is left."""
        with self._lock:
            left: int = getattr(self.current, name)
            if left:
                self.current = msgspec.structs.replace(self.current, **{name: left - 1})
            return left > 0

    def take_answer(self) -> int | None:
        """Use up one wrong answer; give its HTTP status, or None if none is left."""
        with self._lock:
            answer = self.current.answer
            if answer is None or not answer.times:
                return None
            left = Answer(answer.status, answer.times - 1)
            self.current = msgspec.structs.replace(self.current, answer=left)
            return answer.status

    def take_redirect(self) -> str | None:
        """Use up one redirect; give its URL, or None if none is left."""
        with self._lock:
            redirect = self.current.redirect
            if redirect is None or not redirect.times:
                return None
            left = Redirect(redirect.to, redirect.times - 1)
            self.current = msgspec.structs.replace(self.current, redirect=left)
            return redirect.to
