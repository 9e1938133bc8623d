"""Saving the file of an ended download before the vendor drops it."""

import hashlib
import secrets
from pathlib import Path

import structlog

from receiver.errors import StoreUnavailable, UpstreamRefused
from receiver.jobs.queries import note_fetched
from receiver.openconnectors import client as upstream
from receiver.reconcile.followups import Claim
from receiver.reconcile.pacing import Lane

LONGEST_FILE_NAME = 200

log = structlog.get_logger()


def save_result(lane: Lane, claim: Claim, folder: Path) -> bool:
    """Save a job's file below `folder`, unless it is there; tell whether it was saved.

    Raises UpstreamError, and StoreUnavailable where the folder takes no more.
    """
    target = folder / _file_name(claim)
    if not claim.object or target.exists():
        return False
    lane.turn()
    unfinished = folder / f".{secrets.token_hex(8)}.part"  # nodes may share the folder
    try:
        call = upstream.result(claim.job, claim.object, "text/csv", lane.secrets.hub)
        with (
            lane.road.vendor.stream(lane.secrets.authorization, call) as (_, pieces),
            unfinished.open("wb") as file,
        ):
            file.writelines(pieces)
        unfinished.rename(target)
        with lane.road.database.write() as session:
            note_fetched(session, claim.job, claim.instance, lane.road.clock())
    except UpstreamRefused as error:
        log.warning("no result", instance=lane.instance, job=claim.job, error=str(error))
        return False
    except OSError as error:
        raise StoreUnavailable(f"a result cannot be saved: {error.strerror}") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return True


def _file_name(claim: Claim) -> str:
    """Name a result's file; no instance has a point in its name, so that no two share one."""
    name = f"{claim.instance}.{claim.job}.csv"
    if len(name) <= LONGEST_FILE_NAME:
        return name
    return f"{claim.instance}.{hashlib.sha256(claim.job.encode()).hexdigest()}.csv"
