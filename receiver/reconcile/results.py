"""What a pass of the reconciler leaves: its report, and the files of ended downloads."""

import hashlib
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path

from receiver.errors import StoreUnavailable, VendorRefused
from receiver.openconnectors import client
from receiver.openconnectors.shapes import MEDIA_TYPES
from receiver.reconcile.pacing import PacedVendor

MAX_FILE_NAME = 200

_SUFFIXES = {media_type: name for name, media_type in MEDIA_TYPES.items()}


@dataclass(slots=True)
class Report:
    """What a pass did.

    asked -- polls; ended -- those that reported an ending. found -- jobs nobody had reported.
    errors, queued, redelivered, results -- records, deliveries, files. unsaved -- results that
    cannot be had, and why. failed -- jobs the vendor failed for, and why. unfinished -- instances
    left out or not finished, and why. unasked -- those that have jobs to ask for and nothing to ask
    with. unclear -- submissions with unknown result.
    """

    asked: int = 0
    ended: int = 0
    found: int = 0
    errors: int = 0
    queued: int = 0
    redelivered: int = 0
    results: int = 0
    unsaved: list[dict[str, str]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    unfinished: list[dict[str, str]] = field(default_factory=list)
    unasked: list[dict[str, str]] = field(default_factory=list)
    unclear: list[dict[str, object]] = field(default_factory=list)

    def add(self, other: "Report") -> None:
        """Add what was done for another instance."""
        for name, done in asdict(other).items():
            setattr(self, name, getattr(self, name) + done)

    @property
    def blocked(self) -> list[str]:
        """The names of the instances left out or not finished."""
        return [one["instance"] for one in self.unfinished]


class NotSaved(Exception):
    """A result cannot be had; the text says why."""


def save_result(vendor: PacedVendor, job: str, object_: str | None, folder: Path) -> bool:
    """Save a job's file below `folder`, in its own format; False if it is there.

    Raises VendorError, NotSaved, and StoreUnavailable where the folder takes no more.
    """
    stem = _stem(vendor.instance, job)
    if any((folder / f"{stem}.{suffix}").exists() for suffix in (*MEDIA_TYPES, "bin")):
        return False
    if not object_:
        raise NotSaved("its object is not known")
    refusal: VendorRefused | None = None
    for accepted in client.ACCEPTED:
        vendor.wait()
        try:
            _save(
                vendor,
                client.result_call(job, object_, accepted, vendor.secrets.hub),
                folder / stem,
            )
        except VendorRefused as error:
            if error.status not in client.WRONG_FORMAT:
                raise NotSaved(str(error)) from None
            refusal = error
        else:
            return True
    raise NotSaved(str(refusal))


def _save(vendor: PacedVendor, call: client.Call, target: Path) -> None:
    unfinished = target.with_name(f".{secrets.token_hex(8)}.part")  # nodes may share the folder
    try:
        with (
            vendor.vendor.stream(vendor.secrets.authorization, call) as (content_type, pieces),
            unfinished.open("wb") as file,
        ):
            file.writelines(pieces)
        suffix = _SUFFIXES.get(content_type.partition(";")[0].strip().lower(), "bin")
        # Not with_suffix: a job's id may have points.
        unfinished.rename(target.with_name(f"{target.name}.{suffix}"))
    except OSError as error:
        raise StoreUnavailable(f"a result cannot be saved: {error.strerror}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def _stem(instance: str, job: str) -> str:
    """Name a result's file; no instance has a point in its name, so that no two share one."""
    name = f"{instance}.{job}"
    if len(name) <= MAX_FILE_NAME:
        return name
    return f"{instance}.{hashlib.sha256(job.encode()).hexdigest()}"
