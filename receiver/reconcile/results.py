"""Saving the file of an ended download before the vendor drops it."""

import hashlib
import secrets
from pathlib import Path

from receiver.errors import StoreUnavailable, UpstreamRefused
from receiver.jobs.queries import note_fetched
from receiver.openconnectors import client
from receiver.openconnectors.shapes import MEDIA_TYPES
from receiver.reconcile.followups import Claim
from receiver.reconcile.pacing import Lane

LONGEST_FILE_NAME = 200

_SUFFIXES = {media_type: name for name, media_type in MEDIA_TYPES.items()}


class NotSaved(Exception):
    """A result cannot be had; the text says why."""


def save_result(lane: Lane, claim: Claim, folder: Path) -> bool:
    """Save a job's file below `folder`, in its own format; False if it is there.

    Raises UpstreamError, NotSaved, and StoreUnavailable where the folder takes no more.
    """
    stem = _stem(claim)
    if any((folder / f"{stem}.{suffix}").exists() for suffix in (*MEDIA_TYPES, "bin")):
        return False
    if not claim.object:
        raise NotSaved("its object is not known")
    refusal: UpstreamRefused | None = None
    for accepted in client.ACCEPTED:
        lane.turn()
        try:
            _save(lane, claim, accepted, folder / stem)
        except UpstreamRefused as error:
            if error.status not in client.WRONG_FORMAT:
                raise NotSaved(str(error)) from None
            refusal = error
        else:
            return True
    raise NotSaved(str(refusal))


def _save(lane: Lane, claim: Claim, accepted: str, target: Path) -> None:
    call = client.result(claim.job, claim.object or "", accepted, lane.secrets.hub)
    unfinished = target.with_name(f".{secrets.token_hex(8)}.part")  # nodes may share the folder
    try:
        with (
            lane.road.vendor.stream(lane.secrets.authorization, call) as (content_type, pieces),
            unfinished.open("wb") as file,
        ):
            file.writelines(pieces)
        suffix = _SUFFIXES.get(content_type.partition(";")[0].strip().lower(), "bin")
        # Not with_suffix: a job's id may have points.
        unfinished.rename(target.with_name(f"{target.name}.{suffix}"))
        with lane.road.database.write() as session:
            note_fetched(session, claim.job, claim.instance, lane.road.clock())
    except OSError as error:
        raise StoreUnavailable(f"a result cannot be saved: {error.strerror}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def _stem(claim: Claim) -> str:
    """Name a result's file; no instance has a point in its name, so that no two share one."""
    name = f"{claim.instance}.{claim.job}"
    if len(name) <= LONGEST_FILE_NAME:
        return name
    return f"{claim.instance}.{hashlib.sha256(claim.job.encode()).hexdigest()}"
