"""Saving the file of an ended download before the vendor deletes it."""

import hashlib
import secrets
from pathlib import Path

from receiver.errors import StoreUnavailable, UpstreamRefused
from receiver.openconnectors import client
from receiver.openconnectors.shapes import MEDIA_TYPES
from receiver.reconcile.pacing import PacedVendor

MAX_FILE_NAME = 200

_SUFFIXES = {media_type: name for name, media_type in MEDIA_TYPES.items()}


class NotSaved(Exception):
    """A result cannot be had; the text says why."""


def save_result(vendor: PacedVendor, job: str, object_: str | None, folder: Path) -> bool:
    """Save a job's file below `folder`, in its own format; False if it is there.

    Raises UpstreamError, NotSaved, and StoreUnavailable where the folder takes no more.
    """
    stem = _stem(vendor.instance, job)
    if any((folder / f"{stem}.{suffix}").exists() for suffix in (*MEDIA_TYPES, "bin")):
        return False
    if not object_:
        raise NotSaved("its object is not known")
    refusal: UpstreamRefused | None = None
    for accepted in client.ACCEPTED:
        vendor.wait()
        try:
            _save(vendor, client.result(job, object_, accepted, vendor.secrets.hub), folder / stem)
        except UpstreamRefused as error:
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
