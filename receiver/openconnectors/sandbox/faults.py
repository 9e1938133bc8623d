"""How a sandbox behaves: its options, and the faults it shows on purpose."""

from dataclasses import dataclass, field
from threading import Lock
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from receiver.openconnectors.shapes import Shape
from receiver.openconnectors.signatures import SignatureKey

Final = Literal["COMPLETE", "SUCCESS", "ERROR", "ABORTED", "CANCELLED"]
_Times = Annotated[int, Meta(ge=0, le=1_000_000)]
_Seconds = Annotated[float, Meta(ge=0, le=86_400)]

_using = Lock()


class Answer(msgspec.Struct, forbid_unknown_fields=True):
    """The next `times` API calls are answered with the error `status`.

    retry_after -- the header of that name; 429 has one in any case.
    """

    status: Annotated[int, Meta(ge=400, le=599)]
    times: _Times
    retry_after: int | str | None = None


class Redirect(msgspec.Struct, forbid_unknown_fields=True):
    """The next `times` API calls are answered with a 302 to the URL `to`."""

    to: Annotated[str, Meta(pattern=r"^https?://[!-~]+\Z")]
    times: _Times


class Faults(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What goes wrong on purpose. Counts run down to 0 as they are used.

    drop_callbacks -- callbacks are never sent.
    delay_callbacks -- seconds before a callback is first sent.
    duplicate_callbacks -- how many copies of each callback are sent beside the one.
    reorder_callbacks -- each callback is held for up to half a second, so that others pass it.
    answer, html, redirect -- the next API calls get an error, a page of HTML with 200, or a 302.
    die_in_upload -- the next uploads are cut off without an answer or a job.
    die_after_upload -- the next uploads become jobs, then are cut off without an answer.
    overtake -- callbacks are sent before the call that creates the job is answered.
    slow -- seconds before each API answer.
    final_status -- the word that jobs end with; COMPLETE and SUCCESS are other spellings of
    COMPLETED, the others say that the job failed, whatever its file holds.
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
    final_status: Final | None = None

    def use(self, name: str) -> Answer | Redirect | int | None:
        """Use up one of a counted fault; return the fault, or None if none is left."""
        with _using:
            fault: Answer | Redirect | int | None = getattr(self, name)
            if isinstance(fault, (Answer, Redirect)) and fault.times:
                fault.times -= 1
                return fault
            if isinstance(fault, int) and fault:
                setattr(self, name, fault - 1)
                return fault
        return None


@dataclass(slots=True, kw_only=True)
class Options:
    """How a sandbox behaves, as the command's help says of each option.

    retries -- of a callback, after its first attempt. The vendor's published schedule, 8^x seconds,
    is retry_seconds=8. The key and the faults may be replaced while it runs.
    """

    bind: tuple[str, int] = ("127.0.0.1", 0)
    first_job: int = 1234
    signature_key: SignatureKey | None = None
    job_seconds: float = 1.0
    retry_seconds: float = 1.0
    retries: int = 5
    shape: Shape = "v2"
    total_counts: bool = False
    callback_url: str | None = None
    allow_remote: bool = False
    faults: Faults = field(default_factory=Faults)
